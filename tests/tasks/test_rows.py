"""Rows of data files: the same in every format, and every kind of damage is named with its line."""

import gzip
import json
from pathlib import Path

import pytest

from cutaway.errors import BadTaskFile
from cutaway.tasks import Pair, Task
from cutaway.tasks.rows import is_own, read_rows, stem

ROWS = [{"word": 'ab, "c"', "rank": "1"}, {"word": "two\nlines é", "rank": "2"}, {"word": "字", "rank": "03"}]


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def separated(mark: str) -> str:
    return f'word{mark}rank\n"ab, ""c"""{mark}1\n"two\nlines é"{mark}2\n\n字{mark}03\n'


FORMATS = {
    "a.csv": separated(","),
    "a.tsv": separated("\t"),
    "a.jsonl": "\n".join(json.dumps(row) for row in ROWS),
    "a.json": json.dumps(ROWS, indent=1),
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_gives_the_same_rows(name: str, ending: str, tmp_path: Path) -> None:
    found = read_rows(written(tmp_path, name + ending, FORMATS[name]))
    assert [row.values for row in found] == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_file_without_an_ending_is_known_by_its_beginning(name: str, tmp_path: Path) -> None:
    assert [row.values for row in read_rows(written(tmp_path, "data", "\ufeff" + FORMATS[name]))] == ROWS


def test_rows_know_their_line(tmp_path: Path) -> None:
    lines = {name: [row.line for row in read_rows(written(tmp_path, name, FORMATS[name]))] for name in FORMATS}
    assert lines == {"a.csv": [2, 3, 6], "a.tsv": [2, 3, 6], "a.jsonl": [1, 2, 3], "a.json": [2, 6, 10]}


def test_a_list_of_texts_is_rows_of_texts(tmp_path: Path) -> None:
    assert [row.text("text") for row in read_rows(written(tmp_path, "a.json", '["one", "two, three"]'))] == [
        "one",
        "two, three",
    ]


@pytest.mark.parametrize(
    ("name", "content", "line", "says"),
    [
        ("a.csv", "x,y\n1,2\n1,2,3\n", 3, r"has 3 cells, and the header names 2 columns \(x, y\)"),
        ("a.csv", "x,x\n1,2\n", 1, "names column 'x' twice"),
        ("a.csv", 'x,y\n1,"2\n', 2, "is not CSV"),
        ("a.csv", "x,y\n", None, "holds no rows"),
        ("a.csv", b"x,y\n1,\xff\n", 2, "is not UTF-8"),
        ("a.jsonl", '{"x": 1}\n{"x": \n', 2, r"is not JSON .* at column 7"),
        ("a.jsonl", '{"x": 1}\n\n[1]\n', 3, r"the line is \[1\]; an object was expected"),
        ("a.jsonl", '{"x": 1}\n{"x": 1, "x": 2}\n', 2, "'x' stands twice"),
        ("a.json", '[{"x": 1},\n {"x" 2}]', 2, "is not JSON"),
        ("a.json", '[{"x": 1},\n 5]', 2, "item 1 is 5; an object was expected"),
        ("a.json", "[]", None, "holds no rows"),
        ("no.csv", None, None, "cannot be read"),
    ],
)
def test_damage_is_named(name: str, content: str | bytes | None, line: int | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(BadTaskFile, match=says) as caught:
        read_rows(path)
    assert caught.value.line == line
    assert str(caught.value).startswith(str(path))


def test_a_cut_off_archive_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv.gz", "x,y\n" + "1,2\n" * 1000)
    for damaged in (path.read_bytes()[:-12], path.read_bytes()[:20] + b"\x00" * 20):
        path.write_bytes(damaged)
        with pytest.raises(BadTaskFile, match="damaged gzip archive"):
            read_rows(path)


def test_cells_say_what_they_should_be(tmp_path: Path) -> None:
    (row,) = read_rows(written(tmp_path, "a.jsonl", '{"name": "", "rank": "x3", "label": "Yes", "flag": true}'))
    for wrong, says in (
        (lambda: row.text("nam"), r"no column 'nam'. Did you mean 'name'"),
        (lambda: row.text("name"), "column 'name' is ''; text was expected"),
        (lambda: row.number("rank"), "column 'rank' is 'x3'; a whole number was expected"),
        (lambda: row.number("flag"), "a whole number was expected"),
        (lambda: row.one_of("label", {"0": 0, "1": 1}), "column 'label' is 'Yes'; 0 or 1 was expected"),
        (lambda: row.below(5, "samples[0]"), r"samples\[0\] is 5; an object was expected"),
    ):
        with pytest.raises(BadTaskFile, match=says) as caught:
            wrong()
        assert caught.value.line == 1
    assert row.one_of("label", {"no": 0, "yes": 1}) == 1


def test_the_own_format_is_known_by_its_header(tmp_path: Path) -> None:
    task = Task("t", "", (Pair("a b", "a c", " d", " e", id="0"),))
    task.save(tmp_path / "own.jsonl")
    assert is_own(tmp_path / "own.jsonl")
    assert not is_own(written(tmp_path, "other.jsonl", '{"clean": "format: cutaway.task"}'))
    assert stem("x/y.csv.gz") == stem("y.jsonl") == "y"
