"""How the value of every coalition of tokens is shared out to the tokens. Arithmetic only: nothing is run here.

With players 1..n, v(S) the value with the tokens S kept:
    occlusion    v(all) - v(all but i)
    shapley      sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))                 Shapley 1953
    kernel_shap  the same from a sample of coalitions: least squares with weights (n - 1) / (C(n, |S|) |S| (n - |S|)),
                 under sum = v(all) - v(none)                                                       Lundberg & Lee 2017
    lime         ridge regression on sampled coalitions, nearer ones weighing more                  Ribeiro et al. 2016
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

MOST_PLAYERS = 12
"""Tokens up to which every coalition is run."""
WIDTH, RIDGE = 0.25, 1.0
"""LIME's kernel width, over the cosine distance from the whole prompt, and its penalty on squared weights."""

Kept = Bool[Tensor, "coalition pos"]
Values = Float[Tensor, " coalition"]
Shares = Float[Tensor, " pos"]


def leave_one_out(n: int) -> Kept:
    """All kept, none kept, then each token left out in turn."""
    return torch.cat([torch.ones(1, n), torch.zeros(1, n), 1 - torch.eye(n)]).bool()


def all_coalitions(n: int) -> Kept:
    """Every subset; row i keeps the tokens whose bit is set in i."""
    return ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).bool()


def shapley(kept: Kept, values: Values) -> Shares:
    """Exact Shapley values from all coalitions, in the order of `all_coalitions`."""
    n = kept.shape[1]
    sizes = kept.sum(1)
    weight = torch.tensor(
        [math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n) for s in range(n)], dtype=torch.float64
    )
    found = []
    for i in range(n):
        without = (~kept[:, i]).nonzero()[:, 0]
        gain = values[without + 2**i].double() - values[without].double()
        found.append((weight[sizes[without]] * gain).sum())
    return torch.stack(found).float()


def sampled(n: int, samples: int, generator: Generator, *, paired: bool) -> Kept:
    """All and none, then random coalitions: sizes by the Shapley kernel and each with its complement when `paired`,
    else any number of tokens removed alike."""
    ends = torch.stack([torch.ones(n), torch.zeros(n)]).bool()
    sizes = torch.arange(1, n)
    weight = (n - 1) / (sizes * (n - sizes)) if paired else torch.ones(len(sizes))
    count = samples // 2 if paired else samples
    drawn = sizes[torch.multinomial(weight.double(), count, replacement=True, generator=generator)]
    order = torch.rand(count, n, generator=generator).argsort(1).argsort(1)
    found = order < drawn[:, None]
    return torch.cat([ends, found, ~found]) if paired else torch.cat([ends, found])


def kernel_shap(kept: Kept, values: Values, *, every: bool) -> Shares:
    """Shapley values by least squares. Row 0 keeps all, row 1 none.

    Args:
        every: the rows hold every other coalition once, so each weighs what the kernel says; else it drew them.
    """
    n, inner = kept.shape[1], kept[2:]
    whole, nothing = values[0].double(), values[1].double()
    if n == 1:
        return (whole - nothing).float()[None]
    sizes = inner.sum(1)
    kernel = torch.tensor([0.0, *((n - 1) / (math.comb(n, s) * s * (n - s)) for s in range(1, n))], dtype=torch.float64)
    root = (kernel[sizes] if every else torch.ones(len(inner), dtype=torch.float64)).sqrt()[:, None]
    design, last = inner[:, :-1].double(), inner[:, -1:].double()
    # the last share is what the others leave of the whole
    left = (values[2:].double() - nothing)[:, None] - last * (whole - nothing)
    found = torch.linalg.lstsq(root * (design - last), root * left, driver="gelsd").solution[:, 0]
    return torch.cat([found, (whole - nothing - found.sum())[None]]).float()


def lime(kept: Kept, values: Values) -> Shares:
    """Weights of a ridge regression of the value on which tokens are kept, with an intercept."""
    present = kept.double()
    near = torch.exp(-((1 - (present.sum(1) / kept.shape[1]).sqrt()) ** 2) / WIDTH**2)
    share = near / near.sum()
    centre, middle = share @ present, share @ values.double()
    design, left = present - centre, values.double() - middle
    gram = design.T @ (near[:, None] * design) + RIDGE * torch.eye(kept.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, design.T @ (near * left)).float()
