"""The registry, and what all built-in tasks keep: they align, repeat for a seed, and split whole clusters."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cutaway import zoo
from cutaway.errors import Misaligned, OutOfRange, UnknownName
from cutaway.models.model import Model
from cutaway.tasks import SPLITS, Pair, Task, describe, get, names
from cutaway.tasks.builtin.collect import collect, fill
from tests.tasks.vocabularies import loaded, model_of

EVERY = pytest.mark.parametrize("name", names())


@pytest.fixture(scope="module")
def model() -> Model:
    """A small model with babel's tokenizer, which has one token for every word of the built-in tasks."""
    return model_of(AutoTokenizer.from_pretrained(zoo.path("babel")))


def test_names_are_listed_and_described() -> None:
    assert names() == (
        "addition", "agreement", "alphabetical", "antonym", "brackets", "facts", "greater-than", "induction", "ioi",
        "pronoun", "refusal", "rhyme", "sentiment", "translation", "truth",
    )  # fmt: skip
    assert all(describe(name).endswith("?") for name in names())


def test_an_unknown_task_offers_the_nearest(model: Model) -> None:
    for ask in (lambda: get("inducton", model), lambda: describe("inducton")):
        with pytest.raises(UnknownName, match=r"'inducton'.*Did you mean 'induction'"):
            ask()


def test_options_that_a_task_does_not_have(model: Model) -> None:
    with pytest.raises(UnknownName, match=r"no option 'sed'; built-in tasks have n and seed.*Did you mean 'seed'"):
        get("induction", model, sed=3)


def test_a_number_of_pairs_is_whole() -> None:
    """In a Python of its own: here every call is checked for its types already."""
    program = (
        "from cutaway import errors, patching, tasks\n"
        "for make in (lambda: tasks.get('induction', None, n=2.5), lambda: tasks.get('ioi', None, seed='0'),\n"
        "             lambda: patching.sweep(None, 'induction', ['z.0'])):\n"
        "    try:\n        make()\n    except errors.UsageError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = done.stdout.splitlines()
    wanted = ["n=2.5; give a whole number", "seed='0'; give", "cutaway.tasks.get('induction', model)"]
    assert [text in line for text, line in zip(wanted, found, strict=True)] == [True] * 3, found


@EVERY
def test_defaults_are_enough_for_cluster_statistics(name: str, model: Model) -> None:
    task = get(name, model)
    assert task.name == name
    assert [task.splits[split] for split in SPLITS] == [32, 16, 48]
    assert [len(task.split(split).clusters) for split in SPLITS] == [8, 4, 12]


@EVERY
def test_pairs_align_and_differ(name: str, model: Model) -> None:
    batch = get(name, model, n=48).encode(model)
    assert batch.clean.lengths == batch.corrupt.lengths
    for row in range(batch.n):
        differ = [a != b for a, b in zip(batch.clean.row(row), batch.corrupt.row(row))]
        assert sum(differ) in (1, 2)
        assert not differ[-1]
        assert batch.answers[row] != batch.foils[row]


@EVERY
def test_the_same_seed_gives_the_same_task_and_another_another(name: str, model: Model) -> None:
    assert get(name, model, n=30, seed=4) == get(name, model, n=30, seed=4)
    first, second = (get(name, model, n=30, seed=seed) for seed in (4, 5))
    assert {pair.clean for pair in first.pairs} != {pair.clean for pair in second.pairs}


@EVERY
def test_no_prompt_stands_twice(name: str, model: Model) -> None:
    task = get(name, model, n=96)
    assert len({pair.clean for pair in task.pairs}) == 96


@EVERY
def test_a_small_task_has_as_many_clusters_as_pairs(name: str, model: Model) -> None:
    task = get(name, model, n=5)
    assert len(task) == len(task.clusters) == 5
    assert set(task.splits.values()) >= {1}
    with pytest.raises(OutOfRange, match="n=0"):
        get(name, model, n=0)


@EVERY
def test_a_built_in_task_survives_its_file(name: str, model: Model, tmp_path: Path) -> None:
    task = get(name, model, n=12)
    task.save(tmp_path / "task.jsonl")
    assert Task.load(tmp_path / "task.jsonl") == task


def test_fill_finds_its_spans() -> None:
    text, spans = fill("{a} and {b}, {s2}", {"a": "Ann", "b": "Bo", "s2": "Ann"})
    assert text == "Ann and Bo, Ann"
    assert {slot: text[start:stop] for slot, (start, stop) in spans.items()} == {"a": "Ann", "b": "Bo", "s2": "Ann"}
    assert spans["s2"] == (12, 15)


def test_too_few_aligned_pairs_are_counted_and_the_first_refusal_is_shown() -> None:
    good = Pair("The girl smiled.", "The boy smiled.", " She", " He")
    bad = Pair("The girl ran.", "The girl and the boy ran.", " She", " He")
    with pytest.raises(
        Misaligned,
        match=r"1 of 2 pairs fit .*2 candidates tried.*First that did not fit: .*clean has 5 tokens, corrupt 8",
    ) as caught:
        collect(
            "mine",
            {"a": iter([good, good]), "b": iter([bad])},
            loaded("word_level"),
            n=2,
            seed=0,
            metric_name="logit_diff",
        )
    assert (caught.value.found, caught.value.wanted, caught.value.tried) == (1, 2, 2)


@pytest.mark.parametrize("n_good", [0, 1])
def test_a_refusal_names_the_cluster_and_asks_for_no_fewer_than_none(n_good: int) -> None:
    good = Pair("The girl smiled.", "The boy smiled.", " She", " He")
    bad = Pair("The girl ran.", "The girl and the boy ran.", " She", " He")
    with pytest.raises(Misaligned, match="First that did not fit: pair 'ran'") as caught:
        collect(
            "mine", {"smiled": iter([good] * n_good), "ran": iter([bad])}, loaded("word_level"), n=2, seed=0,
            metric_name="logit_diff",
        )  # fmt: skip
    assert ("ask for at most 1" in str(caught.value)) is bool(n_good)
    assert "write a task of your own" in str(caught.value)


def test_pairs_whose_answers_are_not_single_tokens_are_passed_over() -> None:
    long = Pair("The girl smiled.", "The boy smiled.", " She ran", " He")
    good = Pair("The girl ran.", "The boy ran.", " She", " He")
    candidates = {"a": iter([long, good])}
    (chosen,) = collect("mine", candidates, loaded("word_level"), n=1, seed=0, metric_name="logit_diff")
    assert chosen.clean == good.clean
    (chosen,) = collect("mine", {"a": iter([long])}, loaded("word_level"), n=1, seed=0, metric_name="logprob_diff")
    assert chosen.clean == long.clean
