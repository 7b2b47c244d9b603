"""Translation of single words between four languages.

clean     English: big. French:     ->  grand
corrupt   English: dog. French:     ->  chien
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.builtin.words import ADJECTIVES, LANGUAGES, NOUNS, VERBS
from cutaway.tasks.task import Task

MEANINGS = (*ADJECTIVES, *NOUNS, *VERBS)
FORMS = ("{source}: {word}. {target}:", "Word: {word}. In {target}:", "Translate {word} from {source} to {target}:")
CLUSTERS = tuple(
    f"{source} | {target} | {form}"
    for index, source in enumerate(LANGUAGES)
    for step, target in enumerate(other for other in LANGUAGES if other != source)
    for form in (FORMS[0], FORMS[1 + (index + step) % 2])
)


def draw(cluster: str, chance: random.Random) -> Drawn:
    """A word of the source language; the corrupt prompt has another one."""
    source, target, form = cluster.split(" | ")
    meaning, other = chance.sample(MEANINGS, 2)
    here, there = LANGUAGES.index(source), LANGUAGES.index(target)
    clean, corrupt = ({"source": source, "target": target, "word": each[here]} for each in (meaning, other))
    pair = contrast(form, clean, corrupt, (f" {meaning[there]}", f" {other[there]}"), ["word", "target"])
    return Drawn(pair, f"{source} {target} {meaning.english}")


TRANSLATION = Behavior(
    "translation",
    "A word of English, French, Spanish or German, and a language: does the model name the word in that language? The "
    "corrupt prompt asks for another word, whose translation is the foil. Positions: word, target (the language asked "
    "for), end.",
    CLUSTERS,
    draw,
    ("word", "target"),
    unseen=(CLUSTERS[1], CLUSTERS[8], CLUSTERS[15]),
)


def translation(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """A word and a language: does the model name the word in that language?

    Clusters are directions and phrasings. Raises Misaligned, with the counts, when too few pairs align.
    """
    return TRANSLATION.task(model, n=n, seed=seed)
