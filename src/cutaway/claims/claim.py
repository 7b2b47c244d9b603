"""A claim: a sentence about a mechanism, made into numbers before it is tested.

    claim = Claim("Head 1.3 is the induction head", ("z.1.h3",), "induction", (Necessary(at_least=0.3),))
    frozen = claim.freeze(model, task, search=64)          # predictions, data, model, code, controls: hashed
    result = frozen.run(model, task, ledger)               # opens the confirm split, once
    result.verdict                                         # supported / refuted / inconclusive / invalid

`freeze` looks at the explore and calibrate splits alone. `run` refuses when anything that was hashed differs.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from cutaway.artifacts import digest, plain, write_json
from cutaway.claims import registration
from cutaway.claims.controls import same_component
from cutaway.claims.evidence import gather
from cutaway.claims.ledger import Ledger
from cutaway.claims.prediction import Prediction, from_json
from cutaway.claims.verdict import verdict
from cutaway.errors import BrokenEvidence, ClaimChanged, ClaimError, NoMinimumEffect, OutOfRange, UsageError
from cutaway.models import Model, Site
from cutaway.tasks import Task

Progress: TypeAlias = Callable[[int, int], None]
MAX_TOKENS = 4096
"""Tokens of one forward pass, by default; the result does not depend on it."""


@dataclass(frozen=True)
class Claim:
    """What is said of a subject, and the predictions that must all hold for it to be supported."""

    sentence: str
    """The claim in words."""
    subject: tuple[str, ...]
    """Sites of the components, as text: `z.1.h3` or `z.1.h3@end`. They are edited together."""
    task: str
    """Name of the task that the behavior is."""
    predictions: tuple[Prediction, ...]
    """All must hold."""
    alpha: float = 0.05
    """Level of each test; intervals are two-sided at 1 - alpha."""
    n_controls: int = 99
    """Matched random components to draw, where there are more."""
    seed: int = 0
    """Of the choice of controls, donors and neutral prompts."""
    exclude: tuple[str, ...] = ()
    """Components that are known to take part as well: not drawn as controls. Frozen and shown."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "subject", _components(self.subject, "subject"))
        object.__setattr__(self, "exclude", _components(self.exclude, "exclude") if self.exclude else ())
        _require_apart(self.subject, self.exclude)
        if not self.sentence.strip():
            raise UsageError("a claim needs a sentence that says what is claimed; it is empty")
        object.__setattr__(self, "predictions", _predictions(self.predictions))
        if not self.predictions:
            raise NoMinimumEffect(
                f"claim {self.sentence!r} predicts nothing; add at least one prediction with a smallest effect, as in "
                "Necessary(at_least=0.3)"
            )
        if not 0 < self.alpha <= 0.2:
            raise UsageError(f"alpha {self.alpha}: the level of a test lies above 0 and at most at 0.2; 0.05 is usual")
        require_integer("seed", self.seed, 0)
        least = math.ceil(1 / self.alpha - 1e-9) - 1
        if self.n_controls < least:
            raise UsageError(
                f"n_controls {self.n_controls}: at alpha = {self.alpha:g} a rank needs at least {least}; 99 is usual"
            )

    def freeze(
        self, model: Model, task: Task, *, search: int, ledger: Ledger | None = None, progress: Progress | None = None
    ) -> "FrozenClaim":
        """Register the claim: choose controls, hash what it rests on, say what it can be expected to show.

        Nothing of the confirm split is run. Cost: one measurement of the subject on the calibrate split (with explore
        where calibrate is small), without controls. Raises TooFewClusters, ClaimError without controls or with a metric
        that a prediction cannot use, UsageError for another task.

        Args:
            search: number of cells that were tried before this claim was written; it is shown with the verdict.
            ledger: where the registration is recorded now; without it, `run` records it. A claim that is recorded after
                another plan has opened some of the same prompts for some of the same components is exploratory.
        """
        plan = registration.make_plan(self, model, task, search=search, max_tokens=MAX_TOKENS, progress=progress)
        frozen = FrozenClaim(plan)
        if ledger is not None:
            ledger.register(frozen.sha256, frozen.plan)
        return frozen

    def to_json(self) -> dict[str, Any]:
        """JSON types; `Claim.from_json` is the inverse."""
        record = {
            name: getattr(self, name)
            for name in ("sentence", "subject", "task", "alpha", "n_controls", "seed", "exclude")
        }
        return plain(record | {"predictions": [prediction.to_json() for prediction in self.predictions]})

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Claim":
        """The claim that `to_json` wrote."""
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        given["predictions"] = tuple(from_json(item) for item in record["predictions"])
        return cls(**given)


