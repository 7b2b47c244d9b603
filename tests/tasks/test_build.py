"""Tasks from tuples, dictionaries and tables: what lacks is filled in, what is wrong is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cutaway.errors import AnswersEqual, BadTaskFile, DataError, OutOfRange, UsageError, WrongModel
from cutaway.tasks import SPLITS, Pair, Task, vocabulary_digest
from cutaway.tasks.build import changed, linked
from tests.tasks.vocabularies import loaded

ITEMS = [(f"The girl number {n} ran.", f"The boy number {n} ran.", " She", " He") for n in range(12)]


def test_tuples_dictionaries_and_pairs_make_the_same_task() -> None:
    names = ("clean", "corrupt", "answer", "foil")
    tuples = Task.from_pairs(ITEMS, "t", seed=3)
    assert tuples == Task.from_pairs([dict(zip(names, item)) for item in ITEMS], "t", seed=3)
    assert tuples == Task.from_pairs([Pair(*item) for item in ITEMS], "t", seed=3)
    assert tuples == Task.from_pairs(tuples.pairs, "t", seed=3), "what was filled in is kept"
    assert [pair.id for pair in tuples.pairs] == [f"t-{n:03d}" for n in range(12)]
    assert len(tuples.clusters) == 12
    assert tuples.splits == {"explore": 4, "calibrate": 2, "confirm": 6}


def test_the_seed_deals_the_clusters_out() -> None:
    deals = [tuple(pair.split for pair in Task.from_pairs(ITEMS, seed=seed).pairs) for seed in (0, 0, 1, 2)]
    assert deals[0] == deals[1]
    assert len(set(deals)) > 1


def test_pairs_that_share_a_prompt_are_one_cluster() -> None:
    turned = [(corrupt, clean, foil, answer) for clean, corrupt, answer, foil in ITEMS]
    task = Task.from_pairs([*ITEMS, *turned, (ITEMS[0][0], ITEMS[5][0], " It", " He")])
    assert len(task.clusters) == 11, "0 and 5 are linked by the last pair"
    for prompt in {pair.clean for pair in task.pairs} | {pair.corrupt for pair in task.pairs}:
        assert len({pair.split for pair in task.pairs if prompt in (pair.clean, pair.corrupt)}) == 1


def test_what_is_given_is_kept() -> None:
    described = [
        {
            "clean": c,
            "corrupt": d,
            "answer": a,
            "foil": f,
            "cluster": f"k{n % 6}",
            "split": SPLITS[n % 3],
            "id": f"i{n}",
        }
        for n, (c, d, a, f) in enumerate(ITEMS)
    ]
    task = Task.from_pairs(described)
    assert [(pair.id, pair.cluster, pair.split) for pair in task.pairs] == [
        (f"i{n}", f"k{n % 6}", SPLITS[n % 3]) for n in range(12)
    ]
    fifth = Task.from_pairs([(*item, f"k{n % 4}") for n, item in enumerate(ITEMS)])
    assert fifth.clusters == ("k0", "k1", "k2", "k3")


def test_roles_are_those_of_every_pair() -> None:
    both = [Pair(*item, {"who": (4, 8), "verb": (18, 21)}) for item in ITEMS]
    assert Task.from_pairs(both).roles == ("who", "verb", "end")
    assert Task.from_pairs([replace(both[0], positions={"who": (4, 8)}), *both[1:]]).roles == ("who", "end")
    assert Task.from_pairs(both, roles=("verb",)).roles == ("verb", "end")


def test_token_ids_belong_to_the_model_that_is_named() -> None:
    ids = [([1, 5, n], [1, 6, n], 7, 8) for n in range(9, 16)]
    task = Task.from_pairs(ids, model=loaded("word_level"))
    assert task.tokenizer == vocabulary_digest(loaded("word_level"))
    with pytest.raises(WrongModel):
        task.encode(loaded("byte_bpe"))
    with pytest.raises(DataError, match="need the digest of their vocabulary"):
        Task.from_pairs(ids)


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([("a", "b", "c")], r"item 0 is \('a', 'b', 'c'\); write \(clean, corrupt, answer, foil\)"),
        (["abcd"], "item 0 is 'abcd'"),
        ([{"clean": "a", "corrupt": "b", "answer": "c"}], "item 0: 'foil' is missing"),
        ([{"clean": "a", "corrupt": "b", "answer": "c", "foil": "d", "colour": 1}], "'colour' is no field of a pair"),
        ([ITEMS[0], (*ITEMS[1], "k")], "item 0 names no cluster, and others do"),
        ([{**dict(zip(("clean", "corrupt", "answer", "foil"), ITEMS[0])), "split": "confirm"}, ITEMS[1]], "no split"),
    ],
)
def test_what_is_no_pair_is_named(items: list[object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        Task.from_pairs(items)  # pyright: ignore[reportArgumentType]


def table(tmp_path: Path, *rows: str, name: str = "set.csv") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(("prompt,other,right,wrong,unit,who", *rows)) + "\n", "utf-8")
    return path


COLUMNS = {"clean": "prompt", "corrupt": "other", "answer": "right", "foil": "wrong"}
GIRL = "The girl ran.,The boy ran., She, He,ran,girl"
MAN = "The man sat.,The girl sat., He, She,sat,man"


def test_a_table_s_columns_become_pairs(tmp_path: Path) -> None:
    path = table(tmp_path, GIRL, MAN)
    task = Task.from_csv(path, **COLUMNS, cluster="unit", positions={"who": "who"}, seed=1)
    assert task.name == "set"
    assert task.clusters == ("ran", "sat")
    assert task.roles == ("who", "end")
    first = task.pairs[0]
    assert (first.clean, first.corrupt, first.answer, first.foil) == ("The girl ran.", "The boy ran.", " She", " He")
    assert first.clean[slice(*first.positions["who"])] == "girl"
    assert task.encode(loaded("byte_bpe")).n == 2


def test_json_lines_with_names_of_their_own(tmp_path: Path) -> None:
    names = ("prompt", "other", "right", "wrong", "unit", "who")
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(json.dumps(dict(zip(names, row.split(",")))) for row in (GIRL, MAN)), "utf-8")
    assert Task.from_jsonl(path, **COLUMNS, cluster="unit") == Task.from_csv(
        table(tmp_path, GIRL, MAN), **COLUMNS, cluster="unit"
    )


def test_json_lines_in_the_own_format_are_loaded(tmp_path: Path) -> None:
    task = Task.from_pairs(ITEMS)
    task.save(tmp_path / "own.jsonl")
    assert Task.from_jsonl(tmp_path / "own.jsonl") == task
    with pytest.raises(UsageError, match=r"read it by Task.load, without clean="):
        Task.from_jsonl(tmp_path / "own.jsonl", clean="prompt")


@pytest.mark.parametrize(
    ("row", "options", "kind", "says"),
    [
        ("The man sat.,,He,She,sat,man", {}, BadTaskFile, "line 3: column 'other' is ''; text was expected"),
        ("The man sat ,The girl sat, He, She,sat,man", {}, BadTaskFile, r"line 3: pair 'set-001' ends clean with a sp"),
        ("The man sat.,The girl sat., He, He,sat,man", {}, AnswersEqual, r"line 3: pair 'set-001': answer and foil"),
        (
            MAN.replace(",sat,", ",ran,"),
            {"cluster": "unit", "split": "who"},
            BadTaskFile,
            "explore or calibrate or confirm was exp",
        ),
        (MAN, {"clean": "promt"}, BadTaskFile, "line 2: no column 'promt'. Did you mean 'prompt'"),
        (
            MAN.replace(",man", ",a"),
            {"positions": {"who": "who"}},
            BadTaskFile,
            "line 3: column 'who' is 'a', which stands 2 times",
        ),
        (GIRL.replace(",ran,", ",sat,"), {"cluster": "unit"}, BadTaskFile, "line 3: .*put both into one"),
    ],
)
def test_a_bad_row_is_named(row: str, options: dict[str, object], kind: type, says: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=says):
        Task.from_csv(table(tmp_path, GIRL, row), **{**COLUMNS, **options})  # pyright: ignore[reportArgumentType]


def test_the_words_that_differ_are_a_position() -> None:
    clean, corrupt = "When Ann and Bob ran, Bob sat", "When Ann and Bob ran, Ann sat"
    here, there = changed(clean, corrupt)
    assert clean[slice(*here["changed"])] == "Bob"
    assert corrupt[slice(*there["changed"])] == "Ann"
    assert changed("a b c d", "a x y d")[0] == {"changed": (2, 5)}
    assert changed("a a", "a a") == changed("a b", "a x b") == changed((1, 2), (1, 3)) == ({}, {})


def test_links_reach_through_a_chain() -> None:
    assert linked(list("abcd"), [{1}, {2}, {3}, {1, 3}]) == ["a", "b", "a", "a"]


def test_a_sample_keeps_the_splits_and_takes_clusters_in_turn() -> None:
    task = Task.from_pairs([(*item, f"k{n % 6}") for n, item in enumerate(ITEMS)])
    found = task.sample(6, seed=1)
    assert found.splits == {"explore": 2, "calibrate": 1, "confirm": 3}
    assert len(found.clusters) == 6
    assert task.sample(6, seed=1) == found
    assert len({task.sample(6, seed=seed).digest for seed in range(5)}) > 1
    assert task.sample(99).pairs == task.pairs
    with pytest.raises(OutOfRange, match="n=0"):
        task.sample(0)
