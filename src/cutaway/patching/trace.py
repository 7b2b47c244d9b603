"""Causal tracing: where a fact is read out, and what carries it on.

1. Run the clean prompt: the probability of the answer, and the values of all states.
2. Run it again with noise added to the embeddings of the subject's tokens, in several samples: the fact is gone.
3. Run the noised prompt with one state put back to its clean value, for every layer and every token from the subject's
   first on. What brings the answer back carried what the noise destroyed.

`resid` puts back one residual state; `mlp` and `attn` put back what the MLPs or the attention of a window of layers
give, as one alone is too little to be seen. A severed MLP (or attention) keeps its noised value behind a restored state
at the same token: what is then lost went through it. Source: Meng et al. 2022 (arXiv 2202.05262).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance, digest, load_tensors, require_same_model, save_tensors
from cutaway.engine import Run
from cutaway.errors import BrokenEvidence, NoBehavior, TooFewClusters, UnknownName, UsageError, did_you_mean
from cutaway.figures import Bars, Figure, Heatmap
from cutaway.models import Activations, Edit, Model, Site, Tokens
from cutaway.patching.effects import GAP_FLOOR, bound, half_width
from cutaway.patching.measure import MAX_TOKENS, Progress, choose, encode, only, provenance, scorer, stage
from cutaway.stats import Interval, mean_interval, ratio_interval
from cutaway.tasks import Batch, Task
from cutaway.tasks.align import role_tokens

KINDS = {"resid": "resid_pre", "mlp": "mlp_out", "attn": "attn_out"}
"""What can be restored, and the site of it."""
PLACES = ("subject first", "subject middle", "subject last", "next", "between", "end")
"""Tokens by their place in the prompt. A subject of one token is `subject last`; `next` is the token behind it, `end`
the last one of the prompt."""
NOISE, SAMPLES = 3.0, 10
"""Noise in standard deviations of the subjects' embeddings, and how many noises, as in the paper."""
WIDEST = 10
"""Most layers of a window by default; models with fewer than 40 layers get a quarter of theirs."""
TOTAL_SHARE = "share of the total effect"


