"""Matched random components: what a subject has to beat before its effect means something.

A control is a component of the same kind with the same position selection that the claim does not name: another head,
another neuron, or the same site of another layer. Which ones, in this order:

1. The pool: components of the subject's own layer when they are enough to reach alpha by rank, otherwise of all layers.
2. At most `n_controls` of them: all are taken ("enumerated").
3. More: the half of the pool nearest in mean |activation| (at least `n_controls`) is kept, and `n_controls` are drawn
   from it by the claim's seed ("sampled").

A subject of several components is matched by sets: one control component for each of its parts, all different.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from cutaway.errors import ClaimError
from cutaway.models import Model, Site, Tokens
from cutaway.models.sites import PATTERN_KINDS

ENUMERATE = 5_000
"""Sets of components up to which all are listed before some are drawn."""


@dataclass(frozen=True)
class Controls:
    """The controls of a claim, chosen before anything was measured on the confirm split."""

    rule: Literal["enumerated", "sampled"]
    population: int
    """Matched sets that there are, as far as they were counted."""
    sets: tuple[tuple[str, ...], ...]
    """Sites of each control, one for each part of the subject."""
    activation: Mapping[str, float]
    """Mean |activation| of every component named here, over the tokens of the clean prompts that were used to match."""


def choose_controls(
    model: Model,
    subject: Sequence[str],
    exclude: Sequence[str],
    *,
    tokens: Tokens,
    n_controls: int,
    alpha: float,
    seed: int,
) -> Controls:
    """Matched controls of a subject. Cost: one forward pass. Raises ClaimError when there is none.

    Args:
        exclude: components that are known to take part too; they are no controls.
        tokens: clean prompts on which |activation| is measured; never those of the confirm split.
    """
    parts = [Site.parse(text) for text in subject]
    taken = [Site.parse(text) for text in (*subject, *exclude)]
    enough = math.ceil(1 / alpha - 1e-9) - 1
    pools = [_pool(model, part, taken, enough) for part in parts]
    for part, pool in zip(parts, pools):
        if not pool:
            raise ClaimError(
                f"subject {part}: no other {part.kind} component is left to serve as a control; exclude fewer of them, "
                "or make the claim about single heads, neurons or layers",
                site=str(part),
            )
    wanted = {str(_whole(site)): _whole(site) for site in (*parts, *itertools.chain(*pools))}
    activation = mean_activation(model, tokens, list(wanted.values()))
    near = [_nearest(part, pool, activation, n_controls) for part, pool in zip(parts, pools)]
    sets, population = _sets(near, [len(pool) for pool in pools], n_controls, np.random.default_rng([seed, 1]))
    if not sets:
        raise ClaimError(
            f"subject {' + '.join(subject)}: its {len(parts)} parts leave no set of other components to match them with"
        )
    named = {str(_whole(site)) for site in itertools.chain(parts, *sets)}
    return Controls(
        "enumerated" if len(sets) == population else "sampled",
        population,
        tuple(tuple(str(site) for site in one) for one in sets),
        {name: activation[name] for name in sorted(named)},
    )


def mean_activation(model: Model, tokens: Tokens, sites: Sequence[Site]) -> dict[str, float]:
    """Mean |activation| of components over the real tokens: the mean norm of a vector, the mean size of a neuron."""
    acts = model.capture(tokens, list(dict.fromkeys(site.base for site in sites)))
    found = {}
    for site in sites:
        values = acts[site.base].detach().float()
        if site.kind in PATTERN_KINDS:
            values = values.transpose(1, 2)
        if site.unit is not None:
            values = values[:, :, site.unit]
        real = values[tokens.mask.to(values.device)].reshape(sum(tokens.lengths), -1)
        found[str(site)] = float(torch.nan_to_num(real, neginf=0.0).norm(dim=1).mean())
    return found


def same_component(one: Site, other: Site) -> bool:
    """Whether two sites are about the same component, whatever their positions; a layer holds its heads and neurons."""
    where = [(site.kind, site.layer, site.path) for site in (one, other)]
    return where[0] == where[1] and (one.unit is None or other.unit is None or one.unit == other.unit)


def _whole(site: Site) -> Site:
    return site.at(None)


def _pool(model: Model, part: Site, taken: Sequence[Site], enough: int) -> list[Site]:
    """Components of the same kind that the claim does not name: of the same layer when they are enough, else of all."""
    if part.layer is None:
        return []
    layers = [layer for layer in range(model.body.n_layers) if _has(model, Site(part.kind, layer))]
    units = [None] if part.unit is None else list(range(model.body.n_units(part)))
    every = [Site(part.kind, layer, unit, part.pos) for layer in layers for unit in units]
    free = [site for site in every if not any(same_component(site, other) for other in taken)]
    same = [site for site in free if site.layer == part.layer]
    return same if len(same) >= enough else free


def _has(model: Model, site: Site) -> bool:
    return model.body.status(site).state != "refused"


def _nearest(part: Site, pool: list[Site], activation: Mapping[str, float], n_controls: int) -> list[Site]:
    """The half of the pool, at least `n_controls`, that is nearest in log mean |activation|; in the pool's order."""
    own = math.log(max(activation[str(_whole(part))], 1e-30))
    distance = [abs(math.log(max(activation[str(_whole(site))], 1e-30)) - own) for site in pool]
    keep = max(n_controls, math.ceil(len(pool) / 2))
    chosen = sorted(sorted(range(len(pool)), key=lambda i: distance[i])[:keep])
    return [pool[i] for i in chosen]


def _sets(
    pools: list[list[Site]], sizes: list[int], n_controls: int, rng: np.random.Generator
) -> tuple[list[tuple[Site, ...]], int]:
    """Control sets, one component from each pool, and how many there are in the whole pools."""
    if math.prod(sizes) <= ENUMERATE and math.prod(map(len, pools)) == math.prod(sizes):
        every = {frozenset(one): one for one in itertools.product(*pools) if len(set(one)) == len(one)}
        sets = list(every.values())
        if len(sets) <= n_controls:
            return sets, len(sets)
        return [sets[i] for i in sorted(rng.permutation(len(sets))[:n_controls])], len(sets)
    found: dict[frozenset[Site], tuple[Site, ...]] = {}
    for _ in range(100 * n_controls):
        one = tuple(pool[int(rng.integers(len(pool)))] for pool in pools)
        if len(set(one)) == len(one):
            found.setdefault(frozenset(one), one)
        if len(found) == n_controls:
            break
    return list(found.values()), math.prod(sizes)
