"""`cutaway generate`: continue a prompt, plain and steered, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson
from cutaway.cli.deliver import Html, Out, check_targets, deliver
from cutaway.errors import CutawayError, UsageError

if TYPE_CHECKING:
    from cutaway.models import Model
    from cutaway.models.streams import Piece
    from cutaway.steering import Steering


def generate(
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="One prompt or several.")],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="An embedded model, a folder, or a hub id.")
    ],
    steer: Annotated[
        list[Path] | None,
        typer.Option("--steer", metavar="FILE", help="A saved steering vector; may be given several times."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TEXT", help="Steer towards this text and away from --from, at --site."),
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="TEXT", help="The text to steer away from.")] = None,
    site: Annotated[
        str | None,
        typer.Option(
            "--site", metavar="SITE", help="Where --to and --from are read and added, as in resid_post.2@new."
        ),
    ] = None,
    strength: Annotated[float, typer.Option("--strength", help="Strength of --to, in --unit.")] = 1.0,
    unit: Annotated[
        str,
        typer.Option(
            "--unit",
            metavar="UNIT",
            help="vector: times the difference itself; norm: times the median length of the activations; sd: times the "
            "spread of their projections; absolute: a length.",
        ),
    ] = "vector",
    keep_norm: Annotated[
        bool, typer.Option("--keep-norm", help="Give each activation its length back after --to was added.")
    ] = False,
    save_steering: Annotated[
        Path | None, typer.Option("--save-steering", metavar="FILE", help="Save the vector of --to, for --steer.")
    ] = None,
    n_new: Annotated[int, typer.Option("--max-new-tokens", min=1, metavar="N", help="Tokens to write at most.")] = 20,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy; above it tokens are drawn.")] = 0.0,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", help="Draw among the K likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", metavar="P", help="Draw among the fewest tokens of this probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the draws.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, metavar="N", help="Continuations of each prompt.")] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="End before this text; may be given several times."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Each prompt is a user's message; the tokenizer's chat template frames it.")
    ] = False,
    out: Out = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Continue PROMPT with MODEL; with steering, the plain continuation and the steered one, side by side."""
    import cutaway
    from cutaway.steering import compare

    for path, option in ((save_steering, "--save-steering"), (out, "--out")):
        if path is not None and not path.resolve().parent.is_dir():
            raise UsageError(f"{option} {path}: the folder {path.resolve().parent} does not exist; make it first")
    check_targets(out, html)
    own = _own(to, from_, site, strength, unit, keep_norm)
    if html is not None and not own and not steer:
        raise UsageError("--html shows what steering changed; give --steer, or --to, --from and --site")
    if save_steering is not None and not own:
        raise UsageError("--save-steering saves the vector of --to and --from; give both")
    chosen: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    chosen |= {"n_samples": samples, "stop": stop}
    usual = {"temperature": 0.0, "top_k": None, "top_p": None, "seed": None, "n_samples": 1, "stop": None}
    options = {name: value for name, value in chosen.items() if value != usual[name]}
    prompts: Any = [[{"role": "user", "content": text}] for text in prompt] if chat else prompt
    console.python(_code(model, prompts, steer or [], own, n_new, options))
    loaded = cutaway.load(model)
    vectors = _vectors(loaded, steer or [], own, prompt)
    try:
        written = _written(len(prompt) * samples)
        result = compare(loaded, prompts, vectors, max_new_tokens=n_new, on_text=written, **options)
    except CutawayError:
        console.say("")  # the error begins on a line of its own
        raise
    facts: dict[str, Any] = {"model": loaded.name, "steering": [str(vector) for vector in vectors]}
    if save_steering is not None:
        facts["steering_saved"] = str(save_steering)
        facts["steering_sha256"] = vectors[-1].save(save_steering)
    deliver(result, title=f"Continuations of {loaded.name}", out=out, html=html, as_json=as_json, facts=facts)


def _own(
    to: str | None, from_: str | None, site: str | None, strength: float, unit: str, keep_norm: bool
) -> dict[str, Any]:
    """Arguments of `steering.difference`; empty when no vector is to be made."""
    given = {"--to": to, "--from": from_, "--site": site}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if strength != 1.0 or unit != "vector" or keep_norm:
            raise UsageError("--strength, --unit and --keep-norm belong to --to, --from and --site; a file has its own")
        return {}
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing: a vector needs --to, --from and --site")
    kept = {"keep_norm": True} if keep_norm else {}
    return {"to": to, "from_": from_, "site": site, "strength": strength, "unit": unit, **kept}


def _vectors(model: "Model", files: list[Path], own: dict[str, Any], prompts: list[str]) -> "list[Steering]":
    from cutaway.steering import Steering, difference

    vectors = [Steering.load(path, model) for path in files]
    if own:
        vectors.append(difference(model, **own, reference=[own["to"], own["from_"], *prompts]))
    return vectors


def _written(n_rows: int) -> Any:
    """Shows one row's text on stderr while it is written; several rows come with the result."""
    if n_rows > 1:
        return None
    shown: set[str] = set()

    def show(name: str, piece: "Piece") -> None:
        if name not in shown:
            typer.echo(("\n" if shown else "") + f"{name}: ", nl=False, err=True)
            shown.add(name)
        typer.echo(piece.text, nl=False, err=True)

    return show


def _code(model: str, prompts: Any, files: list[Path], own: dict[str, Any], n_new: int, options: dict[str, Any]) -> str:
    lines = ["import cutaway", "from cutaway.steering import Steering, compare, difference", ""]
    lines += [f"model = cutaway.load({model!r})", f"prompts = {prompts!r}"]
    vectors = [f"Steering.load({str(path)!r}, model)" for path in files]
    if own:
        rest = "".join(f", {name}={value!r}" for name, value in own.items() if name not in ("to", "from_", "site"))
        texts = [own["to"], own["from_"], *(p if isinstance(p, str) else p[0]["content"] for p in prompts)]
        vectors.append(
            f"difference(model, {own['to']!r}, {own['from_']!r}, {own['site']!r}, reference={texts!r}{rest})"
        )
    words = "".join(f", {name}={value!r}" for name, value in options.items())
    lines += [f"vectors = [{', '.join(vectors)}]"]
    lines += [f"result = compare(model, prompts, vectors, max_new_tokens={n_new}{words})", "result.table()"]
    return "\n".join(lines)
