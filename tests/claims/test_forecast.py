"""The power note: from the scatter on earlier splits, in the prediction's unit, honest where it knows nothing."""

from typing import Any

import numpy as np
import pytest

from cutaway.claims import Mediates, Prediction, Specific, Sufficient, verdict
from cutaway.claims.forecast import forecast
from cutaway.claims.measure import Measured
from cutaway.tasks import metric_named
from tests.claims.records import prediction, result

SUBJECT = ("z.1.h3",)


def note(made: Prediction, edited: np.ndarray, *, n_clusters: int = 12, size: int = 2) -> dict[str, Any]:
    n = len(edited)
    cells = {made.positive(): np.zeros(n), made.cell(SUBJECT): edited}
    base = {"clean": np.ones(n), "corrupt": -np.ones(n)}
    found = Measured(tuple(f"p{i}" for i in range(n)), tuple(f"c{i // size}" for i in range(n)), base, cells, {})
    return forecast(
        made, SUBJECT, metric_named("logit_diff"), found, split="calibrate", n_clusters=n_clusters, alpha=0.05
    )


def test_it_is_in_the_unit_of_the_prediction() -> None:
    edited = np.repeat([0.0, 0.4, -0.4, 0.0], 2)  # restored from -1: 1.0, 1.4, 0.6, 1.0 of a gap of 2
    found = note(Sufficient(0.3), edited)
    assert found["estimate"] == pytest.approx(0.5)
    assert found["sd"] == pytest.approx(np.std([0.5, 0.7, 0.3, 0.5], ddof=1), rel=1e-5)
    assert found["n_clusters"] == 12
    at = next(chance for chance in found["outlook"] if chance["effect"] == found["estimate"])
    assert at["supported"] > 0.7
    assert f"{found['clusters_for_80']} clusters" in found["text"]


def test_a_suppressor_is_looked_at_from_its_side() -> None:
    found = note(Sufficient(-0.1), np.repeat([-1.5, -1.4, -1.6, -1.5], 2))
    assert found["estimate"] == pytest.approx(-0.25)
    at = next(chance for chance in found["outlook"] if chance["effect"] == found["estimate"])
    assert at["supported"] > 0.9


def test_one_cluster_tells_nothing() -> None:
    found = note(Sufficient(0.3), np.zeros(2))
    assert (found["sd"], found["outlook"], found["clusters_for_80"]) == (None, [], None)
    assert "unknown" in found["text"]


def test_a_share_of_one_needs_the_clusters_that_the_verdict_needs() -> None:
    found = note(Mediates(0.8), -np.ones(8))
    need = found["clusters_for_80"]
    for n, expected in ((need, "supported"), (need - 1, "inconclusive")):
        record = prediction(np.ones(n), [np.zeros(n)] * 3, scale="share", minimum=0.8, size=1)
        assert verdict(result(record))["verdict"] == expected


def test_neutral_prompts_count_themselves() -> None:
    found = note(Specific(0.1), np.full(8, 0.95))
    assert (found["split"], found["n_clusters"]) == ("other neutral prompts", 4)
