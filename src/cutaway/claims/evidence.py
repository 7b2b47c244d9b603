"""Evidence: a claim's runs on one split, as the plain record that the verdict is derived from."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from cutaway.claims.measure import Measured, measure, tidy, tolerance
from cutaway.claims.prediction import Cell, Prediction, Values
from cutaway.models import Model
from cutaway.tasks import Metric, Task, metric_named

if TYPE_CHECKING:
    from cutaway.claims.claim import Claim

Progress: TypeAlias = Callable[[int, int], None]
FORMAT = "cutaway.result/1"
STREAM = 1_000_003
"""Apart by this, seeds of different purposes do not meet."""


def gather(
    claim: "Claim",
    plan: Mapping[str, Any],
    model: Model,
    task: Task,
    *,
    max_tokens: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All that a claim's runs on a split say, example by example. `plan` gives the controls."""
    sets = [tuple(control["sites"]) for control in plan["controls"]["sets"]]
    measured = run_all(claim, sets, model, task, instruments=True, max_tokens=max_tokens, progress=progress)
    metric = metric_named(task.metric)
    predictions = []
    for number, prediction in enumerate(claim.predictions):
        found = measured[number]
        predictions.append(_record(claim, prediction, plan, sets, model, metric, found))
    of_task = next(
        (found for found, prediction in zip(measured, claim.predictions) if prediction.positive().data == "task"), None
    )
    return {
        "format": FORMAT,
        "claim": claim.to_json(),
        "alpha": claim.alpha,
        "search": plan["search"],
        "model": {"name": model.name, "digest": model.digest},
        "task": {
            "name": task.name,
            "metric": task.metric,
            "unit": metric.unit,
            "split": "confirm",
            "digest": task.digest,
        },
        "metrics": None if of_task is None else {side: values.tolist() for side, values in of_task.base.items()},
        "environment": {
            "torch": torch.__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        },
        "predictions": predictions,
    }


def run_all(
    claim: "Claim",
    sets: Sequence[tuple[str, ...]],
    model: Model,
    task: Task,
    *,
    instruments: bool,
    max_tokens: int,
    stream: int = 0,
    progress: Progress | None = None,
) -> list[Measured]:
    """What was measured for each prediction. Predictions on the same inputs share one plan.

    Args:
        sets: controls, each a set of sites.
        instruments: with placebo and positive control.
        stream: another number draws other neutral prompts, so that those of the confirm split stay unseen.
    """
    seed = claim.seed + stream * STREAM
    wanted_of = [prediction.inputs(model, task, seed) for prediction in claim.predictions]
    inputs = {one.digest: one for one in wanted_of}
    keys = [one.digest for one in wanted_of]
    cells: dict[str, list[Cell]] = {}
    placebos: dict[str, list[Cell]] = {}
    for prediction, key in zip(claim.predictions, keys):
        wanted = [prediction.cell(claim.subject)]
        wanted += [prediction.cell(one) for one in sets] if _has_controls(prediction, task) else []
        cells.setdefault(key, []).extend(wanted + ([prediction.positive()] if instruments else []))
        placebos.setdefault(key, []).extend([prediction.placebo(claim.subject)] if instruments else [])
    found = {
        key: measure(
            model, inputs[key], cells[key], placebos[key], seed=claim.seed, max_tokens=max_tokens, progress=progress
        )
        for key in inputs
    }
    return [found[key] for key in keys]


def values_of(prediction: Prediction, cell: Cell, measured: Measured) -> Values:
    """The prediction's value of each example, as recorded."""
    base = measured.base[cell.on]
    other = measured.base["corrupt" if cell.on == "clean" else "clean"]
    return _tidied(prediction.score(measured.edited[cell], base, other))


def gap_of(measured: Measured) -> Values:
    """Clean minus corrupt metric of each example."""
    return _tidied(measured.base["clean"] - measured.base["corrupt"])


def _record(
    claim: "Claim",
    prediction: Prediction,
    plan: Mapping[str, Any],
    sets: Sequence[tuple[str, ...]],
    model: Model,
    metric: Metric,
    measured: Measured,
) -> dict[str, Any]:
    estimand = prediction.estimand(metric)
    subject = prediction.cell(claim.subject)
    beside = sets if estimand.controls == "components" else ()
    controls = [(one, values_of(prediction, prediction.cell(one), measured)) for one in beside]
    return {
        "kind": prediction.kind,
        "spec": prediction.to_json(),
        "sentence": prediction.sentence(metric),
        "estimand": estimand.text,
        "unit": estimand.unit,
        "metric_unit": metric.unit if subject.data == "task" else "nat",
        "scale": estimand.scale,
        "side": estimand.side,
        "minimum": estimand.minimum,
        "ids": list(measured.ids),
        "clusters": list(measured.clusters),
        "values": values_of(prediction, subject, measured).tolist(),
        "gap": gap_of(measured).tolist() if estimand.scale == "ratio" else None,
        "controls_rule": plan["controls"]["rule"] if estimand.controls == "components" else "none",
        "controls": [{"sites": list(one), "values": values.tolist()} for one, values in controls],
        "placebo": {
            "sites": list(subject.sites),
            "differences": measured.placebo[prediction.placebo(claim.subject)].tolist(),
        },
        "positive": _positive(prediction, model, measured),
    }


def _positive(prediction: Prediction, model: Model, measured: Measured) -> dict[str, Any]:
    """The planted effect: metric of the run whose whole input was exchanged, beside the other run's."""
    cell = prediction.positive()
    expected = measured.base["corrupt" if cell.on == "clean" else "clean"]
    return {
        "sites": list(cell.sites),
        "metric": measured.edited[cell].tolist(),
        "expected": expected.tolist(),
        "tolerance": tolerance(model, expected),
        "values": values_of(prediction, cell, measured).tolist(),
    }


def _has_controls(prediction: Prediction, task: Task) -> bool:
    return prediction.estimand(metric_named(task.metric)).controls == "components"


def _tidied(values: Values) -> Values:
    return np.array([tidy(value) for value in values.tolist()])
