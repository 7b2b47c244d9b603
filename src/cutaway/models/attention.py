"""The attention tap: a function registered with transformers' attention interface that reads and edits q, k, v, z,
scores and pattern.

For each attention implementation that a model may run (sdpa, eager, flash...) one twin is registered, under the name
`cutaway_<name>`, *together with the mask function of the original*: a name without one silently drops the causal mask.
The twin calls the original kernel. Only a layer whose scores or pattern is asked for drops to the family's own eager
kernel; there a scoped torch-function mode shows the input and the output of its softmax. Outside a session the twin
is the original.

An attention that does not go through the interface is written out in its module: there a mode (`Inline`) follows the
two products and the softmax while that module runs.
"""

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final, Protocol, runtime_checkable

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
in_kernel: ContextVar[bool] = ContextVar("cutaway_in_kernel", default=False)
"""A kernel of the attention interface is running: what it calls is no attention of its own."""


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
        token = in_kernel.set(True)
        try:
            if session.wants(module, "scores", "pattern"):
                z, weights = _eager(session, module, query, key, value, attention_mask, kwargs)
            else:
                z, weights = kernel(module, query, key, value, attention_mask, **kwargs)
        finally:
            in_kernel.reset(token)
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
    with _Softmax(session, module, query.shape[2], key.shape[2]):
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


SOFTMAX: Final = (torch.softmax, torch.nn.functional.softmax, Tensor.softmax)
PRODUCTS: Final = (
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    Tensor.matmul,
    Tensor.bmm,
    Tensor.baddbmm,
    Tensor.__matmul__,
)
FUSED: Final = torch.nn.functional.scaled_dot_product_attention


class _Softmax(TorchFunctionMode):
    """While active, the first softmax over attention scores shows its input ('scores') and its output ('pattern').

    Columns beyond the keys (a sink that only takes weight) are not shown and stay as they are.
    """

    def __init__(self, session: AttentionSession, module: nn.Module, q_len: int, k_len: int) -> None:
        super().__init__()
        self.session, self.module, self.q_len, self.k_len, self.seen = session, module, q_len, k_len, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.seen or func not in SOFTMAX or not args or args[0].ndim != 4:
            return func(*args, **kwargs)
        self.seen = True
        scores = self._show("scores", args[0])
        return self._show("pattern", func(scores, *args[1:], **kwargs))

    def _show(self, kind: str, value: Tensor) -> Tensor:
        if not self.session.wants(self.module, kind):
            return value
        keys = value[..., : self.k_len] if value.shape[-1] == self.k_len + 1 else value
        new = self.session.at(self.module, kind, keys.transpose(1, 2), self.q_len).transpose(1, 2)
        return new if keys is value else torch.cat([new, value[..., self.k_len :]], -1)


class Inline(TorchFunctionMode):
    """While active, an attention that is written out in its module shows q, k, scores, pattern, v and z.

    Its product of queries and keys is the first one of a shape [batch head query key], its softmax the next one of
    that shape, its product with the values the next that reads a pattern. A fused kernel that is called directly is
    written out where scores or pattern are asked for. Heads may lie in an axis of their own or in that of the rows.
    """

    def __init__(self, session: AttentionSession, module: nn.Module, n_rows: int, q_len: int) -> None:
        super().__init__()
        self.session, self.module, self.n_rows, self.q_len = session, module, n_rows, q_len
        self.shape: tuple[int, ...] = ()
        self.stage = "product"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is FUSED:
            return self._fused(args, kwargs)
        if self.stage in ("product", "softmax") and func in SOFTMAX and args and self._scores(args[0].shape):
            self.stage = "values"
            self.shape = args[0].shape
            scores = self._show("scores", args[0])
            return self._show("pattern", func(scores, *args[1:], **kwargs))
        if func in PRODUCTS and self.stage in ("product", "values"):
            return self._product(func, args, kwargs)
        return func(*args, **kwargs)

    def _scores(self, shape: Sequence[int]) -> bool:
        heads = (len(shape) == 4 and shape[0] == self.n_rows) or (len(shape) == 3 and shape[0] > self.n_rows)
        return heads and shape[0] % self.n_rows == 0 and shape[-2] == self.q_len and shape[-1] >= self.q_len

    def _product(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Queries with keys, or a pattern with values; any other product as it is."""
        given = dict(enumerate(args)) | kwargs
        places = [place for place, item in given.items() if isinstance(item, Tensor)][-2:]
        if len(places) < 2:
            return func(*args, **kwargs)
        left, right = given[places[0]], given[places[1]]
        if left.ndim != right.ndim or left.ndim not in (3, 4):
            return func(*args, **kwargs)

        def call() -> Any:
            named = {name: item for name, item in given.items() if isinstance(name, str)}
            return func(*(item for place, item in given.items() if isinstance(place, int)), **named)

        if self.stage == "product" and self._scores((*left.shape[:-1], right.shape[-1])):
            self.stage = "softmax"
            given[places[0]] = self._show("q", left)
            given[places[1]] = self._show("k", right.transpose(-1, -2)).transpose(-1, -2)
            return call()
        if self.stage == "values" and left.shape[-2:] == self.shape[-2:] and left.numel() == math.prod(self.shape):
            self.stage = "done"
            given[places[1]] = self._show("v", right)
            return self._show("z", call())
        return func(*args, **kwargs)

    def _fused(self, args: Any, kwargs: dict[str, Any]) -> Any:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args)), **kwargs}
        query, key, value = given["query"], given["key"], given["value"]
        if query.ndim != 4 or query.shape[0] != self.n_rows or query.shape[2] != self.q_len:
            return FUSED(*args, **kwargs)
        given |= {"query": self._show("q", query), "key": self._show("k", key), "value": self._show("v", value)}
        self.stage = "done"
        if not self.session.wants(self.module, "scores", "pattern"):
            return self._show("z", FUSED(**given))
        return self._show("z", self._written_out(**given))

    def _written_out(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002 - the interface; runs are in evaluation mode
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """What the fused kernel computes, by its definition."""
        shared = query.shape[1] // key.shape[1] if enable_gqa else 1
        keys = key.repeat_interleave(shared, 1) if shared > 1 else key
        scores = query @ keys.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        low = torch.finfo(scores.dtype).min
        if is_causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~seen, low)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, low) if attn_mask.dtype == torch.bool else scores + attn_mask
        pattern = self._show("pattern", self._show("scores", scores).softmax(-1))
        return pattern @ (value.repeat_interleave(shared, 1) if shared > 1 else value)

    def _show(self, kind: str, value: Tensor) -> Tensor:
        """Show [batch head pos ...], or [batch * head pos ...], as [batch pos head ...]."""
        if not self.session.wants(self.module, kind):
            return value
        heads = value.unflatten(0, (self.n_rows, -1)) if value.ndim == 3 else value
        new = self.session.at(self.module, kind, heads.transpose(1, 2), self.q_len).transpose(1, 2)
        return new.flatten(0, 1) if value.ndim == 3 else new
