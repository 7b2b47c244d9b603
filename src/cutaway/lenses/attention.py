"""Attention: where heads look, and three numbers that say whether a head looks where a known kind of head does.

A score is the attention that a query gives to its target keys, averaged over the queries that have any:

    previous    target of t: t - 1
    duplicate   targets of t: every earlier s with the token of t
    induction   targets of t: s + 1 < t for every earlier s with the token of t

Each is a share, 0 to 1. Beside it stands chance: what a head that looks evenly at everything visible would get. Two
numbers more say how a head looks: the share that goes to the first token, where heads rest, and the entropy.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance
from cutaway.engine import Run
from cutaway.errors import OutOfRange, UnknownName, UsageError, did_you_mean
from cutaway.figures import Bars, Figure, Heatmap, Points
from cutaway.lenses import store
from cutaway.lenses.states import provenance
from cutaway.models import Model, RunResult, Site, SiteSet, Tokens
from cutaway.tasks import Batch, Task

Wanted: TypeAlias = Site | SiteSet | str | Iterable[Site | SiteSet | str]
KINDS = ("previous", "duplicate", "induction")
DRAWN = 12


@dataclass(frozen=True)
class HeadScores:
    """Three scores of every head on every row. NaN where a row has no query with a target (no token repeats)."""

    labels: tuple[str, ...]
    """Heads, as `pattern.1.h3`."""
    previous: Float[Tensor, "head row"]
    duplicate: Float[Tensor, "head row"]
    induction: Float[Tensor, "head row"]
    chance: Float[Tensor, "score row"]
    """Scores of even attention, in the order previous, duplicate, induction."""
    first: Float[Tensor, "head row"]
    """Share that goes to the row's first token, averaged over the later queries; NaN for a row of one token."""
    entropy: Float[Tensor, "head row"]
    """Of a query's attention, nat, averaged over the queries: 0 for a head that looks at one token."""
    provenance: Provenance

    def __len__(self) -> int:
        """Number of heads."""
        return len(self.labels)

    def mean(self, kind: str) -> Float[Tensor, " head"]:
        """Mean over the rows that have the score, 0 to 1; NaN when none has."""
        return torch.nanmean(self._of(kind), 1)

    def top(self, kind: str, k: int = 1) -> tuple[str, ...]:
        """Labels of the heads with the highest score. Raises UsageError when no row has it."""
        if k < 1:
            raise OutOfRange(f"top(k={k}): k must be at least 1", k=k)
        mean = self.mean(kind)
        if bool(mean.isnan().all()):
            raise UsageError(
                f"score {kind!r}: no row repeats a token, so no query has a target; use rows with repeats", kind=kind
            )
        return tuple(self.labels[i] for i in torch.argsort(mean, descending=True, stable=True)[:k].tolist())

    def table(self) -> list[dict[str, Any]]:
        """One row a head: its mean scores with their chance levels, the first token's share and the entropy (nat); None
        for a score that no row has."""
        columns: dict[str, list[float | None]] = {}
        for index, kind in enumerate(KINDS):
            columns[kind] = [None if value != value else value for value in self.mean(kind).tolist()]
            level = torch.nanmean(self.chance[index]).item()
            columns[f"{kind}_chance"] = [None if level != level else level] * len(self)
        for name, values in (("first", self.first), ("entropy", self.entropy)):
            columns[name] = [None if value != value else value for value in torch.nanmean(values, 1).tolist()]
        return [
            {"head": label} | {name: column[i] for name, column in columns.items()}
            for i, label in enumerate(self.labels)
        ]

    def figures(self) -> tuple[Figure, ...]:
        """For each score that some row has, the heads with the most of it; then every head's share and entropy."""
        found: list[Figure] = []
        for index, kind in enumerate(KINDS):
            mean = self.mean(kind)
            if bool(mean.isnan().all()):
                continue
            chosen = torch.argsort(mean, descending=True, stable=True)[:DRAWN].tolist()
            level = torch.nanmean(self.chance[index]).item()
            found.append(
                Bars(
                    f"Heads by {kind} score",
                    f"Share of attention that goes to the {kind} targets; even attention would give {level:.2f}.",
                    "share",
                    tuple(self.labels[i] for i in chosen),
                    tuple(mean[i].item() for i in chosen),
                )
            )
        first, entropy = torch.nanmean(self.first, 1), torch.nanmean(self.entropy, 1)
        axes = ("first-token share", "entropy, nat", self.labels, tuple(first.tolist()), tuple(entropy.tolist()))
        sentence = "Right: the head rests on the first token; low: it looks at few tokens."
        return (*found, Points("How heads look", sentence, *axes))

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        return store.save(self, path, "head_scores")

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "HeadScores":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        return store.load(cls, path, "head_scores", model)

    def _of(self, kind: str) -> Float[Tensor, "head row"]:
        if kind not in KINDS:
            raise UnknownName(f"score {kind!r}: no such score.{did_you_mean(kind, KINDS)}", name=kind)
        return {"previous": self.previous, "duplicate": self.duplicate, "induction": self.induction}[kind]


