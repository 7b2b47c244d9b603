"""The verdict: a pure function from the result's JSON, with its per-example values, to what they prove.

Nothing but the record goes in, so that anybody can derive the verdict again without the model. The rule, with all
effects turned so that larger is more of what was claimed, and d the minimum effect:

    invalid        an instrument failed: a placebo moved, the planted effect was not reproduced or not found, the
                   behavior did not show, or what was frozen is not what ran
    supported      lower end of the interval >= d, and the controls are beaten
    refuted        upper end of the interval < d
    inconclusive   anything else

Controls are beaten in one of two ways (docs/design/claims.md):
    by rank        when k controls can reach alpha, 1 / (k + 1) <= alpha: (1 + #{control >= subject}) / (k + 1) is at
                   most alpha, and subject - mean of controls lies above 0
    one by one     when every matched component there is was run and they are too few for that, but at least
                   MIN_ENUMERATED: subject - control lies above 0 for each of them
"Lies above 0" asks for both a paired interval over clusters and a cluster sign flip. A claim is supported when all its
predictions are (an intersection-union test: each at alpha), refuted when one is, invalid when one is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cutaway.errors import BrokenEvidence
from cutaway.stats import (
    Interval,
    by_cluster,
    clusters_to_decide,
    control_p,
    holm,
    mean_interval,
    ratio_interval,
    share_interval,
    sign_flip,
    skewed_interval,
)

Values = Float[np.ndarray, " example"]
Record = Mapping[str, Any]
MIN_ENUMERATED = 3
"""Fewest matched components that one-by-one comparison needs: fewer say nothing about what is usual."""
N_WORST = 5
"""Examples that are named as speaking most against a prediction."""


def verdict(result: Record) -> dict[str, Any]:
    """What a result proves: verdict, reason, what would change it, checks, and the same for each prediction.

    `result` is the JSON of a `ClaimResult` (docs/design/claims.md has its shape); of it `alpha`, `changed`,
    `seen_before` and `predictions` are read. Deterministic. Raises BrokenEvidence for a record that lacks a part.
    """
    try:
        alpha = float(result["alpha"])
        found = [_prediction(record, alpha) for record in result["predictions"]]
        for part, adjusted in zip(found, holm([part["p"] for part in found])):
            part["p_holm"] = adjusted
        name, reason = _together(found, list(result["changed"]), list(result["seen_before"]))
    except (KeyError, TypeError, IndexError) as error:
        raise BrokenEvidence(
            f"result: a part is missing or of the wrong kind ({error!r}); run the claim again"
        ) from None
    checks = [check for part in found for check in part["checks"]]
    deciding = [part for part in found if part["verdict"] == name] or found
    change = " ".join(f"{part['name']}: {part['would_change']}" for part in deciding)
    if name == "inconclusive" and all(part["verdict"] == "supported" for part in found):
        change = "The same claim on data that no plan has opened yet, registered beforehand."
    return {"verdict": name, "reason": reason, "would_change": change, "checks": checks, "predictions": found}


def _together(found: Sequence[Record], changed: list[str], seen: list[str]) -> tuple[str, str]:
    """Verdict and reason of the whole claim."""
    if changed:
        return "invalid", f"What was frozen is not what ran: {', '.join(changed)} differ."
    for name in ("invalid", "refuted"):
        first = next((part for part in found if part["verdict"] == name), None)
        if first is not None:
            return name, f"{first['name']}: {first['reason']}"
    undecided = [part for part in found if part["verdict"] == "inconclusive"]
    if undecided:
        return "inconclusive", f"{undecided[0]['name']}: {undecided[0]['reason']}"
    if seen:
        plans = ", ".join(plan[:12] for plan in seen)
        return "inconclusive", (
            f"Every prediction holds, but the claim was frozen after plan {plans} had opened some of the same "
            "prompts for some of the same components: that makes it exploratory, and an exploratory claim is never "
            "supported."
        )
    return "supported", "Every prediction holds: " + " ".join(part["reason"] for part in found)


def _prediction(record: Record, alpha: float) -> dict[str, Any]:
    """Everything that is derived for one prediction."""
    sign = _sign(record)
    values, threshold = np.asarray(record["values"], dtype=np.float64), sign * float(record["minimum"])
    interval = _interval(record, sign * values, alpha)
    controls = _controls(record, sign, alpha)
    checks = _checks(record, alpha)
    name, reason = _decide(record, interval, controls, checks)
    return {
        "name": record["kind"],
        "sentence": record["sentence"],
        "unit": record["unit"],
        "direction": record["side"],
        "minimum": float(record["minimum"]),
        "estimate": _natural(interval, sign),
        "sd": interval.sd,
        "standardised": sign * interval.estimate / interval.sd if interval.sd > 0 else None,
        "p": _p_minimum(record, sign * values, threshold, alpha),
        "cluster_means": (by_cluster(values, record["clusters"]).means / _mean_gap(record)).tolist(),
        "controls": [sign * effect for effect in controls["effects"]],
        "control_p": controls["p"],
        "control_test": {key: controls[key] for key in ("rule", "beaten", "text", "difference")},
        "n_examples": interval.n,
        "n_clusters": interval.n_clusters,
        "checks": checks,
        "verdict": name,
        "reason": reason,
        "would_change": _would_change(record, name, interval, controls, alpha),
        "worst": _worst(record, sign * values, threshold, sign),
    }


# -- estimates


def _sign(record: Record) -> float:
    """What turns effects so that larger is more of what was claimed."""
    return 1.0 if record["side"] == "at_least" else -1.0


def _interval(record: Record, values: Values, alpha: float) -> Interval:
    """The prediction's interval; `values` are turned so that larger is more."""
    match record["scale"]:
        case "ratio":
            return ratio_interval(values, np.asarray(record["gap"], dtype=np.float64), record["clusters"], alpha=alpha)
        case "share":
            return share_interval(values, record["clusters"], alpha=alpha)
        case "mean":
            return mean_interval(values, record["clusters"], alpha=alpha)
        case "skewed":
            return skewed_interval(values, record["clusters"], alpha=alpha)
    raise BrokenEvidence(f"result: scale {record['scale']!r} is none of ratio, share, mean, skewed")


