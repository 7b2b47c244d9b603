"""The planner: how a list of runs is executed. It may change the cost, never the answer (`reference` is the oracle).

For each distinct input, one base run stores what the edited runs share; then each edited run computes only
    depth      the blocks from its first edit on, from the stored residual stream
    position   in a causal model the columns from its first edit on, with the base run's keys and values before them
and runs that start at the same block and column are stacked as rows of one batch, within `max_tokens` a pass.
Neighbouring starts are merged where a pass of its own would cost more than the columns it saves. Logits are computed
only where asked, of the token ids asked for, and a pass ends after its last read. Where a run returns logits of its
last columns alone, the last block gives keys and values of the columns before them and nothing else. The first block
takes from the base run what lies before the edit inside it. Runs that differ in their last edit alone share a base run
that has all others. A patch that turns out to change nothing is not run. What the model does not allow (the audit and
`proofs` say) is not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cutaway.engine import memory
from cutaway.engine.groups import Group, Share, may_change_nothing, merged, shortened, starting_point
from cutaway.engine.proofs import UNPROVEN, Proofs, known, proofs
from cutaway.engine.request import Progress, Reduce, Run, check_vocab
from cutaway.engine.store import Store
from cutaway.errors import OutOfMemory, UsageError
from cutaway.models.edits import Edit, Placed, edits_of
from cutaway.models.forward import check_mode, check_run, logit_columns
from cutaway.models.model import Model
from cutaway.models.sites import Site
from cutaway.models.taps import others_hook

WEIGHTS_READ, DISPATCH, POINTWISE = 8, {"cpu": 2.5e7}, 2e5
"""What one more pass costs beyond its tokens, in tokens a layer: reading the weights costs as much as some tokens, and
launching a layer's operations as much as that many multiply-adds (other devices than the CPU: a thousand times
more). A token in a layer costs as many multiply-adds as the layer has weights, and some for all that is no product."""
PROVE_FROM = 1e10
"""Multiply-adds of the runs, one by one, from which on it pays to try shortcuts on the model."""
MAX_TOKENS = 4096


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
    stored_bytes: int
    """What base runs store at a time."""
    pass_bytes: int
    """What the largest pass holds at a time, weights left out; an estimate."""
    notes: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Naive over planned."""
        return self.naive / max(1, self.planned)

    @property
    def nearness(self) -> float:
        """Planned over the bound: 1 where nothing is computed twice."""
        return self.planned / max(1, self.bound)

    def __str__(self) -> str:
        lines = [
            f"{self.runs} runs in {self.passes} passes ({self.base_passes} of them base runs), at most "
            f"{self.widest} tokens a pass",
            f"{self.planned:,} tokens x layers instead of {self.naive:,}: {self.ratio:.1f} times fewer",
            f"lower bound {self.bound:,} ({self.naive / max(1, self.bound):.1f} times fewer); the plan is "
            f"{self.nearness:.2f} times that",
            f"about {memory.shown(self.stored_bytes)} stored and {memory.shown(self.pass_bytes)} a pass, beside the "
            "weights",
            *self.notes,
        ]
        return "\n".join(lines)


