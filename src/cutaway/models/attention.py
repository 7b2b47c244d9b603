"""The attention tap: a function registered with transformers' attention interface that reads and edits q, k, v, z,
scores and pattern.

For each attention implementation that a model may run (sdpa, eager, flash...) one twin is registered, under the name
`cutaway_<name>`, *together with the mask function of the original*: a name without one silently drops the causal mask.
The twin calls the original kernel. Only a layer whose scores or pattern is asked for drops to the family's own eager
kernel; there a scoped torch-function mode shows the input and the output of its softmax. Outside a session the twin
is the original.
"""

import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cutaway.errors import SiteUnavailable

PREFIX = "cutaway_"


@runtime_checkable
class AttentionSession(Protocol):
    """What the attention function asks of the session that is active in this context."""

    def at(self, module: nn.Module, kind: str, value: Tensor, q_len: int) -> Tensor:
        """Read and edit; `value` is laid out [batch pos head ...]. Returns the value to go on with."""
        ...

    def wants(self, module: nn.Module, *kinds: str) -> bool:
        """Some of these sites of this module is read or edited."""
        ...


active: ContextVar[AttentionSession | None] = ContextVar("cutaway_attention", default=None)


def register(implementation: str) -> str:
    """Register the twin of an attention implementation (once); returns its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = PREFIX + implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _twin(implementation))
        mask = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.get(implementation)
        if mask is not None:
            AttentionMaskInterface.register(name, mask)
    return name


def _twin(implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ):
        kernel = _kernel(module, implementation)
        session = active.get()
        if session is None:
            return kernel(module, query, key, value, attention_mask, **kwargs)
        q_len = query.shape[2]
        query, key, value = (
            session.at(module, kind, tensor.transpose(1, 2), q_len).transpose(1, 2)
            if session.wants(module, kind)
            else tensor
            for kind, tensor in (("q", query), ("k", key), ("v", value))
        )
        if session.wants(module, "scores", "pattern"):
            z, weights = _eager(session, module, query, key, value, attention_mask, kwargs)
        else:
            z, weights = kernel(module, query, key, value, attention_mask, **kwargs)
        if session.wants(module, "z"):
            z = session.at(module, "z", z, q_len)
        return z, weights

    return attention


def _kernel(module: nn.Module, implementation: str) -> Callable[..., Any]:
    if implementation == "eager":
        return eager_kernel(module)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[implementation]


def eager_kernel(module: nn.Module) -> Callable[..., Any]:
    """The family's own eager kernel: `eager_attention_forward` of the module that defines the attention class."""
    for cls in type(module).__mro__:
        found = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise SiteUnavailable(
        f"scores and pattern of {type(module).__name__}: its file has no eager attention kernel to show them; "
        "read q, k, v or z instead",
        reason="no eager kernel",
    )


def _eager(
    session: AttentionSession,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
):
    kernel = eager_kernel(module)
    kwargs.pop("is_causal", None) if "is_causal" not in inspect.signature(kernel).parameters else None
    with _Softmax(session, module, query.shape[2]):
        return kernel(module, query, key, value, additive_mask(module, query, key, mask), **kwargs)


def additive_mask(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask that an eager kernel adds, from the one a fused kernel got: boolean, or None where it infers
    causality itself."""
    low = torch.finfo(query.dtype).min
    q_len, k_len = query.shape[2], key.shape[2]
    if mask is None:
        if q_len == 1 or not getattr(module, "is_causal", True):
            return None
        mask = torch.ones(q_len, k_len, dtype=torch.bool, device=query.device).tril(k_len - q_len)[None, None]
    if mask.dtype == torch.bool:
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        return torch.where(mask[..., :k_len], zero, torch.full_like(zero, low))
    return mask[..., :k_len]


class _Softmax(TorchFunctionMode):
    """While active, the first softmax over attention scores shows its input ('scores') and its output ('pattern')."""

    FUNCTIONS = (torch.softmax, torch.nn.functional.softmax, Tensor.softmax)

    def __init__(self, session: AttentionSession, module: nn.Module, q_len: int) -> None:
        super().__init__()
        self.session, self.module, self.q_len, self.seen = session, module, q_len, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.seen or func not in self.FUNCTIONS or not args or args[0].ndim != 4:
            return func(*args, **kwargs)
        self.seen = True
        scores = self._show("scores", args[0])
        return self._show("pattern", func(scores, *args[1:], **kwargs))

    def _show(self, kind: str, value: Tensor) -> Tensor:
        if not self.session.wants(self.module, kind):
            return value
        return self.session.at(self.module, kind, value.transpose(1, 2), self.q_len).transpose(1, 2)
