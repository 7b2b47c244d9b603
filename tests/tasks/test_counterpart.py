"""Counterparts: another answer, the same cluster, the same length where there is one."""

import random

import pytest

from cutaway.errors import DataError
from cutaway.tasks.counterpart import Item, counterparts, measure, task_of
from tests.tasks.vocabularies import loaded


def drawn(seed: int, n: int, answers: int, sizes: int, clusters: int) -> list[Item]:
    """Items whose answers are unevenly frequent."""
    chance = random.Random(seed)
    return [
        Item(
            f"subject {i}",
            f"answer {min(chance.randrange(answers) for _ in range(2))}",
            f"c{chance.randrange(clusters)}",
            chance.randrange(sizes),
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clusters", [3, 1000])
def test_a_counterpart_has_another_answer_and_shares_the_cluster(seed: int, clusters: int) -> None:
    items = drawn(seed, 80, 3, 4, clusters)
    partners, homes = counterparts(items, seed=seed)
    assert None not in partners
    for index, other in enumerate(partners):
        assert other is not None
        assert items[other].answer != items[index].answer
        assert homes[other] == homes[index]
    for first, second in zip(items, homes):
        assert {home for item, home in zip(items, homes) if item.cluster == first.cluster} == {second}


def test_like_goes_with_like() -> None:
    items = [Item(f"s{i}", f"a{i % 2}", f"c{i}", size=i // 10) for i in range(100)]
    partners, homes = counterparts(items)
    assert all(items[index].size == items[other].size for index, other in enumerate(partners) if other is not None)
    assert len(set(homes)) == 50, "couples, no larger clusters"
    frames = [Item(f"s{i}", f"a{i % 2}", f"c{i}", 1, f"frame {i // 10}") for i in range(40)]
    partners, _ = counterparts(frames)
    assert all(frames[index].frame == frames[other].frame for index, other in enumerate(partners) if other is not None)


def test_a_rare_answer_serves_all_others() -> None:
    items = [Item(f"s{i}", "many", f"c{i}", i % 3) for i in range(9)] + [Item("x", "few", "x", 1)]
    partners, homes = counterparts(items)
    assert partners[:9] == [9] * 9
    assert len(set(homes)) == 1


def test_what_is_also_right_is_no_counterpart() -> None:
    rows = [("Ann", "tea"), ("Ann", "milk"), ("Bob", "tea"), ("Cy", "rum")]
    partners, _ = counterparts([Item(who, drink, who, 1) for who, drink in rows])
    assert partners[:2] == [3, 3], "Ann drinks tea and milk"
    assert partners[2] in (1, 3)
    assert partners[3] in (0, 1, 2)
    assert counterparts([Item(who, drink, who, 1) for who, drink in rows[:2]])[0] == [None, None]


def test_the_seed_decides() -> None:
    items = drawn(0, 60, 20, 1, 1000)
    assert counterparts(items, seed=1) == counterparts(items, seed=1)
    assert counterparts(items, seed=1) != counterparts(items, seed=2)


def test_lengths_are_the_model_s_tokens_or_words() -> None:
    assert measure(None)("The grandmother smiled.") == 3
    model = loaded("byte_bpe")
    assert measure(model)("The xyz ran") == len(model.encode(["The xyz ran"]).row(0)) > 3


def test_rows_left_out_are_counted() -> None:
    described = [{"clean": "a b", "corrupt": "a c", "answer": " d", "foil": " e"}]
    assert (
        task_of(described, "Text.", 3, name="t").description == "Text. 2 of 3 rows without a counterpart are left out."
    )
    assert task_of(described, "Text.", 1, name="t").description == "Text."
    with pytest.raises(DataError, match="none of 3 rows has a counterpart"):
        task_of([], "Text.", 3, name="t")


def test_copies_share_a_cluster() -> None:
    pair = {"clean": "a b", "corrupt": "a c", "answer": " d", "foil": " e"}
    task = task_of([{**pair, "cluster": "x"}, {**pair, "cluster": "y"}], "", 2, name="t")
    assert task.clusters == ("x",)
