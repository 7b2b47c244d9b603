"""Rows of a data file: CSV, tab-separated, JSON lines or JSON, plain or gzipped, each with the line it stands on.

Nothing is guessed: a row with a cell too many, a key that stands twice or a damaged archive is an error that names the
line, because a row that went lost on the way would still leave numbers.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import BadTaskFile, did_you_mean

GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Row:
    """One row, and where it stands."""

    path: Path
    line: int
    """Line on which the row begins, from 1."""
    values: Mapping[str, Any]
    """Column (or key) -> cell. Cells of CSV are text."""
    inside: str = ""
    """Where on the line, for rows inside one JSON document: 'samples[3]'."""

    def cell(self, column: str) -> Any:
        """What stands in a column. Raises BadTaskFile where there is no such column."""
        if column not in self.values:
            raise self.wrong(f"no column {column!r}.{did_you_mean(column, map(str, self.values))}")
        return self.values[column]

    def text(self, column: str) -> str:
        """Text that is not empty. Raises BadTaskFile."""
        found = self.cell(column)
        if not isinstance(found, str) or not found.strip():
            raise self.wrong(f"column {column!r} is {found!r}; text was expected; fill it in, or leave the row out")
        return found

    def number(self, column: str) -> int:
        """A whole number from 0, written as such. Raises BadTaskFile."""
        found = self.cell(column)
        if isinstance(found, bool) or not str(found).strip().isdecimal():
            raise self.wrong(f"column {column!r} is {found!r}; a whole number was expected; correct the cell")
        return int(found)

    def one_of(self, column: str, known: Mapping[str, int]) -> int:
        """The number that a word stands for, whatever its case. Raises BadTaskFile for another word."""
        found = str(self.cell(column)).strip().lower()
        if found not in known:
            raise self.wrong(
                f"column {column!r} is {self.cell(column)!r}; {' or '.join(known)} was expected; correct the cell"
            )
        return known[found]

    def below(self, values: Any, inside: str) -> "Row":
        """A row that stands inside this one. Raises BadTaskFile for what is no object."""
        if not isinstance(values, dict):
            raise self.wrong(f"{inside} is {_short(values)}; an object was expected; see docs/formats/importers.md")
        return Row(self.path, self.line, values, inside)

    def wrong(self, reason: str) -> BadTaskFile:
        """The error for this row."""
        return broken(self.path, self.line, f"{self.inside}: {reason}" if self.inside else reason)


def broken(path: Path, line: int | None, reason: str) -> BadTaskFile:
    """The error for one line (None: the file as a whole)."""
    where = path if line is None else f"{path}, line {line}"
    return BadTaskFile(f"{where}: {reason}", path=str(path), line=line, reason=reason)


def read_text(path: Path) -> str:
    """The text of a file, gzipped or not. Raises BadTaskFile."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise broken(path, None, f"cannot be read ({error.strerror}); give the path of a task file") from None
    if data.startswith(GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise broken(path, None, f"is a damaged gzip archive ({error}); fetch or pack it again") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise broken(path, line, "is not UTF-8; save the file as UTF-8") from None


def read_rows(path: Path | str) -> list[Row]:
    """All rows of a file: by its name (.csv, .tsv, .jsonl, .json, each also with .gz), else by how it begins.

    A JSON document is a list of objects (a row each), a list of texts (rows with the one column `text`), or one object
    (one row). Blank lines are skipped. Raises BadTaskFile, with the line, the column and the remedy.

    >>> read_rows("no-such.csv")
    Traceback (most recent call last):
    cutaway.errors.BadTaskFile: no-such.csv: cannot be read (No such file or directory); give the path of a task file
    """
    path = Path(path)
    text = read_text(path).removeprefix("\ufeff")
    rows = list(_READERS[_kind(path, text)](path, text))
    if not rows:
        raise broken(path, None, "holds no rows; a task needs at least one")
    return rows


def stem(path: Path | str) -> str:
    """The name of a file without its endings.

    >>> stem("data/cities.csv.gz")
    'cities'
    """
    return Path(Path(path).name.removesuffix(".gz")).stem


def is_own(path: Path | str) -> bool:
    """Whether a file begins with the header of a cutaway task file."""
    first = read_text(Path(path)).lstrip().split("\n", 1)[0]
    return first.startswith("{") and re.match(r'\{\s*"format"\s*:\s*"cutaway\.task"', first) is not None


def unrepeated(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=)`: an object. Raises ValueError for a key that stands twice."""
    found = dict(items)
    if len(found) != len(items):
        repeated = next(key for key, _ in items if [k for k, _ in items].count(key) > 1)
        raise ValueError(f"key {repeated!r} stands twice in one object; keep one")
    return found


def _kind(path: Path, text: str) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix in _READERS:
        return suffix
    first = text.lstrip()[:1]
    if first == "{" and "\n" in text.strip():
        return ".jsonl"
    return ".json" if first in ("{", "[") else ".csv"


def _separated(path: Path, text: str, delimiter: str = ",") -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if cells and not header:
                header = [name.strip() for name in cells]
                if len(set(header)) != len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    raise broken(path, line, f"names column {twice!r} twice; columns have names of their own")
            elif cells:
                if len(cells) != len(header):
                    raise broken(
                        path,
                        line,
                        f"has {len(cells)} cells, and the header names {len(header)} columns ({', '.join(header)}); "
                        "quote a cell that holds the separator, or complete the row",
                    )
                yield Row(path, line, dict(zip(header, cells)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise broken(path, reader.line_num, f"is not CSV ({error}); close every quoted cell") from None


def _tabbed(path: Path, text: str) -> Iterator[Row]:
    return _separated(path, text, "\t")


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _object(path, number, _decoded(path, line, number), "the line")


def _document(path: Path, text: str) -> Iterator[Row]:
    """Rows of one JSON document, each with the line on which it begins."""
    value = _decoded(path, text, 1)
    if not isinstance(value, list):
        yield _object(path, 1, value, "the file")
        return
    decoder = json.JSONDecoder(object_pairs_hook=unrepeated)
    place, line, seen = text.index("[") + 1, 1, 0
    for index in range(len(value)):
        while text[place] in " \t\r\n,":
            place += 1
        line += text.count("\n", seen, place)
        seen = place
        item, place = decoder.raw_decode(text, place)
        values = {"text": item} if isinstance(item, str) else item
        yield _object(path, line, values, f"item {index}", inside=f"[{index}]")


def _object(path: Path, line: int, value: Any, what: str, inside: str = "") -> Row:
    if not isinstance(value, dict):
        raise broken(path, line, f"{what} is {_short(value)}; an object was expected; see docs/formats/importers.md")
    return Row(path, line, value, inside)


def _decoded(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unrepeated)
    except json.JSONDecodeError as error:
        raise broken(
            path,
            line + error.lineno - 1,
            f"is not JSON ({error.msg} at column {error.colno}); correct it, or fetch the file again",
        ) from None
    except ValueError as error:
        raise broken(path, line, str(error)) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_READERS = {".csv": _separated, ".tsv": _tabbed, ".jsonl": _lines, ".ndjson": _lines, ".json": _document}