class Plan:
    """How a list of runs will be executed. `explain()` before, `execute()` then."""

    def __init__(
        self,
        model: Model,
        runs: Sequence[Run],
        shares: Sequence[Share],
        max_tokens: int,
        hooked: str | None = None,
        *,
        mixed: Sequence[Sequence[int]] = (),
        store: Store | None = None,
        proven: Proofs = UNPROVEN,
    ) -> None:
        self.model, self.runs, self.shares, self.max_tokens = model, tuple(runs), tuple(shares), max_tokens
        self.hooked = hooked
        """A module with a hook of somebody else's: then every run is a full pass of its own."""
        self.mixed = tuple(map(tuple, mixed))
        """Whole runs, of whatever inputs, that are rows of one pass each; then there are no shares."""
        self.store, self.proven = store, proven

    def explain(self) -> Explanation:
        """Cost of this plan beside the naive count and the lower bound; its memory beside the weights."""
        depth = max(1, self.model.body.n_layers)
        naive = sum(len(run.inputs) * run.inputs.width for run in self.runs) * depth
        return Explanation(
            runs=len(self.runs),
            naive=naive,
            planned=self.cost(),
            bound=sum(self._bound(share, depth) for share in self._apart),
            passes=len(self.mixed) + sum(self._passes(share) for share in self.shares),
            base_passes=sum(share.chunks for share in self.shares if share.base),
            widest=max([*map(self._widest, self.shares), *map(self.tokens_of, self.mixed)], default=0),
            stored_bytes=memory.stored_by(self),
            pass_bytes=memory.largest_pass(self),
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
        depth = max(1, self.model.body.n_layers)
        return sum(share.cost(depth) for share in self.shares) + depth * sum(map(self.tokens_of, self.mixed))

    def tokens_of(self, indices: Sequence[int]) -> int:
        """Tokens of some runs, whole."""
        return sum(len(self.runs[i].inputs) * self.runs[i].inputs.width for i in indices)

    @property
    def _apart(self) -> Sequence[Share]:
        """The shares, also where their runs are mixed: what the edits can change does not depend on that."""
        if not self.mixed:
            return self.shares
        return _all_shares(self.model, self.proven, self.runs, by_inputs(self.runs), self.max_tokens, 0)

    def runs_a_pass(self, share: Share, group: Group) -> int:
        """How many runs of a group are stacked in one pass."""
        return max(1, self.max_tokens // (min(share.rows, len(share.inputs)) * (share.inputs.width - group.start)))

    def _passes(self, share: Share) -> int:
        stacked = sum(
            -(-len(group.runs) // self.runs_a_pass(share, group)) * (1 if group.cut is None else 2)
            for group in share.groups
        )
        return share.chunks * (stacked + (1 if share.base else 0))

    def _widest(self, share: Share) -> int:
        rows, width = min(share.rows, len(share.inputs)), share.inputs.width
        stacked = [min(len(g.runs), self.runs_a_pass(share, g)) * rows * (width - g.start) for g in share.groups]
        return max([*stacked, rows * width if share.base else 0])

    def _bound(self, share: Share, depth: int) -> int:
        rows, width = len(share.inputs), share.inputs.width
        least = []
        for group in share.groups:
            for i in group.runs:
                alone = starting_point(self.model.body, self.runs[i], share.rest(self.runs[i]), share.common)
                least.append(shortened(self.model, self.proven, share, self.runs, Group(*alone, (i,)), 0))
        edited = sum(g.cost(rows, width, depth) for g in least)
        return edited + (rows * width * depth if share.base or share.plain else 0)

    def _notes(self) -> tuple[str, ...]:
        if self.hooked is not None:
            return (f"one full pass a run: module {self.hooked!r} has a hook that may depend on rows and positions",)
        body = self.model.body
        why = [("starting at a later layer", body.resume), ("starting at a later position", body.suffix)]
        if self.proven is not UNPROVEN:
            why += [
                ("known attention results", self.proven.z),
                ("known input projections", self.proven.projections),
                *([("single columns of the unembedding", self.proven.columns)] if self._vocab else []),
            ]
        found = [f"not used: {what}: {reason}" for what, reason in why if reason]
        shared = sum(len(g.runs) for s in self.shares if s.common for g in s.groups)
        same = sum(len(g.runs) for s in self.shares for g in s.groups if g.same)
        if shared:
            found.append(f"{shared} runs start from base runs that have all their edits but one")
        if same:
            found.append(f"{same} runs patch what may be there already: those that change nothing are not run")
        return tuple(found)

    @property
    def _vocab(self) -> bool:
        return any(run.vocab is not None for run in self.runs)


def plan(
    model: Model,
    runs: Sequence[Run],
    *,
    max_tokens: int = MAX_TOKENS,
    max_bytes: int | None = None,
    store: Store | None = None,
) -> Plan:
    """Plan a list of runs. All of it is checked here, before anything runs.

    Args:
        max_tokens: tokens a pass may hold, stored states included; it bounds memory and never changes a result beyond
            the rounding of differently shaped products.
        max_bytes: refuse (OutOfMemory, with a `max_tokens` that would fit) a plan that is estimated to need more
            memory beside the weights and the results.
        store: keeps what base runs computed for later plans, and takes from earlier ones; see `Store`.
    """
    if max_tokens < 1:
        raise UsageError(f"max_tokens={max_tokens}: at least 1")
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"max_bytes={max_bytes}: at least 1")
    if not runs:
        raise UsageError("no runs: nothing to plan")
    check_mode(model)
    own = model.digest if any(e.source is not None for run in runs for e in edits_of(run.edits)) else None
    found = by_inputs(runs)
    for same in found:
        model.admit(runs[same[0]].inputs)
    for index, run in enumerate(runs):
        _check(model, index, run, own)
    made = _planned(model, runs, found, max_tokens, store)
    if max_bytes is not None:
        _require_room(made, found, max_bytes)
    return made


def by_inputs(runs: Sequence[Run]) -> list[list[int]]:
    """The runs with equal inputs, together."""
    found: dict[str, list[int]] = {}
    digests: dict[int, str] = {}
    for index, run in enumerate(runs):
        if id(run.inputs) not in digests:
            digests[id(run.inputs)] = run.inputs.digest
        found.setdefault(digests[id(run.inputs)], []).append(index)
    return list(found.values())


def _planned(
    model: Model, runs: Sequence[Run], equal: Sequence[Sequence[int]], max_tokens: int, store: Store | None
) -> Plan:
    hooked = others_hook(model.module)
    if hooked is not None:
        return Plan(model, runs, [_separate(runs, found) for found in equal], max_tokens, hooked)
    depth, extra = max(1, model.body.n_layers), pass_overhead(model)
    proven = proofs(model) if _worth_proving(model, runs) else known(model)
    shares = _all_shares(model, proven, runs, equal, max_tokens, extra)
    if store is None and (mixed := _mixed(runs, max_tokens)):
        tokens = sum(len(run.inputs) * run.inputs.width for run in runs)
        if (tokens + extra * len(mixed)) * depth < sum(share.cost(depth, extra) for share in shares):
            return Plan(model, runs, [], max_tokens, mixed=mixed, proven=proven)
    return Plan(model, runs, shares, max_tokens, store=store, proven=proven)


def _mixed(runs: Sequence[Run], max_tokens: int) -> list[list[int]]:
    """Runs of one width, as many a pass as fit into it; [] when one alone does not."""
    passes: list[list[int]] = []
    room: dict[int, int] = {}
    last: dict[int, list[int]] = {}
    for i, run in enumerate(runs):
        width = run.inputs.width
        tokens = len(run.inputs) * width
        if tokens > max_tokens:
            return []
        if room.get(width, 0) < tokens:
            room[width], last[width] = max_tokens, []
            passes.append(last[width])
        last[width].append(i)
        room[width] -= tokens
    return passes


def _check(model: Model, index: int, run: Run, own: str | None) -> None:
    if not run.reads and run.logits == "none":
        raise UsageError(f"run {index} returns nothing: ask for reads, or for logits", run=index)
    for site in run.reads:
        if not isinstance(site, Site):
            raise UsageError(
                f"run {index}: reads hold {site!r}, which is no site; give sites.z[1] or Site.parse('z.1')"
            )
    check_run(model, [Placed(edit, run.inputs) for edit in run.edits], run.reads, own)
    check_vocab(model, index, run)
    logit_columns(run.inputs, run.logits)


def _require_room(found: Plan, equal: Sequence[Sequence[int]], max_bytes: int) -> None:
    """Or OutOfMemory, with the largest power of two of tokens a pass that would fit."""
    needed = memory.needed(found)
    if needed <= max_bytes:
        return
    fit = found.max_tokens // 2
    while fit and memory.needed(_planned(found.model, found.runs, equal, fit, found.store)) > max_bytes:
        fit //= 2
    remedy = f"use max_tokens={fit} (now {found.max_tokens})" if fit else "use fewer rows at a time, or shorter prompts"
    raise OutOfMemory(
        f"this plan needs about {memory.shown(needed)} beside the weights, and the bound is "
        f"{memory.shown(max_bytes)}; {remedy}",
        needed=needed,
        fit=fit,
    )


def _worth_proving(model: Model, runs: Sequence[Run]) -> bool:
    """The runs are long enough for some short passes more to be nothing."""
    if model.body.resume == "not audited":
        return False
    tokens = sum(len(run.inputs) * run.inputs.width for run in runs)
    size = _block_weights(model) * model.body.n_layers + model.body.d_model * (model.body.d_vocab or 0)
    return tokens * size >= PROVE_FROM


def _all_shares(
    model: Model, proven: Proofs, runs: Sequence[Run], equal: Sequence[Sequence[int]], max_tokens: int, extra: int
) -> list[Share]:
    return [s for found in equal for s in _shares(model, proven, runs, found, max_tokens, extra)]


def _shares(
    model: Model, proven: Proofs, runs: Sequence[Run], indices: Sequence[int], max_tokens: int, extra: int
) -> list[Share]:
    """The runs on one input: from one base run, or families with common edits from base runs of their own where that
    is cheaper."""
    depth = max(1, model.body.n_layers)
    whole = _share(model, proven, runs, indices, (), max_tokens, extra)
    families = _families(runs, indices) if not model.body.resume else {}
    if not families:
        return [whole]
    apart = [
        _share(model, proven, runs, members, runs[members[0]].edits[: len(key)], max_tokens, extra)
        for key, members in families.items()
    ]
    taken = {i for members in families.values() for i in members}
    left = [i for i in indices if i not in taken]
    split = [*([_share(model, proven, runs, left, (), max_tokens, extra)] if left else []), *apart]
    return split if sum(s.cost(depth, extra) for s in split) < whole.cost(depth, extra) else [whole]


def _families(runs: Sequence[Run], indices: Sequence[int]) -> dict[tuple[int, ...], list[int]]:
    """Runs with the same edits but for the last, by the identity of those; with them the run of just those edits."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i in indices:
        edits = runs[i].edits
        if len(edits) > 1 and all(_holdable(e) for e in edits[:-1]) and len(set(map(id, edits))) == len(edits):
            found.setdefault(tuple(map(id, edits[:-1])), []).append(i)
    found = {key: members for key, members in found.items() if len(members) > 1}
    for i in indices:
        key = tuple(map(id, runs[i].edits))
        if key in found:
            found[key].append(i)
    owners: dict[int, tuple[int, ...]] = {}
    for key, members in found.items():  # a run may begin one family and belong to another: the larger has it
        for i in members:
            if i not in owners or len(found[owners[i]]) < len(members):
                owners[i] = key
    kept = {key: [i for i in members if owners[i] == key] for key, members in found.items()}
    return {
        key: sorted(members, key=lambda i: len(runs[i].edits) <= len(key))
        for key, members in kept.items()
        if sum(len(runs[i].edits) > len(key) for i in members) > 1
    }


def _holdable(edit: Edit) -> bool:
    """Made again in a pass that computes some of its columns, it does there what it does in a whole one."""
    return edit.op != "apply" and edit.condition is None and edit.site.kind != "module"


def _share(
    model: Model,
    proven: Proofs,
    runs: Sequence[Run],
    indices: Sequence[int],
    common: tuple[Edit, ...],
    max_tokens: int,
    extra: int,
) -> Share:
    inputs, depth = runs[indices[0]].inputs, max(1, model.body.n_layers)
    rows = max(1, min(len(inputs), max_tokens // inputs.width))
    vocab = runs[indices[0]].vocab
    few = vocab is not None and all(runs[i].vocab is vocab or runs[i].vocab == vocab for i in indices)
    share = Share(inputs, False, (), (), rows, common, few, few and not proven.columns)
    rest = {i: share.rest(runs[i]) for i in indices}
    plain = tuple(i for i in indices if not rest[i])
    kinds: dict[bool, dict[tuple[int, int], list[int]]] = {False: {}, True: {}}
    for i in indices:
        if rest[i]:
            same = not common and not model.body.resume and may_change_nothing(model.body, runs[i])
            start = starting_point(model.body, runs[i], rest[i], common)
            kinds[same].setdefault(start, []).append(i)
    groups = tuple(
        replace(shortened(model, proven, share, runs, group, extra), same=same)
        for same, starts in kinds.items()
        for group in merged(starts, len(inputs), inputs.width, depth, extra)
    )
    base = bool(plain) or any(g.layer > 0 or g.start > 0 or g.known for g in groups)
    share = replace(share, base=base or bool(common), plain=plain, groups=groups)
    if base and not plain and not common:
        flat = replace(share, base=False, groups=(Group(0, 0, tuple(i for g in groups for i in g.runs)),))
        if flat.cost(depth, extra) <= share.cost(depth, extra):
            return flat
    return share


def _separate(runs: Sequence[Run], indices: Sequence[int]) -> Share:
    """Nothing shared but plain runs: a hook of somebody else's must see each run whole."""
    inputs, plain = runs[indices[0]].inputs, tuple(i for i in indices if not runs[i].edits)
    groups = tuple(Group(0, 0, (i,)) for i in indices if runs[i].edits)
    return Share(inputs, bool(plain), plain, groups, len(inputs))


def pass_overhead(model: Model) -> int:
    """Tokens a layer that one more pass costs: few for wide models, hundreds for toy ones."""
    return int(WEIGHTS_READ + DISPATCH.get(model.device.type, 2.5e10) / (_block_weights(model) + POINTWISE))


def _block_weights(model: Model) -> int:
    """Parameters of the first block."""
    block = model.module.get_submodule(model.body.layers[0].block)
    return max(1, sum(p.numel() for p in block.parameters()))
