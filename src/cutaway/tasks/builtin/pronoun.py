"""Pronoun: she or he, in the English of children's stories.

clean     One day, a little girl went to the park.     ->  She
corrupt   One day, a little boy went to the park.      ->  He
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn
from cutaway.tasks.builtin.collect import contrast
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


def draw(cluster: str, chance: random.Random) -> Drawn:
    """A girl and a boy for the same place in the template; either may be the clean one."""
    order = chance.choice((1, -1))
    subject, other = chance.choice(NAMES if cluster in NAME_TEMPLATES else NOUNS)[::order]
    answer, foil = ((" She", " He") if cluster.endswith(".") else (" she", " he"))[::order]
    words = {"kind": chance.choice(KINDS), "place": chance.choice(PLACES), "thing": chance.choice(THINGS)}
    clean, corrupt = ({**words, "subject": each} for each in (subject, other))
    return Drawn(contrast(cluster, clean, corrupt, (answer, foil), ["subject"]), f"{cluster} {subject}")


PRONOUN = Behavior(
    "pronoun",
    "After a sentence about a girl or a boy: does the story go on with she or with he? Clean and corrupt differ in the "
    "subject alone, a noun or a name, and lead to opposite answers; half of the pairs have the girl in the clean "
    "prompt. The English is that of children's stories. Positions: subject (its last token), end.",
    NOUN_TEMPLATES + NAME_TEMPLATES,
    draw,
    ("subject",),
    unseen=(NOUN_TEMPLATES[1], NOUN_TEMPLATES[6], NOUN_TEMPLATES[9]),
    endings=(" was happy.", " smiled.", " was sad."),
)


def pronoun(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """After a sentence about a girl or a boy: does the story go on with she or with he?

    English text; clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return PRONOUN.task(model, n=n, seed=seed)