def _contrast(record: Record, difference: Values, alpha: float) -> tuple[Interval, float]:
    """Interval and two-sided sign-flip p of a paired difference; a difference of shares is a mean, not a share."""
    scale = "mean" if record["scale"] == "share" else record["scale"]
    return _interval({**record, "scale": scale}, difference, alpha), sign_flip(
        difference, record["clusters"], alpha=alpha
    )


def _p_minimum(record: Record, values: Values, threshold: float, alpha: float) -> float:
    """One-sided sign-flip p of "the effect is at most the minimum"."""
    shift = threshold * (np.asarray(record["gap"], dtype=np.float64) if record["scale"] == "ratio" else 1.0)
    return sign_flip(values - shift, record["clusters"], side="greater", alpha=alpha)


def _mean_gap(record: Record) -> float:
    """What a value is divided by to be in the prediction's unit."""
    if record["scale"] != "ratio":
        return 1.0
    gap = float(by_cluster(np.asarray(record["gap"], dtype=np.float64), record["clusters"]).means.mean())
    return gap if gap != 0 else math.inf


def _natural(interval: Interval, sign: float) -> dict[str, Any]:
    """The interval in the sign of the measured effect; an end that the data do not bound is None."""
    low, high = (interval.low, interval.high) if sign > 0 else (-interval.high, -interval.low)
    ends = {name: end + 0.0 if math.isfinite(end) else None for name, end in (("low", low), ("high", high))}
    return {"value": sign * interval.estimate + 0.0, **ends, "level": 1 - interval.alpha}


# -- controls


def _controls(record: Record, sign: float, alpha: float) -> dict[str, Any]:
    """Whether matched components are beaten, by which rule, and by how much."""
    if record["controls_rule"] == "none":
        most = abs(_interval(record, np.asarray(record["positive"]["values"], dtype=np.float64), alpha).estimate)
        text = f"exchanging the whole prompt gives {most:.3g}"
        return {"rule": "none", "effects": [], "p": None, "beaten": True, "text": text, "difference": None}
    values = sign * np.asarray(record["values"], dtype=np.float64)
    others = [sign * np.asarray(control["values"], dtype=np.float64) for control in record["controls"]]
    effects = [_interval(record, other, alpha).estimate for other in others]
    p = control_p(_interval(record, values, alpha).estimate, effects)
    if 1 / (len(others) + 1) <= alpha:
        return _by_rank(record, values, others, effects, p, alpha) | {"effects": effects, "p": p}
    if record["controls_rule"] == "enumerated":
        return _one_by_one(record, values, others, effects, alpha) | {"effects": effects, "p": p}
    text = f"{len(others)} drawn controls cannot reach p = {alpha:g}; draw at least {math.ceil(1 / alpha) - 1}"
    return {"rule": "rank", "effects": effects, "p": p, "beaten": False, "text": text, "difference": None}


