"""The pages: what is public is documented, what is generated is fresh, what is linked exists, what is shown runs."""

import inspect
import re
from pathlib import Path

import pytest
import typer

import cutaway
from cutaway.cli.main import app
from docs.generate import PAGES
from docs.pages.cli import commands

ROOT = Path(__file__).parents[2]
PUBLIC = [name for name in cutaway.__all__ if not name.startswith("__")]
WRITTEN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_all_names_what_can_be_imported() -> None:
    assert sorted(cutaway.__all__) == sorted(set(cutaway.__all__))
    assert [name for name in cutaway.__all__ if not hasattr(cutaway, name)] == []
    assert set(cutaway.__all__) <= set(dir(cutaway))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_what_it_is(name: str) -> None:
    assert len((inspect.getdoc(getattr(cutaway, name)) or "").split()) >= 3


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


def test_every_command_and_flag_is_explained() -> None:
    for path, command in commands():
        assert command.help, path
        for parameter in command.params:
            assert parameter.help, f"{path}: {parameter.name}"


def test_the_page_of_commands_lists_them_all() -> None:
    page = PAGES["cli.md"]()
    for path, command in commands():
        assert f"## `{path}`\n" in page
        assert [
            flag
            for parameter in command.params
            for flag in parameter.opts
            if flag.startswith("--") and flag not in page
        ] == []
    assert len(list(commands())) == 1 + len(typer.main.get_command(app).commands) + 13


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_shown_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, page.name, "exec"), {})


def test_the_readme_shows_python() -> None:
    lines = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert lines is not None
    assert len([line for line in lines[1].splitlines() if line]) <= 12
