"""Patching: what happens to a behavior when a part's value comes from elsewhere. Exact (sweep, ablate) and estimated.

effects = patching.sweep(model, task, sites.resid_post[:], positions=("subject", "end"))
effects.top(3), effects.table(), effects.save("sweep.safetensors")
"""

from cutaway.patching.ablate import ablate
from cutaway.patching.attribution import attribution
from cutaway.patching.edges import Direct, Edges, direct, edges
from cutaway.patching.effects import Effects
from cutaway.patching.gradient_scores import GradientScores, gradient_scores
from cutaway.patching.paths import paths
from cutaway.patching.sweep import sweep
from cutaway.patching.trace import Trace, trace

__all__ = [
    "Direct",
    "Edges",
    "Effects",
    "GradientScores",
    "Trace",
    "ablate",
    "attribution",
    "direct",
    "edges",
    "gradient_scores",
    "paths",
    "sweep",
    "trace",
]
