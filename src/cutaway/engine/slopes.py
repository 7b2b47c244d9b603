"""Gradients of many requests: those that differ only in the sites they want share one forward and one backward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from cutaway.errors import UsageError
from cutaway.models.activations import Activations
from cutaway.models.edits import Edit, edits_of
from cutaway.models.gradients import Gradients, grad
from cutaway.models.model import Model
from cutaway.models.sites import Site
from cutaway.models.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Grad:
    """One gradient, declared: d metric / d site at an edited run."""

    inputs: Tokens
    metric: Callable[[Tensor], Tensor]
    """One number from logits [batch pos d_vocab]. Requests that hold the same function may share a pass."""
    wanted: tuple[Site, ...]
    edits: tuple[Edit, ...] = ()


def gradients(model: Model, requests: Sequence[Grad]) -> list[Gradients]:
    """The gradients of every request, as `model.grad` gives them, in order.

    Cost: one forward with stored graph and one backward for each distinct (inputs, metric, edits), whatever the number
    of requests and sites; metric and edits count as equal when they are the same objects.
    Raises UsageError for no requests, and what `model.grad` raises.
    """
    if not requests:
        raise UsageError("no requests: nothing to take a gradient of")
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, request in enumerate(requests):
        edits = tuple(map(id, edits_of(request.edits)))
        groups.setdefault((request.inputs.digest, id(request.metric), edits), []).append(index)
    found: dict[int, Gradients] = {}
    for members in groups.values():
        first = requests[members[0]]
        wanted = {i: model.body.expand(requests[i].wanted) for i in members}
        union = list(dict.fromkeys(site.base for sites in wanted.values() for site in sites))
        whole = grad(model, first.inputs, first.metric, union, first.edits)
        for i in members:
            bases = list(dict.fromkeys(site.base for site in wanted[i]))
            found[i] = Gradients(whole.metric, _only(whole.activations, bases), _only(whole.gradients, bases))
    return [found[i] for i in range(len(requests))]


def _only(values: Activations, sites: Sequence[Site]) -> Activations:
    """Some of the sites, in memory of their own."""
    return Activations({site: values[site].clone() for site in sites}, values.tokens, values.model)
