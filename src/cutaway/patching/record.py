"""Recording: what readers make of a stream that carries a difference, run by run, for others to set.

    heads+mlps   every head and MLP between stays as it is: the difference is added where the reader reads, and the
                 run is resumed there
    heads        every other head stays as it is, MLPs answer to what reaches them: the difference is added where its
                 sender writes, and what the attention of each later block adds is put back to what it was

A recorded run stops after its last reader. Heads move information between positions and are held in both cases, so a
difference stays at its position until it is read.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from cutaway import engine
from cutaway.engine import Run
from cutaway.errors import SiteUnavailable
from cutaway.models import Activations, Edit, Model, Site, Tokens
from cutaway.models.trace import gap, rounding
from cutaway.patching.graph import Changes, Reader, Sender, Stream, Writes, at, total, wide
from cutaway.patching.measure import Progress, only, stage

FROZEN = ("heads", "heads+mlps")
"""What is held to its own value between a sender and its readers."""
Group: TypeAlias = Mapping[Sender, Stream]
"""Differences that are made together."""
Seen: TypeAlias = dict[Reader, Activations | Tensor]
"""What readers made of them: values, for the logits the difference in the stream. Who saw none is not in it."""


class Steps:
    """One progress over several plans."""

    def __init__(self, progress: Progress | None, n: int) -> None:
        self._progress, self._left, self._n = progress, iter(range(n)), n

    def next(self) -> Progress | None:
        """The callback of the next plan."""
        return stage(self._progress, next(self._left), self._n)


def record(
    model: Model,
    changes: Changes,
    groups: Sequence[Group],
    readers: Sequence[Reader],
    *,
    frozen: str,
    progress: Progress | None = None,
    max_tokens: int,
) -> list[Seen]:
    """What each reader sees of each group's differences, all else as it was. One plan of runs that stop early."""
    found: list[Seen] = [{} for _ in groups]
    runs: list[Run] = []
    asked: list[tuple[int, Sequence[Reader]]] = []
    for index, group in enumerate(groups):
        if frozen == "heads+mlps":
            found[index] |= {r: seen for r in readers if r.value is None and (seen := total(group, r)) is not None}
        make = _direct if frozen == "heads+mlps" else _past_mlps
        for run, some in make(changes, group, readers):
            runs.append(run)
            asked.append((index, some))
    if not runs:
        return found
    results = engine.plan(model, runs, max_tokens=max_tokens).execute(progress=progress)
    for (index, some), result in zip(asked, results):
        for reader in some:
            found[index][reader] = _seen(changes, reader, result.activations)
    return found


def _direct(changes: Changes, group: Group, readers: Sequence[Reader]) -> list[tuple[Run, Sequence[Reader]]]:
    """One run for each place where readers read: the stream carries the difference there alone."""
    places: dict[tuple[Site, int], list[Reader]] = {}
    for reader in readers:
        if reader.value is not None:
            places.setdefault((reader.entry, reader.level), []).append(reader)
    found: list[tuple[Run, Sequence[Reader]]] = []
    for (entry, _), some in places.items():
        difference = total(group, some[0])
        if difference is not None:
            edit = added(entry, difference, reach(changes, difference))
            found.append((Run(changes.inputs, (edit,), _values(some)), some))
    return found


def reach(changes: Changes, *differences: Stream) -> tuple[int, ...] | None:
    """The positions from the first difference on, where a causal model can change nothing before it; None: all.

    Known for rows of one length alone. Runs that edit no earlier position start there.
    """
    inputs = changes.inputs
    if not differences or not changes.model.body.causal or set(inputs.lengths) != {inputs.width}:
        return None
    columns = torch.stack([(difference != 0).any(-1).any(0) for difference in differences]).any(0).nonzero()
    first = int(columns[0]) if len(columns) else 0
    return None if first == 0 else tuple(range(first, inputs.width))


def added(entry: Site, difference: Stream, within: tuple[int, ...] | None) -> Edit:
    """The edit that adds a difference to a residual state, at the positions of `reach`."""
    if within is None:
        return entry.add(difference)
    return entry.at(within).add(difference[:, within[0] :])


def _past_mlps(changes: Changes, group: Group, readers: Sequence[Reader]) -> list[tuple[Run, Sequence[Reader]]]:
    """One run for all readers, but for those that are a whole attention: what holds the others would hide them."""
    whole = [reader for reader in readers if reader.value is not None and reader.value.kind == "attn_write"]
    found: list[tuple[Run, Sequence[Reader]]] = []
    for some in ([r for r in readers if r not in whole], *([one] for one in whole)):
        reached = [reader for reader in some if total(group, reader) is not None]
        if not reached:
            continue
        deepest = max(reader.level for reader in reached)
        made = {sender: value for sender, value in group.items() if sender.level <= deepest}
        first = min(sender.level for sender in made)
        body = changes.model.body
        held = [
            Site("attn_write", layer)
            for layer in range(body.n_layers)
            if first <= 2 * layer + 1 <= deepest and "attn_write" in body.layers[layer].taps
        ]
        edits = [site.patch(only(changes.base, site)) for site in held]
        edits += [sender.write.add(value) for sender, value in made.items()]
        found.append((Run(changes.inputs, tuple(edits), _values(reached)), reached))
    return found


