"""`cutaway patch`: every part in turn takes its value from the other side of the pair."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson
from cutaway.cli.deliver import Html, Out, check_targets, deliver
from cutaway.cli.tasks import Pairs, Seed, TaskName, code, resolve
from cutaway.errors import UsageError
from cutaway.figures import Figure

ModelName = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="An embedded model, a folder, or a hub id.")
]
Sites = Annotated[
    str,
    typer.Option(
        "--sites",
        metavar="SITES",
        help="What is edited, with commas between: resid_post.*, z.*.h*, mlp_out.2:5, pattern.1.h0@end. A plus makes "
        "one cell of several: z.0.h1+z.1.h2.",
    ),
]
Window = Annotated[
    int | None, typer.Option("--window", min=1, metavar="LAYERS", help="Edit this many consecutive layers as one cell.")
]
Together = Annotated[bool, typer.Option("--together", help="Edit all sites at once, as one cell.")]
Cell = Annotated[
    str | None, typer.Option("--cell", metavar="CELL", help="Show one cell example by example, by its label.")
]


def patch(
    task: TaskName,
    model: ModelName,
    sites: Sites = "resid_post.*",
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions",
            metavar="ROLES",
            help="A cell for each role or index; 'each': every token of the prompt; 'all': all tokens at once. "
            "[default: the task's roles]",
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            metavar="denoise|noise",
            help="denoise puts clean values into the corrupt run, noise corrupt values into the clean run.",
        ),
    ] = "denoise",
    window: Window = None,
    together: Together = False,
    cell: Cell = None,
    n: Pairs = None,
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Patch parts of MODEL between the sides of TASK: what brings the answer back, or what it needs."""
    import cutaway

    check_targets(out, html)
    wanted, places = parts(sites), where(positions)
    options: dict[str, Any] = {"mode": mode, "window": window, "together": together}
    chosen = words({"positions": places, **options}, {"window": None, "together": False, "positions": None})
    if positions is None:
        chosen = f", positions=task.roles{chosen}"
    console.python(
        f"import cutaway\n\nmodel = cutaway.load({model!r})\n{code(task, n, seed)}\n"
        f"effects = cutaway.patching.sweep(model, task, {wanted!r}{chosen})"
    )
    loaded = cutaway.load(model)
    found = resolve(task, loaded, n=n, seed=seed)
    with console.progress() as progress:
        result = cutaway.patching.sweep(
            loaded,
            found,
            wanted,
            positions=found.roles if positions is None else places,
            progress=lambda done, total: progress(done, total, "patching"),
            **options,
        )
    facts = {"model": loaded.name, "task": found.name, "metric": result.metric, "method": mode, "pairs": len(found)}
    deliver(
        View(result, cell),
        title=f"Patching: {found.name} in {loaded.name}",
        out=out,
        html=html,
        as_json=as_json,
        facts=facts,
    )


@dataclass(frozen=True)
class View:
    """A result with one part of it chosen to be drawn."""

    result: Any
    part: str | None
    """A cell or an example; None: the whole."""

    def save(self, path: str | Path) -> str:
        """Write the whole result."""
        return self.result.save(path)

    def table(self) -> list[dict[str, Any]]:
        """The whole table."""
        return self.result.table()

    def figures(self) -> tuple[Figure, ...]:
        """The figures of the part."""
        draw: Callable[[str | None], tuple[Figure, ...]] = self.result.figures
        return draw(self.part)


def parts(text: str) -> list[str | list[str]]:
    """The cells of `--sites`: commas separate them (not the numbers of one, `z.0.h1,2`), a plus joins one cell."""
    found: list[str | list[str]] = []
    for part in re.split(r",\s*(?=[A-Za-z])", text):
        members = [member.strip() for member in part.split("+")]
        if not all(members):
            raise UsageError(f"--sites {text!r}: one of them is empty; write them as in z.0.h1,mlp_out.*", sites=text)
        found.append(members[0] if len(members) == 1 else members)
    return found


def where(text: str | None) -> str | list[str | int] | None:
    """The positions of `--positions`; None for all at once."""
    if text is None or text == "all":
        return None
    if text == "each":
        return text
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise UsageError(f"--positions {text!r}: one of them is empty; write them as in subject,end", positions=text)
    return [int(name) if re.fullmatch(r"-?\d+", name) else name for name in names]


def words(options: dict[str, Any], usual: dict[str, Any]) -> str:
    """Keyword arguments as Python writes them, each after a comma; those with their usual value left out."""
    return "".join(
        f", {name}={value!r}" for name, value in options.items() if name not in usual or value != usual[name]
    )
