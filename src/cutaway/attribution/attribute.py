"""Attribution of a target to the tokens of its prompts.

    gradient_x_input      < x_i - b_i , dF/dx_i at x >                      one forward, one backward
    integrated_gradients  < x_i - b_i , mean of dF/dx_i from b to x >       midpoints, doubled until the scores add up
    occlusion             F(x) - F(x without i)                             a run a token
    lime, kernel_shap     regressions on sampled sets of tokens             a run a sample
    shapley               every set of tokens, up to 12                     2^n runs

x_i is the embedding of token i, b_i its baseline. Gradient methods go through all prompts at once; the others plan the
runs of each prompt.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.artifacts import Provenance, digest
from cutaway.attribution import shares
from cutaway.attribution.removal import REMOVALS, alone, baselines, coalition_values
from cutaway.attribution.result import TokenScores, left_aligned
from cutaway.attribution.target import Target
from cutaway.engine import Progress
from cutaway.errors import OutOfRange, UnknownName, UsageError, did_you_mean
from cutaway.models import Model, Site, Tokens, sites
from cutaway.models.gradients import backward
from cutaway.models.model import Prompts

GRADIENT = ("gradient_x_input", "integrated_gradients")
METHODS = (*GRADIENT, "occlusion", "lime", "kernel_shap", "shapley")
COMPLETE = ("integrated_gradients", "kernel_shap", "shapley")
"""Methods whose scores are to add up to F(x) - F(baseline)."""
BASELINES = REMOVALS
"""What a token may be exchanged for; "mask" only where tokens are removed."""
GRADING = 10
"""Power by which the midpoints crowd toward the baseline where even ones do not suffice: each norm on the way makes a
thousand times as much of what is near zero."""
MAX_TOKENS = 4096
"""Tokens of one forward pass, by default."""


def attribute(
    model: Model,
    prompts: Prompts,
    target: Target,
    *,
    method: str = "integrated_gradients",
    baseline: str | None = None,
    against: Prompts | None = None,
    steps: int = 16,
    max_steps: int = 512,
    tolerance: float = 0.02,
    samples: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> TokenScores:
    """What each token of each prompt contributes to the target, in the target's unit. Positive: it raises it.

    Cost: see the top of cutaway.attribution.attribute; integrated gradients take `steps` forward and backward passes,
    doubled until the scores miss F(x) - F(baseline) by less than `tolerance` of it (over all rows) or `max_steps` is
    reached; the result says what was reached.
    Source: Sundararajan et al. 2017 (integrated gradients); Ribeiro et al. 2016 (LIME); Lundberg and Lee 2017 (SHAP).
    Laws: integrated gradients, Shapley values and their sampled form add up to F(x) - F(baseline); where F is linear in
    the embeddings all methods but LIME agree; a token that equals its baseline gets 0, from all methods but LIME.
    Misleads: another baseline asks another question; gradients saturate; removed tokens take the model where it never
    was; a token may matter only through what stands beside it (docs/methods/input-attribution.md). Check with
    `faithfulness`.
    Raises UsageError, UnknownName, OutOfRange; SiteUnavailable without an embedding site; TokenizerUnfit, Misaligned
    for baselines that there are not.

    Args:
        target: from `logit`, `logit_diff` or `unit`.
        baseline: "zero", "mean" (over the vocabulary), "pad", "unk", "counterfactual" (the embeddings of `against`);
            where tokens are removed also "mask" (no position attends to them). None: "counterfactual" with `against`,
            "zero" for gradient_x_input, else "mean".
        against: prompts of the same lengths, for the counterfactual baseline.
        samples: sets of tokens that lime and kernel_shap draw; all sets when there are no more.
    """
    name = _check(method, baseline, against, steps, max_steps, tolerance, samples)
    tokens = model.encode(prompts)
    target.check(model, tokens)
    other = None if against is None else model.encode(against)
    exchange = None if name == "mask" else baselines(model, tokens, name, other, max_tokens)
    if method in GRADIENT:
        assert exchange is not None  # "mask" was refused
        limits = (steps, max_steps, tolerance)
        rows, value, start, used = _by_slopes(model, tokens, target, method, exchange, limits, max_tokens, progress)
    else:
        rows, value, start, used = _by_removal(
            model, tokens, target, method, name, exchange, samples, seed, max_tokens, progress
        )
    texts = tuple(tuple(model.strings(tokens.row(row))) for row in range(len(tokens)))
    drawn = seed if method in ("lime", "kernel_shap") else None
    made = importlib.import_module("cutaway").__version__
    data = digest([tokens.digest, None if other is None else other.digest, _identity(target)])
    return TokenScores(
        scores=left_aligned(rows),
        value=value,
        baseline_value=start,
        tokens=texts,
        method=method,
        baseline=name,
        target=target.name,
        complete=method in COMPLETE,
        steps=used,
        provenance=Provenance(model.digest, data, made, drawn),
    )


def _identity(target: Target) -> list[Any]:
    along = None if target.direction is None else digest(target.direction)
    return [target.name, target.plus, target.minus, target.position, str(target.site), along]


def _check(
    method: str, baseline: str | None, against: Any, steps: int, max_steps: int, tolerance: float, samples: int
) -> str:
    """The baseline's name, or an error, before anything runs."""
    if method not in METHODS:
        raise UnknownName(
            f"method={method!r}: it is one of {', '.join(METHODS)}.{did_you_mean(method, METHODS)}", name=method
        )
    usual = "zero" if method == "gradient_x_input" else "mean"
    name = (usual if against is None else "counterfactual") if baseline is None else baseline
    if name not in BASELINES:
        raise UnknownName(
            f"baseline={name!r}: it is one of {', '.join(BASELINES)}.{did_you_mean(name, BASELINES)}", name=name
        )
    if name == "mask" and method in GRADIENT:
        raise UsageError(f"baseline 'mask': {method} needs an embedding to start from; use occlusion, or 'mean'")
    if (against is not None) != (name == "counterfactual"):
        raise UsageError("against= and baseline='counterfactual' belong together: give both, or neither")
    if not 1 <= steps <= max_steps:
        raise OutOfRange(f"steps={steps}, max_steps={max_steps}: needs 1 <= steps <= max_steps", steps=steps)
    if not tolerance > 0:
        raise OutOfRange(f"tolerance={tolerance}: a share of the change above 0; 0.02 is usual", tolerance=tolerance)
    if samples < 2:
        raise OutOfRange(f"samples={samples}: at least 2 sets of tokens", samples=samples)
    return name


