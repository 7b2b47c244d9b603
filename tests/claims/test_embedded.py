"""Claims about an embedded model whose mechanism is known: true ones supported, the decoy refuted, the twin neither.

At the positions where the heads act: a previous-token head writes at `successor` which token stood before it; an
induction head finds that at `end` and copies.
"""

from functools import cache
from pathlib import Path

import pytest

from cutaway import load, zoo
from cutaway.claims import Claim, ClaimResult, Ledger, Mediates, Necessary, Prediction, Specific, Sufficient
from cutaway.models import Model
from cutaway.tasks import Task, induction

NAME = "induction-2l"


@cache
def known() -> tuple[Model, Task, zoo.Truth]:
    model = load(NAME)
    return model, induction(model, n=192), zoo.truth(NAME)


def claimed(
    subject: tuple[str, ...], predictions: tuple[Prediction, ...], exclude: tuple[str, ...], folder: Path
) -> ClaimResult:
    model, task, _ = known()
    claim = Claim("These heads take part in induction.", subject, task.name, predictions, exclude=exclude)
    ledger = Ledger(folder / "ledger.sqlite")
    return claim.freeze(model, task, search=1, ledger=ledger).run(model, task, ledger)


def at(sites: tuple[str, ...], role: str) -> tuple[str, ...]:
    return tuple(f"{site}@{role}" for site in sites)


def test_the_induction_heads_are_supported(tmp_path: Path) -> None:
    truth = known()[2]
    subject = at(truth.heads("induction"), "end")
    wanted = (Necessary(0.3), Sufficient(0.3), Mediates(0.3))
    found = claimed(subject, wanted, truth.heads("previous_token"), tmp_path)
    assert found.verdict == "supported", found.reason


def test_the_previous_token_heads_are_supported(tmp_path: Path) -> None:
    """Necessary, though not sufficient: what they write at the successor is the same in both rows of a pair."""
    truth = known()[2]
    subject = at(truth.heads("previous_token"), "successor")
    found = claimed(subject, (Necessary(0.3),), truth.heads("induction"), tmp_path)
    assert found.verdict == "supported", found.reason


@pytest.mark.parametrize("prediction", [Necessary(0.1), Necessary(0.1, "mean"), Sufficient(0.1)], ids=str)
def test_the_decoy_is_refuted(prediction: Prediction, tmp_path: Path) -> None:
    truth = known()[2]
    decoys = truth.heads("decoy")
    assert decoys
    found = claimed(at(decoys[:1], "end"), (prediction,), (), tmp_path)
    assert found.verdict == "refuted", found.reason


def test_the_decoy_leaves_neutral_prompts_alone(tmp_path: Path) -> None:
    truth = known()[2]
    found = claimed(at(truth.heads("decoy")[:1], "end"), (Specific(0.05),), (), tmp_path)
    assert found.verdict == "supported", found.reason


def test_on_the_scrambled_twin_nothing_is_supported(tmp_path: Path) -> None:

    model, task, truth = known()
    twin = load(zoo.scrambled(model.module, 0), tokenizer=model.tokenizer)
    subject = at(truth.heads("induction"), "end")
    claim = Claim("These heads take part in induction.", subject, task.name, (Necessary(0.3), Sufficient(0.3)))
    ledger = Ledger(tmp_path / "ledger.sqlite")
    found = claim.freeze(twin, task, search=1, ledger=ledger).run(twin, task, ledger)
    assert found.verdict in ("invalid", "refuted"), found.reason
