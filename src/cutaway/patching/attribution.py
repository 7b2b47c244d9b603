"""Attribution patching (AtP): a first-order estimate of what patching every part would do, without patching any.

    effect of site s on pair i  ~  < s on the donor side - s on the base side , d m_i / d s on the base side >

1. One forward pass of the donor side keeps the sites' values.
2. One forward and one backward pass of the base side give the metric, the values and the gradients. Pairs do not mix,
   so the gradient of the summed metric is each pair's own.
3. The products are summed over what a cell holds: a head's vector, a neuron, a write; over its positions.

Exact where the metric is linear in the site between the two values; a ranking to be checked by real patches elsewhere.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.models import Model, Site, Tokens
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
    choose("mode", mode, tuple(BASES))
    batch = encode(model, task)
    _require_gradient(batch, mode)
    bases = _bases(model, kinds)
    cells = place(model, bases, positions, batch)
    estimates, clean, corrupt = [], [], []
    parts = list(_parts(batch, max_tokens))
    for done, piece in enumerate(parts):
        estimate, own, donor = _estimate(model, piece, bases, cells, mode)
        estimates.append(estimate)
        (clean if mode == "noise" else corrupt).append(own)
        (corrupt if mode == "noise" else clean).append(donor)
        if progress is not None:
            progress(done + 1, len(parts))
    sides = torch.cat(clean), torch.cat(corrupt)
    values = torch.cat(estimates, 1) + sides[0 if mode == "noise" else 1]
    labels = [str(site) for cell in cells for site in _units(model, cell)]
    return effects(model, batch, labels, values, *sides, on=BASES[mode], method="attribution", seed=None)


def _require_gradient(batch: Batch, mode: str) -> None:
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


def _bases(model: Model, kinds: Sequence[str] | None) -> list[Site]:
    """The sites whose gradients are needed, in layer order."""
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
        for site in (Site(kind, layer) for kind in KINDS)
        if model.body.status(site).state != "refused"
    ]
    return model.body.expand(found)


def _parts(batch: Batch, max_tokens: int) -> Iterator[Batch]:
    """The pairs in pieces whose rows fit one pass; both rows of a pair stay together."""
    rows = len(batch.clean) // batch.n
    size = max(1, max_tokens // (rows * batch.clean.width))
    for start in range(0, batch.n, size):
        yield part(batch, range(start, min(start + size, batch.n)))


def _estimate(
    model: Model, batch: Batch, bases: Sequence[Site], cells: Sequence[Site], mode: str
) -> tuple[Float[Tensor, "unit example"], Float[Tensor, " example"], Float[Tensor, " example"]]:
    """Estimates of some pairs, with the metric on their base and on their donor side."""
    on = BASES[mode]
    inputs = side(batch, on)
    donor = model.run(side(batch, other(on)), reads=bases, logits=batch.logits)
    seen: list[Tensor] = []

    def total(logits: Tensor) -> Tensor:
        seen.append(batch.values(batch.select(logits)))
        return seen[0].sum()

    slopes = model.grad(inputs, total, bases)
    products = {site: (donor.activations[site] - slopes.activations[site]) * slopes.gradients[site] for site in bases}
    rows = torch.cat([_summed(products[cell.base], inputs, cell) for cell in cells])
    per_pair = rows.view(len(rows), -1, batch.n).sum(1)
    return per_pair.detach().cpu(), seen[0].detach().cpu(), batch.values(required(donor.logits)).detach().cpu()


def _summed(product: Tensor, inputs: Tokens, cell: Site) -> Float[Tensor, "unit row"]:
    """Products of one site summed over the cell's positions and over each unit's own axis; one line a unit."""
    chosen = torch.zeros_like(inputs.mask)
    for row, columns in enumerate(inputs.columns(cell.pos)):
        chosen[row, columns] = True
    spread = product.masked_fill(~chosen.to(product.device).view(*chosen.shape, *[1] * (product.ndim - 2)), 0.0)
    if cell.axis is None:
        return spread.sum((1, 2)).unsqueeze(0)
    return (spread.sum((1, 3)) if spread.ndim == 4 else spread.sum(1)).T


def _units(model: Model, cell: Site) -> list[Site]:
    """The cells that a line of `_summed` stands for, in its order."""
    if cell.axis is None:
        return [cell]
    count = model.body.n_units(cell)
    return [cell.neuron(i) if cell.axis == "neuron" else cell.head(i) for i in range(count)]
