"""The command line's promises: exit codes, one clean message, JSON alone on stdout."""

import json
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from cutaway import errors
from cutaway.cli.command import AsJson, Command
from cutaway.cli.main import app
from tests.docs.tree import leaves


def failing(error: BaseException) -> typer.Typer:
    """A program with one group and one command, which raises `error`."""
    program, group = typer.Typer(), typer.Typer()
    program.add_typer(group, name="group")

    @program.callback()
    def root(debug: bool = False) -> None: ...

    @group.command(cls=Command)
    def fail(as_json: AsJson = False) -> None:
        raise error

    @group.command(cls=Command)
    def work() -> None: ...

    return program


def code_of(kind: type[errors.CutawayError]) -> int:
    if kind is errors.NoBehavior:
        return 3
    if kind is errors.Interrupted:
        return 130
    return 2 if issubclass(kind, errors.UsageError) else 1


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_an_error_is_one_message_and_its_exit_code(kind: type[errors.CutawayError]) -> None:
    result = CliRunner().invoke(failing(kind("7 is odd; use 8 [bold]", n=7)), ["group", "fail"])
    assert result.exit_code == code_of(kind)
    assert result.stderr == f"{kind.__name__}: 7 is odd; use 8 [bold]\n"
    assert result.stdout == ""


def test_json_holds_the_error_too() -> None:
    error = errors.OutOfRange("no layer 9", layer=9, near=("a", "b"))
    result = CliRunner().invoke(failing(error), ["group", "fail", "--json"])
    assert result.exit_code == 2
    fields = {"layer": 9, "near": "('a', 'b')"}
    assert json.loads(result.stdout) == {"error": {"type": "OutOfRange", "message": "no layer 9", "fields": fields}}


def test_debug_shows_the_error_itself() -> None:
    result = CliRunner().invoke(failing(errors.ModelError("no")), ["--debug", "group", "fail"])
    assert isinstance(result.exception, errors.ModelError)


def test_a_bug_is_not_dressed_up() -> None:
    result = CliRunner().invoke(failing(ZeroDivisionError()), ["group", "fail"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "words",
    [["studdy"], ["study"], ["study", "induction"], ["verify"], ["models"], ["tasks", "show"], ["doctor", "--frob"]],
)
def test_a_wrong_call_is_usage(words: list[str]) -> None:
    assert CliRunner().invoke(app, words).exit_code == 2


def test_version() -> None:
    from cutaway import __version__

    assert CliRunner().invoke(app, ["--version"]).stdout == f"cutaway {__version__}\n"


def flags(command: object, path: str = "cutaway") -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        yield from ((path, flag) for flag in parameter.opts if flag.startswith("--"))
    for name, child in getattr(command, "commands", {}).items():
        yield from flags(child, f"{path} {name}")


def test_flags_are_kebab_case_and_every_command_speaks_json() -> None:
    found = list(flags(typer.main.get_command(app)))
    assert [flag for _, flag in found if flag != flag.lower() or "_" in flag] == []
    groups = {"cutaway", *(f"cutaway {name}" for name in ("lens", "models", "tasks", "zoo"))}
    talk = {path for path, _ in found} - groups
    assert {path for path, flag in found if flag == "--json"} == talk
    assert len(talk) == 23
