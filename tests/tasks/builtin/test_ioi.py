"""Indirect objects: who is named twice, and where."""

import pytest

from cutaway.errors import Misaligned
from cutaway.models.model import Model
from cutaway.tasks import ioi
from cutaway.tasks.builtin.ioi import IOI
from tests.tasks.builtin.test_builtin import model as model
from tests.tasks.vocabularies import loaded, model_of, word_level


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


def test_both_orders_occur_in_every_split_and_about_equally_often(model: Model) -> None:
    task = ioi(model, n=384)
    first = [pair.positions["io"] < pair.positions["s1"] for pair in task.pairs]
    assert 0.4 <= sum(first) / len(first) <= 0.6
    for split in ("explore", "calibrate", "confirm"):
        assert {pair.positions["io"] < pair.positions["s1"] for pair in task.split(split).pairs} == {True, False}


def test_every_template_is_a_cluster(model: Model) -> None:
    assert set(ioi(model).clusters) == set(IOI.clusters)
    assert len(IOI.clusters) == 24


def test_names_of_several_tokens_are_scored_as_sequences() -> None:
    """Here every word is spelled in letters, so no name is a single token."""
    task = ioi(loaded("byte_bpe"), n=12)
    assert task.metric == "logprob_diff"
    assert {len(answer) > 1 for answer in task.encode(loaded("byte_bpe")).answers} == {True}


def test_a_tokenizer_without_the_words_is_told_so() -> None:
    with pytest.raises(Misaligned, match="0 of 96 pairs fit"):
        ioi(model_of(word_level(["They", "gave", "it", "to", "the", "Mary"])))
