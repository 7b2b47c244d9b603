"""Taps and what is counted: a tap leaves no trace, and the attention scores mean what they say."""

import random
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
