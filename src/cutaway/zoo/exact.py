"""Exact interventions on small models of the Llama class, for establishing what a trained model of the zoo does.

Deliberately apart from the engine and the methods: they are tested against what is found here. One intervention is one
plain forward pass in which a submodule is replaced by a `Tap` around it; nothing is approximated and nothing is shared
between passes. Slow on purpose, and meant for models of a few layers.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cutaway.zoo.card import Ablation, Edge, Effect

Change: TypeAlias = Callable[[Tensor], Tensor]
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "mean_by_position", "zero")


class Tap(nn.Module):
    """A submodule whose input and output pass through functions."""

    def __init__(self, inner: nn.Module, before: Change | None = None, after: Change | None = None) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, value: Tensor) -> Tensor:
        value = self.inner(self.before(value) if self.before else value)
        return self.after(value) if self.after else value


@contextmanager
def tapped(
    parent: nn.Module, name: str, *, before: Change | None = None, after: Change | None = None
) -> Iterator[None]:
    """`parent.name` runs inside a tap; on leaving, also by an exception, the module is the one of before."""
    inner = getattr(parent, name)
    setattr(parent, name, Tap(inner, before, after))
    try:
        yield
    finally:
        setattr(parent, name, inner)


class Block(nn.Module):
    """A block whose output passes through a function."""

    def __init__(self, inner: nn.Module, after: Change) -> None:
        super().__init__()
        self.inner, self.after = inner, after

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.after(self.inner(*args, **kwargs))


@contextmanager
def tapped_block(model: Any, layer: int, after: Change) -> Iterator[None]:
    """The residual stream after a layer passes through a function; on leaving, also by an exception, the model is as
    before."""
    blocks = model.model.layers
    inner = blocks[layer]
    blocks[layer] = Block(inner, after)
    try:
        yield
    finally:
        blocks[layer] = inner


@dataclass(frozen=True)
class Rows:
    """Token rows of equal length, and what is predictable in them."""

    ids: Int[Tensor, "batch pos"]
    """Tokens; each row starts with BOS."""
    predictable: Bool[Tensor, "batch pos"]
    """Whether this token follows from those before it."""

    def to(self, device: str) -> "Rows":
        """The same on another device."""
        return Rows(self.ids.to(device), self.predictable.to(device))


@dataclass(frozen=True)
class Baseline:
    """The intact model on some rows: its activations and its score."""

    rows: Rows
    foils: Int[Tensor, "batch pos"]
    """A wrong answer for each token: another token of its row."""
    z: tuple[Float[Tensor, "batch pos head d_head"], ...]
    """Each layer's head outputs."""
    mlp_out: tuple[Float[Tensor, "batch pos d_model"], ...]
    """Each layer's MLP output."""
    resid_pre: tuple[Float[Tensor, "batch pos d_model"], ...]
    """Each layer's input."""
    resid_mid: tuple[Float[Tensor, "batch pos d_model"], ...]
    """What each layer's MLP reads, before its norm."""
    resid_final: Float[Tensor, "batch pos d_model"]
    """What the unembedding reads, before its norm."""
    pattern: tuple[Float[Tensor, "batch head query key"], ...]
    """Each layer's attention."""
    logit_diff: float
    """Mean logit of the right token minus the foil's over the predictable tokens, in nats."""


def baseline(model: Any, rows: Rows, *, seed: int) -> Baseline:
    """Run the intact model. The model must compute attention eagerly, so that its patterns can be read."""
    z: list[Tensor] = []
    mlp_out: list[Tensor] = []
    resid_pre: list[Tensor] = []
    resid_mid: list[Tensor] = []
    resid_final: list[Tensor] = []

    def keep(into: list[Tensor]) -> Change:
        return lambda value: into.append(value) or value

    with torch.no_grad(), ExitStack() as taps:
        for layer in model.model.layers:
            taps.enter_context(tapped(layer.self_attn, "o_proj", before=keep(z)))
            taps.enter_context(tapped(layer, "mlp", after=keep(mlp_out)))
            taps.enter_context(tapped(layer, "input_layernorm", before=keep(resid_pre)))
            taps.enter_context(tapped(layer, "post_attention_layernorm", before=keep(resid_mid)))
        taps.enter_context(tapped(model.model, "norm", before=keep(resid_final)))
        out = model(rows.ids, use_cache=False, output_attentions=True)
    foils = _foils(rows.ids, seed)
    heads = tuple(value.unflatten(-1, (-1, model.config.head_dim)) for value in z)
    logit_diff = _logit_diff(out.logits, rows, foils)
    return Baseline(
        rows=rows,
        foils=foils,
        z=heads,
        mlp_out=tuple(mlp_out),
        resid_pre=tuple(resid_pre),
        resid_mid=tuple(resid_mid),
        resid_final=resid_final[0],
        pattern=tuple(out.attentions),
        logit_diff=logit_diff,
    )


