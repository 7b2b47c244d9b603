"""The page of any figures: what it holds, and what is refused."""

from pathlib import Path

import pytest

from cutaway import viz
from cutaway.errors import UsageError
from cutaway.figures import Bars, Heatmap, Lines
from cutaway.viz.html import payload_of
from tests.viz import sample


def test_a_page_holds_every_figure_and_none_for_what_is_no_number(tmp_path: Path) -> None:
    viz.write(tmp_path / "page.html", "A title", sample.figures())
    held = payload_of((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert held["title"] == "A title"
    assert [figure["kind"] for figure in held["figures"]] == ["Heatmap", "Heatmap", "Bars", "Lines", "Points", "Strip"]
    assert held["figures"][0]["values"][-1] == [None] * 5
    assert held["figures"][0]["values"][0][0] == sample.figures()[0].values[0][0]  # type: ignore[union-attr]


def test_nothing_to_show_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no figures to show"):
        viz.gallery("Empty", ())
    with pytest.raises(UsageError, match="is a folder; give a file in it"):
        viz.write(tmp_path, "Folder", sample.figures())


def test_a_figure_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'Map': values needs 1 rows of 2"):
        Heatmap("Map", "", "", "", "", ("a",), ("x", "y"), ((1.0,),))
    with pytest.raises(UsageError, match=r"'Bars': values has 1 entries for 2"):
        Bars("Bars", "", "", ("a", "b"), (1.0,))
    with pytest.raises(UsageError, match=r"'Lines': one has 1 entries for 2"):
        Lines("Lines", "", "", "", (0.0, 1.0), {"one": (1.0,)})
