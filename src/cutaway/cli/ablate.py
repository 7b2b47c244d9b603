"""`cutaway ablate`: what a behavior loses when a part no longer says anything about the input."""

from typing import Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson
from cutaway.cli.deliver import Html, Out, check_targets, deliver
from cutaway.cli.patch import Cell, ModelName, Sites, Together, View, Window, parts, where, words
from cutaway.cli.tasks import Pairs, Seed, TaskName, code, resolve

USUAL: dict[str, Any] = {
    "positions": None,
    "window": None,
    "together": False,
    "on": "clean",
    "draws": None,
    "scale": None,
    "seed": 0,
}


def ablate(
    task: TaskName,
    model: ModelName,
    sites: Sites = "z.*.h*,mlp_out.*",
    value: Annotated[
        str,
        typer.Option(
            "--value",
            metavar="VALUE",
            help="What replaces it: zero, mean, mean_by_position, mean_by_cluster, resample (another pair's), optimal "
            "(the learned constant that harms least), noise (Gaussian noise added).",
        ),
    ] = "mean",
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions",
            metavar="ROLES",
            help="A cell for each role or index; 'each': every token of the prompt. [default: all tokens at once]",
        ),
    ] = None,
    window: Window = None,
    together: Together = False,
    on: Annotated[str, typer.Option("--on", metavar="clean|corrupt", help="The side that is edited.")] = "clean",
    draws: Annotated[
        int | None,
        typer.Option("--draws", min=1, metavar="N", help="Donors, or noises, for each pair. [default: 1, for noise 5]"),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="Size of the noise, in standard deviations of the site. [default: 1]"),
    ] = None,
    cell: Cell = None,
    n: Pairs = None,
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Ablate parts of MODEL on TASK, and measure what the behavior loses."""
    import cutaway

    check_targets(out, html)
    wanted = parts(sites)
    options: dict[str, Any] = {
        "value": value,
        "positions": where(positions),
        "window": window,
        "together": together,
        "on": on,
        "draws": draws,
        "scale": scale,
        "seed": seed,
    }
    console.python(
        f"import cutaway\n\nmodel = cutaway.load({model!r})\n{code(task, n, seed)}\n"
        f"effects = cutaway.patching.ablate(model, task, {wanted!r}{words(options, USUAL)})"
    )
    loaded = cutaway.load(model)
    found = resolve(task, loaded, n=n, seed=seed)
    with console.progress() as progress:
        result = cutaway.patching.ablate(
            loaded, found, wanted, progress=lambda done, total: progress(done, total, "ablation"), **options
        )
    facts = {"model": loaded.name, "task": found.name, "metric": result.metric, "value": value, "pairs": len(found)}
    deliver(
        View(result, cell),
        title=f"Ablation: {found.name} in {loaded.name}",
        out=out,
        html=html,
        as_json=as_json,
        facts=facts,
    )
