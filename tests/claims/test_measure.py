"""Measuring: one planned call for each set of inputs, rounded values that are what is computed with, no NaN."""

from typing import Any

import numpy as np
import pytest

from cutaway.claims import Cell
from cutaway.claims import measure as module
from cutaway.claims.measure import measure, tidy, tolerance
from cutaway.errors import ClaimError
from tests.claims.toy import LOUD, MUTE, toy_model, toy_task

CELLS = [
    Cell((LOUD,), "other", "corrupt"),
    Cell((LOUD, MUTE), "zero", "clean"),
    Cell((MUTE,), "zero", "clean"),
    Cell((MUTE,), "resample", "clean"),
]


def test_all_cells_are_one_planned_call(monkeypatch: pytest.MonkeyPatch) -> None:
    true, counts = module.engine.plan, []

    def counted(model: Any, runs: Any, **options: Any) -> Any:
        counts.append(len(runs))
        return true(model, runs, **options)

    monkeypatch.setattr(module.engine, "plan", counted)
    found = measure(toy_model(), toy_task().split("explore"), [*CELLS, CELLS[0]], seed=0, max_tokens=4096)
    assert counts == [2 + len(CELLS)], "two unedited runs, and each cell once"
    assert set(found.edited) == set(CELLS)
    assert (found.edited[CELLS[0]] != found.base["corrupt"]).any()
    assert found.edited[CELLS[2]] == pytest.approx(found.base["clean"], abs=1e-6), "a mute head is not missed"


def test_identity_edits_change_no_bit() -> None:
    placebos = [Cell((site,), "same", side) for site in (LOUD, "mlp_act.0.n3@end") for side in ("clean", "corrupt")]
    found = measure(toy_model(), toy_task().split("explore"), CELLS[:1], placebos, seed=0, max_tokens=4096)
    assert len(found.placebo) == 4
    assert all((change == 0).all() for change in found.placebo.values())


def test_a_metric_of_less_is_turned_round() -> None:
    from dataclasses import replace

    task = replace(toy_task().split("explore"), metric="kl")
    found = measure(toy_model(), task, CELLS[:1], seed=0, max_tokens=4096)
    assert found.base["clean"] == pytest.approx(0, abs=1e-6)
    assert (found.base["corrupt"] < 0).all(), "larger is more of the behavior"


def test_recorded_numbers_are_rounded_once() -> None:
    assert tidy(0.123456789) == 0.1234568
    assert tidy(tidy(1 / 3)) == tidy(1 / 3)
    assert str(tidy(-0.0)) == "0.0"


def test_the_tolerance_follows_the_metric_and_the_number_format() -> None:
    assert tolerance(toy_model(), np.array([5.0, -15.0])) == pytest.approx(0.01)
    assert tolerance(toy_model(), np.array([0.1])) == pytest.approx(0.001)


def test_what_is_not_finite_names_its_pair() -> None:
    values = np.ones(3)
    values[2] = np.nan
    with pytest.raises(ClaimError, match="not finite") as caught:
        module._require_finite(toy_task(), [np.ones(3), values])
    assert caught.value.pair == toy_task().pairs[2].id
