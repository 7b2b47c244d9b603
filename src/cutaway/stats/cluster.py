"""Intervals whose independent unit is the cluster (template, document): of a mean, of a ratio of means, of a share.

Every interval is two-sided at level 1 - alpha and built from cluster means, each cluster counting once:
    mean     mean of the cluster means -+ t(1 - alpha/2, G - 1) * sd / sqrt(G)
    skewed   the same after Hall's transformation, for means of skewed values over many clusters
    ratio    Fieller's set {r : mean of (x - r y) does not differ from 0 by that same t test}
    share    Clopper-Pearson at the effective sample size of the cluster design (Korn and Graubard 1998)
A verdict compares one end of the interval with a threshold, so its one-sided error is alpha/2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from cutaway.errors import TooFewClusters, UsageError
from cutaway.stats.quantiles import beta_quantile, t_quantile

Values = Float[np.ndarray, " example"]
Means = Float[np.ndarray, " cluster"]


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided interval over clusters."""

    estimate: float
    """Mean over clusters (or ratio of such means), in the unit of the values."""
    low: float
    """Lower end; -inf when the data set no bound."""
    high: float
    """Upper end; inf when the data set no bound."""
    sd: float
    """Standard deviation over clusters of what was averaged (for a ratio, of its linearised value)."""
    n: int
    """Examples."""
    n_clusters: int
    """Independent units."""
    alpha: float
    """The interval's level is 1 - alpha."""


@dataclass(frozen=True)
class ClusterTable:
    """Cluster names in order of first appearance, with the mean of each."""

    names: tuple[str, ...]
    means: Means
    n: int
    """Examples behind the means."""


def by_cluster(values: Values, clusters: Sequence[str]) -> ClusterTable:
    """Mean of `values` in each cluster, so that a cluster counts once however many examples it has.

    >>> by_cluster(np.array([1.0, 3.0, 5.0]), ["a", "a", "b"]).means.tolist()
    [2.0, 5.0]
    """
    if len(values) != len(clusters) or len(values) == 0:
        raise UsageError(
            f"{len(values)} values for {len(clusters)} cluster names: give one name a value, and at least one value"
        )
    if not np.isfinite(values).all():
        raise UsageError(
            f"example {int(np.argmin(np.isfinite(values)))} has no finite value: an interval needs every example; "
            "drop or fix it"
        )
    names, first, index = np.unique(np.asarray(clusters, dtype=str), return_index=True, return_inverse=True)
    order = np.argsort(first)
    means = np.bincount(index, weights=values) / np.bincount(index)
    return ClusterTable(tuple(str(names[i]) for i in order), means[order].astype(np.float64), len(values))


def clusters_needed(alpha: float = 0.05) -> int:
    """Fewest clusters with which a two-sided sign-flip test can reach `alpha`: 2 / 2^G <= alpha, so 6 at 0.05."""
    if not 0 < alpha < 1:
        raise UsageError(f"alpha {alpha}: a level lies between 0 and 1; 0.05 is usual")
    return max(2, math.ceil(1 - math.log2(alpha) - 1e-12))


def require_clusters(n_clusters: int, alpha: float = 0.05, *, what: str = "this sample") -> None:
    """Refuse a test that the sample cannot carry (TooFewClusters): no result of it could be significant."""
    need = clusters_needed(alpha)
    if n_clusters < need:
        raise TooFewClusters(
            f"{what} has {n_clusters} cluster{'s' * (n_clusters != 1)}; a test at alpha = {alpha:g} needs at least "
            f"{need} (2 / 2^G <= alpha). Add {need - n_clusters} or more templates or documents; more prompts of the "
            "same ones do not help",
            found=n_clusters,
            needed=need,
            alpha=alpha,
        )


def mean_interval(values: Values, clusters: Sequence[str], *, alpha: float = 0.05) -> Interval:
    """Cluster-mean t interval of the mean effect, in the unit of `values`.

    Misleads on strongly skewed cluster means: take `skewed_interval` and 50 clusters for those. Raises TooFewClusters.
    Source: Donald and Lang 2007; Ibragimov and Mueller 2010.

    >>> round(mean_interval(np.arange(6.0), list("abcdef")).low, 3)
    0.537
    """
    table = by_cluster(values, clusters)
    require_clusters(len(table.names), alpha)
    return _t_interval(table.means, table.n, alpha)


