"""The examples in docstrings run, and give what they show. In them `folder` is an empty folder."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
MODULES = sorted(
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
    for path in SRC.rglob("*.py")
    if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(name)
    found = doctest.DocTestFinder().find(module, name, extraglobs={"folder": tmp_path})
    written = re.findall(r"^\s*>>> ", Path(str(module.__file__)).read_text(encoding="utf-8"), re.MULTILINE)
    assert sum(len(test.examples) for test in found) == len(written), "some examples are not found"
    said: list[str] = []
    for test in found:
        doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not said, "\n".join(said)


def test_there_are_examples() -> None:
    assert len(MODULES) > 10
