"""How near estimates come to real patches: a random sample of the cells, drawn from every kind alike."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cutaway.errors import UsageError
from cutaway.patching.effects import Effects

SMALL = 0.01
"""Effects below this share of the largest in the sample have no sign to speak of."""


@dataclass(frozen=True)
class Agreement:
    """Estimates and exact effects of a sample of cells, in the metric's unit, mean over clusters."""

    labels: tuple[str, ...]
    estimated: tuple[float, ...]
    exact: tuple[float, ...]
    of: int
    """Cells that the sample was drawn from."""
    spearman: float | None
    """Rank correlation; None when one of the two is constant."""
    pearson: float | None
    flips: int
    """Cells whose estimate has the wrong sign, among those whose exact effect is at least SMALL of the largest."""
    largest_miss: float
    """Largest |estimate - exact|."""
    missed: str
    """The cell that has it."""

    @property
    def n(self) -> int:
        """Cells in the sample."""
        return len(self.labels)

    def sentence(self, unit: str) -> str:
        """All of it in one line."""
        ranks, line = ("none" if value is None else f"{value:.3f}" for value in (self.spearman, self.pearson))
        return (
            f"{self.n} of {self.of} cells patched for real: Spearman {ranks}, Pearson {line}, {self.flips} signs "
            f"flipped, largest miss {self.largest_miss:.3g} {unit} ({self.missed})"
        )


def sample(labels: Sequence[str], n: int, seed: int) -> list[int]:
    """Indices of `n` cells (all when there are fewer), as many of each kind as can be, in cell order."""
    chance = random.Random(f"check {seed}")
    strata: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        strata.setdefault(label.split(".")[0], []).append(i)
    for members in strata.values():
        chance.shuffle(members)
    drawn: list[int] = []
    while len(drawn) < min(n, len(labels)):
        for members in strata.values():
            if members and len(drawn) < n:
                drawn.append(members.pop())
    return sorted(drawn)


def compare(estimate: Effects, exact: Effects) -> Agreement:
    """How near the estimates come to exact effects of some of their cells."""
    found, wanted = estimate.select(list(exact.labels)).mean(), exact.mean()
    if not len(wanted):
        raise UsageError("no cell was patched for real, so there is nothing to compare")
    miss = (found - wanted).abs()
    clear = wanted.abs() >= SMALL * wanted.abs().max()
    return Agreement(
        labels=exact.labels,
        estimated=tuple(found.tolist()),
        exact=tuple(wanted.tolist()),
        of=len(estimate),
        spearman=correlation(_ranks(found), _ranks(wanted)),
        pearson=correlation(found, wanted),
        flips=int((clear & (wanted != 0) & (found * wanted < 0)).sum()),
        largest_miss=float(miss.max()),
        missed=exact.labels[int(miss.argmax())],
    )


def correlation(x: Tensor, y: Tensor) -> float | None:
    """Pearson's, in double precision; None when one of the two is constant."""
    x, y = (value.double() - value.double().mean() for value in (x, y))
    size = float(x.norm() * y.norm())
    return float(x @ y) / size if size > 0 else None


def _ranks(values: Tensor) -> Tensor:
    """Ranks, ties with their mean rank."""
    less = (values[:, None] > values[None, :]).sum(1)
    same = (values[:, None] == values[None, :]).sum(1)
    return less.double() + (same.double() - 1) / 2
