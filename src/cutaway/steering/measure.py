"""Where a vector comes from, and what its strength is worth: both measured in the model that it is for.

Difference of two prompts (ActAdd): direction = h(to) - h(from), h the activation at one position of each; with several
prompts on a side, the difference of the means.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.artifacts import Provenance, digest
from cutaway.errors import BadEdit, UsageError
from cutaway.models.model import Model, Prompts
from cutaway.models.sites import Site
from cutaway.steering.vector import Scale, Steering


def measure(
    model: Model, reference: Prompts, site: Site | str, direction: Float[Tensor, " d"], *, skip: int = 1
) -> Scale:
    """Median length of the activations at a site on a text, and mean and standard deviation of their projections.

    Cost: one forward pass. Misleads: it is worth what the text is like: measure on text of the kind that is steered.

    Args:
        skip: tokens at the beginning of each row that are left out; the first one often is many times longer than all
            others.
    """
    place = _whole(site)
    if skip < 0:
        raise UsageError(f"skip={skip}: a number of tokens, from 0 on")
    tokens = model.encode(reference)
    values = _vectors(model, tokens, place)
    kept = torch.cat(
        [row[offset + skip : offset + n] for row, offset, n in zip(values, tokens.offsets, tokens.lengths)]
    )
    if len(kept) < 2:
        raise UsageError(
            f"reference text: {len(kept)} tokens are left after the first {skip} of each row, and a spread needs two "
            "at least; give longer text"
        )
    if kept.shape[1:] != direction.shape:
        raise BadEdit(
            f"direction at {place}: it has shape {list(direction.shape)}, the site {list(kept.shape[1:])}",
            site=str(place),
        )
    found = kept @ (direction.to(kept) / direction.to(kept).norm())
    norm = float(kept.norm(dim=-1).median())
    return Scale(norm, float(found.mean()), float(found.std()), len(kept), tokens.digest)


def steering(
    model: Model,
    site: Site | str,
    direction: Float[Tensor, " d"],
    *,
    reference: Prompts | None = None,
    skip: int = 1,
    how: str = "given",
    data: str = "",
    **options: Any,
) -> Steering:
    """A vector for this model; with reference text its strength may be given in norms and standard deviations.

    Args:
        reference: text that the units 'norm' and 'sd' are measured on.
        how: how the direction was found.
        data: digest of what it was found with.
        options: strength, unit, operation, below, keep_norm, condition, as in `Steering`.
    """
    place = Site.parse(site) if isinstance(site, str) else site
    slot = list(model.body.slot(model.body.expand(place)[0])[0 if place.unit is None else 1 :])
    if list(direction.shape) != slot:
        raise BadEdit(f"direction at {place}: it has shape {list(direction.shape)}, the site {slot}", site=str(place))
    scale = None if reference is None else measure(model, reference, place, direction, skip=skip)
    code = importlib.import_module("cutaway").__version__
    source = data or digest(direction.detach().cpu())
    return Steering(place, direction, Provenance(model.digest, source, code), scale=scale, how=how, **options)


def difference(
    model: Model,
    to: str | Sequence[str],
    from_: str | Sequence[str],
    site: Site | str,
    *,
    read: str | int = "end",
    reference: Prompts | None = None,
    **options: Any,
) -> Steering:
    """The vector from one prompt to another, or between the means of several: h(to) - h(from) (Turner et al. 2023).

    Cost: one forward pass a side, and one for the reference. Misleads: two prompts differ in more than what is meant
    (length, last token, part of speech); more prompts on both sides, and random directions beside them, tell.

    Args:
        read: the position that is read in each prompt: a role or an index ('end': the last token).
        reference: as in `steering`; None: the prompts themselves.
        options: as in `steering`.
    """
    place = _whole(site)
    sides = [[texts] if isinstance(texts, str) else list(texts) for texts in (to, from_)]
    if not all(sides):
        raise UsageError("to and from: each side needs a prompt")
    tokens = [model.encode(side) for side in sides]
    means = []
    for side in tokens:
        at = side.columns(read)
        values = _vectors(model, side, place)
        means.append(torch.stack([values[row, columns[0]] for row, columns in enumerate(at)]).mean(0))
    found = means[0] - means[1]
    if not bool(found.any()):
        raise UsageError(
            f"{to!r} and {from_!r}: at position {read!r} of {place} the model is in the same state for both, so that "
            "there is no direction between them; read another position, or give other prompts"
        )
    how = f"{place} at {read}: mean over {sides[0]} minus mean over {sides[1]}"
    texts = [*sides[0], *sides[1]] if reference is None else reference
    data = digest([side.digest for side in tokens])
    return steering(model, site, found, reference=texts, how=how, data=data, **options)


def _whole(site: Site | str) -> Site:
    """The site at all positions and rows."""
    place = Site.parse(site) if isinstance(site, str) else site
    return place.at(None) if place.batch_rows is None else place.at(None).base


def _vectors(model: Model, tokens: Any, site: Site) -> Float[Tensor, "batch pos d"]:
    values = model.capture(tokens, site)[site].float().cpu()
    if values.ndim != 3:
        raise BadEdit(
            f"site {site}: it holds {list(values.shape[2:])} numbers a token, and a direction needs one vector; name "
            "one head",
            site=str(site),
        )
    return values
