"""Execute a plan: for each input and each chunk of its rows, the base run, then the stacked passes that start from
it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cutaway.engine.request import Progress, Reduce, Run
from cutaway.errors import OutOfMemory
from cutaway.models.activations import Activations
from cutaway.models.cache import PrefixCache
from cutaway.models.edits import Edit, Placed
from cutaway.models.forward import forward, logit_columns
from cutaway.models.model import Model, RunResult
from cutaway.models.sites import PATTERN_KINDS, Site
from cutaway.models.taps import Resume
from cutaway.models.tokens import Tokens

if TYPE_CHECKING:
    import cutaway.engine.planner

_WHOLE = ("k", "v")
"""Sites that a pass with cached keys returns for all columns."""


@dataclass
class Columns:
    """Logits of some columns, the same for every row: `values` [batch column d_vocab], `at` says which (None: all)."""

    values: Tensor | None = None
    at: list[int] | None = field(default_factory=list)

    def pick(self, wanted: list[list[int]] | None, later: "Columns", start: int) -> Tensor | None:
        """The wanted columns of each row; columns from `start` on come from `later`."""
        if wanted is None:
            parts = ([self.values[:, :start]] if start and self.values is not None else []) + [later.values]
            return torch.cat([p for p in parts if p is not None], 1)
        if not any(wanted):
            return None
        if all(column >= start for row in wanted for column in row):
            return later.gather(wanted)
        rows = [
            [(self if c < start else later).gather([[c]] * (r + 1))[r, 0] for c in row] for r, row in enumerate(wanted)
        ]
        return torch.stack([torch.stack(row) for row in rows])

    def gather(self, wanted: list[list[int]]) -> Tensor:
        """Each row's own columns."""
        assert self.values is not None
        place = None if self.at is None else {column: i for i, column in enumerate(self.at)}
        index = torch.tensor(
            [[c if place is None else place[c] for c in row] for row in wanted], device=self.values.device
        )
        return self.values[torch.arange(len(wanted), device=index.device)[:, None], index]


@dataclass
class Base:
    """What the base run of some rows stored."""

    rows: list[int]
    tokens: Tokens
    values: dict[Site, Tensor]
    logits: Columns

    def state(self, layer: int, start: int, times: int) -> Tensor:
        return self.values[Site("resid_post", layer - 1)][:, start:].repeat(times, 1, 1)

    def cache(self, model: Model, layer: int, start: int, times: int) -> Any:
        keys = {
            i: (self.values[Site("k", i)].repeat(times, 1, 1, 1), self.values[Site("v", i)].repeat(times, 1, 1, 1))
            for i in range(layer, model.body.n_layers)
        }
        return PrefixCache.of(keys, model.body.n_layers, start)


