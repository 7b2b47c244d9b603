"""The geometry of the toy models of superposition, measured again with plain torch on the shipped weights."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutaway import load, sites, zoo
from cutaway.zoo.recipes import superposition as recipe

SMALL = [name for name in recipe.NAMES if recipe.SPECS[name].n_features < 20]


def plain(name: str) -> Any:
    return load(name).module


def cosines(weight: Tensor) -> Tensor:
    unit = weight / weight.norm(dim=1, keepdim=True)
    return (unit @ unit.T).detach()


def shares(weight: Tensor) -> Tensor:
    """Dimensionality, feature by feature, as the formula is written."""
    rows = list(weight.detach().double())
    found = [(w @ w) / sum((w @ other) ** 2 for other in rows) * (w @ w) for w in rows]
    return torch.stack(found)


def fresh_loss(name: str, module: nn.Module, change: Any = None) -> float:
    spec = recipe.SPECS[name]
    generator = torch.Generator().manual_seed(5)
    x = spec.draw(torch.tensor([spec.rate]), 8_192 if spec.n_features > 20 else 65_536, spec.n_features, generator)[0]
    handle = module.get_submodule("hidden").register_forward_hook(lambda m, args, out: change(out) if change else out)
    try:
        with torch.no_grad():
            error = (x - module(x)).square()
    finally:
        handle.remove()
    return (error * spec.ratio ** torch.arange(spec.n_features)).sum(1).mean().item()


# -- what holds for all


@pytest.mark.parametrize("name", recipe.NAMES)
def test_it_loads_with_its_sites_and_is_as_good_as_its_card(name: str) -> None:
    model = load(name)
    assert model.name == name
    spec = recipe.SPECS[name]
    x = 0.9 * torch.eye(spec.n_features)
    hidden = model.capture(x, [sites.module("hidden", "output")])[sites.module("hidden", "output")]
    torch.testing.assert_close(hidden, 0.9 * zoo.tensors(name)["features"])
    found = recipe.evaluate(name, model.module)
    assert found == zoo.card(name).accuracy
    assert found[0].share >= spec.promised == found[0].target


@pytest.mark.parametrize("name", recipe.NAMES)
def test_dimensionalities_and_what_is_represented(name: str) -> None:
    tensors, module, truth = zoo.tensors(name), plain(name), zoo.truth(name)
    weight = module.weight.detach()
    assert torch.equal(tensors["features"], weight)
    torch.testing.assert_close(tensors["dimensionality"].double(), shares(weight), atol=1e-3, rtol=0)
    with torch.no_grad():
        rise = module(torch.eye(len(weight))) - module(torch.zeros(1, len(weight)))
    kept = rise.diagonal() >= 0.5
    assert torch.equal(tensors["represented"], kept)
    assert int(truth.measures["n_represented"]) == int(kept.sum())
    assert fresh_loss(name, module) == pytest.approx(truth.baseline, rel=0.2, abs=1e-9)
    assert tensors["dimensionality"][kept].min() > tensors["dimensionality"][~kept].max() if (~kept).any() else True


@pytest.mark.parametrize("name", SMALL)
def test_each_represented_direction_is_used(name: str) -> None:
    tensors, module, truth = zoo.tensors(name), plain(name), zoo.truth(name)
    assert len(truth.directions) == int(tensors["represented"].sum())
    for item in truth.directions:
        unit = tensors[item.tensor]
        assert unit.norm().item() == pytest.approx(1, abs=1e-5)
        without = fresh_loss(name, module, lambda hidden, unit=unit: hidden - (hidden @ unit)[:, None] * unit)
        assert without == pytest.approx(item.measures["loss_without"], rel=0.1)
        assert without > 2 * truth.baseline


@pytest.mark.parametrize("name", SMALL)
def test_scrambled_twins_lose_the_features(name: str) -> None:
    module = plain(name)
    worse = [fresh_loss(name, zoo.scrambled(module, seed)) for seed in range(5)]
    assert sum(each > 1.5 * zoo.truth(name).baseline for each in worse) >= 4


# -- phases


def test_rare_features_make_a_pentagon() -> None:
    weight = plain("superposition-5-2").weight.detach()
    around = torch.atan2(weight[:, 1], weight[:, 0]).sort().values
    gaps = torch.cat([around.diff(), around[:1] + 2 * math.pi - around[-1:]])
    torch.testing.assert_close(gaps, torch.full((5,), 2 * math.pi / 5), atol=0.08, rtol=0)
    torch.testing.assert_close(shares(weight), torch.full((5,), 0.4, dtype=torch.float64), atol=0.02, rtol=0)


def test_less_rare_ones_make_two_opposite_pairs_and_leave_the_least_important_out() -> None:
    weight = plain("superposition-5-2-pairs").weight.detach()
    assert weight[4].norm() < 0.1
    between = cosines(weight[:4])
    torch.testing.assert_close(between.min(1).values, torch.full((4,), -1.0), atol=0.02, rtol=0)
    assert between.abs().sort(1).values[:, :2].max() < 0.1


def test_dense_ones_give_the_two_most_important_a_dimension_each() -> None:
    weight = plain("superposition-5-2-dense").weight.detach()
    assert abs(cosines(weight)[0, 1]) < 0.05
    torch.testing.assert_close(weight[:2].norm(dim=1), torch.ones(2), atol=0.05, rtol=0)
    assert weight[2:].norm(dim=1).max() < 0.2


def test_correlated_features_are_orthogonal_and_those_that_exclude_each_other_opposite() -> None:
    own = torch.arange(6) // 2
    same = (own[:, None] == own) & ~torch.eye(6, dtype=torch.bool)
    correlated, excluding = (
        cosines(plain(f"superposition-{kind}").weight) for kind in ("correlated", "anticorrelated")
    )
    assert correlated[same].abs().max() < 0.3
    assert correlated.masked_fill(same, 1).min(1).values.max() < -0.8
    assert excluding[same].max() < -0.9
    assert excluding[~same & ~torch.eye(6, dtype=torch.bool)].abs().max() < 0.3


def test_children_of_one_parent_are_opposite_and_their_parent_has_its_own_dimension() -> None:
    weight = plain("superposition-hierarchical").weight
    between = cosines(weight)
    assert max(between[1, 2], between[4, 5]) < -0.9
    assert between[[0, 0, 3, 3], [1, 2, 4, 5]].abs().max() < 0.1
    own = torch.arange(6) // 3
    assert between[own[:, None] != own].abs().max() < 0.1
    expected = torch.tensor([1, 0.5, 0.5, 1, 0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(shares(weight), expected, atol=0.05, rtol=0)


def test_features_share_more_dimensions_the_rarer_they_are() -> None:
    tensors, measures = zoo.tensors("superposition-400-30"), zoo.truth("superposition-400-30").measures
    typical = []
    for rate, weight, bias in zip(
        tensors["ladder_rates"].tolist(), tensors["ladder_features"].float(), tensors["ladder_bias"].float()
    ):
        module = recipe.build(weight, bias)
        with torch.no_grad():
            rise = module(torch.eye(400)) - module(torch.zeros(1, 400))
        kept = rise.diagonal() >= 0.5
        found = shares(weight)[kept]
        assert int(kept.sum()) == int(measures[f"n_represented@{rate:.2g}"])
        near = int(((found - 0.5).abs() < 0.0125).sum())
        assert near == int(measures[f"n_near_1/2@{rate:.2g}"])
        assert 30 / weight.square().sum().item() == pytest.approx(
            measures[f"dimensions_per_feature@{rate:.2g}"], rel=1e-3
        )
        typical.append(found.median().item())
    assert typical == sorted(typical, reverse=True)
    assert typical[0] > typical[-1] + 0.1


def test_training_again_gives_the_same_bits_and_another_seed_the_same_geometry() -> None:
    spec = recipe.SPECS["superposition-5-2"]
    rates = torch.full((4,), spec.rate)
    short = replace(spec, steps=50)
    one, two = (recipe.train(short, rates, recipe.importance(spec)).weight for _ in range(2))
    assert torch.equal(one, two)
    other = recipe.train(replace(spec, seed=3, steps=1200), rates, recipe.importance(spec))
    found = shares(other.weight[int(other.loss.argmin())])
    torch.testing.assert_close(found, torch.full((5,), 0.4, dtype=torch.float64), atol=0.03, rtol=0)
