"""`cutaway study`: the whole loop on one behavior of one model, from the behavior check to the report."""

import shlex
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
    candidates: Annotated[
        int, typer.Option("--n-candidates", min=1, help="Components that get a claim of their own.")
    ] = 3,
    alpha: Annotated[float, typer.Option("--alpha", help="Level of each test.")] = 0.05,
    minimum_gap: Annotated[
        float | None,
        typer.Option("--minimum-gap", help="Smallest gap that counts as behavior. [default: 0.5 nat]"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="DTYPE", help="Load the weights as float32, bfloat16 or float16.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="Such as cpu or cuda.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew; else what an earlier run of the same study finished is kept.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the parts of MODEL that cause TASK, test claims about them, and write a report."""
    import cutaway

    folder = out or Path(f"{Path(task).stem}-{Path(model).name}")
    options = {"seed": seed, "n_candidates": candidates, "alpha": alpha, "minimum_gap": minimum_gap, "force": force}
    usual = {"seed": 0, "n_candidates": 3, "alpha": 0.05, "minimum_gap": None, "force": False}
    chosen = _words({name: value for name, value in options.items() if value != usual[name]})
    cast = _words({name: value for name, value in (("dtype", dtype), ("device", device)) if value is not None})
    console.python(
        f"import cutaway\n\nmodel = cutaway.load({model!r}{cast})\n{code(task, n, seed)}\n"
        f"result = cutaway.study(model, task, out={str(folder)!r}{chosen})"
    )
    loaded = cutaway.load(model, dtype=dtype, device=device)
    found = resolve(task, loaded, n=n, seed=seed)
    with console.progress() as progress:
        result = cutaway.study(loaded, found, out=folder, progress=progress, **options)
    if as_json:
        console.emit(
            {"report": str(result.folder), "html": str(result.folder / "report.html"), "verdicts": result.verdicts}
        )
    else:
        console.table(("verdict", "claim"), [(verdict, claim) for claim, verdict in result.verdicts.items()])
        console.show(f"\nReport: {result.folder / 'report.html'}")
        console.say(f"Check it with: cutaway verify {shlex.quote(str(result.folder))}")
    if not result.supported:
        raise typer.Exit(3)


def _words(options: dict[str, object]) -> str:
    """Keyword arguments as Python writes them, each after a comma."""
    return "".join(f", {name}={value!r}" for name, value in options.items())
