"""Randomisation tests: the cluster sign flip, and the rank of a subject among random controls."""

from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float

from cutaway.errors import UsageError
from cutaway.stats.cluster import Values, by_cluster, require_clusters

EXACT_UP_TO = 20_000
"""Sign patterns that are enumerated; above, they are drawn."""
DRAWS = 9_999
"""Monte-Carlo draws; with the observed pattern counted, the smallest p is 1 / 10,000."""
_SLACK = 1e-12
"""Relative: patterns whose mean equals the observed one up to rounding count as reaching it."""


def sign_flip(
    values: Values,
    clusters: Sequence[str],
    *,
    side: Literal["two", "greater"] = "two",
    alpha: float = 0.05,
    seed: int = 0,
) -> float:
    """p value of "the cluster means are symmetric about 0", by flipping the sign of whole clusters.

    Exact when 2^G <= 20,000 (G <= 14): the share of all sign patterns whose mean reaches the observed one. Otherwise
    (1 + hits) / (1 + 9,999) over drawn patterns, which keeps the test valid (Phipson and Smyth 2010). `greater` tests
    for a positive mean. Shift `values` by a minimum effect to test against it. Raises TooFewClusters.

    >>> sign_flip(np.ones(6), list("abcdef"))
    0.03125
    """
    means = by_cluster(values, clusters).means
    require_clusters(len(means), alpha)
    observed = means.mean()
    if 2 ** len(means) <= EXACT_UP_TO:
        patterns = _all_signs(len(means))
    else:
        patterns = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), size=(DRAWS, len(means)))
    flipped = patterns @ means / len(means)
    slack = _SLACK * float(np.abs(means).max())
    reaches = flipped >= observed - slack if side == "greater" else np.abs(flipped) >= abs(observed) - slack
    if 2 ** len(means) <= EXACT_UP_TO:
        return float(reaches.mean())
    return float((1 + reaches.sum()) / (1 + DRAWS))


def control_p(subject: float, controls: Sequence[float]) -> float:
    """p = (1 + #{control >= subject}) / (k + 1): the chance that one of k + 1 exchangeable components ranks this high.

    With k controls the least possible value is 1 / (k + 1): 19 controls are the fewest that reach 0.05.

    >>> control_p(1.0, [0.2] * 19)
    0.05
    """
    if not controls:
        raise UsageError("no controls: a rank needs at least one matched component to rank against")
    return (1 + sum(value >= subject for value in controls)) / (len(controls) + 1)


@cache
def _all_signs(n: int) -> Float[np.ndarray, "pattern cluster"]:
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return 1.0 - 2.0 * bits
