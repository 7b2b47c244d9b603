"""`cutaway verify`: whether a report is what was written, and whether its verdicts follow from its numbers."""

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson

if TYPE_CHECKING:
    from cutaway.loop import Repeated

SHOWN = 20
"""Moved values that are listed; `--json` has them all."""


def verify(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="The folder of a report.", exists=True, file_okay=False)
    ],
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Run the experiments again too, and say which numbers moved.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="For --rerun: where the model is now.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every hash and every verdict of REPORT, offline."""
    import cutaway

    console.python(
        f"import cutaway\n\ncutaway.report.verify({str(report)!r}).table()"
        + (f"\ncutaway.repeat({str(report)!r}).moved" if rerun else "")
    )
    result = cutaway.report.verify(report)
    # what does not hold is not worth running again
    again = _again(report, model) if rerun and result.holds else None
    if as_json:
        repeated = {"rerun": _as_data(again)} if again else {}
        console.emit({"holds": result.holds, "findings": result.table(), **repeated})
    else:
        rows = [("ok" if one.holds else "BROKEN", one.name, one.detail) for one in result.findings]
        console.table(("", "part", "what was found"), rows)
        if again:
            _show(again)
        n_broken = len(result.broken)
        console.show("\nThe report holds." if result.holds else f"\n{n_broken} of {len(rows)} parts do not hold.")
    if not result.holds or (again and not again.verdicts_same):
        raise typer.Exit(1)


def _again(report: Path, model: str | None) -> "Repeated":
    import cutaway

    given = None if model is None else cutaway.load(model)
    with console.progress() as progress:
        return cutaway.repeat(report, given, progress=progress)


def _as_data(again: "Repeated") -> dict[str, Any]:
    moved = {place: {"recorded": old, "now": new} for place, (old, new) in again.moved.items()}
    return {"verdicts_same": again.verdicts_same, "n_compared": again.n_compared, "moved": moved}


def _show(again: "Repeated") -> None:
    """What a second run found: the verdicts, and the values that moved."""
    verdicts = "every verdict is the same" if again.verdicts_same else "VERDICTS CHANGED"
    console.show(f"\nRun again: {verdicts}; {len(again.moved)} of {again.n_compared} values moved.")
    if again.moved:
        largest = again.largest
        console.show("A text or a shape differs." if largest == inf else f"Largest difference: {largest:.2g}")
        rows = [(place, old, new) for place, (old, new) in list(again.moved.items())[:SHOWN]]
        console.table(("where in report.json", "recorded", "now"), rows)
