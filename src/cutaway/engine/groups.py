"""Groups: runs that start at one block and column, what they may leave out, and what that costs.

All costs are in tokens x layers: one token through one block counts 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cutaway.engine.proofs import Proofs
from cutaway.engine.request import Run
from cutaway.models.anatomy import Anatomy
from cutaway.models.edits import Edit
from cutaway.models.forward import logit_columns
from cutaway.models.known import projections
from cutaway.models.model import Model
from cutaway.models.sites import PATTERN_KINDS, Site
from cutaway.models.tokens import Tokens

KEYS_AND_VALUES = 0.25
"""What keys and values (with the queries that come along) cost, as a share of a block: a quarter in GPT-2's shape."""
AFTER_KERNEL = frozenset(
    {"z", "attn_out", "attn_write", "resid_mid", "mlp_in", "mlp_pre", "mlp_act", "mlp_out", "mlp_write", "router"}
)
"""Sites of a block that its attention kernel does not depend on."""
INSIDE_ATTENTION = frozenset({"attn_in", "q", "k", "v", "scores", "pattern"})


@dataclass(frozen=True)
class Group:
    """Runs that start at one block and column, and are stacked as rows."""

    layer: int
    start: int
    runs: tuple[int, ...]
    cut: int | None = None
    """First column that the last block is computed for; of those before it only its keys and values. None: all."""
    known: str = ""
    """'z': the first block starts behind its attention kernel; 'projections': it computes the input projections of
    `fresh` columns alone; '': it is computed whole."""
    fresh: int = 0
    same: bool = False
    """The edits of these runs may change nothing; where they do not, the base run is the result."""

    def cost(self, rows: int, width: int, depth: int) -> int:
        """Tokens x layers of all its runs on `rows` rows."""
        columns, blocks = width - self.start, max(1, depth - self.layer)
        saved = (1 - KEYS_AND_VALUES) * (self.cut - self.start) if self.cut is not None else 0.0
        if self.known:
            saved += KEYS_AND_VALUES * (columns - self.fresh)
        return len(self.runs) * rows * (columns * blocks - int(saved))