@dataclass(frozen=True)
class Patterns:
    """Attention weights of some heads on some rows."""

    labels: tuple[str, ...]
    """Heads, as `pattern.1.h3`."""
    values: Float[Tensor, "head row query key"]
    """Share of a query's attention that each key gets; real tokens only, from column 0 on, 0 elsewhere."""
    tokens: tuple[tuple[str, ...], ...]
    """Text of each row's tokens (ids as text without a tokenizer)."""
    provenance: Provenance

    def __len__(self) -> int:
        """Number of heads."""
        return len(self.labels)

    def table(self) -> list[dict[str, Any]]:
        """One row a head, row and query: the key that gets most of its attention, and how much."""
        rows = []
        for i, label in enumerate(self.labels):
            for row, tokens in enumerate(self.tokens):
                for query, token in enumerate(tokens):
                    share, key = self.values[i, row, query].max(0)
                    where = {"head": label, "row": row, "query": query, "token": token, "key": int(key)}
                    rows.append(where | {"key_token": tokens[int(key)], "share": share.item()})
        return rows

    def figures(self) -> tuple[Figure, ...]:
        """The pattern of each head on each row."""
        found = []
        for i, label in enumerate(self.labels):
            for row, tokens in enumerate(self.tokens):
                n, which = len(tokens), f", row {row}" if len(self.tokens) > 1 else ""
                shares = tuple(tuple(line) for line in self.values[i, row, :n, :n].tolist())
                sentence = "Share of each query's attention (rows) that each key (columns) gets."
                found.append(
                    Heatmap(f"Attention of {label}{which}", sentence, "share", "query", "key", tokens, tokens, shares)
                )
        return tuple(found)

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        return store.save(self, path, "patterns")

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Patterns":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        return store.load(cls, path, "patterns", model)


def head_scores(
    model: Model,
    inputs: Tokens | Task | Batch,
    heads: Wanted | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    max_tokens: int = 4096,
) -> HeadScores:
    """Previous-token, duplicate-token and induction score of each head on each row (shares, 0 to 1).

    Source: Olsson et al. 2022; Wang et al. 2022 (duplicate-token heads). Cost: one forward pass, with the slower kernel
    that shows its weights; patterns are reduced as they come.
    Misleads: attention says where a head looks, not what it moves nor whether anything depends on it; the first token
    takes much of it; natural text repeats tokens for many reasons, so test on random ones
    (docs/methods/attention-scores.md).
    Raises SiteUnavailable where the architecture has no attention weights.

    Args:
        inputs: rows; of a task, its clean side.
        heads: sites of heads in any form (`z.1.h3` and `pattern.1.h3` are one head); None: all.
    """
    rows = _rows(model, inputs)
    found = _heads(model, heads)
    targets = _targets(rows)
    plan = engine.plan(
        model, [Run(rows, reads=tuple(dict.fromkeys(site.base for site in found)))], max_tokens=max_tokens
    )
    (scores,) = plan.execute(
        progress=progress, reduce=lambda result, index: _scores(result, found, targets[:, index], rows.mask[index])
    )
    values = scores.cpu().permute(1, 2, 0)
    even = _visible(rows, model.body.causal)
    chance = _average(even / even.sum(-1, keepdim=True).clamp(min=1), targets)
    return HeadScores(
        labels=tuple(map(str, found)),
        previous=values[0],
        duplicate=values[1],
        induction=values[2],
        chance=chance,
        first=values[3],
        entropy=values[4],
        provenance=provenance(model, rows.digest),
    )


