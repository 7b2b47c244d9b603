"""`cutaway tasks`: the behaviors that come with cutaway, what a task holds, and whether a model shows its behavior."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson, Command
from cutaway.errors import UsageError

if TYPE_CHECKING:
    from cutaway.models import Model
    from cutaway.tasks import Batch, Task

FILES = (".jsonl", ".json", ".csv", ".tsv", ".gz")
"""Endings by which a TASK is a file."""
DEFAULTS = ("babel", "induction-2l")
"""Embedded models that tasks are shown in; the first that there is."""

app = typer.Typer(no_args_is_help=True, help="Tasks: the behaviors that come with cutaway, and what a task holds.")

TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="A built-in task, or a file: a task file, or a data set of a known shape.")
]
Pairs = Annotated[
    int | None, typer.Option("--n", min=1, metavar="N", help="Pairs to make, or to take from a data set.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")]


@app.command("list", cls=Command)
def list_tasks(as_json: AsJson = False) -> None:
    """List the built-in tasks."""
    from cutaway import tasks

    console.python("from cutaway import tasks\n\ntasks.names()")
    rows = [(name, tasks.describe(name)) for name in tasks.names()]
    if as_json:
        console.emit([{"name": name, "summary": summary} for name, summary in rows])
        return
    console.table(("task", "behavior"), rows)
    console.say("A task file (JSON lines) is a TASK too, and so is a data set of a shape in docs/formats/importers.md.")


@app.command(cls=Command)
def show(
    task: TaskName,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", help="The model that is asked. [default: an embedded language model]"
        ),
    ] = None,
    n: Pairs = None,
    seed: Seed = 0,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Pairs to show of each split.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show what TASK holds, how its pairs align in the tokens of MODEL, and whether MODEL has the behavior."""
    import cutaway

    name = model or _default()
    console.python(
        f"import cutaway\n\nmodel = cutaway.load({name!r})\n{code(task, n, seed)}\nbatch = task.encode(model)"
    )
    loaded = cutaway.load(name)
    found = resolve(task, loaded, n=n, seed=seed)
    batch = found.encode(loaded)
    rows = [row for split in found.splits for row in _of_split(found, split)[:examples]]
    aligned = [_aligned(loaded, found, batch, row) for row in rows]
    measured = _behavior(loaded, found)
    if as_json:
        console.emit({**_as_data(found), "model": loaded.name, "alignment": aligned, "behavior": measured})
        return
    console.show(f"{found.name}: {found.description}")
    console.show(f"metric {batch.metric.name} in {batch.metric.unit}: {batch.metric.doc}")
    console.show(
        f"{len(found)} pairs in {len(found.clusters)} clusters; splits {found.splits}; roles {', '.join(found.roles)}"
    )
    for row, one in zip(rows, aligned):
        pair = found.pairs[row]
        console.show(f"\n{pair.id} ({pair.split}, cluster {pair.cluster})")
        console.show(f"  clean    {_strip(one['clean'], one['positions'])}  ->  {_strip(one['answer'], {})}")
        console.show(f"  corrupt  {_strip(one['corrupt'], one['positions'])}  ->  {_strip(one['foil'], {})}")
    _show_behavior(measured, loaded.name)


def resolve(name: str, model: "Model", *, n: int | None, seed: int) -> "Task":
    """The task that a TASK argument means: a file when it looks like one or is one, else a built-in."""
    from cutaway import tasks

    if not _is_file(name):
        return tasks.get(name, model, n=n, seed=seed)
    if not Path(name).is_file():
        raise UsageError(f"task {name!r}: no such file; built-in tasks are {', '.join(tasks.names())}", task=name)
    return tasks.read_task(name, model, n=n, seed=seed)


def code(name: str, n: int | None, seed: int) -> str:
    """The Python that `resolve` stands for."""
    count = "" if n is None else f", n={n}"
    if _is_file(name):
        return f"task = cutaway.tasks.read_task({name!r}, model{count}, seed={seed})"
    return f"task = cutaway.tasks.get({name!r}, model{count}, seed={seed})"


def _default() -> str:
    from cutaway import zoo

    return next(name for name in DEFAULTS if name in zoo.names())


