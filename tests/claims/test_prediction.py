"""Predictions: refused without a smallest effect, scored with the right sign, one class a kind."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from cutaway.claims import Cell, Estimand, Mediates, Necessary, Prediction, Specific, Sufficient
from cutaway.claims.prediction import REGISTRY, Values, from_json
from cutaway.errors import ClaimError, NoMinimumEffect, UnknownName, UsageError
from cutaway.tasks import Metric, metric_named

LOGIT_DIFF = metric_named("logit_diff")
CLEAN, CORRUPT = np.array([4.0, 2.0, -1.0]), np.array([-4.0, -2.0, -1.5])
EVERY = [
    Necessary(0.3),
    Necessary(-0.2, "zero", "raw"),
    Sufficient(0.3),
    Sufficient(-0.3),
    Mediates(0.5),
    Specific(0.05),
    Specific(0.1, "mean", tuple(f"text {i}" for i in range(50))),
]


@pytest.mark.parametrize("kind", [Necessary, Sufficient, Mediates, Specific])
@pytest.mark.parametrize("value", [None, 0.0, float("nan")])
def test_without_a_smallest_effect_it_does_not_construct(kind: type, value: float | None) -> None:
    with pytest.raises(NoMinimumEffect, match=r"smallest effect that counts.*=0\.3"):
        kind(value)


def test_every_prediction_says_what_it_estimates() -> None:
    for prediction in EVERY:
        found = prediction.estimand(LOGIT_DIFF)
        assert found.minimum != 0
        assert found.unit
        assert f"{found.minimum:g}" in prediction.sentence(LOGIT_DIFF)
        assert found.controls == ("none" if isinstance(prediction, Specific) else "components")


def test_a_drop_is_positive_and_a_suppressor_lies_below() -> None:
    ablated = np.array([1.0, 2.0, -1.0])
    assert Necessary(0.3).score(ablated, CLEAN, CORRUPT).tolist() == [3.0, 0.0, 0.0]
    assert Necessary(0.3).estimand(LOGIT_DIFF).side == "at_least"
    assert Necessary(-0.3).estimand(LOGIT_DIFF).side == "at_most"
    assert Sufficient(-0.3).estimand(LOGIT_DIFF).side == "at_most"
    assert Necessary(0.3, unit="raw").estimand(LOGIT_DIFF).unit == "nat"


def test_a_restoration_is_measured_from_the_corrupt_run() -> None:
    patched = np.array([0.0, -2.0, -1.0])
    prediction = Sufficient(0.3)
    assert prediction.cell(("z.1.h3",)) == Cell(("z.1.h3",), "other", "corrupt")
    assert prediction.score(patched, CORRUPT, CLEAN).tolist() == [4.0, 0.0, 0.5]


def test_a_flip_needs_a_pair_that_was_right() -> None:
    patched = np.array([-0.1, 0.1, -3.0])
    assert Mediates(0.5).score(patched, CLEAN, CORRUPT).tolist() == [1.0, 0.0, 0.0]
    assert Mediates(0.5).cell(("z.1.h3",)) == Cell(("z.1.h3",), "other", "clean")
    with pytest.raises(ClaimError, match="'prob'"):
        Mediates(0.5).estimand(metric_named("prob"))


def test_side_effects_are_measured_everywhere_on_neutral_text() -> None:
    assert Specific(0.05).cell(("z.1.h3@end", "mlp_out.0@subject")) == Cell(
        ("z.1.h3", "mlp_out.0"), "resample", "clean", "neutral"
    )
    share = Specific(0.1, unit="gap").estimand(LOGIT_DIFF)
    assert (share.scale, share.side, share.controls) == ("ratio", "at_most", "none")
    minus_kl = np.array([-0.5, 0.0, -0.1])
    assert Specific(0.05).score(minus_kl, np.zeros(3), np.zeros(3)).tolist() == [0.5, 0.0, 0.1]


def test_instruments_use_the_run_that_the_prediction_edits() -> None:
    assert Sufficient(0.3).placebo(("z.1.h3",)) == Cell(("z.1.h3",), "same", "corrupt")
    assert Sufficient(0.3).positive() == Cell(("resid_pre.0",), "other", "corrupt")
    assert Necessary(0.3, "zero").positive() == Cell(("resid_pre.0",), "other", "clean")
    assert Specific(0.3).positive().data == "neutral"


@pytest.mark.parametrize("prediction", EVERY, ids=str)
def test_json_gives_back_the_same(prediction: Prediction) -> None:
    import json

    assert from_json(json.loads(json.dumps(prediction.to_json()))) == prediction


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'necessary'"):
        from_json({"kind": "neccessary", "at_least": 0.3})
    with pytest.raises(UnknownName, match=r"no option 'atleast'\. Did you mean 'at_least'"):
        from_json({"kind": "necessary", "atleast": 0.3})
    with pytest.raises(UnknownName, match="Did you mean 'resample'"):
        Necessary(0.3, "resampel")
    with pytest.raises(UnknownName, match="'bit'"):
        Specific(0.1, unit="bit")
    with pytest.raises(UsageError, match="above 0 and at most at 1"):
        Mediates(1.5)
    with pytest.raises(UsageError, match="a largest KL is above 0"):
        Specific(-1.0)
    with pytest.raises(UsageError, match="needs 50"):
        Specific(0.1, n_neutral=10)
    with pytest.raises(UsageError, match="all different"):
        Specific(0.1, neutral=("the same text",) * 60)


def test_a_new_kind_is_one_class() -> None:
    @dataclass(frozen=True)
    class Halves(Prediction):
        kind: ClassVar[str] = "halves"
        at_least: float = 0.5

        def estimand(self, metric: Metric) -> Estimand:
            return Estimand("the half", metric.unit, "mean", "at_least", self.at_least, "components")

        def cell(self, sites: tuple[str, ...]) -> Cell:
            return Cell(sites, "zero", "clean")

        def score(self, edited: Values, base: Values, other: Values) -> Values:
            return (base - edited) / 2

    try:
        assert from_json({"kind": "halves", "at_least": 0.7}) == Halves(0.7)
    finally:
        del REGISTRY["halves"]
