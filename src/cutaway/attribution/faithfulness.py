"""Are the tokens that score high those that the target needs? Sufficiency and comprehensiveness, against two orders
that know nothing of the prompt.

Tokens are taken in the order of their scores, highest first. For each share of them, F(x) the target on the prompt:

    comprehensiveness   F(x) - F(x without them)     high: they were needed
    sufficiency         F(x) - F(them alone)         low: they are enough

and the mean over the shares. The same is done in random orders, and in the order of the mean score at each position
(counted from the end) of the other prompts: an attribution that says no more than "the last tokens" does not beat it.
Source: DeYoung et al. 2020 (ERASER, arXiv 1911.03429).
"""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway import stats
from cutaway.artifacts import Provenance, digest, require_same_model, save_tensors, saved
from cutaway.attribution.attribute import MAX_TOKENS
from cutaway.attribution.removal import REMOVALS, alone, baselines, coalition_values
from cutaway.attribution.result import TokenScores
from cutaway.attribution.target import Target
from cutaway.engine import Progress
from cutaway.errors import OutOfRange, TooFewClusters, UnknownName, UsageError, did_you_mean
from cutaway.figures import Bars, Figure
from cutaway.models import Model
from cutaway.models.model import Prompts

SHARES = (0.1, 0.2, 0.3, 0.5)
ORDERS = ("scores", "random", "position")
MEASURES = ("comprehensiveness", "sufficiency")


