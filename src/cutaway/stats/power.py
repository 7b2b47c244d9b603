"""What a study can be expected to say before it is run: chances of each verdict, clusters needed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cutaway.errors import UsageError
from cutaway.stats.cluster import clusters_needed
from cutaway.stats.quantiles import chi2_quantiles, normal_cdf, t_quantile

_GRID = 4000
"""Quantiles of the sampling distribution of the sd that stand for the whole of it."""
_MOST = 100_000
"""Beyond this many clusters a study is out of reach."""


@dataclass(frozen=True)
class Outlook:
    """Chances of the three verdicts at one true effect, by the interval alone: controls can only lower `supported`."""

    effect: float
    """True effect assumed, in the prediction's unit."""
    supported: float
    refuted: float
    inconclusive: float


def outlook(effect: float, *, minimum: float, sd: float, n_clusters: int, alpha: float = 0.05) -> Outlook:
    """Chances of the verdicts when the true mean effect is `effect` and cluster means scatter by `sd`.

    Exact for normal cluster means: with s the sample sd, supported = E[Phi((effect - minimum) / se - t * s / sd)]. At
    effect = minimum both decided verdicts have chance alpha / 2, at any number of clusters.

    >>> round(outlook(0.3, minimum=0.2, sd=0.5, n_clusters=100).supported, 2)
    0.51
    """
    if sd < 0 or n_clusters < 2:
        raise UsageError(f"sd {sd:g}, {n_clusters} clusters: a scatter is not negative and needs at least 2 clusters")
    if sd == 0:
        return Outlook(effect, float(effect >= minimum), float(effect < minimum), 0.0)
    quantile = t_quantile(1 - alpha / 2, n_clusters - 1)
    chi2 = chi2_quantiles((np.arange(_GRID) + 0.5) / _GRID, n_clusters - 1)
    reach = quantile * np.sqrt(chi2 / (n_clusters - 1))
    shift = (effect - minimum) / (sd / math.sqrt(n_clusters))
    supported, refuted = float(normal_cdf(shift - reach).mean()), float(normal_cdf(-shift - reach).mean())
    return Outlook(effect, supported, refuted, max(0.0, 1 - supported - refuted))


def clusters_for_power(
    effect: float, *, minimum: float, sd: float, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Fewest clusters that give the chance `power` of the right decided verdict at this true effect.

    Supported when `effect` lies above `minimum`, refuted when below. None at the minimum itself, where no number of
    clusters decides, and above 100,000.
    """
    if effect == minimum:
        return None

    def enough(n_clusters: int) -> bool:
        chances = outlook(effect, minimum=minimum, sd=sd, n_clusters=n_clusters, alpha=alpha)
        return (chances.supported if effect > minimum else chances.refuted) >= power

    return _first(enough, clusters_needed(alpha))


def clusters_to_decide(distance: float, sd: float, *, alpha: float = 0.05) -> int | None:
    """Fewest clusters whose half interval t * sd / sqrt(G) is at most `distance`: enough if the estimate stays put."""
    if distance <= 0:
        return None

    def enough(n_clusters: int) -> bool:
        return t_quantile(1 - alpha / 2, n_clusters - 1) * sd / math.sqrt(n_clusters) <= distance

    return _first(enough, clusters_needed(alpha))


def _first(enough: Callable[[int], bool], start: int) -> int | None:
    """Smallest n >= start with enough(n), which is monotone; None beyond the limit."""
    low, high = start, start
    while not enough(high):
        if high >= _MOST:
            return None
        low, high = high + 1, min(2 * high, _MOST)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