def _by_rank(
    record: Record, values: Values, others: list[Values], effects: list[float], p: float, alpha: float
) -> dict[str, Any]:
    interval, flip = _contrast(record, values - np.mean(others, axis=0), alpha)
    clear = interval.low > 0 and flip <= alpha
    reached = sum(effect >= _interval(record, values, alpha).estimate for effect in effects)
    text = (
        f"{reached} of {len(effects)} matched random components reach the subject (p = {p:.3g}); subject minus their "
        f"mean is {interval.estimate:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
    )
    return {
        "rule": "rank",
        "beaten": p <= alpha and clear,
        "text": text,
        "difference": _natural(interval, 1.0) | {"against": "mean"},
    }


def _one_by_one(
    record: Record, values: Values, others: list[Values], effects: list[float], alpha: float
) -> dict[str, Any]:
    tests = [_contrast(record, values - other, alpha) for other in others]
    clear = [interval.low > 0 and flip <= alpha for interval, flip in tests]
    hardest = min(range(len(tests)), key=lambda i: tests[i][0].low)
    interval, name = tests[hardest][0], " + ".join(record["controls"][hardest]["sites"])
    text = (
        f"{sum(clear)} of all {len(effects)} matched components are weaker beyond doubt; the hardest is {name}, from "
        f"which the subject differs by {interval.estimate:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
    )
    if len(others) < MIN_ENUMERATED:
        count = f"only {len(others)} matched component{' is' if len(others) == 1 else 's are'} left to compare with"
        text = f"{count}, and at least {MIN_ENUMERATED} are needed; {text}"
    return {
        "rule": "one by one",
        "beaten": all(clear) and len(others) >= MIN_ENUMERATED,
        "text": text,
        "difference": _natural(interval, 1.0) | {"against": name},
    }


# -- instruments


def _checks(record: Record, alpha: float) -> list[dict[str, Any]]:
    """Placebo, planted effect and behavior: what must come out before the numbers mean anything."""
    name = record["kind"]
    checks = [_placebo(record, name), _reproduced(record, name), _found(record, name, alpha)]
    if record["scale"] == "ratio":
        checks.append(_behavior(record, name, alpha))
    return checks


def _check(name: str, value: float, unit: str, rule: str, passed: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "rule": rule, "passed": passed}


def _placebo(record: Record, name: str) -> dict[str, Any]:
    largest = max(abs(float(value)) for value in record["placebo"]["differences"])
    return _check(
        f"{name}: placebo",
        largest,
        record["metric_unit"],
        "largest change by an identity edit is exactly 0",
        largest == 0,
    )


def _reproduced(record: Record, name: str) -> dict[str, Any]:
    planted = record["positive"]
    off = max(abs(float(a) - float(b)) for a, b in zip(planted["metric"], planted["expected"], strict=True))
    rule = f"with the whole input exchanged, the other run's metric within {planted['tolerance']:.2g}"
    return _check(f"{name}: planted effect reproduced", off, record["metric_unit"], rule, off <= planted["tolerance"])


def _found(record: Record, name: str, alpha: float) -> dict[str, Any]:
    """The planted effect passes through the same interval. Its sign is known: it removes or restores the behavior."""
    interval = _interval(record, np.asarray(record["positive"]["values"], dtype=np.float64), alpha)
    minimum = abs(float(record["minimum"]))
    low = interval.low if math.isfinite(interval.low) else -1.0
    if record["controls_rule"] == "none":
        rule = "what exchanging the whole prompt does is seen: lower end above 0"
        return _check(f"{name}: planted effect found", low, record["unit"], rule, low > 0)
    least = 0.0 if record["scale"] == "mean" else min(minimum, 1.0)
    rule = f"the planted effect is found: lower end above 0, estimate {interval.estimate:.3g} at least {least:g}"
    return _check(f"{name}: planted effect found", low, record["unit"], rule, low > 0 and interval.estimate >= least)


