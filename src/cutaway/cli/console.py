"""The terminal: results go to stdout, everything said about them to stderr.

With `--json` stdout holds one JSON document and nothing else. Colours and the progress bar appear only on a terminal
and never with NO_COLOR set.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import typer
from rich import progress as bars
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cutaway.artifacts import finite, plain

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called by long steps with (done, total, what is being done)."""


def say(text: str, style: str = "") -> None:
    """One line about what happens, on stderr."""
    _stderr().print(Text(text, style=style), soft_wrap=True)


def python(code: str) -> None:
    """The Python that does what the command did, on stderr, so that it can be copied."""
    say(f"\nThe same in Python:\n\n{code}\n", style="dim")


def emit(value: Any) -> None:
    """One JSON document on stdout; a number that JSON has no word for is null."""
    typer.echo(json.dumps(finite(plain(value)), indent=2, ensure_ascii=False, allow_nan=False))


def show(text: str) -> None:
    """A line of the result, on stdout."""
    _stdout().print(Text(text), soft_wrap=True)


def draw(picture: RenderableType) -> None:
    """A figure of the result, on stdout."""
    _stdout().print(picture)


def short(value: object) -> str:
    """A cell of a table for people: numbers with about four digits, lists joined, nothing for None and NaN."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(short, value))
    return "" if value is None else str(value)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None) -> None:
    """A table of the result, on stdout."""
    grid = Table(*columns, title=title, box=None, title_justify="left", pad_edge=False)
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    _stdout().print(grid)


@contextmanager
def progress() -> Iterator[Progress]:
    """A callback that draws a bar a step with the time left; where stderr is no terminal, a line a finished step."""
    console = _stderr()
    if not console.is_terminal:
        yield _line_per_step()
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    steps: dict[str, bars.TaskID] = {}
    with bars.Progress(*columns, console=console) as display:

        def advance(done: int, total: int, label: str) -> None:
            if label not in steps:
                steps[label] = display.add_task(label, total=total)
            display.update(steps[label], completed=done, total=total)

        yield advance


def _line_per_step() -> Progress:
    started: dict[str, float] = {}
    finished: set[str] = set()

    def advance(done: int, total: int, label: str) -> None:
        began = started.setdefault(label, time.monotonic())
        if done >= total and label not in finished:
            finished.add(label)
            say(f"{label}: {total} of {total} in {time.monotonic() - began:.1f} s")

    return advance


def _stderr() -> Console:
    return Console(stderr=True, highlight=False)


def _stdout() -> Console:
    console = Console(highlight=False)
    # a pipe has no width: what another program reads is not folded
    return console if console.is_terminal else Console(highlight=False, width=10_000)
