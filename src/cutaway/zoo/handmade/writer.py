"""Writer: a blueprint as the weights of an ordinary Hugging Face model.

    llama    RMSNorm before each sublayer, rotary positions, gated SiLU; any number of heads shares keys and values
    gpt2     LayerNorm before each sublayer, learned positions (sines), GELU
    gemma2   RMSNorm before and after each sublayer, rotary positions, gated GELU; soft caps off

Each norm's gain is the length that the stream is known to have there, so that the norm is the identity, up to
1 / ONE**2 for each coordinate that is set. For LayerNorm a coordinate is a pair (+1, -1) of entries, so that the mean
is zero. Rotary heads keep what they compare in slow pairs of the head's entries, which the positions barely turn, and
positions in the fast ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UnknownName, UsageError, did_you_mean
from cutaway.zoo.handmade.blueprint import ONE, Blueprint, Form, Head, Unit
from cutaway.zoo.handmade.rows import BOS, EOS, PAD

ARCHITECTURES: Final = ("llama", "gpt2", "gemma2")
RATIO: Final = 0.1
"""Each rotary pair turns this much slower than the one before; the first turns by one radian a position."""
FAST: Final = 2
"""Pairs, or learned sines and cosines, that tell positions."""
SKIPPED: Final = 5
"""Pairs that turn too fast for content."""
SHARP: Final = 20.0
"""Smooth neurons are scaled so that a valid reading is at least so far from their bend: beyond it GELU and SiLU are
what a ReLU is, to 1e-7."""


@dataclass(frozen=True)
class Basis:
    """How coordinates become entries of the residual stream."""

    write: Float[Tensor, "d_model coordinate"]
    """A coordinate's column."""
    read: Float[Tensor, "coordinate d_model"]
    """Its left inverse."""
    stretch: float
    """Length of a coordinate's column."""

    def reading(self, forms: Sequence[Form]) -> Float[Tensor, "form d_model"]:
        """Rows that read forms."""
        return _dense(forms, self.read.shape[0]) @ self.read

    def writing(self, forms: Sequence[Form]) -> Float[Tensor, "d_model form"]:
        """Columns that write forms."""
        return self.write @ _dense(forms, self.read.shape[0]).T


def basis(n: int, d_model: int, *, paired: bool, rotate: int | None, still: Sequence[int] = ()) -> Basis:
    """The plain basis, or one turned by a random orthogonal map. The coordinates `still` stay where they are: those
    that hold large constants, which would cost the others digits. With `paired` the map keeps the all-ones vector, so
    that it commutes with LayerNorm as any other does with RMSNorm."""
    write = torch.zeros(d_model, n, dtype=torch.float64)
    at = torch.arange(n)
    if paired:
        write[2 * at, at], write[2 * at + 1, at] = 1.0, -1.0
    else:
        write[at, at] = 1.0
    read = write.T / (2.0 if paired else 1.0)
    if rotate is not None:
        moved = torch.ones(d_model, dtype=torch.bool)
        moved[[entry for one in still for entry in ((2 * one, 2 * one + 1) if paired else (one,))]] = False
        turn = torch.eye(d_model, dtype=torch.float64)
        turn[torch.outer(moved, moved)] = rotation(int(moved.sum()), rotate, keep_ones=paired).flatten()
        write, read = turn @ write, read @ turn.T
    return Basis(write, read, math.sqrt(2.0) if paired else 1.0)


def rotation(n: int, seed: int, *, keep_ones: bool) -> Float[Tensor, "n n"]:
    """A random orthogonal matrix (float64); with `keep_ones` it maps the all-ones vector to itself."""
    generator = torch.Generator().manual_seed(seed)
    size = n - 1 if keep_ones else n
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()
    if not keep_ones:
        return q
    normal = torch.full((n,), n**-0.5, dtype=torch.float64)  # a reflection that maps it to the first axis
    normal[0] -= 1.0
    reflect = torch.eye(n, dtype=torch.float64) - 2 * torch.outer(normal, normal) / normal.dot(normal)
    inner = torch.eye(n, dtype=torch.float64)
    inner[1:, 1:] = q
    return reflect @ inner @ reflect


@dataclass(frozen=True)
class Attention:
    """The projections of a layer, in float64, one entry a head or a group of heads that share keys and values."""

    q: Float[Tensor, "head d_head d_model"]
    k: Float[Tensor, "group d_head d_model"]
    v: Float[Tensor, "group d_head d_model"]
    o: Float[Tensor, "head d_model d_head"]


