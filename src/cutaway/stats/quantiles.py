"""The distributions behind the intervals, from scipy's special functions; scipy is imported at the first call."""

import numpy as np
from jaxtyping import Float


def t_quantile(p: float, df: int) -> float:
    """The p quantile of Student's t."""
    from scipy import special

    return float(special.stdtrit(df, p))


def beta_quantile(p: float, a: float, b: float) -> float:
    """The p quantile of a beta distribution."""
    from scipy import special

    return float(special.betaincinv(a, b, p))


def chi2_quantiles(p: Float[np.ndarray, " grid"], df: int) -> Float[np.ndarray, " grid"]:
    """Quantiles of chi squared."""
    from scipy import special

    return special.chdtri(df, 1 - p)


def normal_cdf(x: Float[np.ndarray, " grid"]) -> Float[np.ndarray, " grid"]:
    """Standard normal distribution function."""
    from scipy import special

    return special.ndtr(x)