@dataclass(frozen=True)
class FrozenClaim:
    """A registered claim: canonical JSON whose hash is its name."""

    plan: Mapping[str, Any]
    """The frozen plan (docs/design/claims.md has its fields)."""
    sha256: str = field(init=False)
    """SHA-256 of the plan's canonical JSON."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", plain(self.plan))
        object.__setattr__(self, "sha256", digest(self.plan))

    @property
    def claim(self) -> Claim:
        """The claim in it."""
        return Claim.from_json(self.plan["claim"])

    @property
    def power(self) -> list[Mapping[str, Any]]:
        """For each prediction, what the confirm split can be expected to show."""
        return list(self.plan["power"])

    def run(
        self,
        model: Model,
        task: Task,
        ledger: Ledger,
        *,
        progress: Progress | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> "ClaimResult":
        """Test the claim on the confirm split and record the result.

        Cost: a run for the subject and for each control and prediction, in one plan, and a few for the instruments.
        Raises ClaimChanged when model, data, code or plan differ from what was frozen, SplitOpened when the plan has a
        result. A plan that was interrupted before its result may run again; the ledger shows it.
        """
        self._require_unchanged(model, task)
        ledger.register(self.sha256, self.plan)
        seen = registration.seen_before(self.sha256, ledger.entries())
        ledger.open_split(
            self.sha256,
            {"split": "confirm", "data": self.plan["task"]["splits"]["confirm"]["digest"], "seen_before": seen},
        )
        result = self._measured(model, task, changed=[], seen=seen, progress=progress, max_tokens=max_tokens)
        ledger.append("result", self.sha256, result.record)
        return result

    def rerun(
        self,
        model: Model,
        task: Task,
        ledger: Ledger,
        *,
        reason: str,
        progress: Progress | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> "Rerun":
        """Measure a finished plan again, to check it. Recorded as a re-opening; the recorded verdict stays.

        Code may have changed (the entry says so); model, data and plan may not (ClaimChanged). Raises ClaimError for a
        plan without a result.
        """
        changed = self._require_unchanged(model, task, but=("code",))
        recorded = ledger.result(self.sha256)
        if recorded is None:
            raise ClaimError(
                f"plan {self.sha256[:12]} has no result in {ledger.path.name} to check; use run()", plan=self.sha256
            )
        ledger.append("reopen_split", self.sha256, {"split": "confirm", "reason": reason})
        again = self._measured(
            model, task, changed=[], seen=list(recorded["seen_before"]), progress=progress, max_tokens=max_tokens
        )
        found = Rerun(ClaimResult(recorded), again, tuple(changed))
        ledger.append(
            "rerun",
            self.sha256,
            {"changed": changed, "moved": found.moved, "verdict": again.verdict, "same": found.same},
        )
        return found

    def save(self, path: str | Path) -> None:
        """Write plan and hash as JSON."""
        write_json(Path(path), {"plan": self.plan, "sha256": self.sha256})

    @classmethod
    def load(cls, path: str | Path) -> "FrozenClaim":
        """Read what `save` wrote. Raises ClaimChanged when the text no longer matches its hash."""
        record = _read_json(Path(path), ("plan", "sha256"))
        frozen = cls(record["plan"])
        if frozen.sha256 != record["sha256"]:
            raise ClaimChanged(
                f"{path}: the plan's text no longer matches its hash ({frozen.sha256[:12]}, registered "
                f"{str(record['sha256'])[:12]}); restore the file, or freeze a new claim",
                changed=["plan"],
            )
        return frozen

    def _require_unchanged(self, model: Model, task: Task, but: tuple[str, ...] = ()) -> list[str]:
        """Names of what differs from the plan, after refusing (ClaimChanged) all that is not in `but`."""
        found = registration.differences(self.plan, model, task)
        refused = {name: pair for name, pair in found.items() if name not in but}
        if refused:
            shown = "; ".join(f"{name} was {old[:12]}, is {new[:12]}" for name, (old, new) in refused.items())
            raise ClaimChanged(
                f"plan {self.sha256[:12]} was frozen for something else: {shown}. Run it with what was registered, "
                "or freeze the claim again",
                changed=sorted(refused),
                plan=self.sha256,
            )
        return sorted(found)

    def _measured(
        self,
        model: Model,
        task: Task,
        *,
        changed: list[str],
        seen: list[str],
        progress: Progress | None,
        max_tokens: int,
    ) -> "ClaimResult":
        record = gather(self.claim, self.plan, model, task.split("confirm"), max_tokens=max_tokens, progress=progress)
        record |= {"plan": self.sha256, "changed": changed, "seen_before": seen}
        return ClaimResult(record | {"outcome": verdict(record)})


@dataclass(frozen=True)
class ClaimResult:
    """What was measured, per example, and what it proves."""

    record: Mapping[str, Any]
    """Plain JSON (docs/design/claims.md has its fields); `outcome` is `verdict(record)`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "record", plain(self.record))

    @property
    def outcome(self) -> Mapping[str, Any]:
        """The derived part: verdict, reason, what would change it, checks, predictions."""
        return self.record["outcome"]

    @property
    def verdict(self) -> str:
        """`supported`, `refuted`, `inconclusive` or `invalid`."""
        return self.outcome["verdict"]

    @property
    def reason(self) -> str:
        """Why, with numbers."""
        return self.outcome["reason"]

    @property
    def predictions(self) -> list[Mapping[str, Any]]:
        """One derived record a prediction."""
        return list(self.outcome["predictions"])

    def table(self) -> list[dict[str, Any]]:
        """One row a prediction: estimate, interval, threshold, controls, verdict."""
        return [
            {
                "prediction": part["name"],
                "estimate": part["estimate"]["value"],
                "low": part["estimate"]["low"],
                "high": part["estimate"]["high"],
                "unit": part["unit"],
                part["direction"]: part["minimum"],
                "control_p": part["control_p"],
                "controls_beaten": part["control_test"]["beaten"],
                "verdict": part["verdict"],
            }
            for part in self.predictions
        ]

    def save(self, path: str | Path) -> None:
        """Write the record as JSON."""
        write_json(Path(path), self.record)

    @classmethod
    def load(cls, path: str | Path) -> "ClaimResult":
        """Read what `save` wrote. Raises BrokenEvidence when the outcome does not follow from the values."""
        record = _read_json(Path(path), ("outcome", "predictions"))
        if plain(verdict(record)) != record["outcome"]:
            raise BrokenEvidence(
                f"{path}: its outcome does not follow from its values; restore the file or run the claim again",
                path=str(path),
            )
        return cls(record)


