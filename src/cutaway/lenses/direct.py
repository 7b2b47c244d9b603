"""Direct logit attribution: what each component's write, read on its own, adds to the preferred answer.

The logit of the answer minus that of the foil is linear in the last residual state once the scale of the final norm is
held at its value at this position, and the state is the sum of what was written into it:

    difference = sum over components of  slope . value  + constant

1. Run the prompts; hold every norm's scale (the rule 'norms' of models/relevance.py).
2. Pull the difference's slope back to each write with nothing passing through any other write: what is left is the
   straight way through the residual stream, whatever the architecture does to it on the way (norms after a sublayer or
   after an addition, scaled streams). A head's slope is that of its `z`, through the output projection.
3. contribution = slope . value at the position. What norms and unembedding add by themselves (biases) is one component
   more, computed from the weights; what the sum then misses of the difference is kept as the error.

What follows the unembedding is held like the scale of a norm: each logit's own factor, logit after over logit before.
A scaled model has one factor for all tokens, a soft-cap c tanh(x / c) one for each token, so that contributions sum to
the difference of the logits that the model gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance, digest
from cutaway.engine import Run
from cutaway.errors import OutOfRange, SelfCheckFailed, SiteUnavailable, TooFewClusters, UnknownName
from cutaway.figures import Bars, Figure, Heatmap
from cutaway.lenses import store
from cutaway.lenses.states import MAX_TOKENS, Progress, Steps, chunks, last_state, provenance, texts_of
from cutaway.models import Model, Site, Tokens
from cutaway.models.gradients import Gradients, backward
from cutaway.models.relevance import choose_rules
from cutaway.stats import mean_interval
from cutaway.tasks import Batch, Task

BY = ("component", "head", "neuron", "source")
AGAINST = ("foil", "mean")
CONSTANT = "constant"
"""Label of what norms and unembedding add by themselves."""
ROOM = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest error, of the largest contribution, before the decomposition is refused."""
DRAWN = 24


