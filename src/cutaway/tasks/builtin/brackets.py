"""Brackets: the next one to close is the last that was opened.

clean     Code: ( [ < > ]     ->  )
corrupt   Code: { [ < > ]     ->  }
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.task import Task

KINDS = {"(": ")", "[": "]", "{": "}", "<": ">"}
LEAD = "Code:"
# fmt: off
SHAPES = (
    "(()", "((()", "(((()", "()(()", "(()()", "((())", "((()()", "(((())", "()((()", "()()(()", "(()()()", "((())()",
    "(()(())", "((()())", "(((()))", "()(()()", "()((())", "(()(()", "(((()()", "()(((()", "((()()()", "()((()()",
    "(((())()", "((()(())",
)
# fmt: on
"""Nesting of what was opened and closed; the last that is still open is asked for, and it is not the last that stands
there."""


def draw(cluster: str, chance: random.Random) -> Drawn:
    """Kinds for all brackets of the shape; the corrupt prompt has another kind where the asked one opens."""
    signs: list[str] = []
    stack: list[int] = []
    for at, sign in enumerate(cluster):
        if sign == "(":
            stack.append(at)
        signs.append(chance.choice(list(KINDS)) if sign == "(" else KINDS[signs[stack.pop()]])
    asked = stack[-1]
    kind, other = signs[asked], chance.choice([kind for kind in KINDS if kind != signs[asked]])
    template = " ".join((LEAD, *signs[:asked], "{opened}", *signs[asked + 1 :]))
    pair = contrast(template, {"opened": kind}, {"opened": other}, (f" {KINDS[kind]}", f" {KINDS[other]}"), ["opened"])
    return Drawn(pair, "".join(signs))


BRACKETS = Behavior(
    "brackets",
    "Brackets of four kinds, some closed: is the next one to close the last that was opened? The corrupt prompt opens "
    "another kind there. Positions: opened (the bracket to be closed), end. Clusters are the shapes of the nesting.",
    SHAPES,
    draw,
    ("opened",),
    unseen=("((()())", "()((()", "(((()()"),
)


def brackets(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """Nested brackets: does the model close the last that was opened?

    Clusters are the shapes of the nesting. Raises Misaligned, with the counts, when too few pairs align.
    """
    return BRACKETS.task(model, n=n, seed=seed)
