"""Comparing what a report shows with what its raw data give."""

import math
from typing import Any

from cutaway.errors import BrokenEvidence

TOLERANCE = 1e-9
"""Relative difference that a recomputed number may have: another processor rounds the last digits differently."""


def require(holds: bool, reason: str) -> None:
    """Raise BrokenEvidence with the reason."""
    if not holds:
        raise BrokenEvidence(reason)


def require_equal(again: Any, shown: Any, place: str, tolerance: float = TOLERANCE) -> None:
    """Compare recomputed JSON with what is shown; numbers to `tolerance`. Raises BrokenEvidence naming the place."""
    if isinstance(again, dict) and isinstance(shown, dict) and set(again) == set(shown):
        for key in again:
            require_equal(again[key], shown[key], f"{place}.{key}", tolerance)
        return
    if isinstance(again, list) and isinstance(shown, list) and len(again) == len(shown):
        for index, (one, other) in enumerate(zip(again, shown)):
            require_equal(one, other, f"{place}.{index}", tolerance)
        return
    if isinstance(again, float) and isinstance(shown, float):
        same = math.isclose(again, shown, rel_tol=tolerance, abs_tol=tolerance)
    else:
        same = again == shown
    require(same, f"{place} is {shown!r} in the report, its raw values give {again!r}")
