"""`cutaway trace`: where a fact is read out. The subject is noised, and one state at a time is put back."""

from typing import Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson
from cutaway.cli.deliver import Html, Out, check_targets, deliver
from cutaway.cli.patch import ModelName, View, words
from cutaway.cli.tasks import Pairs, Seed, TaskName, code, resolve
from cutaway.errors import UnknownName, UsageError, did_you_mean

USUAL: dict[str, Any] = {
    "role": "subject",
    "noise": 3.0,
    "samples": 10,
    "kinds": None,
    "window": None,
    "severed": None,
    "metric": "prob",
    "null": True,
    "seed": 0,
}


def trace(
    task: TaskName,
    model: ModelName,
    role: Annotated[
        str, typer.Option("--role", metavar="ROLE", help="The words that are noised: all tokens of this role.")
    ] = "subject",
    noise: Annotated[
        float, typer.Option("--noise", help="Size of the noise, in standard deviations of the subjects' embeddings.")
    ] = 3.0,
    samples: Annotated[int, typer.Option("--samples", min=1, metavar="N", help="Noises for each pair.")] = 10,
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kinds",
            metavar="KINDS",
            help="What is put back: resid, mlp, attn, with commas between. [default: all; with --severed resid]",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            min=1,
            metavar="LAYERS",
            help="Layers whose MLPs or attention are put back together. [default: a quarter of them, at most 10]",
        ),
    ] = None,
    severed: Annotated[
        str | None,
        typer.Option(
            "--severed", metavar="mlp|attn", help="What keeps its noised values behind the state that is put back."
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option("--metric", metavar="METRIC", help="What is measured, such as prob or logit_diff.")
    ] = "prob",
    null: Annotated[
        bool, typer.Option("--null/--no-null", help="Restore from another noised run too, to show what chance gives.")
    ] = True,
    example: Annotated[
        str | None, typer.Option("--example", metavar="ID", help="Show one pair, token by token.")
    ] = None,
    n: Pairs = None,
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Trace where MODEL carries what TASK asks about: noise the subject, put one clean state back at a time."""
    import cutaway

    check_targets(out, html)
    if noise == 0:
        raise UsageError("--noise 0 noises nothing, so there is nothing to restore; give a size such as 3")
    options: dict[str, Any] = {
        "role": role,
        "noise": noise,
        "samples": samples,
        "kinds": None if kinds is None else [kind.strip() for kind in kinds.split(",")],
        "window": window,
        "severed": severed,
        "metric": metric,
        "null": null,
        "seed": seed,
    }
    console.python(
        f"import cutaway\n\nmodel = cutaway.load({model!r})\n{code(task, n, seed)}\n"
        f"found = cutaway.patching.trace(model, task{words(options, USUAL)})"
    )
    loaded = cutaway.load(model)
    found = resolve(task, loaded, n=n, seed=seed)
    if example is not None and example not in {pair.id for pair in found.pairs}:
        known = [pair.id for pair in found.pairs]
        raise UnknownName(f"--example {example}: no such pair in the task.{did_you_mean(example, known)}", name=example)
    with console.progress() as progress:
        result = cutaway.patching.trace(
            loaded, found, progress=lambda done, total: progress(done, total, "tracing"), **options
        )
    facts = {"model": loaded.name, "task": found.name, "metric": result.metric, "pairs": len(found)}
    deliver(
        View(result, example),
        title=f"Causal tracing: {found.name} in {loaded.name}",
        out=out,
        html=html,
        as_json=as_json,
        facts=facts | result.summary(),
    )
