"""`cutaway zoo`: train the embedded models again, and measure again what their cards promise."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson, Command
from cutaway.errors import UsageError

if TYPE_CHECKING:
    from cutaway.zoo import Card, Score

app = typer.Typer(no_args_is_help=True, help="Zoo: train the embedded models again, measure what their cards promise.")

COLUMNS = ("model", "behavior", "accuracy", "95 % interval", "n", "target", "", "inputs")
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Embedded models.")]


@app.command(cls=Command)
def check(names: Names = None, as_json: AsJson = False) -> None:
    """Measure the shipped models again (all, or NAMEs) on held-out inputs, and compare their files with their cards."""
    from cutaway import zoo

    names = list(names or zoo.names())
    console.python(f"from cutaway import zoo\n\n[zoo.check(name) for name in {names!r}]")
    found = []
    with console.progress() as progress:
        for done, name in enumerate(names):
            progress(done, len(names), "measuring")
            found.append(zoo.check(name))
        progress(len(names), len(names), "measuring")
    if as_json:
        console.emit([{**_as_data(one.name, one.scores), "changed": one.changed, "holds": one.holds} for one in found])
    else:
        console.table(COLUMNS, [row for one in found for row in _rows(one.name, one.scores)])
        for one in found:
            if one.changed:
                console.show(f"{one.name}: not the files of its card: {', '.join(one.changed)}")
        n_missed, n_changed = sum(len(one.missed) for one in found), sum(bool(one.changed) for one in found)
        console.show(
            f"\nModels {len(found)}, scores {sum(len(one.scores) for one in found)}, targets missed {n_missed}, models "
            f"with changed files {n_changed}."
        )
    if not all(one.holds for one in found):
        raise typer.Exit(1)


@app.command(cls=Command)
def train(
    names: Names = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The folder of model NAME will be DIR/NAME.")
    ] = Path("build/zoo"),
    everything: Annotated[bool, typer.Option("--all", help="All models, bases before their relatives.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Another seed than the recipe's.")] = None,
    device: Annotated[str, typer.Option("--device", help="Where to train: cpu, cuda.")] = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Make each NAME again by its recipe, and measure it; the shipped models stay as they are."""
    import torch

    wanted = _wanted(names, everything=everything, out=out)
    given = "" if seed is None else f", seed={seed}"
    given += "" if device == "cpu" else f", device={device!r}"
    console.python(
        f"from pathlib import Path\nimport torch\nfrom cutaway import zoo\n\ntorch.set_num_threads({threads})\n"
        f"for name in {wanted!r}:\n    zoo.recipe(name).make(name, Path({str(out)!r}) / name{given})"
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cards = list(_made(wanted, out, seed, device))
    finally:
        torch.set_num_threads(before)
    if as_json:
        console.emit([{**_as_data(card.name, card.accuracy), "seed": card.seed, "files": card.files} for card in cards])
    else:
        console.table(COLUMNS, [row for card in cards for row in _rows(card.name, card.accuracy)])
    if any(_missed(card.accuracy) for card in cards):
        raise typer.Exit(1)


def _wanted(names: list[str] | None, *, everything: bool, out: Path) -> list[str]:
    """The models to make. A folder that holds something is not written over."""
    from cutaway import zoo

    if bool(names) == everything:
        raise UsageError(f"NAME or --all: give one of them; the models are {', '.join(zoo.names())}", names=names)
    cards = [zoo.card(name) for name in names or zoo.names()]
    for card in cards:
        if (out / card.name).exists() and any((out / card.name).iterdir()):
            raise UsageError(f"{out / card.name} holds files already; remove it, or give another --out", name=card.name)
    return [card.name for card in sorted(cards, key=lambda card: card.base is not None)]


def _made(names: list[str], out: Path, seed: int | None, device: str) -> "Iterator[Card]":
    from cutaway import zoo

    for name in names:
        with console.progress() as progress:
            card = zoo.recipe(name).make(name, out / name, seed=seed, progress=progress, device=device)
        same = card.files == zoo.card(name).files
        console.say(f"{name}: written to {out / name}; {'the' if same else 'not the'} shipped files, bit for bit.")
        yield card


def _missed(scores: "Iterable[Score]") -> "tuple[Score, ...]":
    from cutaway.zoo.train import missed

    return missed(tuple(scores))


def _rows(name: str, scores: "Iterable[Score]") -> Iterator[tuple[str, ...]]:
    for one in scores:
        target = "" if one.target is None else f"{one.target:.1%}"
        verdict = "" if one.target is None else "MISSED" if _missed([one]) else "ok"
        interval = f"{one.low:.1%} to {one.high:.1%}"
        yield name, one.behavior, f"{one.share:.1%}", interval, str(one.n), target, verdict, one.what


def _as_data(name: str, scores: "tuple[Score, ...]") -> dict[str, Any]:
    return {"name": name, "accuracy": [one.model_dump() for one in scores], "missed": len(_missed(scores))}
