"""Ablation: what the behavior loses when a part no longer says anything about this input.

What a part is replaced by decides what "removed" means:

    zero              nothing at all; far from anything that later layers have seen
    mean              the same vector everywhere: the mean over the real tokens of a reference set
    mean_by_position  the mean over the rows of the reference set, position by position (or at the named position)
    mean_by_cluster   the same over the rows of the pair's own cluster: its template, say
    resample          what the part said on another pair; leaves its distribution as it was
    optimal           the constant that harms the model least, learned (optimal.py)
    noise             itself with Gaussian noise added, in units of its own standard deviation
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor

from cutaway.artifacts import digest
from cutaway.errors import Misaligned, UsageError
from cutaway.models import Activations, Edit, Model, Site, Tokens
from cutaway.models.sites import PATTERN_KINDS
from cutaway.patching import optimal
from cutaway.patching.effects import Effects
from cutaway.patching.measure import (
    MAX_TOKENS,
    Cell,
    Groups,
    Positions,
    Progress,
    choose,
    encode,
    grouped,
    measure,
    only,
    side,
    stage,
)
from cutaway.tasks import Batch, Task

VALUES = ("zero", "mean", "mean_by_position", "mean_by_cluster", "resample", "optimal", "noise")
DRAWS = {"resample": 1, "noise": 5}
"""What is drawn at random, and how often when nothing else is asked for."""
SCALE = 1.0
"""Standard deviation of the noise, in standard deviations of the site."""


def ablate(
    model: Model,
    task: Task | Batch,
    sites: Groups,
    *,
    value: str = "mean",
    positions: Positions = None,
    window: int | None = None,
    on: str = "clean",
    reference: Tokens | None = None,
    together: bool = False,
    draws: int | None = None,
    scale: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Effects:
    """Metric of the base run with each site's value removed, per pair.

    raw = m(base without the site) - m(base), in the metric's unit. On the clean run, against the metric's sign: the
    behavior needs the site. `normalised` is the share of the gap between the sides that was lost (1: as bad as the
    corrupt run; it may exceed 1). Source: Wang et al. 2022 (mean by position, by template); Chan et al. 2022
    (resample); Li and Janson 2024 (optimal constants, and what the choice does to the result).
    Cost: two forward passes, one more of the reference unless value="zero", and one a cell and draw from its layer on;
    "optimal" learns first: up to 150 forward and backward passes a cell.
    Laws: removing what is constant over the reference changes nothing; removing nothing, and noise of scale 0, give
    exactly 0; an optimal constant has no larger loss than the mean on the rows that it was learned on.
    Misleads: zero puts the model where it never was; every choice but resample changes the norm that later layers see;
    a part with a backup looks useless (docs/methods/ablation.md).
    Raises Misaligned where positions of different rows do not correspond and the choice needs them to.

    Args:
        sites: sites, their texts, or sets. A list among them is one cell.
        value: what the site is set to, see the top of this file.
        positions: as in `sweep`: a cell for each of these; None: all positions at once.
        window: remove this many consecutive layers of a kind as one cell.
        on: the side that is edited.
        reference: rows that means and spreads are taken over; None: the clean and corrupt rows of the task.
        together: one cell (a position) that removes all sites, instead of one a site.
        draws: for "resample" how many donors a pair gets, for "noise" how many noises; the result is their mean, and
            `Effects.draws` holds each. None: 1 donor, 5 noises.
        scale: for "noise", its standard deviation in units of the site's own (root mean square over its coordinates).
            None: 1.
        seed: of the choice of donors, of the noise, and of the rows that are held out for "optimal".
    """
    choose("value", value, VALUES)
    choose("on", on, ("clean", "corrupt"))
    times = _draws(value, draws)
    width = _scale(value, scale)
    if value == "mean_by_cluster" and reference is not None:
        raise UsageError("value='mean_by_cluster' takes means over the pairs of the task; leave out reference=")
    batch = encode(model, task)
    cells = grouped(model, sites, positions, batch, window=window, together=together)
    flat = [site for _, members in cells for site in members]
    used = seed if value in ("resample", "noise", "optimal") else None
    method = "gaussian" if value == "noise" else value
    if value == "optimal":
        return _optimal(model, task, batch, cells, on, reference, seed, progress, max_tokens)
    inputs, several = side(batch, on), []
    for draw in range(times):
        edits = iter(removals(model, batch, flat, value, inputs, reference, seed, draw=draw, scale=width))
        made = [Cell(label, tuple(next(edits) for _ in members)) for label, members in cells]
        # noise of scale 0 is no edit at all: such a run is the base run, to the last digit
        several += made if value != "noise" or width > 0 else [replace(cell, edits=()) for cell in made]
    found = measure(model, batch, several, on=on, method=method, seed=used, progress=progress, max_tokens=max_tokens)
    each = found.values.view(times, len(cells), -1)
    labels = tuple(label for label, _ in cells)
    return replace(found, labels=labels, values=each.double().mean(0).to(each), draws=each if times > 1 else None)


def _draws(value: str, draws: int | None) -> int:
    if draws is None:
        return DRAWS.get(value, 1)
    if value not in DRAWS:
        raise UsageError(f"draws={draws}: value={value!r} is not drawn; leave draws= out, or use {' or '.join(DRAWS)}")
    if draws < 1:
        raise UsageError(f"draws={draws}: at least one draw is needed")
    return draws


def _scale(value: str, scale: float | None) -> float:
    if scale is not None and value != "noise":
        raise UsageError(f"scale={scale}: it is the size of noise, and value={value!r} has none; leave it out")
    if scale is not None and not (isfinite(scale) and scale >= 0):
        raise UsageError(f"scale={scale}: standard deviations of the site, so a number from 0 on")
    return SCALE if scale is None else float(scale)


def _optimal(
    model: Model,
    task: Task | Batch,
    batch: Batch,
    cells: Sequence[tuple[str, tuple[Site, ...]]],
    on: str,
    reference: Tokens | None,
    seed: int,
    progress: Progress | None,
    max_tokens: int,
) -> Effects:
    """Learn on the explore split where the task has one, else on all rows; then measure all rows."""
    rows = task.split("explore") if isinstance(task, Task) and task.splits["explore"] > 1 else task
    rows = batch if rows is task else encode(model, rows)
    captured = _captured(model, rows, [site for _, members in cells for site in members], reference)
    constants = optimal.learn(
        model,
        rows,
        [members for _, members in cells],
        [[mean(captured, site) for site in members] for _, members in cells],
        [[spread(captured, site) for site in members] for _, members in cells],
        on=on,
        seed=seed,
        progress=stage(progress, 0, 2),
        max_tokens=max_tokens,
    )
    removed = [Cell(label, found.edits(members)) for (label, members), found in zip(cells, constants)]
    told = stage(progress, 1, 2)
    effects = measure(model, batch, removed, on=on, method="optimal", seed=seed, progress=told, max_tokens=max_tokens)
    names = ("loss", "loss_mean", "own_loss", "own_loss_mean")
    details = {name: torch.tensor([getattr(one, name) for one in constants], dtype=torch.float64) for name in names}
    return replace(effects, details={**details, "loss_gap": details["loss_mean"] - details["loss"]})


def _captured(model: Model, batch: Batch, placed: Sequence[Site], reference: Tokens | None) -> list[Activations]:
    bases = list(dict.fromkeys(site.base for site in placed))
    rows = [batch.clean, batch.corrupt] if reference is None else [reference]
    return [model.capture(tokens, bases) for tokens in rows]


def removals(
    model: Model,
    batch: Batch,
    placed: Sequence[Site],
    value: str,
    inputs: Tokens,
    reference: Tokens | None,
    seed: int,
    *,
    draw: int = 0,
    scale: float = SCALE,
) -> list[Edit]:
    """The edit that removes each site, for every value that is not learned."""
    if value == "zero":
        return [site.zero() for site in placed]
    if value == "resample":
        bases = list(dict.fromkeys(site.base for site in placed))
        anywhere = all(isinstance(site.pos, str) and site.kind not in PATTERN_KINDS for site in placed)
        donors = donor_rows(batch, inputs, seed, anywhere=anywhere, draw=draw)
        acts = model.capture(inputs, bases).take(donors)
        return [site.patch(only(acts, site)) for site in placed]
    captured = _captured(model, batch, placed, reference)
    if value == "mean":
        return [site.fill(mean(captured, site)) for site in placed]
    if value == "mean_by_cluster":
        return [_mean_by_cluster(captured, site, batch) for site in placed]
    if value == "noise":
        return _noises(batch, inputs, captured, placed, digest([seed, draw]), scale)
    return [_mean_by_position(captured, site, inputs) for site in placed]


def mean(captured: Sequence[Activations], site: Site) -> Tensor:
    """Mean of a site's selected heads or neurons over all real tokens of the captured rows; one slot's shape.

    Positions that the site selects play no part: the mean is that of the whole rows.
    """
    if site.kind in PATTERN_KINDS:
        raise UsageError(
            f"site {str(site)!r}: a mean over queries would let early tokens attend to later ones; "
            "use value='mean_by_position' or 'resample'",
            site=str(site),
        )
    return _of_units(_real(captured, site).mean(0), site)


def spread(captured: Sequence[Activations], site: Site) -> float:
    """Standard deviation of a site's selected heads or neurons over all real tokens: the root mean square over its
    coordinates, so that no choice of axes changes it."""
    if site.kind in PATTERN_KINDS:
        raise UsageError(
            f"site {str(site)!r}: noise would break what attention weights are (they sum to one, none goes to later "
            "tokens); add it to 'q' or 'k', or use 'resample'",
            site=str(site),
        )
    real = _real(captured, site)
    return float(_of_units((real - real.mean(0)).square().mean(0), site).mean().sqrt())


def _real(captured: Sequence[Activations], site: Site) -> Tensor:
    """Values of a whole site at all real tokens, one after another."""
    return torch.cat([acts[site.base][_tokens(acts).mask.to(acts[site.base].device)] for acts in captured])


def _of_units(slot: Tensor, site: Site) -> Tensor:
    """The selected heads or neurons of one slot."""
    if isinstance(site.unit, tuple):
        return slot[list(site.unit)]
    return slot if site.unit is None else slot[site.unit]


def _noises(
    batch: Batch, inputs: Tokens, captured: Sequence[Activations], placed: Sequence[Site], key: str, scale: float
) -> list[Edit]:
    """Noise for each site: its own, and the same in every cell that holds it. Both rows of a pair get the same."""
    found: dict[str, Tensor] = {}
    edits = []
    for site in placed:
        _require_places(site)
        slot = _of_units(captured[0][site.base][0, 0], site).shape
        positions = inputs.positions(site.pos)
        n_pos = () if isinstance(site.pos, int | str) else (inputs.width if site.pos is None else len(positions[0]),)
        name = digest([key, str(site)])
        if name not in found:
            chance = torch.Generator().manual_seed(int(name[:15], 16))
            one = torch.randn(batch.n, *n_pos, *slot, generator=chance)
            found[name] = one.repeat(len(inputs) // batch.n, *([1] * (one.ndim - 1)))
        edits.append(site.add(found[name], scale=scale * spread(captured, site)))
    return edits


def _mean_by_cluster(captured: Sequence[Activations], site: Site, batch: Batch) -> Edit:
    """Set each selected position to its mean over the rows of the pair's cluster, clean and corrupt."""
    _require_places(site)
    values = [acts[site] for acts in captured]
    removed = values[0].clone()
    for name in sorted(set(batch.clusters)):
        pairs = [i for i, cluster in enumerate(batch.clusters) if cluster == name]
        if len(pairs) < 2:
            raise UsageError(
                f"cluster {name!r} has one pair, and a mean over it would leave what the pair says; use "
                "value='mean_by_position', or give every cluster two pairs or more",
                cluster=name,
            )
        for first in range(0, len(removed), batch.n):
            rows = [first + pair for pair in pairs]
            if site.pos is None or site.kind in PATTERN_KINDS:
                _require_equal_lengths([_tokens(acts).take(rows) for acts in captured], site, f" in cluster {name!r}")
            removed[rows] = torch.cat([value[rows] for value in values]).mean(0)
    return site.replace(removed)