@dataclass(frozen=True)
class DirectAttribution:
    """What each component adds directly to the logit difference at one position, nat."""

    labels: tuple[str, ...]
    """`resid_pre.0`, `attn_write.0` or its heads `z.0.h0`..., `mlp_write.0` or its neurons, ..., `constant`. With heads
    or neurons, `attn_write.0 rest` is what the output projection's bias (and a norm's after it) adds."""
    values: Float[Tensor, "component example"]
    """Positive: speaks for the answer. The column sums to the difference."""
    difference: Float[Tensor, " example"]
    """The model's own logit of the answer minus that of the foil (or the mean logit)."""
    error: Float[Tensor, " example"]
    """Difference minus the sum of the contributions."""
    sources: Float[Tensor, "head example pos"] | None
    """With by="source": of each head's contribution what comes from each source position; NaN after the last token."""
    by: str
    against: str
    position: str
    on: str
    tokens: tuple[tuple[str, ...], ...]
    clusters: tuple[str, ...]
    ids: tuple[str, ...]
    provenance: Provenance

    def __len__(self) -> int:
        """Number of components."""
        return len(self.labels)

    def top(self, k: int = 5, kind: str = "") -> tuple[str, ...]:
        """Labels of the components with the largest mean contribution, most positive first; `kind`: how they begin."""
        if k < 1:
            raise OutOfRange(f"top(k={k}): k must be at least 1", k=k)
        mean = self.values.mean(1).tolist()
        chosen = [i for i, label in enumerate(self.labels) if label.startswith(kind) and label != CONSTANT]
        return tuple(self.labels[i] for i in sorted(chosen, key=lambda i: -mean[i])[:k])

    def of(self, label: str) -> Float[Tensor, " example"]:
        """Contributions of one component. Raises UnknownName."""
        if label not in self.labels:
            raise UnknownName(f"component {label!r}: not here; see `labels`", name=label)
        return self.values[self.labels.index(label)]

    def table(self) -> list[dict[str, Any]]:
        """One row a component, largest first: mean, 95 % interval over clusters (where there are enough), share."""
        mean, total = self.values.mean(1), self.difference.mean().item()
        rows = []
        for i in torch.argsort(mean.abs(), descending=True, stable=True).tolist():
            low, high = _interval(self.values[i], self.clusters)
            share = mean[i].item() / total if total else None
            row = {
                "component": self.labels[i],
                "contribution": mean[i].item(),
                "low": low,
                "high": high,
                "share": share,
            }
            rows.append(row | self._source(self.labels[i]))
        return rows

    def figures(self) -> tuple[Figure, ...]:
        """The largest contributions; heads as a grid; with by="source" where the largest heads take theirs from."""
        rows = self.table()[:DRAWN]
        halves = [r["high"] - r["contribution"] if r["high"] is not None else float("nan") for r in rows]
        against = "the foil" if self.against == "foil" else "the mean logit"
        found: list[Figure] = [
            Bars(
                "Direct contributions to the answer",
                f"What each component adds by itself to the logit of the answer minus {against}; they sum to it.",
                "nat",
                tuple(r["component"] for r in rows),
                tuple(r["contribution"] for r in rows),
                tuple(halves),
            )
        ]
        heads = [Site.parse(label) for label in self.labels if label.startswith("z.")]
        if heads:
            found.append(self._grid(heads))
        if self.sources is not None:
            found.append(self._of_sources(heads))
        return tuple(found)

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        return store.save(self, path, "direct_attribution")

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "DirectAttribution":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        return store.load(cls, path, "direct_attribution", model)

    def _source(self, label: str) -> dict[str, Any]:
        """Of a head the position that its contribution mostly comes from, in most examples."""
        if self.sources is None:
            return {}
        heads = [one for one in self.labels if one.startswith("z.")]
        if label not in heads:
            return {"source": None, "source_share": None}
        size = self.sources[heads.index(label)].abs().nan_to_num(nan=-1.0)
        best = size.argmax(1)
        place = int(best.mode().values)
        return {"source": place, "source_share": (best == place).double().mean().item()}

    def _grid(self, heads: Sequence[Site]) -> Heatmap:
        layers = sorted({site.layer or 0 for site in heads})
        n = max(int(site.unit) for site in heads) + 1  # type: ignore[arg-type]
        mean = dict(zip(self.labels, self.values.mean(1).tolist()))
        return Heatmap(
            "Direct contributions of heads",
            "Mean contribution of each head through the output projection; blue speaks for the answer.",
            "nat",
            "layer",
            "head",
            tuple(map(str, layers)),
            tuple(map(str, range(n))),
            tuple(tuple(mean[f"z.{layer}.h{head}"] for head in range(n)) for layer in layers),
        )

    def _of_sources(self, heads: Sequence[Site]) -> Heatmap:
        assert self.sources is not None
        size = self.values[[self.labels.index(str(site)) for site in heads]].mean(1).abs()
        chosen = torch.argsort(size, descending=True, stable=True)[:DRAWN].tolist()
        alone = len(self.tokens) == 1
        columns = self.tokens[0] if alone else tuple(map(str, range(self.sources.shape[2])))
        return Heatmap(
            "Where the heads' contributions come from",
            "Of each head's contribution the part that comes from each source position, averaged over the examples.",
            "nat",
            "head",
            "source token" if alone else "source position",
            tuple(str(heads[i]) for i in chosen),
            columns,
            tuple(tuple(self.sources[i].nanmean(0).tolist()) for i in chosen),
        )