def execute(plan: "cutaway.engine.planner.Plan", progress: Progress | None, reduce: Reduce | None) -> list[Any]:
    """All results, in the order of the runs."""
    found: list[list[Any]] = [[] for _ in plan.runs]
    done, total = 0, plan.cost()
    try:
        for share in plan.shares:
            for first in range(0, len(share.inputs), share.rows):
                rows = list(range(first, min(first + share.rows, len(share.inputs))))
                for index, result, cost in _chunk(plan, share, rows):
                    if index is not None:
                        found[index].append(result if reduce is None else reduce(result, torch.tensor(rows)))
                    done += cost
                    if progress is not None and cost:
                        progress(min(done, total), total)
    except OutOfMemory as error:
        fit = max(1, plan.max_tokens // 2)
        raise OutOfMemory(
            f"{error}. In a plan: execute it with max_tokens={fit} (now {plan.max_tokens})",
            **{**error.fields, "fit": fit},
        ) from error
    return [_joined(parts, run) for parts, run in zip(found, plan.runs)]


def _chunk(plan: "cutaway.engine.planner.Plan", share: Any, rows: list[int]) -> Iterator[tuple[int | None, Any, int]]:
    """Results of all runs of a share for some rows, with what each cost."""
    model, depth = plan.model, plan.model.body.n_layers
    tokens = share.inputs if len(rows) == len(share.inputs) else share.inputs.take(rows)
    base = _base(plan, share, rows, tokens) if share.base else Base(rows, tokens, {}, Columns())
    if share.base:
        yield None, None, len(rows) * tokens.width * depth
    for index in share.plain:
        run = plan.runs[index]
        wanted = _columns(run, rows, tokens)
        values = {site.base: base.values[site.base].clone() for site in run.reads}
        yield index, RunResult(base.logits.pick(wanted, base.logits, 0), Activations(values, tokens, model.digest)), 0
    for group in share.groups:
        step = plan.runs_a_pass(share, group)
        for first in range(0, len(group.runs), step):
            indices = group.runs[first : first + step]
            cost = replace(group, runs=indices).cost(len(rows), tokens.width, depth)
            for i, (index, result) in enumerate(zip(indices, _pass(plan, group, indices, base))):
                yield index, result, cost if i == 0 else 0


def _columns(run: Run, rows: Sequence[int], tokens: Tokens) -> list[list[int]] | None:
    logits = tuple(run.logits[r] for r in rows) if isinstance(run.logits, tuple) else run.logits
    return logit_columns(tokens, logits)


def _base(plan: "cutaway.engine.planner.Plan", share: Any, rows: list[int], tokens: Tokens) -> Base:
    """One plain run that stores what groups start from, what plain runs ask for, and what lies before a group's
    start."""
    reads: dict[Site, None] = {site.base: None for i in share.plain for site in plan.runs[i].reads}
    asked = [_columns(plan.runs[i], rows, tokens) for i in share.plain]
    for group in share.groups:
        if group.layer > 0:
            reads[Site("resid_post", group.layer - 1)] = None
        if group.start > 0:
            reads |= {
                Site(kind, layer): None for layer in range(group.layer, plan.model.body.n_layers) for kind in _WHOLE
            }
        for run in (plan.runs[i] for i in group.runs):
            reads |= {site.base: None for site in run.reads if _needs_base(plan.model, site, group)}
            if group.start > 0:
                wanted = _columns(run, rows, tokens)
                early = None if wanted is None else [[c for c in row if c < group.start] for row in wanted]
                asked += [early] if early is None or any(early) else []
    union = None if any(a is None for a in asked) else sorted({c for a in asked for row in a or [] for c in row})
    logits, values = forward(
        plan.model, tokens, reads=list(reads), logits=None if union is None else [union] * len(tokens)
    )
    return Base(rows, tokens, values, Columns(logits, union))


def _needs_base(model: Model, site: Site, group: Any) -> bool:
    return site.kind != "module" and (
        group.start > 0 or model.body.order(site.base)[0] < group.layer or _at_entry(site, group.layer)
    )


def _at_entry(site: Site, layer: int) -> bool:
    """`embed` before a resumed block: computed again by the pass, but taken from the base run like all that lies
    before."""
    return site.kind == "embed" and layer > 0


def _pass(plan: "cutaway.engine.planner.Plan", group: Any, indices: Sequence[int], base: Base) -> list[RunResult]:
    """One stacked pass: the rows of each run one after another."""
    model, n, times = plan.model, len(base.rows), len(indices)
    runs = [plan.runs[i] for i in indices]
    edits = [
        Placed(edit, base.tokens, first=j * n, start=group.start)
        for j, run in enumerate(runs)
        for edit in (run.edits if n == len(run.inputs) else _for_rows(run, base))
    ]
    wanted = [_columns(run, base.rows, base.tokens) for run in runs]
    columns = (
        None
        if any(w is None for w in wanted)
        else sorted({c for w in wanted for row in w or [] for c in row if c >= group.start})
    )
    reads = list(dict.fromkeys(s.base for run in runs for s in run.reads if not _before(model, s, group)))
    wide = base.tokens.repeat(times) if times > 1 else base.tokens
    asked = None if columns is None else [columns] * (n * times)
    begin: dict[str, Any] = {
        "edits": edits,
        "start": group.start,
        "resume": Resume(group.layer, base.state(group.layer, group.start, times)) if group.layer > 0 else None,
        "cache": base.cache(model, group.layer, group.start, times) if group.start > 0 else None,
    }
    if group.cut is None:
        logits, values = forward(model, wide, reads=reads, logits=asked, **begin)
    else:
        logits, values = _end(model, wide, group.cut, asked, begin)
    return [
        _result(
            model,
            run,
            w,
            base,
            group,
            Columns(None if logits is None else logits[j * n : (j + 1) * n], columns),
            values,
            slice(j * n, (j + 1) * n),
        )
        for j, (run, w) in enumerate(zip(runs, wanted))
    ]


def _end(model: Model, tokens: Tokens, cut: int, asked: Any, begin: dict[str, Any]) -> tuple[Tensor | None, dict]:
    """A pass up to the last block's keys and values, then that block alone, for the columns from `cut` on."""
    last = model.body.n_layers - 1
    entry, *pair = Site("resid_pre", last), Site("k", last), Site("v", last)
    _, values = forward(model, tokens, reads=[entry, *pair], logits=[[]] * len(tokens), **begin)
    keys_values = {last: (values[pair[0]], values[pair[1]])}
    return forward(
        model,
        tokens,
        logits=asked,
        start=cut,
        resume=Resume(last, values[entry][:, cut - begin["start"] :]),
        cache=PrefixCache.of(keys_values, model.body.n_layers, cut),
    )


def _for_rows(run: Run, base: Base) -> list[Edit]:
    """A run's edits as they act on a chunk of its rows; those that select nothing there are left out."""
    taken = [edit.take(base.rows) for edit in run.edits]
    return [edit for edit in taken if edit is not None and Placed(edit, base.tokens).selects()]


def _before(model: Model, site: Site, group: Any) -> bool:
    return site.kind != "module" and (model.body.order(site.base)[0] < group.layer or _at_entry(site, group.layer))


def _result(
    model: Model, run: Run, wanted: Any, base: Base, group: Any, later: Columns, values: dict[Site, Tensor], span: slice
) -> RunResult:
    found: dict[Site, Tensor] = {}
    for site in dict.fromkeys(s.base for s in run.reads):
        if _before(model, site, group):
            found[site] = base.values[site].clone()
        elif group.start == 0 or site.kind in _WHOLE:
            found[site] = values[site][span]
        else:
            axis = 2 if site.kind in PATTERN_KINDS else 1
            found[site] = torch.cat([base.values[site].narrow(axis, 0, group.start), values[site][span]], axis)
    return RunResult(base.logits.pick(wanted, later, group.start), Activations(found, base.tokens, model.digest))


def _joined(parts: list[Any], run: Run) -> Any:
    """Chunks of rows, put together again."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    logits = None if parts[0].logits is None else torch.cat([p.logits for p in parts])
    first: Activations = parts[0].activations
    values = {site: torch.cat([p.activations.tensors[site] for p in parts]) for site in first}
    return RunResult(logits, Activations(values, run.inputs, first.model))
