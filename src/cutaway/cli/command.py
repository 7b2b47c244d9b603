"""A command whose errors come out as one message and an exit code.

Exit codes: 0 ok, 1 failure, 2 usage, 3 a claim that is not supported or no behavior to study, 130 stopped by Ctrl-C.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cutaway.cli import console
from cutaway.errors import CutawayError, Interrupted, NoBehavior, UsageError

STOPPED = 130
"""What shells take for 'ended by Ctrl-C'."""
EXIT_CODES: tuple[tuple[type[CutawayError], int], ...] = (
    (NoBehavior, 3),
    (UsageError, 2),
    (Interrupted, STOPPED),
    (CutawayError, 1),
)
"""Exit code of the first class that an error belongs to."""

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, logs on stderr.")]


class Command(TyperCommand):
    """What `cls=` of every command is."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. An error of cutaway becomes its class name and message on stderr; --debug raises it."""
        try:
            return super().invoke(ctx)
        except CutawayError as error:
            if ctx.find_root().params.get("debug"):
                raise
            if ctx.params.get("as_json"):
                console.emit(as_data(error))
            console.say(f"{type(error).__name__}: {error}", style="red")
            raise typer.Exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind))) from None
        except KeyboardInterrupt:
            console.say("Stopped.", style="red")
            raise typer.Exit(STOPPED) from None


def as_data(error: CutawayError) -> dict[str, Any]:
    """An error for other programs: its type, message and fields; a field that JSON has no word for becomes text."""
    simple = (str, int, float, bool, type(None))
    fields = {name: value if isinstance(value, simple) else str(value) for name, value in error.fields.items()}
    return {"error": {"type": type(error).__name__, "message": str(error), "fields": fields}}
