"""`cutaway models`: which models there are, where a model's sites live, and what the audit proved of them."""

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson, Command
from cutaway.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from cutaway.models.anatomy import Anatomy, Status
    from cutaway.models.sites import Site

app = typer.Typer(no_args_is_help=True, help="Models: what is there, where the sites are, what the audit proved.")

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="An embedded model, a folder with a Hugging Face model, or a hub id.")
]


@app.command("list", cls=Command)
def list_models(as_json: AsJson = False) -> None:
    """List the embedded models, with their size and behaviors; they load offline."""
    from cutaway import zoo

    console.python("from cutaway import zoo\n\n[zoo.card(name) for name in zoo.names()]")
    cards = [zoo.card(name) for name in zoo.names()]
    if as_json:
        console.emit([{**card.model_dump(mode="json"), "n_bytes": zoo.n_bytes(card.name)} for card in cards])
        return
    rows = [
        (
            card.name,
            f"{card.sizes['n_parameters']:,}",
            f"{zoo.n_bytes(card.name):,}",
            ", ".join(dict.fromkeys(score.behavior for score in card.accuracy)),
            card.summary,
        )
        for card in cards
    ]
    console.table(("model", "parameters", "bytes", "behaviors", "what it is"), rows)
    console.say(
        "`cutaway models show MODEL` says what is known of its mechanism; `cutaway zoo check` measures it again."
    )
    console.say("Any folder with a Hugging Face model, and any hub id, is a MODEL too.")


@app.command(cls=Command)
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An embedded model.")], as_json: AsJson = False
) -> None:
    """Show the card of an embedded MODEL: what it does, what is known of its mechanism, and how that is known."""
    from cutaway import zoo

    console.python(f"from cutaway import zoo\n\nzoo.card({model!r})")
    card = zoo.card(model)
    if as_json:
        console.emit({**card.model_dump(mode="json"), "n_bytes": zoo.n_bytes(card.name)})
        return
    console.show(f"{card.name}: {card.summary}")
    console.show(f"{card.architecture}, {card.sizes['n_parameters']:,} parameters, {zoo.n_bytes(card.name):,} bytes")
    for score in card.accuracy:
        console.show(f"  {score.behavior}: {score.share:.1%} on {score.what} (n {score.n})")
    for title, text in (("Known", card.known), ("How it is known", card.truth.evidence), ("Limits", card.limits)):
        console.show(f"\n{title}. {text}")


@app.command(cls=Command)
def sites(model: ModelName, as_json: AsJson = False) -> None:
    """List the sites of MODEL: what can be read and edited, by which name, and why not where not."""
    _table_of_sites(model, as_json, audited=False)


@app.command(cls=Command)
def audit(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="An embedded model, a folder with a Hugging Face model, or a hub id."),
    ] = None,
    all_types: Annotated[
        bool, typer.Option("--all-types", help="Instead of a MODEL: a tiny random model of every type of transformers.")
    ] = False,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Instead of a MODEL: one such type (repeatable).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove on the loaded weights that each site of MODEL is what its name says; or sweep over types of models."""
    if (model is not None) + all_types + bool(types) != 1:
        raise UsageError("give one of: a MODEL, --all-types, --type TYPE")
    if model is not None:
        _table_of_sites(model, as_json, audited=True)
    else:
        _sweep(types or None, as_json)


def _sweep(names: list[str] | None, as_json: bool) -> None:
    from cutaway.errors import did_you_mean
    from cutaway.models import sweep

    known = sweep.types()
    for name in names or []:
        if name not in known:
            raise UnknownName(f"type {name!r}: transformers has no such type.{did_you_mean(name, known)}", name=name)
    console.python(f"from cutaway.models import sweep\n\nrows = sweep.sweep({names!r})\nsweep.summary(rows)")
    with console.progress() as report:
        rows = sweep.sweep(names, lambda done, total: report(done, total, "types"))
    if as_json:
        console.emit(sweep.as_data(rows))
        return
    console.table(
        ("type", "group", "status", "difference", "writes add up", "patterns", "resume", "refused sites"),
        [
            (
                row.model_type,
                row.group,
                row.status,
                console.short(row.difference),
                f"{row.decomposed}/{row.layers}" if row.layers else "",
                f"{row.patterns}/{row.softmaxes}",
                "exact" if row.layers and not row.resume else row.resume,
                row.reason
                or ", ".join(
                    kind for kind, state in row.sites.items() if state not in ("verified", "readable", "part")
                ),
            )
            for row in rows
        ],
    )
    for name, count in sweep.summary(rows).items():
        console.show(f"{name}: {count}")


def _table_of_sites(name: str, as_json: bool, *, audited: bool) -> None:
    import cutaway

    console.python(
        f"import cutaway\n\nmodel = cutaway.load({name!r}{'' if audited else ', audit=False'})\n"
        "{str(site): model.body.status(site) for site in model.body.sites()}"
    )
    model = cutaway.load(name, audit=audited)
    anatomy = model.body
    found = [(site, anatomy.status(site)) for site in anatomy.sites()]
    if as_json:
        console.emit({"model": model.name, "digest": model.digest, "sizes": _sizes(anatomy), "sites": _as_data(found)})
        return
    console.show(f"{model.name}: " + ", ".join(f"{size} {value}" for size, value in _sizes(anatomy).items()))
    console.table(("site", "layers", "state", "largest error", "what"), _rows(found))


def _sizes(anatomy: "Anatomy") -> dict[str, int]:
    names = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "d_vocab")
    return {name: value for name in names if (value := getattr(anatomy, name)) is not None}


def _as_data(found: "list[tuple[Site, Status]]") -> list[dict[str, Any]]:
    return [{"site": str(site), **vars(status)} for site, status in found]


def _rows(found: "list[tuple[Site, Status]]") -> list[tuple[str, str, str, str, str]]:
    """One row for all layers of a kind that share a state and a reason."""
    from cutaway.models.sites import KINDS

    groups: dict[tuple[str, str, str], list[tuple[Site, Status]]] = defaultdict(list)
    for site, status in found:
        groups[site.kind, status.state, status.reason if status.state == "refused" else ""].append((site, status))
    return [
        (
            kind,
            _span([site.layer for site, _ in group]),
            state,
            _worst([status for _, status in group]),
            reason or KINDS[kind].meaning,
        )
        for (kind, state, reason), group in groups.items()
    ]


def _span(layers: list[int | None]) -> str:
    """Layers as text: 0-5, or 0,2,4 when some are missing."""
    known = sorted(layer for layer in layers if layer is not None)
    if len(known) > 2 and known == list(range(known[0], known[-1] + 1)):
        return f"{known[0]}-{known[-1]}"
    return ",".join(map(str, known))


def _worst(statuses: "list[Status]") -> str:
    errors = [status.error for status in statuses if status.error is not None]
    return f"{max(errors):.1e}" if errors else ""
