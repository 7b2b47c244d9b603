"""`cutaway lens`: what the states of a model say in the vocabulary, and what its parts add to an answer."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson, Command
from cutaway.cli.deliver import Html, Out, check_targets, deliver
from cutaway.cli.tasks import FILES, Pairs, Seed, code, resolve
from cutaway.errors import BrokenEvidence, UsageError

if TYPE_CHECKING:
    from cutaway.lenses.states import Lens
    from cutaway.models import Model
    from cutaway.tasks import Task

app = typer.Typer(no_args_is_help=True, help="Lenses: what states say in the vocabulary, what parts add to an answer.")

ModelName = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="An embedded model, a folder, or a hub id.")
]
Asked = Annotated[str, typer.Argument(metavar="PROMPT|TASK", help="A prompt, a built-in task, or a task file.")]
Sites = Annotated[
    list[str] | None, typer.Option("--site", metavar="SITE", help="States to read, as resid_post.*; may be repeated.")
]
Position = Annotated[str, typer.Option("--position", metavar="ROLE|INDEX", help="Position that is read.")]
Target = Annotated[str | None, typer.Option("--target", metavar="TEXT", help="The prompt that is patched.")]


@app.command(cls=Command)
def read(
    prompt: Asked,
    model: ModelName,
    lens: Annotated[
        Path | None, typer.Option("--lens", metavar="FILE", help="A fitted lens. [default: the logit lens]")
    ] = None,
    site: Sites = None,
    position: Annotated[
        str | None,
        typer.Option("--position", metavar="ROLE|INDEX", help="Position of a task that is read. [default: end]"),
    ] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="TEXT", help="Token whose rank is followed, for a prompt.")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Top tokens to keep.")] = 5,
    n: Pairs = None,
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Read the states of MODEL in the vocabulary: over a whole PROMPT, or at one position of a TASK."""
    import cutaway

    check_targets(out, html)
    loaded = cutaway.load(model)
    found = asked(prompt, loaded, n, seed)
    fitted = None if lens is None else load_lens(lens, loaded)
    given = "" if lens is None else f"\nlens = {type(fitted).__name__}.load({str(lens)!r}, model)"
    more = "" if lens is None else ", lens=lens"
    with console.progress() as progress:
        if isinstance(found, str):
            if position is not None:
                raise UsageError("--position belongs to a task; a prompt is read at every position")
            call = f"cutaway.lenses.lens_grid(model, {found!r}, {site!r}{more}, answer={answer!r}, k={k})"
            _say(model, given, call)
            result: Any = cutaway.lenses.lens_grid(
                loaded, found, site, lens=fitted, answer=answer, k=k, progress=step(progress, "lens")
            )
        else:
            if answer is not None:
                raise UsageError("--answer belongs to a prompt; a task has its own answers")
            place = _position(position or "end")
            call = f"cutaway.lenses.logit_lens(model, task, {site!r}{more}, position={place!r}, k={k})"
            _say(model, f"\n{code(prompt, n, seed)}{given}", call)
            result = cutaway.lenses.logit_lens(
                loaded, found, site, lens=fitted, position=place, k=k, progress=step(progress, "lens")
            )
    deliver(result, title=f"Lens: {prompt}", out=out, html=html, as_json=as_json, facts={"lens": result.lens})