def skewed_interval(values: Values, clusters: Sequence[str], *, alpha: float = 0.05) -> Interval:
    """Interval of the mean of skewed values, such as KL divergences: the t interval with Hall's cubic transformation.

    A t interval of a right-skewed mean ends too low; on chi squared (1) it missed above 5.5 % of the time at G = 64,
    this one 2.5 % (nominal 2.5 %). Misleads on the heaviest tails (log-normal with sd 1.5: 7.9 % for 16 %).
    Source: Hall 1992, J. R. Stat. Soc. B 54.

    >>> found = skewed_interval(np.array([1.0, 1, 1, 1, 1, 2, 3, 9]), list("abcdefgh"))
    >>> found.high - found.estimate > found.estimate - found.low
    True
    """
    table = by_cluster(values, clusters)
    require_clusters(len(table.names), alpha)
    plain = _t_interval(table.means, table.n, alpha)
    centred, spread = table.means - plain.estimate, float(table.means.std())
    skew = float((centred**3).mean()) / spread**3 if spread > 0 else 0.0
    if abs(skew) < 1e-9:
        return plain
    n_clusters = len(table.names)
    reach = t_quantile(1 - alpha / 2, n_clusters - 1) / math.sqrt(n_clusters)
    low, high = (
        plain.estimate - plain.sd * 3 / skew * (np.cbrt(1 + skew * (end - skew / (6 * n_clusters))) - 1)
        for end in (reach, -reach)
    )
    return replace(plain, low=min(float(low), plain.estimate), high=max(float(high), plain.estimate))


def ratio_interval(top: Values, bottom: Values, clusters: Sequence[str], *, alpha: float = 0.05) -> Interval:
    """Fieller interval of mean(top) / mean(bottom) over clusters: a ratio of means, never a mean of ratios.

    `r` is inside when a t test over clusters does not tell mean(top - r * bottom) from 0; so "the lower end is at least
    d" and "top - d * bottom has its lower end at least 0" are the same statement. Where `bottom` itself is not clearly
    different from 0, no ratio is excluded and the interval is the whole line. Source: Fieller 1954.

    >>> top, bottom = np.array([1.0, 2, 3, 2, 1, 3]), np.array([2.0, 4, 6, 4, 2, 6])
    >>> ratio_interval(top, bottom, list("abcdef")).estimate
    0.5
    """
    x, y = by_cluster(top, clusters), by_cluster(bottom, clusters)
    n_clusters = len(x.names)
    require_clusters(n_clusters, alpha)
    mean_x, mean_y = float(x.means.mean()), float(y.means.mean())
    if mean_y == 0:
        return Interval(0.0, -math.inf, math.inf, 0.0, x.n, n_clusters, alpha)
    ratio = mean_x / mean_y
    residual = x.means - ratio * y.means
    sd = float(residual.std(ddof=1)) / abs(mean_y)
    cov = (np.cov(x.means, y.means, ddof=1) / n_clusters).tolist()
    t2 = t_quantile(1 - alpha / 2, n_clusters - 1) ** 2
    a, b, c = mean_y**2 - t2 * cov[1][1], mean_x * mean_y - t2 * cov[0][1], mean_x**2 - t2 * cov[0][0]
    if a <= 0:
        return Interval(ratio, -math.inf, math.inf, sd, x.n, n_clusters, alpha)
    half = math.sqrt(max(b * b - a * c, 0.0))
    low, high = (b - half) / a, (b + half) / a
    return Interval(ratio, min(low, ratio), max(high, ratio), sd, x.n, n_clusters, alpha)


def share_interval(hits: Values, clusters: Sequence[str], *, alpha: float = 0.05) -> Interval:
    """Interval of a share (values between 0 and 1) that stays honest at 0 and 1, where a t interval has no width.

    Clopper-Pearson at the effective sample size p(1-p) / var(p) of the clusters, scaled by the squared ratio of t
    quantiles and never above the number of examples; clusters that all show the same share of 0 or 1 count once each.
    Source: Korn and Graubard 1998, Survey Methodology 24.

    >>> round(share_interval(np.ones(20), [c for c in "abcdefghij" for _ in "xy"]).low, 3)
    0.692
    """
    table = by_cluster(hits, clusters)
    if hits.min() < 0 or hits.max() > 1:
        raise UsageError(
            f"a share is made of values between 0 and 1, not {hits.min():g} .. {hits.max():g}; use mean_interval"
        )
    n_clusters = len(table.names)
    require_clusters(n_clusters, alpha)
    share, sd = float(table.means.mean()), float(table.means.std(ddof=1))
    size = _effective_size(share, sd, table.n, n_clusters, alpha)
    hit = share * size
    low = beta_quantile(alpha / 2, hit, size - hit + 1) if hit > 0 else 0.0
    high = beta_quantile(1 - alpha / 2, hit + 1, size - hit) if hit < size else 1.0
    return Interval(share, low, high, sd, table.n, n_clusters, alpha)


def _effective_size(share: float, sd: float, n: int, n_clusters: int, alpha: float) -> float:
    """Independent draws that would carry as much as these clusters do."""
    if share in (0.0, 1.0):
        return float(n_clusters)
    scale = (t_quantile(1 - alpha / 2, max(n - 1, 1)) / t_quantile(1 - alpha / 2, n_clusters - 1)) ** 2
    design = share * (1 - share) / (sd**2 / n_clusters) if sd > 0 else math.inf
    return min(design * scale, float(n))


def _t_interval(means: Means, n: int, alpha: float) -> Interval:
    n_clusters = len(means)
    estimate, sd = float(means.mean()), float(means.std(ddof=1))
    half = t_quantile(1 - alpha / 2, n_clusters - 1) * sd / math.sqrt(n_clusters)
    return Interval(estimate, estimate - half, estimate + half, sd, n, n_clusters, alpha)
