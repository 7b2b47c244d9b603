"""The oracle: one plain, full forward pass a run, nothing shared. Slow, obvious, and what every plan must equal."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cutaway.engine.request import Reduce, Run
from cutaway.models.model import Model, RunResult


def reference(model: Model, runs: Sequence[Run], *, reduce: Reduce | None = None) -> list[Any]:
    """The results of `plan(model, runs).execute(...)`, by one forward pass a run."""
    results = [_one(model, run) for run in runs]
    if reduce is None:
        return results
    return [reduce(result, torch.arange(len(run.inputs))) for result, run in zip(results, runs)]


def _one(model: Model, run: Run) -> RunResult:
    found = model.run(run.inputs, run.edits, run.reads, run.logits)
    if found.logits is None or run.vocab is None:
        return found
    rows = [logits[:, list(ids)] for logits, ids in zip(found.logits, run.vocab)]
    return replace(found, logits=torch.stack(rows))
