"""Token rows that lenses are fitted on: given as they are, or cut from text files as they are read.

One row in ten is held out, so that a fit is measured on rows that it has not seen. Files are read piece by piece;
memory does not grow with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from cutaway.artifacts import digest, file_digest
from cutaway.errors import DataError, UsageError
from cutaway.models import Model, Tokens

Source: TypeAlias = Tokens | str | Path | Sequence[str | Path]
"""Token rows, or the paths of text files."""
EVERY = 10
"""One row in so many is held out."""
PIECE = 1 << 18
"""Characters that are read of a file at a time."""


@dataclass(frozen=True)
class Rows:
    """Rows to fit on and rows to measure on; the former may be gone through again and again."""

    model: Model
    source: Tokens | tuple[Path, ...]
    d_row: int
    """Tokens of a row that is cut from a file."""
    held_out: Tokens
    """Rows that are only measured on."""
    digest: str

    def batches(self, n_tokens: int, generator: torch.Generator) -> Iterator[Tokens]:
        """Rows without those held out, about `n_tokens` at a time, without end; in a new order each time round where
        they were given as rows, in the order of the files else."""
        while True:
            yield from self._once(n_tokens, generator)

    def _once(self, n_tokens: int, generator: torch.Generator) -> Iterator[Tokens]:
        if isinstance(self.source, Tokens):
            kept = [i for i in range(len(self.source)) if i % EVERY != EVERY - 1]
            order = [kept[i] for i in torch.randperm(len(kept), generator=generator).tolist()]
            step = max(1, n_tokens // self.source.width)
            for first in range(0, len(order), step):
                yield self.source.take(order[first : first + step])
            return
        step, rows = max(1, n_tokens // self.d_row), []
        for i, row in enumerate(_cut(self.model, self.source, self.d_row)):
            rows += [row] if i % EVERY != EVERY - 1 else []
            if len(rows) == step:
                yield self.model.encode(rows)
                rows = []
        if rows:
            yield self.model.encode(rows)


def open_rows(model: Model, source: Source, *, d_row: int, n_held_out: int) -> Rows:
    """The rows of a source, with those held out read. Raises DataError for fewer than ten rows.

    Args:
        d_row: tokens of a row cut from a file.
        n_held_out: at most so many rows are held out for measuring.
    """
    if d_row < 2:
        raise UsageError(f"d_row={d_row}: rows need at least 2 tokens")
    if n_held_out < 1:
        raise UsageError(f"n_held_out={n_held_out}: at least 1")
    if isinstance(source, Tokens):
        tokens = model.admit(source)
        _require(len(tokens))
        kept = list(range(EVERY - 1, len(tokens), EVERY))[:n_held_out]
        return Rows(model, tokens, d_row, tokens.take(kept), tokens.digest)
    paths = tuple(map(Path, [source] if isinstance(source, str | Path) else source))
    for path in paths:
        _require_file(path)
    length = model.body.length
    if length is not None and d_row > length:
        raise UsageError(f"d_row={d_row}: this model's context is {length} tokens; give shorter rows")
    held, n = [], 0
    for row in _cut(model, paths, d_row):
        n += 1
        if n % EVERY == 0:
            held.append(row)
        if len(held) == n_held_out:
            break
    _require(n)
    named = digest([[file_digest(path) for path in paths], d_row])
    return Rows(model, paths, d_row, model.encode(held), named)


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a text file that are not empty. Raises DataError for what is no text file and where there are
    none."""
    _require_file(Path(path))
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise _no_text(Path(path), error) from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise DataError(f"{path}: it holds no line of text; give a text file with one prompt a line", path=str(path))
    return found


def _require_file(path: Path) -> None:
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}; give text files, or rows that model.encode made", path=str(path))


def _no_text(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})", path=str(path))


def _require(n: int) -> None:
    if n < EVERY:
        raise DataError(
            f"{n} rows: one in {EVERY} is held out for measuring, so at least {EVERY} are needed; give more text, or "
            "shorter rows",
            found=n,
        )


def _cut(model: Model, paths: Sequence[Path], d_row: int) -> Iterator[list[int]]:
    """Rows of exactly `d_row` tokens, one text after another; each begins as the tokenizer begins a text."""
    first, bare = model.text_ids("a"), model.text_ids("a", bos=False)
    start = first[: len(first) - len(bare)] if first[len(first) - len(bare) :] == bare else []
    left: list[int] = []
    for path in paths:
        for piece in _pieces(path):
            left += model.text_ids(piece, bos=False) if piece.strip() else []
            while len(left) >= d_row - len(start):
                yield [*start, *left[: d_row - len(start)]]
                left = left[d_row - len(start) :]


def _pieces(path: Path) -> Iterator[str]:
    """A file's text, piece by piece, none of which ends inside a line."""
    with path.open(encoding="utf-8") as file:
        try:
            while piece := file.read(PIECE):
                yield piece + file.readline()
        except UnicodeDecodeError as error:
            raise _no_text(path, error) from None
