"""The planner: how a list of runs is executed. It may change the cost, never the answer (`reference` is the oracle).

For each distinct input, one base run stores what the edited runs share; then each edited run computes only
    depth      the blocks from its first edit on, from the stored residual stream
    position   in a causal model the columns from its first edit on, with the base run's keys and values before them
and runs that start at the same block and column are stacked as rows of one batch, within `max_tokens` a pass.
Neighbouring starts are merged where a pass of its own would cost more than the columns it saves. Logits are computed
only where asked, and a pass ends after its last read. Where a run returns logits of its last columns alone, the last
block gives keys and values of the columns before them and nothing else. What the model does not allow (the audit says)
is not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cutaway.engine.request import Progress, Reduce, Run
from cutaway.errors import UsageError
from cutaway.models.anatomy import Anatomy
from cutaway.models.edits import Placed, edits_of
from cutaway.models.forward import check, logit_columns
from cutaway.models.model import Model
from cutaway.models.sites import Site
from cutaway.models.taps import others_hook
from cutaway.models.tokens import Tokens

WEIGHTS_READ, DISPATCH = 8, {"cpu": 1e7}
"""What one more pass costs beyond its tokens, in tokens a layer: reading the weights costs as much as some tokens, and
launching a layer's operations as much as that many multiply-adds (other devices than the CPU: a thousand times
more)."""
KEYS_AND_VALUES = 0.25
"""What keys and values (with the queries that come along) cost, as a share of a block: a quarter in GPT-2's shape."""


@dataclass(frozen=True)
class Group:
    """Runs that start at one block and column, and are stacked as rows."""

    layer: int
    start: int
    runs: tuple[int, ...]
    cut: int | None = None
    """First column that the last block is computed for; of those before it only its keys and values. None: all."""

    def cost(self, rows: int, width: int, depth: int) -> int:
        """Tokens x layers of all its runs on `rows` rows."""
        columns, blocks = width - self.start, max(1, depth - self.layer)
        if self.cut is None:
            return len(self.runs) * rows * columns * blocks
        saved = int((1 - KEYS_AND_VALUES) * (self.cut - self.start))
        return len(self.runs) * rows * (columns * blocks - saved)


@dataclass(frozen=True)
class Share:
    """All runs on one input: a base run (or none) and the groups that start from it."""

    inputs: Tokens
    base: bool
    plain: tuple[int, ...]
    """Runs without edits: the base run itself."""
    groups: tuple[Group, ...]
    rows: int
    """Rows of the input that are computed together."""


