"""`cutaway tasks`: the behaviors that come with cutaway, and what a task holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson, Command
from cutaway.errors import UsageError

if TYPE_CHECKING:
    from cutaway.models import Model
    from cutaway.tasks import Task

app = typer.Typer(no_args_is_help=True, help="Tasks: the behaviors that come with cutaway, and what a task holds.")

TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A built-in task, or a task file (JSON lines).")]
Pairs = Annotated[int | None, typer.Option("--n", min=1, metavar="N", help="Pairs to make; only for built-in tasks.")]
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
    console.say("A task file (JSON lines) is a TASK too.")


@app.command(cls=Command)
def show(
    task: TaskName,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="The model whose tokens the pairs are shown in.")
    ] = "induction-2l",
    n: Pairs = None,
    seed: Seed = 0,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Pairs to show of each split.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show what TASK holds, and that its pairs align in the tokens of MODEL."""
    import cutaway

    console.python(
        f"import cutaway\n\nmodel = cutaway.load({model!r})\n{code(task, n, seed)}\nbatch = task.encode(model)"
    )
    loaded = cutaway.load(model)
    found = resolve(task, loaded, n=n, seed=seed)
    batch = found.encode(loaded)
    if as_json:
        console.emit(_as_data(found))
        return
    console.show(f"{found.name}: {found.description}")
    console.show(f"metric {batch.metric.name} in {batch.metric.unit}: {batch.metric.doc}")
    console.show(
        f"{len(found)} pairs in {len(found.clusters)} clusters; splits {found.splits}; roles {', '.join(found.roles)}"
    )
    shown = [row for split in found.splits for row in _of_split(found, split)[:examples]]
    for row in shown:
        pair = found.pairs[row]
        console.show(f"\n{pair.id} ({pair.split}, cluster {pair.cluster})")
        console.show(f"  clean    {_strip(loaded, batch.clean.row(row))}  ->  {_answer(loaded, pair.answer)}")
        console.show(f"  corrupt  {_strip(loaded, batch.corrupt.row(row))}  ->  {_answer(loaded, pair.foil)}")


def resolve(name: str, model: "Model", *, n: int | None, seed: int) -> "Task":
    """The task that a TASK argument means: a file when it looks like one or is one, else a built-in."""
    from cutaway import tasks

    if not _is_file(name):
        return tasks.get(name, model, n=n, seed=seed)
    if n is not None:
        raise UsageError(f"--n {n}: {name} is a file, its pairs are what they are; leave --n out", n=n, task=name)
    if not Path(name).is_file():
        raise UsageError(f"task {name!r}: no such file; built-in tasks are {', '.join(tasks.names())}", task=name)
    return tasks.Task.load(Path(name))


def code(name: str, n: int | None, seed: int) -> str:
    """The Python that `resolve` stands for."""
    if _is_file(name):
        return f"task = cutaway.tasks.Task.load({name!r})"
    return f"task = cutaway.tasks.get({name!r}, model{'' if n is None else f', n={n}'}, seed={seed})"


def _as_data(task: "Task") -> dict[str, object]:
    names = ("name", "description", "metric", "roles", "splits", "clusters", "seed", "digest", "pairs")
    return {name: getattr(task, name) for name in names}


def _is_file(name: str) -> bool:
    return name.endswith(".jsonl") or Path(name).is_file()


def _of_split(task: "Task", split: str) -> list[int]:
    return [row for row, pair in enumerate(task.pairs) if pair.split == split]


def _strip(model: "Model", ids: list[int]) -> str:
    """Tokens with their borders showing."""
    return "|".join(model.strings(ids))


def _answer(model: "Model", answer: str | int | tuple[int, ...]) -> str:
    return (
        repr(answer)
        if isinstance(answer, str)
        else _strip(model, [answer] if isinstance(answer, int) else list(answer))
    )
