"""Cells as pictures: what their labels say about where they lie, and the map or the bars that follow from it.

    one unit, several positions     layer by position
    several heads, one position     layer by head
    both                            head by position
    neurons, sets, and what is left bars

Each kind of site gets a figure of its own. A cell over a window of layers is a row like any other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cutaway.errors import CutawayError
from cutaway.figures import Bars, Figure, Heatmap
from cutaway.models.sites import KINDS, SiteSet, parse

EVERYWHERE = "all"
"""Position of a cell that edits all positions."""
MOST_UNITS, MOST_BARS = 256, 40
"""More units than this are no columns of a map; more bars than this stand by size, not in cell order."""


@dataclass(frozen=True)
class Place:
    """Where a cell lies."""

    kind: str
    layer: str
    """A number, a window such as `2:5`, or nothing for what exists once."""
    unit: str | None
    position: str

    @property
    def whole(self) -> str:
        """The site without its unit and position."""
        return f"{self.kind}.{self.layer}" if self.layer else self.kind


def placed(label: str) -> Place | None:
    """Where the cell of this label lies; None for a set of sites and for what is no site."""
    try:
        found = parse(label)
    except CutawayError:
        return None
    site = found.template if isinstance(found, SiteSet) else found
    if site.kind == "module" or site.batch_rows is not None:
        return None
    layer = "" if site.layer is None else str(site.layer)
    if isinstance(found, SiteSet):
        if found.units or found.layers.start is None or found.layers.stop is None:
            return None
        layer = f"{found.layers.start}:{found.layers.stop}"
    text = str(replace(site, batch_rows=None))
    position = text.partition("@")[2] or EVERYWHERE
    unit = None if site.unit is None else text.partition("@")[0].removeprefix(str(site.base)).removeprefix(".")
    return Place(site.kind, layer, unit, position)


def drawn(
    labels: Sequence[str], values: Sequence[float], halves: Sequence[float], *, title: str, sentence: str, unit: str
) -> tuple[Figure, ...]:
    """The figures of cells with one number each, kind by kind; a half width that is not known is a NaN."""
    kinds: dict[str, list[tuple[Place | None, int]]] = {}
    for index, label in enumerate(labels):
        place = placed(label)
        kinds.setdefault(place.kind if place else "", []).append((place, index))
    found: list[Figure] = []
    for kind, members in kinds.items():
        headline = f"{title}: {KINDS[kind].meaning}" if len(kinds) > 1 and kind else title
        layout = _layout([place for place, _ in members if place is not None])
        if layout is None:
            found.append(_bars([(labels[i], values[i], halves[i]) for _, i in members], headline, sentence, unit))
        else:
            grid = {key: i for key, (_, i) in zip(layout.keys, members)}
            found.append(_map(layout, grid, values, halves, headline, sentence, unit))
    return tuple(found)


@dataclass(frozen=True)
class _Layout:
    row_axis: str
    column_axis: str
    keys: list[tuple[str, str]]
    """Row and column of each cell."""


def _layout(places: Sequence[Place]) -> _Layout | None:
    """Rows and columns; None for bars."""
    units = {place.unit for place in places}
    positions = {place.position for place in places}
    several = len(units) > 1 or units not in ({None}, set())
    axis = KINDS[places[0].kind].axis if places else None
    if not places or len(units) * len({p.whole for p in places}) * len(positions) == 1:
        return None
    if len(positions) > 1:
        rows = [p.whole if p.unit is None else f"{p.whole}.{p.unit}" for p in places]
        keys = list(zip(rows, (p.position for p in places)))
        found = _Layout(axis if several and axis else "site", "position", keys)
    elif several and axis != "neuron" and len(units) <= MOST_UNITS and None not in units:
        found = _Layout("layer", (axis or "unit").replace("_", "/"), [(p.layer, str(p.unit)) for p in places])
    else:
        return None
    return found if len(set(found.keys)) == len(places) else None


def _map(
    layout: _Layout,
    grid: dict[tuple[str, str], int],
    values: Sequence[float],
    halves: Sequence[float],
    title: str,
    sentence: str,
    unit: str,
) -> Heatmap:
    rows, columns = (tuple(dict.fromkeys(key[axis] for key in layout.keys)) for axis in (0, 1))

    def filled(numbers: Sequence[float]) -> tuple[tuple[float, ...], ...]:
        cells = [[grid.get((row, column)) for column in columns] for row in rows]
        return tuple(tuple(math.nan if i is None else numbers[i] for i in row) for row in cells)

    known = any(math.isfinite(half) for half in halves)
    return Heatmap(
        title,
        sentence,
        unit,
        layout.row_axis.replace("_", "/"),
        layout.column_axis,
        rows,
        columns,
        filled(values),
        filled(halves) if known else None,
    )


def _bars(members: Sequence[tuple[str, float, float]], title: str, sentence: str, unit: str) -> Bars:
    order = sorted(members, key=lambda member: -abs(member[1])) if len(members) > MOST_BARS else members
    labels, values, halves = (tuple(part) for part in zip(*order))
    return Bars(title, sentence, unit, labels, values, halves if any(map(math.isfinite, halves)) else None)
