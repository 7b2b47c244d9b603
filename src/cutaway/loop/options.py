"""Options of a study: few, with a meaning and a unit each; saved in the report, so that it can be repeated."""

from dataclasses import dataclass

from cutaway.errors import OutOfRange


@dataclass(frozen=True)
class Options:
    """What a caller may choose."""

    seed: int = 0
    """Of donors, controls and neutral prompts."""
    n_candidates: int = 3
    """Components that get a claim of their own."""
    alpha: float = 0.05
    """Level of each test; intervals are at 1 - alpha."""
    minimum_gap: float | None = None
    """Smallest mean gap that counts as behavior, in the metric's unit; None: 0.5 nat, or a tenth of a share."""

    def __post_init__(self) -> None:
        if self.n_candidates < 1:
            raise OutOfRange(f"n_candidates={self.n_candidates}: at least 1", n_candidates=self.n_candidates)
