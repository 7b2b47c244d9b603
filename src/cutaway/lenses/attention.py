"""Attention: where heads look, and three numbers that say whether a head looks where a known kind of head does.

A score is the attention that a query gives to its target keys, averaged over the queries that have any:

    previous    target of t: t - 1
    duplicate   targets of t: every earlier s with the token of t
    induction   targets of t: s + 1 < t for every earlier s with the token of t

Each is a share, 0 to 1. Beside it stands chance: what a head that looks evenly at everything visible would get.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance, load_tensors, require_same_model, save_tensors
from cutaway.engine import Run
from cutaway.errors import BrokenEvidence, OutOfRange, UnknownName, UsageError, did_you_mean
from cutaway.models import Model, RunResult, Site, SiteSet, Tokens
from cutaway.tasks import Batch, Task

Wanted: TypeAlias = Site | SiteSet | str | Iterable[Site | SiteSet | str]
KINDS = ("previous", "duplicate", "induction")


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
        """One row a head: its three mean scores and their chance levels; None for a score that no row has."""
        columns: dict[str, list[float | None]] = {}
        for index, kind in enumerate(KINDS):
            columns[kind] = [None if value != value else value for value in self.mean(kind).tolist()]
            level = torch.nanmean(self.chance[index]).item()
            columns[f"{kind}_chance"] = [None if level != level else level] * len(self)
        return [
            {"head": label} | {name: column[i] for name, column in columns.items()}
            for i, label in enumerate(self.labels)
        ]

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        manifest = {"kind": "head_scores", "format": 1, "labels": self.labels, "provenance": self.provenance}
        return save_tensors(Path(path), {name: getattr(self, name) for name in (*KINDS, "chance")}, manifest)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "HeadScores":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        tensors, manifest, provenance = _load(path, "head_scores", model)
        values = {name: tensors[name] for name in (*KINDS, "chance")}
        return cls(labels=tuple(manifest["labels"]), **values, provenance=provenance)

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

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        manifest = {
            "kind": "patterns",
            "format": 1,
            "labels": self.labels,
            "tokens": self.tokens,
            "provenance": self.provenance,
        }
        return save_tensors(Path(path), {"values": self.values}, manifest)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Patterns":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        tensors, manifest, provenance = _load(path, "patterns", model)
        return cls(tuple(manifest["labels"]), tensors["values"], tuple(map(tuple, manifest["tokens"])), provenance)


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
    (scores,) = plan.execute(progress=progress, reduce=lambda result, index: _scores(result, found, targets[:, index]))
    values = scores.cpu().permute(1, 2, 0)
    even = _visible(rows, model.body.causal)
    chance = _average(even / even.sum(-1, keepdim=True).clamp(min=1), targets)
    return HeadScores(tuple(map(str, found)), values[0], values[1], values[2], chance, _provenance(model, rows))


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
    return Patterns(tuple(map(str, found)), values, tuple(map(tuple, texts)), _provenance(model, tokens))


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
    result: RunResult, heads: Sequence[Site], targets: Bool[Tensor, "score row query key"]
) -> Float[Tensor, "row score head"]:
    columns = [
        _average(result.activations[site].float(), targets.to(result.activations[site].device)) for site in heads
    ]
    return torch.stack(columns, 2).transpose(0, 1)


def _provenance(model: Model, rows: Tokens) -> Provenance:
    return Provenance(model.digest, rows.digest, importlib.import_module("cutaway").__version__)


def _load(path: str | Path, kind: str, model: Model | None) -> tuple[dict[str, Tensor], dict[str, Any], Provenance]:
    tensors, manifest = load_tensors(Path(path))
    if manifest.get("kind") != kind:
        raise BrokenEvidence(
            f"{path}: holds {manifest.get('kind')!r}, not {kind}; load it with its own class", path=str(path)
        )
    provenance = Provenance(**manifest["provenance"])
    if model is not None:
        require_same_model(provenance.model, model.digest, f"{path}")
    return tensors, manifest, provenance
