"""Measuring a claim: all runs of its subject, its controls and its instruments, in one plan for each set of inputs.

Placebos are the exception. An identity edit must change nothing, bit for bit, and only two passes of the same shape
can be compared so; they run as plain forward passes, beside the plain unedited one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway import engine
from cutaway.claims.prediction import Cell, Side, Values
from cutaway.engine import Run
from cutaway.errors import ClaimError
from cutaway.models import Edit, Model, RunResult, Site
from cutaway.patching.ablate import removals
from cutaway.patching.measure import encode, only, other, required, side
from cutaway.tasks import Batch, Task

Progress: TypeAlias = Callable[[int, int], None]
DIGITS = 7
"""Significant digits that a recorded value keeps; float32 carries no more."""


@dataclass(frozen=True)
class Measured:
    """Metrics of one set of inputs, larger = more of the behavior; one value a pair."""

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    base: Mapping[str, Values]
    """Metric of the unedited `clean` and `corrupt` runs."""
    edited: Mapping[Cell, Values]
    """Metric of each edited run."""
    placebo: Mapping[Cell, Values]
    """Change of the metric by each identity edit, not rounded."""


def measure(
    model: Model,
    task: Task,
    cells: Sequence[Cell],
    placebos: Sequence[Cell] = (),
    *,
    seed: int,
    max_tokens: int,
    progress: Progress | None = None,
) -> Measured:
    """The metric of both unedited runs and of every cell, example by example.

    Cost: one planned call, the captures that its edits need, and two plain passes a placebo.
    Raises ClaimError for a value that is not finite.
    """
    batch = encode(model, task)
    wanted = list(dict.fromkeys(cells))
    runs = [Run(batch.clean, logits=batch.logits), Run(batch.corrupt, logits=batch.logits)]
    runs += _runs(model, batch, wanted, seed)
    scores = engine.plan(model, runs, max_tokens=max_tokens).execute(progress=progress, reduce=_scorer(batch))
    clean, corrupt, *values = (_recorded(batch, rows) for rows in scores)
    _require_finite(task, [clean, corrupt, *values])
    return Measured(
        batch.ids,
        batch.clusters,
        {"clean": clean, "corrupt": corrupt},
        dict(zip(wanted, values)),
        {cell: _change(model, batch, cell, seed) for cell in dict.fromkeys(placebos)},
    )


def tolerance(model: Model, expected: Values) -> float:
    """How far the metric of an input exchanged whole may be from the other run's: the number format's rounding."""
    relative = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
    return relative * max(1.0, float(np.abs(expected).mean()))


def _runs(model: Model, batch: Batch, cells: Sequence[Cell], seed: int) -> list[Run]:
    """One run a cell; cells of the same side and change share their captures."""
    edits: dict[tuple[Side, str], dict[str, Edit]] = {}
    texts: dict[tuple[Side, str], dict[str, None]] = {}
    for cell in cells:
        texts.setdefault((cell.on, cell.change), {}).update(dict.fromkeys(cell.sites))
    for (on, change), wanted in texts.items():
        sites = [Site.parse(text) for text in wanted]
        edits[on, change] = dict(zip(wanted, _edits(model, batch, sites, on, change, seed)))
    return [
        Run(
            side(batch, cell.on),
            edits=tuple(edits[cell.on, cell.change][text] for text in cell.sites),
            logits=batch.logits,
        )
        for cell in cells
    ]


def _edits(model: Model, batch: Batch, sites: Sequence[Site], on: Side, change: str, seed: int) -> list[Edit]:
    """The edit of each site."""
    if change in ("other", "same"):
        donor = side(batch, other(on) if change == "other" else on)
        acts = model.capture(donor, list(dict.fromkeys(site.base for site in sites)))
        return [site.patch(only(acts, site)) for site in sites]
    return removals(model, batch, sites, change, side(batch, on), None, seed)


def _change(model: Model, batch: Batch, cell: Cell, seed: int) -> Values:
    """What an identity edit does to the metric, from two plain passes of the same shape."""
    (edited,) = _runs(model, batch, [cell], seed)
    results = engine.reference(model, [Run(edited.inputs, logits=batch.logits), edited])
    plain, same = (batch.values(required(result.logits)).detach().cpu().double().numpy() for result in results)
    return same - plain


def _scorer(batch: Batch) -> Callable[[RunResult, Tensor], Tensor]:
    return lambda result, rows: batch.row_scores(required(result.logits), rows)


def _recorded(batch: Batch, scores: Float[Tensor, "row score"]) -> Values:
    """The metric of each pair, larger = more of the behavior, with the digits that the record keeps."""
    values = batch.combine(scores).detach().cpu().double().numpy() * batch.metric.sign
    return np.array([tidy(value) for value in values.tolist()])


def tidy(value: float) -> float:
    """A number with the digits that the record keeps; what is recorded and what is computed with are the same."""
    return float(f"{value:.{DIGITS}g}") + 0.0


def _require_finite(task: Task, values: Sequence[Values]) -> None:
    for found in values:
        if not np.isfinite(found).all():
            pair = task.pairs[int(np.argmin(np.isfinite(found)))]
            raise ClaimError(
                f"pair {pair.id!r} of task {task.name!r}: {task.metric} is not finite in a run, edited or not; "
                "check the model's weights and number format",
                pair=pair.id,
            )
