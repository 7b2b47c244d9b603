"""Laws of attribution to tokens: completeness, agreement with hand-written oracles, and targets of every kind."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway import attribution
from cutaway.attribution import METHODS, Target, TokenScores, attribute
from cutaway.errors import (
    AnswersEqual,
    BrokenEvidence,
    Misaligned,
    OutOfRange,
    TokenizerUnfit,
    UnknownName,
    UnknownSite,
    UsageError,
    WrongModel,
)
from cutaway.figures import Bars, Strip
from cutaway.models import Model, sites
from tests.models.samples import hooked, loaded, part, rows, spoken, vector

CLOSE = {"atol": 2e-5, "rtol": 1e-3}
PAIR = attribution.logit_diff([5, 6], [7, 8])
TWO = rows((6, 4))


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return spoken("gpt2")


def embedding(model: Model) -> Any:
    return part(model, model.body.taps["embed"].path)


def valued(model: Model, ids: list[int], exchange: Tensor, gone: list[int], read: Callable[[Tensor], Tensor]) -> float:
    """The oracle: one row, plain Hugging Face, some embeddings exchanged by a hook."""

    def change(value: Tensor) -> Tensor:
        value = value.clone()
        value[0, gone] = exchange
        return value

    with hooked(embedding(model), change), torch.no_grad():
        return float(read(model.module(torch.tensor([ids])).logits[0]))


def mean_embedding(model: Model) -> Tensor:
    return embedding(model).weight.detach().mean(0)


# -- by removal


def test_occlusion_exchanges_one_embedding_at_a_time(gpt2: Model) -> None:
    found = attribute(gpt2, TWO, PAIR, method="occlusion")
    mean = mean_embedding(gpt2)
    for row, (ids, answer, foil) in enumerate(zip(TWO, (5, 6), (7, 8))):

        def read(logits: Tensor, answer: int = answer, foil: int = foil) -> Tensor:
            return logits[-1, answer] - logits[-1, foil]

        whole = valued(gpt2, ids, mean, [], read)
        expected = [whole - valued(gpt2, ids, mean, [i], read) for i in range(len(ids))]
        assert max(map(abs, expected)) > 1e-2
        assert found.scores[row, : len(ids)].tolist() == pytest.approx(expected, abs=2e-5)
        assert found.scores[row, len(ids) :].isnan().all()
        assert float(found.value[row]) == pytest.approx(whole, abs=1e-5)
        nothing = valued(gpt2, ids, mean, list(range(len(ids))), read)
        assert float(found.baseline_value[row]) == pytest.approx(nothing, abs=1e-5)
    assert not found.complete


def shapley_by_orders(values: dict[frozenset[int], float], n: int) -> list[float]:
    """The definition: the mean gain of a player over all orders in which they may come."""
    gains = [0.0] * n
    for order in itertools.permutations(range(n)):
        for i, player in enumerate(order):
            before = frozenset(order[:i])
            gains[player] += values[before | {player}] - values[before]
    return [gain / math.factorial(n) for gain in gains]


def test_shapley_values_are_the_mean_gain_over_all_orders(gpt2: Model) -> None:
    ids, n = TWO[1], 4
    mean = mean_embedding(gpt2)
    values = {
        frozenset(kept): valued(gpt2, ids, mean, [i for i in range(n) if i not in kept], lambda out: out[-1, 9])
        for size in range(n + 1)
        for kept in itertools.combinations(range(n), size)
    }
    expected = shapley_by_orders(values, n)
    assert max(map(abs, expected)) > 1e-2
    for method in ("shapley", "kernel_shap"):
        found = attribute(gpt2, [ids], attribution.logit(9), method=method)
        assert found.scores[0].tolist() == pytest.approx(expected, abs=3e-5)
        assert found.error < 1e-3
        assert found.steps == 16


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_masked_tokens_are_those_that_nobody_attends_to(family: str) -> None:
    """The oracle: a 4-d attention mask given to Hugging Face."""
    model = loaded(family)
    ids, n = rows((5,))[0], 5
    found = attribute(model, [ids], attribution.logit(9), method="occlusion", baseline="mask")
    attended = torch.ones(n, n, dtype=torch.bool)
    for i in range(n):
        seen = attended.tril() if family == "llama" else attended.clone()
        seen[:, i] = False
        seen[i, i] = True
        low = torch.finfo(torch.float32).min
        mask = torch.zeros(1, 1, n, n).masked_fill(~seen, low)
        with torch.no_grad():
            logit = model.module(torch.tensor([ids]), attention_mask=mask).logits[0, -1, 9]
        assert float(found.value[0] - found.scores[0, i]) == pytest.approx(float(logit), abs=2e-5)
    assert found.scores[0, : n - 1].abs().min() > 1e-4
    if family == "llama":
        assert found.scores[0, n - 1] == 0.0  # nobody but itself attends to the last token
    assert attribute(model, [ids], attribution.logit(9), method="shapley", baseline="mask").error < 1e-3


def test_sampled_methods_find_what_the_exact_ones_find(gpt2: Model) -> None:
    prompt = rows((8,))
    exact = attribute(gpt2, prompt, attribution.logit(9), method="shapley")
    many = attribute(gpt2, prompt, attribution.logit(9), method="kernel_shap", samples=200)
    few = attribute(gpt2, prompt, attribution.logit(9), method="kernel_shap", samples=24)
    assert many.error < 1e-3
    assert many.steps == 202
    sizes = [float((one.scores - exact.scores).abs().max()) for one in (many, few)]
    assert sizes[0] < 0.1 * float(exact.scores.abs().max())
    assert sizes[0] < sizes[1]
    line = attribute(gpt2, prompt, attribution.logit(9), method="lime", samples=100)
    assert float(torch.corrcoef(torch.cat([line.scores, exact.scores]))[0, 1]) > 0.9
    again = attribute(gpt2, prompt, attribution.logit(9), method="lime", samples=100)
    other = attribute(gpt2, prompt, attribution.logit(9), method="lime", samples=100, seed=1)
    assert torch.equal(line.scores, again.scores)
    assert not torch.equal(line.scores, other.scores)


def test_a_row_gets_what_it_gets_alone(gpt2: Model) -> None:
    for method in ("integrated_gradients", "occlusion", "gradient_x_input"):
        both = attribute(gpt2, TWO, attribution.logit(9), method=method, max_tokens=8)
        alone = attribute(gpt2, TWO[1:], attribution.logit(9), method=method)
        torch.testing.assert_close(both.scores[1:, :4], alone.scores, atol=1e-3, rtol=1e-2)


# -- by slopes


@pytest.mark.parametrize(
    ("family", "baseline"), [("gpt2", "zero"), ("bert", "mean"), ("gemma2", "mean"), ("llama", "pad")]
)
def test_integrated_gradients_add_up(family: str, baseline: str) -> None:
    found = attribute(spoken(family), TWO, PAIR, baseline=baseline, tolerance=0.01)
    assert found.complete
    assert found.error <= 0.01
    assert float((found.value - found.baseline_value).abs().min()) > 1e-2
    sums = found.scores.nansum(1)
    assert sums.tolist() == pytest.approx((found.value - found.baseline_value).tolist(), rel=0.05, abs=0.01)


def test_near_a_baseline_of_zeros_an_rms_norm_needs_crowded_points() -> None:
    """Between 0 and a millionth of the embeddings the logits of this model have changed by more than they are."""
    model, prompt, target = spoken("llama"), rows((6,)), attribution.logit_diff(5, 7)
    found = attribute(model, prompt, target, baseline="zero", steps=256, max_steps=512)
    assert found.error <= 0.05
    here = model.capture(prompt, sites.embed)[sites.embed]
    even = torch.zeros(1, 6)
    for i in range(64):
        edits = [sites.embed.replace((i + 0.5) / 64 * here)]
        slope = model.grad(prompt, lambda out: out[0, -1, 5] - out[0, -1, 7], [sites.embed], edits)
        even += (here * slope.gradients[sites.embed]).sum(2) / 64
    assert abs(float(even.sum() - found.value[0])) > 0.2


def test_steps_double_until_they_do_or_the_limit_is_told(gpt2: Model) -> None:
    rough = attribute(gpt2, TWO, PAIR, baseline="zero", steps=1, max_steps=1)
    fine = attribute(gpt2, TWO, PAIR, baseline="zero", steps=1, tolerance=0.005)
    assert rough.steps == 1
    assert fine.steps in (2, 4, 8, 16, 32, 64)
    assert fine.error <= 0.005 < rough.error
    assert f"{rough.error:.2%}" in rough.facts()["completeness"]


def test_gradients_by_hand(gpt2: Model) -> None:
    """Plain autograd at the embeddings; midpoints for the integral."""
    ids = torch.tensor([TWO[0]])
    weight = embedding(gpt2).weight.detach()
    here, base = weight[ids], weight.mean(0).expand(1, 6, -1)

    def slope(at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_(True)
        gpt2.module(inputs_embeds=leaf).logits[0, -1, 9].backward()
        gpt2.module.zero_grad(set_to_none=True)
        assert leaf.grad is not None
        return leaf.grad

    found = attribute(gpt2, ids, attribution.logit(9), method="gradient_x_input")
    torch.testing.assert_close(found.scores[0], (here * slope(here)).sum(2)[0], **CLOSE)
    assert found.baseline == "zero"
    mean = sum(slope(base + share * (here - base)) for share in (0.125, 0.375, 0.625, 0.875)) / 4
    found = attribute(gpt2, ids, attribution.logit(9), steps=4, max_steps=4)
    torch.testing.assert_close(found.scores[0], ((here - base) * mean).sum(2)[0], **CLOSE)


# -- baselines


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lime"])
def test_a_token_that_equals_its_baseline_gets_nothing(gpt2: Model, method: str) -> None:
    other = [list(row) for row in TWO]
    other[0][2] = 11 if other[0][2] != 11 else 12
    found = attribute(gpt2, TWO[:1], attribution.logit(9), method=method, against=other[:1])
    same = [i for i in range(6) if i != 2]
    assert found.baseline == "counterfactual"
    assert abs(float(found.scores[0, 2])) > 1e-3
    assert found.scores[0, same].abs().max() < 1e-5
    other_value = gpt2.run(other[:1], logits="end").logits
    assert other_value is not None
    assert float(found.baseline_value[0]) == pytest.approx(float(other_value[0, 0, 9]), abs=1e-5)


def test_baselines_are_what_they_are_called(gpt2: Model) -> None:
    weight = embedding(gpt2).weight.detach()
    exchanges = {"zero": torch.zeros(32), "mean": weight.mean(0), "pad": weight[0], "unk": weight[3]}
    for name, exchange in exchanges.items():
        found = attribute(gpt2, TWO[:1], attribution.logit(9), method="occlusion", baseline=name)
        expected = valued(gpt2, TWO[0], exchange, [1], lambda out: out[-1, 9])
        assert float(found.value[0] - found.scores[0, 1]) == pytest.approx(expected, abs=2e-5)


# -- targets

UNITS: list[Target] = [
    attribution.unit("mlp_act.1.n7@end"),
    attribution.unit("z.1.h2@-2", torch.ones(8)),
    attribution.unit("resid_mid.1@1", vector()),
    attribution.unit("resid_post.2@end", vector()),
    attribution.logit(9, at=2),
]


@pytest.mark.parametrize("target", UNITS, ids=lambda target: target.name)
def test_any_unit_is_attributed(gpt2: Model, target: Target) -> None:
    mean = mean_embedding(gpt2)
    found = attribute(gpt2, TWO[:1], target, method="occlusion")
    steep = attribute(gpt2, TWO[:1], target, tolerance=0.01)
    assert steep.error <= 0.01
    assert float(found.value[0]) == pytest.approx(float(steep.value[0]), abs=1e-5)
    if target.site is None:
        whole, without = (valued(gpt2, TWO[0], mean, gone, lambda out: out[2, 9]) for gone in ([], [0]))
    else:
        acts = gpt2.capture(TWO[:1], target.site.base)
        edits = [sites.embed.at(0).replace(mean)]
        changed = gpt2.run(TWO[:1], edits, target.site.base, logits="none").activations
        along = torch.ones(()) if target.direction is None else target.direction
        whole, without = (float((one[target.site] * along).sum()) for one in (acts, changed))
    assert whole - without == pytest.approx(float(found.scores[0, 0]), abs=2e-5)
    assert abs(whole - without) > 1e-4
    if target.name in ("z.1.h2@-2 along a direction", "resid_mid.1@1 along a direction"):
        assert found.scores[0, -1] == 0.0  # a later token reaches no earlier position


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: attribution.unit("mlp_act.1.n7"), UsageError, "name one position"),
        (lambda: attribution.unit("pattern.1.h0@end"), UsageError, "a unit is a neuron"),
        (lambda: attribution.unit("mlp_actt.1.n7@end"), UnknownSite, "mlp_act"),
        (lambda: attribution.unit("resid_post.1@end", torch.tensor([float("nan")])), UsageError, "finite"),
        (lambda: attribution.logit_diff(5, 5), AnswersEqual, "always 0"),
        (lambda: attribution.logit([]), UsageError, "no token"),
    ],
)
def test_targets_that_are_none(make: Callable[[], Target], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("target", "options", "error", "says"),
    [
        (PAIR, {"method": "shap"}, UnknownName, "kernel_shap"),
        (PAIR, {"baseline": "noise"}, UnknownName, "counterfactual"),
        (PAIR, {"baseline": "mask"}, UsageError, "occlusion"),
        (PAIR, {"baseline": "counterfactual"}, UsageError, "belong together"),
        (PAIR, {"against": [[5, 6], [7, 8]]}, Misaligned, "at its own place"),
        (PAIR, {"steps": 8, "max_steps": 4}, OutOfRange, "1 <= steps"),
        (PAIR, {"method": "lime", "samples": 1}, OutOfRange, "at least 2"),
        (attribution.logit([5, 6, 7]), {}, UsageError, "3 tokens for 2 rows"),
        (attribution.logit(5, at=9), {}, OutOfRange, "position 9"),
        (attribution.logit(100), {}, OutOfRange, "token id 100"),
        (attribution.unit("resid_post.1@end"), {}, UsageError, "give a direction"),
        (attribution.unit("resid_post.1@end", torch.ones(5)), {}, UsageError, r"shape \[5\]"),
    ],
)
def test_wrong_requests_say_what_to_do(
    gpt2: Model, target: Target, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        attribute(gpt2, TWO, target, **options)


def test_what_a_model_cannot_give_is_refused(gpt2: Model) -> None:
    with pytest.raises(OutOfRange, match=r"2\^13 sets of them.*kernel_shap"):
        attribute(gpt2, rows((13,)), attribution.logit(9), method="shapley")
    with pytest.raises(TokenizerUnfit, match="no pad token"):
        attribute(loaded("gpt2"), TWO, PAIR, baseline="pad")


# -- as data


def test_saved_and_loaded_again(gpt2: Model, tmp_path: Path) -> None:
    found = attribute(gpt2, TWO, PAIR, method="occlusion")
    found.save(tmp_path / "scores.safetensors")
    again = TokenScores.load(tmp_path / "scores.safetensors", gpt2)
    assert torch.equal(again.scores.nan_to_num(9.0), found.scores.nan_to_num(9.0))
    assert (again.tokens, again.facts(), again.provenance) == (found.tokens, found.facts(), found.provenance)
    with pytest.raises(WrongModel):
        TokenScores.load(tmp_path / "scores.safetensors", loaded("llama"))
    gpt2.capture(TWO, sites.embed).save(tmp_path / "acts.safetensors")
    with pytest.raises(BrokenEvidence, match="holds 'activations'"):
        TokenScores.load(tmp_path / "acts.safetensors")


def test_tables_and_figures_show_the_tokens(gpt2: Model) -> None:
    found = attribute(gpt2, "t5 t9 t7", attribution.logit(9), method="occlusion")
    assert [row["token"] for row in found.table()] == ["t1", "t5", "t9", "t7"]
    assert [row["score"] for row in found.table()] == pytest.approx(found.scores[0].tolist())
    strip, bars = found.figures()
    assert isinstance(strip, Strip)
    assert [token for token, _ in strip.rows[0]] == ["t1", "t5", "t9", "t7"]
    assert isinstance(bars, Bars)
    assert len(attribute(gpt2, TWO, PAIR, method="occlusion").figures()) == 1
