"""The oracle: GPT-2, Llama, Gemma-2, Qwen3 and Mixtral written by hand in plain torch, with edits as arguments.

No hooks, and nothing of transformers but the parameters of a model. A site is a name such as 'z.1', and an edit of it a
function of its whole value, laid out [batch pos ...] (scores and pattern: [batch head query key]).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Change = tuple[str, Callable[[Tensor], Tensor]]
"""A site's name, and what its value becomes."""


@dataclass
class Tape:
    """What a pass changes, and what it saw. Edits of one site follow each other as they were given."""

    edits: Sequence[Change] = ()
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        for where, change in self.edits:
            if where == name:
                value = change(value)
        self.seen[name] = value
        return value


@dataclass
class Pass:
    """Logits [batch pos d_vocab] of one pass, and the value of every site."""

    logits: Tensor
    seen: dict[str, Tensor]


def forward(hf: Any, ids: Tensor, mask: Tensor | None = None, edits: Sequence[Change] = ()) -> Pass:
    """One pass with the parameters of a Hugging Face model; `mask` is False at padding, and positions count real
    tokens."""
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    known = {name for name, _ in edits}
    tape = Tape(edits)
    logits = (_gpt2 if hf.config.model_type == "gpt2" else _rotary)(hf, ids, mask, tape)
    assert known <= set(tape.seen), f"the oracle has no {known - set(tape.seen)}"
    return Pass(logits, tape.seen)


def continued(hf: Any, ids: Tensor, n: int, edits: Callable[[Tensor], Sequence[Change]] | None = None) -> Tensor:
    """Rows of equal length and `n` greedy tokens more, each from a whole pass over all that is there so far."""
    for _ in range(n):
        logits = forward(hf, ids, edits=edits(ids) if edits else ()).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1)[:, None]], 1)
    return ids


