"""Execute a plan: for each input and each chunk of its rows, the base run, then the stacked passes that start from
it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cutaway.engine.groups import Group, Share, acts
from cutaway.engine.request import Progress, Reduce, Run
from cutaway.engine.store import Key, Stored
from cutaway.errors import OutOfMemory
from cutaway.models.activations import Activations
from cutaway.models.cache import PrefixCache
from cutaway.models.edits import Edit, Placed
from cutaway.models.forward import forward, logit_columns
from cutaway.models.known import Known, projections
from cutaway.models.model import Model, RunResult
from cutaway.models.sites import PATTERN_KINDS, Site
from cutaway.models.taps import Resume
from cutaway.models.tokens import Tokens

if TYPE_CHECKING:
    from cutaway.engine.planner import Plan

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
    digest: str
    """Of the model."""
    values: Mapping[Site, Tensor]
    logits: Columns
    wide: dict[int, Tokens] = field(default_factory=dict)
    """The rows, several times over."""

    def state(self, layer: int, start: int, times: int) -> Tensor:
        return self.values[Site("resid_post", layer - 1)][:, start:].repeat(times, 1, 1)

    def cache(self, model: Model, layer: int, start: int, times: int) -> Any:
        keys = {
            i: tuple(self.values[Site(kind, i)][:, :start].repeat(times, 1, 1, 1) for kind in _WHOLE)
            for i in range(layer, model.body.n_layers)
        }
        return PrefixCache.of(keys, model.body.n_layers, start)  # type: ignore[arg-type]

    def known(self, model: Model, group: Group, times: int) -> Known | None:
        if not group.known:
            return None
        if group.known == "z":
            value = self.values[Site("z", group.layer)][:, group.start :]
            return Known(group.layer, z=value.repeat(times, 1, 1, 1))
        found = {
            site.path or "": self.values[site][:, group.start :].repeat(times, 1, 1) for site in _inside(model, group)
        }
        return Known(group.layer, projections=found, fresh=group.fresh)

    def repeated(self, times: int) -> Tokens:
        if times not in self.wide:
            self.wide[times] = self.tokens.repeat(times) if times > 1 else self.tokens
        return self.wide[times]


def execute(plan: "Plan", progress: Progress | None, reduce: Reduce | None) -> list[Any]:
    """All results, in the order of the runs."""
    found: list[list[Any]] = [[] for _ in plan.runs]
    done, total = 0, plan.cost()
    digest, depth = plan.model.digest, max(1, plan.model.body.n_layers)
    try:
        for indices in plan.mixed:
            for index, result in zip(indices, _whole_runs(plan, indices, digest)):
                rows = torch.arange(len(plan.runs[index].inputs))
                found[index].append(result if reduce is None else reduce(result, rows))
            done += depth * plan.tokens_of(indices)
            if progress is not None:
                progress(done, total)
        for share in plan.shares:
            for first in range(0, len(share.inputs), share.rows):
                rows = list(range(first, min(first + share.rows, len(share.inputs))))
                for index, result, cost in _chunk(plan, share, rows, digest):
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


def _whole_runs(plan: "Plan", indices: Sequence[int], digest: str) -> list[RunResult]:
    """One pass of whole runs, of whatever inputs of one width."""
    runs = [plan.runs[i] for i in indices]
    firsts = [0]
    for run in runs:
        firsts.append(firsts[-1] + len(run.inputs))
    tokens = Tokens(torch.cat([run.inputs.ids for run in runs]), torch.cat([run.inputs.mask for run in runs]))
    wanted = [logit_columns(run.inputs, run.logits) for run in runs]
    union = None if any(w is None for w in wanted) else sorted({c for w in wanted for row in w or [] for c in row})
    logits, values = forward(
        plan.model,
        tokens,
        edits=[Placed(edit, run.inputs, first=first) for run, first in zip(runs, firsts) for edit in run.edits],
        reads=list(dict.fromkeys(site.base for run in runs for site in run.reads)),
        logits=None if union is None else [union] * len(tokens),
    )
    results = []
    for run, w, span in zip(runs, wanted, map(slice, firsts, firsts[1:])):
        found = Columns(None if logits is None else logits[span], union)
        kept = {site.base: values[site.base][span] for site in run.reads}
        picked = _ids_of(found.pick(w, found, 0), run.ids())
        results.append(RunResult(picked, Activations(kept, run.inputs, digest)))
    return results


def _chunk(plan: "Plan", share: Share, rows: list[int], digest: str) -> Iterator[tuple[int | None, Any, int]]:
    """Results of all runs of a share for some rows, with what each cost."""
    depth = plan.model.body.n_layers
    tokens = share.inputs if len(rows) == len(share.inputs) else share.inputs.take(rows)
    with ExitStack() as pins:
        base = _base(plan, share, rows, tokens, digest, pins)
        if share.base:
            yield None, None, len(rows) * tokens.width * depth
        for index in share.plain:
            yield index, _plain(plan.runs[index], share, base), 0
        for group in share.groups:
            left = []
            for index in group.runs:
                if group.same and share.base and _changes_nothing(plan.runs[index], base):
                    alone = replace(group, runs=(index,)).cost(len(rows), tokens.width, depth)
                    yield index, _plain(plan.runs[index], share, base), alone
                else:
                    left.append(index)
            step = plan.runs_a_pass(share, group)
            for first in range(0, len(left), step):
                indices = left[first : first + step]
                cost = replace(group, runs=tuple(indices)).cost(len(rows), tokens.width, depth)
                for i, (index, result) in enumerate(zip(indices, _pass(plan, share, group, indices, base))):
                    yield index, result, cost if i == 0 else 0


def _columns(run: Run, rows: Sequence[int], tokens: Tokens) -> list[list[int]] | None:
    logits = tuple(run.logits[r] for r in rows) if isinstance(run.logits, tuple) else run.logits
    return logit_columns(tokens, logits)


def _vocab(run: Run, rows: Sequence[int]) -> Tensor | None:
    """The ids of some rows of a run."""
    ids = run.ids()
    return None if ids is None else ids[list(rows)]


# -- the base run


def stored_sites(plan: "Plan", share: Share) -> list[Site]:
    """What the base run of a share stores: what groups start from, what plain runs ask for, and what lies before a
    group's start."""
    reads: dict[Site, None] = {site.base: None for i in share.plain for site in plan.runs[i].reads}
    for group in share.groups:
        reads |= dict.fromkeys(_needed(plan, group))
    return list(reads)


