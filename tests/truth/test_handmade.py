"""The mechanisms of `handmade-*`, established again: plain Hugging Face, plain torch hooks, rows from a fresh seed.

Nothing of the engine, the methods or the zoo's own interventions is used, only its generators of rows.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from cutaway import zoo
from cutaway.zoo.handmade import Rows
from cutaway.zoo.recipes.handmade import CHANCE, NAMES, rows

TOLERANCE = 0.06
"""Between the effects of cutting on these rows and on the card's."""
SHARES = 0.15
"""The same for `sorted`, where they depend on how many of the lists fall."""
PARTS: dict[str, dict[str, str]] = {
    "induction": {"z.0.h0": "previous_token", "z.1.h0": "induction"},
    "reverse": {"z.0.h0": "previous_token", "z.0.h1": "after_separator", "z.1.h0": "reverse"},
    "lookup": {"z.0.h0": "find_person", "mlp_out.0": "country_of_person", "mlp_out.1": "capital_of_country"},
    "histogram": {"z.0.h0": "count", "mlp_out.0": "thresholds"},
    "majority": {"z.0.h0": "count", "mlp_out.0": "sign"},
    "sorted": {"z.0.h0": "previous_number", "mlp_out.0": "compare", "z.1.h0": "find_fall"},
}
"""What is no decoy."""
WIRES: dict[str, set[tuple[str, str]]] = {
    "induction": {("z.0.h0", "k.1.h0"), ("z.1.h0", "logits")},
    "reverse": {("z.0.h0", "v.1.h0"), ("z.0.h1", "k.1.h0"), ("z.1.h0", "logits")},
    "lookup": {("z.0.h0", "mlp_in.0"), ("mlp_out.0", "mlp_in.1"), ("mlp_out.1", "logits")},
    "histogram": {("z.0.h0", "mlp_in.0"), ("mlp_out.0", "logits")},
    "majority": {("z.0.h0", "mlp_in.0"), ("mlp_out.0", "logits")},
    "sorted": {("z.0.h0", "mlp_in.0"), ("mlp_out.0", "k.1.h0"), ("mlp_out.0", "v.1.h0"), ("z.1.h0", "logits")},
}
"""The connections between components that the weights make."""
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "resample": lambda z: torch.cat([z[-1:], z[:-1]]),
    "mean": lambda z: z.mean((0, 1), keepdim=True).expand_as(z),
    "mean_by_position": lambda z: z.mean(0, keepdim=True).expand_as(z),
    "zero": torch.zeros_like,
}


@dataclass(frozen=True)
class Loaded:
    """A shipped model with rows, and where its class keeps its parts."""

    model: Any
    rows: Rows
    truth: zoo.Truth
    intact: float

    @property
    def gpt2(self) -> bool:
        return self.model.config.model_type == "gpt2"

    def block(self, layer: int) -> Any:
        return self.model.transformer.h[layer] if self.gpt2 else self.model.model.layers[layer]

    def output(self, layer: int) -> Any:
        return self.block(layer).attn.c_proj if self.gpt2 else self.block(layer).self_attn.o_proj

    def norm(self, layer: int, part: str) -> Any:
        block = self.block(layer)
        if part == "mlp":
            return block.ln_2 if self.gpt2 else block.post_attention_layernorm
        return block.ln_1 if self.gpt2 else block.input_layernorm

    def project(self, layer: int, port: str) -> Any:
        """The module that computes a port, and the start of its heads' entries in what it returns."""
        if self.gpt2:
            return self.block(layer).attn.c_attn, "qkv".index(port) * self.model.config.n_embd
        return getattr(self.block(layer).self_attn, f"{port}_proj"), 0

    @property
    def d_head(self) -> int:
        return int(zoo.card(f"handmade-{self.program}").sizes["d_head"])

    @property
    def program(self) -> str:
        return next(name for name, parts in PARTS.items() if set(parts.values()) <= {n.role for n in self.truth.nodes})


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: Any) -> Loaded:
    model: Any = AutoModelForCausalLM.from_pretrained(zoo.path(request.param)).eval()
    drawn = rows(request.param, 64, 77)
    found = drawn.margins(logits_of(model, drawn)).mean().item()
    return Loaded(model, drawn, zoo.truth(request.param), found)


def logits_of(model: Any, drawn: Rows) -> Tensor:
    with torch.no_grad():
        return model(drawn.ids, attention_mask=torch.ones_like(drawn.ids), use_cache=False).logits


def drop_now(loaded: Loaded) -> float:
    return 1 - loaded.rows.margins(logits_of(loaded.model, loaded.rows)).mean().item() / loaded.intact


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def ablated(loaded: Loaded, site: str, value: Callable[[Tensor], Tensor]) -> float:
    kind, layer, *head = site.split(".")
    if kind == "mlp_out":
        with hooked(loaded.block(int(layer)).mlp.register_forward_hook(lambda module, args, out: value(out))):
            return drop_now(loaded)
    own = slice(int(head[0][1:]) * loaded.d_head, (int(head[0][1:]) + 1) * loaded.d_head)

    def change(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0].clone()
        z[..., own] = value(z[..., own])
        return (z,)

    with hooked(loaded.output(int(layer)).register_forward_pre_hook(change)):
        return drop_now(loaded)


