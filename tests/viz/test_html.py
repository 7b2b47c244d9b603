"""The linker and the page around it: modules become one script, data stays data, nothing may be fetched."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cutaway.errors import UnknownName, UsageError
from cutaway.viz import html

ENTRY = "report-page.js"
PAGES = (ENTRY, "gallery-page.js")
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>&amp;\u2028\u2029",
    '"\\\n\r\t\u0000',
    "\u202egnp.exe",
]


def page(payload: Any, title: str = "A title", plain_text: str = "plain") -> str:
    return html.page(title, payload, entry=ENTRY, element="cutaway-report", plain_text=plain_text)


def variable(module: str) -> str:
    return "$" + module.removesuffix(".js").replace("-", "_")


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("entry", PAGES)
def test_every_module_is_linked_once_and_after_what_it_needs(entry: str) -> None:
    script = html.link(entry)
    places = {name: script.find(f"const {variable(name)} = ") for name in html.modules()}
    places = {name: place for name, place in places.items() if place >= 0}
    assert len(places) > 10
    for name in places:
        assert script.count(f"const {variable(name)} = ") == 1
        for needed in re.findall(r'"\./([\w-]+\.js)"', html.component(name)):
            if not needed.startswith("payload"):
                assert places[needed] < places[name], f"{name} comes before {needed}"


def test_every_module_belongs_to_a_page() -> None:
    linked = "".join(map(html.link, PAGES))
    assert [name for name in html.modules() if f"const {variable(name)} = " not in linked] == []


def test_the_script_has_no_module_syntax_left() -> None:
    assert re.findall(r"^(?:import|export)\b.*", html.link(ENTRY), re.MULTILINE) == []


def test_components_fetch_nothing_and_parse_no_html() -> None:
    """What a component may not use, found in its text."""
    forbidden = re.compile(
        r"fetch\(|XMLHttpRequest|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|WebSocket|"
        r"localStorage|https?://(?!www\.w3\.org/2000/svg)"
    )
    for name in html.modules():
        assert forbidden.findall(html.component(name)) == [], name
    for name in ("theme.css", "page.css"):
        assert re.findall(r"url\(|@import", html.component(name)) == []


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.js": 'import b from "./b.js";\n', "b.js": ""}, "cannot link"),
        ({"a.js": "export default 1;\n"}, "cannot link"),
        ({"a.js": 'import { b } from "./b.js";\n', "b.js": 'import { a } from "./a.js";\n'}, "itself"),
        ({"a.js": 'export const a = "</script>";\n'}, "end its script"),
    ],
)
def test_what_cannot_be_linked_is_refused(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], says: str) -> None:
    monkeypatch.setattr(html, "component", files.__getitem__)
    with pytest.raises(UsageError, match=says):
        html.link.__wrapped__("a.js")


def test_linked_modules_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "a.js": 'import { one, two as second } from "./b-c.js";\nexport const sum = one + second;\n',
        "b-c.js": "export const one = 1;\nexport function two() {}\n",
    }
    monkeypatch.setattr(html, "component", files.__getitem__)
    script = html.link.__wrapped__("a.js")
    assert "const { one, two: second } = $b_c;" in script
    assert script.index("return { one, two };") < script.index("return { sum };")


def test_an_unknown_component_is_named() -> None:
    with pytest.raises(UnknownName, match=r"heat-map\.js"):
        html.component("heatmap.js")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_data_stays_data(text: str) -> None:
    document = page({"text": text, text: [text]}, title=text, plain_text=text)
    assert html.payload_of(document) == {"text": text, text: [text]}
    block = document.split('id="payload">')[1].split("</script>")[0]
    assert not re.search("[<>&\u2028\u2029]", block)
    assert json.loads(block) == {"text": text, text: [text]}
    assert document.lower().count("<script") == 2
    assert document.lower().count("</script") == 2
    assert "<img" not in document
    assert "<!--" not in document


def test_numbers_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        page({"value": float("nan")})


def test_the_policy_names_the_inline_texts_and_forbids_the_rest() -> None:
    document = page({"a": 1})
    found = re.search(r'Content-Security-Policy" content="([^"]+)"', document)
    assert found is not None
    rules = dict(rule.strip().split(" ", 1) for rule in found[1].split(";"))
    script = document.split('<script type="module">')[1].split("</script>")[0]
    style = document.split("<style>")[1].split("</style>")[0]
    assert rules == {
        "default-src": "'none'",
        "script-src": hashed(script),
        "style-src": hashed(style),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_a_page_without_data_is_refused() -> None:
    for document in ("", "<p>no report</p>", page({"a": 1}).replace('{"a"', "{a")):
        with pytest.raises(UsageError, match="no data block"):
            html.payload_of(document)


def test_the_renderer_is_known_by_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    before = html.renderer(ENTRY)
    assert before == html.renderer(ENTRY)
    real = html.component
    monkeypatch.setattr(html, "component", lambda name: real(name) + ("\n/* */" if name == "page.css" else ""))
    assert html.renderer(ENTRY) != before


def test_components_begin_with_what_they_are_for() -> None:
    for name in html.modules():
        assert html.component(name).startswith("// "), name
        assert max(map(len, html.component(name).splitlines())) < 500, name


def test_styles_use_the_theme_alone() -> None:
    """Every variable that a sheet uses is set by the theme, for light and for dark, or by the sheet itself."""
    theme = html.component("theme.css")
    for name in [*html.modules(), "page.css"]:
        text = html.component(name)
        for variable in set(re.findall(r"var\((--[\w-]+)\)", text)):
            assert theme.count(f"{variable}:") in (1, 3) or f"{variable}:" in text, f"{name} uses {variable}"


def test_both_dark_themes_are_the_same() -> None:
    blocks = re.findall(
        r'(?:not\(\[data-theme="light"\]\)|:root\[data-theme="dark"\]) \{\n(.*?)\n\s*\}',
        html.component("theme.css"),
        re.DOTALL,
    )
    assert len(blocks) == 2
    first, second = ([line.strip() for line in block.splitlines()] for block in blocks)
    assert first == second


def test_package_data_is_beside_the_code() -> None:
    assert (Path(html.__file__).parent / "components" / ENTRY).is_file()
