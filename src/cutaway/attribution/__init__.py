"""Attribution of a unit to the inputs: which tokens, or which pixels, does a number inside the network come from?

target = attribution.logit_diff(answer, foil)
found = attribution.attribute(model, prompts, target, method="integrated_gradients", baseline="mean")
trust = attribution.faithfulness(model, prompts, target, found)
"""

from cutaway.attribution.attribute import BASELINES, METHODS, attribute
from cutaway.attribution.faithfulness import Faithfulness, faithfulness
from cutaway.attribution.grad_cam import ImageScores, grad_cam
from cutaway.attribution.result import TokenScores
from cutaway.attribution.target import Target, logit, logit_diff, unit

__all__ = [
    "BASELINES",
    "METHODS",
    "Faithfulness",
    "ImageScores",
    "Target",
    "TokenScores",
    "attribute",
    "faithfulness",
    "grad_cam",
    "logit",
    "logit_diff",
    "unit",
]