@dataclass(frozen=True)
class Trace:
    """Metric of the clean run, of the noised runs, and of the noised runs with one state restored.

    Columns count tokens from the first one of the subject; an example without that many has NaN there.
    """

    labels: tuple[str, ...]
    """What is restored, one row each: `resid_pre.3`, `mlp_out.2:5`."""
    kinds: tuple[str, ...]
    """Of each row `resid`, `mlp` or `attn`."""
    restored: Float[Tensor, "row column example"]
    """Metric with the clean state put back, mean over samples."""
    null: Float[Tensor, "row column example"] | None
    """The same with the state of another noised run put in instead: what chance restores. None: not asked for."""
    clean: Float[Tensor, " example"]
    """Metric of the clean run."""
    noised: Float[Tensor, "sample example"]
    """Metric of each noised run."""
    spans: tuple[int, ...]
    """Of each example the number of its subject's tokens."""
    tokens: tuple[tuple[str, ...], ...]
    """Of each example its tokens from the subject's first to the last of the prompt."""
    noise: float
    """Standard deviation of the noise, in standard deviations of the subjects' embeddings."""
    sigma: float
    """The same in the embeddings' own unit."""
    window: int
    """Layers of a window of `mlp` and `attn`; those at the ends of the model are cut."""
    severed: str | None
    """What kept its noised values behind the restored state."""
    metric: str
    unit: str
    sign: int
    clusters: tuple[str, ...]
    ids: tuple[str, ...]
    provenance: Provenance

    def __len__(self) -> int:
        """Number of rows: states, or windows, that were restored."""
        return len(self.labels)

    @property
    def total_effect(self) -> Float[Tensor, " example"]:
        """clean - noised, in the metric's unit: what the noise destroyed, mean over samples."""
        return self.clean - self.noised.mean(0)

    @property
    def indirect_effect(self) -> Float[Tensor, "row column example"]:
        """restored - noised, in the metric's unit: what the restored state alone brings back; NaN outside a prompt."""
        return self.restored - self.noised.mean(0)

    @property
    def places(self) -> tuple[tuple[str, ...], ...]:
        """Of each example the place of each of its columns, a name of PLACES."""
        return tuple(
            tuple(_place(column, span, len(tokens)) for column in range(len(tokens)))
            for span, tokens in zip(self.spans, self.tokens)
        )

    def by_place(
        self, values: Float[Tensor, "row column example"] | None = None
    ) -> dict[str, Float[Tensor, "row example"]]:
        """Indirect effects (or other values) by place, the mean over an example's tokens there; NaN where it has none.

        Only places that some example has.
        """
        values = self.indirect_effect if values is None else values
        found: dict[str, Tensor] = {}
        for name in PLACES:
            held = torch.zeros(values.shape[1:], dtype=torch.bool)
            for example, names in enumerate(self.places):
                held[: len(names), example] = torch.tensor([one == name for one in names])
            if held.any():
                sums = values.where(held, 0.0).sum(1)
                found[name] = torch.where(held.any(0), sums / held.sum(0), math.nan)
        return found

    def share(self, row: int, place: str) -> Interval:
        """Mean indirect effect / mean total effect at one place, with its 95 % interval over clusters (Fieller).

        Without bounds where there are too few clusters. Raises NoBehavior when the noise changed nothing.
        """
        return self._share(self._at(self.by_place(), place)[row])

    def _at(self, values: Mapping[str, Tensor], place: str) -> Tensor:
        if place not in values:
            raise UnknownName(f"place {place!r}: no example has it.{did_you_mean(place, values)}", name=place)
        return values[place]

    def _share(self, effect: Float[Tensor, " example"]) -> Interval:
        self._require_total()
        kept = [i for i, known in enumerate(effect.isfinite().tolist()) if known]
        top, bottom = (part[kept].double().numpy() for part in (effect, self.total_effect))
        names = [self.clusters[i] for i in kept]
        try:
            return ratio_interval(top, bottom, names)
        except TooFewClusters:
            ratio = float(_over_clusters(top, names) / _over_clusters(bottom, names))
            return Interval(ratio, -math.inf, math.inf, math.nan, len(kept), len(set(names)), 0.05)

    def _require_total(self) -> None:
        total = abs(_over_clusters(self.total_effect.double().numpy(), self.clusters))
        if not total > GAP_FLOOR * max(float(self.clean.abs().mean()), 1e-12):
            raise NoBehavior(
                f"the noise changes the mean {self.metric} by {total:.3g} {self.unit}, so there is nothing to restore; "
                "use more noise (noise=), or a task that the model can do",
                metric=self.metric,
            )

    def table(self) -> list[dict[str, Any]]:
        """One row a state and place: mean indirect effect, its share of the total effect with the ends of its 95 %
        interval over clusters, and the share that chance restores. None for what is not known."""
        places = self.by_place()
        null = {} if self.null is None else self.by_place(self.null - self.noised.mean(0))
        rows = []
        for row, label in enumerate(self.labels):
            for name, values in places.items():
                known = values[row].isfinite()
                names = [cluster for cluster, one in zip(self.clusters, known.tolist()) if one]
                cell: dict[str, Any] = {"site": label, "place": name}
                cell["effect"] = _over_clusters(values[row][known].double().numpy(), names)
                try:
                    found = self._share(values[row])
                    chance = self._share(null[name][row]).estimate if null else None
                    cell |= {"share": found.estimate, "low": bound(found.low), "high": bound(found.high)}
                    cell["chance"] = chance
                except NoBehavior:
                    cell |= dict.fromkeys(("share", "low", "high", "chance"))
                rows.append(cell | {"unit": self.unit, "examples": int(known.sum()), "clusters": len(set(names))})
        return rows

    def summary(self) -> dict[str, float | int | str | None]:
        """Numbers of the whole trace: the mean metric clean and noised, what restores most, and what chance does.

        The last token is left out of that where there are others: late enough, its state is the answer.
        """
        rows = [row for row in self.table() if row["share"] is not None]
        rows = [row for row in rows if row["place"] != PLACES[-1]] or rows
        best = max(rows, key=lambda row: row["share"], default=None)
        chances = [row["chance"] for row in rows if row["chance"] is not None]
        return {
            "clean": _over_clusters(self.clean.double().numpy(), self.clusters),
            "noised": _over_clusters(self.noised.mean(0).double().numpy(), self.clusters),
            "best": None if best is None else f"{best['site']} at {best['place']}",
            "best_share": None if best is None else best["share"],
            "best_share_by_chance": max(chances, default=None),
            "noise": self.noise,
            "samples": len(self.noised),
            "window": self.window,
            "severed": self.severed,
        }

    def figures(self, example: str | None = None) -> tuple[Figure, ...]:
        """A map of each kind, layer by place, in shares of the total effect; and the metric of the runs as bars.

        Args:
            example: the id of one example: layer by token instead, in the metric's unit. Raises UnknownName.
        """
        if example is not None:
            return self._of_example(example)
        found: list[Figure] = []
        for kind in dict.fromkeys(self.kinds):
            rows = [row for row, one in enumerate(self.kinds) if one == kind]
            found.append(self._map(kind, rows, self.by_place(), _TITLES[kind], _SENTENCES[kind] + self._behind()))
            if self.null is not None and kind == "resid":
                null = self.by_place(self.null - self.noised.mean(0))
                sentence = "The same cells with the state of another noised run put in: what is seen here is chance."
                found.append(self._map(kind, rows, null, "What chance restores", sentence))
        return (*found, self._runs())

    def _behind(self) -> str:
        if self.severed is None:
            return ""
        return f" Behind the restored state the {_WORDS[self.severed]} of its token kept their noised values."

    def _map(self, kind: str, rows: Sequence[int], places: Mapping[str, Tensor], title: str, sentence: str) -> Heatmap:
        unit = TOTAL_SHARE
        try:
            cells = [[self._share(places[name][row]) for name in places] for row in rows]
        except NoBehavior:
            unit = self.unit
            cells = [[_mean(places[name][row], self.clusters) for name in places] for row in rows]
        halves = tuple(tuple(half_width(cell) for cell in line) for line in cells)
        return Heatmap(
            title,
            sentence,
            unit,
            "residual state" if kind == "resid" else f"{_WORDS[kind]} of layers",
            "token",
            tuple(self.labels[row] for row in rows),
            tuple(places),
            tuple(tuple(cell.estimate for cell in line) for line in cells),
            halves if any(math.isfinite(half) for line in halves for half in line) else None,
        )

    def _runs(self) -> Bars:
        """The metric of clean and noised runs, and of those with the best and the best random state put in."""
        parts = {"clean": self.clean, "subject noised": self.noised.mean(0)}
        for name, values in (("best state restored", self.restored), ("best by chance", self.null)):
            if values is None:
                continue
            places = self.by_place(values)
            early = {place: found for place, found in places.items() if place != PLACES[-1]} or places
            rows = [row for found in early.values() for row in found]
            whole = [row for row in rows if row.isfinite().all()] or rows
            parts[name] = max(whole, key=lambda row: self.sign * float(row.nanmean()))
        found = [_mean(values, self.clusters) for values in parts.values()]
        halves = tuple(map(half_width, found))
        return Bars(
            f"Metric of the runs: {self.metric}",
            f"Mean over clusters; noise of {self.noise:g} standard deviations of the subjects' embeddings "
            f"({self.sigma:.3g}), {len(self.noised)} samples.",
            self.unit,
            tuple(parts),
            tuple(one.estimate for one in found),
            halves if any(map(math.isfinite, halves)) else None,
        )

    def _of_example(self, example: str) -> tuple[Figure, ...]:
        if example not in self.ids:
            raise UnknownName(f"example {example!r}: not traced here.{did_you_mean(example, self.ids)}", name=example)
        index = self.ids.index(example)
        tokens = tuple(f"{i} {text}" for i, text in enumerate(self.tokens[index]))
        effect = self.indirect_effect[:, : len(tokens), index].tolist()
        found: list[Figure] = []
        for kind in dict.fromkeys(self.kinds):
            rows = [row for row, one in enumerate(self.kinds) if one == kind]
            sentence = (
                f"{_SENTENCES[kind]} Clean {float(self.clean[index]):.3g}, noised "
                f"{float(self.noised[:, index].mean()):.3g} {self.unit}."
            )
            found.append(
                Heatmap(
                    f"{_TITLES[kind]}: {example}",
                    sentence + self._behind(),
                    self.unit,
                    "residual state" if kind == "resid" else f"{_WORDS[kind]} of layers",
                    "token",
                    tuple(self.labels[row] for row in rows),
                    tokens,
                    tuple(tuple(effect[row]) for row in rows),
                )
            )
        return tuple(found)

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256. Raises UsageError for a folder."""
        if Path(path).is_dir():
            raise UsageError(f"{path}: this is a folder; give a file in it, such as trace.safetensors", path=str(path))
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {} if self.null is None else {"null": self.null}
        manifest = {"kind": "trace", "format": 1, **{name: getattr(self, name) for name in _PLAIN}}
        return save_tensors(Path(path), tensors, {**manifest, "provenance": self.provenance})

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Trace":
        """Read a saved file. Raises WrongModel when `model` is not the one it was made with, BrokenEvidence when the
        file is not a saved `Trace`."""
        tensors, manifest = load_tensors(Path(path))
        if manifest.get("kind") != "trace":
            raise BrokenEvidence(
                f"{path}: holds {manifest.get('kind')!r}, not a trace; load it with its own class", path=str(path)
            )
        try:
            parts: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
            told: dict[str, Any] = {name: manifest[name] for name in _PLAIN}
            made = Provenance(**manifest["provenance"])
        except (KeyError, TypeError) as error:
            raise BrokenEvidence(
                f"{path}: a part of the saved trace is missing ({error}); save it again", path=str(path)
            ) from None
        for name in ("labels", "kinds", "spans", "clusters", "ids"):
            told[name] = tuple(told[name])
        told["tokens"] = tuple(map(tuple, told["tokens"]))
        shape, n = tuple(parts["restored"].shape), len(told["ids"])
        if (shape[0], shape[-1], len(parts["clean"]), parts["noised"].shape[-1]) != (len(told["labels"]), n, n, n):
            raise BrokenEvidence(
                f"{path}: tensors of shape {shape} do not fit {len(told['labels'])} rows and {n} examples; "
                "save it again",
                path=str(path),
            )
        found = cls(**parts, **told, null=tensors.get("null"), provenance=made)
        if model is not None:
            require_same_model(made.model, model.digest, f"{path}")
        return found


_TENSORS = ("restored", "clean", "noised")
_PLAIN = (
    "labels", "kinds", "spans", "tokens", "noise", "sigma", "window", "severed", "metric", "unit", "sign", "clusters",
    "ids",
)  # fmt: skip
_WORDS = {"mlp": "MLPs", "attn": "attention"}
_TITLES = {
    "resid": "Where the fact is carried",
    "mlp": "Where MLPs add the fact",
    "attn": "Where attention moves the fact",
}
_SENTENCES = {
    "resid": "Each cell puts one clean residual state back into the noised run. 1: it alone restores the answer; 0: it "
    "restores nothing.",
    "mlp": "Each cell puts back what the MLPs of a window of layers gave at one token in the clean run. 1: it alone "
    "restores the answer; 0: it restores nothing.",
    "attn": "Each cell puts back what the attention of a window of layers gave at one token in the clean run. 1: it "
    "alone restores the answer; 0: it restores nothing.",
}


def trace(
    model: Model,
    task: Task | Batch,
    *,
    role: str = "subject",
    noise: float = NOISE,
    samples: int = SAMPLES,
    kinds: Sequence[str] | None = None,
    window: int | None = None,
    severed: str | None = None,
    metric: str = "prob",
    null: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Trace:
    """Which states, put back to their clean values, restore the answer after the subject was noised.

    indirect effect = m(noised, state restored) - m(noised), the mean over samples, in the metric's unit; its share of
    the total effect m(clean) - m(noised) is a ratio of means over clusters. Source: Meng et al. 2022.
    Cost: one clean run, and a sample one noised run and one run for each state and token from the subject on, of which
    only the layers and tokens behind the state are computed; twice that with `null`.
    Laws: noise 0 gives exactly 0; where the subject ends the prompt, each state of it gives the whole total effect;
    severed behind the last layer is not severed.
    Misleads: noise is no counterfactual and throws the model off its distribution; a state counts as carrier whether or
    not anything reads it in other prompts; a wide window shows what several layers do together
    (docs/methods/causal-tracing.md).
    Raises DataError where a pair has no such role, UsageError for a Batch (its roles are single tokens).

    Args:
        role: the tokens that are noised: all tokens of this role's span.
        noise: standard deviation of the noise, in standard deviations of the embeddings of those tokens, all entries
            pooled.
        samples: noises for each pair.
        kinds: of "resid", "mlp", "attn"; None: all three, or "resid" alone with `severed`.
        window: layers that are restored together for "mlp" and "attn", centred, cut at the ends of the model. None: a
            quarter of the layers, at most 10.
        severed: "mlp" or "attn": at the restored token, those of the layers behind it keep their noised values.
        metric: a name of `cutaway.tasks.METRICS`; the probability of the answer, as in the paper.
        null: restore also from another noised run, which shows what chance gives.
    """
    if not isinstance(task, Task):
        raise UsageError(
            f"task: a {type(task).__name__}; tracing needs the spans of a Task, as cutaway.tasks.get gives it"
        )
    chosen = _kinds(kinds, severed)
    if not (math.isfinite(noise) and noise >= 0):
        raise UsageError(f"noise={noise}: standard deviations of the embeddings, so a number from 0 on; 3 is usual")
    if samples < 1:
        raise UsageError(f"samples={samples}: at least one noise is needed; 10 is usual")
    width = _window(model, window)
    batch = encode(model, replace(task, metric=metric))
    noised = Noised.of(model, batch, role_tokens(task.pairs, role, model), noise, seed)
    cells = _cells(model, chosen, width)
    columns = max(len(names) for names in noised.shown)
    shape = (len(cells), columns, batch.n)
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name in (("restored", "null") if null else ("restored",))}
    clean_sites = tuple(dict.fromkeys(site for cell in cells for site in cell.members))
    lasting = _kept(model, cells, severed)
    score = {"logits": batch.logits, "vocab": batch.vocab}
    clean_run = Run(noised.tokens, reads=clean_sites, **score)
    (clean,) = engine.plan(model, [clean_run], max_tokens=max_tokens).execute()
    before: list[Tensor] = []
    following: Activations | None = None
    for sample in range(samples):
        acts = following if following is not None else noised.capture(model, sample, lasting)
        following = other = noised.capture(model, sample + 1, {*lasting, *clean_sites}) if null else None
        edits = noised.edits(sample)
        donors = [clean.activations, *([other] if other is not None else [])]
        runs = [Run(noised.tokens, edits, **score)]
        for donor in donors:
            for cell in cells:
                runs += [
                    Run(noised.tokens, cell.edits(edits, acts, donor, at, severed, model), **score)
                    for at in noised.roles[:columns]
                ]
        told = stage(progress, sample, samples)
        plan = engine.plan(model, runs, max_tokens=max_tokens)
        base, *values = (
            batch.combine(found).detach().cpu() for found in plan.execute(progress=told, reduce=scorer(batch))
        )
        before.append(base)
        each = torch.stack(values).view(len(donors), *shape)
        for name, part in zip(sums, each):
            sums[name] += part
    inside = torch.tensor([[column < len(names) for names in noised.shown] for column in range(columns)])
    known = {name: (values / samples).where(inside, math.nan) for name, values in sums.items()}
    return Trace(
        labels=tuple(cell.label for cell in cells),
        kinds=tuple(cell.kind for cell in cells),
        restored=known["restored"],
        null=known.get("null"),
        clean=_scored(batch, clean.logits).double(),
        noised=torch.stack(before).double(),
        spans=tuple(map(len, noised.spans)),
        tokens=noised.shown,
        noise=float(noise),
        sigma=noised.sigma,
        window=width,
        severed=severed,
        metric=batch.metric.name,
        unit=batch.metric.unit,
        sign=batch.metric.sign,
        clusters=batch.clusters,
        ids=batch.ids,
        provenance=provenance(model, batch, seed),
    )


@dataclass(frozen=True)
class Noised:
    """The clean rows with what is needed to noise and to address them."""

    tokens: Tokens
    """The rows, with a role for each token from the subject's first on; a row that is over has its end there."""
    spans: tuple[tuple[int, ...], ...]
    """Of each pair the subject's tokens."""
    shown: tuple[tuple[str, ...], ...]
    """Of each pair the texts of its tokens from the subject's first on."""
    sigma: float
    """Standard deviation of the noise."""
    size: int
    """Width of an embedding."""
    key: str

    @staticmethod
    def of(model: Model, batch: Batch, spans: list[tuple[int, ...]], noise: float, seed: int) -> "Noised":
        """Cost: one forward pass that ends at the embeddings."""
        rows, copies = batch.clean, len(batch.clean) // batch.n
        ends = rows.roles["end"]
        columns = max(end - span[0] + 1 for end, span in zip(ends, spans))
        roles = {
            f"{_FROM}{column}": tuple(min(span[0] + column, end) for span, end in zip(spans * copies, ends))
            for column in range(columns)
        }
        embedded = model.capture(rows, "embed")["embed"]
        real = [
            embedded[row, offset + at] for row, (span, offset) in enumerate(zip(spans, rows.offsets)) for at in span
        ]
        shown = tuple(tuple(model.strings(rows.row(i)[span[0] : ends[i] + 1])) for i, span in enumerate(spans))
        spread = float(torch.stack(real).float().std(correction=0))
        tokens = replace(rows, roles={**rows.roles, **roles})
        return Noised(tokens, tuple(spans), shown, noise * spread, embedded.shape[-1], digest([seed, len(spans)]))

    @property
    def roles(self) -> list[str]:
        """The added roles, in order."""
        return [name for name in self.tokens.roles if name.startswith(_FROM)]

    def edits(self, sample: int) -> tuple[Edit, ...]:
        """Noise on the subject's embeddings, the same in all rows of a pair; nothing where the noise is 0."""
        if self.sigma == 0:
            return ()
        chance = torch.Generator().manual_seed(int(digest([self.key, sample])[:15], 16))
        drawn = torch.randn(len(self.spans), max(map(len, self.spans)), self.size, generator=chance)
        value = torch.zeros(len(self.tokens), self.tokens.width, self.size)
        for row, offset in enumerate(self.tokens.offsets):
            span = self.spans[row % len(self.spans)]
            value[row, [offset + at for at in span]] = drawn[row % len(self.spans), : len(span)]
        return (Site("embed").add(value, scale=self.sigma),)

    def capture(self, model: Model, sample: int, sites: set[Site]) -> Activations | None:
        """Values of a noised run; None when none are asked for."""
        if not sites:
            return None
        return model.run(self.tokens, self.edits(sample), reads=sorted(sites, key=str), logits="none").activations


