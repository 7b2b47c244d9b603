"""Figures in a terminal: shaded cells, bars and shaded text. Without colours the same numbers stand there.

Blue is positive, orange negative, no colour is zero, as on a page. A figure that is wider than the terminal shows its
first columns and says how many there are.
"""

import math
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cutaway.figures import Bars, Figure, Heatmap, Lines, Points, Strip

POSITIVE, NEGATIVE, GROUND = (46, 112, 184), (208, 112, 28), (24, 24, 26)
"""Red, green and blue of the ends of the scale, and of its middle."""
BAR = 40
"""Cells of the longest bar."""
SPARKS = "▁▂▃▄▅▆▇█"
MOST_POINTS = 12
MOST_ROWS = 40


def terminal(figure: Figure) -> RenderableType:
    """A figure as something that rich prints: title, sentence, drawing."""
    head = Text(figure.title, style="bold")
    body = _DRAWN[type(figure)](figure)
    return Group("", head, Text(figure.sentence, style="dim"), "", body)


def number(value: float) -> str:
    """About three significant digits; nothing for a NaN.

    >>> number(0.123456), number(1234.5), number(float("nan"))
    ('0.12', '1234', '')
    """
    size = abs(value)
    if math.isnan(value):
        return ""
    if size == 0 or size >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.0995 else f"{value:.2g}"


class _Grid:
    """A heat map; drawn when the width is known."""

    def __init__(self, figure: Heatmap) -> None:
        self.figure = figure

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        figure = self.figure
        words = figure.texts or tuple(tuple(number(value) for value in row) for row in figure.values)
        left = max(len(label) for label in (*figure.rows, figure.row_axis)) + 1
        wide = [
            max(len(text) for text in (label, *(row[i] for row in words))) + 1 for i, label in enumerate(figure.columns)
        ]
        fit = _fitting(wide, options.max_width - left)
        most = reach(value for row in figure.values for value in row)
        yield Text(f"{figure.row_axis} by {figure.column_axis}; {figure.unit}", style="dim")
        yield Text(" " * left + "".join(f"{label:>{w}}" for label, w in zip(figure.columns[:fit], wide)), style="bold")
        for label, values, texts in zip(figure.rows, figure.values, words):
            line = Text(f"{label:<{left}}")
            for value, text, width in zip(values[:fit], texts, wide):
                line.append(f"{text:>{width}}", style=shade(value, most))
            yield line
        if fit < len(wide):
            yield Text(
                f"{fit} of {len(wide)} columns fit; the rest is in the saved result and on its page", style="dim"
            )


def _fitting(widths: Sequence[int], room: int) -> int:
    total, count = 0, 0
    for width in widths:
        total += width
        if total > room:
            break
        count += 1
    return max(1, count)


def _bars(figure: Bars) -> RenderableType:
    most = reach(figure.values)
    grid = Table(box=None, show_header=False, pad_edge=False)
    halves = figure.half_widths or (math.nan,) * len(figure.values)
    for label, value, half in zip(figure.labels[:MOST_ROWS], figure.values, halves):
        size = 0 if math.isnan(value) else round(BAR * abs(value) / most)
        spread = "" if math.isnan(half) else f" ± {number(half)}"
        grid.add_row(Text(label), Text(f"{number(value)}{spread}"), Text("█" * size, style=_color(value)))
    rest = len(figure.labels) - MOST_ROWS
    said = [Text(f"{rest} more are in the saved result and on its page", style="dim")] if rest > 0 else []
    return Group(grid, *said, Text(f"unit: {figure.unit}", style="dim"))


def _lines(figure: Lines) -> RenderableType:
    known = [value for values in figure.lines.values() for value in values if not math.isnan(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    grid = Table(box=None, show_header=False, pad_edge=False)
    for name, values in figure.lines.items():
        first, last = (next((v for v in order if not math.isnan(v)), math.nan) for order in (values, values[::-1]))
        ends = f"{number(first)} → {number(last)}"
        grid.add_row(Text(name), Text("".join(_spark(value, low, high) for value in values)), Text(ends))
    places = figure.x_labels or tuple(number(x) for x in figure.x)
    scale = f"{figure.x_axis}: {places[0]} to {places[-1]}; heights from {number(low)} to {number(high)} {figure.unit}"
    return Group(grid, Text(scale, style="dim"))


def _spark(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return " "
    return SPARKS[0 if high == low else min(len(SPARKS) - 1, int(len(SPARKS) * (value - low) / (high - low)))]


def _points(figure: Points) -> RenderableType:
    order = sorted(range(len(figure.x)), key=lambda i: -abs(figure.x[i]))
    grid = Table("", figure.x_axis, figure.y_axis, box=None, pad_edge=False)
    for i in order[:MOST_POINTS]:
        grid.add_row(Text(figure.labels[i]), number(figure.x[i]), number(figure.y[i]))
    rest = len(order) - MOST_POINTS
    return Group(grid, *([Text(f"{rest} more, nearer to zero", style="dim")] if rest > 0 else []))


def _strip(figure: Strip) -> RenderableType:
    most = reach(value for row in figure.rows for _, value in row)
    rows = [
        Text.assemble(*((token.replace("\n", "↵"), shade(value, most)) for token, value in row)) for row in figure.rows
    ]
    return Group(*rows, Text(f"full colour: {number(most)} {figure.unit}", style="dim"))


_DRAWN = {Heatmap: _Grid, Bars: _bars, Lines: _lines, Points: _points, Strip: _strip}


def reach(values: Iterator[float] | Sequence[float]) -> float:
    """Greatest absolute value, 1 when all are zero: the end of a scale that is centred at zero."""
    return max((abs(value) for value in values if not math.isnan(value)), default=0.0) or 1.0


def shade(value: float, most: float) -> Style:
    """Background of a cell; none for a NaN."""
    if math.isnan(value):
        return Style()
    share = min(1.0, abs(value) / most)
    end = NEGATIVE if value < 0 else POSITIVE
    mixed = tuple(round(ground + share * (full - ground)) for ground, full in zip(GROUND, end))
    return Style(bgcolor=_hex(mixed), color="#ffffff" if share > 0.35 else "#c8c8cc")


def _color(value: float) -> Style:
    return Style(color=_hex(NEGATIVE if value < 0 else POSITIVE))


def _hex(color: Sequence[int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in color)
