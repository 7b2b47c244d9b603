"""Attribution patching (AtP): a first-order estimate of what patching every part would do, without patching any.

    effect of site s on pair i  ~  < s on the donor side - s on the base side , d m_i / d s on the base side >

1. One forward pass of the donor side keeps the sites' values.
2. One forward and one backward pass of the base side give the metric, the values and the gradients. Pairs do not mix,
   so the gradient of the summed metric is each pair's own.
3. The products are summed over what a cell holds: a head's vector, a neuron, a write; over its positions.

Exact where the metric is linear in the site between the two values; a ranking to be checked by real patches elsewhere.
`gradient_scores` has the methods that repair it, and that check.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.models import Model, Site, Tokens
from cutaway.models.gradients import Gradients, backward
from cutaway.models.relevance import Rules
from cutaway.models.sites import PATTERN_KINDS
from cutaway.patching.effects import Effects
from cutaway.patching.measure import (
    MAX_TOKENS,
    Positions,
    Progress,
    choose,
    effects,
    encode,
    other,
    part,
    place,
    required,
    side,
)
from cutaway.patching.sweep import BASES
from cutaway.tasks import Batch, Task

KINDS = ("z", "mlp_out", "mlp_act")
"""Heads, MLPs and neurons."""


@dataclass(frozen=True)
class Estimate:
    """Estimates of some pairs, with the metric on their base and on their donor side."""

    values: Float[Tensor, "unit example"]
    base: Float[Tensor, " example"]
    donor: Float[Tensor, " example"]
    sums: Mapping[Site, tuple[int, Float[Tensor, " example"], Float[Tensor, " example"]]] = field(default_factory=dict)
    """Where whole sites were integrated: steps, sum of the estimates of the site's units, exact effect of the site."""


Estimator: TypeAlias = Callable[[Batch, Sequence[Site], Sequence[Site]], Estimate]
"""From some pairs, whole sites, and cells of these, to estimates: a line a unit of each cell."""