def _needed(plan: "Plan", group: Group) -> Iterator[Site]:
    model = plan.model
    if group.layer > 0:
        yield Site("resid_post", group.layer - 1)
    if group.start > 0:
        for layer in range(group.layer, model.body.n_layers):
            yield from (Site(kind, layer) for kind in _WHOLE)
    if group.known == "z":
        yield Site("z", group.layer)
    if group.known == "projections":
        yield from _inside(model, group)
    for run in (plan.runs[i] for i in group.runs):
        yield from (site.base for site in run.reads if group.same or _needs_base(model, site, group))
        if group.same:
            yield from (_kept(edit.site) for edit in run.edits)


def _inside(model: Model, group: Group) -> list[Site]:
    """The input projections of a group's first block."""
    return [Site("module", path=path) for path in projections(model, group.layer)]


def _kept(site: Site) -> Site:
    """The site that holds the same values and is likely to be stored anyway."""
    return Site("resid_post", site.layer - 1) if site.kind == "resid_pre" and site.layer else site.base


def _base(plan: "Plan", share: Share, rows: list[int], tokens: Tokens, digest: str, pins: ExitStack) -> Base:
    """One run, plain but for the edits that all runs of the share have; what a store has of it is not computed."""
    if not share.base:
        return Base(rows, tokens, digest, {}, Columns())
    reads, union = stored_sites(plan, share), stored_columns(plan, share, rows, tokens)
    store = plan.store if not share.common else None
    if store is None:
        logits, values = _base_pass(plan, share, rows, tokens, reads, union)
        return Base(rows, tokens, digest, values, Columns(logits, union))
    run: Key = (digest, tokens.digest)
    keys: dict[Site, Key] = {site: (*run, site) for site in reads}
    vocab = _share_vocab(plan, share) if share.vocab else None
    logits_key: Key = (*run, "logits", None if union is None else tuple(union), vocab)
    logits = store.get(logits_key)
    missing = [site for site, key in keys.items() if store.get(key) is None]
    absent = logits is None and union != []
    store.hits += len(reads) - len(missing) + int(logits is not None)
    store.misses += len(missing) + int(absent)
    pins.enter_context(store.pinned([*keys.values(), logits_key]))
    if missing or absent:
        fresh, values = _base_pass(plan, share, rows, tokens, missing, union if absent else [])
        for site, value in values.items():
            store.put(keys[site], value)
        if fresh is not None:
            logits = fresh
            store.put(logits_key, fresh)
    return Base(rows, tokens, digest, Stored(store, keys), Columns(logits, union))


