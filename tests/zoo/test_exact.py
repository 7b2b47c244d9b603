"""Taps and what is counted: a tap leaves no trace, and the attention scores mean what they say."""

import copy
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from cutaway import zoo
from cutaway.zoo import exact
from cutaway.zoo.recipes.induction_2l import draw_rows


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(zoo.path("induction-2l"), attn_implementation="eager").eval()


def test_a_tap_changes_input_and_output_and_is_gone_afterwards() -> None:
    parent = nn.Sequential(nn.Identity())
    inner = parent[0]
    with exact.tapped(parent, "0", before=lambda value: value + 1, after=lambda value: value * 10):
        assert parent(torch.tensor([1.0])).item() == 20
    assert parent[0] is inner
    with pytest.raises(ZeroDivisionError), exact.tapped(parent, "0", after=lambda value: value * (1 // 0)):
        parent(torch.tensor([1.0]))
    assert parent[0] is inner


def test_attention_to_the_successor_sums_over_earlier_occurrences() -> None:
    ids = torch.tensor([[1, 7, 8, 7, 9, 7, 8]])
    predictable = torch.tensor([[False] * 6 + [True]])
    pattern = torch.zeros(1, 7, 7)
    pattern[0, 5] = torch.tensor(
        [0.1, 0.0, 0.2, 0.3, 0.4, 0.0, 0.0]
    )  # at the third 7: after the first 8, after the second 9
    assert exact.attention_to_successor(pattern, exact.Rows(ids, predictable)) == pytest.approx(0.6)


def test_attention_to_the_token_before() -> None:
    pattern = torch.zeros(1, 3, 3)
    pattern[0, 1, 0], pattern[0, 2, 1] = 0.5, 1.0
    assert exact.attention_to_previous(pattern) == pytest.approx(0.75)


def test_replacements() -> None:
    value = torch.arange(6.0).reshape(3, 2, 1)
    assert exact.replacement(value, "resample")[:, 0, 0].tolist() == [4, 0, 2]
    assert exact.replacement(value, "mean").unique().tolist() == [2.5]
    assert exact.replacement(value, "mean_by_position")[0, :, 0].tolist() == [2, 3]
    assert exact.replacement(value, "zero").unique().tolist() == [0]


def test_an_identity_does_nothing_and_head_writes_add_up(model: Any) -> None:
    base = exact.baseline(model, draw_rows(4, length=40, chance=random.Random(0)), seed=0)
    assert base.logit_diff > 5
    with exact.tapped(model.model.layers[1].self_attn, "o_proj", before=lambda z: z.clone()):
        assert exact.effect(model, base) == exact.Effect(drop=0.0, accuracy=1.0)
    assert torch.equal(base.resid_pre[1], base.resid_mid[0] + base.mlp_out[0])
    assert torch.equal(base.resid_final, base.resid_mid[1] + base.mlp_out[1])
    for layer in (0, 1):
        writes = [exact.head_write(model, base.z[layer][:, :, head], layer, head) for head in range(4)]
        summed = torch.stack(writes).sum(0)
        with torch.no_grad():
            out = model.model.layers[layer].self_attn.o_proj(base.z[layer].flatten(-2))
        assert summed.norm() > 0
        torch.testing.assert_close(summed, out, atol=1e-4, rtol=1e-4)


def test_foils_are_other_tokens_of_the_row(model: Any) -> None:
    rows = draw_rows(8, length=40, chance=random.Random(0))
    foils = exact.baseline(model, rows, seed=3).foils
    assert not (foils == rows.ids)[:, 1:].any()
    assert all(set(drawn) <= set(row[1:]) for drawn, row in zip(foils.tolist(), rows.ids.tolist()))


def test_the_connections_that_a_layout_allows() -> None:
    config = SimpleNamespace(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    found = list(exact.edges(SimpleNamespace(config=config)))
    assert len(found) == len(set(found)) == 4 + 3 + 4 * 4 + 6 + 7
    assert ("embed", "k.0.h0") in found
    assert ("z.0.h1", "mlp_in.0") in found
    assert ("mlp_out.1", "logits") in found
    assert not {source for source, target in found if target.startswith(("q.0", "k.0", "v.0"))} - {"embed"}
    assert all(not target.startswith(("k.0.h1", "v.1.h1")) for _, target in found)
    assert not any(source.startswith("z.1") and target[:4] in ("q.1.", "k.1.", "v.1.") for source, target in found)


def test_the_connections_into_the_logits_are_what_is_written(model: Any) -> None:
    """Without a norm the drops of all connections into the logits add up to one."""
    base = exact.baseline(model, draw_rows(4, length=40, chance=random.Random(0)), seed=0)
    sources = [source for source, target in exact.edges(model) if target == "logits"]
    scale = base.resid_final.pow(2).mean(-1, keepdim=True).add(model.config.rms_norm_eps).rsqrt()
    with exact.tapped(model.model, "norm"):
        model.model.norm.forward = lambda stream: stream * scale * model.model.norm.inner.weight
        drops = [exact.edge(model, base, source, "logits").zero for source in sources]
    assert sum(drops) == pytest.approx(1, abs=1e-4)
    assert max(drops) > 0.5


def test_a_connection_that_the_weights_do_not_make(model: Any) -> None:
    """Keys that read nothing: no structure, no drop; and a connection that only zeroing cuts."""
    own = copy.deepcopy(model)
    with torch.no_grad():
        own.model.layers[1].self_attn.k_proj.weight[:32] = 0
    base = exact.baseline(own, draw_rows(4, length=40, chance=random.Random(0)), seed=0)
    dead = exact.edge(own, base, "z.0.h3", "k.1.h0")
    assert dead == exact.Edge(source="z.0.h3", target="k.1.h0", structural=False, resample=0.0, zero=0.0)
    assert exact.edge(own, base, "z.0.h3", "k.1.h1").structural
    base = exact.baseline(model, draw_rows(4, length=40, chance=random.Random(0)), seed=0)
    assert exact.edge(model, base, "z.0.h3", "k.1.h0").resample > 0.9
    same = exact.edge(model, base, "embed", "q.0.h3")
    assert abs(same.resample) < 0.05 < 0.9 < same.zero
