"""The oracle: one plain, full forward pass a run, nothing shared. Slow, obvious, and what every plan must equal."""

from collections.abc import Sequence
from typing import Any

import torch

from cutaway.engine.request import Reduce, Run
from cutaway.models.model import Model


def reference(model: Model, runs: Sequence[Run], *, reduce: Reduce | None = None) -> list[Any]:
    """The results of `plan(model, runs).execute(...)`, by one forward pass a run."""
    results = [model.run(run.inputs, run.edits, run.reads, run.logits) for run in runs]
    if reduce is None:
        return results
    return [reduce(result, torch.arange(len(run.inputs))) for result, run in zip(results, runs)]