def _as_data(task: "Task") -> dict[str, object]:
    names = ("name", "description", "metric", "roles", "splits", "clusters", "seed", "digest", "pairs")
    return {name: getattr(task, name) for name in names}


def _is_file(name: str) -> bool:
    return name.endswith(FILES) or Path(name).is_file()


def _of_split(task: "Task", split: str) -> list[int]:
    return [row for row, pair in enumerate(task.pairs) if pair.split == split]


def _aligned(model: "Model", task: "Task", batch: "Batch", row: int) -> dict[str, Any]:
    """A pair in the tokens of the model: both prompts, answer and foil, and the index of each position."""
    positions = {role: batch.clean.roles[role][row] for role in batch.roles}
    prompts = {
        side: model.strings(tokens.row(row)[: positions["end"] + 1])
        for side, tokens in (("clean", batch.clean), ("corrupt", batch.corrupt))
    }
    answers = {
        side: model.strings(list(ids)) for side, ids in (("answer", batch.answers[row]), ("foil", batch.foils[row]))
    }
    return {"id": task.pairs[row].id, **prompts, **answers, "positions": positions}


def _strip(tokens: list[str], positions: dict[str, int]) -> str:
    """Tokens with their borders showing, and each position behind its token: ' girl{subject}'."""
    marks = [",".join(role for role, index in positions.items() if index == place) for place in range(len(tokens))]
    return "|".join(f"{token}{{{mark}}}" if mark else token for token, mark in zip(tokens, marks))


def _behavior(model: "Model", task: "Task") -> dict[str, Any]:
    """The behavior check of a study, on the split that a study checks, and the intervals behind it.

    `shown`: 'yes' where a study would begin; 'no' where the gap or the accuracy is reliably too small; else 'unclear'.
    """
    from dataclasses import replace

    import numpy as np

    from cutaway.errors import TooFewClusters
    from cutaway.loop.identify import behavior
    from cutaway.loop.study import checked, no_behavior
    from cutaway.stats import mean_interval, share_interval

    explore = task.split("explore")
    measured = behavior(model, explore)
    right = behavior(model, replace(explore, metric="accuracy"))
    clusters = list(measured.batch.clusters)
    found: dict[str, Any] = {
        "shown": "unclear",
        "why": "",
        "split": "explore",
        "n_pairs": len(explore),
        "n_clusters": len(set(clusters)),
        "unit": measured.batch.metric.unit,
    }
    try:
        check = checked(measured, None)
        parts = {
            "clean": mean_interval(np.array(measured.clean), clusters),
            "corrupt": mean_interval(np.array(measured.corrupt), clusters),
            "gap": mean_interval(np.array(measured.clean) - np.array(measured.corrupt), clusters),
            "accuracy": share_interval(np.array(right.clean), clusters),
        }
    except TooFewClusters as error:
        return {**found, "why": str(error)}
    found |= {name: {"value": part.estimate, "low": part.low, "high": part.high} for name, part in parts.items()}
    found["threshold"] = check.threshold
    if check.passed:
        return {**found, "shown": "yes"}
    absent = parts["gap"].high < check.threshold or parts["accuracy"].high <= 0.5
    return {**found, "shown": "no" if absent else "unclear", "why": str(no_behavior(model, task, check))}


def _show_behavior(found: dict[str, Any], model: str) -> None:
    console.show(
        f"\nDoes {model} show it? {found['shown']}. Measured on the {found['split']} split, "
        f"{found['n_pairs']} pairs in {found['n_clusters']} clusters, with 95 % intervals over clusters."
    )
    lines = {
        "clean": ("on clean", found["unit"], "the metric, mean over clusters"),
        "corrupt": ("on corrupt", found["unit"], "the metric, mean over clusters"),
        "gap": ("gap", found["unit"], f"clean minus corrupt; at least {found.get('threshold', 0):g} is needed"),
        "accuracy": ("accuracy", "share", "clean prompts that are right, mean over clusters; more than half is needed"),
    }
    for name, (label, unit, meaning) in lines.items():
        if name in found:
            part = found[name]
            console.show(f"  {label:10} {part['value']:8.3f} {unit} [{part['low']:.3f}, {part['high']:.3f}]  {meaning}")
    if found["why"]:
        console.show(found["why"])
