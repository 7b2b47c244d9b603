"""Edge patching: what travels along one connection, from what one component adds to what one other reads of it.

    m(base, where the receiver alone reads  stream + (what the sender says elsewhere - what it says here))  -  m(base)

1. The base run and the other side give what each sender adds, and so its difference.
2. For each sender and each place where receivers read, a run whose stream carries the difference there gives what all
   receivers at that place make of it (queries, keys, values, an MLP's write), and is stopped.
3. For each edge a run of the base in which that receiver has that value; all that comes after answers to it.

Nothing is held in step 3 and nothing is estimated. Several edges as one cut (`together`) are followed from block to
block: a receiver then reads the stream as the edges before it have made it, and a sender's difference is taken from
what it says in that run.
"""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway import engine
from cutaway.engine import Run
from cutaway.errors import NoBehavior, UsageError
from cutaway.figures import Bars, Figure, Heatmap, Points
from cutaway.models import Edit, Model, Site, Tokens
from cutaway.patching.effects import GAP_SHARE, TOGETHER, Effects, half_width
from cutaway.patching.graph import (
    MODES,
    Changes,
    Reader,
    Sender,
    Stream,
    Writes,
    at,
    chosen,
    components,
    ports,
    readers_of,
    senders_of,
)
from cutaway.patching.measure import (
    MAX_TOKENS,
    Cell,
    Positions,
    Progress,
    Wanted,
    choose,
    encode,
    measure,
    place,
)
from cutaway.patching.record import Steps, added, private, reach, record, require_parallel
from cutaway.tasks import Batch, Task

ARROW = " -> "
"""Between sender and receiver in a label, and between the nodes of a path."""
BUDGET = 2**28
"""Bytes of recorded values that are kept at a time."""


class Edges(Effects):
    """Effects whose cells are edges or paths, labelled `z.0.h1 -> k.1.h3`."""

    @property
    def nodes(self) -> tuple[tuple[str, ...], ...]:
        """The nodes of each cell, in order: sender, what lies between, receivers."""
        return tuple(tuple(label.split(ARROW)) for label in self.labels)

    @property
    def senders(self) -> tuple[str, ...]:
        """First nodes, in cell order, each once."""
        return tuple(dict.fromkeys(nodes[0] for nodes in self.nodes))

    @property
    def receivers(self) -> tuple[str, ...]:
        """What follows the first node, in cell order, each once."""
        return tuple(dict.fromkeys(ARROW.join(nodes[1:]) for nodes in self.nodes))

    def matrix(self) -> Tensor:
        """Mean effects [sender receiver] in the metric's unit; NaN where there is no such edge."""
        return self._grid(self.mean().tolist())

    def _grid(self, values: Sequence[float]) -> Tensor:
        row = {name: i for i, name in enumerate(self.senders)}
        column = {name: i for i, name in enumerate(self.receivers)}
        grid = torch.full((len(row), len(column)), math.nan, dtype=torch.float64)
        for nodes, value in zip(self.nodes, values):
            grid[row[nodes[0]], column[ARROW.join(nodes[1:])]] = value
        return grid

    def table(self) -> list[dict[str, Any]]:
        """One row an edge: sender, receiver, and the numbers of `Effects.table`."""
        rows = zip(self.nodes, Effects.table(self))
        return [
            {"sender": nodes[0], "receiver": ARROW.join(nodes[1:])}
            | {key: value for key, value in row.items() if key != "site"}
            for nodes, row in rows
        ]

    def figures(self, cell: str | None = None) -> tuple[Figure, ...]:
        """The map of senders by receivers, bars where all share one receiver; numbers as in `Effects.figures`.

        Args:
            cell: the label of one edge: one bar an example instead.
        """
        if cell is not None:
            return Effects.figures(self, cell)
        try:
            values, halves, unit = self.share().tolist(), [half_width(i) for i in self._known_intervals()], GAP_SHARE
        except NoBehavior:
            values, halves, unit = self.mean().tolist(), self._mean_halves(), self.unit
        sentence = f"What changes of {self.metric} on the {self.on} run ({self.method})."
        if len(self.receivers) == 1:
            title = f"Along the paths to {self.receivers[0]}"
            return (Bars(title, sentence, unit, self.senders, tuple(values), tuple(halves)),)
        return (
            Heatmap(
                "Along each edge",
                f"{sentence} Empty: there is no such edge.",
                unit,
                "sender",
                "receiver",
                self.senders,
                self.receivers,
                _rows(self._grid(values)),
                _rows(self._grid(halves)),
            ),
        )

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Edges":
        """Read a saved file; errors as those of `Effects.load`."""
        return cls(**fields_of(Effects.load(path, model)))