def _values(readers: Sequence[Reader]) -> tuple[Site, ...]:
    return tuple(dict.fromkeys((reader.value or reader.entry).base for reader in readers))


def _seen(changes: Changes, reader: Reader, acts: Activations) -> Activations | Tensor:
    if reader.value is None:
        return wide(acts[reader.entry]) - wide(changes.base[reader.entry])
    return only(acts, reader.value)


def private(reader: Reader, seen: Activations | Tensor, inputs: Tokens, within: tuple[int, ...] | None = None) -> Edit:
    """The edit that makes a reader, and it alone, see at its positions what it saw in a recorded run.

    Args:
        within: positions outside of which nothing differs; see `reach`.
    """
    if reader.value is None:
        assert isinstance(seen, Tensor)
        return added(reader.entry, at(seen, inputs, reader.site), within)
    assert isinstance(seen, Activations)
    return reader.value.at(within if reader.site.pos is None else reader.site.pos).patch(seen)


def emit(
    model: Model,
    changes: Changes,
    emitters: Mapping[Reader, Sequence[Sender]],
    seen: Sequence[Seen],
    *,
    progress: Progress | None = None,
    max_tokens: int,
) -> list[dict[Sender, Stream]]:
    """What components add differently once they, each as a reader, see what was recorded. One run for each block and
    sublayer."""
    runs: list[Run] = []
    asked: list[tuple[int, list[Sender]]] = []
    for index, one in enumerate(seen):
        places: dict[int, list[Reader]] = {}
        for reader in one:
            places.setdefault(emitters[reader][0].level, []).append(reader)
        for some in places.values():
            told = united(sender for reader in some for sender in emitters[reader])
            edits = tuple(private(reader, one[reader], changes.inputs) for reader in some)
            runs.append(Run(changes.inputs, edits, Writes(model, told).reads))
            asked.append((index, told))
    found: list[dict[Sender, Stream]] = [{} for _ in seen]
    results = engine.plan(model, runs, max_tokens=max_tokens).execute(progress=progress) if runs else []
    for (index, told), result in zip(asked, results):
        for sender in told:
            own = changes.writes.of(changes.base, sender)
            found[index][sender] = changes.writes.of(result.activations, sender) - own
    return found


def united(senders: Iterable[Sender]) -> list[Sender]:
    """The same, each head and neuron once: parts of one write become one part, or the whole where it is among them."""
    found: dict[Site, Sender] = {}
    for sender in senders:
        before = found.get(sender.write)
        if before is None or before.part is None or sender.part is None:
            found[sender.write] = sender if before is None or before.part is not None else before
            continue
        units = [_several(part.unit) for part in (before.part, sender.part)]
        unit = None if None in units else tuple(sorted({i for some in units for i in some or ()}))
        part = Site(sender.part.kind, sender.part.layer, unit)
        found[sender.write] = Sender(part, sender.level, sender.write, part)
    return list(found.values())


def _several(unit: int | tuple[int, ...] | None) -> tuple[int, ...] | None:
    return (unit,) if isinstance(unit, int) else unit


def require_parallel(model: Model, inputs: Tokens, readers: Sequence[Reader]) -> None:
    """Refuse (SiteUnavailable) a block whose MLP answers to its own attention, though no module shows the stream
    between them. Cost: a pass of one row for each parallel block whose MLP is a reader."""
    body, row = model.body, inputs.take([0])
    asked = {
        reader.value.base: reader
        for reader in readers
        if reader.value is not None
        and reader.value.kind in ("mlp_write", "mlp_act")
        and body.layers[reader.value.layer or 0].writes == "parallel"
    }
    if not asked:
        return
    plain = Run(row, reads=tuple(asked))
    cut = [Run(row, (Site("attn_write", site.layer).scale(-1.0),), (site,)) for site in asked]
    before, *after = engine.plan(model, [plain, *cut]).execute()
    for (site, reader), result in zip(asked.items(), after):
        own, moved = before.activations[site], result.activations[site]
        if not gap(own, moved) <= 16 * rounding(own):
            reason = f"the MLP of block {site.layer} reads what the attention adds, and no module shows that state"
            raise SiteUnavailable(f"receiver {str(reader.site)!r}: {reason}", site=str(reader.site), reason=reason)
