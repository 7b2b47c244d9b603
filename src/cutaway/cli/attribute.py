"""`cutaway attribute`: which tokens a number comes from, or, with --parts, which parts of the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson
from cutaway.cli.deliver import Html, Out, check_targets, deliver
from cutaway.cli.tasks import Pairs, Seed, code, resolve
from cutaway.errors import UsageError

if TYPE_CHECKING:
    from cutaway.attribution import Target, TokenScores
    from cutaway.figures import Figure
    from cutaway.models import Model, Tokens
    from cutaway.patching.gradient_scores import GradientScores

PARTS = {"heads": "z", "mlps": "mlp_out", "neurons": "mlp_act", "queries": "q", "keys": "k", "values": "v"}
"""What --parts may name -> kind of site."""
STRONGEST = 40
"""Parts that the terminal's table shows."""


def attribute(
    subject: Annotated[
        str, typer.Argument(metavar="TASK|PROMPT", help="A built-in task, a task file, or the text of a prompt.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="An embedded model, a folder, or a hub id.")
    ],
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="Tokens: gradient_x_input, integrated_gradients, occlusion, lime, kernel_shap, shapley. "
            "Parts: atp, atp_star, ig, relevance. [default: integrated_gradients; atp]",
        ),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts", metavar="PARTS", help="Attribute to parts of the model: heads,mlps,neurons,queries,keys,values."
        ),
    ] = None,
    positions: Annotated[
        str | None, typer.Option("--positions", metavar="NAMES", help="Parts at these positions, or 'each'.")
    ] = None,
    mode: Annotated[str, typer.Option("--mode", help="Parts: denoise, or noise.")] = "denoise",
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="TEXT", help="Prompt: the token. [default: the likeliest]")
    ] = None,
    foil: Annotated[
        str | None, typer.Option("--foil", metavar="TEXT", help="Prompt: the token whose logit is subtracted.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option("--unit", metavar="SITE", help="Tokens: a neuron instead of a logit, as mlp_act.1.n7@end."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", help="Tokens: zero, mean, pad, unk, counterfactual, mask. [default: by method]"),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="TEXT", help="Prompt: the counterfactual prompt.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--faithfulness", help="Tokens: sufficiency and comprehensiveness too.")
    ] = False,
    check: Annotated[
        int, typer.Option("--check", min=0, help="Parts: cells that are patched for real, 0 for none.")
    ] = 60,
    n: Pairs = None,
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Attribute what MODEL says to the tokens of a prompt or a task, or to its own parts."""
    import cutaway
    from cutaway import tasks

    check_targets(out, html)
    is_task = subject in tasks.names() or Path(subject).is_file()
    tokens_only = {"answer": answer, "foil": foil, "unit": unit, "baseline": baseline, "against": against}
    _check(subject, is_task, parts, tokens_only, positions, trust, out)
    loaded = cutaway.load(model)
    if parts is not None:
        _parts(loaded, model, subject, parts, method, positions, mode, check, n, seed, (out, html, as_json))
        return
    _tokens(loaded, model, subject, is_task, method, tokens_only, trust, n, seed, (out, html, as_json))


def _check(
    subject: str,
    is_task: bool,
    parts: str | None,
    tokens_only: Mapping[str, str | None],
    positions: str | None,
    trust: bool,
    out: Path | None,
) -> None:
    if not subject.strip():
        raise UsageError("the prompt is empty; give a text, or the name of a task")
    if parts is not None:
        if not is_task:
            raise UsageError(f"--parts: {subject!r} is no task; parts are compared between the two sides of a task")
        given = [f"--{name}" for name, value in tokens_only.items() if value is not None]
        if given or trust:
            raise UsageError(f"--parts: {', '.join(given) or '--faithfulness'} belongs to tokens; leave it out")
        wrong = next((name for name in parts.split(",") if name not in PARTS), None)
        if wrong is not None:
            raise UsageError(f"--parts {wrong!r}: it is one of {', '.join(PARTS)}", name=wrong)
        return
    if positions is not None:
        raise UsageError("--positions belongs to --parts; tokens are all attributed to")
    if is_task and (tokens_only["answer"] or tokens_only["foil"] or tokens_only["against"]):
        raise UsageError("--answer, --foil and --against belong to a prompt; a task has its own")


def _parts(
    loaded: "Model",
    name: str,
    subject: str,
    parts: str,
    method: str | None,
    positions: str | None,
    mode: str,
    check: int,
    n: int | None,
    seed: int,
    ends: tuple[Path | None, Path | None, bool],
) -> None:
    from cutaway.patching.gradient_scores import gradient_scores

    kinds = tuple(PARTS[part] for part in dict.fromkeys(parts.split(",")))
    places = None if positions is None else "each" if positions == "each" else tuple(positions.split(","))
    options = {"method": method or "atp", "kinds": kinds, "positions": places, "mode": mode, "check": check}
    shown = "".join(f", {key}={value!r}" for key, value in options.items())
    console.python(
        f"import cutaway\n\nmodel = cutaway.load({name!r})\n{code(subject, n, seed)}\n"
        f"result = cutaway.patching.gradient_scores(model, task{shown}, seed={seed})"
    )
    task = resolve(subject, loaded, n=n, seed=seed)
    with console.progress() as progress:
        result = gradient_scores(
            loaded, task, seed=seed, progress=lambda done, total: progress(done, total, "gradients"), **options
        )
    out, html, as_json = ends
    facts, rows = result.facts(), result.table()
    if not as_json and len(rows) > STRONGEST:
        facts["strongest"] = f"{STRONGEST} of {len(rows)}; all with --json or --out"
        rows = rows[:STRONGEST]
    deliver(_Shown(result, rows), title=f"{subject} in {name}", out=out, html=html, as_json=as_json, facts=facts)


def _tokens(
    loaded: "Model",
    name: str,
    subject: str,
    is_task: bool,
    method: str | None,
    given: Mapping[str, str | None],
    trust: bool,
    n: int | None,
    seed: int,
    ends: tuple[Path | None, Path | None, bool],
) -> None:
    from cutaway import attribution

    if is_task:
        rows, target, other, clusters, lines = _of_task(loaded, subject, given, n, seed)
    else:
        rows, target, other, clusters, lines = _of_prompt(loaded, subject, given)
    options: dict[str, Any] = {"method": method or "integrated_gradients", "baseline": given["baseline"], "seed": seed}
    used = given["baseline"] == "counterfactual" or (given["against"] is not None and given["baseline"] is None)
    options["against"] = other if used else None
    shown = "".join(
        f", {key}={'against' if key == 'against' else repr(value)}"
        for key, value in options.items()
        if value is not None
    )
    console.python(
        f"import cutaway\nfrom cutaway import attribution\n\nmodel = cutaway.load({name!r})\n{lines}\n"
        f"result = attribution.attribute(model, prompts, target{shown})"
        + ("\ntrust = attribution.faithfulness(model, prompts, target, result)" if trust else "")
    )
    with console.progress() as progress:
        result = attribution.attribute(
            loaded, rows, target, progress=lambda done, total: progress(done, total, "attribution"), **options
        )
        checked = None
        if trust:
            checked = attribution.faithfulness(
                loaded,
                rows,
                target,
                result,
                clusters=clusters,
                seed=seed,
                progress=lambda done, total: progress(done, total, "faithfulness"),
            )
    out, html, as_json = ends
    facts = result.facts()
    if checked is None:
        deliver(result, title=f"{subject} in {name}", out=out, html=html, as_json=as_json, facts=facts)
        return
    if as_json:
        facts["faithfulness"] = checked.table()
    both = _Shown(result, result.table(), checked.figures())
    deliver(both, title=f"{subject} in {name}", out=out, html=html, as_json=as_json, facts=facts)
    if not as_json:
        table = checked.table()
        console.table(list(table[0]), [[console.short(cell) for cell in row.values()] for row in table])


class _Shown:
    """A result as the terminal shows it: fewer rows, or figures of two results."""

    def __init__(
        self, result: "TokenScores | GradientScores", rows: list[dict[str, Any]], more: "Sequence[Figure]" = ()
    ) -> None:
        self.save, self._rows, self._figures = result.save, rows, (*result.figures(), *more)

    def table(self) -> list[dict[str, Any]]:
        """The rows that are shown."""
        return self._rows

    def figures(self) -> "tuple[Figure, ...]":
        """Those of the result, then the others."""
        return self._figures


def _of_task(
    loaded: "Model", subject: str, given: Mapping[str, str | None], n: int | None, seed: int
) -> tuple["Tokens", "Target", "Tokens", Sequence[str], str]:
    """The clean prompts of a task, what is asked of them, and the corrupt ones."""
    from cutaway import attribution

    batch = resolve(subject, loaded, n=n, seed=seed).encode(loaded)
    lines = f"{code(subject, n, seed)}\nbatch = task.encode(model)\nprompts, against = batch.clean, batch.corrupt\n"
    if given["unit"] is not None:
        target = attribution.unit(given["unit"])
        return (
            batch.clean,
            target,
            batch.corrupt,
            batch.clusters,
            f"{lines}target = attribution.unit({given['unit']!r})",
        )
    if batch.stacked:
        raise UsageError(
            f"task {subject!r}: its answers are several tokens, and a logit is that of one; name a --unit, or a prompt "
            "with --answer"
        )
    first = [answer[0] for answer in batch.answers], [foil[0] for foil in batch.foils]
    lines += (
        "target = attribution.logit_diff([a[0] for a in batch.answers], [f[0] for f in batch.foils], name='the answer "
        "over the foil')"
    )
    target = attribution.logit_diff(*first, name="the answer over the foil")
    return batch.clean, target, batch.corrupt, batch.clusters, lines


def _of_prompt(
    loaded: "Model", subject: str, given: Mapping[str, str | None]
) -> tuple["Tokens", "Target", "Tokens | None", None, str]:
    """A prompt, what is asked of it, and the prompt that it is compared with."""
    from cutaway import attribution

    rows = loaded.encode(subject)
    other = None if given["against"] is None else loaded.encode(given["against"])
    lines = f"prompts = model.encode({subject!r})"
    if given["against"] is not None:
        lines += f"\nagainst = model.encode({given['against']!r})"
    if given["unit"] is not None:
        if given["answer"] or given["foil"]:
            raise UsageError("--unit and --answer name two targets; give one of them")
        return (
            rows,
            attribution.unit(given["unit"]),
            other,
            None,
            f"{lines}\ntarget = attribution.unit({given['unit']!r})",
        )
    if given["answer"] is None:
        logits = loaded.run(rows, logits="end").logits
        assert logits is not None  # asked for
        answer = int(logits[0, -1].argmax())
        console.say(f"The likeliest next token is {loaded.strings([answer])[0]!r}.")
    else:
        answer = loaded.token_id(given["answer"])
    text = loaded.strings([answer])[0]
    if given["foil"] is None:
        target = attribution.logit(answer, name=f"the logit of {text!r}")
        return rows, target, other, None, f'{lines}\ntarget = attribution.logit({answer}, name="{target.name}")'
    foil = loaded.token_id(given["foil"])
    target = attribution.logit_diff(answer, foil, name=f"{text!r} over {loaded.strings([foil])[0]!r}")
    return (
        rows,
        target,
        other,
        None,
        f'{lines}\ntarget = attribution.logit_diff({answer}, {foil}, name="{target.name}")',
    )
