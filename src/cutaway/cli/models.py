"""`cutaway models`: which models there are, where a model's sites live, and what the audit proved of them."""

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson, Command

if TYPE_CHECKING:
    from cutaway.models.anatomy import Anatomy, Status
    from cutaway.models.sites import Site

app = typer.Typer(no_args_is_help=True, help="Models: what is there, where the sites are, what the audit proved.")

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="An embedded model, a folder with a Hugging Face model, or a hub id.")
]


@app.command("list", cls=Command)
def list_models(as_json: AsJson = False) -> None:
    """List the embedded models, with their size, behaviors, and what is known of their mechanism; they load offline."""
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
            card.known,
        )
        for card in cards
    ]
    console.table(("model", "parameters", "bytes", "behaviors", "what it is", "what is known"), rows)
    console.say("`cutaway zoo check` measures the behaviors again; `cutaway zoo train NAME` makes a model again.")
    console.say("Any folder with a Hugging Face model, and any hub id, is a MODEL too.")


@app.command(cls=Command)
def sites(model: ModelName, as_json: AsJson = False) -> None:
    """List the sites of MODEL: what can be read and edited, by which name, and why not where not."""
    _table_of_sites(model, as_json, audited=False)


@app.command(cls=Command)
def audit(model: ModelName, as_json: AsJson = False) -> None:
    """Prove on the loaded weights that each site of MODEL is what its name says."""
    _table_of_sites(model, as_json, audited=True)


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
