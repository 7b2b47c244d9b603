"""Trace: one forward pass, observed: every module call with its first tensor in and out, every attention. And what it
means that two tensors of it are equal."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cutaway.models.anatomy import Tap
from cutaway.models.experts import Routing


@dataclass
class Call:
    """One call of one module in the trace: its first tensor in and out, [batch pos ...] where it can be, and when."""

    path: str
    module: nn.Module
    start: int
    input: Tensor | None = None
    output: Tensor | None = None
    end: int = -1
    tuple_output: bool = False
    returned: int = 1
    """Length of the tuple that it returned."""
    input_axes: Any = "bp"
    output_axes: Any = "bp"
    """How the tensor lay in the module."""
    routing: Routing | None = None
    """For a call of stacked experts, which argument is which."""

    @property
    def value(self) -> Tensor:
        """The output, of a call that has one."""
        assert self.output is not None
        return self.output

    def tap(self, port: Literal["input", "output"] = "output", scale: float | str = 1.0) -> Tap:
        return Tap(self.path, port, scale, self.input_axes if port == "input" else self.output_axes)


@dataclass
class Kernel:
    """The attention that one module computes."""

    inline: bool
    """Written out in the module, not through transformers' attention interface."""
    after: int
    """Module calls before it."""
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    """Kind to the value at each call: q k v z as [batch pos head d_head], scores and pattern [batch query head key]."""

    def first(self, kind: str) -> Tensor | None:
        return self.values[kind][0] if kind in self.values else None

    @property
    def times(self) -> int:
        return max(map(len, self.values.values()))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Sites that it has. A kernel called twice with the same queries and keys has one pattern, and no one v or
        z."""
        fused = not self.inline or "scores" not in self.values
        have = {*self.values, *(("scores", "pattern") if fused else ())}
        if self.times > 1:
            have -= {"v", "z"}
        return tuple(kind for kind in ("q", "k", "v", "scores", "pattern", "z") if kind in have)

    @property
    def settled(self) -> bool:
        """Every call has the same queries and keys."""
        return all(
            same(value, calls[0]) for kind in ("q", "k") for calls in [self.values.get(kind, [])] for value in calls
        )


@dataclass
class Trace:
    """One forward pass, observed. `calls` in order of their start."""

    shape: tuple[int, int]
    """Rows and positions."""
    calls: list[Call] = field(default_factory=list)
    attention: dict[str, Kernel] = field(default_factory=dict)
    """By the path of each module in which attention is computed."""

    def __post_init__(self) -> None:
        self._by_path: dict[str, list[Call]] = {}
        self._sorted = 0

    def of(self, path: str) -> list[Call]:
        """Calls of a module."""
        for call in self.calls[self._sorted :]:
            self._by_path.setdefault(call.path, []).append(call)
        self._sorted = len(self.calls)
        return self._by_path.get(path, [])

    def inside(self, path: str) -> list[Call]:
        """Calls strictly inside a module."""
        return [call for call in self.calls if call.path.startswith(path + ".")]


def gap(a: Tensor | None, b: Tensor | None) -> float:
    """Largest absolute difference; infinite between tensors that cannot be compared. Equal infinities do not differ."""
    if a is None or b is None or a.shape != b.shape or not (a.is_floating_point() and b.is_floating_point()):
        return float("inf")
    return float((a.double() - b.double()).abs().masked_fill(a == b, 0.0).max())


def rounding(*tensors: Tensor | None) -> float:
    """What a handful of roundings can make of the largest finite value here: eight units in its last place."""
    sizes = [(torch.finfo(t.dtype).eps, t.abs().nan_to_num(nan=0.0, posinf=0.0)) for t in tensors if t is not None]
    return max(8 * eps * float(size.max()) for eps, size in sizes) + 1e-30


def close(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal up to rounding: the same quantity, computed in another order."""
    return gap(a, b) < float("inf") and gap(a, b) <= rounding(a, b)


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """The same value, bit for bit: one tensor seen twice."""
    return gap(a, b) == 0.0


def is_linear(module: nn.Module) -> bool:
    """One matrix and nothing below it: Linear, Conv1D and their quantised kin; or what wraps one and says its sizes."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and not list(module.children()):
        return not isinstance(module, nn.Embedding)
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes)