@app.command(cls=Command)
def dla(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A built-in task, or a task file.")],
    model: ModelName,
    by: Annotated[str, typer.Option("--by", help="component, head, neuron, or source.")] = "head",
    position: Position = "end",
    against: Annotated[str, typer.Option("--against", help="foil, or mean of all logits.")] = "foil",
    n: Pairs = None,
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Attribute the answer of TASK to what each part of MODEL writes directly into the logits."""
    import cutaway

    check_targets(out, html)
    place = _position(position)
    if place not in ("end", -1):
        console.say("The answer is due at the end of the prompt: elsewhere these are parts of its logit there.")
    call = f"cutaway.lenses.direct_logit_attribution(model, task, by={by!r}, position={place!r}, against={against!r})"
    _say(model, f"\n{code(task, n, seed)}", call)
    loaded = cutaway.load(model)
    found = resolve(task, loaded, n=n, seed=seed)
    with console.progress() as progress:
        result = cutaway.lenses.direct_logit_attribution(
            loaded, found, by=by, position=place, against=against, progress=step(progress, "direct contributions")
        )
    facts = {"difference": result.difference.mean().item(), "largest_error": result.error.abs().max().item()}
    deliver(result, title=f"Direct logit attribution: {task}", out=out, html=html, as_json=as_json, facts=facts)


@app.command(cls=Command)
def patchscope(
    prompt: Asked,
    model: ModelName,
    target: Target = None,
    slot: Annotated[
        str,
        typer.Option("--slot", metavar="TEXT|INDEX", help="Placeholder in the target: a token's text, or an index."),
    ] = "-1",
    into: Annotated[
        list[int] | None, typer.Option("--into", metavar="LAYER", help="Layer that is patched; may be repeated.")
    ] = None,
    site: Sites = None,
    position: Position = "end",
    generate: Annotated[
        int, typer.Option("--generate", min=0, help="Go on for so many tokens; 0: the next token.")
    ] = 0,
    nulls: Annotated[int, typer.Option("--nulls", min=1, help="States of other prompts to compare with.")] = 8,
    n: Pairs = None,
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Put states of PROMPT or TASK into a target prompt, and see what it says of them, beside other prompts' states."""
    import cutaway

    check_targets(out, html)
    loaded = cutaway.load(model)
    found = asked(prompt, loaded, n, seed)
    place = _position(slot)
    options: dict[str, Any] = {
        "position": _position(position),
        "target": cutaway.lenses.IDENTITY if target is None else target,
        "slots": place if isinstance(place, str) else (place,),
        "into": tuple(into) if into else None,
        "nulls": nulls,
        "seed": seed,
    } | ({"max_new_tokens": generate} if generate else {})
    name = "patchscope_readings" if generate else "patchscope"
    words = "".join(f", {key}={value!r}" for key, value in options.items())
    given = "" if isinstance(found, str) else f"\n{code(prompt, n, seed)}"
    _say(
        model,
        given,
        f"cutaway.lenses.{name}(model, {repr(found) if isinstance(found, str) else 'task'}, {site!r}{words})",
    )
    with console.progress() as progress:
        method: Callable[..., Any] = getattr(cutaway.lenses, name)
        result = method(loaded, found, site, **options, progress=step(progress, "patchscope"))
    deliver(result, title=f"Patchscope: {prompt}", out=out, html=html, as_json=as_json, facts={"into": result.into})


@app.command("fit-tuned", cls=Command)
def fit_tuned(
    texts: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text files to fit on.")],
    model: ModelName,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Steps of the fit.")] = 250,
    tokens_a_step: Annotated[int, typer.Option("--tokens-a-step", min=1, help="Tokens of each step.")] = 4096,
    d_row: Annotated[int, typer.Option("--d-row", min=2, help="Tokens of a row.")] = 128,
    optimizer: Annotated[str, typer.Option("--optimizer", help="sgd or adam.")] = "sgd",
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Fit a tuned lens of MODEL to text files, and measure it on rows held out. Read with it: `lens read --lens`."""
    import cutaway

    check_targets(out, html)
    options = {"steps": steps, "tokens_a_step": tokens_a_step, "d_row": d_row, "optimizer": optimizer, "seed": seed}
    words = "".join(f", {key}={value!r}" for key, value in options.items())
    _say(model, "", f"cutaway.lenses.fit_tuned_lens(model, {list(map(str, texts))!r}{words})")
    loaded = cutaway.load(model)
    with console.progress() as progress:
        result = cutaway.lenses.fit_tuned_lens(loaded, texts, **options, progress=step(progress, "tuned lens"))
    deliver(result, title=f"Tuned lens of {model}", out=out, html=html, as_json=as_json, facts=result.settings)


@app.command("fit-jacobian", cls=Command)
def fit_jacobian(
    prompts: Annotated[Path, typer.Argument(metavar="FILE", help="A text file, one prompt a line.")],
    model: ModelName,
    skip_first: Annotated[int, typer.Option("--skip-first", min=0, help="Positions left out at the start.")] = 16,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Stop when a prompt changes the mean by less; 0: never.")
    ] = 2e-3,
    d_row: Annotated[int, typer.Option("--d-row", min=1, help="Longer prompts are cut to so many tokens.")] = 128,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Average the Jacobians of MODEL over prompts: a lens that is not fitted to predictions."""
    import cutaway
    from cutaway.lenses import read_prompts

    check_targets(out, html)
    lines = read_prompts(prompts)
    options = {"skip_first": skip_first, "tolerance": tolerance, "d_row": d_row}
    words = "".join(f", {key}={value!r}" for key, value in options.items())
    _say(
        model,
        f"\nprompts = cutaway.lenses.read_prompts({str(prompts)!r})",
        f"cutaway.lenses.fit_jacobian_lens(model, prompts{words})",
    )
    loaded = cutaway.load(model)
    with console.progress() as progress:
        result = cutaway.lenses.fit_jacobian_lens(loaded, lines, **options, progress=step(progress, "Jacobian lens"))
    facts = {"prompts": result.n_prompts, "converged": result.converged}
    deliver(result, title=f"Jacobian lens of {model}", out=out, html=html, as_json=as_json, facts=facts)


def load_lens(path: Path, model: "Model") -> "Lens":
    """A fitted lens from a file of either kind, or from a folder in the format of the tuned-lens package."""
    from cutaway import lenses

    if path.is_dir():
        return lenses.read_published(path, model)
    try:
        return lenses.TunedLens.load(path, model)
    except BrokenEvidence as error:
        if "jacobian_lens" not in str(error):
            raise
        return lenses.JacobianLens.load(path, model)


def asked(text: str, model: "Model", n: int | None, seed: int) -> "Task | str":
    """A task where the text names one or a task file; else the prompt itself."""
    from cutaway import tasks

    if text in tasks.names() or (text.endswith(FILES) and " " not in text):
        return resolve(text, model, n=n, seed=seed)
    if not text.strip():
        raise UsageError("the prompt is empty; give a text, or the name of a task")
    return text


def _position(text: str) -> str | int:
    return int(text) if text.lstrip("-").isdigit() else text


def step(progress: console.Progress, label: str) -> Callable[[int, int], None]:
    """A progress of one step."""
    return lambda done, total: progress(done, total, label)


def _say(model: str, given: str, call: str) -> None:
    console.python(f"import cutaway\n\nmodel = cutaway.load({model!r}){given}\nresult = {call}")
