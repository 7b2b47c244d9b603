"""Chain: how a block's output comes from its input, found by value: additions of submodule outputs, as they are or
scaled, with norms between them.

    resid_post = resid_pre + a + m                      sequential and parallel blocks
    resid_post = N2(N1(resid_pre + a) + m)              post-norm
    resid_post = resid_pre + s a + s m                  scaled writes (Granite, MiniCPM)
    resid_post = k N2(k N1(resid_pre) + s a) + s m      the stream itself scaled or normed

Sums are tried on a few hundred entries first, factors are solved by least squares and then named: the number of the
block or of its configuration that they are, so that no digit is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from cutaway.models.anatomy import Step
from cutaway.models.trace import Call, close, gap, rounding

ENTRIES: Final = 512
SMALLEST: Final = 1e-3
"""A factor below this is none: what it multiplies does not belong to the sum."""

MOST_CANDIDATES: Final = 16
"""Up to so many submodule outputs, sums of four and five are tried too."""

Part: TypeAlias = tuple[Call, float | str]
"""A submodule whose output is added, and what it is multiplied by."""


@dataclass(frozen=True)
class Link:
    """One step of a chain: `norm(keep * state + parts)`."""

    parts: list[Part] = field(default_factory=list)
    keep: float | str = 1.0
    norm: Call | None = None

    @property
    def step(self) -> Step:
        """The same as data of the anatomy."""
        parts = tuple(call.tap("output", scale) for call, scale in self.parts)
        return Step(parts, self.keep, self.norm.path if self.norm is not None else None)


class Chain:
    """The search in one block."""

    def __init__(self, candidates: list[Call], calls: list[Call], block: nn.Module, root: nn.Module) -> None:
        self.candidates, self.root = candidates, root
        shape = candidates[0].value.shape if candidates else None
        self.norms = [
            c for c in calls if c.output is not None and c.output.shape == shape and _is_norm(c) and c.input is not None
        ]
        self.vectors = _vectors(block, root, shape[-1]) if shape is not None else {}
        self.numbers = _numbers(block, root)
        self.picked: Tensor | None = None

    def solve(self, before: Tensor, after: Tensor) -> list[Link] | None:
        """The links; None when there are none."""
        if not self.candidates:
            return None
        generator = torch.Generator().manual_seed(0)
        self.picked = torch.randint(before.numel(), (ENTRIES,), generator=generator).to(before.device)
        for scaled in (False, True):
            found = self._go(before, after, scaled, 3)
            if found is not None:
                return found
        link = self._sum(before, after, False, 5, least=4) if len(self.candidates) <= MOST_CANDIDATES else None
        return [link] if link is not None else None

    def _go(self, state: Tensor, after: Tensor, scaled: bool, depth: int) -> list[Link] | None:
        direct = self._sum(state, after, scaled, 3 if depth == 3 else 2)
        if direct is not None:
            return [direct]
        for norm in self.norms if depth else []:
            assert norm.input is not None
            if close(norm.input, state):
                link = Link(norm=norm)
            else:
                found = self._sum(state, norm.input, scaled, 2)
                if found is None:
                    continue
                if found.keep != 1.0 and (rest := self._go(norm.input, after, scaled, depth - 1)) is not None:
                    return [found, *rest]
                link = replace(found, norm=norm)
            if close(norm.output, after):
                return [link]
            if not close(norm.output, state) and (rest := self._go(norm.value, after, scaled, depth - 1)) is not None:
                return [link, *rest]
        return None

    def _sum(self, state: Tensor, target: Tensor, scaled: bool, most: int, least: int = 1) -> Link | None:
        """`target = keep * state + parts`, with as few parts as do."""
        pool = [c for c in self.candidates if not close(c.output, target) and not close(c.output, state)]
        for size in range(least, most + 1):
            for parts in combinations(pool, size):
                if scaled:
                    link = self._scaled(state, target, parts)
                else:
                    link = Link([(part, 1.0) for part in parts]) if self._adds(state, target, parts) else None
                if link is not None:
                    return link
        if not scaled:
            return None
        for path, vector in self.vectors.items():  # a learned factor a channel on the stream itself
            for size in range(1, most):
                for parts in combinations(pool, size):
                    if self._adds(state * vector, target, parts):
                        return Link([(part, 1.0) for part in parts], keep=path)
        return None

    def _few(self, value: Tensor) -> Tensor:
        assert self.picked is not None
        return value.flatten()[self.picked].double()

    def _adds(self, state: Tensor, target: Tensor, parts: Sequence[Call]) -> bool:
        limit = rounding(state, target, *(part.output for part in parts))
        rest = self._few(target) - self._few(state)
        for part in parts:
            rest = rest - self._few(part.value)
        if not float(rest.abs().max()) <= limit:
            return False
        return _left(state, target, [(part, 1.0) for part in parts], 1.0, self.root) <= limit

    def _scaled(self, state: Tensor, target: Tensor, parts: Sequence[Call]) -> Link | None:
        columns = torch.stack([self._few(value) for value in (state, *(part.value for part in parts))], 1)
        wanted = self._few(target)
        found = torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0]
        limit = 4 * rounding(state, target, *(part.output for part in parts))
        if not float((columns @ found - wanted).abs().max()) <= limit or float(found.abs().min()) < SMALLEST:
            return None
        keep, *scales = (self._named(float(x), torch.finfo(state.dtype).eps) for x in found)
        link = Link(list(zip(parts, scales)), keep)
        return link if _left(state, target, link.parts, keep, self.root) <= limit else None

    def _named(self, value: float, eps: float) -> float | str:
        """The number of the block or its configuration that a solved factor is."""
        slack = 64 * eps * abs(value)
        if abs(value - 1.0) <= slack:
            return 1.0
        near = [(abs(number - value), name) for name, number in self.numbers.items() if abs(number - value) <= slack]
        if not near:
            return value
        name = min(near)[1]
        return self.numbers[name] if name.startswith("=") else name


def factor(scale: float | str, root: nn.Module) -> Any:
    """A number, or the parameter or buffer at a path."""
    if not isinstance(scale, str):
        return scale
    parent, _, name = scale.rpartition(".")
    return getattr(root.get_submodule(parent), name).detach()


def _left(state: Tensor, target: Tensor, parts: Sequence[Part], keep: float | str, root: nn.Module) -> float:
    """What is left of the target when the state and the parts are taken away."""
    total = state.double() * factor(keep, root)
    for call, scale in parts:
        total = total + call.value.double() * factor(scale, root)
    return gap(total, target.double())


def _is_norm(call: Call) -> bool:
    """Acts on each position by itself, with no matrix and no module below; not the identity."""
    module = call.module
    matrix = any(p.ndim > 1 for p in module.parameters())
    return not matrix and not list(module.children()) and not close(call.input, call.output)


def _vectors(block: nn.Module, root: nn.Module, size: int) -> dict[str, Tensor]:
    """Parameters of the block itself with one entry a channel, by path."""
    paths = {id(p): name for name, p in root.named_parameters()}
    return {paths[id(p)]: p.detach() for p in block.parameters(recurse=False) if p.shape == (size,) and id(p) in paths}


def _numbers(block: nn.Module, root: nn.Module) -> dict[str, float]:
    """Single numbers by which a block may scale: parameters and buffers by path, attributes by '=name'."""
    paths = {id(t): name for name, t in [*root.named_parameters(), *root.named_buffers()]}
    own = [*block.parameters(recurse=False), *block.buffers(recurse=False)]
    found = {paths[id(t)]: float(t) for t in own if t.numel() == 1 and id(t) in paths}
    config = getattr(root, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config  # type: ignore[union-attr]
    for holder in (vars(block), getattr(config, "__dict__", {})):
        found |= {f"={name}": float(x) for name, x in holder.items() if isinstance(x, float) and x not in (0.0, 1.0)}
    return found
