"""Figures in a terminal: all numbers are there without colours, wide ones are cut with a word."""

import io
import math

import pytest
from rich.console import Console

from cutaway.figures import Bars, Figure, Heatmap
from cutaway.viz.terminal import number, terminal
from tests.viz import sample


def printed(figure: Figure, width: int = 120, color: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=color, color_system="truecolor" if color else None).print(
        terminal(figure)
    )
    return file.getvalue()


@pytest.mark.parametrize("figure", sample.figures(), ids=lambda figure: figure.title)
def test_every_kind_is_drawn_with_its_title_sentence_and_labels(figure: Figure) -> None:
    text = printed(figure)
    assert figure.title in text
    assert figure.sentence in text
    labels = getattr(figure, "labels", getattr(figure, "rows", None) if isinstance(figure, Heatmap) else None)
    assert all(label in text for label in labels or [])
    assert "nan" not in text


def test_a_map_holds_its_numbers_and_leaves_gaps_empty() -> None:
    values = ((0.5, -1.25), (math.nan, 0.0))
    figure = Heatmap("Map", "Cells.", "nat", "row", "column", ("a", "b"), ("x", "y"), values)
    *_, names, first, second = printed(figure).splitlines()
    assert names.split() == ["x", "y"]
    assert first.split() == ["a", "0.50", "-1.25"]
    assert second.split() == ["b", "0"]


def test_blue_is_positive_and_orange_negative() -> None:
    figure = Heatmap("Map", "Cells.", "nat", "row", "column", ("a",), ("x", "y"), ((1.0, -1.0),))
    line = printed(figure, color=True).splitlines()[-1]
    assert line.index("48;2;46;112;184") < line.index("48;2;208;112;28")


def test_a_wide_map_shows_what_fits_and_says_so() -> None:
    figure = sample.figures(n_columns=40)[0]
    text = printed(figure, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "of 40 columns fit" in text
    assert "columns fit" not in printed(figure, width=2000)


def test_the_longest_bar_is_the_largest_effect() -> None:
    figure = Bars("Bars", "Each.", "nat", ("a", "b", "c"), (1.0, -2.0, math.nan), (0.1, math.nan, math.nan))
    lines = [line for line in printed(figure).splitlines() if line[:1] in "abc" and line.strip()]
    sizes = {line[0]: line.count("█") for line in lines if line[1] == " "}
    assert sizes == {"a": 20, "b": 40, "c": 0}
    assert "1.00 ± 0.1" in printed(figure)


def test_numbers_have_about_three_digits() -> None:
    assert [number(x) for x in (0.0, 0.0123, 0.5, 12.34, 1234.5, math.nan)] == [
        "0",
        "0.012",
        "0.50",
        "12.3",
        "1234",
        "",
    ]
