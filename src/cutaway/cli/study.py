"""`cutaway study`: the whole loop on one behavior of one model, from the behavior check to the report."""

from pathlib import Path
from typing import Annotated

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson
from cutaway.cli.tasks import Pairs, Seed, TaskName, code, resolve


def study(
    task: TaskName,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="An embedded model, a folder, or a hub id.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where the report goes. [default: TASK-MODEL]")
    ] = None,
    n: Pairs = None,
    seed: Seed = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew; else what an earlier run of the same study finished is kept.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the parts of MODEL that cause TASK, test claims about them, and write a report."""
    import cutaway

    folder = out or Path(f"{Path(task).stem}-{Path(model).name}")
    console.python(
        f"import cutaway\n\nmodel = cutaway.load({model!r})\n{code(task, n, seed)}\n"
        f"result = cutaway.study(model, task, out={str(folder)!r}, seed={seed}{', force=True' if force else ''})"
    )
    loaded = cutaway.load(model)
    found = resolve(task, loaded, n=n, seed=seed)
    with console.progress() as progress:
        result = cutaway.study(loaded, found, out=folder, seed=seed, force=force, progress=progress)
    if as_json:
        console.emit(
            {"report": str(result.folder), "html": str(result.folder / "report.html"), "verdicts": result.verdicts}
        )
    else:
        console.table(("verdict", "claim"), [(verdict, claim) for claim, verdict in result.verdicts.items()])
        console.show(f"\nReport: {result.folder / 'report.html'}")
        console.say(f"Check it with: cutaway verify {result.folder}")
    if not result.supported:
        raise typer.Exit(3)