class Direct(Effects):
    """Two cells a component: `z.1.h2 -> logits`, what it says to the logits itself, and `z.1.h2`, all that it does."""

    @property
    def components(self) -> tuple[str, ...]:
        """The components, in order."""
        return tuple(label for label in self.labels if ARROW not in label)

    def table(self) -> list[dict[str, Any]]:
        """One row a component: direct and total effect, and what later components make of it, total - direct."""
        rows = {row["site"]: row for row in Effects.table(self)}
        found = []
        for name in self.components:
            direct, total = rows[f"{name}{ARROW}logits"], rows[name]
            numbers = {
                f"{what}_{key}": row[key] for what, row in (("direct", direct), ("total", total)) for key in _OWN
            }
            later = total["effect"] - direct["effect"]
            rest = {key: total[key] for key in ("unit", "examples", "clusters")}
            found.append({"component": name} | numbers | {"later": later} | rest)
        return found

    def figures(self, cell: str | None = None) -> tuple[Figure, ...]:
        """Total against direct effect: nearer to zero is what later components make up for.

        Args:
            cell: the label of one cell: one bar an example instead.
        """
        if cell is not None:
            return Effects.figures(self, cell)
        table = self.table()
        return (
            Points(
                f"Direct and total effect on {self.metric}",
                f"Each point is a component, on the {self.on} run ({self.method}). On the diagonal: all that it does, "
                "it says to the logits itself. Nearer to zero in total than in direct effect: later components make "
                "up for it (self-repair). Far from zero in total alone: it acts through them.",
                f"direct effect ({self.unit})",
                f"total effect ({self.unit})",
                self.components,
                tuple(row["direct_effect"] for row in table),
                tuple(row["total_effect"] for row in table),
            ),
        )

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Direct":
        """Read a saved file; errors as those of `Effects.load`."""
        return cls(**fields_of(Effects.load(path, model)))


_OWN = ("effect", "share", "cluster_se")


