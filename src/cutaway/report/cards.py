"""Parts of a report that follow from raw values, derived here when it is written and again when it is verified."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from cutaway.claims.verdict import verdict
from cutaway.report.schema import BehaviorCheck, Check, ClaimCard, Estimate, PredictionCard, WorstExample
from cutaway.stats import mean_interval

N_WORST = 3
"""Examples shown against each prediction."""
_PREDICTION = (
    "name", "sentence", "unit", "direction", "minimum", "cluster_means", "controls", "control_p", "n_examples",
    "n_clusters", "verdict", "reason", "would_change",
)  # fmt: skip


def claim_card(
    name: str, result: Mapping[str, Any], *, artifact: str, texts: Mapping[str, str] | None = None
) -> ClaimCard:
    """The card of a claim. Everything but name, artifact and prompts is derived from the result's raw values.

    Raises BrokenEvidence when the result lacks a part.

    Args:
        name: short name, unique in the report.
        result: the claim's record, `ClaimResult.record`. Its `outcome` is not read.
        artifact: name under which that record is given to `write`, as JSON.
        texts: prompts by pair id, to show beside the examples that speak against the claim.
    """
    outcome = verdict(result)
    return ClaimCard(
        id=name,
        sentence=result["claim"]["sentence"],
        subject=tuple(result["claim"]["subject"]),
        verdict=outcome["verdict"],
        reason=outcome["reason"],
        would_change=outcome["would_change"],
        predictions=tuple(_prediction_card(part) for part in outcome["predictions"]),
        checks=tuple(Check(**check) for check in outcome["checks"]),
        worst=tuple(_worst(outcome["predictions"], texts or {})),
        alpha=float(result["alpha"]),
        search=int(result["search"]),
        plan=result["plan"],
        result=artifact,
    )


def behavior_check(
    *,
    split: str,
    clean: Sequence[float],
    corrupt: Sequence[float],
    clusters: Sequence[str],
    accuracy: float,
    threshold: float,
    alpha: float = 0.05,
) -> BehaviorCheck:
    """Whether the behavior is there: the whole interval of the mean gap, clean minus corrupt, is at least `threshold`.

    Values are turned so that larger means more of the behavior, one an example, in the metric's unit. The interval is
    the cluster-mean t interval at 1 - alpha. Raises TooFewClusters.
    """
    gaps = np.asarray(clean, dtype=np.float64) - np.asarray(corrupt, dtype=np.float64)
    found = mean_interval(gaps, list(clusters), alpha=alpha)
    gap = Estimate(value=found.estimate, low=_finite(found.low), high=_finite(found.high), level=1 - alpha)
    return BehaviorCheck(
        split=split,
        clean=tuple(float(value) for value in clean),
        corrupt=tuple(float(value) for value in corrupt),
        clusters=tuple(clusters),
        accuracy=accuracy,
        gap=gap,
        threshold=threshold,
        passed=gap.low is not None and gap.low >= threshold,
    )


def _finite(bound: float) -> float | None:
    return bound if isfinite(bound) else None


def _prediction_card(part: Mapping[str, Any]) -> PredictionCard:
    return PredictionCard(estimate=Estimate(**part["estimate"]), **{key: part[key] for key in _PREDICTION})


def _worst(predictions: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> list[WorstExample]:
    return [
        WorstExample(
            id=one["id"],
            cluster=one["cluster"],
            text=texts.get(one["id"], ""),
            prediction=part["name"],
            value=one["value"],
        )
        for part in predictions
        for one in part["worst"][:N_WORST]
    ]
