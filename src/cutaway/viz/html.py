"""One offline HTML file out of ES modules, style sheets and data.

The modules are linked, not bundled: each becomes a function that returns what it exports, in the order in which they
need each other, so the page carries the very text of the files. The page's security policy names that text by hash and
forbids everything else: no network, no other script, no other style. Data stands in a block that is never executed.

The linker reads the plain form of the module language that the components are written in: named imports from
neighbouring files, each ended by a semicolon, and `export` before a declaration.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from cutaway.artifacts import digest
from cutaway.errors import UnknownName, UsageError, did_you_mean

_IMPORT = re.compile(r'^import\s+(?:\{(?P<names>[^}]*)\}\s+from\s+)?"\./(?P<module>[\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (?P<name>\w+))", re.MULTILINE)
_LEFT = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)
_STYLES = ("theme.css", "page.css")


@cache
def component(name: str) -> str:
    """Text of one file of `viz/components`. Raises UnknownName."""
    folder = files("cutaway.viz") / "components"
    known = [entry.name for entry in folder.iterdir()]
    if name not in known:
        raise UnknownName(f"no component file {name!r}.{did_you_mean(name, known)}", name=name)
    return (folder / name).read_text(encoding="utf-8")


@cache
def link(entry: str) -> str:
    """One module script out of `entry` and all that it imports, each file once. Raises UsageError for other syntax."""
    order: list[str] = []
    _visit(entry, order, ())
    return "\n".join(_wrapped(name) for name in order)


def page(title: str, payload: Any, *, entry: str, element: str, plain_text: str) -> str:
    """The whole page as text: equal arguments give equal bytes.

    Args:
        payload: JSON value for the page's element; NaN and infinity are refused (ValueError).
        entry: module file that defines `element`.
        element: name of the custom element that shows the payload.
        plain_text: what a reader without scripts sees.
    """
    style = "\n".join(component(name) for name in _STYLES)
    script = link(entry)
    allowed = f"script-src {_source(script)}; style-src {_source(style)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            f'<script type="application/json" id="payload">{_inert(payload)}</script>',
            f"<{element}></{element}>",
            f"<noscript>{html.escape(plain_text)}</noscript>",
            f'<script type="module">{script}</script>',
            "</body>",
            "</html>",
            "",
        ]
    )


def payload_of(document: str) -> Any:
    """The data of a page that `page` wrote. Raises UsageError when there is none."""
    found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', document, re.DOTALL)
    try:
        return json.loads(found[1]) if found else _no_payload()
    except json.JSONDecodeError:
        return _no_payload()


def renderer(entry: str) -> str:
    """SHA-256 of everything but the data that decides how a page looks; equal renderers draw equal pages."""
    return digest(
        [link(entry), *(component(name) for name in _STYLES), page("", None, entry=entry, element="x-y", plain_text="")]
    )


def _no_payload() -> Any:
    raise UsageError("this page holds no data block; it was not written by cutaway, or was changed since")


def _inert(payload: Any) -> str:
    """JSON that cannot end its script element, begin a comment or be taken for markup."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _source(text: str) -> str:
    """The security policy's name for an inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _visit(name: str, order: list[str], above: tuple[str, ...]) -> None:
    if name in above:
        raise UsageError(f"component {name!r} imports itself by way of {' -> '.join([*above, name])}; break the circle")
    if name in order:
        return
    for found in _IMPORT.finditer(component(name)):
        _visit(found["module"], order, (*above, name))
    order.append(name)


def _wrapped(name: str) -> str:
    """A module as a function: imports become constants, exports the returned record."""
    text = component(name)
    exported = [found["name"] for found in _EXPORT.finditer(text)]
    body = _EXPORT.sub("", _IMPORT.sub(_bound, text))
    if left := _LEFT.search(body):
        raise UsageError(
            f'component {name!r}: cannot link {left[0]!r}; write `import {{ a }} from "./b.js";` or `export` '
            "before a function, class or const",
            name=name,
        )
    if "</script" in body.lower() or "<!--" in body:
        raise UsageError(
            f"component {name!r} holds text that would end its script element; write it in two parts", name=name
        )
    return f"const {_variable(name)} = (() => {{\n{body}\nreturn {{ {', '.join(exported)} }};\n}})();"


def _bound(found: re.Match[str]) -> str:
    if found["names"] is None:
        return ""
    names = ", ".join(_renamed(part) for part in found["names"].split(",") if part.strip())
    return f"const {{ {names} }} = {_variable(found['module'])};\n"


def _renamed(part: str) -> str:
    """`a as b` of an import is `a: b` of a pattern."""
    return ": ".join(part.split(" as ")).strip()


def _variable(name: str) -> str:
    return "$" + name.removesuffix(".js").replace("-", "_")


def modules() -> Iterable[str]:
    """Names of all module files."""
    return sorted(entry.name for entry in (files("cutaway.viz") / "components").iterdir() if entry.name.endswith(".js"))
