"""The experts tap: what each expert of a mixture adds to its tokens, read and edited, whatever kernel computes it.

Experts are one module with stacked weights, called with the tokens, the chosen experts and their weights; fused kernels
show nothing of what lies inside. The mixture is linear in the weights, so the call with one choice a token at a time
gives each expert's own share by the model's own code: `expert_out[token, e] = weight * E_e(token)`, zero where e was
not chosen. Their sum is what the whole call gives, up to rounding. An edit adds `changed - before` to what the whole
call gave, so that an edit which changes nothing changes no bit.

Cost: one more call of the experts for each choice a token has, in a layer that is asked for.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.models.attention import AttentionSession, active


class Routing(NamedTuple):
    """Names of the arguments of an experts call."""

    hidden: str
    """[token d_model]"""
    chosen: str
    """Chosen experts, [token choice]."""
    weights: str
    """[token choice]"""


def n_experts(module: nn.Module) -> int | None:
    """How many experts a module holds, by its stacked weights; None for any other module."""
    sizes = [int(p.shape[0]) for p in module.parameters(recurse=False) if p.ndim == 3]
    return sizes[0] if sizes and len(set(sizes)) == 1 else None


def routing(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Routing | None:
    """Which argument of this call is which; None when it is no such call."""
    given = {name: item for name, item in _bound(forward, args, kwargs).items() if isinstance(item, Tensor)}
    hidden = next((n for n, t in given.items() if t.is_floating_point() and t.ndim == 2), None)
    index = next((n for n, t in given.items() if not t.is_floating_point() and t.ndim == 2), None)
    if hidden is None or index is None:
        return None
    weights = next(
        (n for n, t in given.items() if n != hidden and t.is_floating_point() and t.shape == given[index].shape), None
    )
    if weights is None or len(given[hidden]) != len(given[index]):
        return None
    return Routing(hidden, index, weights)


def _bound(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(inspect.signature(forward).bind(*args, **kwargs).arguments)
    except TypeError:
        return {}


def watched(
    session: AttentionSession,
    module: nn.Module,
    original: Callable[..., Any],
    shape: Callable[[], tuple[int, int] | None],
) -> Callable[..., Any]:
    """The module's forward, which shows `expert_out` to the session [batch pos expert d_model]."""
    number = n_experts(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        names = routing(original, args, kwargs)
        if active.get() is not session or names is None or number is None or not isinstance(out, Tensor):
            return out
        value = shares(original, args, kwargs, names, number)
        rows = value.unflatten(0, shape() or (1, -1))
        new = session.at(module, "expert_out", rows, rows.shape[1])
        return out if new is rows else out + (new - rows).flatten(0, 1).sum(1).reshape(out.shape).to(out.dtype)

    return forward


def shares(
    original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], names: Routing, number: int
) -> Tensor:
    """What each expert adds to each token, [token expert d_model]."""
    given = _bound(original, args, kwargs)
    hidden, index, weights = (given[name] for name in names)
    found = hidden.new_zeros(len(hidden), number + 1, hidden.shape[1])  # one more: some models route to no expert
    rows = torch.arange(len(hidden), device=hidden.device)
    for choice in range(index.shape[1]):
        one = {id(index): index[:, choice : choice + 1], id(weights): weights[:, choice : choice + 1]}
        part = original(
            *(one.get(id(item), item) for item in args), **{name: one.get(id(x), x) for name, x in kwargs.items()}
        )
        found = found.index_put((rows, index[:, choice].clamp(max=number)), part.to(found), accumulate=True)
    return found[:, :number]