def ablate_head(model: Any, base: Baseline, layer: int, head: int, how: Ablation) -> Effect:
    """Effect of replacing one head's output `z` at all positions of all rows."""
    value = replacement(base.z[layer][:, :, head], how)

    def change(z: Tensor) -> Tensor:
        z = z.unflatten(-1, (-1, model.config.head_dim)).clone()
        z[:, :, head] = value
        return z.flatten(-2)

    with tapped(model.model.layers[layer].self_attn, "o_proj", before=change):
        return effect(model, base)


def ablate_mlp(model: Any, base: Baseline, layer: int, how: Ablation) -> Effect:
    """Effect of replacing one MLP's output at all positions of all rows."""
    value = replacement(base.mlp_out[layer], how)
    with tapped(model.model.layers[layer], "mlp", after=lambda _: value):
        return effect(model, base)


def edges(model: Any) -> Iterator[tuple[str, str]]:
    """Every (source, target) that the layout allows: the embedding, heads `z.L.hH` and MLPs `mlp_out.L` write; the
    queries, keys and values of heads, `mlp_in.L` and `logits` read what was written before them."""
    heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
    sources = ["embed"]
    for layer in range(model.config.num_hidden_layers):
        ports = [f"{port}.{layer}.h{head}" for port in "qkv" for head in range(heads if port == "q" else groups)]
        yield from itertools.product(sources, ports)
        sources += [f"z.{layer}.h{head}" for head in range(heads)]
        yield from ((source, f"mlp_in.{layer}") for source in sources)
        sources.append(f"mlp_out.{layer}")
    yield from ((source, "logits") for source in sources)


def edge(model: Any, base: Baseline, source: str, target: str) -> Edge:
    """The three truths of one direct connection (see `Edge`): `target` alone reads what `source` has in another row, or
    nothing of it; everything else in the model sees the true one. Two forward passes.

    Path patching of a direct edge (Wang et al. 2022, Interpretability in the Wild, appendix B). For grouped keys and
    values `hH` counts key-value heads.
    """
    written = _write(model, base, source)
    true = _reading(model, base, target, torch.zeros_like(written))
    drops, connected = {}, False
    for how in ("resample", "zero"):
        read = _reading(model, base, target, replacement(written, how) - written)
        connected = connected or not torch.allclose(read, true, rtol=1e-5, atol=1e-6 * true.abs().max().item())
        drops[how] = _with_reading(model, base, target, read).drop
    return Edge(source=source, target=target, structural=connected, resample=drops["resample"], zero=drops["zero"])


def _place(site: str) -> tuple[str, int, int]:
    """Kind, layer and head of a site; -1 for what it has not."""
    kind, layer, head = (*site.split("."), "-1", "-1")[:3]
    return kind, int(layer), int(head.removeprefix("h"))


def _write(model: Any, base: Baseline, source: str) -> Float[Tensor, "batch pos d_model"]:
    """What a component adds to the residual stream."""
    kind, layer, head = _place(source)
    if kind == "embed":
        return base.resid_pre[0]
    return base.mlp_out[layer] if kind == "mlp_out" else head_write(model, base.z[layer][:, :, head], layer, head)


def _reading(model: Any, base: Baseline, target: str, shift: Float[Tensor, "batch pos d_model"]) -> Tensor:
    """What a reader makes of its input when the residual stream is shifted for it alone: a head's queries, keys or
    values (before rotation), an MLP's output, the logits."""
    kind, layer, head = _place(target)
    with torch.no_grad():
        if kind == "logits":
            return model.lm_head(model.model.norm(base.resid_final + shift))
        block = model.model.layers[layer]
        if kind == "mlp_in":
            return block.mlp(block.post_attention_layernorm(base.resid_mid[layer] + shift))
        seen = block.input_layernorm(base.resid_pre[layer] + shift)
        return getattr(block.self_attn, f"{kind}_proj")(seen).unflatten(-1, (-1, model.config.head_dim))[:, :, head]


