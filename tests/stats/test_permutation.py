"""Randomisation tests: exact values, error rates under a true null, and that they can reject."""

import itertools

import numpy as np
import pytest

from cutaway.errors import TooFewClusters, UsageError
from cutaway.stats import control_p, sign_flip
from tests.stats.test_cluster import templated


def test_the_exact_test_counts_all_sign_patterns() -> None:
    means = np.array([0.9, -0.2, 0.4, 0.7, 0.1, 0.3, -0.05])
    patterns = [np.dot(signs, means) for signs in itertools.product([1, -1], repeat=7)]
    two = np.mean([abs(p) >= abs(means.sum()) - 1e-9 for p in patterns])
    one = np.mean([p >= means.sum() - 1e-9 for p in patterns])
    assert sign_flip(means, list("abcdefg")) == pytest.approx(two)
    assert sign_flip(means, list("abcdefg"), side="greater") == pytest.approx(one)


def test_monte_carlo_agrees_with_the_exact_test(monkeypatch: pytest.MonkeyPatch) -> None:
    means = np.random.default_rng(0).normal(size=12) + 0.4
    names = [str(i) for i in range(12)]
    exact = sign_flip(means, names)
    monkeypatch.setattr("cutaway.stats.permutation.EXACT_UP_TO", 1)
    assert sign_flip(means, names) == pytest.approx(exact, abs=0.01)
    assert sign_flip(means, names, seed=4) == sign_flip(means, names, seed=4)


def test_the_least_monte_carlo_p_counts_the_observed_pattern() -> None:
    assert sign_flip(np.ones(40), [str(i) for i in range(40)]) == pytest.approx(1 / 10_000)


def test_it_keeps_its_level_on_templates_and_has_power() -> None:
    rng, n = np.random.default_rng(5), 600
    null = [sign_flip(*templated(rng, n_clusters=8)) <= 0.05 for _ in range(n)]
    assert 0.02 < np.mean(null) < 0.08
    real = []
    for _ in range(100):
        values, names = templated(rng, n_clusters=8)
        real.append(sign_flip(values + 1.0, names) <= 0.05)
    assert np.mean(real) > 0.9


def test_a_rank_needs_nineteen_controls_to_reach_a_twentieth() -> None:
    assert control_p(1.0, [0.0] * 19) == 0.05
    assert control_p(1.0, [0.0] * 18) > 0.05
    assert control_p(0.5, [0.5, 0.4, 0.6]) == 0.75, "a control that ties counts against the subject"


def test_the_rank_keeps_its_level() -> None:
    rng = np.random.default_rng(6)
    hits = []
    for _ in range(2000):
        subject, *controls = rng.normal(size=40)
        hits.append(control_p(subject, controls) <= 0.05)
    assert 0.03 < np.mean(hits) < 0.07


def test_too_little_is_refused() -> None:
    with pytest.raises(TooFewClusters):
        sign_flip(np.ones(5), list("abcde"))
    with pytest.raises(UsageError, match="no controls"):
        control_p(1.0, [])
