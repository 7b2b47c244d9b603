"""Intervals over clusters keep their level on templated data; an interval over prompts does not."""

import math
from collections.abc import Iterator

import numpy as np
import pytest

from cutaway.errors import TooFewClusters, UsageError
from cutaway.stats import (
    by_cluster,
    clusters_needed,
    mean_interval,
    ratio_interval,
    require_clusters,
    share_interval,
    skewed_interval,
)


def templated(
    rng: np.random.Generator, *, n_clusters: int, size: int = 20, icc: float = 0.3
) -> tuple[np.ndarray, list[str]]:
    """Unit-variance values with mean 0 whose clusters share a part `icc` of the variance."""
    shared = rng.normal(size=n_clusters) * math.sqrt(icc)
    values = np.repeat(shared, size) + rng.normal(size=n_clusters * size) * math.sqrt(1 - icc)
    return values, [f"t{g}" for g in range(n_clusters) for _ in range(size)]


def miss_rate(hits: Iterator[bool], n: int) -> float:
    return 1 - sum(hits) / n


@pytest.mark.parametrize("n_clusters", [6, 12, 20])
def test_the_mean_interval_keeps_its_level_on_templates(n_clusters: int) -> None:
    rng, n = np.random.default_rng(n_clusters), 1000
    found = [mean_interval(*templated(rng, n_clusters=n_clusters)) for _ in range(n)]
    assert 0.03 < miss_rate((i.low <= 0 <= i.high for i in found), n) < 0.07


def test_an_interval_over_prompts_does_not() -> None:
    """The negative control: the same data, each prompt counted as its own cluster, miss the truth half the time."""
    rng, n = np.random.default_rng(0), 400
    found = []
    for _ in range(n):
        values, _ = templated(rng, n_clusters=12)
        found.append(mean_interval(values, [str(i) for i in range(len(values))]))
    assert 0.35 < miss_rate((i.low <= 0 <= i.high for i in found), n) < 0.65


def test_the_skewed_interval_ends_high_enough_where_the_t_interval_does_not() -> None:
    rng, n = np.random.default_rng(4), 1000
    names = [str(g) for g in range(64)]
    studies = [rng.chisquare(1, size=64) for _ in range(n)]
    assert np.mean([skewed_interval(values, names).high < 1 for values in studies]) < 0.04
    assert np.mean([skewed_interval(values, names).low > 1 for values in studies]) < 0.04
    assert np.mean([mean_interval(values, names).high < 1 for values in studies]) > 0.04, "the negative control"
    values, found = studies[0], skewed_interval(studies[0], names)
    skew = ((values - values.mean()) ** 3).mean() / values.std() ** 3
    for end, side in ((found.low, 1), (found.high, -1)):  # Hall's transformation of either end is the t quantile
        w = (values.mean() - end) / values.std(ddof=1)
        hall = w + skew * w**2 / 3 + skew**2 * w**3 / 27 + skew / (6 * 64)
        assert hall * 8 == pytest.approx(side * 1.99834, abs=1e-4)
    even = np.resize([1.0, -1.0], 64)
    assert skewed_interval(even, names) == mean_interval(even, names)


def test_clusters_count_once_whatever_their_size() -> None:
    values, names = np.array([0.0] * 50 + [1.0] * 5), ["big"] * 50 + list("abcde")
    assert mean_interval(values, names).estimate == pytest.approx(5 / 6)


def test_the_ratio_interval_keeps_its_level_where_top_and_bottom_move_together() -> None:
    rng, n, truth = np.random.default_rng(1), 1000, 0.4
    hits = []
    for _ in range(n):
        gap = 3 + rng.normal(size=10)
        top = truth * gap + 0.3 * rng.normal(size=10)
        found = ratio_interval(np.repeat(top, 4), np.repeat(gap, 4), [str(g) for g in range(10) for _ in range(4)])
        hits.append(found.low <= truth <= found.high)
    assert 0.03 < miss_rate(iter(hits), n) < 0.07


