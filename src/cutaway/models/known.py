"""What the first block of a pass need not compute, because another pass on the same rows did.

An edit behind the attention kernel leaves the kernel's result as it was: `z` is put in its place, and the output
projection is the first thing that runs. An edit of the block's input at some columns leaves the input projections of
all other columns as they were: only those of the first `fresh` columns are computed. Both hold where the parts between
treat every position alone; `engine.proofs` checks it on the model before it is used.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cutaway.models import attention
from cutaway.models.taps import Session, forward_replaced

if TYPE_CHECKING:
    import cutaway.models.model


@dataclass(frozen=True)
class Known:
    """Values of one block, from the first computed column on: the kernel's result, or the input projections."""

    layer: int
    z: Tensor | None = None
    """[batch pos head d_head], before this pass's edits of it."""
    projections: Mapping[str, Tensor] = field(default_factory=dict)
    """Module path to output [batch pos features]."""
    fresh: int = 0
    """Columns, counted from the first, whose projections are computed all the same."""

    def installed(self, model: "cutaway.models.model.Model", session: Session) -> ExitStack:
        """While open, the block takes these values instead of computing them, in passes of this session alone."""
        stack = ExitStack()
        for path, value in self.projections.items():
            module = model.module.get_submodule(path)
            stack.enter_context(forward_replaced(module, self._projecting(module, value, session)))
        layer = model.body.layers[self.layer]
        if self.z is not None and layer.attention is not None and layer.o_proj is not None:
            module = model.module.get_submodule(layer.attention)
            after = model.module.get_submodule(layer.o_proj)
            stack.enter_context(forward_replaced(module, self._attending(module, after, session)))
        return stack

    def _projecting(self, module: nn.Module, known: Tensor, session: Session) -> Any:
        whole = module.forward

        def forward(entering: Tensor) -> Tensor:
            if attention.active.get() is not session:
                return whole(entering)
            if self.fresh == 0:
                return known
            return torch.cat([whole(entering[:, : self.fresh].contiguous()), known[:, self.fresh :]], 1)

        return forward

    def _attending(self, module: nn.Module, after: nn.Module, session: Session) -> Any:
        whole = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if attention.active.get() is not session:
                return whole(*args, **kwargs)
            assert self.z is not None
            z = self.z
            if session.wants(module, "z"):
                z = session.at(module, "z", z, z.shape[1])
            return after(z.flatten(2)), None

        return forward


def projections(model: "cutaway.models.model.Model", layer: int) -> list[str]:
    """Module paths of the linear maps inside a block's attention, its output projection left out."""
    found = model.body.layers[layer]
    if found.attention is None or found.o_proj is None:
        return []
    inside = model.module.get_submodule(found.attention)
    names = [f"{found.attention}.{name}" for name, module in inside.named_modules() if _linear(module)]
    return [name for name in names if name != found.o_proj]


def _linear(module: nn.Module) -> bool:
    """A plain linear map; transformers' Conv1D is one."""
    kind = type(module)
    return kind is nn.Linear or (kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."))