def _base_pass(
    plan: "Plan", share: Share, rows: list[int], tokens: Tokens, reads: list[Site], union: list[int] | None
) -> tuple[Tensor | None, dict[Site, Tensor]]:
    asked = {site.base for i in share.plain for site in plan.runs[i].reads if site.kind == "module"}
    return forward(
        plan.model,
        tokens,
        edits=[Placed(edit, tokens) for edit in _for_rows(share.common, len(share.inputs), rows, tokens)],
        reads=reads,
        logits=None if union is None else [union] * len(tokens),
        vocab=_vocab(_any(plan, share), rows) if share.vocab else None,
        narrow=share.narrow,
        once=not asked,
    )


def stored_columns(plan: "Plan", share: Share, rows: list[int], tokens: Tokens) -> list[int] | None:
    """The columns whose logits somebody takes from the base run; None for all."""
    asked = [_columns(plan.runs[i], rows, tokens) for i in share.plain]
    for group in share.groups:
        for run in (plan.runs[i] for i in group.runs):
            wanted = _columns(run, rows, tokens)
            if group.same or (wanted is None and group.start > 0):
                asked.append(wanted)
            elif group.start > 0:
                asked.append([[c for c in row if c < group.start] for row in wanted or []])
    return None if any(a is None for a in asked) else sorted({c for a in asked for row in a or [] for c in row})


def _any(plan: "Plan", share: Share) -> Run:
    return plan.runs[next(iter((*share.plain, *(i for g in share.groups for i in g.runs))))]


def _share_vocab(plan: "Plan", share: Share) -> Any:
    return _any(plan, share).vocab


def _needs_base(model: Model, site: Site, group: Group) -> bool:
    return site.kind != "module" and (
        group.start > 0 or model.body.order(site.base)[0] < group.layer or _at_entry(site, group.layer)
    )


def _at_entry(site: Site, layer: int) -> bool:
    """`embed` before a resumed block: computed again by the pass, but taken from the base run like all that lies
    before."""
    return site.kind == "embed" and layer > 0


def _plain(run: Run, share: Share, base: Base) -> RunResult:
    """The result of a run that the base run is."""
    wanted = _columns(run, base.rows, base.tokens)
    values = {site.base: base.values[site.base].clone() for site in run.reads}
    found = _few(base.logits.pick(wanted, base.logits, 0), run, share, base)
    return RunResult(found, Activations(values, base.tokens, base.digest))


def _few(logits: Tensor | None, run: Run, share: Share, base: Base) -> Tensor | None:
    """Of the whole vocabulary the ids that the run asks for, where the passes did not leave out the others."""
    return _ids_of(logits, None if share.vocab else _vocab(run, base.rows))


def _ids_of(logits: Tensor | None, ids: Tensor | None) -> Tensor | None:
    """Of each row's logits those of its ids."""
    if logits is None or ids is None:
        return logits
    return logits.gather(2, ids.to(logits.device)[:, None].expand(-1, logits.shape[1], -1))


def _changes_nothing(run: Run, base: Base) -> bool:
    """Every edit of the run writes what is there already, bit for bit."""
    whole = len(base.rows) == len(run.inputs)
    edits = run.edits if whole else _for_rows(run.edits, len(run.inputs), base.rows, base.tokens)
    for edit in edits:
        there = base.values[_kept(edit.site)]
        changed = there.clone()
        Placed(edit, base.tokens).apply(changed)
        if not torch.equal(there, changed):
            return False
    return True


