"""Effects: what editing each of a list of cells did to a task's metric, example by example.

A cell is one edit, or a set of edits made together; its label is the text of its sites. The run that was edited is
the base; the other side of the pair is the target. Everything else is arithmetic on these:

    raw        = value - base                                  metric's unit; one number a cell and example
    normalised = (value - base) / mean of (target - base)      share of the gap that was crossed
    mean, share                                                one number a cell: mean effect, mean effect / mean gap

Every mean is a mean of cluster means, as in the claims: a cluster counts once, however many examples it has. The share
divides by the *mean* gap. Dividing example by example and then averaging is another number, and a bad one: an example
whose gap is near zero outweighs all others. The share is 0 for a cell without effect, 1 for an edit that makes the base
run behave like the other side, in both modes.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.artifacts import Provenance, load_tensors, require_same_model, save_tensors
from cutaway.errors import BrokenEvidence, NoBehavior, OutOfRange, TooFewClusters, UnknownName, UsageError, did_you_mean
from cutaway.figures import Bars, Figure
from cutaway.models.model import Model
from cutaway.patching.maps import drawn
from cutaway.stats import Interval, mean_interval, ratio_interval

GAP_SHARE = "share of the clean-corrupt gap"
"""Unit of shares."""

TOGETHER = " + "
"""Joins the sites of a cell that edits several at once."""

GAP_FLOOR = 1e-5
"""Mean gap, as a share of the metric's own size, below which a share of it means nothing: float32 noise."""


