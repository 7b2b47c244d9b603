"""The power note: what the confirm split can be expected to say, from how the effect scatters on earlier splits."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from cutaway.claims.evidence import gap_of, values_of
from cutaway.claims.measure import Measured
from cutaway.claims.prediction import Estimand, Prediction
from cutaway.stats import by_cluster, clusters_for_power, clusters_needed, outlook
from cutaway.tasks import Metric


def forecast(
    prediction: Prediction,
    subject: tuple[str, ...],
    metric: Metric,
    measured: Measured,
    *,
    split: str,
    n_clusters: int,
    alpha: float,
) -> dict[str, Any]:
    """Chances of each verdict by the interval rule, and the clusters that give 80 %.

    Args:
        split: the splits that were measured, in words.
        n_clusters: clusters of the confirm split; neutral prompts count themselves.
    """
    estimand = prediction.estimand(metric)
    if prediction.cell(subject).data != "task":
        n_clusters, split = len(set(measured.clusters)), "other neutral prompts"
    estimate, sd = _spread(prediction, subject, estimand, measured)
    note = {
        "kind": prediction.kind,
        "sentence": prediction.sentence(metric),
        "unit": estimand.unit,
        "minimum": estimand.minimum,
        "split": split,
        "estimate": estimate,
        "sd": sd,
        "n_clusters": n_clusters,
    }
    if estimate is None or sd is None:
        text = f"How the effect scatters is unknown: {split} has one cluster, or no behavior."
        return note | {"outlook": [], "clusters_for_80": None, "text": text}
    sign = 1.0 if estimand.side == "at_least" else -1.0
    chances = {}
    for effect in [*(round(share * estimand.minimum, 6) for share in (0.0, 0.5, 1.0, 1.5, 2.0)), estimate]:
        found = outlook(sign * effect, minimum=sign * estimand.minimum, sd=sd, n_clusters=n_clusters, alpha=alpha)
        chances[effect] = asdict(found) | {"effect": effect}
    need = clusters_for_power(sign * estimate, minimum=sign * estimand.minimum, sd=sd, alpha=alpha)
    if estimand.scale == "share" and sd == 0:
        need = _clusters_for_certain_share(estimate, estimand.minimum, alpha)
    return note | {
        "outlook": [chances[effect] for effect in sorted(chances)],
        "clusters_for_80": need,
        "text": _text(chances[estimate], note, need),
    }


def _spread(
    prediction: Prediction, subject: tuple[str, ...], estimand: Estimand, measured: Measured
) -> tuple[float | None, float | None]:
    """Estimate and sd over clusters, in the prediction's unit; None below two clusters or without a gap."""
    means = by_cluster(values_of(prediction, prediction.cell(subject), measured), measured.clusters).means
    gap = np.ones_like(means)
    if estimand.scale == "ratio":
        gap = by_cluster(gap_of(measured), measured.clusters).means
    if len(means) < 2 or gap.mean() == 0:
        return None, None
    estimate = float(means.mean() / gap.mean())
    sd = float((means - estimate * gap).std(ddof=1)) / abs(float(gap.mean()))
    return float(f"{estimate:.6g}"), float(f"{sd:.6g}")


def _clusters_for_certain_share(estimate: float, minimum: float, alpha: float) -> int | None:
    """Clusters that decide when all of them show the same share, 0 or 1 (see `share_interval`)."""
    if minimum >= 1:
        return None
    need = math.ceil(math.log(alpha / 2) / math.log(minimum if estimate > minimum else 1 - minimum))
    return max(need, clusters_needed(alpha))


def _text(chance: Mapping[str, float], note: Mapping[str, Any], need: int | None) -> str:
    text = (
        f"If the effect is as on {note['split']} ({chance['effect']:.3g} {note['unit']}, sd over clusters "
        f"{note['sd']:.3g}), {note['n_clusters']} clusters give supported {chance['supported']:.0%}, refuted "
        f"{chance['refuted']:.0%}, inconclusive {chance['inconclusive']:.0%}"
    )
    return text + (
        f"; 80 % for the right one needs {need} clusters." if need else "; no number within reach gives 80 %."
    )
