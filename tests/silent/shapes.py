"""Five shapes of causal models, tiny and random, each with the oracle beside it, and a watch over what must not change.

>>> shape("llama").model.body.n_kv_heads
2
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

import cutaway
from cutaway.models import Model
from tests.families import D_MODEL, D_VOCAB, N_LAYERS, SPECIAL, tiny
from tests.families import GROUPED as GROUPED_SIZES
from tests.models.samples import built, hooked, tokenizer
from tests.silent import oracle

SHAPES = ("gpt2", "llama", "gemma2", "qwen3", "mixtral")
GROUPED = SHAPES[1:]
"""Those with fewer key/value heads than heads, and heads that are not d_model / n_heads wide."""
EXTRA: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomForCausalLM", {**SPECIAL, "hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": 4}),
    "gpt_oss": (
        "GptOssForCausalLM",
        {
            **GROUPED_SIZES,
            "intermediate_size": 40,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}
"""Two more, for one case each; their oracle is a twin with one hook by hand."""
BLOCKS = dict.fromkeys(("gpt2", "bloom"), "transformer.h.{}") | dict.fromkeys((*GROUPED, "gpt_oss"), "model.layers.{}")
ATTENTION = {"gpt2": "transformer.h.{}.attn", **dict.fromkeys(GROUPED, "model.layers.{}.self_attn")}
N_ROWS, N_POS = 4, 4
"""As many rows as positions: a value whose axes were mistaken for each other still has a shape that fits."""


@dataclass(frozen=True)
class Shape:
    """One model, loaded; its untouched twin for the oracle; prompts of one length."""

    name: str
    hf: Any
    model: Model
    twin: Any
    ids: Tensor
    """Four rows of four tokens."""
    other: Tensor
    """Four other rows of four tokens."""

    @property
    def rows(self) -> list[list[int]]:
        return self.ids.tolist()

    @property
    def block(self) -> Any:
        """The module of block 1."""
        return self.hf.get_submodule(BLOCKS[self.name].format(1))

    def wanted(
        self, *edits: oracle.Change, ids: Tensor | None = None, mask: Tensor | None = None, twin: Any = None
    ) -> Tensor:
        """The oracle's logits."""
        return self.whole(*edits, ids=ids, mask=mask, twin=twin).logits.detach()

    def whole(
        self, *edits: oracle.Change, ids: Tensor | None = None, mask: Tensor | None = None, twin: Any = None
    ) -> oracle.Pass:
        return oracle.forward(self.twin if twin is None else twin, self.ids if ids is None else ids, mask, edits)

    def by_hand(self, path: str, change: Callable[[Tensor], Tensor], port: str = "output") -> Tensor:
        """Logits of the twin with one hook by hand, on what a module takes in or gives out."""
        with torch.no_grad(), hooked(self.twin.get_submodule(path), change, port):
            return self.twin(self.ids).logits

    def run(self, *edits: Any, inputs: Any = None) -> Tensor:
        """The library's logits."""
        return self.model.run(self.rows if inputs is None else inputs, list(edits)).logits

    def plain(self, ids: Tensor | None = None) -> Tensor:
        """What the user's own call of the user's own model gives."""
        with torch.no_grad():
            return self.hf(self.ids if ids is None else ids).logits


def shape(name: str) -> Shape:
    """A fresh copy, so that a case may do to it what it likes."""
    hf = copy.deepcopy(_base(name).module)
    model = Model(hf, tokenizer(bos=False), _base(name).anatomy, name)
    return Shape(name, hf, model, copy.deepcopy(hf), tokens(1), tokens(2))


def tokens(seed: int, n: int = N_POS, rows: int = N_ROWS) -> Tensor:
    """Random rows of ordinary ids."""
    return torch.randint(3, D_VOCAB, (rows, n), generator=torch.Generator().manual_seed(seed))


def vector(*sizes: int, seed: int = 5) -> Tensor:
    """A random tensor of the given shape; without one, a vector of the residual stream."""
    return torch.randn(sizes or (D_MODEL,), generator=torch.Generator().manual_seed(seed))


@cache
def _base(name: str) -> Model:
    return cutaway.load(made(name))


def made(name: str) -> Any:
    """The Hugging Face model alone, with logits of standard deviation 1: its final norm is scaled."""
    hf = built(EXTRA[name][0], **EXTRA[name][1]) if name in EXTRA else tiny(name)
    norm = hf.transformer.ln_f if hasattr(hf, "transformer") else hf.model.norm
    with torch.no_grad():
        size = hf(tokens(1, 8)).logits.std()
        bare = 1.0 if name == "gemma2" else 0.0
        norm.weight.copy_((norm.weight + bare) / size - bare)
        if hasattr(norm, "bias"):
            norm.bias.div_(size)
    return hf


# -- what must be as it was


@dataclass(frozen=True)
class Snapshot:
    """The user's model, as far as a user can see it."""

    parameters: str
    """Bytes of all parameters and buffers, and which of them are the same tensor."""
    flags: tuple[tuple[str, bool, bool], ...]
    """requires_grad of every parameter, and whether it holds a gradient."""
    modes: tuple[tuple[str, str, bool], ...]
    """Path, class and training mode of every module."""
    keys: tuple[str, ...]
    """Keys of the state dict."""
    hooks: tuple[Any, ...]
    """Every hook of every module, by identity and in order."""
    entries: tuple[tuple[str, str], ...]
    """What stands on the instances themselves and would replace a method."""
    attention: tuple[str | None, ...]
    """Attention setting of every configuration."""


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def snapshot(hf: Any) -> Snapshot:
    """The model as it is now."""
    modules = list(hf.named_modules())
    hasher = hashlib.sha256()
    for name, tensor in [*hf.named_parameters(remove_duplicate=False), *hf.named_buffers(remove_duplicate=False)]:
        hasher.update(f"{name}{tensor.dtype}{tensor.device}{id(tensor)}".encode())
        hasher.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return Snapshot(
        parameters=hasher.hexdigest(),
        flags=tuple((name, p.requires_grad, p.grad is not None) for name, p in hf.named_parameters()),
        modes=tuple((name, type(module).__name__, module.training) for name, module in modules),
        keys=tuple(hf.state_dict()),
        hooks=tuple(
            (name, kind, tuple(map(id, getattr(module, kind).values()))) for name, module in modules for kind in HOOKS
        ),
        entries=tuple(
            (name, key) for name, module in modules for key in ("forward", "__call__") if key in vars(module)
        ),
        attention=tuple(module.config._attn_implementation for _, module in modules if hasattr(module, "config")),
    )


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """Names of what is no longer as it was."""
    return [key for key, value in vars(before).items() if getattr(after, key) != value]


def padded(rows: Sequence[Sequence[int]], side: str, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows, padded on a side."""
    width = max(map(len, rows))
    filled = [
        [pad] * (width - len(row)) + list(row) if side == "left" else list(row) + [pad] * (width - len(row))
        for row in rows
    ]
    ids = torch.tensor(filled)
    columns = torch.arange(width)[None]
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    return ids, columns >= width - lengths if side == "left" else columns < lengths
