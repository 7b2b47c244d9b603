"""Power: the formula agrees with simulated studies, and the numbers of clusters it names are enough and no more."""

import numpy as np
import pytest

from cutaway.errors import UsageError
from cutaway.stats import clusters_for_power, clusters_to_decide, mean_interval, outlook


@pytest.mark.parametrize("effect", [0.0, 0.2, 0.5])
def test_chances_agree_with_simulated_studies(effect: float) -> None:
    rng, n, minimum, sd, size = np.random.default_rng(7), 1500, 0.2, 0.4, 10
    names = [str(i) for i in range(size)]
    studies = [mean_interval(effect + sd * rng.normal(size=size), names) for _ in range(n)]
    found = outlook(effect, minimum=minimum, sd=sd, n_clusters=size)
    assert np.mean([i.low >= minimum for i in studies]) == pytest.approx(found.supported, abs=0.04)
    assert np.mean([i.high < minimum for i in studies]) == pytest.approx(found.refuted, abs=0.04)
    assert found.supported + found.refuted + found.inconclusive == pytest.approx(1)


@pytest.mark.parametrize("n_clusters", [6, 50])
def test_at_the_minimum_itself_nothing_is_decided(n_clusters: int) -> None:
    found = outlook(0.2, minimum=0.2, sd=0.5, n_clusters=n_clusters)
    assert found.supported == pytest.approx(0.025, abs=2e-3)
    assert found.refuted == pytest.approx(0.025, abs=2e-3)
    assert clusters_for_power(0.2, minimum=0.2, sd=0.5) is None


@pytest.mark.parametrize(("effect", "verdict"), [(0.5, "supported"), (0.0, "refuted")])
def test_the_number_of_clusters_is_the_least_that_suffices(effect: float, verdict: str) -> None:
    n = clusters_for_power(effect, minimum=0.2, sd=0.5)
    assert n is not None
    assert getattr(outlook(effect, minimum=0.2, sd=0.5, n_clusters=n), verdict) >= 0.8
    assert getattr(outlook(effect, minimum=0.2, sd=0.5, n_clusters=n - 1), verdict) < 0.8


def test_out_of_reach_is_none_and_no_scatter_is_certain() -> None:
    assert clusters_for_power(0.2001, minimum=0.2, sd=50.0) is None
    assert outlook(0.3, minimum=0.2, sd=0.0, n_clusters=6).supported == 1
    assert clusters_to_decide(0.0, 1.0) is None
    n = clusters_to_decide(0.1, 0.5)
    assert n is not None
    names = [str(i) for i in range(n)]
    values = np.resize([1.0, -1.0], n) * 0.5
    assert mean_interval(values, names).high <= 0.11
    with pytest.raises(UsageError):
        outlook(0.1, minimum=0.2, sd=-1.0, n_clusters=6)
