"""Floor 3: many runs, declared, planned and executed; and the slow oracle that plans are held to."""

from cutaway.engine.planner import Explanation, Plan, plan
from cutaway.engine.reference import reference
from cutaway.engine.request import Progress, Reduce, Run

__all__ = ["Explanation", "Plan", "Progress", "Reduce", "Run", "plan", "reference"]