def write_model(print_: Blueprint, architecture: str, *, rotate: int | None, kv_groups: int) -> Any:
    """The model, in float32, in evaluation mode. `kv_groups` heads share their keys and values.

    Raises UnknownName for an architecture that is not known, UsageError for one that cannot share.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownName(
            f"architecture {architecture!r}: not one of {', '.join(ARCHITECTURES)}; name one."
            f"{did_you_mean(architecture, ARCHITECTURES)}",
            found=architecture,
            known=ARCHITECTURES,
        )
    if kv_groups < 1 or (kv_groups > 1 and architecture == "gpt2"):
        raise UsageError(
            f"kv_groups={kv_groups} with {architecture!r}: GPT-2 shares no keys and values, and a group "
            "has one head at least; give 1, or another architecture"
        )
    frame = frame_of(print_, architecture, rotate=rotate, kv_groups=kv_groups)
    layers = [_attention(block.heads, frame, kv_groups, print_.length) for block in print_.blocks]
    fill = {"llama": _llama, "gpt2": _gpt2, "gemma2": _gemma2}[architecture]
    return fill(print_, frame.space, layers)


@dataclass(frozen=True)
class Frame:
    """Sizes of a model, and where its coordinates lie."""

    space: Basis
    n_heads: int
    d_head: int
    places: range | None
    """Coordinates of learned positions, after those of the blueprint; None where positions are rotary."""


def frame_of(print_: Blueprint, architecture: str, *, rotate: int | None, kv_groups: int = 1) -> Frame:
    """The frame that `write_model` uses."""
    rotary = architecture != "gpt2"
    n_heads = max(len(block.heads) for block in print_.blocks)
    d_head = max(_need(block.heads, kv_groups, rotary) for block in print_.blocks)
    n = print_.layout.size + (0 if rotary else 2 * FAST)
    if rotary:
        d_model = _up(n, n_heads)
    else:
        d_head = max(d_head, math.ceil(2 * n / n_heads))
        d_model = d_head * n_heads
    still = [at for name in ("one", "ballast") for at in print_.layout.parts.get(name, ())]
    space = basis(n, d_model, paired=not rotary, rotate=rotate, still=still)
    return Frame(space, n_heads, d_head, None if rotary else range(print_.layout.size, n))


# -- attention


def _need(heads: tuple[Head, ...], kv_groups: int, rotary: bool) -> int:
    """Entries that a head must have for what its group compares and moves."""
    need = 2 * SKIPPED
    for start in range(0, len(heads), kv_groups):
        group = heads[start : start + kv_groups]
        compared = sum(len(head.matches) for head in group)
        need = max(need, compared + 2 * (SKIPPED if rotary else FAST), sum(len(head.moves) for head in group))
    return _up(need, 2)


def _up(n: int, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple


def _attention(heads: tuple[Head, ...], frame: Frame, kv_groups: int, length: int) -> Attention:
    space, n_heads, d_head = frame.space, frame.n_heads, frame.d_head
    d_model, groups = space.write.shape[0], n_heads // kv_groups
    q, o = torch.zeros(n_heads, d_head, d_model).double(), torch.zeros(n_heads, d_model, d_head).double()
    k, v = torch.zeros(groups, d_head, d_model).double(), torch.zeros(groups, d_head, d_model).double()
    for group in range(groups):
        slots, slot = iter(_slots(d_head, rotary=frame.places is None)), 0
        for at, head in enumerate(heads[group * kv_groups : (group + 1) * kv_groups], group * kv_groups):
            mine = [next(slots) for _ in head.matches]
            q[at, mine] = space.reading([match.query for match in head.matches])
            k[group, mine] = space.reading([match.key for match in head.matches])
            if head.offset is not None:
                _look_back(q[at], k[group], head, frame, length)
            n = len(head.moves)
            v[group, slot : slot + n] = space.reading([read for read, _ in head.moves])
            o[at, :, slot : slot + n] = space.writing([write for _, write in head.moves])
            slot += n
    return Attention(q * math.sqrt(d_head), k, v, o)  # attention divides scores by that root


def _slots(d_head: int, *, rotary: bool) -> list[int]:
    """Entries of a head for content: with rotary positions the slow pairs, slowest first."""
    if not rotary:
        return list(range(2 * FAST, d_head))
    half = d_head // 2
    return [entry for pair in reversed(range(SKIPPED, half)) for entry in (pair, pair + half)]


def _look_back(
    q: Float[Tensor, "d_head d_model"], k: Float[Tensor, "d_head d_model"], head: Head, frame: Frame, length: int
) -> None:
    """Fill in what makes a head look `offset` positions back: a sum of cosines of the distance, less the offset."""
    assert head.offset is not None
    space, places = frame.space, frame.places
    turns = [RATIO**pair for pair in range(FAST)]
    worst = min(sum(1 - math.cos(turn * at) for turn in turns) for at in range(1, length))
    size = head.margin / worst
    one = {0: 1 / ONE}
    half = q.shape[0] // 2
    for pair, turn in enumerate(turns):
        cosine, sine = math.cos(turn * head.offset), math.sin(turn * head.offset)
        if places is None:
            q[[pair, pair + half]] = space.reading([{0: size * cosine / ONE}, {0: -size * sine / ONE}])
            k[pair] = space.reading([one])[0]
        else:
            c, s = places[2 * pair], places[2 * pair + 1]
            asked = [{c: size * cosine, s: size * sine}, {s: size * cosine, c: -size * sine}]
            q[[2 * pair, 2 * pair + 1]] = space.reading(asked)
            k[[2 * pair, 2 * pair + 1]] = space.reading([{c: 1.0}, {s: 1.0}])


# -- the rest of a model


def _neurons(units: Sequence[Unit], space: Basis, d_mlp: int, one: Form) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, factor and output of the neurons, the rest zero."""
    n, d_model = len(units), space.write.shape[0]
    gate, up = torch.zeros(d_mlp, d_model).double(), torch.zeros(d_mlp, d_model).double()
    down = torch.zeros(d_model, d_mlp).double()
    sharp = torch.tensor([SHARP / unit.sharp for unit in units]).double()
    gate[:n] = space.reading([unit.read for unit in units]) * sharp[:, None]
    up[:n] = space.reading([one] * n)
    down[:, :n] = space.writing([unit.write for unit in units]) / sharp
    return gate, up, down


