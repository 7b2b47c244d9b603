"""Predictions: what a claim says will happen, as a number with a threshold, and which runs measure it.

A prediction is a frozen record with three parts. `estimand(metric)` says what is estimated, in which unit, and on
which side of which threshold it must lie. `cell(sites)` says which edit of which run measures it, for the subject and
for each control alike. `score(edited, base, other)` turns metrics into one value an example. A new kind of prediction
is one class with a `kind`; `to_json` and `from_json` find it by that name.

All metrics reach `score` with larger = more of the behavior.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from cutaway.claims.neutral import neutral_task
from cutaway.errors import ClaimError, NoMinimumEffect, UnknownName, UsageError, did_you_mean
from cutaway.models import Model
from cutaway.tasks import Metric, Task

Values = Float[np.ndarray, " example"]
Side: TypeAlias = Literal["clean", "corrupt"]
ABLATIONS: tuple[str, ...] = ("resample", "mean", "mean_by_position", "zero")
CEILING = ("resid_pre.0",)
"""All that a causal model knows of its input passes here: patching it whole must carry the behavior over completely."""

REGISTRY: dict[str, type["Prediction"]] = {}
"""Kinds of prediction by name, filled when a class is defined."""


@dataclass(frozen=True)
class Cell:
    """One edited run: which sites, changed how, in which run of which inputs."""

    sites: tuple[str, ...]
    """Sites that are edited together, as text."""
    change: str
    """`other`: the value of the pair's other run. `same`: its own value (identity). Otherwise an ablation."""
    on: Side = "clean"
    """The run that is edited."""
    data: Literal["task", "neutral"] = "task"
    """The task's pairs, or neutral prompts."""


@dataclass(frozen=True)
class Estimand:
    """What a prediction estimates and where the estimate must lie."""

    text: str
    """The quantity in words."""
    unit: str
    scale: Literal["ratio", "share", "mean", "skewed"]
    """How examples are summed up: mean(value) / mean(gap), a share of examples, a mean, or a mean of skewed values."""
    side: Literal["at_least", "at_most"]
    """Side of `minimum` on which the estimate must lie. A suppressor's drop lies below a negative minimum."""
    minimum: float
    """The smallest effect that counts as the effect claimed, in `unit`."""
    controls: Literal["components", "none"]
    """`components`: matched random components must be beaten. `none`: a bound on a side effect; what exchanging the
    whole prompt does is shown beside it."""


@dataclass(frozen=True)
class Prediction(ABC):
    """One numeric, signed, thresholded statement about a subject."""

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        REGISTRY[cls.kind] = cls

    @abstractmethod
    def estimand(self, metric: Metric) -> Estimand:
        """What is estimated. Raises ClaimError when the task's metric cannot carry it."""

    @abstractmethod
    def cell(self, sites: tuple[str, ...]) -> Cell:
        """The run that measures a set of components."""

    @abstractmethod
    def score(self, edited: Values, base: Values, other: Values) -> Values:
        """Value of each example from the metrics of the edited run, the same run unedited, and the pair's other run."""

    def inputs(self, model: Model, task: Task, seed: int) -> Task:  # noqa: ARG002
        """The pairs that it is measured on: those of the task, unless the prediction is about others."""
        return task

    def placebo(self, sites: tuple[str, ...]) -> Cell:
        """The identity edit of the same sites in the same run; its effect must be exactly 0."""
        cell = self.cell(sites)
        return Cell(cell.sites, "same", cell.on, cell.data)

    def positive(self) -> Cell:
        """The planted effect: the whole input exchanged, which must give the other run's metric and be found."""
        cell = self.cell(CEILING)
        return Cell(CEILING, "other", cell.on, cell.data)

    def to_json(self) -> dict[str, Any]:
        """`{"kind": ..., field: value}`; `from_json` is the inverse."""
        return {"kind": self.kind} | {field.name: getattr(self, field.name) for field in fields(self)}

    def sentence(self, metric: Metric) -> str:
        """The prediction in words, with its number."""
        found = self.estimand(metric)
        return f"{found.text} is {found.side.replace('_', ' ')} {found.minimum:g} {found.unit}"


