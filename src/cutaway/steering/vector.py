"""A steering vector: where, in which direction, how strong, by which rule, for which model, and how it was measured.

With u the direction at length 1, h the activation and a the strength in its unit:

    add      h + a u
    add, below=c   h + a u where u . h < c, else h          (threshold-add)
    clamp    h + (a - u . h) u                              (the projection becomes a, what lies beside it stays)
    ablate   h - (u . h) u

    unit       a
    absolute   the strength itself
    vector     times the length of the direction as it was given (ActAdd's coefficient)
    norm       times the median length of the activations at the site on the reference text
    sd         times the standard deviation of their projections; for clamp and `below` counted from their mean
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from jaxtyping import Float
from torch import Tensor

from cutaway.artifacts import Provenance, save_tensors, saved
from cutaway.errors import BadEdit, UsageError
from cutaway.figures import Bars, Figure
from cutaway.models.conditions import Condition
from cutaway.models.edits import Edit
from cutaway.models.model import Model
from cutaway.models.sites import PATTERN_KINDS, Position, Site, Where

UNITS: Final = ("absolute", "vector", "norm", "sd")
OPERATIONS: Final = ("add", "clamp", "ablate")


@dataclass(frozen=True)
class Scale:
    """What the activations of a site are like on a reference text; measured once, and kept with the vector."""

    norm: float
    """Median length."""
    mean: float
    """Mean projection on the direction."""
    sd: float
    """Standard deviation of the projections."""
    n_tokens: int
    """Tokens that were measured."""
    data: str
    """Digest of the reference text's tokens."""


