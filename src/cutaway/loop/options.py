"""Options of a study: few, with a meaning and a unit each; saved in the report, so that it can be repeated."""

from dataclasses import dataclass
from math import isfinite

from cutaway.errors import OutOfRange


@dataclass(frozen=True)
class Options:
    """What a caller may choose."""

    seed: int = 0
    """Of donors, controls and neutral prompts; 0 or more."""
    n_candidates: int = 3
    """Components that get a claim of their own."""
    alpha: float = 0.05
    """Level of each test; intervals are at 1 - alpha."""
    minimum_gap: float | None = None
    """Smallest mean gap that counts as behavior, in the metric's unit; None: 0.5 nat, or a tenth of a share."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise OutOfRange(f"seed={self.seed}: 0 or more", seed=self.seed)
        if self.n_candidates < 1:
            raise OutOfRange(f"n_candidates={self.n_candidates}: at least 1", n_candidates=self.n_candidates)
        if self.minimum_gap is not None and not (isfinite(self.minimum_gap) and self.minimum_gap > 0):
            raise OutOfRange(f"minimum_gap={self.minimum_gap}: a number above 0", minimum_gap=self.minimum_gap)
