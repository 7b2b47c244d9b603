"""Indirect object identification: two names, one of them again; the other one is the answer.

    clean     When Mary and John went to the shop, John gave a book to     ->  Mary
    corrupt   When Mary and John went to the shop, Mary gave a book to     ->  John

The task of Wang et al. 2022, Interpretability in the Wild; templates and names are cutaway's own.
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn, crossed, text_of
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.builtin.words import NAMES
from cutaway.tasks.task import Task

PLACES = ("shop", "school", "park", "library", "office", "market", "garden", "station")
THINGS = ("book", "letter", "ball", "ring", "key", "camera", "toy", "flower")
OPENINGS = (
    "When {a} and {b} went to the {place},",
    "After {a} and {b} left the {place},",
    "While {a} and {b} were at the {place},",
    "Then {a} and {b} met at the {place}.",
    "Yesterday {a} and {b} walked to the {place}, and",
    "As {a} and {b} waited near the {place},",
)
GIVINGS = (
    "{s2} gave a {thing} to",
    "{s2} handed the {thing} to",
    "{s2} showed a {thing} to",
    "{s2} threw the {thing} to",
)


def draw(cluster: str, chance: random.Random) -> Drawn:
    """A giver and a receiver; the receiver stands first in half of the draws."""
    giver, receiver = chance.sample(NAMES, 2)
    receiver_first = chance.random() < 0.5
    words = {"place": chance.choice(PLACES), "thing": chance.choice(THINGS)}
    words["a"], words["b"] = (receiver, giver) if receiver_first else (giver, receiver)
    roles = {"io": "a", "s1": "b", "s2": "s2"} if receiver_first else {"io": "b", "s1": "a", "s2": "s2"}
    clean, corrupt = {**words, "s2": giver}, {**words, "s2": receiver}
    pair = contrast(text_of(cluster), clean, corrupt, (f" {receiver}", f" {giver}"), roles)
    return Drawn(pair, f"{giver} {receiver}")


IOI = Behavior(
    "ioi",
    "Two people are named, one of them again as the giver: does the model name the other one as the receiver? The "
    "corrupt prompt repeats the other name, so the answer flips and one word differs. Positions: io (the name that is "
    "the answer), s1 (first mention of the giver), s2 (second mention), end. Half of the pairs name the answer first.",
    crossed(OPENINGS, GIVINGS),
    draw,
    ("io", "s1", "s2"),
    unseen=tuple(f"{OPENINGS[i]} | {GIVINGS[i % 4]}" for i in (0, 2, 3, 5)),
)


def ioi(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """Two names and one of them again: does the model name the other one as the receiver?

    English text; clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return IOI.task(model, n=n, seed=seed)