@dataclass(frozen=True)
class Effects:
    """Metric of every edited run, per cell and example, beside the two runs that were not edited.

    Values are in `unit`; `sign` +1 says that a larger metric means more of the behavior. Never an interval: examples
    that share a template are not independent, so intervals are made from `clusters`, not from rows.
    """

    labels: tuple[str, ...]
    """One text a cell: `z.9.h6@end`; a cell that edits several sites joins them with ` + `."""
    values: Float[Tensor, "site example"]
    """Metric of the edited run. For a gradient estimate: base plus the estimated effect."""
    clean: Float[Tensor, " example"]
    """Metric of the clean run, unedited."""
    corrupt: Float[Tensor, " example"]
    """Metric of the corrupt run, unedited."""
    on: str
    """The side that was edited, `clean` or `corrupt`: the base."""
    method: str
    """What was done: `denoise`, `noise`, `zero`, `mean`, `mean_by_position`, `resample`, `attribution`..."""
    metric: str
    unit: str
    sign: int
    clusters: tuple[str, ...]
    """Independent unit of each example."""
    ids: tuple[str, ...]
    """Name of each example."""
    provenance: Provenance
    draws: Float[Tensor, "draw site example"] | None = None
    """Metric of each draw where the edit was drawn several times; `values` is the mean over them. None: one draw."""
    details: Mapping[str, Float[Tensor, " site"]] = field(default_factory=dict)
    """Further numbers of each cell that the method states, by name; columns of the table."""

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.labels)

    @property
    def base(self) -> Float[Tensor, " example"]:
        """Metric of the run that was edited, before the edit."""
        return self.clean if self.on == "clean" else self.corrupt

    @property
    def target(self) -> Float[Tensor, " example"]:
        """Metric of the other side of each pair."""
        return self.corrupt if self.on == "clean" else self.clean

    @property
    def gap(self) -> Float[Tensor, " example"]:
        """target - base: what crossing over to the other side would change, in the metric's unit."""
        return self.target - self.base

    @property
    def raw(self) -> Float[Tensor, "site example"]:
        """value - base, in the metric's unit. Positive: the edit raised the metric."""
        return self.values - self.base

    @property
    def normalised(self) -> Float[Tensor, "site example"]:
        """Effect as a share of the mean gap: 0 no effect, 1 the whole way to the other side, per cell and example.

        The divisor is one number, the mean gap over clusters. With a clean base the usual
        (m - corrupt) / (clean - corrupt) is one minus this. Raises NoBehavior when the two sides do not differ.
        """
        return self.raw / self._mean_gap()

    def _mean_gap(self) -> float:
        gap = self._over_clusters(self.gap).mean().item()
        size = torch.cat([self.clean, self.corrupt]).abs().mean().item()
        if abs(gap) <= GAP_FLOOR * max(size, 1e-12):
            raise NoBehavior(
                f"the mean {self.metric} of clean and corrupt runs differs by {gap:.3g} {self.unit}: there is no gap "
                "to take a share of; use `raw`, or choose pairs that the model tells apart",
                gap=gap,
                metric=self.metric,
            )
        return gap

    def mean(self) -> Float[Tensor, " site"]:
        """Mean raw effect, in the metric's unit: the mean of the cluster means."""
        return self._over_clusters(self.raw).mean(1)

    def share(self) -> Float[Tensor, " site"]:
        """Mean effect / mean gap, one number a cell, as the claims estimate it: a ratio of means of cluster means.

        Raises NoBehavior as `normalised` does.
        """
        return self.mean() / self._mean_gap()

    def intervals(self, alpha: float = 0.05) -> tuple[Interval, ...]:
        """Fieller interval of the share of each cell, over clusters, in cell order.

        Raises NoBehavior as `normalised` does, TooFewClusters below the number that the level needs.
        """
        self._mean_gap()
        gap = self.gap.double().numpy()
        return tuple(ratio_interval(row, gap, self.clusters, alpha=alpha) for row in self.raw.double().numpy())

    def shares(self, alpha: float = 0.05) -> dict[str, tuple[float, float | None]]:
        """Share of the mean gap of each cell, and the half width of its interval (None where the data set no bound)."""
        halves = (half_width(interval) for interval in self.intervals(alpha))
        return {
            label: (share, half if math.isfinite(half) else None)
            for label, share, half in zip(self.labels, self.share().tolist(), halves)
        }

    def by_cluster(self) -> dict[str, Float[Tensor, " site"]]:
        """Mean raw effect of each cluster: the independent observations that an interval or a test is made from."""
        return dict(zip(sorted(set(self.clusters)), self._over_clusters(self.raw).T))

    def _over_clusters(self, values: Float[Tensor, "*site example"]) -> Float[Tensor, "*site cluster"]:
        """Mean in each cluster, clusters by name, in double precision."""
        place = {name: i for i, name in enumerate(sorted(set(self.clusters)))}
        index = torch.tensor([place[name] for name in self.clusters])
        sums = torch.zeros(*values.shape[:-1], len(place), dtype=torch.float64)
        return sums.index_add(-1, index, values.double()) / torch.bincount(index)

    def order(self, by: str = "size") -> list[int]:
        """Indices of the cells, strongest first; ties in cell order.

        Args:
            by: "size" ranks by the absolute mean effect, so that cells which work against the behavior are found too;
                "toward" ranks by how far the edit moved the metric toward the other side.
        """
        if by not in ("size", "toward"):
            raise UnknownName(f"by={by!r}: it is one of size, toward.{did_you_mean(by, ('size', 'toward'))}", name=by)
        mean = self.mean()
        strength = mean.abs() if by == "size" else mean * torch.sign(self._over_clusters(self.gap).mean())
        return torch.argsort(strength, descending=True, stable=True).tolist()

    def top(self, k: int, by: str = "size") -> tuple[str, ...]:
        """Labels of the `k` strongest cells, strongest first (all of them when there are fewer). See `order`."""
        if k < 1:
            raise OutOfRange(f"top({k}): k must be at least 1", k=k)
        return tuple(self.labels[i] for i in self.order(by)[:k])

    def table(self) -> list[dict[str, Any]]:
        """One row a cell, in cell order: mean effect, its share of the gap (None without a gap), extremes, spread.

        `effect` and `share` are those of `mean` and `share`; `low` and `high` are the ends of the share's 95 % interval
        over clusters, None where there are too few or the data set no bound. `cluster_se` is the standard error of
        `effect` over clusters, None below two of them. `lowest` and `highest` are single examples. `draw_sd`, where
        the edit was drawn several times, is the standard deviation of `effect` over draws; then come the `details`.
        """
        try:
            shares: list[float | None] = list(self.share().tolist())
        except NoBehavior:
            shares = [None] * len(self)
        means = self._over_clusters(self.raw)
        n = means.shape[1]
        spread = (means.std(1) / n**0.5).tolist() if n > 1 else [None] * len(self)
        raw = self.raw
        lows, highs = zip(*((bound(i.low), bound(i.high)) for i in self._known_intervals()))
        columns = {
            "site": self.labels,
            "effect": self.mean().tolist(),
            "share": shares,
            "low": lows,
            "high": highs,
            "cluster_se": spread,
            "lowest": raw.amin(1).tolist(),
            "highest": raw.amax(1).tolist(),
        }
        if self.draws is not None:
            columns["draw_sd"] = self._over_clusters(self.draws - self.base).mean(2).std(0).tolist()
        columns |= {name: numbers.tolist() for name, numbers in self.details.items()}
        rest = {"unit": self.unit, "examples": raw.shape[1], "clusters": n}
        return [dict(zip(columns, row)) | rest for row in zip(*columns.values())]

    def _known_intervals(self) -> tuple[Interval, ...]:
        """Intervals of the shares, without bounds where there is no gap or too few clusters."""
        try:
            return self.intervals()
        except (NoBehavior, TooFewClusters):
            return (Interval(math.nan, -math.inf, math.inf, math.nan, len(self.ids), 0, 0.05),) * len(self)

    def figures(self, cell: str | None = None) -> tuple[Figure, ...]:
        """What there is to see: a map a kind of site (layer by position, layer by head, head by position), else bars.

        Numbers are shares of the gap with the half widths of their 95 % intervals over clusters; where the two sides do
        not differ, mean effects in the metric's unit.

        Args:
            cell: the label of one cell: one bar an example instead. Raises UnknownName.
        """
        if cell is not None:
            return (self._examples(cell),)
        try:
            values, halves, unit = self.share().tolist(), [half_width(i) for i in self._known_intervals()], GAP_SHARE
        except NoBehavior:
            values, halves, unit = self.mean().tolist(), self._mean_halves(), self.unit
        title, sentence = _CAPTIONS.get(self.method, (f"Effects: {self.method}", "Each cell is one edit."))
        if unit != GAP_SHARE:
            sentence = f"Change of {self.metric}; the two sides do not differ, so there is no gap to take shares of."
        return drawn(self.labels, values, halves, title=title, sentence=sentence, unit=unit)

    def _examples(self, cell: str) -> Bars:
        row = self.select([cell]).raw[0].tolist()
        sentence = f"Change of {self.metric} on each example by the one cell {cell} ({self.method})."
        return Bars(f"{cell}, example by example", sentence, self.unit, self.ids, tuple(row))

    def _mean_halves(self) -> list[float]:
        try:
            return [half_width(mean_interval(row, self.clusters)) for row in self.raw.double().numpy()]
        except TooFewClusters:
            return [math.nan] * len(self)

    def select(self, which: str | Sequence[str] | Callable[[str], bool]) -> "Effects":
        """The cells whose label matches a pattern (`z.*`, `*@end`), is in a list, or passes a function.

        Raises UnknownName when a label of the list is not there or when nothing matches.
        """
        if callable(which):
            kept = [i for i, label in enumerate(self.labels) if which(label)]
        elif isinstance(which, str):
            kept = [i for i, label in enumerate(self.labels) if label == which or fnmatch.fnmatchcase(label, which)]
        else:
            place = {label: i for i, label in enumerate(self.labels)}
            for label in which:
                if label not in place:
                    raise UnknownName(f"no cell {label!r} in these effects.{did_you_mean(label, place)}", name=label)
            kept = [place[label] for label in which]
        if not kept:
            hint = did_you_mean(which, self.labels) if isinstance(which, str) else ""
            raise UnknownName(f"nothing matches {which!r} among {len(self)} cells.{hint}", name=str(which))
        return replace(
            self,
            labels=tuple(self.labels[i] for i in kept),
            values=self.values[kept],
            draws=None if self.draws is None else self.draws[:, kept],
            details={name: numbers[kept] for name, numbers in self.details.items()},
        )

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256. Raises UsageError for a folder."""
        if Path(path).is_dir():
            raise UsageError(
                f"{path}: this is a folder; give a file in it, such as effects.safetensors", path=str(path)
            )
        texts = {name: getattr(self, name) for name in _TEXTS}
        manifest = {"kind": "effects", "format": 1, **texts, "provenance": self.provenance}
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {} if self.draws is None else {"draws": self.draws}
        tensors |= {_DETAIL + name: numbers for name, numbers in self.details.items()}
        return save_tensors(Path(path), tensors, manifest)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Effects":
        """Read a saved file. Raises WrongModel when `model` is not the one it was made with, BrokenEvidence when the
        file is not a saved `Effects`."""
        tensors, manifest = load_tensors(Path(path))
        if manifest.get("kind") != "effects":
            raise BrokenEvidence(
                f"{path}: holds {manifest.get('kind')!r}, not effects; load it with its own class", path=str(path)
            )
        effects = _assemble(tensors, manifest, str(path))
        if model is not None:
            require_same_model(effects.provenance.model, model.digest, f"{path}")
        return effects


_CAPTIONS = {
    "denoise": (
        "What brings the answer back",
        "Each cell puts a value of the clean run into the corrupt run. 1: this alone brings the answer back; 0: it "
        "changes nothing; below 0: it makes things worse.",
    ),
    "noise": (
        "What the answer needs",
        "Each cell puts a value of the corrupt run into the clean run. 1: the answer is lost as with a corrupt prompt; "
        "0: it does not matter; below 0: it works against the answer.",
    ),
    "attribution": (
        "What a gradient says of each part",
        "Each cell is a first-order estimate of what patching would do: a ranking to be checked by real patches.",
    ),
} | {
    value: (
        "What is lost without each part",
        f"Each cell replaces a part's value by {words}. 1: the behavior is lost as on the other side; 0: the part does "
        "not matter; below 0: it works against the behavior.",
    )
    for value, words in {
        "zero": "zero",
        "mean": "its mean over the prompts",
        "mean_by_position": "its mean at each position",
        "mean_by_cluster": "its mean at each position over the prompts of the same cluster",
        "resample": "its value on another prompt",
        "optimal": "the constant that harms the model least",
        "gaussian": "itself with noise added",
    }.items()
}
"""Method to the title and the sentence of its figure."""


def half_width(interval: Interval) -> float:
    """Half the width of an interval; NaN where it has no bounds."""
    width = (interval.high - interval.low) / 2
    return width if math.isfinite(width) else math.nan


def bound(end: float) -> float | None:
    """An end of an interval; None where the data set none."""
    return end if math.isfinite(end) else None


_DETAIL = "details."
"""Before the names of details in a saved file."""
_TENSORS = ("values", "clean", "corrupt")
_TEXTS = ("labels", "on", "method", "metric", "unit", "sign", "clusters", "ids")


def _assemble(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], path: str) -> Effects:
    try:
        texts = {name: manifest[name] for name in _TEXTS}
        parts = {name: tensors[name] for name in _TENSORS}
        provenance = Provenance(**manifest["provenance"])
    except (KeyError, TypeError) as error:
        raise BrokenEvidence(
            f"{path}: a part of the saved effects is missing ({error}); save them again", path=path
        ) from None
    for name in ("labels", "clusters", "ids"):
        texts[name] = tuple(texts[name])
    n = len(texts["ids"])
    expected = {"values": (len(texts["labels"]), n), "clean": (n,), "corrupt": (n,)}
    found = {name: tuple(parts[name].shape) for name in _TENSORS}
    if found != expected or len(texts["clusters"]) != n:
        raise BrokenEvidence(
            f"{path}: tensors of shape {found} do not fit {len(texts['labels'])} cells and {n} examples; "
            "save them again",
            path=path,
        )
    draws = tensors.get("draws")
    details = {name.removeprefix(_DETAIL): item for name, item in tensors.items() if name.startswith(_DETAIL)}
    odd = [name for name, item in details.items() if tuple(item.shape) != (len(texts["labels"]),)]
    if odd or (draws is not None and tuple(draws.shape[1:]) != expected["values"]):
        raise BrokenEvidence(
            f"{path}: {', '.join(odd) or 'draws'}: not one number a cell; save the effects again", path=path
        )
    return Effects(**parts, **texts, provenance=provenance, draws=draws, details=details)