# -- the passes


def _pass(plan: "Plan", share: Share, group: Group, indices: Sequence[int], base: Base) -> list[RunResult]:
    """One stacked pass: the rows of each run one after another."""
    model, n, times = plan.model, len(base.rows), len(indices)
    runs = [plan.runs[i] for i in indices]
    edits = [
        Placed(edit, base.tokens, first=j * n, start=group.start)
        for j, run in enumerate(runs)
        for edit in _edits(model, share, group, run, base)
    ]
    wanted = [_columns(run, base.rows, base.tokens) for run in runs]
    columns = (
        None
        if any(w is None for w in wanted)
        else sorted({c for w in wanted for row in w or [] for c in row if c >= group.start})
    )
    reads = list(dict.fromkeys(s.base for run in runs for s in run.reads if not _before(model, s, group)))
    wide = base.repeated(times)
    ids = _vocab(runs[0], base.rows) if share.vocab else None
    out: dict[str, Any] = {
        "logits": None if columns is None else [columns] * (n * times),
        "vocab": None if ids is None else ids.repeat(times, 1),
        "narrow": share.narrow,
    }
    begin: dict[str, Any] = {
        "edits": edits,
        "start": group.start,
        "resume": Resume(group.layer, base.state(group.layer, group.start, times)) if group.layer > 0 else None,
        "cache": base.cache(model, group.layer, group.start, times) if group.start > 0 else None,
        "known": base.known(model, group, times),
    }
    if group.cut is None:
        logits, values = forward(model, wide, reads=reads, **out, **begin)
    else:
        logits, values = _end(model, wide, group.cut, out, begin)
    return [
        _result(
            model,
            run,
            w,
            share,
            base,
            group,
            Columns(None if logits is None else logits[j * n : (j + 1) * n], columns),
            values,
            slice(j * n, (j + 1) * n),
        )
        for j, (run, w) in enumerate(zip(runs, wanted))
    ]


def _end(
    model: Model, tokens: Tokens, cut: int, out: dict[str, Any], begin: dict[str, Any]
) -> tuple[Tensor | None, dict]:
    """A pass up to the last block's keys and values, then that block alone, for the columns from `cut` on."""
    last = model.body.n_layers - 1
    entry, *pair = Site("resid_pre", last), Site("k", last), Site("v", last)
    _, values = forward(model, tokens, reads=[entry, *pair], logits=[[]] * len(tokens), **begin)
    keys_values = {last: (values[pair[0]], values[pair[1]])}
    return forward(
        model,
        tokens,
        start=cut,
        resume=Resume(last, values[entry][:, cut - begin["start"] :]),
        cache=PrefixCache.of(keys_values, model.body.n_layers, cut),
        **out,
    )


def _edits(model: Model, share: Share, group: Group, run: Run, base: Base) -> Sequence[Edit]:
    """What a run changes in a pass of its group: of the edits that the base run has, those that the pass meets in these
    rows."""
    held, rest = (
        _for_rows(edits, len(run.inputs), base.rows, base.tokens) for edits in (share.common, share.rest(run))
    )
    return [*(e for e in held if acts(model.body, e, base.tokens, group.layer, group.start)), *rest]


def _for_rows(edits: Sequence[Edit], total: int, rows: Sequence[int], tokens: Tokens) -> Sequence[Edit]:
    """Edits as they act on a chunk of their rows; those that select nothing there are left out."""
    if len(rows) == total:
        return edits
    taken = [edit.take(rows) for edit in edits]
    return [edit for edit in taken if edit is not None and Placed(edit, tokens).selects()]


def _before(model: Model, site: Site, group: Group) -> bool:
    return site.kind != "module" and (model.body.order(site.base)[0] < group.layer or _at_entry(site, group.layer))


def _result(
    model: Model,
    run: Run,
    wanted: Any,
    share: Share,
    base: Base,
    group: Group,
    later: Columns,
    values: dict[Site, Tensor],
    span: slice,
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
    logits = _few(base.logits.pick(wanted, later, group.start), run, share, base)
    return RunResult(logits, Activations(found, base.tokens, base.digest))


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