def test_the_ratio_interval_is_the_t_test_of_a_shifted_difference() -> None:
    """Its lower end at least d, exactly when top - d * bottom has a lower end of at least 0."""
    rng = np.random.default_rng(2)
    names = list("abcdefgh")
    for _ in range(20):
        bottom, top = 2 + rng.normal(size=8) * 0.5, rng.normal(size=8) + 1
        found = ratio_interval(top, bottom, names)
        for end, side in ((found.low, "low"), (found.high, "high")):
            assert getattr(mean_interval(top - end * bottom, names), side) == pytest.approx(0, abs=1e-9)


def test_a_ratio_over_nothing_has_no_bound() -> None:
    names = list("abcdef")
    noise = np.array([1.0, -1.0, 0.5, -0.5, 0.2, -0.1])
    for bottom in (noise, np.zeros(6)):
        found = ratio_interval(np.ones(6), bottom, names)
        assert (found.low, found.high) == (-math.inf, math.inf)


def test_a_mean_of_ratios_would_mislead() -> None:
    """One example whose gap is near zero would carry the whole mean of ratios; the ratio of means does not move."""
    gap = np.array([1.0, 1, 1, 1, 1, 1, 0.001])
    top = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert (top / gap).mean() > 50
    assert ratio_interval(top, gap, list("abcdefg")).estimate == pytest.approx(3.5 / 6.001)


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.95, 0.98])
def test_the_share_interval_keeps_its_level_with_clustered_answers(truth: float) -> None:
    rng, n, strength = np.random.default_rng(3), 800, 4.0  # beta-distributed cluster shares: icc 1 / (1 + strength)
    names = [str(g) for g in range(12) for _ in range(8)]
    hits, t_hits = [], []
    for _ in range(n):
        share = rng.beta(truth * strength, (1 - truth) * strength, size=12)
        values = (rng.random((12, 8)) < share[:, None]).astype(float).ravel()
        found, plain = share_interval(values, names), mean_interval(values, names)
        hits.append(found.low <= truth <= found.high)
        t_hits.append(plain.low <= truth <= plain.high)
    assert miss_rate(iter(hits), n) < 0.08
    if truth == 0.98:
        assert miss_rate(iter(t_hits), n) > 0.15, "the t interval is the negative control: it has no width at 1"


def test_a_share_of_one_is_not_certain() -> None:
    names = [c for c in "abcdefghij" for _ in range(50)]
    assert share_interval(np.ones(500), names).low == pytest.approx(0.025 ** (1 / 10))
    assert share_interval(np.zeros(500), names).high == pytest.approx(1 - 0.025 ** (1 / 10))


def test_the_least_number_of_clusters_is_the_one_that_can_reject() -> None:
    assert clusters_needed(0.1) == 5
    assert clusters_needed(0.05) == 6
    assert clusters_needed(0.01) == 8
    with pytest.raises(TooFewClusters, match=r"has 5 clusters.*at least 6.*more templates") as caught:
        require_clusters(5)
    assert (caught.value.found, caught.value.needed) == (5, 6)
    for interval in (mean_interval, share_interval):
        with pytest.raises(TooFewClusters):
            interval(np.ones(5), list("abcde"))
    with pytest.raises(TooFewClusters):
        ratio_interval(np.ones(5), np.ones(5), list("abcde"))


def test_bad_values_are_refused() -> None:
    with pytest.raises(UsageError, match="2 values for 1 cluster"):
        by_cluster(np.ones(2), ["a"])
    with pytest.raises(UsageError, match="example 1 has no finite value"):
        by_cluster(np.array([1.0, np.nan]), ["a", "b"])
    with pytest.raises(UsageError, match="between 0 and 1"):
        share_interval(np.full(6, 2.0), list("abcdef"))
    with pytest.raises(UsageError, match="alpha 5"):
        clusters_needed(5.0)
