"""Every model of the zoo against its scrambled twins: the same numbers in every tensor, and no behavior left."""

import inspect

import pytest
from torch import nn

import cutaway
from cutaway import zoo

SEEDS = (0, 1, 2)
CLEAR = 0.1
"""A behavior is compared when the model is at least so much above chance at it."""
LEFT = 0.25
"""Share of what the model has above chance that its twins may have on average."""

Key = tuple[str, str]


def shares(name: str, module: nn.Module) -> dict[Key, float]:
    """Accuracy by behavior and inputs."""
    evaluate = zoo.recipe(name).evaluate
    few = {"n": 40} if "n" in inspect.signature(evaluate).parameters else {}  # questions of a kind
    return {(score.behavior, score.what): score.share for score in evaluate(name, module, **few)}


@pytest.mark.parametrize("name", zoo.names())
def test_a_scrambled_twin_has_no_behavior(name: str) -> None:
    recipe, module = zoo.recipe(name), cutaway.load(name, audit=False).module
    found = [shares(name, zoo.scrambled(module, seed)) for seed in SEEDS]
    compared = 0
    for score in zoo.card(name).accuracy:
        key, chance = (score.behavior, score.what), recipe.CHANCE.get(score.behavior, 0.0)
        assert score.target is None or all(twin[key] < score.target for twin in found), key
        if score.share < chance + CLEAR:
            continue
        compared += 1
        mean = sum(twin[key] for twin in found) / len(SEEDS)
        if name not in getattr(recipe, "TRACE", {}):
            assert mean - chance <= LEFT * (score.share - chance), (key, [twin[key] for twin in found])
    assert compared > 0


@pytest.mark.parametrize("name", zoo.names())
def test_guessing_is_no_target(name: str) -> None:
    """The control of the one above: every promise is far from what a guess gives."""
    chance = zoo.recipe(name).CHANCE
    promised = [score for score in zoo.card(name).accuracy if score.target is not None]
    assert all(score.target > chance.get(score.behavior, 0.0) + CLEAR for score in promised)