def from_json(record: Mapping[str, Any]) -> Prediction:
    """The prediction that `to_json` wrote. Raises UnknownName for a kind that is not registered."""
    kind = str(record.get("kind"))
    if kind not in REGISTRY:
        raise UnknownName(f"prediction {kind!r}: no such kind.{did_you_mean(kind, REGISTRY)}", name=kind)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items() if key != "kind"}
    unknown = set(given) - {field.name for field in fields(REGISTRY[kind])}
    if unknown:
        name = sorted(unknown)[0]
        hint = did_you_mean(name, [field.name for field in fields(REGISTRY[kind])])
        raise UnknownName(f"prediction {kind!r}: no option {name!r}.{hint}", name=name)
    return REGISTRY[kind](**given)


def _require(prediction: Prediction, name: str, value: float | None, rule: str, low: float, high: float) -> None:
    what = f"{type(prediction).__name__}({name}={value!r})"
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UsageError(f"{what}: {name} is a number; {rule}", value=value)
    if value is None or value == 0 or value != value:
        raise NoMinimumEffect(
            f"{what}: a prediction needs a smallest effect that counts, and 0 is none; {rule}, as in "
            f"{type(prediction).__name__}({name}=0.3)",
            value=value,
        )
    if not low <= value <= high:
        raise UsageError(f"{what}: {rule}", value=value)


def _words(ablation: str) -> str:
    return ablation.replace("_", " ")


@dataclass(frozen=True)
class Necessary(Prediction):
    """The metric drops when the subject is ablated in the clean run.

    Estimand: mean(clean - ablated) / mean(clean - corrupt), a ratio of means over clusters (`unit="gap"`), or the drop
    itself in the metric's unit (`unit="raw"`). 1: ablating it costs as much as corrupting the prompt. A negative
    `at_least` claims a suppressor: ablating it must *raise* the metric by that much. Misleads where backup components
    repair the damage: the drop is the total effect after repair.
    """

    kind: ClassVar[str] = "necessary"
    at_least: float | None = None
    """Smallest drop that counts, with its sign; 0.3 is three tenths of the gap."""
    ablation: str = "resample"
    """What replaces the subject: other prompts' values, their mean, the mean at each position, or zero."""
    unit: str = "gap"

    def __post_init__(self) -> None:
        _require(self, "at_least", self.at_least, "give a finite number that is not 0", -1e6, 1e6)
        if self.ablation not in ABLATIONS:
            raise UnknownName(
                f"ablation {self.ablation!r}: no such one.{did_you_mean(self.ablation, ABLATIONS)}", name=self.ablation
            )
        if self.unit not in ("gap", "raw"):
            raise UnknownName(f"unit {self.unit!r}: a drop is measured in units of the 'gap' or 'raw'", name=self.unit)

    def estimand(self, metric: Metric) -> Estimand:
        assert self.at_least is not None
        return Estimand(
            f"the drop of {metric.name} in the clean run when the subject is ablated ({_words(self.ablation)})",
            "of the clean-corrupt gap" if self.unit == "gap" else metric.unit,
            "ratio" if self.unit == "gap" else "mean",
            "at_least" if self.at_least > 0 else "at_most",
            float(self.at_least),
            "components",
        )

    def cell(self, sites: tuple[str, ...]) -> Cell:
        return Cell(sites, self.ablation, "clean")

    def score(self, edited: Values, base: Values, other: Values) -> Values:  # noqa: ARG002
        return base - edited


@dataclass(frozen=True)
class Sufficient(Prediction):
    """Patching the subject from the clean run into the corrupt one restores the metric (denoising).

    Estimand: mean(patched - corrupt) / mean(clean - corrupt), a ratio of means over clusters. 1: the subject alone
    brings the behavior back. Misleads for components late on the path: the last layers restore everything.
    """

    kind: ClassVar[str] = "sufficient"
    at_least: float | None = None
    """Smallest share of the gap that counts; negative for a subject that carries the foil."""

    def __post_init__(self) -> None:
        _require(self, "at_least", self.at_least, "give a finite number that is not 0", -1e6, 1e6)

    def estimand(self, metric: Metric) -> Estimand:
        assert self.at_least is not None
        return Estimand(
            f"the share of the {metric.name} gap restored by patching the subject from the clean into the corrupt run",
            "of the clean-corrupt gap",
            "ratio",
            "at_least" if self.at_least > 0 else "at_most",
            float(self.at_least),
            "components",
        )

    def cell(self, sites: tuple[str, ...]) -> Cell:
        return Cell(sites, "other", "corrupt")

    def score(self, edited: Values, base: Values, other: Values) -> Values:  # noqa: ARG002
        return edited - base