def _with_reading(model: Any, base: Baseline, target: str, read: Tensor) -> Effect:
    """Effect of the reader having this instead of its true reading."""
    kind, layer, head = _place(target)
    if kind == "logits":
        return _effect_of(read, base)
    block = model.model.layers[layer]
    if kind == "mlp_in":
        with tapped(block, "mlp", after=lambda _: read):
            return effect(model, base)

    def change(projected: Tensor) -> Tensor:
        projected = projected.unflatten(-1, (-1, model.config.head_dim)).clone()
        projected[:, :, head] = read
        return projected.flatten(-2)

    with tapped(block.self_attn, f"{kind}_proj", after=change):
        return effect(model, base)


def head_write(
    model: Any, z: Float[Tensor, "batch pos d_head"], layer: int, head: int
) -> Float[Tensor, "batch pos d_model"]:
    """What a head with output `z` adds to the residual stream."""
    d_head = model.config.head_dim
    weight = model.model.layers[layer].self_attn.o_proj.weight[:, head * d_head : (head + 1) * d_head]
    return (z @ weight.T).detach()


def replacement(value: Tensor, how: Ablation) -> Tensor:
    """What an output of the rows is replaced by; `resample` takes the row before, at the same position."""
    if how == "resample":
        return value.roll(1, dims=0)
    if how == "mean":
        return value.mean((0, 1)).expand_as(value)
    if how == "mean_by_position":
        return value.mean(0).expand_as(value)
    return torch.zeros_like(value)


def effect(model: Any, base: Baseline) -> Effect:
    """Score of the model as it is now, against the intact one. One forward pass."""
    with torch.no_grad():
        return _effect_of(model(base.rows.ids, use_cache=False).logits, base)


def _effect_of(logits: Float[Tensor, "batch pos d_vocab"], base: Baseline) -> Effect:
    return Effect(
        drop=1 - _logit_diff(logits, base.rows, base.foils) / base.logit_diff, accuracy=accuracy(logits, base.rows)
    )


def accuracy(logits: Float[Tensor, "batch pos d_vocab"], rows: Rows) -> float:
    """Share of the predictable tokens that are ranked first by the logits one position earlier."""
    hit = logits[:, :-1].argmax(-1) == rows.ids[:, 1:]
    return hit[rows.predictable[:, 1:]].double().mean().item()


def attention_to_previous(pattern: Float[Tensor, "batch query key"]) -> float:
    """Mean attention from each position but the first to the one before it."""
    return pattern.diagonal(offset=-1, dim1=1, dim2=2).mean().item()


def attention_to_successor(pattern: Float[Tensor, "batch query key"], rows: Rows) -> float:
    """Mean attention to the tokens after earlier occurrences of the present one, where the next is predictable."""
    after_same = torch.zeros_like(pattern, dtype=torch.bool)
    after_same[:, :, 1:] = rows.ids[:, :, None] == rows.ids[:, None, :-1]
    summed = (pattern * after_same.tril()).sum(-1)
    return summed[:, :-1][rows.predictable[:, 1:]].mean().item()


def _foils(ids: Int[Tensor, "batch pos"], seed: int) -> Int[Tensor, "batch pos"]:
    """For each token a different one of the same row, BOS excluded."""
    generator = torch.Generator().manual_seed(seed)
    length = ids.shape[1]
    drawn = torch.randint(1, length, (*ids.shape, length), generator=generator)
    candidates = ids[:, None].expand(-1, length, -1).gather(2, drawn)
    first = (candidates != ids[:, :, None]).int().argmax(-1, keepdim=True)
    return candidates.gather(2, first)[:, :, 0]


def _logit_diff(logits: Tensor, rows: Rows, foils: Tensor) -> float:
    def of(tokens: Tensor) -> Tensor:
        return logits[:, :-1].gather(2, tokens[:, 1:, None])[:, :, 0]

    return (of(rows.ids) - of(foils))[rows.predictable[:, 1:]].double().mean().item()


def mean_write(write: Tensor, stream: Tensor) -> float:
    """Mean length of a write, over the mean length of the residual stream that it is added to."""
    return (write.norm(dim=-1).mean() / stream.norm(dim=-1).mean()).item()


def effects(run: Callable[[Ablation], Effect], kinds: Sequence[Ablation] = ABLATIONS) -> Mapping[Ablation, Effect]:
    """One effect a kind of ablation."""
    return {kind: run(kind) for kind in kinds}