# -- by slopes


def _by_slopes(
    model: Model,
    tokens: Tokens,
    target: Target,
    method: str,
    baseline: Float[Tensor, "batch pos d_model"],
    limits: tuple[int, int, float],
    max_tokens: int,
    progress: Progress | None,
) -> tuple[list[Tensor], Tensor, Tensor, int]:
    """Scores of each row, the target there and at the baseline, and the steps taken."""
    here, rows = model.capture(tokens, sites.embed)[sites.embed], list(range(len(tokens)))
    value, _ = _slope(model, tokens, target, None, rows, max_tokens)
    start, _ = _slope(model, tokens, target, baseline, rows, max_tokens)
    difference = here - baseline

    def mean_slope(points: Sequence[tuple[float, float]]) -> tuple[Float[Tensor, "row pos"], float]:
        """Scores by the slope at some points of the way, each with its weight; and what their sums miss."""
        total = torch.zeros_like(here)
        together = max(1, max_tokens // here[..., 0].numel())
        for first in range(0, len(points), together):
            chunk = points[first : first + together]
            embedded = torch.cat([baseline + share * difference for share, _ in chunk])
            found = _slope(model, tokens.repeat(len(chunk)), target, embedded, rows * len(chunk), max_tokens)[1]
            for (_, weight), slope in zip(chunk, found.split(len(tokens))):
                total += weight * slope
            if progress is not None:
                progress(first + len(chunk), len(points))
        scores = (difference * total).sum(2).cpu().masked_fill(~tokens.mask, 0.0)
        return scores, float((scores.sum(1) - (value - start)).abs().sum())

    if method == "gradient_x_input":
        (scores, _), steps = mean_slope([(1.0, 1.0)]), 1
    else:
        steps, most, tolerance = limits
        enough, power = tolerance * float((value - start).abs().sum()), 1
        scores, missed = mean_slope(_points(steps, power))
        while missed > enough and 2 * steps <= most:
            if power == 1:
                # near a baseline of zeros the norms turn within a tiny part of the way: look there more closely
                graded = mean_slope(_points(steps, GRADING))
                if graded[1] < missed:
                    power, (scores, missed) = GRADING, graded
                    continue
            steps *= 2
            scores, missed = mean_slope(_points(steps, power))
    return [scores[row][tokens.mask[row]].float() for row in rows], value, start, steps


def _points(steps: int, power: int) -> list[tuple[float, float]]:
    """Midpoints of t on the way a = t^power from baseline to prompt, with their weights da / dt / steps."""
    middles = [(i + 0.5) / steps for i in range(steps)]
    return [(t**power, power * t ** (power - 1) / steps) for t in middles]


def _slope(
    model: Model, tokens: Tokens, target: Target, embedded: Tensor | None, rows: Sequence[int], max_tokens: int
) -> tuple[Float[Tensor, " row"], Float[Tensor, "row pos d_model"]]:
    """The target of each row with these embeddings, and its slope there; in pieces of rows that fit one pass.

    Args:
        rows: which of the prompts each row is.
    """
    size = max(1, max_tokens // tokens.width)
    values, slopes = [], []
    for first in range(0, len(tokens), size):
        piece = range(first, min(first + size, len(tokens)))
        some = tokens if len(piece) == len(tokens) else tokens.take(piece)
        named = [rows[i] for i in piece]

        def total(logits: Tensor | None, found: Mapping[Site, Tensor], some: Tokens = some, named: list[int] = named):
            values.append(target.values(logits, found, some, model.digest, named))
            return values[-1].sum()

        edits = [] if embedded is None else [sites.embed.replace(embedded[first : first + len(piece)])]
        found = backward(model, some, total, [sites.embed], reads=target.reads, logits=target.logits(some), edits=edits)
        slopes.append(found.gradients[sites.embed])
    return torch.cat([value.detach().float().cpu() for value in values]), torch.cat(slopes)


# -- by removal


def _by_removal(
    model: Model,
    tokens: Tokens,
    target: Target,
    method: str,
    removal: str,
    exchange: Float[Tensor, "batch pos d_model"] | None,
    samples: int,
    seed: int,
    max_tokens: int,
    progress: Progress | None,
) -> tuple[list[Tensor], Tensor, Tensor, int]:
    longest = max(tokens.lengths)
    if method == "shapley" and longest > shares.MOST_PLAYERS:
        raise OutOfRange(
            f"shapley: row {tokens.lengths.index(longest)} has {longest} tokens, so 2^{longest} sets of them; at most "
            f"{shares.MOST_PLAYERS} are run in full: use method='kernel_shap'",
            length=longest,
        )
    generator = torch.Generator().manual_seed(seed)
    rows, values, starts, most = [], [], [], 0
    for index in range(len(tokens)):
        row = alone(tokens, index)
        kept, every = _coalitions(method, row.width, samples, generator)
        span = slice(tokens.offsets[index], tokens.offsets[index] + row.width)
        found = coalition_values(
            model,
            row,
            kept,
            target,
            removal,
            None if exchange is None else exchange[index, span],
            index=index,
            max_tokens=max_tokens,
        )
        if method == "occlusion":
            rows.append(found[0] - found[2:])
        elif method == "shapley":
            rows.append(shares.shapley(kept, found))
        elif method == "lime":
            rows.append(shares.lime(kept, found))
        else:
            rows.append(shares.kernel_shap(kept, found, every=every))
        full, none = (-1, 0) if method == "shapley" else (0, 1)
        values.append(found[full])
        starts.append(found[none])
        most = max(most, len(kept))
        if progress is not None:
            progress(index + 1, len(tokens))
    return rows, torch.stack(values), torch.stack(starts), most


def _coalitions(method: str, n: int, samples: int, generator: torch.Generator) -> tuple[Tensor, bool]:
    """Sets of kept tokens, and whether they are all that there are."""
    if method == "occlusion":
        return shares.leave_one_out(n), False
    if method == "shapley":
        return shares.all_coalitions(n), True
    if n == 1 or 2**n - 2 <= samples:
        every = shares.all_coalitions(n)
        return torch.cat([every[-1:], every[:1], every[1:-1]]), True
    return shares.sampled(n, samples, generator, paired=method == "kernel_shap"), False