@dataclass(frozen=True)
class Share:
    """All runs on one input that start from one base run (or from none): the base run and the groups."""

    inputs: Tokens
    base: bool
    plain: tuple[int, ...]
    """Runs that are the base run itself."""
    groups: tuple[Group, ...]
    rows: int
    """Rows of the input that are computed together."""
    common: tuple[Edit, ...] = ()
    """Edits that all runs have, and that the base run is made with."""
    vocab: bool = False
    """All runs want the same few columns of the unembedding."""
    narrow: bool = False
    """The unembedding computes no others."""

    def rest(self, run: Run) -> tuple[Edit, ...]:
        """The edits of a run beyond those of the base run."""
        shared = set(map(id, self.common))
        return tuple(edit for edit in run.edits if id(edit) not in shared)

    @property
    def chunks(self) -> int:
        return -(-len(self.inputs) // self.rows)

    def cost(self, depth: int, extra: int = 0) -> int:
        """Tokens x layers of all its passes, with `extra` tokens a layer for each pass."""
        rows, width = len(self.inputs), self.inputs.width
        passes = extra * (len(self.groups) + int(self.base)) * depth
        base = rows * width * depth if self.base else 0
        return base + passes + sum(g.cost(rows, width, depth) for g in self.groups)


def starting_point(body: Anatomy, run: Run, edits: Sequence[Edit], held: Sequence[Edit] = ()) -> tuple[int, int]:
    """(first block, first column) that a run with these edits, beyond those `held` by its base run, must compute."""
    if any(e.condition is not None for e in (*edits, *held)):  # what a condition reads has to be in the pass
        return 0, 0
    reads_modules = [site for site in run.reads if site.kind == "module"]
    layer = min(body.order(site)[0] for site in [*(e.site for e in edits), *reads_modules])
    layer = max(0, layer) if not body.resume else 0
    if body.suffix or reads_modules or any(e.site.kind == "module" for e in edits):
        return layer, 0
    if any(e.site.kind in ("k", "v") for e in held):  # they would act again on the stored columns
        return layer, 0
    start = min((min(_first_columns(run.inputs, e.site)) for e in edits), default=0)
    return layer, max(start, _first_needed(body, run, [*edits, *held], layer))


def _first_columns(inputs: Tokens, site: Site) -> list[int]:
    if site.pos is None or site.kind == "logits":
        return [0]
    columns = inputs.columns(site.pos)
    rows = site.batch_rows if site.batch_rows is not None else range(len(inputs))
    found = [min(columns[row]) for row in rows if columns[row]]
    return found or [0]


def _first_needed(body: Anatomy, run: Run, edits: Sequence[Edit], layer: int) -> int:
    """Behind the last attention kernel every column stands alone: the first that is asked for, for edits of all."""
    if layer != body.n_layers - 1 or run.reads:
        return 0
    here = [e for e in edits if body.order(e.site) >= (layer, -1)]
    if any(e.site.kind not in AFTER_KERNEL or e.site.pos is not None or e.op == "apply" for e in here):
        return 0
    columns = logit_columns(run.inputs, run.logits)
    found = min((column for row in columns or [] for column in row), default=0)
    reach = (e.source.tokens for e in here if e.source is not None)
    return found if all(t is not None and found < t.width for t in reach) else 0


def merged(starts: dict[tuple[int, int], list[int]], rows: int, width: int, depth: int, extra: int) -> list[Group]:
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
            members = [i for column in columns[first:end] for i in starts[(layer, column)]]
            groups.append(Group(layer, columns[first], tuple(members)))
            end = first
    return sorted(groups, key=lambda g: (g.layer, g.start))


def shortened(model: Model, proofs: Proofs, share: Share, runs: Sequence[Run], group: Group, extra: int) -> Group:
    """The group with all that it may leave out, where leaving it out saves more than `extra` tokens a layer."""
    members = [runs[i] for i in group.runs]
    group = replace(group, cut=_cut(model, share, members, group, extra))
    known, fresh = _known(model, proofs, share, members, group)
    saved = len(members) * len(share.inputs) * KEYS_AND_VALUES * (share.inputs.width - group.start - fresh)
    return replace(group, known=known, fresh=fresh) if known and saved > extra / 4 else group


def _cut(model: Model, share: Share, runs: Sequence[Run], group: Group, extra: int) -> int | None:
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
    saved = len(runs) * len(share.inputs) * (1 - KEYS_AND_VALUES) * (cut - group.start)
    return cut if cut > group.start and saved > extra else None


def _known(model: Model, proofs: Proofs, share: Share, runs: Sequence[Run], group: Group) -> tuple[str, int]:
    """What the first block of a group takes from the base run, and the columns that are computed all the same."""
    body, layer = model.body, group.layer
    if body.resume or layer >= body.n_layers:
        return "", 0
    sites = [site for run in runs for site in (*run.reads, *(e.site for e in run.edits))]
    if any(site.kind == "module" for site in sites) or any(e.condition for run in runs for e in run.edits):
        return "", 0
    rest = [e for run in runs for e in share.rest(run) if _in_block(body, e.site, layer)]
    held = [e for e in share.common if _in_block(body, e.site, layer)]
    read = {site.kind for run in runs for site in run.reads if site.layer == layer}
    behind = all(e.site.kind in AFTER_KERNEL and e.site.layer == layer for e in [*rest, *held])
    if not proofs.z and behind and all(e.site.kind != "z" for e in held) and not read & INSIDE_ATTENTION:
        return "z", 0
    if proofs.projections or not projections(model, layer):
        return "", 0
    entering = [e for e in rest if _enters(body, e.site, layer)]
    if any(e.site.pos is None for e in entering):
        return "", 0
    columns = [c for e in entering for row in share.inputs.columns(e.site.pos) for c in row]
    fresh = max(columns, default=group.start - 1) + 1 - group.start
    return ("projections", fresh) if fresh < share.inputs.width - group.start else ("", 0)


def _in_block(body: Anatomy, site: Site, layer: int) -> bool:
    return body.order(site)[0] == layer


def _enters(body: Anatomy, site: Site, layer: int) -> bool:
    """A change of the site changes what the block's projections read."""
    return site.kind in ("resid_pre", "attn_in") or body.order(site) == (layer, -1)


def acts(body: Anatomy, edit: Edit, tokens: Tokens, layer: int, start: int) -> bool:
    """An edit that the base run holds has to be made again in a pass that starts at this block and column."""
    if layer > 0 and body.order(edit.site) < (layer, 0):
        return False
    if edit.site.pos is None:
        source = edit.source.tokens if edit.source is not None else None
        return source is None or source.width > start
    rows = edit.site.batch_rows if edit.site.batch_rows is not None else range(len(tokens))
    columns = tokens.columns(edit.site.pos)
    return any(c >= start for row in rows for c in columns[row])


def may_change_nothing(body: Anatomy, run: Run) -> bool:
    """By its tokens, a donor says at every selected place what the run says there anyway: they agree up to it."""
    if not body.causal or not run.edits:
        return False
    return all(_agrees(edit, run.inputs) for edit in run.edits)


def _agrees(edit: Edit, inputs: Tokens) -> bool:
    source = edit.source.tokens if edit.source is not None else None
    site = edit.site
    if edit.op != "patch" or edit.condition is not None:
        return False
    if source is None or site.pos is None or site.kind == "module" or site.kind in PATTERN_KINDS:
        return False
    if len(source) != len(inputs) or source.offsets != inputs.offsets:
        return False
    here, there = inputs.columns(site.pos), source.columns(site.pos)
    width = min(source.width, inputs.width)
    equal = ((source.ids[:, :width] == inputs.ids[:, :width]) | ~inputs.mask[:, :width]).long().cumprod(1).sum(1)
    rows = site.batch_rows if site.batch_rows is not None else range(len(inputs))
    return all(here[row] == there[row] and max(here[row], default=-1) < int(equal[row]) for row in rows)
