"""Measuring cells: every edit of a list, run on one side of a task's pairs and scored by its metric, in one plan.

The methods of this folder differ in what they write into a cell; this is the part that they share. Logits are reduced
to the scores of a row while the plan runs, so memory does not grow with the number of cells.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance, digest
from cutaway.engine import Run
from cutaway.errors import Misaligned, UnknownName, UsageError, did_you_mean
from cutaway.models import Activations, Edit, Model, Site, SiteSet, Tokens
from cutaway.patching.effects import TOGETHER, Effects
from cutaway.tasks import Batch, Task

Wanted: TypeAlias = Site | SiteSet | str | Iterable[Site | SiteSet | str]
"""Sites as a caller writes them: values, texts, sets, or several of these."""
Positions: TypeAlias = str | Sequence[str | int] | None
"""Roles and indices into the unpadded row, one or several (named twice counts once); "each": every position of the
prompt; None: all at once."""
Progress: TypeAlias = Callable[[int, int], None]

MAX_TOKENS = 4096
"""Tokens of one forward pass, by default."""


@dataclass(frozen=True)
class Cell:
    """What one number a pair is measured for: a set of edits made together."""

    label: str
    edits: tuple[Edit, ...]


def encode(model: Model, task: Task | Batch) -> Batch:
    """The task as rows of this model; a batch passes through. For `kl`, the clean run is measured: one forward pass.

    Raises UsageError for what is neither.
    """
    if not isinstance(task, Task | Batch):
        named = f"cutaway.tasks.get({task!r}, model)" if isinstance(task, str) else "cutaway.tasks.Task.load(path)"
        raise UsageError(f"task {task!r} is a {type(task).__name__}; give a Task, as from {named}", task=str(task))
    batch = task.encode(model) if isinstance(task, Task) else task
    if batch.metric.reads == "distribution" and batch.reference is None:
        return batch.with_reference(required(model.run(batch.clean, logits="end").logits))
    return batch


def side(batch: Batch, name: str) -> Tokens:
    """Rows of one side of the pairs."""
    return batch.clean if name == "clean" else batch.corrupt


def other(name: str) -> str:
    """The other side."""
    return "corrupt" if name == "clean" else "clean"


def choose(option: str, value: str, known: Sequence[str]) -> None:
    """Refuse (UnknownName) a value that is not in an option's list."""
    if value not in known:
        raise UnknownName(
            f"{option}={value!r}: it is one of {', '.join(known)}.{did_you_mean(value, known)}", name=value
        )


def place(model: Model, sites: Wanted, positions: Positions, batch: Batch) -> list[Site]:
    """One site a cell: the sites in their order, each at every position. Nothing is run."""
    found = model.body.expand(sites)
    if positions is None:
        return found
    fixed = next((site for site in found if site.pos is not None), None)
    if fixed is not None:
        raise UsageError(
            f"site {str(fixed)!r} has its position already; leave out positions=, or the site's own", site=str(fixed)
        )
    if positions == "each":
        wanted: list[str | int] = list(range(prompt_length(batch)))
    else:
        wanted = [positions] if isinstance(positions, str) else list(dict.fromkeys(positions))
    if not wanted:
        raise UsageError("positions=[]: no position was given; name at least one, or leave it out to edit all at once")
    for position in wanted:
        batch.clean.positions(position)
    return [site.at(position) for site in found for position in wanted]


def prompt_length(batch: Batch) -> int:
    """Tokens of every prompt, answers left out. Raises Misaligned when the prompts are not equally long."""
    lengths = {end + 1 for end in batch.clean.roles["end"]}
    if len(lengths) > 1:
        raise Misaligned(
            f"the prompts have {min(lengths)} to {max(lengths)} tokens, so 'each position' is another place in each; "
            f"name roles instead ({', '.join(batch.roles)}), or choose pairs of one length",
            lengths=sorted(lengths),
        )
    return lengths.pop()


def only(acts: Activations, site: Site) -> Activations:
    """The values of one site alone: an edit that travels with its rows should not carry the others along."""
    return Activations({site.base: acts[site.base]}, acts.tokens, acts.model)


def part(batch: Batch, pairs: Sequence[int]) -> Batch:
    """Some pairs of a batch, with all rows that belong to them."""
    rows = [*pairs, *(pair + batch.n for pair in pairs)] if batch.stacked else list(pairs)
    return replace(
        batch,
        clean=batch.clean.take(rows),
        corrupt=batch.corrupt.take(rows),
        ids=tuple(batch.ids[i] for i in pairs),
        clusters=tuple(batch.clusters[i] for i in pairs),
        answers=tuple(batch.answers[i] for i in pairs),
        foils=tuple(batch.foils[i] for i in pairs),
        reference=None if batch.reference is None else batch.reference[list(pairs)],
    )


def measure(
    model: Model,
    batch: Batch,
    cells: Sequence[Cell],
    *,
    on: str,
    method: str,
    seed: int | None = None,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Effects:
    """The metric of both unedited sides and of every cell, in one plan.

    Cost: two runs of all rows, and one a cell of what its edit can change.
    """
    inputs = side(batch, on)
    runs = [Run(batch.clean, logits=batch.logits), Run(batch.corrupt, logits=batch.logits)]
    runs += [Run(inputs, edits=cell.edits, logits=batch.logits) for cell in cells]
    plan = engine.plan(model, runs, max_tokens=max_tokens)
    scores = plan.execute(
        progress=progress, reduce=lambda result, rows: batch.row_scores(required(result.logits), rows)
    )
    clean, corrupt, *values = (batch.combine(rows).detach().cpu() for rows in scores)
    return effects(
        model,
        batch,
        [cell.label for cell in cells],
        torch.stack(values),
        clean,
        corrupt,
        on=on,
        method=method,
        seed=seed,
    )


def effects(
    model: Model,
    batch: Batch,
    labels: Sequence[str],
    values: Tensor,
    clean: Tensor,
    corrupt: Tensor,
    *,
    on: str,
    method: str,
    seed: int | None,
) -> Effects:
    """The record of measured values, with where they came from."""
    return Effects(
        labels=tuple(labels),
        values=values,
        clean=clean,
        corrupt=corrupt,
        on=on,
        method=method,
        metric=batch.metric.name,
        unit=batch.metric.unit,
        sign=batch.metric.sign,
        clusters=batch.clusters,
        ids=batch.ids,
        provenance=provenance(model, batch, seed),
    )


def provenance(model: Model, batch: Batch, seed: int | None) -> Provenance:
    """Model, rows and metric, code and seed of a result."""
    data = digest(
        [
            batch.clean.digest,
            batch.corrupt.digest,
            batch.metric.name,
            batch.answers,
            batch.foils,
            batch.clusters,
            batch.ids,
        ]
    )
    return Provenance(model.digest, data, importlib.import_module("cutaway").__version__, seed)


def joined(sites: Iterable[Site]) -> str:
    """Label of a cell that edits several sites."""
    return TOGETHER.join(map(str, sites))


def required(logits: Tensor | None) -> Tensor:
    """The logits of a run that asked for them."""
    assert logits is not None  # every run here asks for logits
    return logits