def write_of(loaded: Loaded, site: str) -> Tensor:
    """What a component adds to the stream, by a difference of two outputs."""
    kind, layer, *head = site.split(".")
    kept: dict[str, Tensor] = {}
    if kind == "mlp_out":
        with hooked(loaded.block(int(layer)).mlp.register_forward_hook(lambda m, args, out: kept.update(w=out))):
            logits_of(loaded.model, loaded.rows)
        return kept["w"]
    output = loaded.output(int(layer))
    with hooked(output.register_forward_pre_hook(lambda m, args: kept.update(z=args[0]))):
        logits_of(loaded.model, loaded.rows)
    without = kept["z"].clone()
    without[..., int(head[0][1:]) * loaded.d_head : (int(head[0][1:]) + 1) * loaded.d_head] = 0.0
    with torch.no_grad():
        return output(kept["z"]) - output(without)


def seen_otherwise(loaded: Loaded, target: str, shift: Tensor) -> float:
    """The drop when one port sees the stream with `shift` added: an extra term at the input of its norm, whose output
    goes to this port alone."""
    if target == "logits":
        final = loaded.model.transformer.ln_f if loaded.gpt2 else loaded.model.model.norm
        with hooked(final.register_forward_pre_hook(lambda m, args: (args[0] + shift,))):
            return drop_now(loaded)
    kind, layer, *head = target.split(".")
    if kind == "mlp_in":
        with hooked(loaded.norm(int(layer), "mlp").register_forward_pre_hook(lambda m, args: (args[0] + shift,))):
            return drop_now(loaded)  # the norm before an MLP is read by it alone
    norm, (module, start) = loaded.norm(int(layer), "attention"), loaded.project(int(layer), kind)
    kept: dict[str, Tensor] = {}
    with hooked(norm.register_forward_pre_hook(lambda m, args: kept.update(stream=args[0]))):
        logits_of(loaded.model, loaded.rows)
    with torch.no_grad():
        other = module(norm(kept["stream"] + shift))
    own = slice(start + int(head[0][1:]) * loaded.d_head, start + (int(head[0][1:]) + 1) * loaded.d_head)

    def change(m: Any, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[..., own] = other[..., own]
        return out

    with hooked(module.register_forward_hook(change)):
        return drop_now(loaded)


def tolerance(loaded: Loaded) -> float:
    return SHARES if loaded.program == "sorted" else TOLERANCE


def test_it_answers_every_row(loaded: Loaded) -> None:
    assert loaded.rows.hits(logits_of(loaded.model, loaded.rows)).all()
    assert loaded.intact == pytest.approx(loaded.truth.baseline, rel=0.05)
    assert loaded.truth.measures["accuracy"] == 1.0


def test_the_parts_are_those_that_were_written(loaded: Loaded) -> None:
    found = {node.site: node.role for node in loaded.truth.nodes if node.role != "decoy"}
    assert found == PARTS[loaded.program]
    assert {node.evidence for node in loaded.truth.nodes} == {"constructed"}
    wired = {(edge.source, edge.target) for edge in loaded.truth.edges if edge.structural and edge.source[0] in "zm"}
    assert wired == WIRES[loaded.program]
    assert len(loaded.truth.sites("decoy")) > 0


@pytest.mark.parametrize("how", sorted(VALUES))
def test_ablation_does_what_the_card_says(loaded: Loaded, how: Any) -> None:
    for node in loaded.truth.nodes:
        drop = ablated(loaded, node.site, VALUES[how])
        if node.role == "decoy":
            assert abs(drop) < 0.02, node.site
            assert node.measures["write"] > 0.01, node.site
        else:
            assert drop > 0.3, node.site
            assert drop == pytest.approx(node.effects[how].drop, abs=0.25), node.site  # other rows
        if how == "zero" and node.role != "decoy":
            assert drop == pytest.approx(node.effects[how].drop, abs=tolerance(loaded)), node.site


def test_every_wire_carries_and_is_needed(loaded: Loaded) -> None:
    """By resampling and by cutting, with hooks of its own."""
    said = {(edge.source, edge.target): edge for edge in loaded.truth.edges}
    for source, target in WIRES[loaded.program]:
        write, edge = write_of(loaded, source), said[source, target]
        resampled = seen_otherwise(loaded, target, VALUES["resample"](write) - write)
        cut = seen_otherwise(loaded, target, -write)
        assert min(resampled, cut) > 0.2, (source, target)
        assert resampled == pytest.approx(edge.resample, abs=0.25), (source, target)
        assert cut == pytest.approx(edge.zero, abs=tolerance(loaded)), (source, target)


def test_every_other_pair_of_components_carries_nothing(loaded: Loaded) -> None:
    checked = 0
    for edge in loaded.truth.edges:
        if edge.source[0] in "zm" and (edge.source, edge.target) not in WIRES[loaded.program]:
            assert abs(edge.resample or 0.0) < 0.02, edge
            assert abs(edge.zero or 0.0) < 0.02, edge
            if edge.target[0] != "l" and checked < 4:
                write = write_of(loaded, edge.source)
                assert abs(seen_otherwise(loaded, edge.target, VALUES["resample"](write) - write)) < 0.02, edge
                checked += 1
    assert checked > 0 or loaded.model.config.num_hidden_layers == 1


def test_the_three_truths_of_a_connection_need_not_agree() -> None:
    """A query that is the same in every row: connected, needed, and nothing is lost by taking another row's."""
    edges = {(edge.source, edge.target): edge for edge in zoo.truth("handmade-lookup").edges}
    asked = edges["embed", "q.0.h0"]
    assert (asked.structural, asked.resample) == (True, 0.0)
    assert asked.zero is not None
    assert asked.zero > 0.5


def test_the_scrambled_twin_has_no_behavior(loaded: Loaded) -> None:
    for seed in range(3):
        logits = logits_of(zoo.scrambled(loaded.model, seed), loaded.rows)
        assert loaded.rows.hits(logits).float().mean() < CHANCE[loaded.program] + 0.25