def _d_mlp(print_: Blueprint) -> int:
    return max(4, *(len(block.mlp.units) for block in print_.blocks))


def _embedding(print_: Blueprint, space: Basis) -> Tensor:
    one, token = print_.layout.parts["one"][0], print_.layout.parts["token"]
    return space.writing([{one: ONE, token[i]: 1.0, **print_.embed.get(i, {})} for i in range(len(print_.words))]).T


def _unembedding(print_: Blueprint, space: Basis) -> Tensor:
    return space.reading([print_.unembed.get(i, {}) for i in range(len(print_.words))])


def _dense(forms: Sequence[Form], n: int) -> Tensor:
    dense = torch.zeros(len(forms), n, dtype=torch.float64)
    filled = [(row, at, value) for row, form in enumerate(forms) for at, value in form.items()]
    if filled:
        rows, columns, values = zip(*filled, strict=True)
        dense[list(rows), list(columns)] = torch.tensor(values, dtype=torch.float64)
    return dense


def _put(parameter: Tensor, value: Tensor) -> None:
    assert parameter.shape == value.shape, (parameter.shape, value.shape)
    with torch.no_grad():
        parameter.copy_(value)


def _common(print_: Blueprint) -> dict[str, Any]:
    return {
        "vocab_size": len(print_.words),
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
    }


def _rotary_config(print_: Blueprint, space: Basis, layers: list[Attention]) -> dict[str, Any]:
    d_head = layers[0].q.shape[1]
    return {
        **_common(print_),
        "hidden_size": space.write.shape[0],
        "intermediate_size": _d_mlp(print_),
        "num_hidden_layers": len(layers),
        "num_attention_heads": len(layers[0].q),
        "num_key_value_heads": len(layers[0].k),
        "head_dim": d_head,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(RATIO ** (-d_head / 2))},
    }


