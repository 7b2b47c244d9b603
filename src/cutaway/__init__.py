"""Cutaway: find the parts of a neural network that cause a behavior, change them, and verify the claim.

    model = cutaway.load("induction-2l")
    task = cutaway.tasks.get("induction", model)
    result = cutaway.study(model, task, out="report")

The rooms: `models` (sites, edits, one forward pass), `engine` (many runs, planned), `tasks`, `zoo`, `lenses`,
`patching`, `attribution`, `steering`, `claims`, `report`. What needs more than torch is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from cutaway import errors
from cutaway.engine import Run, plan, reference
from cutaway.models import Activations, Edit, Model, Raw, Site, Tokens, load, sites, where, wrap

if TYPE_CHECKING:
    from cutaway import attribution, claims, engine, lenses, models, patching, report, stats, steering, tasks, viz, zoo
    from cutaway.claims import Claim, Ledger, Mediates, Necessary, Specific, Sufficient
    from cutaway.loop import StudyResult, repeat, study
    from cutaway.tasks import Pair, Task

_LATER = {
    **dict.fromkeys(
        ("attribution", "claims", "lenses", "patching", "report", "stats", "steering", "tasks", "viz", "zoo"), ""
    ),
    **dict.fromkeys(("Claim", "Ledger", "Mediates", "Necessary", "Specific", "Sufficient"), "claims"),
    **dict.fromkeys(("Pair", "Task"), "tasks"),
    **dict.fromkeys(("StudyResult", "repeat", "study"), "loop"),
}
"""Names that are imported when first used, and the room that has them ('' for a room itself)."""

__all__ = [
    "Activations",
    "Claim",
    "Edit",
    "Ledger",
    "Mediates",
    "Model",
    "Necessary",
    "Pair",
    "Raw",
    "Run",
    "Site",
    "Specific",
    "StudyResult",
    "Sufficient",
    "Task",
    "Tokens",
    "attribution",
    "claims",
    "engine",
    "errors",
    "lenses",
    "load",
    "models",
    "patching",
    "plan",
    "reference",
    "repeat",
    "report",
    "sites",
    "stats",
    "steering",
    "study",
    "tasks",
    "viz",
    "where",
    "wrap",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'cutaway' has no attribute {name!r}.{errors.did_you_mean(name, __all__)}")
    room = _LATER[name]
    found = importlib.import_module(f"cutaway.{room or name}")
    return getattr(found, name) if room else found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
