"""Addition of two numbers.

clean     Sum: 12 + 34 =     ->  46
corrupt   Sum: 12 + 21 =     ->  33
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn, crossed, text_of
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.task import Task

LARGEST = 49
"""Of the two numbers that are added."""
LEADS = ("Sum:", "Total:", "Numbers:", "Add:")
FORMS = (
    "{a} + {b} =",
    "{a} plus {b} =",
    "{a} + {b} is",
    "{a} plus {b} is",
    "{a} and {b} make",
    "{a} and {b} give",
)


def draw(cluster: str, chance: random.Random) -> Drawn:
    """Two numbers; in the corrupt prompt one of the two is another."""
    numbers = {slot: chance.randint(0, LARGEST) for slot in "ab"}
    changed = chance.choice("ab")
    new = chance.choice([number for number in range(LARGEST + 1) if number != numbers[changed]])
    others = {**numbers, changed: new}
    clean, corrupt = ({slot: str(number) for slot, number in found.items()} for found in (numbers, others))
    answers = (f" {sum(numbers.values())}", f" {sum(others.values())}")
    pair = contrast(text_of(cluster), clean, corrupt, answers, ["a", "b"])
    return Drawn(pair, " ".join(map(str, sorted(numbers.values()))))


ADDITION = Behavior(
    "addition",
    "Two whole numbers from 0 to 49: does the model name their sum? In the corrupt prompt one number is another, and "
    "the foil is the sum that belongs to it. Positions: a and b (the numbers), end.",
    crossed(LEADS, FORMS),
    draw,
    ("a", "b"),
    unseen=tuple(f"{LEADS[i % 4]} | {FORMS[i]}" for i in (1, 2, 4)),
)


def addition(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """Two numbers: does the model name their sum?

    Clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return ADDITION.task(model, n=n, seed=seed)