@dataclass(frozen=True)
class Explanation:
    """What a plan costs. All costs in tokens x layers; `str` is the report."""

    runs: int
    naive: int
    """One full forward pass a run."""
    planned: int
    bound: int
    """Only what an edit can change, computed once, with base runs; no plan of exact passes over whole blocks is
    cheaper."""
    passes: int
    base_passes: int
    widest: int
    """Tokens of the largest pass."""
    notes: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Naive over planned."""
        return self.naive / max(1, self.planned)

    def __str__(self) -> str:
        lines = [
            f"{self.runs} runs in {self.passes} passes ({self.base_passes} of them base runs), at most "
            f"{self.widest} tokens a pass",
            f"{self.planned:,} tokens x layers instead of {self.naive:,}: {self.ratio:.1f} times fewer (bound "
            f"{self.naive / max(1, self.bound):.1f})",
            *self.notes,
        ]
        return "\n".join(lines)


class Plan:
    """How a list of runs will be executed. `explain()` before, `execute()` then."""

    def __init__(
        self, model: Model, runs: Sequence[Run], shares: Sequence[Share], max_tokens: int, hooked: str | None = None
    ) -> None:
        self.model, self.runs, self.shares, self.max_tokens = model, tuple(runs), tuple(shares), max_tokens
        self.hooked = hooked
        """A module with a hook of somebody else's: then every run is a full pass of its own."""

    def explain(self) -> Explanation:
        """Cost of this plan beside the naive count and the lower bound."""
        depth = max(1, self.model.body.n_layers)
        naive = sum(len(run.inputs) * run.inputs.width for run in self.runs) * depth
        return Explanation(
            runs=len(self.runs),
            naive=naive,
            planned=sum(_share_cost(share, depth) for share in self.shares),
            bound=sum(self._bound(share, depth) for share in self.shares),
            passes=sum(self._passes(share) for share in self.shares),
            base_passes=sum(_chunks(share) for share in self.shares if share.base),
            widest=max((self._widest(share) for share in self.shares), default=0),
            notes=self._notes(),
        )

    def execute(self, *, progress: Progress | None = None, reduce: Reduce | None = None) -> list[Any]:
        """Run the plan. Returns one RunResult a run, in order; with `reduce`, one tensor a run (rows first).

        With `reduce` nothing else is kept, so memory does not grow with the number of runs. Raises what runs raise:
        EditNeverApplied, EditFailed, OutOfMemory (with a `max_tokens` that would fit).
        """
        from cutaway.engine.execute import execute

        return execute(self, progress, reduce)

    def cost(self) -> int:
        """Planned tokens x layers; what `progress` counts to."""
        return sum(_share_cost(share, max(1, self.model.body.n_layers)) for share in self.shares)

    def runs_a_pass(self, share: Share, group: Group) -> int:
        """How many runs of a group are stacked in one pass."""
        return max(1, self.max_tokens // (min(share.rows, len(share.inputs)) * (share.inputs.width - group.start)))

    def _passes(self, share: Share) -> int:
        stacked = sum(
            -(-len(group.runs) // self.runs_a_pass(share, group)) * (1 if group.cut is None else 2)
            for group in share.groups
        )
        return _chunks(share) * (stacked + (1 if share.base else 0))

    def _widest(self, share: Share) -> int:
        rows, width = min(share.rows, len(share.inputs)), share.inputs.width
        stacked = [min(len(g.runs), self.runs_a_pass(share, g)) * rows * (width - g.start) for g in share.groups]
        return max([*stacked, rows * width if share.base else 0])

    def _bound(self, share: Share, depth: int) -> int:
        rows, width = len(share.inputs), share.inputs.width
        alone = [Group(*_start(self.model.body, self.runs[i]), (i,)) for group in share.groups for i in group.runs]
        least = [replace(g, cut=_cut(self.model, [self.runs[g.runs[0]]], g, 0)) for g in alone]
        edited = sum(g.cost(rows, width, depth) for g in least)
        return edited + (rows * width * depth if share.base or share.plain else 0)

    def _notes(self) -> tuple[str, ...]:
        if self.hooked is not None:
            return (f"one full pass a run: module {self.hooked!r} has a hook that may depend on rows and positions",)
        body = self.model.body
        why = [("starting at a later layer", body.resume), ("starting at a later position", body.suffix)]
        return tuple(f"not used: {what}: {reason}" for what, reason in why if reason)


def plan(model: Model, runs: Sequence[Run], *, max_tokens: int = 4096) -> Plan:
    """Plan a list of runs. All of it is checked here, before anything runs.

    Args:
        max_tokens: tokens a pass may hold, stored states included; it bounds memory and never changes a result beyond
            the rounding of differently shaped products.
    """
    if max_tokens < 1:
        raise UsageError(f"max_tokens={max_tokens}: at least 1")
    if not runs:
        raise UsageError("no runs: nothing to plan")
    by_inputs: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        same = by_inputs.setdefault(run.inputs.digest, [])
        if not same:
            model.admit(run.inputs)
        _check(model, index, run)
        same.append(index)
    hooked = others_hook(model.module)
    share = _share if hooked is None else _separate
    return Plan(
        model, runs, [share(model, runs, found, max_tokens) for found in by_inputs.values()], max_tokens, hooked
    )


def _check(model: Model, index: int, run: Run) -> None:
    if not run.reads and run.logits == "none":
        raise UsageError(f"run {index} returns nothing: ask for reads, or for logits", run=index)
    for site in run.reads:
        if not isinstance(site, Site):
            raise UsageError(
                f"run {index}: reads hold {site!r}, which is no site; give sites.z[1] or Site.parse('z.1')"
            )
    check(model, [Placed(edit, run.inputs) for edit in edits_of(run.edits)], run.reads)
    logit_columns(run.inputs, run.logits)


def _share(model: Model, runs: Sequence[Run], indices: Sequence[int], max_tokens: int) -> Share:
    inputs, depth = runs[indices[0]].inputs, max(1, model.body.n_layers)
    rows = max(1, min(len(inputs), max_tokens // inputs.width))
    starts: dict[tuple[int, int], list[int]] = {}
    for i in indices:
        if runs[i].edits:
            starts.setdefault(_start(model.body, runs[i]), []).append(i)
    plain = tuple(i for i in indices if not runs[i].edits)
    extra = pass_overhead(model)
    merged = _merged(starts, len(inputs), inputs.width, depth, extra)
    groups = tuple(replace(g, cut=_cut(model, [runs[i] for i in g.runs], g, extra)) for g in merged)
    base = bool(plain) or any(g.layer > 0 or g.start > 0 for g in groups)
    share = Share(inputs, base, plain, groups, rows)
    if base and not plain:
        flat = Share(inputs, False, (), (Group(0, 0, tuple(i for g in groups for i in g.runs)),), rows)
        if _share_cost(flat, depth, extra) <= _share_cost(share, depth, extra):
            return flat
    return share


def _separate(model: Model, runs: Sequence[Run], indices: Sequence[int], max_tokens: int) -> Share:  # noqa: ARG001 - as _share
    """Nothing shared but plain runs: a hook of somebody else's must see each run whole."""
    inputs, plain = runs[indices[0]].inputs, tuple(i for i in indices if not runs[i].edits)
    groups = tuple(Group(0, 0, (i,)) for i in indices if runs[i].edits)
    return Share(inputs, bool(plain), plain, groups, len(inputs))


def _start(body: Anatomy, run: Run) -> tuple[int, int]:
    """(first block, first column) that a run must compute."""
    reads_modules = [site for site in run.reads if site.kind == "module"]
    layer = min(body.order(site)[0] for site in [*(e.site for e in run.edits), *reads_modules])
    layer = max(0, layer) if not body.resume else 0
    if body.suffix or reads_modules or any(e.site.kind == "module" for e in run.edits):
        return layer, 0
    return layer, min((min(_first_columns(run.inputs, e.site)) for e in run.edits), default=0)


def _first_columns(inputs: Tokens, site: Site) -> list[int]:
    if site.pos is None or site.kind == "logits":
        return [0]
    columns = inputs.columns(site.pos)
    rows = site.batch_rows if site.batch_rows is not None else range(len(inputs))
    found = [min(columns[row]) for row in rows if columns[row]]
    return found or [0]


def _cut(model: Model, runs: Sequence[Run], group: Group, extra: int) -> int | None:
    """The first column whose logits are asked for, when nothing else of what the last block computes is."""
    body, last = model.body, model.body.n_layers - 1
    if body.resume or body.suffix or not group.layer <= last or last < 1 or any(run.reads for run in runs):
        return None
    inside = body.order(Site("resid_mid", last))
    if any(e.site.kind == "module" or body.order(e.site) >= inside for run in runs for e in run.edits):
        return None
    wanted = [logit_columns(run.inputs, run.logits) for run in runs]
    if any(columns is None for columns in wanted):
        return None
    cut = min(column for columns in wanted for row in columns or [] for column in row)
    saved = len(runs) * len(runs[0].inputs) * (1 - KEYS_AND_VALUES) * (cut - group.start)
    return cut if cut > group.start and saved > extra else None


def pass_overhead(model: Model) -> int:
    """Tokens a layer that one more pass costs: few for wide models, hundreds for toy ones."""
    block = model.module.get_submodule(model.body.layers[0].block)
    weights = max(1, sum(p.numel() for p in block.parameters()))
    return int(WEIGHTS_READ + DISPATCH.get(model.device.type, 1e10) / weights)


def _merged(starts: dict[tuple[int, int], list[int]], rows: int, width: int, depth: int, extra: int) -> list[Group]:
    """For each block the cheapest partition of its start columns into neighbours that share a pass (dynamic
    programme)."""
    groups: list[Group] = []
    for layer in sorted({layer for layer, _ in starts}):
        columns = sorted(column for at, column in starts if at == layer)
        counts = [len(starts[(layer, column)]) for column in columns]
        best: list[tuple[float, int]] = [(0.0, 0)]
        for end in range(1, len(columns) + 1):
            options = [
                (
                    best[first][0]
                    + (sum(counts[first:end]) * rows * (width - columns[first]) + extra) * max(1, depth - layer),
                    first,
                )
                for first in range(end)
            ]
            best.append(min(options))
        end = len(columns)
        while end > 0:
            first = best[end][1]
            merged = [i for column in columns[first:end] for i in starts[(layer, column)]]
            groups.append(Group(layer, columns[first], tuple(merged)))
            end = first
    return sorted(groups, key=lambda g: (g.layer, g.start))


def _chunks(share: Share) -> int:
    return -(-len(share.inputs) // share.rows)


def _share_cost(share: Share, depth: int, extra: int = 0) -> int:
    rows, width = len(share.inputs), share.inputs.width
    passes = extra * (len(share.groups) + int(share.base)) * depth
    base = rows * width * depth if share.base else 0
    return base + passes + sum(g.cost(rows, width, depth) for g in share.groups)
