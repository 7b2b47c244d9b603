"""`cutaway path`: what travels from senders to receivers, along chosen paths or along every single edge."""

import re
from typing import Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson
from cutaway.cli.deliver import Html, Out, check_targets, deliver
from cutaway.cli.tasks import Pairs, Seed, TaskName, code, resolve
from cutaway.errors import UsageError


def path(
    task: TaskName,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="An embedded model, a folder, or a hub id.")
    ],
    senders: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NODES",
            help="Senders, with commas between: embed, z.0.h1, z.0.h*, mlp_out.0. [default: with --edges or --direct "
            "all of them]",
        ),
    ] = None,
    receivers: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="NODES",
            help="Receivers: q.2.h3, k.2 (all key/value heads), v.1.h0, z.1.h2, mlp_in.1, logits. [default: with "
            "--edges all of them]",
        ),
    ] = None,
    through: Annotated[
        list[str] | None,
        typer.Option("--through", metavar="NODES", help="Nodes between, in order; once for each stage of the path."),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            "--freeze",
            metavar="heads|heads+mlps",
            help="What is held between one stage and the next: 'heads' lets MLPs answer, 'heads+mlps' leaves the "
            "straight way alone. Needed for paths.",
        ),
    ] = None,
    edges: Annotated[bool, typer.Option("--edges", help="A map of every edge from the senders to the receivers.")] = (
        False
    ),
    direct: Annotated[
        bool, typer.Option("--direct", help="Each sender's direct effect on the logits beside its total effect.")
    ] = False,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            metavar="MODE",
            help="denoise: clean into the corrupt run; noise: corrupt into the clean run; zero, mean: the sender says "
            "nothing, or its mean, on the clean run.",
        ),
    ] = "denoise",
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions",
            metavar="ROLES",
            help="With --edges: a cell for each role or index, or 'each'; else write "
            "positions into the nodes, as in k.1.h0@subject.",
        ),
    ] = None,
    n: Pairs = None,
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Patch what travels from one component of MODEL to another on TASK: along paths, or edge by edge."""
    import cutaway
    from cutaway.patching.edges import direct as find_direct
    from cutaway.patching.edges import edges as find_edges
    from cutaway.patching.paths import paths as find_paths

    kind = _kind(edges, direct)
    _require(kind, senders, receivers, through, freeze, positions)
    check_targets(out, html)
    options: dict[str, Any] = {"mode": mode}
    if kind == "paths":
        options |= {"frozen": freeze, "through": [nodes(stage) for stage in through or ()]}
    if positions is not None:
        options["positions"] = positions if positions == "each" else _places(positions)
    wanted = [None if text is None else nodes(text) for text in (senders, receivers)]
    shown = wanted[:1] if kind == "direct" else wanted
    console.python(
        f"import cutaway\n\nmodel = cutaway.load({model!r})\n{code(task, n, seed)}\n"
        f"effects = cutaway.patching.{kind}(model, task, {', '.join(map(repr, shown))}"
        f"{''.join(f', {name}={value!r}' for name, value in options.items())})"
    )
    loaded = cutaway.load(model)
    found = resolve(task, loaded, n=n, seed=seed)
    with console.progress() as progress:
        options["progress"] = lambda done, total: progress(done, total, kind)
        if kind == "edges":
            result = find_edges(loaded, found, *wanted, **options)
        elif kind == "direct":
            result = find_direct(loaded, found, wanted[0], **options)
        else:
            assert wanted[0] is not None
            assert wanted[1] is not None
            result = find_paths(loaded, found, wanted[0], wanted[1], **options)
    facts = {"model": loaded.name, "task": found.name, "metric": result.metric, "method": result.method}
    deliver(
        result,
        title=f"{kind.capitalize()}: {found.name} in {loaded.name}",
        out=out,
        html=html,
        as_json=as_json,
        facts=facts,
    )


def nodes(text: str) -> list[str]:
    """The nodes of an option: commas separate them, but not the numbers of one node (`z.0.h1,2`)."""
    found = [part.strip() for part in re.split(r",\s*(?=[A-Za-z])", text)]
    if not all(found):
        raise UsageError(f"nodes {text!r}: one of them is empty; write them as in z.0.h1,mlp_out.0", nodes=text)
    return found


def _places(text: str) -> list[str | int]:
    """Roles and indices."""
    return [int(part) if re.fullmatch(r"-?\d+", part) else part for part in (p.strip() for p in text.split(","))]


def _kind(edges: bool, direct: bool) -> str:
    if edges and direct:
        raise UsageError("--edges and --direct are two questions; ask one of them at a time")
    return "edges" if edges else "direct" if direct else "paths"


def _require(
    kind: str,
    senders: str | None,
    receivers: str | None,
    through: list[str] | None,
    freeze: str | None,
    positions: str | None,
) -> None:
    """Refuse what an option does not go with, and the lack of what a path needs."""
    if kind == "paths":
        for option, value in (("--from", senders), ("--to", receivers)):
            if value is None:
                raise UsageError(f"{option} is missing: a path needs its senders and receivers; or ask for --edges")
        if freeze is None:
            raise UsageError(
                "--freeze is missing: 'heads' also counts ways through MLPs, 'heads+mlps' the straight way alone; "
                "say which is meant"
            )
        if positions is not None:
            raise UsageError("--positions goes with --edges; in a path each node has its own, as in k.1.h0@subject")
        return
    given = {"--freeze": freeze, "--through": through}
    given |= {"--to": receivers, "--positions": positions} if kind == "direct" else {}
    for option, value in given.items():
        if value is not None and value != []:
            raise UsageError(f"{option} does not go with --{kind}; leave one of them out")
