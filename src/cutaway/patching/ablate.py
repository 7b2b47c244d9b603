"""Ablation: what the behavior loses when a part no longer says anything about this input.

What a part is replaced by decides what "removed" means:

    zero              nothing at all; far from anything that later layers have seen
    mean              the same vector everywhere: the mean over the real tokens of a reference set
    mean_by_position  the mean over the rows of the reference set, position by position (or at the named position)
    resample          what the part said on another pair; leaves its distribution as it was
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cutaway.errors import Misaligned, UsageError
from cutaway.models import Activations, Edit, Model, Site, Tokens
from cutaway.models.sites import PATTERN_KINDS, Where
from cutaway.patching.effects import Effects
from cutaway.patching.measure import (
    MAX_TOKENS,
    Cell,
    Progress,
    Wanted,
    choose,
    encode,
    joined,
    measure,
    only,
    place,
    side,
)
from cutaway.tasks import Batch, Task

VALUES = ("zero", "mean", "mean_by_position", "resample")


def ablate(
    model: Model,
    task: Task | Batch,
    sites: Wanted,
    *,
    value: str = "mean",
    on: str = "clean",
    reference: Tokens | None = None,
    together: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Effects:
    """Metric of the base run with each site's value removed, per pair.

    raw = m(base without the site) - m(base), in the metric's unit. On the clean run, against the metric's sign: the
    behavior needs the site. `normalised` is the share of the gap between the sides that was lost (1: as bad as the
    corrupt run; it may exceed 1). Source: Wang et al. 2022 (mean by position); Chan et al. 2022 (resample);
    Li and Janson 2024 on what the choice does to the result.
    Cost: two forward passes, one more of the reference unless value="zero", and one a cell from its layer on.
    Laws: removing what is constant over the reference changes nothing; removing nothing gives exactly 0.
    Misleads: zero puts the model where it never was; every choice but resample changes the norm that later layers see;
    a part with a backup looks useless (docs/methods/ablation.md).
    Raises Misaligned where positions of different rows do not correspond and the choice needs them to.

    Args:
        value: what the site is set to, see the top of this file.
        on: the side that is edited.
        reference: rows that the means are taken over; None: the clean and corrupt rows of the task.
        together: one cell that removes all sites, instead of one a site.
        seed: of the choice of donors; used by "resample" alone.
    """
    choose("value", value, VALUES)
    choose("on", on, ("clean", "corrupt"))
    batch = encode(model, task)
    placed = place(model, sites, None, batch)
    edits = removals(model, batch, placed, value, side(batch, on), reference, seed)
    if together:
        cells = [Cell(joined(placed), tuple(edits))]
    else:
        cells = [Cell(str(site), (edit,)) for site, edit in zip(placed, edits)]
    used = seed if value == "resample" else None
    return measure(model, batch, cells, on=on, method=value, seed=used, progress=progress, max_tokens=max_tokens)


def removals(
    model: Model,
    batch: Batch,
    placed: Sequence[Site],
    value: str,
    inputs: Tokens,
    reference: Tokens | None,
    seed: int,
) -> list[Edit]:
    """The edit that removes each site."""
    if value == "zero":
        return [site.zero() for site in placed]
    bases = list(dict.fromkeys(site.base for site in placed))
    if value == "resample":
        anywhere = all(isinstance(site.pos, str) and site.kind not in PATTERN_KINDS for site in placed)
        acts = model.capture(inputs, bases).take(donor_rows(batch, inputs, seed, anywhere=anywhere))
        return [site.patch(only(acts, site)) for site in placed]
    rows = [batch.clean, batch.corrupt] if reference is None else [reference]
    captured = [model.capture(tokens, bases) for tokens in rows]
    if value == "mean":
        return [site.replace(mean(captured, site)) for site in placed]
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
    real = torch.cat([acts[site.base][_tokens(acts).mask] for acts in captured])
    total = real.mean(0)
    if isinstance(site.unit, tuple):
        return total[list(site.unit)]
    return total if site.unit is None else total[site.unit]


def _mean_by_position(captured: Sequence[Activations], site: Site, inputs: Tokens) -> Edit:
    """Set each selected position to its mean over the captured rows."""
    if isinstance(site.pos, Where):
        raise UsageError(
            f"site {str(site)!r}: a predicate selects other places in every row; name a role or indices", site=str(site)
        )
    if site.pos is None or site.kind in PATTERN_KINDS:
        _require_equal_lengths([*(_tokens(acts) for acts in captured), inputs], site)
    target = site.at(range(inputs.lengths[0])) if site.pos is None else site
    average = torch.cat([acts[target] for acts in captured]).mean(0)
    if isinstance(target.pos, tuple):
        average = average.expand(len(inputs), *average.shape)
    return target.replace(average)


def donor_rows(batch: Batch, inputs: Tokens, seed: int, *, anywhere: bool = False) -> list[int]:
    """For each row another one to take values from: never its own pair, of another cluster as often as can be.

    Rows of a pair get the rows of one donor. Raises Misaligned for a pair without a partner.

    Args:
        anywhere: any pair will do (positions are named); otherwise only pairs of the same length in tokens.
    """
    chance = random.Random(f"resample {seed}")
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


def _require_equal_lengths(rows: Sequence[Tokens], site: Site) -> None:
    lengths = {length for tokens in rows for length in tokens.lengths}
    if len(lengths) > 1:
        raise Misaligned(
            f"site {str(site)!r}: a mean by position needs rows of one length, and these have {min(lengths)} to "
            f"{max(lengths)} tokens; "
            "name a position (a role) in the site, or use value='mean'",
            site=str(site),
            lengths=sorted(lengths),
        )


def _tokens(acts: Activations) -> Tokens:
    assert acts.tokens is not None  # captured from token rows
    return acts.tokens
