"""Edits: changes of a site, as data. Declared before a run, checked before it, applied in it, counted after it.

An `Edit` says what; a `Placed` edit says also on which rows and columns of one forward pass. Values never broadcast by
accident: a value is either one vector for every selected slot (the site's shape without batch and position), or a
tensor of exactly the selected shape. Values are cast to the activation's dtype and device. Writes are out of place.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import BadEdit, EditFailed, EditNeverApplied, OutOfRange, UsageError
from cutaway.models.activations import Activations
from cutaway.models.sites import PATTERN_KINDS, Site, Where
from cutaway.models.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of one site. Made by the methods of a site, as in `sites.z[3].head(1).zero()`."""

    site: Site
    op: str
    """'patch', 'replace', 'add', 'scale', 'clamp', 'project' or 'apply'."""
    value: Tensor | float | None = None
    scale: float = 1.0
    low: float | None = None
    high: float | None = None
    source: Activations | None = None
    function: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
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
        if self.op == "project" and (not isinstance(self.value, Tensor) or float(self.value.norm()) == 0.0):
            raise BadEdit(
                f"edit of {self.site}: project_out needs a direction, a tensor that is not zero", site=str(self.site)
            )
        if self.source is not None and self.site.base not in self.source.tensors:
            raise BadEdit(
                f"edit of {self.site}: the source did not capture {self.site.base}; it has "
                f"{', '.join(map(str, list(self.source)[:6]))}",
                site=str(self.site),
            )

    def __str__(self) -> str:
        return f"{self.site}.{self.op}"

    def take(self, rows: Sequence[int]) -> "Edit | None":
        """The edit as it applies to the given rows of its inputs; None when it selects none of them."""
        changed = self
        if self.source is not None:
            changed = replace(changed, source=self.source.take(rows))
        value_rows = list(rows)
        if self.site.batch_rows is not None:
            place = {row: i for i, row in enumerate(self.site.batch_rows)}
            kept = tuple(i for i, row in enumerate(rows) if row in place)
            if not kept:
                return None
            changed = replace(changed, site=replace(self.site, batch_rows=kept))
            value_rows = [place[rows[i]] for i in kept]
        if isinstance(self.value, Tensor) and self.per_row:
            changed = replace(changed, value=self.value[torch.tensor(value_rows, device=self.value.device)])
        return changed

    @cached_property
    def slot_ndim(self) -> int:
        """Axes of one selected slot: 1 in the residual stream; heads have 2, one head 1, one neuron 0; a pattern
        [head key]."""
        whole = 2 if self.site.axis in ("head", "kv_head") else 1
        return whole - (1 if isinstance(self.site.unit, int) else 0)

    @cached_property
    def per_row(self) -> bool:
        """The value has a batch axis: one entry a row."""
        return isinstance(self.value, Tensor) and self.op != "project" and self.value.ndim > self.slot_ndim


def edits_of(edits: Any) -> tuple[Edit, ...]:
    """What was given as `edits=`, or UsageError for what is no sequence of edits."""
    if isinstance(edits, Edit):
        raise UsageError(f"edits: one edit was given ({edits}); give a list of edits, as in edits=[site.zero()]")
    if isinstance(edits, str | Site) or not isinstance(edits, Iterable):
        raise UsageError(f"edits: {edits!r} is no list of edits; give edits=[...], each made of a site: {_MADE}")
    found = tuple(edits)
    for edit in found:
        if not isinstance(edit, Edit):
            raise UsageError(f"edits: {edit!r} is no edit; say what is to be done at the site: {_MADE}")
    return found


_MADE = "sites.z[1].zero(), sites.resid_post[0].add(vector)"


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
        shape, allowed = list(value.shape), [slot]
        if self.tokens is not None and self.edit.op != "project":
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
            shown = " or ".join(str(a) for a in allowed)
            raise BadEdit(
                f"edit of {self.site}: the value has shape {shape}, the selection takes {shown} (one vector for "
                "every slot, or the exact shape); nothing is broadcast",
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

    def apply(self, out: Tensor) -> bool:
        """Write into `out`, a private copy laid out [batch pos ...]. False when no selected slot is in this pass."""
        if self.site.pos is None and self.site.batch_rows is None:
            return self._apply_to_all(out)
        rows = self._rows() if self.tokens is not None else list(self.site.batch_rows or range(out.shape[0]))
        columns = self._columns(out, rows)
        slots = [
            (r, i, k, c - self.start)
            for i, r in enumerate(rows)
            for k, c in enumerate(columns[r])
            if 0 <= c - self.start < out.shape[1]
        ]
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
        edit = self.edit
        match edit.op:
            case "patch":
                assert edit.source is not None
                donor = edit.source.tensors[self.site.base]
                if self.site.kind in PATTERN_KINDS:
                    donor = donor.transpose(1, 2)
                return fit(self._pick_units(donor, 2)).to(old)
            case "replace" | "add":
                value = self._value(old, fit)
                return value.expand_as(old) if edit.op == "replace" else old + edit.scale * value
            case "scale":
                return old * edit.scale
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
            if value.shape not in (old.shape, old.shape[1:], old.shape[2:]):
                raise BadEdit(
                    f"edit of {self.site}: the value has shape {list(value.shape)}, the site {list(old.shape)}; "
                    "nothing is broadcast",
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
