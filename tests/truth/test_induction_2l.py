"""The mechanism of `induction-2l`, measured again: plain Hugging Face, plain torch hooks, rows from a fresh seed.

Nothing of the engine, the methods or the recipe's own measurements is used, only its generator of rows.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from cutaway import zoo
from cutaway.zoo.exact import Rows
from cutaway.zoo.recipes.induction_2l import draw_rows

TRUTH = zoo.truth("induction-2l")
HEADS = [node for node in TRUTH.nodes if node.site.startswith("z.")]
MLPS = [node for node in TRUTH.nodes if node.site.startswith("mlp_out.")]
D_HEAD = zoo.card("induction-2l").sizes["d_head"]
TOLERANCE = 0.04


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(zoo.path("induction-2l"), attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def rows() -> Rows:
    return draw_rows(96, length=int(TRUTH.setup["length"]), chance=random.Random(77))


@pytest.fixture(scope="module")
def intact(model: Any, rows: Rows) -> float:
    found = score(logits_of(model, rows), rows)
    assert found == pytest.approx(TRUTH.baseline, rel=0.1)
    return found


def place(site: str) -> tuple[int, int]:
    _, layer, head = site.split(".")
    return int(layer), int(head.removeprefix("h"))


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits_of(model: Any, rows: Rows) -> Tensor:
    with torch.no_grad():
        return model(rows.ids, use_cache=False).logits


def score(logits: Tensor, rows: Rows) -> float:
    """Mean logit of the right token minus the mean logit of the row's other tokens: foils without a draw."""
    right = logits[:, :-1].gather(2, rows.ids[:, 1:, None])[..., 0]
    others = torch.zeros(len(rows.ids), logits.shape[-1]).scatter_(1, rows.ids[:, 1:], 1.0)
    mean = (logits[:, :-1] * others[:, None]).sum(-1) / others.sum(-1, keepdim=True)
    return (right - mean)[rows.predictable[:, 1:]].mean().item()


def ablated(model: Any, rows: Rows, site: str, value: Callable[[Tensor], Tensor]) -> float:
    """The score when a head's or an MLP's output is replaced."""
    kind, layer = site.split(".")[0], model.model.layers[int(site.split(".")[1])]

    def head_changed(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        start = place(site)[1] * D_HEAD
        z = args[0].clone()
        z[..., start : start + D_HEAD] = value(z[..., start : start + D_HEAD])
        return (z,)

    handle = (
        layer.self_attn.o_proj.register_forward_pre_hook(head_changed)
        if kind == "z"
        else layer.mlp.register_forward_hook(lambda module, args, out: value(out))
    )
    with hooked(handle):
        return score(logits_of(model, rows), rows)


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "resample": lambda z: torch.cat([z[-1:], z[:-1]]),
    "mean": lambda z: z.mean((0, 1), keepdim=True).expand_as(z),
    "mean_by_position": lambda z: z.mean(0, keepdim=True).expand_as(z),
    "zero": torch.zeros_like,
}


def test_the_circuit_is_one_previous_token_head_one_induction_head_and_a_decoy() -> None:
    assert len(TRUTH.heads("previous_token")) == len(TRUTH.heads("induction")) == 1
    assert place(TRUTH.heads("previous_token")[0])[0] == 0
    assert place(TRUTH.heads("induction")[0])[0] == 1
    assert {place(site)[0] for site in TRUTH.heads("decoy")} == {0, 1}
    assert len(TRUTH.nodes) == 10


@pytest.mark.parametrize("node", HEADS, ids=lambda node: node.site)
def test_attention_is_what_the_card_says(model: Any, rows: Rows, node: zoo.Node) -> None:
    layer, head = place(node.site)
    with torch.no_grad():
        pattern = model(rows.ids, use_cache=False, output_attentions=True).attentions[layer][:, head]
    before = torch.stack([pattern[:, at, at - 1] for at in range(1, pattern.shape[1])]).mean().item()
    assert before == pytest.approx(node.measures["to_previous"], abs=TOLERANCE)
    found = []
    for row, ids in enumerate(rows.ids.tolist()):
        for at in range(len(ids) - 1):
            if rows.predictable[row, at + 1]:
                after_same = [seen + 1 for seen in range(at) if ids[seen] == ids[at]]
                found.append(pattern[row, at, after_same].sum().item())
    assert sum(found) / len(found) == pytest.approx(node.measures["to_successor"], abs=TOLERANCE)


@pytest.mark.parametrize("how", sorted(VALUES))
@pytest.mark.parametrize("node", [*HEADS, *MLPS], ids=lambda node: node.site)
def test_ablation_does_what_the_card_says(model: Any, rows: Rows, intact: float, node: zoo.Node, how: Any) -> None:
    drop = 1 - ablated(model, rows, node.site, VALUES[how]) / intact
    assert drop == pytest.approx(node.effects[how].drop, abs=TOLERANCE)
    if node.role == "decoy":
        assert abs(drop) < 0.05
    if node.role in ("previous_token", "induction"):
        assert drop > 0.5


PATHS = [(edge, how) for edge in TRUTH.edges for how in ("resample", "zero") if getattr(edge, how) > 0.05]
PATHS += [(edge, "zero") for edge in TRUTH.edges if edge.source == "z.0.h3" and edge.zero < 0.05][:4]


