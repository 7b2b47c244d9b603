"""Laws of attribution patching: exact where the model is linear, else a true derivative; two forward passes in all."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from cutaway.errors import Misaligned, SiteUnavailable, UsageError
from cutaway.models import Model, load, sites
from cutaway.patching import attribution, sweep
from cutaway.patching.measure import encode
from tests.families import CAUSAL, tiny
from tests.patching.pairs import loaded, token_batch, token_task

CLOSE = {"atol": 2e-5, "rtol": 1e-3}


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return loaded("gpt2")


@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_exact_where_the_model_is_linear(mode: str) -> None:
    """Parallel blocks without a final norm: the last block's heads, neurons and MLP reach the logits linearly."""
    module = tiny("gpt_neox")
    module.gpt_neox.final_layer_norm = nn.Identity().eval()
    model = load(module, audit=False)
    batch = token_batch(model, lengths=(7, 5))
    wanted = [*model.body.expand(sites.z[2:].heads()), sites.mlp_out[2], sites.mlp_act[2].neuron(7)]
    exact = sweep(model, batch, wanted, mode=mode)
    estimate = attribution(model, batch, mode=mode)
    assert exact.raw.abs().amax(1).min() > 1e-4
    torch.testing.assert_close(estimate.select(list(exact.labels)).raw, exact.raw, **CLOSE)
    early = [label for label in estimate.labels if label.startswith("z.0")]
    assert not torch.allclose(estimate.select(early).raw, sweep(model, batch, early, mode=mode).raw, atol=1e-4)


SMOOTH = [family for family in CAUSAL if family != "mixtral"]  # routing jumps
METRICS: list[dict[str, Any]] = [{"metric": "prob"}, {"metric": "kl"}, {"metric": "logprob_diff", "d_answer": 2}]


@pytest.mark.parametrize(
    ("family", "options"), [*((family, {}) for family in SMOOTH), *(("gpt2", options) for options in METRICS)]
)
def test_it_is_the_derivative_of_patching(family: str, options: dict[str, Any]) -> None:
    """A step of one hundredth to the donor and one away from it: their difference is one fiftieth of the estimate."""
    model = loaded(family)
    batch = encode(model, token_batch(model, n=3, **options))
    estimate = attribution(model, batch, kinds=("z", "mlp_out"))
    step = 1e-2
    for layer in range(2):
        for site in (sites.z[layer], sites.mlp_out[layer]):
            apart = model.capture(batch.clean, site)[site] - model.capture(batch.corrupt, site)[site]
            values = []
            for sign in (1, -1):
                edits = [site.add(sign * step * apart)]
                logits = model.run(batch.corrupt, edits=edits, logits=batch.logits).logits
                assert logits is not None
                values.append(batch.values(logits))
            slope = (values[0] - values[1]) / (2 * step)
            cells = estimate.select([label for label in estimate.labels if label.startswith(str(site))])
            size = slope.abs().max().item()
            assert size > 1e-4
            torch.testing.assert_close(cells.raw.sum(0), slope, atol=1e-2 * size, rtol=0)


def test_two_forward_passes_and_one_backward(gpt2: Model) -> None:
    calls: list[str] = []
    embed = gpt2.module.transformer.wte
    handles = [embed.register_forward_hook(lambda *_: calls.append("forward"))]
    last = gpt2.module.transformer.h[2].mlp.c_proj
    handles.append(last.register_full_backward_hook(lambda *_: calls.append("backward")))
    try:
        effects = attribution(gpt2, token_batch(gpt2))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["forward", "forward", "backward"]
    assert len(effects) == 3 * (4 + 1 + 80)
    assert effects.labels[:2] == ("z.0.h0", "z.0.h1")
    assert effects.labels[4:6] == ("mlp_out.0", "mlp_act.0.n0")


def test_positions_add_up(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7,))
    whole, each = attribution(gpt2, batch, kinds=("z",)), attribution(gpt2, batch, kinds=("z",), positions="each")
    assert each.labels[:5] == ("z.0.h0@0", "z.0.h1@0", "z.0.h2@0", "z.0.h3@0", "z.0.h0@1")
    assert len(each) == 7 * len(whole)
    summed = each.raw.view(3, 7, 4, 6).sum(1).view(12, 6)
    torch.testing.assert_close(summed, whole.raw, **CLOSE)
    named = attribution(gpt2, batch, kinds=("z",), positions=["end"])
    assert torch.equal(named.values[:4], each.select([f"z.0.h{i}@6" for i in range(4)]).values)
    assert named.raw.abs().max() > 1e-3


def test_pieces_change_nothing(gpt2: Model) -> None:
    for options in ({"lengths": (7, 5)}, {"metric": "logprob_diff", "d_answer": 2}, {"metric": "kl"}):
        batch = token_batch(gpt2, n=5, **options)
        whole, pieces = (attribution(gpt2, batch, max_tokens=size) for size in (4096, 16))
        torch.testing.assert_close(whole.values, pieces.values, **CLOSE)
        assert whole.raw.abs().max() > 1e-3
        assert whole.ids == pieces.ids


def test_both_sides_alike_give_exactly_zero(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    assert torch.equal(attribution(gpt2, replace(batch, corrupt=batch.clean)).raw, torch.zeros(255, 6))


def test_it_agrees_with_patching_in_rank(gpt2: Model) -> None:
    """A positive control: on a small random model the estimate ranks heads as exact patching does."""
    batch = token_batch(gpt2)
    exact, estimate = sweep(gpt2, batch, sites.z[:].heads()), attribution(gpt2, batch, kinds=("z",))
    assert estimate.labels == exact.labels
    assert torch.corrcoef(torch.stack([exact.mean(), estimate.mean()]))[0, 1] > 0.8


def test_padding_adds_nothing(gpt2: Model) -> None:
    batch = token_batch(gpt2, n=4, lengths=(7, 4))
    effects = attribution(gpt2, batch, kinds=("z", "mlp_out"))
    short = [1, 3]
    alone = replace(
        batch,
        clean=gpt2.encode([batch.clean.row(i) for i in short]),
        corrupt=gpt2.encode([batch.corrupt.row(i) for i in short]),
        ids=("1", "3"),
        clusters=("a", "b"),
        answers=tuple(batch.answers[i] for i in short),
        foils=tuple(batch.foils[i] for i in short),
    )
    torch.testing.assert_close(
        attribution(gpt2, alone, kinds=("z", "mlp_out")).values, effects.values[:, short], **CLOSE
    )


def test_a_model_without_neurons_has_the_rest() -> None:
    model = loaded("mixtral")
    effects = attribution(model, token_task(model))
    assert {label.split(".")[0] for label in effects.labels} == {"z", "mlp_out"}
    with pytest.raises(SiteUnavailable, match="experts"):
        attribution(model, token_task(model), kinds=("mlp_act",))


@pytest.mark.parametrize(
    ("options", "asked", "error", "says"),
    [
        ({"metric": "accuracy"}, {}, UsageError, "no gradient"),
        ({"metric": "kl"}, {"mode": "noise"}, UsageError, "minimum"),
        ({}, {"kinds": ("pattern",)}, UsageError, "sweep"),
        ({"lengths": (7, 5)}, {"positions": "each"}, Misaligned, "5 to 7"),
    ],
)
def test_wrong_requests_say_what_to_do(
    gpt2: Model, options: dict[str, Any], asked: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        attribution(gpt2, token_batch(gpt2, **options), **asked)
