"""Floor 3: many runs, declared, planned and executed; and the slow oracle that plans are held to."""

from cutaway.engine.planner import MAX_TOKENS, Explanation, Plan, plan
from cutaway.engine.reference import reference
from cutaway.engine.request import Progress, Reduce, Run
from cutaway.engine.slopes import Grad, gradients
from cutaway.engine.store import Store

__all__ = [
    "MAX_TOKENS",
    "Explanation",
    "Grad",
    "Plan",
    "Progress",
    "Reduce",
    "Run",
    "Store",
    "gradients",
    "plan",
    "reference",
]
