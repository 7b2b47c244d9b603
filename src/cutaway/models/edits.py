"""Edits: changes of a site, as data. Declared before a run, checked before it, applied in it, counted after it.

An `Edit` says what; a `Placed` edit says also on which rows and columns of one forward pass. Values never broadcast by
accident: a value is either one vector for every selected slot (the site's shape without batch and position; `replace`
asks for `fill` where that means several positions), or a tensor of exactly the selected shape. Values are cast to the
activation's dtype and device. Writes are out of place.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cutaway.artifacts import require_same_model
from cutaway.errors import BadEdit, EditFailed, EditNeverApplied, EngineError, OutOfRange, UsageError
from cutaway.models.activations import Activations
from cutaway.models.conditions import Condition, Signal
from cutaway.models.sites import PATTERN_KINDS, Site, Where
from cutaway.models.spans import Span
from cutaway.models.tokens import Tokens

if TYPE_CHECKING:
    import cutaway.models.model


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of one site. Made by the methods of a site, as in `sites.z[3].head(1).zero()`."""

    site: Site
    op: str
    """'patch', 'replace', 'fill', 'add', 'scale', 'clamp', 'project' or 'apply'."""
    value: Tensor | float | None = None
    scale: float = 1.0
    low: float | None = None
    high: float | None = None
    source: Activations | None = None
    function: Callable[[Tensor], Tensor] | None = None
    condition: Condition | None = None
    """Where it acts, decided by a probe earlier in the pass; None: wherever the site selects."""
    keep_norm: bool = False
    """Each changed vector gets back the length that it had."""
    made_for: str = ""
    """Digest of the only model that it may be used in; '' for any."""
    versions: tuple[int, ...] | None = field(default=None, repr=False)
    """How often its tensors had been changed in place when the edit was made."""

    def __post_init__(self) -> None:
        self._require_kinds()
        if self.versions is None:
            object.__setattr__(self, "versions", self._versions())
        if isinstance(self.value, Tensor) and (self.value.dtype == torch.bool or self.value.is_complex()):
            raise BadEdit(
                f"edit of {self.site}: a value of {self.value.dtype} cannot be written into an activation; give floats",
                site=str(self.site),
            )
        numbers = [self.scale] if self.value is None else [self.scale, self.value]
        if self.site.kind not in PATTERN_KINDS and not all(torch.as_tensor(n).isfinite().all() for n in numbers):
            raise BadEdit(
                f"edit of {self.site}: its value or factor holds NaN or infinity, and so would every result after it; "
                "give finite numbers",
                site=str(self.site),
            )
        if self.op == "clamp" and self.low is None and self.high is None:
            raise BadEdit(f"edit of {self.site}: clamp needs low=, high= or both", site=str(self.site))
        limits = [limit for limit in (self.low, self.high) if limit is not None]
        if any(limit != limit for limit in limits) or sorted(limits) != limits:
            raise BadEdit(
                f"edit of {self.site}: clamp(low={self.low}, high={self.high}) leaves no number between; low= must not "
                "be above high=",
                site=str(self.site),
            )
        if (self.op == "project" or self.along) and not (isinstance(self.value, Tensor) and bool(self.value.any())):
            verb = "clamp(along=)" if self.along else "project_out"
            raise BadEdit(
                f"edit of {self.site}: {verb} needs a direction, a tensor that is not zero", site=str(self.site)
            )
        if self.keep_norm and (self.slot_ndim == 0 or self.site.kind in PATTERN_KINDS):
            raise BadEdit(
                f"edit of {self.site}: it is no vector, so it has no length to keep; leave keeping_norm() out",
                site=str(self.site),
            )
        if self.source is not None and self.site.base not in self.source.tensors:
            raise BadEdit(
                f"edit of {self.site}: the source did not capture {self.site.base}; it has "
                f"{', '.join(map(str, list(self.source)[:6]))}",
                site=str(self.site),
            )

    def __str__(self) -> str:
        return f"{self.site}.{self.op}"

    def when(self, condition: Condition) -> "Edit":
        """The same edit, only where a probe earlier in the pass is over its threshold."""
        if self.condition is not None:
            raise BadEdit(f"edit {self}: it has a condition already; one is enough", site=str(self.site))
        return replace(self, condition=condition)

    def keeping_norm(self) -> "Edit":
        """The same edit, after which each changed vector is scaled back to the length that it had: it turns and does
        not grow."""
        return replace(self, keep_norm=True)

    @property
    def along(self) -> bool:
        """A clamp of the projection on a direction."""
        return self.op == "clamp" and self.value is not None

    @property
    def sites(self) -> tuple[Site, ...]:
        """What it changes, then what its condition reads."""
        return (self.site,) if self.condition is None else (self.site, self.condition.site)

    def check_model(self, model: "cutaway.models.model.Model") -> None:
        """Refuse a model that it was not made for (WrongModel), and a condition that does not fit (BadEdit)."""
        if self.made_for:
            require_same_model(self.made_for, model.digest, f"edit {self}")
        if self.condition is not None:
            self.condition.check(model, self.site)

    def _require_kinds(self) -> None:
        """Numbers are numbers, tensors hold numbers, a source is a capture: nothing else that torch would broadcast."""
        for name, number in (("factor", self.scale), ("low=", self.low), ("high=", self.high)):
            if number is not None and not _is_number(number):
                raise BadEdit(
                    f"edit of {self.site}: {name} is {_described(number)}, and one number is needed; for one a slot "
                    "use apply(function)",
                    site=str(self.site),
                )
        value, source = self.value, self.source
        if value is not None and not isinstance(value, Tensor) and not _is_number(value):
            raise BadEdit(
                f"edit of {self.site}: the value is {_described(value)}; give a tensor: torch.as_tensor(value)",
                site=str(self.site),
            )
        if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_meta):
            raise BadEdit(
                f"edit of {self.site}: the value holds no plain numbers ({value.layout}, on {value.device}); give a "
                "dense tensor on the CPU or on the model's device",
                site=str(self.site),
            )
        if (self.op == "patch") != (source is not None) or not isinstance(source, Activations | None):
            raise BadEdit(
                f"edit of {self.site}: patch takes what model.capture returns, not {_described(source)}; for a tensor "
                "of the selected shape use replace(tensor)",
                site=str(self.site),
            )
        if self.op == "apply" and not callable(self.function):
            raise BadEdit(
                f"edit of {self.site}: apply takes a function of the value, not {_described(self.function)}",
                site=str(self.site),
            )

    def _versions(self) -> tuple[int, ...]:
        found = [self.value] if self.source is None else [self.source.tensors.get(self.site.base)]
        return tuple(-1 if t.is_inference() else t._version for t in found if isinstance(t, Tensor))

    def require_unchanged(self) -> None:
        """Refuse an edit whose tensor was changed in place after the edit was made: it would be another edit."""
        if self.versions != self._versions():
            raise BadEdit(
                f"edit of {self.site}: its {'source' if self.source else 'value'} was changed in place after the edit "
                "was made, so that it would write other numbers than were given; give a copy: value.clone()",
                site=str(self.site),
            )

    def take(self, rows: Sequence[int]) -> "Edit | None":
        """The edit as it applies to the given rows of its inputs; None when it selects none of them."""
        self.require_unchanged()
        changed = self
        if self.source is not None:
            changed = replace(changed, source=self.source.take(rows), versions=None)
        value_rows = list(rows)
        if self.site.batch_rows is not None:
            place = {row: i for i, row in enumerate(self.site.batch_rows)}
            kept = tuple(i for i, row in enumerate(rows) if row in place)
            if not kept:
                return None
            changed = replace(changed, site=replace(self.site, batch_rows=kept))
            value_rows = [place[rows[i]] for i in kept]
        if isinstance(self.value, Tensor) and self.per_row:
            index = torch.tensor(value_rows, device=self.value.device)
            changed = replace(changed, value=self.value[index], versions=None)
        return changed

    @cached_property
    def slot_ndim(self) -> int:
        """Axes of one selected slot: 1 in the residual stream; heads have 2, one head 1, one neuron 0; a pattern
        [head key]."""
        whole = 2 if self.site.axis in ("head", "kv_head", "expert") else 1
        return whole - (1 if isinstance(self.site.unit, int) else 0)

    @cached_property
    def per_row(self) -> bool:
        """The value has a batch axis: one entry a row."""
        whole = isinstance(self.value, Tensor) and self.op not in ("project", "clamp")
        return whole and self.value.ndim > self.slot_ndim  # type: ignore[union-attr]