@dataclass(frozen=True, eq=False)
class Steering:
    """One vector, ready to be used in `run`, `generate` and `plan` by its `edits()`; several are used side by side.

    Refused in another model (WrongModel), also where its edits are used. Law: strength 0 adds nothing, bit for bit.
    Misleads: a large vector breaks any model, and what breaks it says nothing about the direction; compare with random
    directions of the same strength (docs/methods/steering.md).
    """

    site: Site
    """Where it acts, positions included ('@prompt', '@new', ...)."""
    direction: Float[Tensor, " d"]
    """As it was given; its length counts in the unit 'vector' alone."""
    provenance: Provenance
    strength: float = 1.0
    unit: str = "absolute"
    """'absolute', 'vector', 'norm' or 'sd'."""
    operation: str = "add"
    """'add', 'clamp' or 'ablate'."""
    below: float | None = None
    """With 'add': only where the projection is below this, in the same unit."""
    keep_norm: bool = False
    """Give each activation its length back."""
    condition: Condition | None = None
    """A probe that decides where it acts."""
    scale: Scale | None = None
    """What the units 'norm' and 'sd' are worth at this site."""
    how: str = ""
    """How the direction was found."""

    def __post_init__(self) -> None:
        name = f"steering at {self.site}"
        for what, value, known in (("unit", self.unit, UNITS), ("operation", self.operation, OPERATIONS)):
            if value not in known:
                raise UsageError(f"{name}: {what}={value!r}; it is one of {', '.join(known)}")
        if self.site.kind in (*PATTERN_KINDS, "module") or (self.site.axis is not None and self.site.unit is None):
            raise BadEdit(
                f"{name}: a direction needs one vector a token; name a residual state, a write, or one head",
                site=str(self.site),
            )
        if not bool(self.direction.isfinite().all()) or not bool(self.direction.any()):
            raise BadEdit(f"{name}: the direction is zero or not finite; give another", site=str(self.site))
        if not math.isfinite(self.strength) or not (self.below is None or math.isfinite(self.below)):
            raise UsageError(f"{name}: strength={self.strength}, below={self.below}: finite numbers are needed")
        if self.unit in ("norm", "sd") and self.scale is None:
            raise UsageError(
                f"{name}: strength in {self.unit} needs a scale; measure it: steering(..., reference=texts)"
            )
        if self.operation != "add" and self.below is not None:
            raise UsageError(f"{name}: below= belongs to 'add'; {self.operation} sets the projection itself")
        if self.below is not None and self.condition is not None:
            raise UsageError(f"{name}: below= is a condition of its own; leave it or condition= out")
        if self.operation == "ablate" and self.strength != 1.0:
            raise UsageError(f"{name}: ablate takes the whole projection away; leave strength= out, or use 'clamp'")
        object.__setattr__(self, "direction", self.direction.detach().cpu().float().clone())

    @property
    def length(self) -> float:
        """Length of the direction as it was given."""
        return float(self.direction.norm())

    @property
    def amount(self) -> float:
        """The strength as a length at the site."""
        return self.strength * self._size

    @property
    def _size(self) -> float:
        scale = self.scale
        known = {"absolute": 1.0, "vector": self.length}
        return (
            known[self.unit] if scale is None or self.unit in known else {"norm": scale.norm, "sd": scale.sd}[self.unit]
        )

    def _level(self, value: float) -> float:
        """A projection, from a number in the unit."""
        start = self.scale.mean if self.unit == "sd" and self.scale is not None else 0.0
        return start + value * self._size

    def edits(self) -> tuple[Edit, ...]:
        """As edits, for `run`, `generate` and `Run`; they are refused by any other model."""
        unit = self.direction / self.length
        if self.operation == "add":
            by = (self.direction, self.strength) if self.unit == "vector" else (unit, self.amount)
            edit = self.site.add(by[0], scale=by[1])
        elif self.operation == "clamp":
            edit = self.site.clamp(self._level(self.strength), self._level(self.strength), along=unit)
        else:
            edit = self.site.project_out(unit)
        when = self.condition
        if self.below is not None:
            place = replace(self.site, pos=None, batch_rows=None)
            when = Condition(place, -unit, threshold=-self._level(self.below))
        if when is not None:
            edit = edit.when(when)
        if self.keep_norm:
            edit = edit.keeping_norm()
        return (replace(edit, made_for=self.provenance.model),)

    def at(self, position: Position | slice) -> "Steering":
        """The same vector at other positions."""
        return replace(self, site=self.site.at(position))

    def __str__(self) -> str:
        words = [f"{self.operation} at {self.site}"]
        if self.operation != "ablate":
            words.append(f"strength {self.strength:g} {self.unit} (a length of {self.amount:.4g})")
        if self.below is not None:
            words.append(f"below {self.below:g}")
        if self.condition is not None:
            words.append(f"when {self.condition.site} > {self.condition.threshold:g} ({self.condition.rule})")
        return ", ".join([*words, *(["keeping the norm"] if self.keep_norm else [])])

    def table(self) -> list[dict[str, Any]]:
        """One row: where, what, how strong in each unit that is known."""
        scale = self.scale
        return [
            {
                "site": str(self.site),
                "operation": self.operation,
                "strength": self.strength,
                "unit": self.unit,
                "amount": self.amount,
                "in_norms": self.amount / scale.norm if scale and scale.norm else math.nan,
                "in_sds": self.amount / scale.sd if scale and scale.sd else math.nan,
                "how": self.how,
            }
        ]

    def figures(self) -> tuple[Figure, ...]:
        """Its length beside those at the site; nothing when these were not measured."""
        if self.scale is None:
            return ()
        return (
            Bars(
                f"Strength at {self.site}",
                "How long the change is, beside what is found at the site on the reference text.",
                "length",
                ("change", "median norm", "projection: mean", "projection: standard deviation"),
                (self.amount, self.scale.norm, self.scale.mean, self.scale.sd),
            ),
        )

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        if isinstance(self.site.pos, Where):
            raise UsageError(
                f"steering at {self.site}: a predicate is a function and has no form in a file; save it without"
            )
        tensors, when = {"direction": self.direction}, self.condition
        if when is not None:
            tensors["condition"] = when.direction
        manifest: dict[str, Any] = {"kind": "steering", "format": 1, "site": str(self.site)}
        manifest |= {name: getattr(self, name) for name in (*_PLAIN, "scale", "provenance")}
        # JSON has no word for the infinities, and a threshold may be one
        manifest["condition"] = None if when is None else {
            "site": str(when.site), "threshold": str(when.threshold), "bias": when.bias, "rule": when.rule
        }  # fmt: skip
        return save_tensors(Path(path), tensors, manifest)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Steering":
        """Read a saved vector. Raises WrongModel when another model made it, BrokenEvidence when it is none."""
        with saved(path, "steering", None if model is None else model.digest) as (tensors, manifest):
            provenance, when = Provenance(**manifest["provenance"]), manifest["condition"]
            if when is not None:
                threshold = float(when["threshold"])
                when = Condition(Site.parse(when["site"]), tensors["condition"], threshold, when["bias"], when["rule"])
            return cls(
                site=Site.parse(manifest["site"]),
                direction=tensors["direction"],
                provenance=provenance,
                condition=when,
                scale=None if manifest["scale"] is None else Scale(**manifest["scale"]),
                **{name: manifest[name] for name in _PLAIN},
            )


_PLAIN: Final = ("strength", "unit", "operation", "below", "keep_norm", "how")
