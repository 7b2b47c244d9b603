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
Groups: TypeAlias = Site | SiteSet | str | Iterable[Site | SiteSet | str | Sequence[Site | SiteSet | str]]
"""The same, where an entry may be a list: its sites are then edited together, as one cell."""
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
    wanted = places(found, positions, batch)
    return found if wanted is None else [site.at(position) for site in found for position in wanted]


def grouped(
    model: Model,
    sites: Groups,
    positions: Positions,
    batch: Batch,
    *,
    window: int | None = None,
    together: bool = False,
) -> list[tuple[str, tuple[Site, ...]]]:
    """Label and sites of each cell: one site, a list of sites, a window of layers, or all at once. Nothing is run.

    A window takes `window` consecutive layers of the sites of one kind (head, position); there is a cell for each place
    where it fits, labelled `mlp_out.2:5`.
    """
    if window is not None and (isinstance(window, bool) or window < 1):
        raise UsageError(f"window={window}: a window holds at least one layer", window=window)
    items = [sites] if isinstance(sites, Site | SiteSet | str) else list(sites)
    lists = [[item] if isinstance(item, Site | SiteSet | str) else list(item) for item in items]
    nested = any(not isinstance(item, Site | SiteSet | str) for item in items)
    if window is not None and (together or nested):
        raise UsageError(
            f"window={window} makes cells of its own; leave out together= and lists of sites, or leave out the window",
            window=window,
        )
    flat = [one for members in lists for one in members]
    if window is not None and window > 1:
        found = model.body.expand(flat)
        return _windows(found, window, places(found, positions, batch))
    if together:
        groups = [model.body.expand(flat)]
    elif nested:
        groups = []
        for item, members in zip(items, lists):
            found = model.body.expand(members)
            groups += [[site] for site in found] if isinstance(item, Site | SiteSet | str) else [found]
    else:
        groups = [[site] for site in model.body.expand(flat)]
    wanted = places([site for group in groups for site in group], positions, batch)
    cells = [
        tuple(group) if position is None else tuple(site.at(position) for site in group)
        for group in groups
        for position in (wanted or [None])
    ]
    return list({joined(cell): (joined(cell), cell) for cell in cells}.values())


def _windows(
    found: Sequence[Site], width: int, wanted: Sequence[str | int] | None
) -> list[tuple[str, tuple[Site, ...]]]:
    lines: dict[Site, dict[int, Site]] = {}
    for site in found:
        if site.layer is None:
            raise UsageError(f"site {str(site)!r}: it exists once, so no window of layers holds it", site=str(site))
        lines.setdefault(replace(site, layer=0), {})[site.layer] = site
    cells: list[tuple[str, tuple[Site, ...]]] = []
    for template, layers in lines.items():
        firsts = [first for first in sorted(layers) if all(first + i in layers for i in range(width))]
        if not firsts:
            raise UsageError(
                f"window={width}: no {width} of the layers {sorted(layers)} of {template.kind} are consecutive; give a "
                "smaller window, or more layers",
                window=width,
            )
        for first in firsts:
            members = [layers[first + i] for i in range(width)]
            for position in wanted or [None]:
                label = SiteSet(template.kind, slice(first, first + width), template)
                cell = tuple(members) if position is None else tuple(site.at(position) for site in members)
                shown = label if position is None else label.at(position)
                cells.append((str(shown), cell))
    return cells


def places(found: Sequence[Site], positions: Positions, batch: Batch) -> list[str | int] | None:
    """The positions of a request, each checked against the rows; None for None."""
    if positions is None:
        return None
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
    return wanted


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
    plain = [Run(batch.clean, logits=batch.logits, vocab=batch.vocab)]
    plain += [Run(batch.corrupt, logits=batch.logits, vocab=batch.vocab)]
    runs = [*plain, *(Run(inputs, edits=cell.edits, logits=batch.logits, vocab=batch.vocab) for cell in cells)]
    plan = engine.plan(model, runs, max_tokens=max_tokens)
    scores = plan.execute(progress=progress, reduce=scorer(batch))
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


def stage(progress: Progress | None, index: int, of: int) -> Progress | None:
    """The callback of one of several equally long stages of a method."""
    if progress is None:
        return None
    return lambda done, total: progress(1000 * index + 1000 * done // max(1, total), 1000 * of)


def joined(sites: Iterable[Site]) -> str:
    """Label of a cell that edits several sites."""
    return TOGETHER.join(map(str, sites))


def scorer(batch: Batch) -> engine.Reduce:
    """What a plan of runs with the batch's `logits` and `vocab` is reduced to: the scores of a row."""
    if batch.vocab is not None:
        return lambda result, rows: batch.picked_scores(required(result.logits))  # noqa: ARG005 - as Reduce
    return lambda result, rows: batch.row_scores(required(result.logits), rows)


def required(logits: Tensor | None) -> Tensor:
    """The logits of a run that asked for them."""
    assert logits is not None  # every run here asks for logits
    return logits
