"""Results made by hand: the JSON that the verdict reads, with effects, scatter and controls as wanted."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

SIZE = 4
"""Examples in a cluster."""


def effects(rng: np.random.Generator, mean: float, *, n_clusters: int, sd: float, icc: float = 0.3) -> np.ndarray:
    """Values of templated examples: `sd` is that of one example, `icc` the share of variance that a cluster shares."""
    shared = np.repeat(rng.normal(size=n_clusters), SIZE) * np.sqrt(icc)
    own = rng.normal(size=n_clusters * SIZE) * np.sqrt(1 - icc)
    return mean + sd * (shared + own)


def prediction(
    values: Sequence[float] | np.ndarray,
    controls: Sequence[Sequence[float] | np.ndarray] = (),
    *,
    minimum: float = 0.3,
    side: str = "at_least",
    scale: str = "ratio",
    rule: str = "enumerated",
    gap: Sequence[float] | np.ndarray | None = None,
    size: int = SIZE,
    **changed: Any,
) -> dict[str, Any]:
    """One prediction's record whose instruments are in order."""
    n = len(values)
    gaps = np.full(n, 2.0) if gap is None else np.asarray(gap)
    planted = {"ratio": gaps, "share": np.ones(n)}.get(scale, np.full(n, 10 * abs(minimum)))
    return {
        "kind": "necessary",
        "sentence": "the drop is large",
        "unit": "of the clean-corrupt gap" if scale == "ratio" else "nat",
        "metric_unit": "nat",
        "scale": scale,
        "side": side,
        "minimum": minimum,
        "ids": [f"p{i}" for i in range(n)],
        "clusters": [f"c{i // size}" for i in range(n)],
        "values": list(map(float, values)),
        "gap": gaps.tolist() if scale == "ratio" else None,
        "controls_rule": rule,
        "controls": [{"sites": [f"z.0.h{i}"], "values": list(map(float, one))} for i, one in enumerate(controls)],
        "placebo": {"sites": ["z.1.h3"], "differences": [0.0] * n},
        "positive": {
            "sites": ["resid_pre.0"],
            "metric": [1.0] * n,
            "expected": [1.0] * n,
            "tolerance": 1e-3,
            "values": planted.tolist(),
        },
    } | changed


def result(*predictions: dict[str, Any], alpha: float = 0.05, **changed: Any) -> dict[str, Any]:
    """A claim's record, through JSON and back."""
    record = {"alpha": alpha, "changed": [], "seen_before": [], "predictions": list(predictions)} | changed
    return json.loads(json.dumps(record))