@dataclass(frozen=True)
class Rerun:
    """A finished plan, measured again."""

    recorded: ClaimResult
    again: ClaimResult
    changed: tuple[str, ...]
    """What differs from the plan: `code`, or nothing."""

    @property
    def same(self) -> bool:
        """The verdict came out the same."""
        return self.recorded.verdict == self.again.verdict

    @property
    def moved(self) -> dict[str, float]:
        """Largest change of an example's value, for each prediction, in the values' own unit."""
        pairs = zip(self.recorded.record["predictions"], self.again.record["predictions"], strict=True)
        return {
            f"{number}. {old['kind']}": max(abs(a - b) for a, b in zip(old["values"], new["values"], strict=True))
            for number, (old, new) in enumerate(pairs, start=1)
        }


def _components(texts: tuple[str, ...], what: str) -> tuple[str, ...]:
    """Canonical texts of components, one head or neuron each. Raises UnknownSite or UsageError."""
    if isinstance(texts, str) or not texts:
        raise UsageError(f"{what} {texts!r}: give a tuple of site texts, at least one, as in ('z.1.h3',)")
    found: list[str] = []
    for text in texts:
        site = Site.parse(text)
        if site.batch_rows is not None:
            raise UsageError(f"{what} {text!r}: a claim is about all rows of a task; leave out '#...'")
        units = site.unit if isinstance(site.unit, tuple) else (site.unit,)
        found += [re.sub(r"\.([hn])[\d,]+", rf".\g<1>{unit}", str(site)) for unit in units]
    twice = next((text for text in found if found.count(text) > 1), None)
    if twice is not None:
        raise UsageError(f"{what}: {twice} is named twice; name each component once")
    return tuple(found)


def require_integer(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number (UsageError) or too small (OutOfRange)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name}={value!r}: it is a whole number, at least {least}", value=value)
    if value < least:
        raise OutOfRange(f"{name}={value}: at least {least}", value=value)


def _predictions(given: Any) -> tuple[Prediction, ...]:
    """The predictions of a claim. Raises UsageError for one without a tuple, and for what is none."""
    if isinstance(given, Prediction) or not isinstance(given, tuple | list):
        raise UsageError(f"predictions={given!r}: give a tuple of predictions, as in (Necessary(at_least=0.3),)")
    wrong = next((one for one in given if not isinstance(one, Prediction)), None)
    if wrong is not None:
        raise UsageError(f"predictions: {wrong!r} is none; there are Necessary, Sufficient, Mediates and Specific")
    return tuple(given)


def _require_apart(subject: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    """Refuse (UsageError) a subject that names a component twice, and to exclude what the claim is about."""
    parts = [Site.parse(text) for text in subject]
    for i, one in enumerate(parts):
        for other in parts[:i]:
            if same_component(one, other) and _meet(one, other):
                raise UsageError(
                    f"subject: {other} and {one} overlap, so that one edit would undo the other; name the whole, or "
                    "parts that have nothing in common"
                )
        for text in exclude:
            if same_component(one, Site.parse(text)):
                raise UsageError(
                    f"exclude: {text} is part of the subject ({one}), which is no control of its own anyway; exclude "
                    "other components that are known to take part"
                )


def _meet(one: Site, other: Site) -> bool:
    """Whether two selections of positions may select the same one."""
    if one.pos is None or other.pos is None or one.pos == other.pos:
        return True
    places = [set(site.pos) if isinstance(site.pos, tuple) else {site.pos} for site in (one, other)]
    return bool(places[0] & places[1])


def _read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {key: record[key] for key in keys} | record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenEvidence(f"{path}: not a file of this kind ({error}); restore it", path=str(path)) from None