def at(position: int | Sequence[int], change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A change of some positions of all rows."""
    where = [position] if isinstance(position, int) else list(position)

    def changed(value: Tensor) -> Tensor:
        columns = torch.arange(value.shape[1])
        here = torch.isin(columns, torch.tensor([p % value.shape[1] for p in where]))
        return torch.where(here.view(1, -1, *[1] * (value.ndim - 2)), change(value), value)

    return changed


def head(index: int, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A change of one head of q, k, v or z."""

    def changed(value: Tensor) -> Tensor:
        heads = list(value.unbind(2))
        heads[index] = change(heads[index])
        return torch.stack(heads, 2)

    return changed


def zero(value: Tensor) -> Tensor:
    """Zeros in place of the value."""
    return torch.zeros_like(value)


def plus(vector: Tensor) -> Callable[[Tensor], Tensor]:
    """Adds a tensor."""
    return lambda value: value + vector


def instead(found: Tensor) -> Callable[[Tensor], Tensor]:
    """Another value of the same shape."""

    def changed(value: Tensor) -> Tensor:
        assert found.shape == value.shape
        return found

    return changed


# -- the passes


def _positions(mask: Tensor) -> Tensor:
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _bias(mask: Tensor, window: int | None = None) -> Tensor:
    """What is added to the scores: a query sees real keys at and before it, of a window the last ones alone."""
    n = mask.shape[1]
    gap = torch.arange(n)[:, None] - torch.arange(n)[None, :]
    seen = (gap >= 0) & (gap < (window or n + 1))
    return torch.where(seen[None] & mask[:, None, :], 0.0, torch.finfo(torch.float32).min)[:, None]


def _attend(
    tape: Tape, layer: int, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, cap: float | None = None
) -> Tensor:
    """Softmax attention over [batch pos head d_head]; keys and values serve as many heads as there are for each."""
    q, k, v = tape(f"q.{layer}", q), tape(f"k.{layer}", k), tape(f"v.{layer}", v)
    each = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(each, 2), v.repeat_interleave(each, 2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    scores = tape(f"scores.{layer}", scores + bias)
    pattern = tape(f"pattern.{layer}", scores.softmax(-1))
    return tape(f"z.{layer}", torch.einsum("bhqk,bkhd->bqhd", pattern, v))


def _gpt2(hf: Any, ids: Tensor, mask: Tensor, tape: Tape) -> Tensor:
    p = dict(hf.named_parameters())
    n_heads = hf.config.n_head

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + hf.config.layer_norm_epsilon).sqrt()
        return centred / spread * p[f"{name}.weight"] + p[f"{name}.bias"]

    def affine(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    x = tape("embed", p["transformer.wte.weight"][ids]) + p["transformer.wpe.weight"][_positions(mask)]
    bias = _bias(mask)
    for layer in range(hf.config.n_layer):
        name = f"transformer.h.{layer}"
        x = tape(f"resid_pre.{layer}", x)
        read = tape(f"attn_in.{layer}", norm(f"{name}.ln_1", x))
        q, k, v = (t.unflatten(-1, (n_heads, -1)) for t in affine(f"{name}.attn.c_attn", read).chunk(3, -1))
        z = _attend(tape, layer, q, k, v, bias, q.shape[-1] ** -0.5)
        out = tape(f"attn_out.{layer}", affine(f"{name}.attn.c_proj", z.flatten(2)))
        x = tape(f"resid_mid.{layer}", x + tape(f"attn_write.{layer}", out))
        hidden = tape(f"mlp_pre.{layer}", affine(f"{name}.mlp.c_fc", norm(f"{name}.ln_2", x)))
        act = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        out = tape(f"mlp_out.{layer}", affine(f"{name}.mlp.c_proj", tape(f"mlp_act.{layer}", act)))
        x = tape(f"resid_post.{layer}", x + tape(f"mlp_write.{layer}", out))
    x = tape("final_norm", norm("transformer.ln_f", x))
    return tape("logits", x @ p["transformer.wte.weight"].T)


def _rotary(hf: Any, ids: Tensor, mask: Tensor, tape: Tape) -> Tensor:
    """Llama and its relatives."""
    p, config = dict(hf.named_parameters()), hf.config
    gemma, family = config.model_type == "gemma2", config.model_type

    def norm(name: str, x: Tensor) -> Tensor:
        weight = p[f"{name}.weight"] + (1.0 if gemma else 0.0)
        return x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * weight

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{name}.weight"].T

    n_heads, n_kv, d_head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    turn = _turn(_positions(mask), d_head, config.rope_parameters["rope_theta"])
    scale = (config.query_pre_attn_scalar if gemma else d_head) ** -0.5
    x = p["model.embed_tokens.weight"][ids] * (math.sqrt(config.hidden_size) if gemma else 1.0)
    x = tape("embed", x)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        sliding = gemma and config.layer_types[layer] == "sliding_attention"
        x = tape(f"resid_pre.{layer}", x)
        read = tape(f"attn_in.{layer}", norm(f"{name}.input_layernorm", x))
        q = linear(f"{name}.self_attn.q_proj", read).unflatten(-1, (n_heads, d_head))
        k = linear(f"{name}.self_attn.k_proj", read).unflatten(-1, (n_kv, d_head))
        v = linear(f"{name}.self_attn.v_proj", read).unflatten(-1, (n_kv, d_head))
        if family == "qwen3":
            q, k = norm(f"{name}.self_attn.q_norm", q), norm(f"{name}.self_attn.k_norm", k)
        bias = _bias(mask, config.sliding_window if sliding else None)
        cap = config.attn_logit_softcapping if gemma else None
        z = _attend(tape, layer, turn(q), turn(k), v, bias, scale, cap)
        out = tape(f"attn_out.{layer}", linear(f"{name}.self_attn.o_proj", z.flatten(2)))
        if gemma:
            out = norm(f"{name}.post_attention_layernorm", out)
        x = tape(f"resid_mid.{layer}", x + tape(f"attn_write.{layer}", out))
        before = f"{name}.pre_feedforward_layernorm" if gemma else f"{name}.post_attention_layernorm"
        read = tape(f"mlp_in.{layer}", norm(before, x))
        out = tape(
            f"mlp_out.{layer}",
            _experts(p, config, name, read) if family == "mixtral" else _mlp(p, name, layer, read, tape, gemma),
        )
        if gemma:
            out = norm(f"{name}.post_feedforward_layernorm", out)
        x = tape(f"resid_post.{layer}", x + tape(f"mlp_write.{layer}", out))
    x = tape("final_norm", norm("model.norm", x))
    logits = x @ p["lm_head.weight" if "lm_head.weight" in p else "model.embed_tokens.weight"].T
    if gemma:
        logits = torch.tanh(logits / config.final_logit_softcapping) * config.final_logit_softcapping
    return tape("logits", logits)


def _turn(positions: Tensor, d_head: int, base: float) -> Callable[[Tensor], Tensor]:
    """Rotates the two halves of each head against each other, by angles that grow with the position."""
    angles = positions[..., None, None].float() / base ** (torch.arange(0, d_head, 2).float() / d_head)
    cos, sin = angles.cos(), angles.sin()

    def turn(value: Tensor) -> Tensor:
        a, b = value.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    return turn


def _mlp(p: dict[str, Tensor], name: str, layer: int, x: Tensor, tape: Tape, gemma: bool) -> Tensor:
    gate = tape(f"mlp_pre.{layer}", x @ p[f"{name}.mlp.gate_proj.weight"].T)
    act = F.gelu(gate, approximate="tanh") if gemma else gate * gate.sigmoid()
    act = tape(f"mlp_act.{layer}", act * (x @ p[f"{name}.mlp.up_proj.weight"].T))
    return act @ p[f"{name}.mlp.down_proj.weight"].T


def _experts(p: dict[str, Tensor], config: Any, name: str, x: Tensor) -> Tensor:
    """All experts run on every token; those that were not chosen count nothing."""
    chances = (x @ p[f"{name}.mlp.gate.weight"].T).softmax(-1)
    best, which = chances.topk(config.num_experts_per_tok, -1)
    weight = torch.zeros_like(chances).scatter(-1, which, best / best.sum(-1, keepdim=True))
    gate, up = torch.einsum("bpd,efd->bpef", x, p[f"{name}.mlp.experts.gate_up_proj"]).chunk(2, -1)
    out = torch.einsum("bpef,edf->bped", gate * gate.sigmoid() * up, p[f"{name}.mlp.experts.down_proj"])
    return (out * weight[..., None]).sum(2)