def edits_of(edits: Any) -> tuple[Edit, ...]:
    """What was given as `edits=`, or UsageError for what is no sequence of edits."""
    if isinstance(edits, Edit):
        raise UsageError(f"edits: one edit was given ({edits}); give a list of edits, as in edits=[site.zero()]")
    if isinstance(edits, str | Site) or not isinstance(edits, Iterable):
        raise UsageError(f"edits: {edits!r} is no list of edits; give edits=[...], each made of a site: {_MADE}")
    if isinstance(edits, Iterator):
        raise UsageError(
            f"edits: a {type(edits).__name__} is empty after its first use, and the next run with it would have no "
            "edits; give a list: list(edits)"
        )
    found = tuple(edits)
    for edit in found:
        if not isinstance(edit, Edit):
            raise UsageError(f"edits: {edit!r} is no edit; say what is to be done at the site: {_MADE}")
    return found


_MADE = "sites.z[1].zero(), sites.resid_post[0].add(vector)"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (getattr(value, "ndim", None) == 0 and hasattr(value, "__float__"))


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"a {type(value).__name__} of shape {list(shape)}"


@dataclass(frozen=True, eq=False)
class Placed:
    """An edit on the rows `first : first + len(tokens)` of one forward pass, whose column 0 is column `start` of
    the rows."""

    edit: Edit
    tokens: Tokens | None
    """Inputs of the edit's own rows; None for a wrapped module."""
    first: int = 0
    start: int = 0
    ends: tuple[int, ...] | None = None
    """While generating, the lengths of the prompts: negative positions count from there, and a position that is not
    there yet is passed over."""

    def __post_init__(self) -> None:
        self.edit.require_unchanged()

    @property
    def site(self) -> Site:
        return self.edit.site

    def covers(self, row: int) -> bool:
        """A row of the pass is one of the edit's own."""
        return self.tokens is None or self.first <= row < self.first + len(self.tokens)

    def check(self, slot: Sequence[int]) -> None:
        """Compare the value's shape with what is selected, before anything runs. `slot`: the site's shape after
        [batch pos]."""
        unit = self.site.unit
        if unit is not None:
            size = slot[0]
            for u in (unit,) if isinstance(unit, int) else unit:
                if not 0 <= u < size:
                    raise OutOfRange(
                        f"site {self.site}: {self.site.axis} {u} of {size} (0-{size - 1})", site=str(self.site)
                    )
            slot = [*slot[1:]] if isinstance(unit, int) else [len(unit), *slot[1:]]
        if self.tokens is not None and self.ends is None and not self.selects():
            raise EditNeverApplied(
                f"edit {self.edit}: it selects no token of these {len(self.tokens)} rows, so it would change nothing; "
                "choose positions that the rows have",
                site=str(self.site),
            )
        value = self.edit.value
        if isinstance(value, Tensor):
            self._check_value(value, list(slot))
        if self.edit.source is not None:
            self._check_source(self.edit.source)

    def _check_value(self, value: Tensor, slot: list[int]) -> None:
        if self.site.kind in PATTERN_KINDS:  # the key axis is as wide as the rows
            slot = [*slot[:-1], self.tokens.width if self.tokens is not None else value.shape[-1]]
        if self.edit.op in ("project", "clamp") and len(slot) > 1:
            raise BadEdit(
                f"edit of {self.site}: {self.edit.op} takes one direction, and a slot here is {slot}; select one head",
                site=str(self.site),
            )
        shape, allowed = list(value.shape), [slot]
        if self.edit.op == "replace" and not isinstance(self.site.pos, int | str):
            allowed = []  # one vector at many positions is often one that was meant for another place
        if self.tokens is not None and self.edit.op not in ("project", "clamp", "fill"):
            columns = self.tokens.positions(self.site.pos, ends=self.ends)
            counts = {len(columns[row]) for row in self._rows()}
            if self.site.pos is None:
                counts = {self.tokens.width}
            if len(counts) == 1:
                n_rows, n_pos = len(self._rows()), counts.pop()
                full = [n_rows, n_pos, *slot]
                allowed.append(
                    [full[0], full[2], full[1], full[3]] if self.site.kind in PATTERN_KINDS and len(slot) == 2 else full
                )
                if isinstance(self.site.pos, int | str):
                    allowed.append([n_rows, *slot])
        if shape not in allowed:
            shown = (
                " or ".join(str(a) for a in allowed) or "a tensor for each row, which select unequal numbers of tokens"
            )
            way = f"; for one vector {slot} in every slot use fill(vector)" if self.edit.op == "replace" else ""
            raise BadEdit(
                f"edit of {self.site}: the value has shape {shape}, the selection takes {shown}; nothing is "
                f"broadcast{way}",
                site=str(self.site),
                found=shape,
                allowed=allowed,
            )

    def _check_source(self, source: Activations) -> None:
        own = self.tokens
        if own is None or source.tokens is None:
            return
        if len(source.tokens) != len(own):
            raise BadEdit(
                f"edit of {self.site}: the source has {len(source.tokens)} rows, the run {len(own)}; use "
                "source.take(rows) to line them up",
                site=str(self.site),
            )
        here, there = own.positions(self.site.pos, ends=self.ends), source.tokens.positions(self.site.pos)
        for row in self._rows():
            if len(here[row]) != len(there[row]):
                raise BadEdit(
                    f"edit of {self.site}: row {row} selects {len(here[row])} tokens here and {len(there[row])} "
                    "in the source; select a named position, or align the prompts",
                    site=str(self.site),
                    row=row,
                )
            if self.site.kind in PATTERN_KINDS and own.lengths[row] != source.tokens.lengths[row]:
                raise BadEdit(
                    f"edit of {self.site}: row {row} has {own.lengths[row]} keys here and "
                    f"{source.tokens.lengths[row]} in the source",
                    site=str(self.site),
                    row=row,
                )

    def _rows(self) -> list[int]:
        n = len(self.tokens) if self.tokens is not None else None
        if self.site.batch_rows is None:
            return list(range(n or 0))
        for row in self.site.batch_rows:
            if n is not None and not 0 <= row < n:
                raise OutOfRange(f"site {self.site}: row {row} of {n} (0-{n - 1})", site=str(self.site), row=row)
        return list(self.site.batch_rows)

    def selects(self) -> bool:
        """At least one token of the rows is selected."""
        assert self.tokens is not None
        found = self.tokens.positions(self.site.pos, ends=self.ends)
        return any(found[row] for row in self._rows())

    # -- applying

    def apply(self, out: Tensor, signal: Signal | None = None) -> bool:
        """Write into `out`, a private copy laid out [batch pos ...]. False when no selected slot is in this pass.

        `signal` holds the scores of the edit's condition, up to the last column of this pass.
        """
        if self.edit.condition is None:
            return self._write(out)
        if signal is None or signal.stop < self.start + out.shape[1] or self.tokens is None:
            raise EngineError(
                f"edit {self.edit}: its condition at {self.edit.condition.site} had no value when the edit was to act; "
                "choose a site that this model comes to before the edit",
                site=str(self.site),
            )
        before = out.clone()
        if not self._write(out):
            return False
        rows = slice(self.first, self.first + len(self.tokens))
        acts = self.edit.condition.holds(signal, self.tokens, self.first, self.start, out.shape[1])
        acts = acts.reshape(*acts.shape, *[1] * (out.ndim - 2))
        out[rows] = torch.where(acts, out[rows], before[rows])
        return True

    def _write(self, out: Tensor) -> bool:
        if self.site.pos is None and self.site.batch_rows is None:
            return self._apply_to_all(out)
        rows = self._rows() if self.tokens is not None else list(self.site.batch_rows or range(out.shape[0]))
        slots = self._slots(out, rows)
        if not slots:
            return False
        at = (torch.tensor([self.first + s[0] for s in slots]), torch.tensor([s[3] for s in slots]))
        new = self._new(self._pick_units(out[at], 1), lambda tensor: self._gathered(tensor, rows, slots))
        if self.site.unit is None:
            out[at] = new
        elif isinstance(self.site.unit, int):
            out[(*at, torch.full_like(at[0], self.site.unit))] = new
        else:
            out[at[0][:, None], at[1][:, None], torch.tensor(self.site.unit)[None, :]] = new
        return True

    def _slots(self, out: Tensor, rows: list[int]) -> list[tuple[int, int, int, int]]:
        """Row, place of the row, place in the row's selection, and column of this pass, of each selected slot in it."""
        width = out.shape[1]
        if isinstance(self.site.pos, Span) and self.tokens is not None:
            return [
                (r, i, k, k + first - self.start)
                for i, r in enumerate(rows)
                for first, places in [self._in_pass(self.site.pos, r, width)]
                for k in places
            ]
        columns = self._columns(out, rows)
        return [
            (r, i, k, c - self.start)
            for i, r in enumerate(rows)
            for k, c in enumerate(columns[r])
            if 0 <= c - self.start < width
        ]

    def _in_pass(self, span: Span, row: int, width: int) -> tuple[int, range]:
        """First column of a span, and which of its places lie in this pass."""
        assert self.tokens is not None
        n, n_prompt = self.tokens.lengths[row], self.tokens.roles["end"][row] + 1
        anchor = n if self.ends is None else self.ends[row]
        if self.ends is not None and (self.edit.source is not None or self.edit.per_row):
            n = anchor  # a donor speaks of the prompt alone
        found, offset = span.within(n, n_prompt, anchor), self.tokens.offsets[row]
        first = found.start + offset
        return first, range(max(0, self.start - first), min(len(found), self.start + width - first))

    def _apply_to_all(self, out: Tensor) -> bool:
        """All positions of all own rows: slices instead of index lists. A donor covers the columns that it has."""
        n_rows = len(self.tokens) if self.tokens is not None else out.shape[0]
        width = self._donor_width()
        n = out.shape[1] if width is None else min(out.shape[1], width - self.start)
        if n <= 0:
            return False
        span = slice(self.first, self.first + n_rows)
        part = out[span, :n] if width is not None else out[span]
        old = self._pick_units(part, 2)
        if torch.is_grad_enabled():  # what autograd saves must not be written over
            old = old.clone()
        new = self._new(old, lambda tensor: self._aligned(tensor, old))
        if self.site.unit is None:
            part.copy_(new)
        elif isinstance(self.site.unit, int):
            part[:, :, self.site.unit] = new
        else:
            part[:, :, list(self.site.unit)] = new
        return True

    def _donor_width(self) -> int | None:
        """Columns that a donor or a value of the full shape covers; None for values that fit every column."""
        if self.site.kind == "module":
            return None
        if self.edit.source is not None and self.edit.source.tokens is not None:
            source = self.edit.source.tokens
            return source.width if self._same_layout(source) or self.tokens is None else self.tokens.width
        if isinstance(self.edit.value, Tensor) and self.edit.per_row:
            return self.edit.value.shape[2 if self.site.kind in PATTERN_KINDS and self.edit.value.ndim == 4 else 1]
        return None

    def _same_layout(self, source: Tokens) -> bool:
        return self.tokens is not None and source.offsets == self.tokens.offsets

    def _aligned(self, tensor: Tensor, old: Tensor) -> Tensor:
        """A full-shape donor or value, cut to the columns of this pass; another padding is moved row by row."""
        source = self.edit.source.tokens if self.edit.source is not None else None
        if source is None or self.tokens is None or self._same_layout(source):
            return tensor if self.site.kind == "module" else tensor[:, self.start : self.start + old.shape[1]]
        moved = old.clone()
        for row, (here, there) in enumerate(zip(self.tokens.offsets, source.offsets)):
            n = min(self.tokens.lengths[row], source.lengths[row])
            low, high = max(here, self.start), min(here + n, self.start + old.shape[1])
            if high > low:
                moved[row, low - self.start : high - self.start] = tensor[row, there + low - here : there + high - here]
        return moved

    def _columns(self, value: Tensor, rows: list[int]) -> list[list[int]]:
        if self.tokens is not None:
            found = self.tokens.columns(self.site.pos, ends=self.ends)
            if self.ends is not None and isinstance(self.site.pos, Where) and (self.edit.source or self.edit.per_row):
                # a donor speaks of the prompt alone
                limits = [n + offset for n, offset in zip(self.ends, self.tokens.offsets)]
                return [[c for c in columns if c < limit] for columns, limit in zip(found, limits)]
            return found
        pos, width = self.site.pos, value.shape[1] if value.ndim > 1 else 1
        if isinstance(pos, str) or (pos is not None and not isinstance(pos, int | tuple)):
            raise UsageError(
                f"site {self.site}: a wrapped module's inputs have no roles or token texts; select positions by number"
            )
        wanted = range(width) if pos is None else (pos,) if isinstance(pos, int) else pos
        for p in wanted:
            if not -width <= p < width:
                raise OutOfRange(f"site {self.site}: position {p} of {width}", site=str(self.site))
        return [[p % width for p in wanted]] * (max(rows, default=0) + 1)

    def _pick_units(self, tensor: Tensor, axis: int) -> Tensor:
        unit = self.site.unit
        if unit is None:
            return tensor
        if isinstance(unit, int):
            return tensor.select(axis, unit)
        return tensor.index_select(axis, torch.tensor(unit, device=tensor.device))

    def _gathered(self, tensor: Tensor, rows: list[int], slots: list[tuple[int, int, int, int]]) -> Tensor:
        """The slots (row, place of the row, place in the row's selection, column) of a donor or of a value."""
        place = torch.tensor([i for _, i, _, _ in slots], device=tensor.device)
        if self.edit.source is not None:
            source = self.edit.source.tokens
            there = source.columns(self.site.pos) if source is not None else self._columns(tensor, rows)
            row = torch.tensor([r for r, _, _, _ in slots], device=tensor.device)
            return tensor[row, torch.tensor([there[r][k] for r, _, k, _ in slots], device=tensor.device)]
        if tensor.ndim == self.edit.slot_ndim + 1:  # [rows, *slot]: one position a row
            return tensor[place]
        return tensor[place, torch.tensor([k for _, _, k, _ in slots], device=tensor.device)]

    def _new(self, old: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
        new = self._changed(old, fit)
        if not self.edit.keep_norm:
            return new
        had, has = old.float().norm(dim=-1, keepdim=True), new.float().norm(dim=-1, keepdim=True)
        return new * torch.where(has > 0, had / has, torch.ones_like(has)).to(new.dtype)

    def _changed(self, old: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
        edit = self.edit
        match edit.op:
            case "patch":
                assert edit.source is not None
                donor = edit.source.tensors[self.site.base]
                if self.site.kind in PATTERN_KINDS:
                    donor = donor.transpose(1, 2)
                return fit(self._pick_units(donor, 2)).to(old)
            case "replace" | "fill" | "add":
                value = self._value(old, fit)
                return old + edit.scale * value if edit.op == "add" else value.expand_as(old)
            case "scale":
                return old * edit.scale
            case "clamp" if isinstance(edit.value, Tensor):
                unit = edit.value.to(old) / edit.value.to(old).norm()
                found = old @ unit
                return old + (found.clamp(edit.low, edit.high) - found)[..., None] * unit
            case "clamp":
                return old.clamp(edit.low, edit.high)
            case "project":
                assert isinstance(edit.value, Tensor)
                direction = edit.value.to(old) / edit.value.to(old).norm()
                return old - (old @ direction)[..., None] * direction
            case "apply":
                return self._apply(old)
        raise AssertionError(edit.op)

    def _value(self, old: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
        value = self.edit.value
        if not isinstance(value, Tensor):
            return torch.as_tensor(value, dtype=old.dtype, device=old.device)
        if self.site.kind == "module":
            slot = old.shape[2:] if old.ndim == 3 and self.site.pos is None else old.shape[1:]
            one = self.edit.op != "replace" or isinstance(self.site.pos, int) or old.ndim != 3
            if value.shape != old.shape and not (one and value.shape == slot):
                way = (
                    f"; for one vector {list(slot)} in every slot use fill(vector)" if self.edit.op == "replace" else ""
                )
                raise BadEdit(
                    f"edit of {self.site}: the value has shape {list(value.shape)}, the site {list(old.shape)}; "
                    f"nothing is broadcast{way}",
                    site=str(self.site),
                )
            return value.to(old)
        if self.site.kind in PATTERN_KINDS and value.ndim == 4:
            value = value.transpose(1, 2)
        return (fit(value) if self.edit.per_row else value).to(old)

    def _apply(self, old: Tensor) -> Tensor:
        assert self.edit.function is not None
        try:
            new = self.edit.function(old.clone())
        except Exception as error:
            raise EditFailed(
                f"edit of {self.site}: the function raised {type(error).__name__}: {error}", site=str(self.site)
            ) from error
        if not isinstance(new, Tensor) or new.shape != old.shape:
            found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise BadEdit(
                f"edit of {self.site}: the function got shape {tuple(old.shape)} and returned {found}; return "
                "the same shape",
                site=str(self.site),
            )
        new = new.to(old)
        self._refuse_not_finite(old, new)
        return new

    def _refuse_not_finite(self, old: Tensor, new: Tensor) -> None:
        """Numbers stay numbers; masked scores may be minus infinity, but never NaN."""
        bad = new.isnan() if self.site.kind in PATTERN_KINDS else ~new.isfinite()
        if bool(bad.any()) and bool(old[bad].isfinite().any()):
            raise BadEdit(
                f"edit of {self.site}: the function returned {int(bad.sum())} numbers that are NaN, infinite or beyond "
                f"{old.dtype}, and so would every result after it be; return finite numbers",
                site=str(self.site),
            )