def _behavior(record: Record, name: str, alpha: float) -> dict[str, Any]:
    gap = mean_interval(np.asarray(record["gap"], dtype=np.float64), record["clusters"], alpha=alpha)
    return _check(
        f"{name}: behavior", gap.low, record["metric_unit"], "lower end of the clean-corrupt gap above 0", gap.low > 0
    )


# -- words


def _decide(record: Record, interval: Interval, controls: Record, checks: Sequence[Record]) -> tuple[str, str]:
    """Verdict and reason of one prediction; `interval` and its threshold are turned so that larger is more."""
    failed = [check for check in checks if not check["passed"]]
    if failed:
        shown = f"measured {failed[0]['value']:.3g} {failed[0]['unit']}"
        return "invalid", f"{failed[0]['name']} failed: {shown}; needed: {failed[0]['rule']}."
    threshold = _sign(record) * float(record["minimum"])
    shown = f"{_shown(record, interval)}, claimed {record['side'].replace('_', ' ')} {record['minimum']:.3g}"
    if interval.high < threshold:
        return "refuted", f"{shown}: the whole interval misses it."
    if interval.low < threshold:
        return "inconclusive", f"{shown}: the interval holds both sides of it."
    if not controls["beaten"]:
        return "inconclusive", f"{shown}; the effect is there, but the controls are not beaten: {controls['text']}."
    return "supported", f"{shown}; {controls['text']}."


def _shown(record: Record, interval: Interval) -> str:
    """Estimate and interval in the sign of the measured effect."""
    natural = _natural(interval, _sign(record))
    low, high = ("unbounded" if end is None else f"{end:.3g}" for end in (natural["low"], natural["high"]))
    return f"{natural['value']:.3g} [{low}, {high}] {record['unit']}"


def _would_change(record: Record, name: str, interval: Interval, controls: Record, alpha: float) -> str:
    """What would have to be otherwise, with numbers."""
    sign, unit = _sign(record), record["unit"]
    threshold = sign * float(record["minimum"])
    match name:
        case "invalid":
            return "Nothing that could be measured: the failed check must pass first."
        case "supported":
            difference = controls["difference"]
            margin = f" It would fall if a control came {difference['low']:.3g} {unit} nearer." if difference else ""
            return f"It would not hold for a threshold beyond {sign * interval.low:.3g} {unit}.{margin}"
        case "refuted":
            return f"It would not be refuted for a threshold of {sign * interval.high:.3g} {unit} or a weaker one."
    if interval.low >= threshold and 0 < len(record["controls"]) < MIN_ENUMERATED:
        return (
            f"{MIN_ENUMERATED} or more matched components: exclude fewer, or make the claim about a kind of component "
            "that the model has more of."
        )
    if interval.low >= threshold:
        return (
            f"Beating the controls would support it: {controls['text']}. A component that is known to take part can be "
            "left out of the controls (`exclude`), in a new claim."
        )
    need = clusters_to_decide(abs(interval.estimate - threshold), interval.sd, alpha=alpha)
    if record["scale"] == "share" and interval.estimate in (0, 1) and threshold < 1:
        need = math.ceil(math.log(alpha / 2) / math.log(threshold if interval.estimate else 1 - threshold))
    if need is None or need <= interval.n_clusters:
        return (
            f"The estimate lies at the threshold {record['minimum']:.3g}: no number of clusters within reach decides."
        )
    side = "support" if interval.estimate > threshold else "refute"
    stays = f"{sign * interval.estimate:.3g} {unit}"
    return f"About {need} clusters (now {interval.n_clusters}) would {side} it if the estimate stayed at {stays}."


def _worst(record: Record, values: Values, threshold: float, sign: float) -> list[dict[str, Any]]:
    """Examples that fall shortest of the threshold, worst first."""
    gap = np.asarray(record["gap"], dtype=np.float64) if record["scale"] == "ratio" else np.ones_like(values)
    unit = _mean_gap(record)
    short = (values - threshold * gap) / unit
    order = np.argsort(short, kind="stable")[:N_WORST]
    return [
        {
            "id": record["ids"][i],
            "cluster": record["clusters"][i],
            "value": float(sign * values[i] / unit),
            "shortfall": float(short[i]),
        }
        for i in order
    ]
