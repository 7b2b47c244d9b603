"""Floor 5: steering. Vectors with a strength that means something, and what they do to a continuation."""

from cutaway.steering.compare import Comparison, compare
from cutaway.steering.measure import Scale, difference, measure, steering
from cutaway.steering.vector import Steering

__all__ = ["Comparison", "Scale", "Steering", "compare", "difference", "measure", "steering"]