_FROM = "from_subject_"


@dataclass(frozen=True)
class Restored:
    """A row of the maps: what is put back together."""

    kind: str
    label: str
    members: tuple[Site, ...]
    entry: Site
    """The residual state that enters the first block of it."""

    def cut(self, model: Model, severed: str | None) -> tuple[Site, ...]:
        """What keeps its noised values behind the restored state."""
        if severed is None or self.members[0].kind == "resid_post":
            return ()
        first = self.members[0].layer or 0
        return tuple(Site(KINDS[severed], layer) for layer in range(first, model.body.n_layers))

    def lasting(self, model: Model, severed: str | None) -> tuple[Site, ...]:
        """What is needed of the noised run."""
        cut = self.cut(model, severed)
        return (self.entry, *cut) if len(self.members) + len(cut) > 1 else ()

    def edits(
        self,
        noise: tuple[Edit, ...],
        acts: Activations | None,
        donor: Activations,
        role: str,
        severed: str | None,
        model: Model,
    ) -> tuple[Edit, ...]:
        """The noised run with the members restored at a role.

        With one state restored, the planner starts from the noised run; with several, from the noised state that enters
        the first of their blocks.
        """
        restored = [site.at(role).patch(only(donor, site)) for site in self.members]
        cut = self.cut(model, severed)
        if not noise:  # the noised run is the clean one: what is put back is there already, to the last digit
            return ()
        if len(restored) + len(cut) == 1:
            return *noise, *restored
        assert acts is not None  # `lasting` asked for it
        silent = [site.at(role).patch(only(acts, site)) for site in cut]
        return self.entry.patch(only(acts, self.entry)), *restored, *silent