def direct_logit_attribution(
    model: Model,
    task: Task | Batch,
    *,
    by: str = "component",
    position: str | int = "end",
    on: str = "clean",
    against: str = "foil",
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> DirectAttribution:
    """What each component adds by itself to logit(answer) - logit(foil) at one position, nat.

    contribution = slope . value at the position, the slope taken along the residual stream alone with the scales of
    norms held (and each logit's factor, where logits are scaled or soft-capped after the unembedding). Positive: for
    the answer. Source: Elhage et al. 2021; Wang et al. 2022. Cost: one forward and two backward passes; with
    by="source" one more forward pass with the kernel that shows its weights.
    Laws: contributions sum to the model's own difference; heads and the rest sum to their attention's write, sources to
    their head, neurons and the rest to their MLP.
    Misleads: only what is written straight to the logits counts: a head that the others depend on gets nothing; held
    scales hide what a component does to the norm; parts may cancel (docs/methods/direct-logit-attribution.md).
    Raises SiteUnavailable where a site is missing or the stream has no known decomposition, SelfCheckFailed where the
    sum misses the difference (a head that is no linear map of the state), UnknownName, OutOfRange.

    Args:
        by: "component" (what enters the first block, each attention, each MLP), "head", "neuron", or "source" (heads,
            and the positions their contributions come from).
        position: role or index that is read; the position's own logits.
        against: "foil", or "mean" of all logits: then it is the answer's logit above the average.
        max_tokens: tokens whose logits are held at a time. The result does not depend on it.
    """
    for name, value, allowed in (("by", by, BY), ("on", on, ("clean", "corrupt")), ("against", against, AGAINST)):
        if value not in allowed:
            raise UnknownName(f"{name}={value!r}: it is one of {', '.join(allowed)}", name=value)
    batch = task.encode(model) if isinstance(task, Task) else task
    rows = (batch.clean if on == "clean" else batch.corrupt).take(range(batch.n))
    columns = [found[0] for found in rows.columns(position)]
    parts = _parts(model, by)
    ids = [(a[0], f[0]) for a, f in zip(batch.answers, batch.foils)]
    pieces = chunks(rows, max_tokens)
    steps = Steps(progress, len(pieces) * (2 if by == "source" else 1))
    found = []
    for piece in pieces:
        some = _Piece(model, parts, rows.take(piece), [columns[i] for i in piece], [ids[i] for i in piece], against)
        found.append(some.decompose())
        steps.finish()
        if by == "source":
            found[-1] |= {"sources": some.from_sources(max(rows.lengths), steps.next())}
    joined = {name: torch.cat([one[name] for one in found], -2 if name == "sources" else -1) for name in found[0]}
    _require_sum(model, joined)
    data = digest([rows.digest, str(position), on, against, batch.answers, batch.foils])
    return DirectAttribution(
        labels=parts.labels,
        values=joined["values"].float(),
        difference=joined["difference"].float(),
        error=(joined["difference"] - joined["values"].sum(0)).float(),
        sources=joined["sources"].float() if by == "source" else None,
        by=by,
        against=against,
        position=str(position),
        on=on,
        tokens=texts_of(model, rows),
        clusters=batch.clusters,
        ids=batch.ids,
        provenance=provenance(model, data),
    )


@dataclass(frozen=True)
class _Parts:
    """What is written into the stream, and what of it is split."""

    writes: tuple[Site, ...]
    """Attention and MLP writes, in order."""
    split: Mapping[Site, Site]
    """A write, and the site whose units it is split into."""
    norms: tuple[str, ...]
    """Paths of the norms on the straight way to the logits."""
    counts: Mapping[Site, int]

    @property
    def labels(self) -> tuple[str, ...]:
        found = ["resid_pre.0"]
        for write in self.writes:
            inner = self.split.get(write)
            if inner is None:
                found.append(str(write))
                continue
            units = range(self.counts[inner])
            found += [str(inner.head(i) if inner.kind == "z" else inner.neuron(i)) for i in units] + [f"{write} rest"]
        return (*found, CONSTANT)

    @property
    def gates(self) -> list[Site]:
        return [self.split.get(write, write) for write in self.writes]


def _parts(model: Model, by: str) -> _Parts:
    """The components of a model, or SiteUnavailable with what is missing."""
    body = model.body
    last_state(model)
    if body.n_streams is not None:
        raise SiteUnavailable(
            f"{model.name} has {body.n_streams} residual streams; the sum over one stream's writes is not its state",
            reason="several streams",
        )
    writes, split, norms, counts = [], {}, [], {}
    for layer, block in enumerate(body.layers):
        if block.others or block.writes == "unknown":
            reason = (
                "it adds something besides one attention and one MLP" if block.others else "no decomposition was found"
            )
            raise SiteUnavailable(
                f"block {layer} of {model.name}: {reason}, so that contributions would not sum to the logits",
                reason=reason,
            )
        norms += [step.norm for step in block.steps if step.norm is not None]
        own = [Site(kind, layer) for kind in ("attn_write", "mlp_write") if kind in block.taps]
        writes += own
        inner = {"head": ("attn_write", "z"), "source": ("attn_write", "z"), "neuron": ("mlp_write", "mlp_act")}.get(by)
        for write in own:
            if inner is not None and write.kind == inner[0]:
                (split[write],) = body.expand([Site(inner[1], layer)])
                counts[split[write]] = body.n_units(split[write])
    if by == "source":
        body.expand([Site(kind, layer) for layer in range(body.n_layers) for kind in ("pattern", "v")])
    if not writes or (by != "component" and not split):
        raise SiteUnavailable(f"{model.name}: no writes that could be split by {by}", reason="no writes")
    final = [] if body.final_norm is None else [body.final_norm]
    return _Parts(tuple(writes), split, tuple(dict.fromkeys([*norms, *final])), counts)


class _Piece:
    """Some rows, and the slopes of their differences."""

    def __init__(
        self,
        model: Model,
        parts: _Parts,
        rows: Tokens,
        columns: Sequence[int],
        ids: Sequence[tuple[int, int]],
        against: str,
    ) -> None:
        self.model, self.parts, self.rows, self.against = model, parts, rows, against
        self.columns, self.ids = torch.tensor(columns), torch.tensor(ids)
        self.difference = torch.zeros(0)
        self.factor = torch.zeros(0)
        self.slopes: Gradients | None = None

    def decompose(self) -> dict[str, Tensor]:
        """Contributions [component example] and the model's own difference, in double precision."""
        start, norms = Site("resid_pre", 0), [Site("module", path=path) for path in self.parts.norms]
        wanted = [start, *self.parts.writes, *self.parts.split.values(), *norms]
        unembed = self.model.body.unembed
        raw = [] if unembed is None else [Site("module", path=unembed)]
        rules = choose_rules(self.model, ["norms"] if self.parts.norms else [])
        self.slopes = backward(
            self.model, self.rows, self._target, wanted, reads=raw, rules=rules, without=[self.parts.gates]
        )
        values = [self._dot(start).sum(-1)]
        for write in self.parts.writes:
            whole, inner = self._dot(write).sum(-1), self.parts.split.get(write)
            if inner is None:
                values.append(whole)
                continue
            each = self._dot(inner)
            each = each.sum(-1) if inner.kind == "z" else each
            values += [*each.unbind(-1), whole - each.sum(-1)]
        values.append(self._constant(norms))
        return {"values": torch.stack(values), "difference": self.difference}

    def from_sources(self, width: int, progress: Progress | None) -> Float[Tensor, "head example pos"]:
        """Of each head's contribution the part of each source position: pattern x (value . slope of z)."""
        assert self.slopes is not None
        cut = self.slopes.cut[0]
        reads = [Site(kind, z.layer) for z in self.parts.split.values() for kind in ("pattern", "v")]
        (result,) = engine.plan(self.model, [Run(self.rows, reads=tuple(reads))]).execute(progress=progress)
        found = []
        for z in self.parts.split.values():
            slope = self._at(cut[z])
            pattern = result.activations[Site("pattern", z.layer)].double()
            weights = pattern[torch.arange(len(self.rows)), :, self.columns.to(pattern.device)].cpu()
            v = result.activations[Site("v", z.layer)].double().cpu()
            v = v.repeat_interleave(slope.shape[1] // v.shape[2], 2)
            found.append(torch.einsum("bhk,bkhd,bhd->hbk", weights, v, slope))
        every = torch.cat(found)
        placed = torch.full((len(every), len(self.rows), width), float("nan"), dtype=every.dtype)
        for row, (first, n) in enumerate(zip(self.rows.offsets, self.rows.lengths)):
            placed[:, row, :n] = every[:, row, first : first + n]
        return placed

    def _target(self, logits: Tensor | None, reads: Mapping[Site, Tensor]) -> Tensor:
        """Sum over the rows of the difference, as a linear map of what the unembedding gives."""
        assert logits is not None  # all are asked for
        row = torch.arange(len(self.rows), device=logits.device)
        own = logits[row, self.columns.to(logits.device)]
        weights = torch.full_like(own, -1.0 / own.shape[1]) if self.against == "mean" else torch.zeros_like(own)
        ids = self.ids.to(own.device)
        weights[row, ids[:, 0]] += 1.0
        if self.against == "foil":
            weights[row, ids[:, 1]] -= 1.0
        self.difference = (own.detach().double() * weights.double()).sum(1).cpu()
        self.factor = weights
        if not reads:
            return (own * weights).sum()
        (given,) = reads.values()
        given = given.unflatten(0, logits.shape[:2]) if given.ndim == 2 else given
        before = given[row, self.columns.to(given.device)]
        (slope,) = torch.autograd.grad(own.sum(), given, retain_graph=True)
        slope = slope[row, self.columns.to(given.device)].detach()
        held = torch.where(before.abs() < 1e-4, slope, own / before).detach()
        self.factor = weights * held
        return (before * self.factor).sum()

    def _at(self, value: Tensor) -> Tensor:
        """A site's values at the position of each row, in double precision."""
        return value[torch.arange(len(self.rows)), self.columns.to(value.device)].double().cpu()

    def _dot(self, site: Site) -> Tensor:
        """Slope times value at the position, entry by entry."""
        assert self.slopes is not None
        return self._at(self.slopes.cut[0][site]) * self._at(self.slopes.activations[site])

    def _constant(self, norms: Sequence[Site]) -> Float[Tensor, " example"]:
        """What the biases of norms and unembedding add."""
        assert self.slopes is not None
        total = torch.zeros(len(self.rows), dtype=torch.float64)
        for site in norms:
            bias = getattr(self.model.submodule(site.path or ""), "bias", None)
            if isinstance(bias, Tensor):
                total += self._at(self.slopes.cut[0][site]) @ bias.detach().double().cpu()
        path = self.model.body.unembed
        bias = None if path is None else getattr(self.model.submodule(path), "bias", None)
        if isinstance(bias, Tensor):
            total += (self.factor.double() @ bias.detach().double()).cpu()
        return total


def _require_sum(model: Model, found: Mapping[str, Tensor]) -> None:
    """Refuse a decomposition that misses the model's own difference."""
    error = (found["difference"] - found["values"].sum(0)).abs().max().item()
    scale = max(found["difference"].abs().max().item(), found["values"].abs().max().item(), 1e-6)
    room = ROOM.get(model.dtype, 1e-3)
    if not error <= room * scale:
        raise SelfCheckFailed(
            f"{model.name}: contributions miss the logit difference by {error:.2g} of {scale:.2g}: what follows the "
            "last block is not a norm and a linear map, or something else is written into the stream; patch or ablate "
            "instead",
            error=error,
        )


def _interval(values: Tensor, clusters: Sequence[str]) -> tuple[float | None, float | None]:
    try:
        found = mean_interval(np.asarray(values.double().tolist()), clusters)
    except TooFewClusters:
        return None, None
    return found.low, found.high
