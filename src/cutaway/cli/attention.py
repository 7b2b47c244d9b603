"""`cutaway attention`: where the heads of a model look."""

from typing import Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson
from cutaway.cli.deliver import Html, Out, check_targets, deliver
from cutaway.cli.lens import Asked, ModelName, asked, step
from cutaway.cli.tasks import Pairs, Seed, code


def attention(
    prompt: Asked,
    model: ModelName,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="SITE", help="Show the pattern of this head, as z.1.h3; may be repeated."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="With --head: rows of a task to show.")] = 1,
    n: Pairs = None,
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Score the heads of MODEL on PROMPT or TASK (previous, duplicate, induction), or show the patterns of some."""
    import cutaway

    check_targets(out, html)
    loaded = cutaway.load(model)
    found = asked(prompt, loaded, n, seed)
    given = "" if isinstance(found, str) else f"{code(prompt, n, seed)}\n"
    what = f"model.encode({found!r})" if isinstance(found, str) else "task"
    inputs = loaded.encode(found) if isinstance(found, str) else found
    shown = [0] if isinstance(found, str) else list(range(min(rows, len(found))))
    call = (
        f"head_scores(model, {what})"
        if head is None
        else f"attention_patterns(model, {what}, {head!r}, rows={shown!r})"
    )
    console.python(f"import cutaway\n\nmodel = cutaway.load({model!r})\n{given}result = cutaway.lenses.{call}")
    result: Any
    if head is None:
        with console.progress() as progress:
            result = cutaway.lenses.head_scores(loaded, inputs, progress=step(progress, "attention"))
    else:
        result = cutaway.lenses.attention_patterns(loaded, inputs, head, rows=shown)
    deliver(result, title=f"Attention: {prompt}", out=out, html=html, as_json=as_json)
