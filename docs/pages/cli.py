"""The page of all commands, read off the commands themselves."""

from collections.abc import Iterator
from typing import Any

import typer

from cutaway.cli.main import app

HEAD = """# Commands

<!-- made by docs/generate.py from src/cutaway/cli; do not edit -->

Results go to stdout, progress and remarks to stderr; with `--json` stdout holds one JSON document and nothing else,
errors included. Every command prints the Python that does the same. Colours are off with `NO_COLOR` or away from a
terminal.

| exit code | meaning |
|---|---|
| 0 | done; for `study`: every claim that was to hold is supported; for `verify`: the report holds |
| 1 | failure: the model, the data or the evidence is not as it must be |
| 2 | usage: an unknown name, flag or value |
| 3 | a claim is not supported, or the model does not show the behavior |
| 130 | stopped by Ctrl-C |
"""


def page() -> str:
    """The page as Markdown."""
    return HEAD + "".join(_section(path, command) for path, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with the words that call it, the program itself first."""
    yield from _below("cutaway", typer.main.get_command(app))


def _below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _below(f"{path} {name}", child)


def _section(path: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(
        [path, *(parameter.metavar or parameter.name.upper() for parameter in arguments)]
        + (["[OPTIONS]"] if options else [])
        + (["COMMAND"] if hasattr(command, "commands") else [])
    )
    rows = [f"| `{parameter.metavar or parameter.name.upper()}` | {parameter.help} |" for parameter in arguments]
    rows += [f"| `{_flag(option)}` | {option.help}{_default(option)} |" for option in options]
    table = "\n| | |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
    return f"\n## `{path}`\n\n{command.help.strip()}\n\n    {usage}\n{table}"


def _flag(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len, reverse=True))
    names += "".join(f"/{name}" for name in option.secondary_opts)
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


def _default(option: Any) -> str:
    if option.required:
        return " Needed."
    if option.is_flag and option.secondary_opts:
        return f" Default: `{option.opts[0] if option.default else option.secondary_opts[0]}`."
    return "" if option.is_flag or option.default is None else f" Default: `{option.default}`."
