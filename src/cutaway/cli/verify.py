"""`cutaway verify`: whether a report is what was written, and whether its verdicts follow from its numbers."""

from pathlib import Path
from typing import Annotated

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson


def verify(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="The folder of a report.", exists=True, file_okay=False)
    ],
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Run the experiments again too, and say which numbers moved.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recompute every hash and every verdict of REPORT, offline."""
    from cutaway import report as reports

    console.python(f"import cutaway\n\ncutaway.report.verify({str(report)!r}).table()")
    result = reports.verify(report)
    if as_json:
        console.emit({"holds": result.holds, "findings": result.table()})
    else:
        rows = [("ok" if one.holds else "BROKEN", one.name, one.detail) for one in result.findings]
        console.table(("", "part", "what was found"), rows)
        n_broken = len(result.broken)
        console.show("\nThe report holds." if result.holds else f"\n{n_broken} of {len(rows)} parts do not hold.")
    if not result.holds:
        raise typer.Exit(1)
