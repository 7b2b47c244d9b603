"""Gradients of a scalar of the logits with respect to sites: one forward and one backward pass, whatever the number
of sites."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.models.activations import Activations
from cutaway.models.edits import Edit, Placed, edits_of
from cutaway.models.forward import check, forward
from cutaway.models.sites import Site
from cutaway.models.tokens import Tokens

if TYPE_CHECKING:
    import cutaway.models.model


@dataclass(frozen=True)
class Gradients:
    """A metric, the activations at the sites, and d metric / d activation of the same shapes."""

    metric: float
    activations: Activations
    gradients: Activations


def grad(
    model: "cutaway.models.model.Model",
    tokens: Tokens,
    metric: Callable[[Tensor], Tensor],
    wanted: Sequence[Site],
    edits: Sequence[Edit] = (),
) -> Gradients:
    """d metric(logits) / d site, for every site, at the (edited) run. Parameters get no gradients and keep their flags.

    `metric` maps logits [batch pos d_vocab] to one number; sum over rows for per-example gradients, since rows do not
    mix. A site that the metric does not depend on gets zeros. Cost: one forward with stored graph and one backward.
    """
    placed = [Placed(edit, tokens) for edit in edits_of(edits)]
    check(model, placed, wanted)
    bases = list(dict.fromkeys(site.base for site in wanted))
    # what is read where a module takes it in may go on elsewhere too: the slope is taken where a change would be made
    carriers = {site: model.body.carrier(site) for site in bases}
    reads = list(dict.fromkeys([*bases, *carriers.values()]))
    logits, values = forward(model, tokens, edits=placed, reads=reads, keep_graph=True)
    assert logits is not None
    with torch.enable_grad():
        scalar = metric(logits)
    if scalar.ndim != 0 or not scalar.requires_grad:
        raise UsageError(
            f"metric: it must return one number that depends on the logits; got shape {tuple(scalar.shape)}, "
            f"requires_grad={scalar.requires_grad}"
        )
    found = torch.autograd.grad(scalar, [values[carriers[site]] for site in bases], allow_unused=True)
    slopes = {site: torch.zeros_like(values[site]) if g is None else g.detach() for site, g in zip(bases, found)}
    kept = {site: values[site].detach().clone() for site in bases}
    return Gradients(
        float(scalar.detach()), Activations(kept, tokens, model.digest), Activations(slopes, tokens, model.digest)
    )
