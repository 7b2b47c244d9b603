"""Edges: what every component and every connection of a written model does, by exact intervention on the plain module.

Apart from the engine and the methods, which are tested against it. One intervention is one plain forward pass in which
submodules run inside taps. A component's write is what it adds to the residual stream; where a norm follows the
sublayer, its part of what that norm gives, with the scale of the run in which it was written. The stream before any
reader is the sum of the writes before it, so a connection is cut or changed by adding to what one port of one reader
sees: its norm is computed again, everything else in the model sees the true stream.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.zoo.card import Ablation, Edge, Effect, Node, Truth
from cutaway.zoo.exact import ABLATIONS, replacement, tapped
from cutaway.zoo.handmade.blueprint import Blueprint
from cutaway.zoo.handmade.rows import Rows

CONNECTED: Final = 1e-4
"""Least product of what a writer writes and a port reads, over the product of their sizes, that counts as a connection:
far above the rounding of a rotated basis, far below any that is meant."""


@dataclass(frozen=True)
class Names:
    """Where an architecture keeps its parts."""

    embed: str
    positions: str | None
    """Learned positions."""
    layers: str
    attention: str
    attention_norm: str
    projections: tuple[str, ...]
    """Of queries, keys and values; one name when they are one matrix."""
    output: str
    mlp_norm: str
    mlp_reads: tuple[str, ...]
    mlp_output: str
    after: tuple[str, str] | None
    """Norms of what attention and MLP write."""
    final_norm: str


_LLAMA: Final = Names(
    embed="model.embed_tokens",
    positions=None,
    layers="model.layers",
    attention="self_attn",
    attention_norm="input_layernorm",
    projections=("q_proj", "k_proj", "v_proj"),
    output="o_proj",
    mlp_norm="post_attention_layernorm",
    mlp_reads=("gate_proj", "up_proj"),
    mlp_output="down_proj",
    after=None,
    final_norm="model.norm",
)
NAMES: Final = {
    "llama": _LLAMA,
    "gemma2": Names(
        **{
            **vars(_LLAMA),
            "mlp_norm": "pre_feedforward_layernorm",
            "after": ("post_attention_layernorm", "post_feedforward_layernorm"),
        }
    ),
    "gpt2": Names(
        embed="transformer.wte",
        positions="transformer.wpe",
        layers="transformer.h",
        attention="attn",
        attention_norm="ln_1",
        projections=("c_attn",),
        output="c_proj",
        mlp_norm="ln_2",
        mlp_reads=("c_fc",),
        mlp_output="c_proj",
        after=None,
        final_norm="transformer.ln_f",
    ),
}
"""`model_type` -> its names."""


@dataclass(frozen=True)
class Writer:
    """A component that adds to the residual stream."""

    site: str
    before: int
    """Sublayers that have run when it writes: 0 for embeddings, 2 L + 1 for heads of layer L, 2 L + 2 for its MLP."""
    write: Float[Tensor, "batch pos d_model"]
    """What it adds, in the intact model."""
    range: Float[Tensor, "d_model n"]
    """Columns that span what its weights can write."""


class Probe:
    """A model, some rows, and everything that was read in one intact pass over them."""

    def __init__(self, model: Any, rows: Rows) -> None:
        self.model, self.rows = model, rows
        self.names = NAMES[model.config.model_type]
        self.blocks = list(model.get_submodule(self.names.layers))
        config = model.config
        self.n_heads = int(config.num_attention_heads)
        self.n_groups = int(getattr(config, "num_key_value_heads", None) or self.n_heads)
        self.z: list[Tensor] = []
        self.attn_out: list[Tensor] = []
        self.mlp_out: list[Tensor] = []
        self.stream: list[Tensor] = []
        """Before attention and before the MLP of each layer, then at the end."""
        self.logits = self._read()
        self.d_head = self.z[0].shape[-1] // self.n_heads
        self.intact = rows.margins(self.logits).double().mean().item()

    def _read(self) -> Tensor:
        def keep(into: list[Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda value: into.append(value) or value

        names = self.names
        norm, _, last = names.final_norm.rpartition(".")
        with ExitStack() as taps:
            for block in self.blocks:
                attention = getattr(block, names.attention)
                taps.enter_context(tapped(attention, names.output, before=keep(self.z), after=keep(self.attn_out)))
                taps.enter_context(tapped(block, "mlp", after=keep(self.mlp_out)))
                for part in (names.attention_norm, names.mlp_norm):
                    taps.enter_context(tapped(block, part, before=keep(self.stream)))
            taps.enter_context(tapped(self.model.get_submodule(norm), last, before=keep(self.stream)))
            return self.run()

    def run(self) -> Tensor:
        """Logits of the model as it is now."""
        with torch.no_grad():
            seen = torch.ones_like(self.rows.ids)  # padding comes last: no answer sees it
            return self.model(self.rows.ids, attention_mask=seen, use_cache=False).logits

    def effect(self, logits: Tensor) -> Effect:
        """Against the intact model."""
        margin = self.rows.margins(logits).double().mean().item()
        return Effect(drop=1 - margin / self.intact, accuracy=self.rows.hits(logits).double().mean().item())

    # -- components

    def ablate_head(self, layer: int, head: int, how: Ablation) -> Effect:
        """Replace one head's `z`, at all positions of all rows."""
        z = self.z[layer].unflatten(-1, (self.n_heads, -1)).clone()
        z[:, :, head] = replacement(z[:, :, head], how)
        attention = getattr(self.blocks[layer], self.names.attention)
        with tapped(attention, self.names.output, before=lambda now: _with_head(now, z, head)):
            return self.effect(self.run())

    def ablate_mlp(self, layer: int, how: Ablation) -> Effect:
        """Replace one MLP's output, at all positions of all rows."""
        value = replacement(self.mlp_out[layer], how)
        with tapped(self.blocks[layer], "mlp", after=lambda _: value):
            return self.effect(self.run())

    # -- writers

    def writers(self) -> Iterator[Writer]:
        """In the order of the model."""
        yield from self._embeddings()
        for layer, block in enumerate(self.blocks):
            attention, names = getattr(block, self.names.attention), self.names
            out = weight_of(getattr(attention, names.output)).unflatten(1, (self.n_heads, -1))
            z = self.z[layer].unflatten(-1, (self.n_heads, -1))
            values = self.port_weight(layer, "v")
            for head in range(self.n_heads):
                written = z[:, :, head] @ out[:, head].T
                span = out[:, head] @ values[head * self.n_groups // self.n_heads]
                yield Writer(f"z.{layer}.h{head}", 2 * layer + 1, self._after(layer, 0, written), span)
            span = weight_of(getattr(block.mlp, names.mlp_output))
            yield Writer(f"mlp_out.{layer}", 2 * layer + 2, self._after(layer, 1, self.mlp_out[layer]), span)

    def _embeddings(self) -> Iterator[Writer]:
        names, start = self.names, self.stream[0]
        if names.positions is not None:
            table = weight_of(self.model.get_submodule(names.positions))
            placed = table[: start.shape[1]].expand_as(start)
            yield Writer(names.positions, 0, placed, table.T)
            start = start - placed
        yield Writer("embed", 0, start, weight_of(self.model.get_submodule(names.embed)).T)

    def _after(self, layer: int, which: int, written: Tensor) -> Tensor:
        """What becomes of a part of a sublayer's output on its way to the stream."""
        if self.names.after is None:
            return written
        norm = getattr(self.blocks[layer], self.names.after[which])
        whole = (self.attn_out, self.mlp_out)[which][layer]
        scale = (whole.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt()
        return written * scale * (1 + norm.weight)

    # -- readers

    def port_weight(self, layer: int, port: str) -> Float[Tensor, "head d_head d_model"]:
        """Rows that read queries of each head, or keys or values of each group."""
        attention = getattr(self.blocks[layer], self.names.attention)
        if len(self.names.projections) == 1:
            whole = weight_of(getattr(attention, self.names.projections[0])).chunk(3)["qkv".index(port)]
        else:
            whole = weight_of(getattr(attention, self.names.projections["qkv".index(port)]))
        return whole.unflatten(0, (self.n_heads if port == "q" else self.n_groups, -1))

    def readers(self) -> Iterator["Reader"]:
        """In the order of the model."""
        for layer, block in enumerate(self.blocks):
            for port in "qkv":
                weights = self.port_weight(layer, port)
                for head in range(len(weights)):
                    yield Reader(
                        f"{port}.{layer}.h{head}", 2 * layer, weights[head], self._into_head(layer, port, head)
                    )
            rows = torch.cat([weight_of(getattr(block.mlp, name)) for name in self.names.mlp_reads])
            yield Reader(f"mlp_in.{layer}", 2 * layer + 1, rows, self._into_mlp(layer))
        yield Reader("logits", 2 * len(self.blocks), self.model.lm_head.weight.detach(), self._into_logits)

    def _into_head(self, layer: int, port: str, head: int) -> "Run":
        block, names = self.blocks[layer], self.names
        attention, norm = getattr(block, names.attention), getattr(block, names.attention_norm)
        fused = len(names.projections) == 1
        name = names.projections[0 if fused else "qkv".index(port)]
        project = getattr(attention, name)
        at = ("qkv".index(port) * self.n_heads if fused else 0) + head

        def run(shift: Tensor) -> Tensor:
            with torch.no_grad():
                seen = project(norm(self.stream[2 * layer] + shift)).unflatten(-1, (-1, self.d_head))
            with tapped(attention, name, after=lambda now: _with_head(now, seen, at)):
                return self.run()

        return run

    def _into_mlp(self, layer: int) -> "Run":
        block = self.blocks[layer]

        def run(shift: Tensor) -> Tensor:
            with torch.no_grad():
                out = block.mlp(getattr(block, self.names.mlp_norm)(self.stream[2 * layer + 1] + shift))
            with tapped(block, "mlp", after=lambda _: out):
                return self.run()

        return run

    def _into_logits(self, shift: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.lm_head(self.model.get_submodule(self.names.final_norm)(self.stream[-1] + shift))


Run = Callable[[Tensor], Tensor]
"""Logits when one port alone sees the stream with so much added."""


@dataclass(frozen=True)
class Reader:
    """A port that reads the residual stream through its norm."""

    site: str
    after: int
    """Sublayers that have run when it reads."""
    rows: Float[Tensor, "n d_model"]
    """What its weights read."""
    run: Run


def establish(model: Any, print_: Blueprint, rows: Rows, behavior: str) -> Truth:
    """Every component with its role, which is the blueprint's, and its effects; every connection with its truths."""
    probe = Probe(model, rows)
    writers = list(probe.writers())
    return Truth(
        behavior=behavior,
        evidence=(
            "Roles: the weights were written so. Effects: exact interventions, one forward pass each. Edges: every "
            "pair of a writer and a port that can come after it. structural: the product of the weights is not zero "
            "(through the scale of a norm all are connected). resample, zero: this port alone sees the writer's "
            "output of another row, or none; none of `embed` also takes away the constant that fixes that scale."
        ),
        metric="mean logit of the right token minus the foil's, over all positions with an answer, in nats",
        baseline=probe.intact,
        setup={"rows": float(len(rows.ids)), "answers": float(rows.answered.sum()), "length": float(rows.ids.shape[1])},
        nodes=tuple(_nodes(probe, print_, writers)),
        edges=tuple(_edges(probe, writers)),
        measures={"accuracy": probe.effect(probe.logits).accuracy},
        legend={
            "accuracy": "share of the answers that are right",
            "write": "mean length of what it adds to the residual stream, over the stream's mean length there",
            "varies": "root mean square, over d_model, rows and positions, of what it adds less its mean over rows",
        },
    )


def role(print_: Blueprint, site: str) -> str:
    """What the component at a site was written for."""
    kind, layer, *head = site.split(".")
    block = print_.blocks[int(layer)]
    if kind == "mlp_out":
        return block.mlp.role
    return block.heads[int(head[0].removeprefix("h"))].role


def _nodes(probe: Probe, print_: Blueprint, writers: list[Writer]) -> Iterator[Node]:
    for writer in writers:
        kind, _, place = writer.site.partition(".")
        if kind not in ("z", "mlp_out"):
            continue
        effects: dict[Ablation, Effect] = {}
        for how in ABLATIONS:
            if kind == "z":
                layer, _, head = place.partition(".h")
                effects[how] = probe.ablate_head(int(layer), int(head), how)
            else:
                effects[how] = probe.ablate_mlp(int(place), how)
        stream = probe.stream[writer.before - 1]
        measures = {
            "write": (writer.write.norm(dim=-1).mean() / stream.norm(dim=-1).mean()).item(),
            "varies": (writer.write - writer.write.mean(0)).pow(2).mean().sqrt().item(),
        }
        yield Node(
            site=writer.site,
            role=role(print_, writer.site),
            evidence="constructed",
            measures=measures,
            effects=effects,
        )


def _edges(probe: Probe, writers: list[Writer]) -> Iterator[Edge]:
    for reader in probe.readers():
        for writer in writers:
            if writer.before <= reader.after:
                resampled = replacement(writer.write, "resample") - writer.write
                yield Edge(
                    source=writer.site,
                    target=reader.site,
                    structural=connected(reader.rows, writer.range),
                    resample=probe.effect(reader.run(resampled)).drop,
                    zero=probe.effect(reader.run(-writer.write)).drop,
                )


def connected(rows: Float[Tensor, "n d_model"], columns: Float[Tensor, "d_model m"]) -> bool:
    """Whether any row reads what any column writes."""
    sizes = rows.norm(dim=1).max() * columns.norm(dim=0).max()
    return bool((rows @ columns).abs().max() > CONNECTED * sizes)


def weight_of(module: nn.Module) -> Tensor:
    """A linear map's or an embedding's weights [out in]; GPT-2 keeps linear ones transposed."""
    weight: Any = module.weight
    return (weight.T if type(module).__name__ == "Conv1D" else weight).detach()


def _with_head(now: Tensor, heads: Float[Tensor, "batch pos head d_head"], at: int) -> Tensor:
    """Projections with those of one head replaced."""
    changed = now.unflatten(-1, (-1, heads.shape[-1])).clone()
    changed[:, :, at] = heads[:, :, at]
    return changed.flatten(-2)