@dataclass(frozen=True)
class Mediates(Prediction):
    """Patching the subject from the corrupt run into the clean one flips the answer (noising).

    Estimand: the share of pairs whose metric is above 0 in the clean run and at or below 0 in the patched one; a pair
    that the model gets wrong to begin with counts as not flipped. Needs a metric whose sign says which answer wins.
    """

    kind: ClassVar[str] = "mediates"
    at_least: float | None = None
    """Smallest share of pairs that counts, above 0 and at most 1."""

    def __post_init__(self) -> None:
        _require(self, "at_least", self.at_least, "a share of pairs lies above 0 and at most at 1", 1e-9, 1.0)

    def estimand(self, metric: Metric) -> Estimand:
        assert self.at_least is not None
        if metric.name not in ("logit_diff", "logprob_diff"):
            raise ClaimError(
                f"Mediates on the metric {metric.name!r}: a flip is a change of sign, so the metric must be logit_diff "
                "or logprob_diff; choose another prediction or metric",
                metric=metric.name,
            )
        text = "the share of pairs whose answer flips when the subject is patched from the corrupt into the clean run"
        return Estimand(text, "of pairs", "share", "at_least", float(self.at_least), "components")

    def cell(self, sites: tuple[str, ...]) -> Cell:
        return Cell(sites, "other", "clean")

    def score(self, edited: Values, base: Values, other: Values) -> Values:  # noqa: ARG002
        return ((base > 0) & (edited <= 0)).astype(np.float64)


@dataclass(frozen=True)
class Specific(Prediction):
    """Ablating the subject hardly changes what the model says on text that has nothing to do with the task.

    Estimand: mean KL(unedited, ablated) of the next-token distribution after a neutral prompt, in nat, or for
    `unit="gap"` as a share of the KL that exchanging the whole prompt makes, by means over prompts. The subject is
    ablated at every position: neutral text has none of the task's roles. Without `neutral` the prompts are random
    tokens without repetition, which no task is about but which no text looks like either; give sentences for a claim
    about ordinary text. Each prompt is its own cluster, and 50 are needed because KL is skewed.
    """

    kind: ClassVar[str] = "specific"
    at_most: float | None = None
    """Largest mean KL that still counts as specific, in nat or as a share (see `unit`)."""
    ablation: str = "resample"
    neutral: tuple[str, ...] = ()
    """Neutral prompts; empty: `n_neutral` prompts of random tokens."""
    n_neutral: int = 100
    unit: str = "nat"
    """`nat`, or `gap`: as a share of the KL between the prompt and another one."""

    def __post_init__(self) -> None:
        _require(self, "at_most", self.at_most, "a largest KL is above 0", 1e-12, 1e6)
        if self.ablation not in ABLATIONS:
            raise UnknownName(
                f"ablation {self.ablation!r}: no such one.{did_you_mean(self.ablation, ABLATIONS)}", name=self.ablation
            )
        if self.unit not in ("nat", "gap"):
            raise UnknownName(
                f"unit {self.unit!r}: a side effect is measured in 'nat', or as a share of the 'gap'", name=self.unit
            )
        n = len(self.neutral) or self.n_neutral
        if n < MIN_NEUTRAL or len(set(self.neutral)) < len(self.neutral):
            raise UsageError(
                f"Specific with {n} neutral prompts: KL is skewed, so its interval needs {MIN_NEUTRAL}, all different; "
                "add prompts"
            )

    def estimand(self, metric: Metric) -> Estimand:  # noqa: ARG002
        assert self.at_most is not None
        text = f"the mean KL on neutral prompts when the subject is ablated ({_words(self.ablation)})"
        if self.unit == "gap":
            unit = "of the KL to another prompt"
            return Estimand(text, unit, "ratio", "at_most", float(self.at_most), "none")
        return Estimand(text, "nat", "skewed", "at_most", float(self.at_most), "none")

    def cell(self, sites: tuple[str, ...]) -> Cell:
        return Cell(tuple(site.split("@")[0] for site in sites), self.ablation, "clean", "neutral")

    def inputs(self, model: Model, task: Task, seed: int) -> Task:
        return neutral_task(model, self.neutral, n=self.n_neutral, like=task.encode(model), seed=seed)

    def score(self, edited: Values, base: Values, other: Values) -> Values:  # noqa: ARG002
        # kl reaches this with its sign turned, as less of the behavior
        return np.maximum(base - edited, 0.0)


MIN_NEUTRAL = 50
"""Fewest neutral prompts."""
