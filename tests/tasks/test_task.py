"""Tasks: what the constructor refuses, splits, digests, and the vocabulary that ids belong to."""

from dataclasses import replace

import pytest

from cutaway.errors import DataError, EmptyTask, UnknownName, WrongModel
from cutaway.tasks import Pair, Task, vocabulary_digest
from tests.tasks.vocabularies import loaded

ONE = Pair("The girl smiled.", "The boy smiled.", " She", " He", {"s": (4, 8)}, {"s": (4, 7)}, "1", "a", "explore")
TWO = Pair("The boy ran.", "The girl ran.", " He", " She", {"s": (4, 7)}, {"s": (4, 8)}, "2", "b", "confirm")
IDS = Pair((1, 5, 6), (1, 7, 6), 5, 7, {"s": (1, 2)}, None, "3", "c")


def task(*pairs: Pair, **options: object) -> Task:
    return Task("t", "a test", pairs, **{"roles": ("s",), **options})  # pyright: ignore[reportArgumentType]


def test_no_pairs_is_no_task() -> None:
    with pytest.raises(EmptyTask, match="task 't': no pairs"):
        task()


@pytest.mark.parametrize(
    ("pairs", "options", "says"),
    [
        ((ONE, replace(TWO, id="1")), {}, "'1' stands twice"),
        ((ONE, replace(TWO, cluster="a")), {}, "cluster 'a' is in explore and in confirm"),
        ((ONE, replace(TWO, positions={}, corrupt_positions=None)), {}, "pair '2' has no position for \\['s'\\]"),
        ((ONE, IDS), {}, "pair '3' is token ids"),
        ((IDS,), {}, "need the digest of their vocabulary"),
        ((ONE,), {"tokenizer": "abc"}, "pairs of text have none"),
    ],
)
def test_what_cannot_be_a_task_is_refused(pairs: tuple[Pair, ...], options: dict[str, object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        task(*pairs, **options)


@pytest.mark.parametrize("split", ["explore", "confirm"])
def test_a_copy_in_another_cluster_is_no_independent_example(split: str) -> None:
    copied = replace(ONE, id="2", cluster="b", split=split, positions={"s": (0, 3)}, corrupt_positions=None)
    with pytest.raises(
        DataError, match=r"pair '2' .* has the prompts, answer and foil of pair '1' .*into one"
    ) as caught:
        task(ONE, copied)
    assert caught.value.pair_idx == 1
    assert len(task(ONE, replace(ONE, id="2"))) == 2, "inside a cluster it counts once anyway"
    assert len(task(ONE, replace(copied, foil=" It"))) == 2
    ids = {"tokenizer": "abc"}
    with pytest.raises(DataError, match="into one"):
        task(IDS, replace(IDS, id="4", cluster="d", answer=(5,)), **ids)


def test_an_unknown_metric_is_refused_at_once() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'prob'"):
        task(ONE, metric="prb")


def test_end_is_a_role_of_every_task() -> None:
    assert task(ONE).roles == ("s", "end")
    assert task(ONE, roles=("end", "s")).roles == ("s", "end")
    assert task(ONE).encode(loaded("word_level")).roles == ("s", "end")


def test_splits_hold_their_pairs_and_no_others() -> None:
    whole = task(ONE, TWO)
    assert [pair.id for pair in whole.split("explore").pairs] == ["1"]
    assert [pair.id for pair in whole.split("confirm").pairs] == ["2"]
    assert whole.splits == {"explore": 1, "calibrate": 0, "confirm": 1}
    assert whole.clusters == ("a", "b")
    with pytest.raises(EmptyTask, match="no pair in split 'calibrate'"):
        whole.split("calibrate")
    with pytest.raises(UnknownName, match="Did you mean 'confirm'"):
        whole.split("confrm")


def test_the_digest_is_of_everything() -> None:
    base = task(ONE, TWO)
    changed = [
        task(TWO, ONE),
        task(ONE, replace(TWO, foil=" It")),
        task(ONE, replace(TWO, positions={"s": (4, 6)})),
        task(ONE, TWO, metric="prob"),
        task(ONE, TWO, seed=1),
        base.split("explore"),
    ]
    assert base.digest == task(ONE, TWO).digest
    assert len({base.digest, *(item.digest for item in changed)}) == len(changed) + 1


def test_a_text_task_serves_every_tokenizer() -> None:
    for kind in ("word_level", "byte_bpe", "prepended_bpe", "slow_words"):
        batch = task(ONE, TWO).encode(loaded(kind))
        assert batch.clean.lengths == batch.corrupt.lengths
        assert batch.clean.roles == batch.corrupt.roles
        assert batch.ids == ("1", "2")
        assert batch.clusters == ("a", "b")
        assert batch.clean.ids.tolist() != batch.corrupt.ids.tolist()


def test_a_task_of_ids_is_refused_by_another_vocabulary() -> None:
    made = task(IDS, tokenizer=vocabulary_digest(loaded("word_level")))
    assert made.encode(loaded("word_level")).clean.row(0) == [1, 5, 6]
    with pytest.raises(WrongModel, match="make the task again with this model"):
        made.encode(loaded("byte_bpe"))
