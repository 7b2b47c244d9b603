"""The command `cutaway` and its groups."""

import os
import sys
from typing import Annotated

import typer

from cutaway.cli import (
    ablate,
    attention,
    attribute,
    doctor,
    generate,
    lens,
    models,
    patch,
    path,
    study,
    tasks,
    trace,
    verify,
    zoo,
)
from cutaway.cli.command import Command

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 claim not supported or no behavior, 130 stopped by Ctrl-C.",
)
app.command("study", cls=Command)(study.study)
app.command("verify", cls=Command)(verify.verify)
app.command("patch", cls=Command)(patch.patch)
app.command("ablate", cls=Command)(ablate.ablate)
app.command("trace", cls=Command)(trace.trace)
app.command("path", cls=Command)(path.path)
app.command("attribute", cls=Command)(attribute.attribute)
app.command("attention", cls=Command)(attention.attention)
app.add_typer(lens.app, name="lens")
app.command("generate", cls=Command)(generate.generate)
app.add_typer(models.app, name="models")
app.add_typer(tasks.app, name="tasks")
app.add_typer(zoo.app, name="zoo")
app.command("doctor", cls=Command)(doctor.doctor)


def _version(wanted: bool) -> bool:
    if wanted:
        from cutaway import __version__

        typer.echo(f"cutaway {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Find the parts of a neural network that cause a behavior, change them, and verify the claim."""


def run() -> None:
    """Entry point of the console script."""
    if not sys.stderr.isatty():
        # the bars of transformers and the hub, read once at their import, would fill a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(typer.main.get_command(app)(prog_name="cutaway"))
