"""What a plan holds in memory beside the weights: stored states to the byte, the inside of a pass by its shapes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cutaway.engine.groups import Group, Share
from cutaway.models.sites import PATTERN_KINDS, Site

if TYPE_CHECKING:
    from cutaway.engine.planner import Plan

RESIDUALS, NEURONS = 6, 3
"""Tensors of the residual stream's width, and of the MLP's, that live at once inside a block."""


def stored(plan: "Plan", share: Share) -> int:
    """Bytes that the base run of some rows of a share stores."""
    if not share.base:
        return 0
    from cutaway.engine.execute import stored_columns, stored_sites

    rows, width = min(share.rows, len(share.inputs)), share.inputs.width
    values = sum(_slot(plan, site, width) for site in stored_sites(plan, share)) * rows * width
    taken = list(range(rows))
    columns = stored_columns(plan, share, taken, share.inputs.take(taken))
    n_columns = width if columns is None else len(columns)
    return (values + rows * n_columns * _ids(plan, share)) * _size(plan)


def of_a_pass(plan: "Plan", share: Share) -> int:
    """Bytes that the largest pass of a share needs while it runs."""
    groups: list[Group | None] = [*share.groups, *([None] if share.base else [])]
    return max((_pass(plan, share, group) for group in groups), default=0)


def stored_by(plan: "Plan") -> int:
    """Bytes that base runs store at a time, at most."""
    return max((stored(plan, share) for share in plan.shares), default=0)


def largest_pass(plan: "Plan") -> int:
    """Bytes that the largest pass of a plan needs while it runs."""
    whole = [_whole(plan, indices) for indices in plan.mixed]
    return max([*whole, *(of_a_pass(plan, share) for share in plan.shares)], default=0)


def needed(plan: "Plan") -> int:
    """Bytes at the worst moment: what is stored, and the largest pass beside it."""
    alone = max((_whole(plan, indices) for indices in plan.mixed), default=0)
    return max([alone, *(stored(plan, share) + of_a_pass(plan, share) for share in plan.shares)])


def _whole(plan: "Plan", indices: Sequence[int]) -> int:
    """Bytes of one pass of whole runs."""
    first = plan.runs[indices[0]].inputs
    rows = sum(len(plan.runs[i].inputs) for i in indices)
    share = Share(first, False, (), (Group(0, 0, tuple(indices)),), len(first))
    return _inside_pass(plan, share, rows, 0, 0, indices)


def shown(size: int | float) -> str:
    """A number of bytes to read.

    >>> shown(3_400_000)
    '3.4 MB'
    """
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _pass(plan: "Plan", share: Share, group: Group | None) -> int:
    times = 1 if group is None else min(len(group.runs), plan.runs_a_pass(share, group))
    start, layer = (0, 0) if group is None else (group.start, group.layer)
    members = [i for g in share.groups for i in g.runs] if group is None else group.runs
    return _inside_pass(plan, share, min(share.rows, len(share.inputs)) * times, start, layer, members)


def _inside_pass(plan: "Plan", share: Share, rows: int, start: int, layer: int, members: Sequence[int]) -> int:
    body, width = plan.model.body, share.inputs.width
    heads = (body.n_heads or 0) * (body.d_head or 0)
    pair = 2 * (body.n_kv_heads or 0) * (body.d_head or 0)
    token = RESIDUALS * body.d_model + NEURONS * (body.d_mlp or 4 * body.d_model) + 2 * heads + pair
    inside = rows * (width - start) * token
    prefix = rows * start * pair * max(0, body.n_layers - layer)
    watched = any(
        site.kind in PATTERN_KINDS
        for i in members
        for site in (*plan.runs[i].reads, *(e.site for e in plan.runs[i].edits))
    )
    attention = rows * (body.n_heads or 0) * (width - start) * width * 2 if watched else 0
    out = rows * _columns(plan, share) * _ids(plan, share, computed=True)
    return (inside + prefix + attention + out) * _size(plan)


def _slot(plan: "Plan", site: Site, width: int) -> int:
    """Numbers that a site holds for one token."""
    body = plan.model.body
    if site.kind == "module":  # an input projection, or what a caller reads
        module = plan.model.module.get_submodule(site.path or "")
        return int(getattr(module, "out_features", None) or getattr(module, "nf", None) or body.d_model)
    found = 1
    for size in body.slot(site):
        found *= size if size > 0 else width
    return found


def _columns(plan: "Plan", share: Share) -> int:
    """Columns of logits of one row, at most."""
    runs = [plan.runs[i] for i in (*share.plain, *(i for g in share.groups for i in g.runs))]
    if any(run.logits == "all" for run in runs):
        return share.inputs.width
    counts = [1 if isinstance(run.logits, str) else len(run.logits[0]) for run in runs if run.logits != "none"]
    return max(counts, default=0)


def _ids(plan: "Plan", share: Share, *, computed: bool = False) -> int:
    """Token ids that a column of logits holds."""
    first = next(iter((*share.plain, *(i for g in share.groups for i in g.runs))))
    few = plan.runs[first].vocab
    if few is not None and share.vocab and (share.narrow or not computed):
        return len(few[0])
    return plan.model.body.d_vocab or 0


def _size(plan: "Plan") -> int:
    return plan.model.dtype.itemsize
