"""Optimal constants: for each cell the constant values that harm the model least when they replace its own.

1. Start from the mean over the rows. A share of the clusters is held out.
2. Loss of a row: KL divergence of the ablated run's next-token distribution from the model's own, at the end of the
   prompt. Adam steps down the mean loss of the other rows; the cells are rows of one pass, and pairs do not mix.
3. Stop when the held-out loss has not fallen for some steps. Of the constants that were no worse than the mean on their
   own rows, the one with the lowest held-out loss is kept; the mean itself is one of them.

Source: Li and Janson 2024 (arXiv 2409.09951).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.models import Edit, Model, Site, Tokens
from cutaway.models.sites import PATTERN_KINDS
from cutaway.patching.measure import Progress, required, side
from cutaway.tasks import Batch

STEPS, PATIENCE, RATE, HELD_OUT = 150, 20, 0.1, 0.25
"""Most steps; steps without progress before stopping; step size in standard deviations of the site; share of the
clusters that is held out."""


@dataclass(frozen=True)
class Constants:
    """The learned values of one cell, with what they were chosen by."""

    values: tuple[Tensor, ...]
    """One slot's value a site of the cell."""
    loss: float
    """Mean KL (nat) over the held-out rows with these constants."""
    loss_mean: float
    """The same with the mean in their place."""
    own_loss: float
    """Mean KL over the rows that they were learned on."""
    own_loss_mean: float
    """The same with the mean."""

    def edits(self, members: Sequence[Site]) -> tuple[Edit, ...]:
        """What sets the sites to the constants."""
        return tuple(site.fill(value) for site, value in zip(members, self.values))


def learn(
    model: Model,
    batch: Batch,
    cells: Sequence[Sequence[Site]],
    means: Sequence[Sequence[Tensor]],
    spreads: Sequence[Sequence[float]],
    *,
    on: str,
    seed: int,
    progress: Progress | None = None,
    max_tokens: int,
) -> list[Constants]:
    """Constants of every cell. Cost: at most STEPS forward and backward passes of the rows, a cell.

    Raises UsageError for attention weights, for a site twice in a cell, and for fewer than two rows.
    """
    for cell in cells:
        _require_apart(cell)
    rows = side(batch, on).take(range(batch.n))
    held = held_out(batch.clusters, seed)
    target = required(model.run(rows, logits="end").logits).float().log_softmax(-1).reshape(batch.n, -1)
    size = max(1, max_tokens // (len(rows) * rows.width))
    found: list[Constants] = []
    for first in range(0, len(cells), size):
        span = slice(first, first + size)
        found += _descend(model, rows, target, held, cells[span], means[span], spreads[span])
        if progress is not None:
            progress(len(found), len(cells))
    return found


def held_out(clusters: Sequence[str], seed: int) -> list[bool]:
    """For each row whether it decides when to stop: whole clusters, at least one; single rows when all are of one.

    >>> held_out(["a", "a", "b", "b"], 0).count(True)
    2
    """
    units = list(clusters) if len(set(clusters)) > 1 else list(map(str, range(len(clusters))))
    names = sorted(set(units))
    if len(names) < 2:
        raise UsageError(
            f"an optimal constant needs rows to learn from and others to stop by, and there is {len(names)}; give at "
            "least two pairs"
        )
    random.Random(f"held out {seed}").shuffle(names)
    chosen = set(names[: max(1, round(HELD_OUT * len(names)))])
    return [unit in chosen for unit in units]


def _require_apart(cell: Sequence[Site]) -> None:
    for index, site in enumerate(cell):
        if site.kind in PATTERN_KINDS:
            raise UsageError(
                f"site {str(site)!r}: one constant for all queries would let early tokens attend to later ones; use "
                "value='mean_by_position' or 'resample'",
                site=str(site),
            )
        for later in cell[index + 1 :]:
            if later.base == site.base and (site.unit is None or later.unit is None or _shared(site, later)):
                raise UsageError(
                    f"sites {str(site)!r} and {str(later)!r} overlap, so their constants cannot both be learned; name "
                    "each slot once in a cell",
                    site=str(site),
                )


def _shared(site: Site, other: Site) -> bool:
    units = [set([s.unit] if isinstance(s.unit, int) else s.unit or ()) for s in (site, other)]
    return bool(units[0] & units[1])


def _descend(
    model: Model,
    rows: Tokens,
    target: Float[Tensor, "row d_vocab"],
    held: Sequence[bool],
    cells: Sequence[Sequence[Site]],
    means: Sequence[Sequence[Tensor]],
    spreads: Sequence[Sequence[float]],
) -> list[Constants]:
    """Some cells at once: cell j owns the rows j * n to (j + 1) * n of each pass."""
    n, wide = len(rows), rows.repeat(len(cells))
    own_rows, held_rows = (torch.tensor([h is flag for h in held], device=target.device) for flag in (False, True))
    values = [[mean.detach().float().clone() for mean in cell] for cell in means]
    groups = [
        {"params": [value], "lr": max(RATE * spread, 1e-8)}
        for cell, widths in zip(values, spreads)
        for value, spread in zip(cell, widths)
    ]
    optimiser = torch.optim.Adam(groups)
    placed = [[site.rows(range(j * n, (j + 1) * n)) for site in cell] for j, cell in enumerate(cells)]
    bases = list(dict.fromkeys(site.base for cell in cells for site in cell))
    columns = torch.tensor(wide.columns("end"), device=target.device)[:, 0]
    losses = torch.zeros(0)

    def metric(logits: Tensor) -> Tensor:
        nonlocal losses
        found = logits[torch.arange(len(columns), device=logits.device), columns].float().log_softmax(-1)
        goal = target.repeat(len(cells), 1)
        kl = (goal.exp() * (goal - found)).where(goal.isfinite(), 0.0).sum(-1).view(len(cells), n)
        losses = kl.detach()
        return kl[:, own_rows].mean(1).sum()

    first: list[tuple[float, float]] = []
    best: list[tuple[float, float, tuple[Tensor, ...]]] = []
    since = 0
    for step in range(STEPS + 1):
        edits = [s.fill(v.clone()) for sites, vs in zip(placed, values) for s, v in zip(sites, vs)]
        slopes = model.grad(wide, metric, bases, edits).gradients
        own, stop = losses[:, own_rows].mean(1).tolist(), losses[:, held_rows].mean(1).tolist()
        now = [(stop[j], own[j], tuple(v.clone() for v in values[j])) for j in range(len(cells))]
        if step == 0:
            first, best = [(one[0], one[1]) for one in now], now
        better = [a[0] < b[0] and a[1] <= f[1] for a, b, f in zip(now, best, first)]
        best = [a if won else b for a, b, won in zip(now, best, better)]
        since = 0 if any(better) else since + 1
        if since >= PATIENCE:
            break
        for sites, vs in zip(placed, values):
            for site, value in zip(sites, vs):
                slope = slopes[site].float()
                value.grad = slope.sum(tuple(range(slope.ndim - value.ndim))).to(value)
        optimiser.step()
    return [
        Constants(values, loss, start[0], own, start[1]) for (loss, own, values), start in zip(best, first, strict=True)
    ]
