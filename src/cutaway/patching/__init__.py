"""Patching: what happens to a behavior when a part's value comes from elsewhere. Exact (sweep, ablate) and estimated.

effects = patching.sweep(model, task, sites.resid_post[:], positions=("subject", "end"))
effects.top(3), effects.table(), effects.save("sweep.safetensors")
"""

from cutaway.patching.ablate import ablate
from cutaway.patching.attribution import attribution
from cutaway.patching.effects import Effects
from cutaway.patching.sweep import sweep

__all__ = ["Effects", "ablate", "attribution", "sweep"]
