"""Task files: nothing is lost, and every broken line is named."""

import json
from pathlib import Path

import pytest

from cutaway.errors import AnswersEqual, BadTaskFile, EmptyTask, UnknownName
from cutaway.tasks import Pair, Task

TEXT = Task(
    "pronoun?",
    "Odd \u2028 characters, 'quotes' and \"double\" ones: é 字 \U0001f600",
    (
        Pair(
            "The girl\nsmiled\u2028.",
            "The boy\nsmiled\u2028.",
            " She",
            " He",
            {"s": (4, 8)},
            {"s": (4, 7)},
            "a",
            "t1",
            "explore",
        ),
        Pair("Tab\there", "Tab\tthere", " é", " 字", {"s": (0, 3)}, None, "b", "t2", "confirm"),
    ),
    metric="logprob_diff",
    roles=("s",),
    seed=None,
)
IDS = Task(
    "ids", "", (Pair((1, 2), (1, 3), 4, (5, 6), {}, {}, "x", "c", "calibrate"),), metric="prob", seed=7, tokenizer="abc"
)


@pytest.mark.parametrize("task", [TEXT, IDS], ids=["text", "ids"])
def test_a_task_comes_back_equal(task: Task, tmp_path: Path) -> None:
    task.save(tmp_path / "task.jsonl")
    found = Task.load(tmp_path / "task.jsonl")
    assert found == task
    assert found.digest == task.digest
    found.save(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "task.jsonl").read_bytes()


def edited(tmp_path: Path, line: int, **changes: object) -> Path:
    """The text task's file with keys of one line (from 1) changed; a value of ... removes the key."""
    TEXT.save(tmp_path / "task.jsonl")
    lines = (tmp_path / "task.jsonl").read_text("utf-8").removesuffix("\n").split("\n")
    value = {**json.loads(lines[line - 1]), **changes}
    lines[line - 1] = json.dumps({key: item for key, item in value.items() if item is not ...})
    (tmp_path / "task.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path / "task.jsonl"


@pytest.mark.parametrize(
    ("line", "changes", "reason"),
    [
        (1, {"version": 2}, "version"),
        (1, {"format": "other"}, "format"),
        (1, {"metric": ...}, "metric"),
        (1, {"colour": "red"}, "colour|Extra inputs"),
        (1, {"n_pairs": 3}, "counts 3 pairs and there are 2"),
        (1, {"tokenizer": "abc"}, "pairs of text have none"),
        (2, {"clean": ...}, "clean"),
        (2, {"clean": 5}, "clean"),
        (2, {"answer": 5}, "mixes text and token ids"),
        (2, {"split": "train"}, "split"),
        (2, {"positions": {"s": [4, 8, 9]}}, "positions"),
        (2, {"positions": {"s": [4, "8"]}}, "positions"),
        (3, {"positions": {}}, "no position for \\['s'\\]"),
        (3, {"positions": {"s": [0, 99]}}, "within 0-8"),
        (3, {"extra": 1}, "Extra inputs"),
        (3, {"id": "a"}, "'a' stands twice"),
        (3, {"cluster": "t1"}, "disjoint by cluster"),
    ],
)
def test_a_broken_line_is_named_with_its_reason(
    line: int, changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    path = edited(tmp_path, line, **changes)
    with pytest.raises(BadTaskFile, match=reason) as caught:
        Task.load(path)
    assert caught.value.line == (3 if "n_pairs" in changes else line)
    assert f"{path}, line {caught.value.line}: " in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"", 1, "not JSON"),
        (b"[1]\n", 1, "line"),
        (b"\xff\n", 1, "UTF-8"),
        (b'{"format": "cutaway.task", "format": "cutaway.task"}\n', 1, "'format' stands twice"),
    ],
)
def test_what_is_no_task_file_is_refused(content: bytes, line: int, reason: str, tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_bytes(content)
    with pytest.raises(BadTaskFile, match=reason) as caught:
        Task.load(tmp_path / "task.jsonl")
    assert caught.value.line == line


def test_a_cut_off_line_an_empty_line_and_bad_bytes_are_named(tmp_path: Path) -> None:
    TEXT.save(tmp_path / "task.jsonl")
    whole = (tmp_path / "task.jsonl").read_bytes()
    first_two = whole[: whole.index(b"\n", whole.index(b"\n") + 1) + 1]
    for tail, line in ((whole[:-30], 3), (first_two + b"\n" + whole[len(first_two) :], 3), (first_two + b"\xff\n", 3)):
        (tmp_path / "task.jsonl").write_bytes(tail)
        with pytest.raises(BadTaskFile) as caught:
            Task.load(tmp_path / "task.jsonl")
        assert caught.value.line == line


def test_a_lost_last_pair_is_noticed(tmp_path: Path) -> None:
    TEXT.save(tmp_path / "task.jsonl")
    whole = (tmp_path / "task.jsonl").read_text("utf-8")
    (tmp_path / "task.jsonl").write_text(whole[: whole.rstrip("\n").rindex("\n") + 1], "utf-8")
    with pytest.raises(BadTaskFile, match="counts 2 pairs and there are 1"):
        Task.load(tmp_path / "task.jsonl")


def test_a_missing_file_is_a_bad_task_file(tmp_path: Path) -> None:
    with pytest.raises(BadTaskFile, match=r"no-such.jsonl: cannot be read"):
        Task.load(tmp_path / "no-such.jsonl")


def test_errors_that_have_a_kind_keep_it_and_get_the_line(tmp_path: Path) -> None:
    with pytest.raises(AnswersEqual, match="line 2: ") as equal:
        Task.load(edited(tmp_path, 2, foil=" She"))
    assert equal.value.line == 2
    with pytest.raises(UnknownName, match=r"line 1: .*Did you mean 'logit_diff'"):
        Task.load(edited(tmp_path, 1, metric="logit_dif"))
    header = (tmp_path / "task.jsonl").read_text("utf-8").split("\n")[0].replace('"n_pairs": 2', '"n_pairs": 0')
    (tmp_path / "task.jsonl").write_text(header + "\n", "utf-8")
    with pytest.raises(EmptyTask, match="line 1: "):
        Task.load(tmp_path / "task.jsonl")


def test_the_documented_example_is_a_task_file(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/formats/task.md").read_text("utf-8")
    example = page.split("```jsonl\n")[1].split("```")[0]
    (tmp_path / "task.jsonl").write_text(example, "utf-8")
    found = Task.load(tmp_path / "task.jsonl")
    assert len(found) == 2
    found.save(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text("utf-8") == example


def test_the_page_names_every_key_and_no_other() -> None:
    from cutaway.tasks.io import Header, PairLine

    page = (Path(__file__).parents[2] / "docs/formats/task.md").read_text("utf-8")
    listed = {line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| `")}
    assert listed == set(Header.model_fields) | set(PairLine.model_fields)
