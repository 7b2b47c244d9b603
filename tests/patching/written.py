"""The oracle of edges and paths: forwards written out by hand, in float64, in which every reader has an input of its
own: the sum of what each component before it has added, each of which may be another for this reader.

Senders are `embed`, `z.L.hH`, `mlp_out.L` (and constants that no input changes); readers `q.L.hH`, `k.L.hK`, `v.L.hK`,
`mlp_in.L`, `logits`. Where a norm follows the attention, a head's part of it has the scale of the run that it is from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cutaway.models import Model
from cutaway.tasks import Batch


@dataclass
class Forward:
    """One run: what was said, what was read, and what came out."""

    logits: Tensor
    own: dict[str, Tensor]
    """What each sender added, before anything put into its place."""
    inputs: dict[str, Tensor]
    """What each reader read."""


@dataclass
class Written:
    """A model of one family, by its parameters alone."""

    module: Any
    ids: Tensor
    mask: Tensor
    """1 at real tokens; rows are padded on the right."""
    weights: dict[str, Tensor] = field(init=False)
    layers: int = field(init=False)
    heads: int = field(init=False)
    groups: int = field(init=False)
    parallel = False
    window: ClassVar[int | None] = None
    softcap: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        self.weights = {name: value.detach().double() for name, value in self.module.state_dict().items()}
        config = self.module.config
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads
        self.groups = getattr(config, "num_key_value_heads", None) or self.heads

    def run(
        self,
        *,
        said: Mapping[str, Tensor] | None = None,
        edges: Mapping[tuple[str, str], Tensor] | None = None,
        inputs: Mapping[str, Tensor] | None = None,
        shifts: Mapping[str, Tensor] | None = None,
    ) -> Forward:
        """Args:
        said: what a sender adds for all readers.
        edges: what it adds for one reader.
        inputs: what a reader reads, all of it.
        shifts: what is added to what it reads.
        """
        writes: dict[str, Tensor] = {}
        done = Forward(torch.empty(0), {}, {})

        def seen(reader: str) -> Tensor:
            total = sum((edges or {}).get((sender, reader), value) for sender, value in writes.items())
            total = (inputs or {}).get(reader, total + (shifts or {}).get(reader, 0.0))
            done.inputs[reader] = total
            return total

        def say(sender: str, value: Tensor) -> None:
            done.own[sender] = value
            writes[sender] = (said or {}).get(sender, value)

        say("embed", self.embed())
        for layer in range(self.layers):
            port = {
                kind: [self.read(layer, kind, i, seen(f"{kind}.{layer}.h{i}")) for i in range(n)]
                for kind, n in (("q", self.heads), ("k", self.groups), ("v", self.groups))
            }
            shared = self.heads // self.groups
            z = [
                self.attend(layer, port["q"][h], port["k"][h // shared]) @ port["v"][h // shared]
                for h in range(self.heads)
            ]
            early = self.mlp(layer, seen(f"mlp_in.{layer}")) if self.parallel else None
            for name, value in self.heads_write(layer, z).items():
                say(name, value)
            say(f"mlp_out.{layer}", self.mlp(layer, seen(f"mlp_in.{layer}")) if early is None else early)
        done.logits = self.unembed(seen("logits"))
        return done

    def attend(self, layer: int, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(1, 2) * self.scale(q.shape[-1])
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        n = q.shape[1]
        far = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        allowed = far >= 0
        if self.window is not None and layer % 2 == 0:
            allowed &= far < self.window
        return scores.masked_fill(~(allowed & self.mask[:, None, :].bool()), -torch.inf).softmax(-1)

    def scale(self, size: int) -> float:
        return size**-0.5

    def rotated(self, x: Tensor, rates: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1])[:, None] * rates.double()
        turn, rest = x[..., : 2 * len(rates)], x[..., 2 * len(rates) :]
        a, b = turn.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], -1)

    def layer_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    # -- of a family

    def embed(self) -> Tensor: ...

    def read(self, layer: int, port: str, index: int, x: Tensor) -> Tensor: ...

    def heads_write(self, layer: int, z: list[Tensor]) -> dict[str, Tensor]: ...

    def mlp(self, layer: int, x: Tensor) -> Tensor: ...

    def unembed(self, x: Tensor) -> Tensor: ...


class GPT2(Written):
    def embed(self) -> Tensor:
        return (
            self.weights["transformer.wte.weight"][self.ids]
            + self.weights["transformer.wpe.weight"][: self.ids.shape[1]]
        )

    def read(self, layer: int, port: str, index: int, x: Tensor) -> Tensor:
        name = f"transformer.h.{layer}"
        x = self.layer_norm(x, f"{name}.ln_1", 1e-5)
        whole = x @ self.weights[f"{name}.attn.c_attn.weight"] + self.weights[f"{name}.attn.c_attn.bias"]
        return whole.chunk(3, -1)["qkv".index(port)].chunk(self.heads, -1)[index]

    def heads_write(self, layer: int, z: list[Tensor]) -> dict[str, Tensor]:
        name = f"transformer.h.{layer}.attn.c_proj"
        rows = self.weights[f"{name}.weight"].chunk(self.heads, 0)
        return {f"z.{layer}.h{h}": z[h] @ rows[h] for h in range(self.heads)} | {
            f"bias.{layer}": self.weights[f"{name}.bias"].expand(*self.ids.shape, -1)
        }

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        name = f"transformer.h.{layer}"
        x = self.layer_norm(x, f"{name}.ln_2", 1e-5)
        x = x @ self.weights[f"{name}.mlp.c_fc.weight"] + self.weights[f"{name}.mlp.c_fc.bias"]
        x = F.gelu(x, approximate="tanh")
        return x @ self.weights[f"{name}.mlp.c_proj.weight"] + self.weights[f"{name}.mlp.c_proj.bias"]

    def unembed(self, x: Tensor) -> Tensor:
        return self.layer_norm(x, "transformer.ln_f", 1e-5) @ self.weights["lm_head.weight"].T


class Llama(Written):
    offset = 0.0
    """Added to the gain of a norm."""

    def embed(self) -> Tensor:
        return self.weights["model.embed_tokens.weight"][self.ids]

    def norm(self, x: Tensor, name: str) -> Tensor:
        gain = self.weights[f"{name}.weight"] + self.offset
        return x * (x.pow(2).mean(-1, keepdim=True) + self.module.config.rms_norm_eps).rsqrt() * gain

    def read(self, layer: int, port: str, index: int, x: Tensor) -> Tensor:
        name = f"model.layers.{layer}"
        whole = self.linear(self.norm(x, f"{name}.input_layernorm"), f"{name}.self_attn.{port}_proj")
        own = whole.chunk(self.heads if port == "q" else self.groups, -1)[index]
        return own if port == "v" else self.rotated(own, self.module.model.rotary_emb.inv_freq)

    def heads_write(self, layer: int, z: list[Tensor]) -> dict[str, Tensor]:
        columns = self.weights[f"model.layers.{layer}.self_attn.o_proj.weight"].chunk(self.heads, 1)
        return {f"z.{layer}.h{h}": z[h] @ columns[h].T for h in range(self.heads)}

    def gated(self, layer: int, x: Tensor) -> Tensor:
        name = f"model.layers.{layer}.mlp"
        gate, up = self.linear(x, f"{name}.gate_proj"), self.linear(x, f"{name}.up_proj")
        return self.linear(self.active(gate) * up, f"{name}.down_proj")

    def active(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        return self.gated(layer, self.norm(x, f"model.layers.{layer}.post_attention_layernorm"))

    def unembed(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x, "model.norm"), "lm_head")


class Gemma2(Llama):
    offset = 1.0
    window = 4
    softcap = 50.0

    def scale(self, size: int) -> float:
        return self.module.config.query_pre_attn_scalar**-0.5

    def embed(self) -> Tensor:
        return super().embed() * self.module.config.hidden_size**0.5

    def active(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def heads_write(self, layer: int, z: list[Tensor]) -> dict[str, Tensor]:
        parts = super().heads_write(layer, z)
        size = (sum(parts.values()).pow(2).mean(-1, keepdim=True) + self.module.config.rms_norm_eps).rsqrt()  # type: ignore[union-attr]
        gain = 1.0 + self.weights[f"model.layers.{layer}.post_attention_layernorm.weight"]
        return {name: part * size * gain for name, part in parts.items()}

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        name = f"model.layers.{layer}"
        x = self.gated(layer, self.norm(x, f"{name}.pre_feedforward_layernorm"))
        return self.norm(x, f"{name}.post_feedforward_layernorm")

    def unembed(self, x: Tensor) -> Tensor:
        limit = self.module.config.final_logit_softcapping
        return limit * torch.tanh(super().unembed(x) / limit)


class NeoX(Written):
    parallel = True

    def embed(self) -> Tensor:
        return self.weights["gpt_neox.embed_in.weight"][self.ids]

    def read(self, layer: int, port: str, index: int, x: Tensor) -> Tensor:
        name = f"gpt_neox.layers.{layer}"
        whole = self.linear(self.layer_norm(x, f"{name}.input_layernorm", 1e-5), f"{name}.attention.query_key_value")
        own = whole.chunk(self.heads, -1)[index].chunk(3, -1)["qkv".index(port)]
        return own if port == "v" else self.rotated(own, self.module.gpt_neox.rotary_emb.inv_freq)

    def heads_write(self, layer: int, z: list[Tensor]) -> dict[str, Tensor]:
        name = f"gpt_neox.layers.{layer}.attention.dense"
        columns = self.weights[f"{name}.weight"].chunk(self.heads, 1)
        return {f"z.{layer}.h{h}": z[h] @ columns[h].T for h in range(self.heads)} | {
            f"bias.{layer}": self.weights[f"{name}.bias"].expand(*self.ids.shape, -1)
        }

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        name = f"gpt_neox.layers.{layer}"
        x = F.gelu(
            self.linear(self.layer_norm(x, f"{name}.post_attention_layernorm", 1e-5), f"{name}.mlp.dense_h_to_4h")
        )
        return self.linear(x, f"{name}.mlp.dense_4h_to_h")

    def unembed(self, x: Tensor) -> Tensor:
        return self.linear(self.layer_norm(x, "gpt_neox.final_layer_norm", 1e-5), "lm_head")


ORACLES: dict[str, type[Written]] = {"gpt2": GPT2, "llama": Llama, "gemma2": Gemma2, "gpt_neox": NeoX}


@dataclass
class Sides:
    """Both sides of some pairs, run by the oracle: the base that is edited, and what the donor says."""

    base: Written
    batch: Batch
    plain: Forward
    donor: Forward

    def score(self, done: Forward) -> Tensor:
        """logit_diff at the end of each row, in float64."""
        ends = self.batch.clean.roles["end"]
        rows = zip(ends, self.batch.answers, self.batch.foils, strict=True)
        return torch.stack([done.logits[i, e, a[0]] - done.logits[i, e, f[0]] for i, (e, a, f) in enumerate(rows)])

    def raw(self, done: Forward) -> Tensor:
        return self.score(done) - self.score(self.plain)


def sides(family: str, model: Model, batch: Batch, mode: str = "denoise") -> Sides:
    """Denoise: the corrupt run is the base; noise: the clean one."""
    rows = [batch.corrupt, batch.clean] if mode == "denoise" else [batch.clean, batch.corrupt]
    base, donor = (ORACLES[family](model.module, tokens.ids, tokens.mask) for tokens in rows)
    return Sides(base, batch, base.run(), donor.run())
