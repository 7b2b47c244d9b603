"""Figures as data: what a result has to show, without how it is drawn.

Every result has `figures()`; `cutaway.viz` draws them in a terminal, in a notebook and on an offline page. Numbers are
plain floats; a cell that has none (a NaN) is drawn as empty.
"""

from dataclasses import dataclass
from typing import TypeAlias

from cutaway.errors import UsageError

Row: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class Heatmap:
    """Numbers by row and column."""

    title: str
    sentence: str
    """What a cell is, and what its sign means."""
    unit: str
    row_axis: str
    column_axis: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[Row, ...]
    half_widths: tuple[Row, ...] | None = None
    """Half of each cell's confidence interval; None: not known."""
    texts: tuple[tuple[str, ...], ...] | None = None
    """Words to write into the cells; None: the numbers."""

    def __post_init__(self) -> None:
        for name, grid in (("values", self.values), ("half_widths", self.half_widths), ("texts", self.texts)):
            if grid is not None and [len(row) for row in grid] != [len(self.columns)] * len(self.rows):
                raise UsageError(
                    f"figure {self.title!r}: {name} needs {len(self.rows)} rows of {len(self.columns)}, as its axes"
                )


@dataclass(frozen=True)
class Bars:
    """One number a label, drawn from zero."""

    title: str
    sentence: str
    unit: str
    labels: tuple[str, ...]
    values: Row
    half_widths: Row | None = None
    """Half of each bar's confidence interval; None: not known."""

    def __post_init__(self) -> None:
        _as_long(self.title, len(self.labels), values=self.values, half_widths=self.half_widths)


@dataclass(frozen=True)
class Lines:
    """Numbers along one axis, one line a name."""

    title: str
    sentence: str
    unit: str
    """Of the vertical axis."""
    x_axis: str
    x: Row
    lines: dict[str, Row]
    x_labels: tuple[str, ...] | None = None
    """Words for the places of `x`; None: the numbers."""

    def __post_init__(self) -> None:
        _as_long(self.title, len(self.x), x_labels=self.x_labels, **self.lines)


@dataclass(frozen=True)
class Points:
    """Pairs of numbers."""

    title: str
    sentence: str
    x_axis: str
    y_axis: str
    labels: tuple[str, ...]
    x: Row
    y: Row

    def __post_init__(self) -> None:
        _as_long(self.title, len(self.labels), x=self.x, y=self.y)


@dataclass(frozen=True)
class Strip:
    """Texts whose tokens are shaded by a number each."""

    title: str
    sentence: str
    unit: str
    rows: tuple[tuple[tuple[str, float], ...], ...]
    """For each text its tokens, each with its number."""


Figure: TypeAlias = Heatmap | Bars | Lines | Points | Strip


def _as_long(title: str, size: int, **parts: object) -> None:
    for name, part in parts.items():
        if part is not None and len(part) != size:  # type: ignore[arg-type]
            raise UsageError(f"figure {title!r}: {name} has {len(part)} entries for {size}")  # type: ignore[arg-type]
