"""The page of any figures in a real browser: silent, legible, and usable without a mouse."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cutaway import viz
from tests.viz import sample
from tests.web.conftest import Opened
from tests.web.test_report_page import ask

Visit = Callable[..., Opened]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    viz.write(tmp_path / "page.html", "Figures", sample.figures(6, 7))
    return tmp_path / "page.html"


@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_is_silent_complete_and_fits(visit: Visit, file: Path, width: int) -> None:
    opened = visit(file, width=width, theme="dark" if width == 420 else "light")
    assert opened.errors == []
    assert opened.requests == [file.as_uri()]
    counts = ask(opened.page, "counts")
    assert counts["notUpgraded"] == 0
    assert counts["ours"] == 7
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert ask(opened.page, "slips") == []
    assert ask(opened.page, "overlaps") == []
    assert ask(opened.page, "cut") == []
    assert opened.page.evaluate("window.broken") is None


def test_every_figure_has_its_table_and_is_read_by_keyboard(visit: Visit, file: Path) -> None:
    page = visit(file).page
    figures = ask(page, "figures")
    assert [figure["number"] for figure in figures] == [f"Figure {index}" for index in range(1, 7)]
    assert all(figure["rows"] > 0 and figure["charts"] for figure in figures)
    said = {
        "cutaway-heat-map": ("ArrowRight", "state resid_post.0, position position 1: 0.91 ± 0.10 nat"),
        "cutaway-effects": ("ArrowRight", "resid_post.1: 0.84 ± 0.20 nat"),
        "cutaway-lines": ("Home", "layer 0: logit 0, tuned none bit"),
        "cutaway-scatter": ("Home", "resid_post.5: exact 5.00, estimate \u22125.00"),
        "cutaway-shaded-text": ("End", "Token 6 \u2018·the\u2019: 4.00 nat"),
    }
    for element, (key, text) in said.items():
        chart = page.locator(element).first.locator("[role=application]").first
        chart.focus()
        page.keyboard.press(key)
        assert page.locator(element).first.locator(".readout").inner_text() == text
