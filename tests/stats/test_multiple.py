"""Holm's adjustment: known values, order kept, family-wise error held."""

import numpy as np

from cutaway.stats import holm


def test_known_values_in_the_given_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [0.03, 0.06, 0.06, 0.02]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_family_wise_error_is_held_where_raw_p_values_fail() -> None:
    rng = np.random.default_rng(0)
    studies = rng.random((2000, 10))
    assert np.mean([min(holm(list(p))) <= 0.05 for p in studies]) < 0.065
    assert np.mean(studies.min(axis=1) <= 0.05) > 0.3