def _cells(model: Model, kinds: Sequence[str], width: int) -> list[Restored]:
    """Rows of all maps. Raises SiteUnavailable for what the model does not have."""
    depth = model.body.n_layers
    found: list[Restored] = []
    for kind in kinds:
        for layer in range(depth):
            low, high = max(0, layer - width // 2), min(depth, layer - width // 2 + width)
            layers = [layer] if kind == "resid" else list(range(low, high))
            members = tuple(Site(KINDS[kind], one) for one in layers)
            window = f"{KINDS[kind]}.{layers[0]}" + (f":{layers[-1] + 1}" if width > 1 and kind != "resid" else "")
            found.append(Restored(kind, window, members, Site("resid_pre", layers[0])))
        if kind == "resid":
            last = Site("resid_post", depth - 1)
            found.append(Restored(kind, str(last), (last,), last))
    model.body.expand([site for cell in found for site in cell.members])
    return list({cell.label: cell for cell in found}.values())


def _kept(model: Model, cells: Sequence[Restored], severed: str | None) -> set[Site]:
    return {site for cell in cells for site in cell.lasting(model, severed)}


def _kinds(kinds: Sequence[str] | None, severed: str | None) -> tuple[str, ...]:
    if severed is not None:
        choose("severed", severed, ("mlp", "attn"))
    chosen = ("resid",) if kinds is None and severed else tuple(KINDS) if kinds is None else tuple(kinds)
    if isinstance(kinds, str) or not chosen:
        raise UsageError(f"kinds={kinds!r}: give a list of {', '.join(KINDS)}, as in kinds=['resid']")
    for kind in chosen:
        choose("kinds", kind, tuple(KINDS))
    if severed is not None and chosen != ("resid",):
        raise UsageError(
            f"severed={severed!r}: what is severed lies behind a restored state; leave out kinds, or give ['resid']"
        )
    return tuple(dict.fromkeys(chosen))


def _window(model: Model, window: int | None) -> int:
    depth = model.body.n_layers
    if window is None:
        return max(1, min(WIDEST, depth // 4))
    if isinstance(window, bool) or not 1 <= window <= depth:
        raise UsageError(f"window={window}: {model.name} has {depth} layers, so a window holds 1 to {depth}")
    return window


def _place(column: int, span: int, length: int) -> str:
    if column < span:
        return PLACES[2] if column == span - 1 else PLACES[0] if column == 0 else PLACES[1]
    return PLACES[5] if column == length - 1 else PLACES[3] if column == span else PLACES[4]


def _scored(batch: Batch, logits: Tensor | None) -> Tensor:
    assert logits is not None  # the clean run asked for them
    if batch.vocab is not None:
        return batch.combine(batch.picked_scores(logits)).detach().cpu()
    return batch.values(logits).detach().cpu()


def _over_clusters(values: np.ndarray, clusters: Sequence[str]) -> float:
    """Mean of the cluster means."""
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return float((np.bincount(index, weights=values, minlength=len(names)) / np.bincount(index)).mean())


def _mean(values: Tensor, clusters: Sequence[str]) -> Interval:
    """Mean over clusters with its t interval; without bounds where there are too few."""
    kept = [i for i, known in enumerate(values.isfinite().tolist()) if known]
    numbers, names = values[kept].double().numpy(), [clusters[i] for i in kept]
    try:
        return mean_interval(numbers, names)
    except TooFewClusters:
        estimate = _over_clusters(numbers, names)
        return Interval(estimate, -math.inf, math.inf, math.nan, len(kept), len(set(names)), 0.05)
