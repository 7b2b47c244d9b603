"""Pairs and splits: what a pair refuses, and that splits are whole clusters."""

import pytest

from cutaway.errors import AnswersEqual, DataError
from cutaway.tasks import SPLITS, Pair, assign_splits


def pair(**changes: object) -> Pair:
    values: dict[str, object] = {
        "clean": "The girl smiled.",
        "corrupt": "The boy smiled.",
        "answer": " She",
        "foil": " He",
        "id": "p7",
    }
    return Pair(**{**values, **changes})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"answer": 3}, "mixes text and token ids"),
        ({"clean": ""}, "empty clean"),
        ({"foil": ""}, "empty foil"),
        ({"clean": "The girl "}, "ends clean with a space"),
        ({"corrupt": "The boy\n", "answer": "She"}, "ends corrupt with a space"),
        ({"cluster": ""}, "empty cluster"),
        ({"positions": {"subject": (4, 40)}}, "'subject' at \\(4, 40\\)"),
        ({"positions": {"subject": (4, 4)}}, "start < stop"),
        ({"positions": {"end": (0, 3)}}, "always the last token"),
        ({"positions": {"a": (0, 3)}, "corrupt_positions": {"b": (0, 3)}}, "name the same"),
        ({"positions": {"a": (0, 3)}, "corrupt_positions": {"a": (0, 30)}}, "within 0-15"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(changes: dict[str, object], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        pair(**changes)
    assert caught.value.pair == "p7"
    assert "'p7'" in str(caught.value)


@pytest.mark.parametrize(("answer", "foil"), [(" She", " She"), ((4,), 4), ((4, 5), (4, 5))])
def test_answer_and_foil_must_differ(answer: object, foil: object) -> None:
    prompt = "x" if isinstance(answer, str) else (1, 2)
    with pytest.raises(AnswersEqual, match="must differ"):
        pair(clean=prompt, corrupt=prompt, answer=answer, foil=foil)


def test_splits_are_a_partition_of_the_clusters_near_the_shares() -> None:
    clusters = [f"template {index}" for index in range(24)]
    splits = assign_splits(clusters, seed=3)
    assert set(splits) == set(clusters)
    assert [list(splits.values()).count(name) for name in SPLITS] == [8, 4, 12]


def test_splits_depend_on_names_and_seed_alone() -> None:
    clusters = [f"template {index}" for index in range(24)]
    assert assign_splits(clusters, seed=1) == assign_splits(clusters[::-1] * 2, seed=1)
    assert assign_splits(clusters, seed=1) != assign_splits(clusters, seed=2)


@pytest.mark.parametrize("n_clusters", [3, 4, 5, 7, 50])
def test_three_clusters_leave_no_split_empty(n_clusters: int) -> None:
    assert set(assign_splits(map(str, range(n_clusters))).values()) == set(SPLITS)


def test_a_small_share_gets_a_cluster_of_three() -> None:
    assert set(assign_splits("abc", shares=(0.05, 0.05, 0.9)).values()) == set(SPLITS)


def test_a_share_of_nothing_gets_nothing() -> None:
    assert set(assign_splits("abcdefgh", shares=(0.5, 0.0, 0.5)).values()) == {"explore", "confirm"}


def test_shares_that_are_no_partition_are_refused() -> None:
    with pytest.raises(DataError, match="sum to 1"):
        assign_splits("abc", shares=(0.5, 0.5, 0.5))