@dataclass(frozen=True)
class Faithfulness:
    """Both measures, per prompt, removal and order, in the target's unit."""

    comprehensiveness: Float[Tensor, "removal order row"]
    sufficiency: Float[Tensor, "removal order row"]
    removals: tuple[str, ...]
    """How tokens were removed; two that agree are worth more than one."""
    shares: tuple[float, ...]
    method: str
    """Of the attribution."""
    clusters: tuple[str, ...]
    """Independent unit of each prompt."""
    provenance: Provenance

    def advantage(self, measure: str, removal: str, order: str) -> Float[Tensor, " row"]:
        """By how much the scores' order is better than another one: positive is better, for either measure."""
        if measure not in MEASURES or removal not in self.removals or order not in ORDERS[1:]:
            raise UnknownName(
                f"advantage({measure!r}, {removal!r}, {order!r}): measures are {', '.join(MEASURES)}; removals "
                f"{', '.join(self.removals)}; orders {', '.join(ORDERS[1:])}",
                name=measure,
            )
        values = getattr(self, measure)[self.removals.index(removal)]
        sign = 1 if measure == "comprehensiveness" else -1
        return sign * (values[0] - values[ORDERS.index(order)])

    def table(self) -> list[dict[str, Any]]:
        """One row a measure, removal and order; for the blind orders the advantage of the scores, with a 95 % interval
        over clusters (None below the fewest that carry one)."""
        rows = []
        for measure in MEASURES:
            for i, removal in enumerate(self.removals):
                for j, order in enumerate(ORDERS):
                    row: dict[str, Any] = {"measure": measure, "removal": removal, "order": order}
                    row["value"] = float(getattr(self, measure)[i, j].double().mean())
                    row |= {"advantage": None, "low": None, "high": None}
                    if j:
                        row |= self._interval(self.advantage(measure, removal, order))
                    rows.append(row | {"prompts": len(self.clusters), "clusters": len(set(self.clusters))})
        return rows

    def _interval(self, values: Float[Tensor, " row"]) -> dict[str, float | None]:
        numbers = values.double().numpy()
        table = stats.by_cluster(numbers, self.clusters)
        try:
            found = stats.mean_interval(numbers, self.clusters)
        except TooFewClusters:
            return {"advantage": float(table.means.mean()), "low": None, "high": None}
        return {"advantage": found.estimate, "low": found.low, "high": found.high}

    def figures(self) -> tuple[Figure, ...]:
        """The advantage over both blind orders."""
        rows = [row for row in self.table() if row["advantage"] is not None]
        known = all(row["low"] is not None for row in rows)
        return (
            Bars(
                f"Faithfulness of {self.method}",
                "By how much taking tokens in the order of their scores is better than in an order that does not know "
                "the prompt. Not above 0: the scores tell nothing more than that order.",
                "target's unit",
                tuple(f"{row['measure']}, {row['removal']}, over {row['order']}" for row in rows),
                tuple(row["advantage"] for row in rows),
                tuple((row["high"] - row["low"]) / 2 for row in rows) if known else None,
            ),
        )

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256. Raises UsageError for a folder."""
        if Path(path).is_dir():
            raise UsageError(f"{path}: this is a folder; give a file in it, such as trust.safetensors", path=str(path))
        texts = {name: getattr(self, name) for name in ("removals", "shares", "method", "clusters", "provenance")}
        tensors = {name: getattr(self, name) for name in MEASURES}
        return save_tensors(Path(path), tensors, {"kind": "faithfulness", "format": 1, **texts})

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Faithfulness":
        """Read a saved file. Raises WrongModel, BrokenEvidence."""
        with saved(path, "faithfulness", None if model is None else model.digest) as (tensors, manifest):
            return cls(
                comprehensiveness=tensors["comprehensiveness"],
                sufficiency=tensors["sufficiency"],
                removals=tuple(manifest["removals"]),
                shares=tuple(manifest["shares"]),
                method=manifest["method"],
                clusters=tuple(manifest["clusters"]),
                provenance=Provenance(**manifest["provenance"]),
            )


def faithfulness(
    model: Model,
    prompts: Prompts,
    target: Target,
    found: TokenScores,
    *,
    removals: Sequence[str] = ("mean", "mask"),
    against: Prompts | None = None,
    shares: Sequence[float] = SHARES,
    random_orders: int = 8,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Faithfulness:
    """Sufficiency and comprehensiveness of token scores, beside random orders and the order of positions alone.

    In the target's unit, per prompt. Cost: for each prompt and removal 2 x shares x (2 + random_orders) runs, less what
    coincides. Laws: comprehensiveness and sufficiency of all tokens are F(x) - F(nothing) and 0; a constant target
    gives 0 everywhere; scores that are the position order have no advantage over it.
    Misleads: removal takes the model off its distribution (two ways of it are given); tokens that back each other up
    look needless one by one; the order of signed scores asks for support, not for importance.
    Raises UsageError for scores of other prompts, OutOfRange, UnknownName.

    Args:
        found: the scores, of these prompts and this target.
        removals: see cutaway.attribution.removal.
        shares: shares of the tokens that are taken, each rounded up to a whole token.
        clusters: independent unit of each prompt; None: each prompt is one.
    """
    tokens = model.encode(prompts)
    target.check(model, tokens)
    _check(model, tokens.lengths, target, found, removals, shares, random_orders, clusters)
    other = None if against is None else model.encode(against)
    exchanges = {
        name: None if name == "mask" else baselines(model, tokens, name, other, max_tokens) for name in removals
    }
    generator = torch.Generator().manual_seed(seed)
    lines: dict[str, list[Tensor]] = {measure: [] for measure in MEASURES}
    for index in range(len(tokens)):
        row = alone(tokens, index)
        n = row.width
        orders = [_descending(found.scores[index, :n])]
        orders += [torch.randperm(n, generator=generator) for _ in range(random_orders)]
        orders.append(_by_position(found.scores, tokens.lengths, index))
        taken = torch.stack([_first(order, math.ceil(share * n)) for order in orders for share in shares])
        kept = torch.cat([torch.ones(1, n, dtype=torch.bool), ~taken, taken])
        span = slice(tokens.offsets[index], tokens.offsets[index] + n)
        both: dict[str, list[Tensor]] = {measure: [] for measure in MEASURES}
        for name, exchange in exchanges.items():
            values = coalition_values(
                model,
                row,
                kept,
                target,
                name,
                None if exchange is None else exchange[index, span],
                index=index,
                max_tokens=max_tokens,
            )
            lost = (values[0] - values[1:]).view(2, len(orders), len(shares)).mean(2)
            for measure, by_order in zip(MEASURES, lost):
                both[measure].append(torch.stack([by_order[0], by_order[1:-1].mean(), by_order[-1]]))
        for measure, values in both.items():
            lines[measure].append(torch.stack(values))
        if progress is not None:
            progress(index + 1, len(tokens))
    data = digest([found.provenance.data, list(removals), list(shares), random_orders])
    return Faithfulness(
        comprehensiveness=torch.stack(lines["comprehensiveness"], 2),
        sufficiency=torch.stack(lines["sufficiency"], 2),
        removals=tuple(removals),
        shares=tuple(shares),
        method=found.method,
        clusters=tuple(clusters) if clusters is not None else tuple(f"prompt {i}" for i in range(len(tokens))),
        provenance=Provenance(model.digest, data, importlib.import_module("cutaway").__version__, seed),
    )


def _check(
    model: Model,
    lengths: Sequence[int],
    target: Target,
    found: TokenScores,
    removals: Sequence[str],
    shares: Sequence[float],
    random_orders: int,
    clusters: Sequence[str] | None,
) -> None:
    require_same_model(found.provenance.model, model.digest, "the token scores")
    if tuple(map(len, found.tokens)) != tuple(lengths) or found.target != target.name:
        raise UsageError(
            f"the scores are of {found.target!r} on rows of {list(map(len, found.tokens))} tokens, and these are "
            f"{target.name!r} on rows of {list(lengths)}; give the prompts and the target that they were made for"
        )
    if isinstance(removals, str) or not removals or len(set(removals)) < len(removals):
        raise UsageError(f"removals={removals!r}: give a list of different ways, as in ('mean', 'mask')")
    for name in removals:
        if name not in REMOVALS:
            raise UnknownName(
                f"removal {name!r}: it is one of {', '.join(REMOVALS)}.{did_you_mean(name, REMOVALS)}", name=name
            )
    if not shares or not all(0 < share <= 1 for share in shares):
        raise OutOfRange(f"shares={tuple(shares)}: each is above 0 and at most 1", shares=tuple(shares))
    if random_orders < 1:
        raise OutOfRange(f"random_orders={random_orders}: at least 1", random_orders=random_orders)
    if clusters is not None and len(clusters) != len(lengths):
        raise UsageError(f"clusters: {len(clusters)} names for {len(lengths)} prompts; give one a prompt")


def _descending(scores: Float[Tensor, " pos"]) -> Tensor:
    return torch.argsort(scores, descending=True, stable=True)


def _by_position(scores: Float[Tensor, "row pos"], lengths: Sequence[int], index: int) -> Tensor:
    """Positions of one row by the mean score that the other rows have there, counted from the end; the last token first
    where no other row reaches."""
    n = lengths[index]
    sums, counts = torch.zeros(n), torch.zeros(n)
    for row, length in enumerate(lengths):
        if row != index:
            shared = min(n, length)
            sums[n - shared :] += scores[row, length - shared : length]
            counts[n - shared :] += 1
    last_first = torch.arange(n - 1, -1, -1)
    mean = torch.where(counts > 0, sums / counts.clamp(min=1), float("-inf"))
    return last_first[_descending(mean[last_first])]


def _first(order: Tensor, k: int) -> Bool[Tensor, " pos"]:
    taken = torch.zeros(len(order), dtype=torch.bool)
    taken[order[:k]] = True
    return taken
