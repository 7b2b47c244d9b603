"""Antonyms in four languages.

clean     Das Gegenteil von groß ist     ->  klein
corrupt   Das Gegenteil von heiß ist     ->  kalt
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn, text_of
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.builtin.words import LANGUAGES, OPPOSITES
from cutaway.tasks.task import Task

FORMS = {
    "English": ("The opposite of {word} is", "It is not {word} but", "Opposites: {word} and"),
    "French": ("Le contraire de {word} est", "Il est non pas {word} mais", "Contraires: {word} et"),
    "Spanish": ("Lo contrario de {word} es", "No es {word} sino", "Contrarios: {word} y"),
    "German": ("Das Gegenteil von {word} ist", "Es ist nicht {word} sondern", "Gegensatz: {word} und"),
}
LEADS = {"English": "Remember:", "French": "Attention:", "Spanish": "Recuerda:", "German": "Achtung:"}
TEMPLATES = {
    template: LANGUAGES.index(language)
    for language, forms in FORMS.items()
    for form in forms
    for template in (form, f"{LEADS[language]} | {form}")
}
"""Template -> index of its language."""


def draw(cluster: str, chance: random.Random) -> Drawn:
    """An adjective of the template's language; the corrupt prompt has one of another pair of opposites."""
    language = TEMPLATES[cluster]
    (word, answer), (other, foil) = (
        chance.sample([meaning[language] for meaning in pair], 2) for pair in chance.sample(OPPOSITES, 2)
    )
    answers = (f" {answer}", f" {foil}")
    pair = contrast(text_of(cluster), {"word": word}, {"word": other}, answers, ["word"])
    return Drawn(pair, f"{cluster.rpartition(' | ')[2]} {word}")


ANTONYM = Behavior(
    "antonym",
    "An adjective in English, French, Spanish or German: does the model name its opposite in that language? The "
    "corrupt prompt asks for another adjective, whose opposite is the foil. The same twelve pairs of meanings come in "
    "all four languages. Positions: word (the adjective), end.",
    tuple(TEMPLATES),
    draw,
    ("word",),
    unseen=tuple(f"{LEADS[language]} | {FORMS[language][i % 3]}" for i, language in enumerate(LANGUAGES)),
)


def antonym(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """An adjective in one of four languages: does the model name its opposite?

    Clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return ANTONYM.task(model, n=n, seed=seed)
