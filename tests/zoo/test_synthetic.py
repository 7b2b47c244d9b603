"""Synthetic activations: what is measured on rows is what was asked for, and rows are what their codes say."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.zoo import synthetic
from cutaway.zoo.synthetic import SYNTHETIC_16K, Config, generate

PLAIN = Config(n_features=60, d_model=16, highest=0.3, exponent=0.6)
FOREST = Config(
    n_features=90, d_model=16, highest=0.5, exponent=0.4, n_trees=5, branching=3, depth=2, child_rate=0.3, rank=4
)
N = 30_000


def active(config: Config, seed: int = 1) -> tuple[synthetic.Synthetic, Tensor]:
    features = generate(config, seed=0)
    return features, features.batch(N, seed).codes > 0


def off(found: Tensor, asked: Tensor, n: float | Tensor = N) -> float:
    """Largest distance from what was asked, in standard errors of a share."""
    return ((found - asked) / (asked * (1 - asked) / n).sqrt()).abs().max().item()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"exclusive": True},
        {"correlation": 0.7},
        {"n_trees": 0, "exponent": 0.0},
        {"exclusive": True, "child_rate": 1 / 3, "correlation": 0.3},
    ],
)
def test_every_feature_is_as_frequent_as_it_says(change: dict[str, Any]) -> None:
    features, found = active(replace(FOREST, **change))
    assert off(found.float().mean(0), features.frequencies) < 5
    assert found.float().sum(1).mean().item() == pytest.approx(features.l0, rel=0.02)
    assert off(found.float().mean(0), features.frequencies.roll(7)) > (0 if features.config.exponent == 0 else 20)


def test_base_features_follow_zipf_and_children_their_parents() -> None:
    features = generate(FOREST, seed=0)
    base = features.frequencies[: FOREST.n_base]
    assert FOREST.n_base == 90 - 5 * (3 + 9)
    assert base[0].item() == pytest.approx(0.5)
    assert base[15].item() == pytest.approx(0.5 * 16**-0.4)
    roots = sorted({int(p) for p in features.parents if 0 <= p < FOREST.n_base})
    assert roots == [0, 6, 12, 18, 24]
    children = features.parents >= 0
    assert int(children.sum()) == 60
    above = features.frequencies[features.parents[children]]
    torch.testing.assert_close(features.frequencies[children], above * 0.3)
    assert torch.bincount(features.parents[children], minlength=90).unique().tolist() == [0, 3]


def test_a_child_is_active_only_with_its_parent_and_at_its_rate() -> None:
    features, found = active(FOREST)
    for child in (features.parents >= 0).nonzero()[:, 0].tolist():
        parent = found[:, int(features.parents[child])]
        assert not found[~parent, child].any()
        rate = found[parent, child].float().mean()
        assert off(rate, torch.tensor(0.3), parent.sum()) < 5


@pytest.mark.parametrize("exclusive", [True, False])
def test_siblings_exclude_each_other_only_when_asked(exclusive: bool) -> None:
    features, found = active(replace(FOREST, exclusive=exclusive))
    for parent in features.parents[features.parents >= 0].unique().tolist():
        siblings = found[:, features.parents == parent].sum(1)
        assert siblings.max() == 1 if exclusive else siblings.max() >= 2


def test_pairs_are_active_together_as_the_copula_says() -> None:
    features, found = active(replace(PLAIN, rank=2, correlation=0.8))
    normal = features.loadings @ features.loadings.T
    torch.testing.assert_close(normal.diagonal(), torch.full((60,), 0.8))
    above = normal.triu(1).flatten()
    for at in (int(above.argmax()), int(above.argmin()), 17 * 60 + 40):
        one, two = divmod(at, 60)
        rates = features.frequencies[[one, two]].tolist()
        between = normal[one, two].item()
        asked = multivariate_normal.cdf(norm.ppf(rates), mean=[0, 0], cov=[[1, between], [between, 1]])
        both = (found[:, one] & found[:, two]).float().mean()
        assert off(both, torch.tensor(float(asked))) < 5
    one, two = divmod(int(above.argmax()), 60)
    apart = features.frequencies[one] * features.frequencies[two]
    assert off((found[:, one] & found[:, two]).float().mean(), apart) > 20


def test_without_correlation_features_are_independent() -> None:
    features, found = active(PLAIN)
    both = (found.float().T @ found.float() / N)[:20, :20]
    apart = torch.outer(features.frequencies, features.frequencies)[:20, :20]
    others = ~torch.eye(20, dtype=torch.bool)
    assert off(both[others], apart[others]) < 5


@pytest.mark.parametrize(
    ("sizes", "spread"),
    [
        ("constant", 0.0),
        ("uniform", 1 / math.sqrt(3)),
        ("half_normal", math.sqrt(math.pi / 2 - 1)),
        ("exponential", 1.0),
        ("log_normal", math.sqrt(math.exp(0.25) - 1)),
    ],
)
def test_sizes_have_the_mean_and_spread_of_their_distribution(sizes: Any, spread: float) -> None:
    codes = generate(replace(PLAIN, sizes=sizes, mean_size=2.5), seed=0).batch(N, 1).codes
    found = codes[codes > 0] / 2.5
    assert found.mean().item() == pytest.approx(1, abs=0.02)
    assert found.std().item() == pytest.approx(spread, abs=0.03)


def test_a_row_is_the_sum_of_its_features_and_the_offset() -> None:
    features = generate(replace(FOREST, highest=0.1, offset=3.0), seed=0)
    rows, codes = features.batch(500, 1)
    assert features.offset.norm().item() == pytest.approx(3)
    torch.testing.assert_close(rows, codes @ features.dictionary + features.offset)
    empty = codes.sum(1) == 0
    assert 0 < empty.sum() < 500
    torch.testing.assert_close(rows[empty], features.offset.expand(int(empty.sum()), -1))


def test_noise_is_as_wide_as_asked() -> None:
    features = generate(replace(PLAIN, noise=0.2), seed=0)
    rows, codes = features.batch(5_000, 1)
    rest = rows - codes @ features.dictionary
    assert rest.std(0).sub(0.2).abs().max() < 0.02
    assert rest.mean(0).abs().max() < 0.02


def test_directions_are_unit_vectors_of_the_coherence_that_was_asked() -> None:
    for coherence in (0.0, 0.3):
        rows = generate(replace(PLAIN, n_features=400, d_model=64, coherence=coherence), seed=0).dictionary
        cosine = rows @ rows.T
        torch.testing.assert_close(cosine.diagonal(), torch.ones(400))
        assert cosine.triu(1).sum().item() / (400 * 399 / 2) == pytest.approx(coherence, abs=0.01)


def test_orthogonal_directions_give_the_codes_back_and_those_of_another_seed_do_not() -> None:
    config = Config(n_features=32, d_model=32, orthogonal=True, highest=0.3)
    features = generate(config, seed=0)
    rows, codes = features.batch(200, 1)
    torch.testing.assert_close(rows @ features.dictionary.T, codes, atol=1e-5, rtol=0)
    wrong = rows @ generate(config, seed=1).dictionary.T
    assert (wrong - codes).square().mean() > 0.5 * codes.square().mean()


def test_seeds_make_rows_and_features() -> None:
    features, again, other = (generate(FOREST, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(features.dictionary, again.dictionary)
    assert not torch.equal(features.dictionary, other.dictionary)
    first = features.batch(50, 7)
    assert torch.equal(first.activations, again.batch(50, 7).activations)
    assert not torch.equal(first.codes, features.batch(50, 8).codes)
    assert not torch.equal(first.codes, other.batch(50, 7).codes)
    stream = features.batches(50, 7)
    one, two = next(stream), next(stream)
    assert torch.equal(one.codes, first.codes)
    assert not torch.equal(one.codes, two.codes)


def test_large_batches_are_made_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    features, seen = generate(FOREST, seed=0), []
    make = synthetic.Synthetic._active

    def watched(self: synthetic.Synthetic, n: int, generator: torch.Generator) -> Tensor:
        seen.append(n)
        return make(self, n, generator)

    monkeypatch.setattr(synthetic, "CHUNK", 90 * 64)
    monkeypatch.setattr(synthetic.Synthetic, "_active", watched)
    rows, codes = features.batch(150, 1)
    assert seen == [64, 64, 22]
    assert (len(rows), len(codes)) == (150, 150)
    torch.testing.assert_close(rows, codes @ features.dictionary)
    assert not torch.equal(codes[:64], codes[64:128])


def test_sixteen_thousand_features_are_a_matter_of_seconds() -> None:
    features = generate(SYNTHETIC_16K, seed=0)
    assert features.dictionary.shape == (16_384, 768)
    assert int((features.parents >= 0).sum()) == 128 * (4 + 16 + 64)
    assert features.l0 == pytest.approx(34, abs=0.1)
    rows, codes = features.batch(400, 1)
    assert (codes > 0).sum(1).float().mean().item() == pytest.approx(34, abs=4)
    torch.testing.assert_close(rows[:4], codes[:4] @ features.dictionary, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_features": 0}, "n_features 0"),
        ({"highest": 1.5}, "highest 1.5"),
        ({"noise": math.nan}, "noise nan"),
        ({"n_trees": 30}, "30 trees"),
        ({"n_trees": 2, "branching": 5, "exclusive": True}, "at most 0.2"),
        ({"correlation": 0.5}, "rank=..."),
        ({"orthogonal": True}, "60 orthogonal directions in 16"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named.replace(".", r"\.")):
        replace(PLAIN, **change)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(UsageError, match="0 rows"):
        generate(PLAIN, seed=0).batch(0, 1)
