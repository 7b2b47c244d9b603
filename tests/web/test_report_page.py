"""The page of a report in a real browser, opened from a file: silent, complete, legible, and usable without a mouse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutaway.report.page import render
from tests.report import sample
from tests.web.conftest import Opened, chromium

Visit = Callable[..., Opened]

HOSTILE = "</script><img src=x onerror=window.broken=1><b>"

PROBE = (Path(__file__).parent / "probe.js").read_text(encoding="utf-8")


def ask(page: Any, question: str) -> Any:
    """The answer of one function of probe.js."""
    return page.evaluate(f"() => {{ {PROBE}\nreturn {question}(); }}")


def bare() -> Any:
    """A study that stopped early: only what every report has."""
    behavior = sample.study().behavior.model_copy(update={"passed": False})
    empty: dict[str, Any] = dict.fromkeys(("position_map", "head_map", "mlps", "attribution", "lens", "plan"))
    return sample.study(claims=False, examples=[], attention=[], limits=[], behavior=behavior, **empty)


def flat() -> Any:
    """A study in which nothing has any effect."""
    study: Any = sample.study(n_layers=1, n_heads=1, n_pairs=12)
    position = study.position_map.model_copy(update={"values": ((0.0,) * 5,), "half_widths": None})
    head = study.head_map.model_copy(
        update={"rows": ("0",), "columns": ("0",), "values": ((0.0,),), "half_widths": ((0.0,),)}
    )
    mlp = study.mlps.model_copy(
        update={"items": tuple(item.model_copy(update={"value": 0.0}) for item in study.mlps.items)}
    )
    points = tuple(point.model_copy(update={"exact": 0.0, "estimate": 0.0}) for point in study.attribution.points)
    scatter = study.attribution.model_copy(update={"points": points, "correlation": None})
    return study.model_copy(update={"position_map": position, "head_map": head, "mlps": mlp, "attribution": scatter})


def hostile() -> Any:
    """A study whose every text is an attack, and whose tokens are long, odd or empty."""
    odd = [HOSTILE, "", "\n", "\t", "\u202egnp.exe", "a" * 300, "\u4e2d\u6587", "\U0001f642", "\u00a0", "</style>"]
    study: Any = sample.study(title=HOSTILE, sentence=HOSTILE, limits=[HOSTILE])
    first = study.examples[0].model_copy(update={
        "id": HOSTILE, "clean": tuple(odd), "corrupt": tuple(odd[::-1]), "differing": (0, 1, 9), "positions": (),
        "answer": HOSTILE, "foil": "a" * 300,
    })  # fmt: skip
    n = len(odd)
    weights = tuple(tuple(1.0 if key == query else 0.0 for key in range(n)) for query in range(n))
    pattern = (
        study.attention[0].examples[0].model_copy(update={"id": HOSTILE, "tokens": tuple(odd), "weights": weights})
    )
    head = study.attention[0].model_copy(update={"site": HOSTILE, "sentence": HOSTILE, "examples": (pattern,)})
    claim = study.claims[0].model_copy(
        update={"id": HOSTILE, "sentence": HOSTILE, "subject": (HOSTILE, "z" * 200), "reason": "a" * 400}
    )
    columns = tuple(f"{HOSTILE}{index}" for index in range(5))
    position = study.position_map.model_copy(update={"columns": columns})
    return study.model_copy(update={
        "examples": (first,), "attention": (head,), "claims": (claim,), "position_map": position,
    })  # fmt: skip


STUDIES: dict[str, Callable[[], Any]] = {
    "usual": sample.study,
    "two layers": lambda: sample.study(n_layers=2, n_heads=4, n_pairs=12),
    "large": lambda: sample.study(n_layers=48, n_heads=32, n_pairs=400),
    "bare": bare,
    "flat": flat,
    "hostile": hostile,
}


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("pages")

    def written(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            path.write_text(render(STUDIES[name](), []), encoding="utf-8")
        return path

    return written


@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("name", STUDIES)
def test_a_page_is_silent_complete_and_fits(visit: Visit, file: Callable[[str], Path], name: str, width: int) -> None:
    opened = visit(file(name), width=width, theme="dark" if width == 420 else "light")
    page = opened.page
    assert opened.errors == []
    assert opened.requests == [file(name).as_uri()]
    counts = ask(page, "counts")
    assert counts["notUpgraded"] == 0
    assert counts["ours"] >= 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert ask(page, "slips") == []
    assert page.evaluate("window.broken") is None


@pytest.mark.parametrize("width", [1280, 760, 420])
@pytest.mark.parametrize("name", ["usual", "two layers", "large", "flat", "hostile"])
def test_no_label_lies_on_another_or_is_cut(visit: Visit, file: Callable[[str], Path], name: str, width: int) -> None:
    page = visit(file(name), width=width).page
    assert ask(page, "counts")["labels"] > 50
    assert ask(page, "overlaps") == []
    assert ask(page, "cut") == []


def test_every_figure_says_what_it_is(visit: Visit, file: Callable[[str], Path]) -> None:
    page = visit(file("usual")).page
    figures = ask(page, "figures")
    assert [figure["number"] for figure in figures] == [f"Figure {index}" for index in range(1, 10)]
    for figure in figures:
        assert figure["name"] == figure["title"] != ""
        assert figure["sentence"].endswith((".", "head and a prompt.")), figure["title"]
        assert figure["legend"], figure["title"]
        assert figure["rows"] > 0, figure["title"]
        assert figure["caption"], figure["title"]
        assert figure["charts"], figure["title"]
        for chart in figure["charts"]:
            assert chart["label"], figure["title"]
            assert chart["kind"], figure["title"]
            assert chart["tab"] == 0, figure["title"]


def readout(page: Any, element: str) -> str:
    return page.locator(element).first.locator(".readout").inner_text()


@pytest.mark.parametrize(
    ("element", "first", "keys", "then"),
    [
        ("cutaway-heat-map", "layer 0, position first name", ["ArrowDown", "ArrowRight"], "layer 1, position subject"),
        ("cutaway-heat-map", "layer 0, position first name", ["End", "ArrowRight"], "layer 0, position end"),
        ("cutaway-behavior", "Pair 0", ["ArrowRight"], "Pair 1"),
        ("cutaway-token-strip", "Token 0", ["ArrowRight", "ArrowRight"], "Token 2"),
        ("cutaway-effects", "mlp_out.0", ["End"], "mlp_out.11"),
        ("cutaway-scatter", "exact", ["ArrowRight"], "exact"),
        ("cutaway-attention", "query 16", ["ArrowUp", "ArrowRight"], "query 15"),
        ("cutaway-lens", "resid_post.0", ["ArrowRight"], "resid_post.1"),
        ("cutaway-forest", "carriers, necessary", ["ArrowDown"], "carriers, sufficient"),
    ],
)
def test_charts_are_read_by_keyboard(
    visit: Visit, file: Callable[[str], Path], element: str, first: str, keys: list[str], then: str
) -> None:
    page = visit(file("usual")).page
    hint = readout(page, element)
    page.locator(element).first.locator("[role=application]").first.focus()
    start = readout(page, element)
    assert first in start
    assert start != hint
    for key in keys:
        page.keyboard.press(key)
    moved = readout(page, element)
    assert then in moved
    assert moved != start
    page.locator("h1").click()
    assert readout(page, element) == hint


def test_tab_reaches_every_control_in_turn(visit: Visit, file: Callable[[str], Path]) -> None:
    page = visit(file("usual")).page
    charts = [chart["label"] for figure in ask(page, "figures") for chart in figure["charts"]]
    seen = []
    for _ in range(75):
        page.keyboard.press("Tab")
        seen.append(ask(page, "focused"))
    assert len(charts) >= 11
    assert [label for label in charts if label not in seen] == []


def test_choices_change_what_is_shown(visit: Visit, file: Callable[[str], Path]) -> None:
    page = visit(file("usual")).page
    strip = page.locator("cutaway-token-strip")
    assert strip.locator(".pair").count() == 3
    strip.get_by_role("button", name="Show 2 more").press("Enter")
    assert strip.locator(".pair").count() == 5
    attention = page.locator("cutaway-attention")
    before = attention.locator("[role=application]").get_attribute("aria-label")
    attention.locator("select").nth(1).select_option("1")
    assert attention.locator("[role=application]").get_attribute("aria-label") != before
    attention.locator("select").first.select_option("1")
    assert "pattern.9.h1" in (attention.locator("[role=application]").get_attribute("aria-label") or "")
    page.locator("cutaway-heat-map").first.get_by_text("Data table").press("Enter")
    assert page.locator("cutaway-heat-map").first.locator("td").first.is_visible()


def test_verdicts_lead_to_their_claims(visit: Visit, file: Callable[[str], Path]) -> None:
    opened = visit(file("usual"))
    verdicts = opened.page.locator(".verdicts li")
    assert [text.split()[0] for text in verdicts.all_inner_texts()] == ["supported", "refuted", "inconclusive"]
    verdicts.nth(1).locator("a").press("Enter")
    assert opened.page.url.endswith("#claim-decoy")
    assert opened.page.locator("#claim-decoy").bounding_box()["y"] < 200  # type: ignore[index]
    assert opened.requests == [file("usual").as_uri()]


def test_light_and_dark_differ_and_can_be_chosen(visit: Visit, file: Callable[[str], Path]) -> None:
    light, dark = (visit(file("usual"), theme=theme).page for theme in ("light", "dark"))
    pictures = [page.screenshot() for page in (light, dark)]
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 20_000 for picture in pictures)
    assert pictures[0] != pictures[1]
    paper = "getComputedStyle(document.body).backgroundColor"
    assert light.evaluate(paper) != dark.evaluate(paper)
    for page, other in ((light, dark), (dark, light)):
        expected = other.evaluate(paper)
        page.get_by_role("button", name="Light or dark").press("Enter")
        assert page.evaluate(paper) == expected
        page.get_by_role("button", name="Light or dark").press("Enter")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out(visit: Visit, file: Callable[[str], Path], theme: str) -> None:
    """Contrast of at least 4.5 for text on paper, and of 4 for numbers on every colour of a map (WCAG 2)."""
    page = visit(file("usual"), theme=theme).page
    assert {name: round(found, 1) for name, found in ask(page, "themeContrasts").items() if found < 4.5} == {}
    cells = ask(page, "cellContrasts")
    assert len(cells) == 60
    assert min(cells) >= 4.0


def test_a_study_that_stopped_shows_nothing_empty(visit: Visit, file: Callable[[str], Path]) -> None:
    page = visit(file("bare")).page
    assert page.locator("h2").all_inner_texts() == [
        "The behavior",
        "The model",
        "Run it again",
        "Evidence and environment",
    ]
    assert "the study stopped here" in page.locator("#behavior").inner_text()
    assert page.locator(".verdicts").count() == 0


def test_without_scripts_the_verdicts_are_still_there(browser: Any, file: Callable[[str], Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file("usual").as_uri())
    assert "refuted: Head 2.5 carries" in page.locator("body").inner_text()
    context.close()


def test_characters_that_nobody_sees_get_a_sign(visit: Visit, file: Callable[[str], Path]) -> None:
    tokens = visit(file("hostile")).page.locator("cutaway-token-strip .token.clean").all_inner_texts()
    assert tokens[1:5] == ["\u2205", "\u21b5", "\u21e5", "U+202Egnp.exe"]
    assert tokens[5] == "a" * 24 + "\u2026"


def test_a_missing_browser_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        chromium()
