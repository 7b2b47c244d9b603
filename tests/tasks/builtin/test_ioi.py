"""Indirect objects: who is named twice, and where."""

import pytest

from cutaway.errors import TokenizerUnfit
from cutaway.models.model import Model
from cutaway.tasks import ioi
from cutaway.tasks.builtin.ioi import TEMPLATES
from tests.tasks.builtin.test_builtin import model as model
from tests.tasks.vocabularies import model_of, word_level


def test_the_answer_is_named_once_and_the_foil_twice(model: Model) -> None:
    for pair in ioi(model).pairs:
        receiver, giver = str(pair.answer).strip(), str(pair.foil).strip()
        clean, corrupt = (
            str(prompt).replace(",", " ").replace(".", " ").split() for prompt in (pair.clean, pair.corrupt)
        )
        assert (clean.count(receiver), clean.count(giver)) == (1, 2)
        assert (corrupt.count(receiver), corrupt.count(giver)) == (2, 1)


def test_positions_hold_the_names(model: Model) -> None:
    for pair in ioi(model).pairs:
        assert pair.corrupt_positions is not None
        named = {role: str(pair.clean)[start:stop] for role, (start, stop) in pair.positions.items()}
        other = {role: str(pair.corrupt)[start:stop] for role, (start, stop) in pair.corrupt_positions.items()}
        receiver, giver = str(pair.answer).strip(), str(pair.foil).strip()
        assert named == {"io": receiver, "s1": giver, "s2": giver}
        assert other == {"io": receiver, "s1": giver, "s2": receiver}
        assert pair.positions["s2"][0] > max(pair.positions["s1"][1], pair.positions["io"][1])


def test_both_orders_occur_in_every_split(model: Model) -> None:
    task = ioi(model)
    for split in ("explore", "calibrate", "confirm"):
        first = [pair.positions["io"] < pair.positions["s1"] for pair in task.split(split).pairs]
        assert 0.25 <= sum(first) / len(first) <= 0.75


def test_every_template_is_a_cluster(model: Model) -> None:
    assert set(ioi(model).clusters) == set(TEMPLATES)
    assert len(TEMPLATES) == 24


def test_a_tokenizer_without_names_is_told_so() -> None:
    with pytest.raises(TokenizerUnfit, match="1 of 38 names"):
        ioi(model_of(word_level(["They", "gave", "it", "to", "the", "Mary"])))