def _made(cls: Any, config: Any) -> Any:
    """A model to be filled: its random weights leave torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        return cls(config).eval().requires_grad_(False)


def _fill_rotary(block: Any, attention: Attention, mlp: tuple[Tensor, Tensor, Tensor]) -> None:
    for name, value in (("q_proj", attention.q), ("k_proj", attention.k), ("v_proj", attention.v)):
        _put(getattr(block.self_attn, name).weight, value.flatten(0, 1))
    _put(block.self_attn.o_proj.weight, attention.o.movedim(0, 1).flatten(1))
    for name, value in zip(("gate_proj", "up_proj", "down_proj"), mlp, strict=True):
        _put(getattr(block.mlp, name).weight, value)


def _llama(print_: Blueprint, space: Basis, layers: list[Attention]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    model: Any = _made(LlamaForCausalLM, LlamaConfig(**_rotary_config(print_, space, layers)))
    gain = ONE / math.sqrt(space.write.shape[0])
    _put(model.model.embed_tokens.weight, _embedding(print_, space))
    for block, plan, attention in zip(model.model.layers, print_.blocks, layers, strict=True):
        _fill_rotary(block, attention, _neurons(plan.mlp.units, space, _d_mlp(print_), print_.const(1.0)))
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.fill_(gain)
    model.model.norm.weight.fill_(gain)
    _put(model.lm_head.weight, _unembedding(print_, space))
    return model


def _gemma2(print_: Blueprint, space: Basis, layers: list[Attention]) -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    changed = {
        "query_pre_attn_scalar": layers[0].q.shape[1],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "layer_types": ["full_attention"] * len(layers),
    }
    model: Any = _made(Gemma2ForCausalLM, Gemma2Config(**_rotary_config(print_, space, layers), **changed))
    d_model = space.write.shape[0]
    _put(model.model.embed_tokens.weight, _embedding(print_, space) / math.sqrt(d_model))
    level = 0.0  # of the ballast in the stream

    def set_gain(norm: Any) -> None:
        norm.weight.fill_(math.hypot(ONE, level) / math.sqrt(d_model) - 1)  # these norms add one to their weight

    for block, plan, attention in zip(model.model.layers, print_.blocks, layers, strict=True):
        _fill_rotary(block, attention, _neurons(plan.mlp.units, space, _d_mlp(print_), print_.const(1.0)))
        set_gain(block.input_layernorm)
        level += _ballast(print_, plan.heads[-1].moves[0][1])
        set_gain(block.pre_feedforward_layernorm)
        level += _ballast(print_, plan.mlp.units[-1].write) if plan.mlp.units else 0.0
        for norm in (block.post_attention_layernorm, block.post_feedforward_layernorm):
            norm.weight.fill_(ONE / math.sqrt(d_model) - 1)
    set_gain(model.model.norm)
    _put(model.lm_head.weight, _unembedding(print_, space))
    return model


def _ballast(print_: Blueprint, written: Form) -> float:
    return written[print_.layout.parts["ballast"][0]]


def _gpt2(print_: Blueprint, space: Basis, layers: list[Attention]) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    d_model, length = space.write.shape[0], 64
    config = GPT2Config(
        **_common(print_),
        n_positions=length,
        n_embd=d_model,
        n_layer=len(layers),
        n_head=len(layers[0].q),
        n_inner=_d_mlp(print_),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model: Any = _made(GPT2LMHeadModel, config)
    inner = model.transformer
    gain = ONE * space.stretch / math.sqrt(d_model)
    _put(inner.wte.weight, _embedding(print_, space))
    _put(inner.wpe.weight, space.writing([_position(at, print_.layout.size) for at in range(length)]).T)
    for block, plan, attention in zip(inner.h, print_.blocks, layers, strict=True):
        read, _, down = _neurons(plan.mlp.units, space, _d_mlp(print_), print_.const(1.0))
        together = torch.cat([part.flatten(0, 1) for part in (attention.q, attention.k, attention.v)])
        _put(block.attn.c_attn.weight, together.T)  # these layers keep their weights transposed
        _put(block.attn.c_proj.weight, attention.o.movedim(0, 1).flatten(1).T)
        _put(block.mlp.c_fc.weight, read.T)
        _put(block.mlp.c_proj.weight, down.T)
        for norm in (block.ln_1, block.ln_2):
            norm.weight.fill_(gain)
    inner.ln_f.weight.fill_(gain)
    _put(model.lm_head.weight, _unembedding(print_, space))
    return model


def _position(at: int, first: int) -> Form:
    """Cosine and sine of each turn, after the coordinates of the program."""
    turned = [RATIO**pair * at for pair in range(FAST)]
    values = [value for angle in turned for value in (math.cos(angle), math.sin(angle))]
    return dict(enumerate(values, first))
