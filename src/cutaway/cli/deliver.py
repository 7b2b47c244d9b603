"""What a command does with a result: save it, write its page, and print it, as a picture and a table or as JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import typer

from cutaway.cli import console
from cutaway.errors import UsageError
from cutaway.figures import Figure

Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="Save the result, to be loaded again in Python.")
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write its figures to one offline HTML file.")
]

MOST_ROWS = 40
"""Rows of a table in the terminal."""


@runtime_checkable
class Result(Protocol):
    """What every method returns."""

    def save(self, path: str | Path) -> str:
        """Write one file; its SHA-256."""
        ...

    def table(self) -> list[dict[str, Any]]:
        """One record a row."""
        ...

    def figures(self) -> tuple[Figure, ...]:
        """What there is to see."""
        ...


def deliver(
    result: Result, *, title: str, out: Path | None, html: Path | None, as_json: bool, facts: Mapping[str, Any] = {}
) -> None:
    """Save, write and print a result.

    Args:
        facts: what belongs to the whole result; part of the JSON document, printed as lines above the table.
    """
    from cutaway import viz

    figures = result.figures()  # what cannot be shown is refused before anything is written
    if html is not None and not figures:
        raise UsageError("--html: this result has no figures; leave it out", path=str(html))
    sha256 = result.save(out) if out is not None else None
    if html is not None:
        viz.write(html, title, figures)
    if as_json:
        saved = {name: str(path) for name, path in (("out", out), ("html", html)) if path is not None}
        digests = {} if sha256 is None else {"sha256": sha256}
        console.emit({"title": title, **facts, **saved, **digests, "rows": result.table()})
        return
    for figure in figures:
        console.draw(viz.terminal(figure))
    for name, value in facts.items():
        console.show(f"{name.replace('_', ' ')}: {console.short(value)}")
    rows = result.table()
    if rows:
        shown = rows[:MOST_ROWS]
        console.table(list(rows[0]), [[console.short(cell) for cell in row.values()] for row in shown])
        if len(rows) > len(shown):
            console.say(f"{len(shown)} of {len(rows)} rows; all of them: --json, --out or --html")
    for what, path in (("Saved", out), ("Page", html)):
        if path is not None:
            console.show(f"{what}: {path}")


def check_targets(out: Path | None, html: Path | None) -> None:
    """Refuse, before anything is computed, a target that cannot be written."""
    for option, path in (("--out", out), ("--html", html)):
        if path is None:
            continue
        if path.is_dir():
            raise UsageError(f"{option} {path}: this is a folder; give a file in it", path=str(path))
        if not path.resolve().parent.is_dir():
            raise UsageError(f"{option} {path}: the folder {path.resolve().parent} does not exist; make it first")