def _require_places(site: Site) -> None:
    """Refuse a selection that is another number of places in every row."""
    if site.pos is not None and not isinstance(site.pos, int | str | tuple):
        raise UsageError(
            f"site {str(site)!r}: a predicate or a span selects other places in every row; name a role or indices",
            site=str(site),
        )


def _mean_by_position(captured: Sequence[Activations], site: Site, inputs: Tokens) -> Edit:
    """Set each selected position to its mean over the captured rows."""
    _require_places(site)
    if site.pos is None or site.kind in PATTERN_KINDS:
        _require_equal_lengths([*(_tokens(acts) for acts in captured), inputs], site)
    target = site.at(range(inputs.lengths[0])) if site.pos is None else site
    average = torch.cat([acts[target] for acts in captured]).mean(0)
    if isinstance(target.pos, tuple):
        average = average.expand(len(inputs), *average.shape)
    return target.replace(average)


def donor_rows(batch: Batch, inputs: Tokens, seed: int, *, anywhere: bool = False, draw: int = 0) -> list[int]:
    """For each row another one to take values from: never its own pair, of another cluster as often as can be.

    Rows of a pair get the rows of one donor. Raises Misaligned for a pair without a partner.

    Args:
        anywhere: any pair will do (positions are named); otherwise only pairs of the same length in tokens.
        draw: which of several draws.
    """
    chance = random.Random(f"resample {seed}" if draw == 0 else f"resample {seed} {draw}")
    copies = range(len(inputs) // batch.n)
    groups: dict[tuple[int, ...], list[int]] = {}
    for pair in range(batch.n):
        key = () if anywhere else tuple(inputs.lengths[pair + copy * batch.n] for copy in copies)
        groups.setdefault(key, []).append(pair)
    donors = [0] * batch.n
    for length, members in groups.items():
        if len(members) == 1:
            raise Misaligned(
                f"pair {batch.ids[members[0]]!r} is the only one of its length "
                f"({' and '.join(map(str, length)) or 'any'} tokens): resampling takes values from another pair of "
                "that length; use value='mean', name positions in the sites, or add such pairs",
                pair=batch.ids[members[0]],
            )
        for pair, donor in _derangement(members, batch.clusters, chance):
            donors[pair] = donor
    return [donor + copy * batch.n for copy in copies for donor in donors]


def _derangement(members: Sequence[int], clusters: Sequence[str], chance: random.Random) -> Iterator[tuple[int, int]]:
    """Each member with its donor. Members stand in line cluster by cluster; the line is turned by the largest cluster.

    Then no donor is of its member's own cluster, unless one cluster holds more than half: then as few as can.
    """
    rank = {name: chance.random() for name in sorted({clusters[i] for i in members})}
    line = sorted(members, key=lambda i: (rank[clusters[i]], chance.random()))
    largest = max(Counter(clusters[i] for i in members).values())
    turn = largest if largest < len(line) else 1
    return zip(line, line[turn:] + line[:turn])


def _require_equal_lengths(rows: Sequence[Tokens], site: Site, where: str = "") -> None:
    lengths = {length for tokens in rows for length in tokens.lengths}
    if len(lengths) > 1:
        raise Misaligned(
            f"site {str(site)!r}: a mean by position needs rows of one length, and these have {min(lengths)} to "
            f"{max(lengths)} tokens{where}; "
            "name a position (a role) in the site, or use value='mean'",
            site=str(site),
            lengths=sorted(lengths),
        )


def _tokens(acts: Activations) -> Tokens:
    assert acts.tokens is not None  # captured from token rows
    return acts.tokens
