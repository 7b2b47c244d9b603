"""Pronoun: she or he, in the English of children's stories.

A sentence tells of a girl or a boy; the next word is a pronoun. Clean and corrupt differ in the subject alone and lead
to opposite answers; about half of the pairs have the girl in the clean prompt. Positions: `subject` (its
last token), `end`.
"""

import itertools
import random
from collections.abc import Iterator

from cutaway.models.model import Model
from cutaway.tasks.builtin.collect import collect, fill
from cutaway.tasks.pair import Pair
from cutaway.tasks.task import Task

NOUNS = (("girl", "boy"), ("sister", "brother"))
NAMES = (
    ("Lily", "Timmy"),
    ("Lily", "Tim"),
    ("Sue", "Bob"),
    ("Mia", "Max"),
    ("Sara", "Mark"),
    ("Lucy", "Jack"),
    ("Mary", "John"),
    ("Anna", "Jack"),
)
PLACES = ("park", "garden", "house", "forest", "lake", "beach")
THINGS = ("ball", "toy", "car", "flower", "hat", "book")
KINDS = ("little", "small", "happy", "big", "kind", "nice")

NOUN_TEMPLATES = (
    "Once upon a time, there was a {kind} {subject}.",
    "Once there was a {kind} {subject}.",
    "One day, a {kind} {subject} went to the {place}.",
    "One sunny day, a {kind} {subject} went for a walk in the {place}.",
    "There was a {kind} {subject} who had a {thing}.",
    "Once upon a time, a {kind} {subject} lived in a {place}.",
    "In the {place}, there was a {kind} {subject}.",
    "The {kind} {subject} had a big {thing}.",
    "A {kind} {subject} saw a {thing} in the {place}.",
    "The {kind} {subject} was very happy in the {place}.",
    "One day, the {kind} {subject} found a {thing}.",
    "The {kind} {subject} wanted to play with the {thing}.",
    "The {kind} {subject} looked at the {thing} and smiled.",
    "The {kind} {subject} lost a {thing} in the {place}.",
    "Every day, the {kind} {subject} played in the {place}.",
    "The {kind} {subject} came home from the {place}.",
    "The {kind} {subject} put the {thing} in a box.",
    "The {kind} {subject} was sad because",
)
NAME_TEMPLATES = (
    "One day, {subject} went to the {place} to play.",
    "{subject} was very sad about the {thing}.",
    "Today {subject} got a new {thing}.",
    "In the {place}, {subject} saw a big {thing}.",
    "{subject} wanted to have the {thing}.",
    "{subject} was happy because",
)


def pronoun(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """After a sentence about a girl or a boy: does the story go on with she or with he?

    English text; clusters are the templates. Only pairs that align in the model's tokens are taken. Raises Misaligned,
    with the counts, when too few do.
    """
    templates = [
        *((template, NOUNS) for template in NOUN_TEMPLATES),
        *((template, NAMES) for template in NAME_TEMPLATES),
    ]
    random.Random(f"pronoun {seed}").shuffle(templates)
    candidates = {
        template: _fillings(template, subjects, index, random.Random(f"pronoun {seed} {template}"))
        for index, (template, subjects) in enumerate(templates)
    }
    return Task(
        "pronoun",
        "A sentence tells of a girl or a boy; the answer is the pronoun that agrees, the foil the other one.",
        collect("pronoun", candidates, model, n=n, seed=seed, metric_name="logit_diff"),
        metric="logit_diff",
        roles=("subject", "end"),
        seed=seed,
    )


def _fillings(template: str, subjects: tuple[tuple[str, str], ...], turn: int, chance: random.Random) -> Iterator[Pair]:
    """All ways to fill a template, in random order, girl and boy taking turns to be the clean one."""
    slots = {"kind": KINDS, "place": PLACES, "thing": THINGS}
    used = {name: words for name, words in slots.items() if f"{{{name}}}" in template}
    ways = [(subject, dict(zip(used, words))) for subject in subjects for words in itertools.product(*used.values())]
    chance.shuffle(ways)
    answers = (" She", " He") if template.endswith(".") else (" she", " he")
    for step, (subject, words) in enumerate(ways):
        order = 1 if (step + turn) % 2 == 0 else -1
        (clean, where), (corrupt, corrupt_where) = (fill(template, {**words, "subject": s}) for s in subject[::order])
        answer, foil = answers[::order]
        yield Pair(clean, corrupt, answer, foil, {"subject": where["subject"]}, {"subject": corrupt_where["subject"]})