def edges(
    model: Model,
    task: Task | Batch,
    senders: Wanted | None = None,
    receivers: Wanted | None = None,
    *,
    mode: str = "denoise",
    positions: Positions = None,
    together: bool = False,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Edges:
    """Exact effect of every direct edge from a sender to a receiver, per pair.

    raw = m(base, the receiver alone reading the sender's other value) - m(base), in the metric's unit; signs as in
    `sweep`. Everything after the receiver answers to it; nothing between sender and receiver does. Source:
    Goldowsky-Dill et al. 2023 (arXiv 2304.05969); Conmy et al. 2023 (edges of a circuit).
    Cost: two forward passes a side; a sender's difference costs the block before each place where receivers read, and
    an edge what comes after its receiver: no more than the final norm for `logits`.
    Laws: an edge whose sender says the same on both sides gives exactly 0; all edges of one sender, `together`, are
    that sender patched; what senders add sums to the stream. Equal to hand-written forwards with an input per edge.
    Misleads: the norm of the receiver sees the difference in the base's stream, a mixture that no input makes; edges
    are not additive; a sender that works through many small edges shows in none (docs/methods/edge-patching.md).
    Raises SiteUnavailable where blocks put a norm on the stream itself (BERT) or a part of a write is not known.

    Args:
        senders: `embed`, `z.L.hH`, `attn_out.L`, `mlp_out.L`, `mlp_act.L.nN`; None: the embedding, all heads and MLPs.
        receivers: `q.L.hH`, `k.L.hK` and `v.L.hK` (key/value heads), `z.L.hH` (q, k and v of one query head),
            `attn_in.L`, `mlp_in.L`, `mlp_act.L.nN`, `logits`; None: all of q, k, v, MLPs and logits.
        mode: "denoise" edits the corrupt run with clean values, "noise" the clean one with corrupt ones; "zero" and
            "mean" edit the clean run, where the sender says nothing, or its mean over the real tokens of both sides.
        positions: a cell for each edge at each of these roles or indices; "each" for every position; None: all at
            once. Sender and receiver meet at one position: streams do not mix positions.
        together: one cell that patches all these edges at once, instead of one an edge. Its label joins the nodes.
        max_tokens: bound on the tokens of one forward pass. The result does not depend on it.
    """
    choose("mode", mode, tuple(MODES))
    batch = encode(model, task)
    writers = senders_of(model, components(model) if senders is None else senders)
    readers = readers_of(model, place(model, ports(model) if receivers is None else receivers, positions, batch))
    pairs = [(s, r) for s in writers for r in readers if r.after(s) and _meet(batch.clean, s.site, r.site)]
    if not pairs:
        raise UsageError(
            f"no edge leads from {_named(writers)} to {_named(readers)}: a receiver reads what was added before it, "
            "at its own position; name senders of earlier blocks, or of the attention for its own MLP",
        )
    require_parallel(model, batch.clean, [reader for _, reader in pairs])
    writes = Writes(model, [sender for sender, _ in pairs])
    changes = Changes(model, batch, writes, mode)
    on, method = MODES[mode], f"{mode}, direct edges"
    if together:
        ends = ([str(node.site) for node in dict.fromkeys(nodes)] for nodes in zip(*pairs))
        label = ARROW.join(TOGETHER.join(names) for names in ends)
        cell = Cell(label, tuple(_joint(model, changes, pairs, max_tokens)))
        made = measure(model, batch, [cell], on=on, method=method, progress=progress, max_tokens=max_tokens)
        return Edges(**fields_of(made))
    parts = _chunks(model, changes.inputs, pairs)
    steps = Steps(progress, 2 * len(parts))
    found = [
        measure(
            model,
            batch,
            _cells(model, changes, part, steps, max_tokens),
            on=on,
            method=method,
            progress=steps.next(),
            max_tokens=max_tokens,
        )
        for part in parts
    ]
    joined = {"labels": sum((f.labels for f in found), ()), "values": torch.cat([f.values for f in found])}
    return Edges(**fields_of(replace(found[0], **joined)))


def direct(
    model: Model,
    task: Task | Batch,
    senders: Wanted | None = None,
    *,
    mode: str = "denoise",
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Direct:
    """Direct effect of each component on the logits beside its total effect, per pair.

    direct = m(base with the sender's difference added behind the last block) - m(base); total = m(base with the same
    difference added where the sender writes) - m(base). What is left, total - direct, is what later components make of
    it: of the opposite sign where they make up for a missing part (self-repair; McGrath et al. 2023, arXiv 2307.15771;
    Rushing and Nanda 2024, arXiv 2402.15390, who show that part of it is the final norm's scale, which is live here).
    Cost: two forward passes a side, a final norm a component, and a run a component from its block on.
    Laws: for what the last block's MLP adds both are equal; where no norm follows the component, total is `sweep`'s.
    Misleads: as `edges`; a total near zero says nothing of use without the direct effect beside it.

    Args:
        senders: as in `edges`; None: all heads and MLPs.
        mode: as in `edges`.
    """
    choose("mode", mode, tuple(MODES))
    batch = encode(model, task)
    wanted = components(model)[1:] if senders is None else senders
    writers = senders_of(model, wanted)
    final = readers_of(model, Site("logits"))[0]
    changes = Changes(model, batch, Writes(model, writers), mode)
    cells = []
    for sender in writers:
        difference = changes.of(sender)
        moved, within = bool(difference.any()), reach(changes, difference)
        for label, site in ((f"{sender.site}{ARROW}logits", final.entry), (str(sender.site), sender.write)):
            cells.append(Cell(label, (added(site, difference, within),) if moved else ()))
    method = f"{mode}, direct and total"
    made = measure(model, batch, cells, on=MODES[mode], method=method, progress=progress, max_tokens=max_tokens)
    return Direct(**fields_of(made))


def _cells(
    model: Model, changes: Changes, pairs: Sequence[tuple[Sender, Reader]], steps: Steps, max_tokens: int
) -> list[Cell]:
    """One cell an edge; those that carry no difference edit nothing."""
    of: dict[Sender, list[Reader]] = {}
    for sender, reader in pairs:
        of.setdefault(sender, []).append(reader)
    readers = list(dict.fromkeys(reader for _, reader in pairs))
    one_of = {sender: changes.of(sender) for sender in of}
    groups = [{sender: difference} for sender, difference in one_of.items()]
    seen = record(model, changes, groups, readers, frozen="heads+mlps", progress=steps.next(), max_tokens=max_tokens)
    cells = []
    for (sender, own), one in zip(of.items(), seen):
        within = reach(changes, one_of[sender])
        for reader in own:
            moved = reader in one and bool(at(one_of[sender], changes.inputs, reader.site).any())
            edits = (private(reader, one[reader], changes.inputs, within),) if moved else ()
            cells.append(Cell(f"{sender.site}{ARROW}{reader.site}", edits))
    return cells


def _chunks(model: Model, inputs: Tokens, pairs: Sequence[tuple[Sender, Reader]]) -> list[list[tuple[Sender, Reader]]]:
    """The edges of some senders at a time, so that what is recorded for them fits the budget."""
    sites = {(reader.value or reader.entry).base for _, reader in pairs}
    slot = model.body.d_model + sum(math.prod(model.body.slot(site)) for site in sites)
    rows = inputs.ids.numel() * slot * 4
    at_a_time = max(1, BUDGET // rows)
    names = list(dict.fromkeys(sender for sender, _ in pairs))
    parts = [set(names[first : first + at_a_time]) for first in range(0, len(names), at_a_time)]
    return [[pair for pair in pairs if pair[0] in part] for part in parts]


def _joint(model: Model, changes: Changes, pairs: Sequence[tuple[Sender, Reader]], max_tokens: int) -> list[Edit]:
    """The edits that patch all these edges in one run, found from block to block."""
    edits: list[Edit] = []
    for level in sorted({reader.level for _, reader in pairs}):
        here: dict[frozenset[Sender], list[Reader]] = {}
        for reader in dict.fromkeys(reader for _, reader in pairs if reader.level == level):
            here.setdefault(frozenset(s for s, r in pairs if r == reader), []).append(reader)
        new: list[Edit] = []
        for some, readers in here.items():
            new += _joined(model, changes, edits, sorted(some, key=str), readers, max_tokens)
        edits += new
    return edits


def _joined(
    model: Model,
    changes: Changes,
    edits: Sequence[Edit],
    senders: Sequence[Sender],
    readers: Sequence[Reader],
    max_tokens: int,
) -> list[Edit]:
    """The edits of readers that share their senders, after those of all earlier ones."""

    def run(also: Sequence[Edit], reads: Sequence[Site]) -> Any:
        plan = engine.plan(model, [Run(changes.inputs, (*edits, *also), tuple(reads))], max_tokens=max_tokens)
        return plan.execute()[0].activations

    live = run((), Writes(model, senders).reads) if edits else None
    difference: Stream = torch.stack([changes.of(sender, live) for sender in senders]).sum(0)
    valued = [reader for reader in readers if reader.value is not None]
    found = [private(reader, difference, changes.inputs) for reader in readers if reader.value is None]
    if valued:
        acts = run((valued[0].entry.add(difference),), [r.value.base for r in valued if r.value is not None])
        found += [private(reader, acts, changes.inputs) for reader in valued]
    return found


def _meet(inputs: Tokens, sender: Site, receiver: Site) -> bool:
    """Both are meant at one position at least."""
    if sender.pos is None or receiver.pos is None:
        return True
    return bool((chosen(inputs, sender) & chosen(inputs, receiver)).any())


def _named(nodes: Sequence[Sender | Reader]) -> str:
    return ", ".join(str(node.site) for node in nodes[:4]) + (", ..." if len(nodes) > 4 else "")


def fields_of(effects: Effects) -> dict[str, Any]:
    """What a record of another class is made from."""
    return {field.name: getattr(effects, field.name) for field in fields(effects)}


def _rows(grid: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in grid.tolist())