def attention_patterns(
    model: Model, inputs: Tokens | Task | Batch, heads: Wanted, *, rows: Sequence[int] | None = None
) -> Patterns:
    """Attention weights of the named heads (share of each query's attention, 0 to 1).

    Cost: one forward pass up to the last named layer; memory [heads rows tokens tokens]. Raises SiteUnavailable where
    the architecture has no attention weights.

    Args:
        rows: rows of the inputs to keep; None: all.
    """
    tokens = _rows(model, inputs)
    tokens = tokens if rows is None else tokens.take(rows)
    found = _heads(model, heads)
    acts = model.capture(tokens, list(dict.fromkeys(site.base for site in found)))
    width = max(tokens.lengths)
    values = torch.zeros(len(found), len(tokens), width, width)
    for row, (start, length) in enumerate(zip(tokens.offsets, tokens.lengths)):
        span = slice(start, start + length)
        for head, site in enumerate(found):
            values[head, row, :length, :length] = acts[site][row, span, span].float().cpu()
    texts = [
        model.strings(tokens.row(i)) if model.tokenizer is not None else list(map(str, tokens.row(i)))
        for i in range(len(tokens))
    ]
    return Patterns(tuple(map(str, found)), values, tuple(map(tuple, texts)), provenance(model, tokens.digest))


def _rows(model: Model, inputs: Tokens | Task | Batch) -> Tokens:
    if isinstance(inputs, Tokens):
        return inputs
    batch = inputs.encode(model) if isinstance(inputs, Task) else inputs
    return batch.clean.take(range(batch.n))


def _heads(model: Model, heads: Wanted | None) -> list[Site]:
    """The pattern site of each head that is asked for; a site without a head means all heads of its layer."""
    wanted = (
        [Site("pattern", layer) for layer in range(model.body.n_layers)] if heads is None else model.body.expand(heads)
    )
    found: dict[Site, None] = {}
    for site in wanted:
        if site.axis != "head" or site.pos is not None or site.batch_rows is not None:
            raise UsageError(
                f"site {str(site)!r}: name query heads, as 'z.1.h3' or 'pattern.1.h3', with nothing else selected",
                site=str(site),
            )
        units = (
            range(model.body.n_units(site))
            if site.unit is None
            else (site.unit,)
            if isinstance(site.unit, int)
            else site.unit
        )
        found |= {Site("pattern", site.layer, unit): None for unit in units}
    return model.body.expand(list(found))


def _targets(rows: Tokens) -> Bool[Tensor, "score row query key"]:
    """Target keys of each query, for the three scores."""
    real = rows.mask[:, :, None] & rows.mask[:, None, :]
    earlier = torch.ones(rows.width, rows.width, dtype=torch.bool).tril(-1)
    same = (rows.ids[:, :, None] == rows.ids[:, None, :]) & real & earlier
    after = same.roll(1, 2) & earlier  # the wrapped last column is never earlier than any query
    previous = (earlier & ~earlier.tril(-2)).expand_as(real) & real
    return torch.stack([previous, same, after])


def _visible(rows: Tokens, causal: bool) -> Float[Tensor, "row query key"]:
    """1 where a query may look."""
    real = rows.mask[:, :, None] & rows.mask[:, None, :]
    return (real.tril() if causal else real).float()


def _average(
    weights: Float[Tensor, "row query key"], targets: Bool[Tensor, "score row query key"]
) -> Float[Tensor, "score row"]:
    """Weight on the targets, averaged over the queries that have any; NaN where none has."""
    asked = targets.any(-1)
    return (weights * targets).sum(-1).sum(-1) / asked.sum(-1)


def _scores(
    result: RunResult,
    heads: Sequence[Site],
    targets: Bool[Tensor, "score row query key"],
    real: Bool[Tensor, "row pos"],
) -> Float[Tensor, "row column head"]:
    """The three scores, the first token's share, and the entropy."""
    columns = []
    for site in heads:
        weights = result.activations[site].float()
        here = real.to(weights.device)
        rows, start = torch.arange(len(here), device=here.device), here.int().argmax(1)
        later = here.clone()
        later[rows, start] = False
        to_first = weights[rows, :, start].where(later, 0.0).sum(1) / later.sum(1)
        entropy = torch.special.entr(weights).sum(-1).where(here, 0.0).sum(1) / here.sum(1)
        columns.append(torch.cat([_average(weights, targets.to(weights.device)), torch.stack([to_first, entropy])]))
    return torch.stack(columns, 2).transpose(0, 1)