def attribution(
    model: Model,
    task: Task | Batch,
    *,
    kinds: Sequence[str] | None = None,
    positions: Positions = None,
    mode: str = "denoise",
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Effects:
    """Estimated effect of patching every unit of these kinds from the other side, per pair.

    raw = the estimate of m(base with the unit from the donor) - m(base), in the metric's unit; signs as in `sweep`.
    Cost: two forward passes and one backward pass of all rows, whatever the number of units.
    Source: Nanda 2023; Syed et al. 2023; Kramar et al. 2024 (arXiv 2403.00745), on where it fails.
    Laws: equals exact patching where the metric is linear in the site; a unit that both sides agree on gets exactly 0.
    Misleads: saturated attention (the gradient of a softmax near 0 or 1 vanishes), direct and indirect effects that
    cancel, large differences in early layers (docs/methods/attribution-patching.md). It ranks; it is no evidence.
    Raises SiteUnavailable for a kind that the model does not have, UsageError for a metric without a gradient.

    Args:
        kinds: kinds of site; heads and neurons of each become one cell each. None: heads (`z`), MLPs (`mlp_out`) and
            neurons (`mlp_act`), as far as the model has them.
        positions: None sums over all positions of a row; else one cell for each of these, as in `sweep`.
    """

    def estimator(piece: Batch, bases: Sequence[Site], cells: Sequence[Site]) -> Estimate:
        return first_order(model, piece, bases, cells, mode)

    choose("mode", mode, tuple(BASES))
    batch = encode(model, task)
    require_gradient(batch, mode)
    bases = bases_of(model, kinds, KINDS)
    found, _ = estimated(model, batch, bases, positions, mode, "attribution", estimator, progress, max_tokens)
    return found


def estimated(
    model: Model,
    batch: Batch,
    bases: Sequence[Site],
    positions: Positions,
    mode: str,
    method: str,
    estimator: Estimator,
    progress: Progress | None,
    max_tokens: int,
) -> tuple[Effects, list[Estimate]]:
    """The estimates of every unit of whole sites, piece by piece, as effects; and the pieces."""
    cells = place(model, bases, positions, batch)
    found: list[Estimate] = []
    parts = list(_parts(batch, max_tokens))
    for done, piece in enumerate(parts):
        found.append(estimator(piece, bases, cells))
        if progress is not None:
            progress(done + 1, len(parts))
    own, donor = torch.cat([one.base for one in found]), torch.cat([one.donor for one in found])
    values = torch.cat([one.values for one in found], 1) + own
    sides = (own, donor) if mode == "noise" else (donor, own)
    labels = [str(site) for cell in cells for site in _units(model, cell)]
    return effects(model, batch, labels, values, *sides, on=BASES[mode], method=method, seed=None), found


def require_gradient(batch: Batch, mode: str) -> None:
    """Refuse (UsageError) a metric whose gradient means nothing on the base side."""
    metric = batch.metric
    if not metric.differentiable:
        raise UsageError(
            f"metric {metric.name!r} changes in steps and has no gradient; use logit_diff, logprob_diff, prob or kl",
            metric=metric.name,
        )
    if metric.reads == "distribution" and mode == "noise":
        raise UsageError(
            f"metric {metric.name!r} is at its minimum on the clean run, so every first-order estimate there is 0; "
            "use mode='denoise' or sweep(...)",
            metric=metric.name,
        )


def bases_of(model: Model, kinds: Sequence[str] | None, usual: Sequence[str]) -> list[Site]:
    """The whole sites of these kinds, in layer order; None: of the usual kinds, as far as the model has them."""
    layers = range(model.body.n_layers)
    if kinds is not None:
        wrong = next((kind for kind in kinds if kind in PATTERN_KINDS), None)
        if wrong is not None:
            raise UsageError(
                f"kind {wrong!r}: attribution covers units at a position; use sweep(...) for patterns", kind=wrong
            )
        return model.body.expand([Site(kind, layer) for layer in layers for kind in kinds])
    found = [
        site
        for layer in layers
        for site in (Site(kind, layer) for kind in usual)
        if model.body.status(site).state != "refused"
    ]
    return model.body.expand(found)


def _parts(batch: Batch, max_tokens: int) -> Iterator[Batch]:
    """The pairs in pieces whose rows fit one pass; both rows of a pair stay together."""
    rows = len(batch.clean) // batch.n
    size = max(1, max_tokens // (rows * batch.clean.width))
    for start in range(0, batch.n, size):
        yield part(batch, range(start, min(start + size, batch.n)))


def first_order(
    model: Model, batch: Batch, bases: Sequence[Site], cells: Sequence[Site], mode: str, rules: Rules | None = None
) -> Estimate:
    """Difference of the sides times the slope on the base side; with `rules`, times the slope by the rules."""
    inputs = side(batch, BASES[mode])
    donor = model.run(side(batch, other(BASES[mode])), reads=bases, logits=batch.logits)
    slopes, own = slopes_of(model, batch, inputs, bases, rules=rules)
    lines = [
        summed(
            (donor.activations[cell.base] - slopes.activations[cell.base]) * slopes.gradients[cell.base], inputs, cell
        )
        for cell in cells
    ]
    return Estimate(per_pair(torch.cat(lines), batch), own, batch.values(required(donor.logits)).detach().cpu())


def slopes_of(
    model: Model,
    batch: Batch,
    inputs: Tokens,
    wanted: Sequence[Site],
    *,
    rules: Rules | None = None,
    without: Sequence[Sequence[Site]] = (),
) -> tuple[Gradients, Float[Tensor, " example"]]:
    """The gradients of the summed metric on one side of the pairs, and the metric of each pair."""
    seen: list[Tensor] = []

    def total(logits: Tensor | None, _: Mapping[Site, Tensor]) -> Tensor:
        seen.append(batch.values(required(logits)))
        return seen[0].sum()

    found = backward(model, inputs, total, wanted, logits=batch.logits, rules=rules, without=without)
    return found, seen[0].detach().cpu()


def per_pair(rows: Float[Tensor, "unit row"], batch: Batch) -> Float[Tensor, "unit example"]:
    """Sums over the rows that belong to a pair."""
    return rows.view(len(rows), -1, batch.n).sum(1).detach().cpu()


def summed(product: Tensor, inputs: Tokens, cell: Site) -> Float[Tensor, "unit row"]:
    """Products of one site summed over the cell's positions and over each unit's own axis; one line a unit."""
    chosen = torch.zeros_like(inputs.mask)
    for row, columns in enumerate(inputs.columns(cell.pos)):
        chosen[row, columns] = True
    spread = product.masked_fill(~chosen.to(product.device).view(*chosen.shape, *[1] * (product.ndim - 2)), 0.0)
    if cell.axis is None:
        return spread.sum((1, 2)).unsqueeze(0)
    return (spread.sum((1, 3)) if spread.ndim == 4 else spread.sum(1)).T


def _units(model: Model, cell: Site) -> list[Site]:
    """The cells that a line of `summed` stands for, in its order."""
    if cell.axis is None:
        return [cell]
    count = model.body.n_units(cell)
    return [cell.neuron(i) if cell.axis == "neuron" else cell.head(i) for i in range(count)]