@pytest.fixture(scope="module")
def streams(model: Any, rows: Rows) -> dict[str, Tensor]:
    """What every part reads and writes on the intact model, by plain hooks."""
    kept: dict[str, Tensor] = {}
    handles = [model.model.norm.register_forward_pre_hook(lambda module, args: kept.update({"logits": args[0]}))]
    for at, layer in enumerate(model.model.layers):
        for name, part in (("attn", layer.input_layernorm), ("mlp_in", layer.post_attention_layernorm)):
            handles.append(
                part.register_forward_pre_hook(lambda module, args, key=f"{name}.{at}": kept.update({key: args[0]}))
            )
        handles.append(
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda module, args, key=f"z.{at}": kept.update({key: args[0]})
            )
        )
        handles.append(
            layer.mlp.register_forward_hook(lambda module, args, out, key=f"mlp_out.{at}": kept.update({key: out}))
        )
    with hooked(*handles):
        logits_of(model, rows)
    return kept


def written(model: Any, streams: dict[str, Tensor], source: str) -> Tensor:
    if source == "embed":
        return streams["attn.0"]
    if source.startswith("mlp_out"):
        return streams[source]
    layer, head = place(source)
    own = torch.zeros_like(streams[f"z.{layer}"])
    own[..., head * D_HEAD : (head + 1) * D_HEAD] = streams[f"z.{layer}"][..., head * D_HEAD : (head + 1) * D_HEAD]
    with torch.no_grad():
        return model.model.layers[layer].self_attn.o_proj(own)


def without_the_path(model: Any, rows: Rows, streams: dict[str, Tensor], edge: zoo.Edge, how: str) -> float:
    """The score when the reader alone, fed with a shifted residual stream of its own, misses what the writer wrote."""
    write = written(model, streams, edge.source)
    shift = VALUES[how](write) - write
    kind = edge.target.split(".")[0]
    if kind == "logits":
        with torch.no_grad():
            return score(model.lm_head(model.model.norm(streams["logits"] + shift)), rows)
    layer = model.model.layers[int(edge.target.split(".")[1])]
    if kind == "mlp_in":
        with torch.no_grad():
            shifted = layer.mlp(layer.post_attention_layernorm(streams[edge.target] + shift))
        with hooked(layer.mlp.register_forward_hook(lambda module, args, out: shifted)):
            return score(logits_of(model, rows), rows)
    (at, head), projection = place(edge.target), getattr(layer.self_attn, f"{kind}_proj")
    own = slice(head * D_HEAD, (head + 1) * D_HEAD)
    with torch.no_grad():
        shifted = projection(layer.input_layernorm(streams[f"attn.{at}"] + shift))

    def change(module: Any, args: Any, out: Tensor) -> Tensor:
        return torch.cat([out[..., : own.start], shifted[..., own], out[..., own.stop :]], -1)

    with hooked(projection.register_forward_hook(change)):
        return score(logits_of(model, rows), rows)


@pytest.mark.parametrize(
    ("edge", "how"), PATHS, ids=lambda part: part if isinstance(part, str) else f"{part.source}-{part.target}"
)
def test_a_connection_carries_what_the_card_says(
    model: Any, rows: Rows, intact: float, streams: dict[str, Tensor], edge: zoo.Edge, how: str
) -> None:
    drop = 1 - without_the_path(model, rows, streams, edge, how) / intact
    assert drop == pytest.approx(getattr(edge, how), abs=TOLERANCE)


def test_the_connections_are_those_of_an_induction_circuit() -> None:
    """All that the layout allows are in the truth; five carry the behavior, and some are needed and carry nothing."""
    (previous,), (induction,) = (TRUTH.heads(role) for role in ("previous_token", "induction"))
    first, second = previous.removeprefix("z."), induction.removeprefix("z.")
    carry = {(edge.source, edge.target) for edge in TRUTH.edges if min(edge.resample or 0, edge.zero or 0) > 0.5}
    assert carry == {
        ("embed", f"v.{first}"),
        (previous, f"k.{second}"),
        ("embed", f"q.{second}"),
        ("embed", f"v.{second}"),
        (induction, "logits"),
    }
    needed = {edge.target for edge in TRUTH.edges if (edge.resample or 0) < 0.05 and (edge.zero or 0) > 0.9}
    assert needed == {f"q.{first}", f"k.{first}"}
    n_heads = zoo.card("induction-2l").sizes["n_heads"]
    assert len(TRUTH.edges) == 3 * n_heads + (1 + n_heads) + 3 * n_heads * (n_heads + 2) + (2 + 2 * n_heads) + (
        3 + 2 * n_heads
    )


def test_the_scrambled_twin_has_no_behavior(model: Any, rows: Rows) -> None:
    chance = 1 / model.config.vocab_size
    for seed in range(3):
        logits = logits_of(zoo.scrambled(model, seed), rows)
        hit = (logits[:, :-1].argmax(-1) == rows.ids[:, 1:])[rows.predictable[:, 1:]].float().mean().item()
        assert hit < 10 * chance
        assert abs(score(logits, rows)) < 0.05 * TRUTH.baseline
