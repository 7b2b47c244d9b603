"""Tasks that come with cutaway: by name, made for a model's tokenizer, the same for the same seed.

>>> names()
('induction', 'ioi', 'pronoun')
"""

from collections.abc import Callable
from inspect import getdoc
from typing import Any

from cutaway.errors import UnknownName, UsageError, did_you_mean
from cutaway.models.model import Model
from cutaway.tasks.builtin.induction import induction
from cutaway.tasks.builtin.ioi import ioi
from cutaway.tasks.builtin.pronoun import pronoun
from cutaway.tasks.task import Task

BUILTIN: dict[str, Callable[..., Task]] = {"induction": induction, "ioi": ioi, "pronoun": pronoun}
"""Each is `f(model, *, n=..., seed=0) -> Task`."""


def names() -> tuple[str, ...]:
    """Names of the built-in tasks."""
    return tuple(sorted(BUILTIN))


def get(name: str, model: Model, n: int | None = None, seed: int = 0, **options: Any) -> Task:
    """A built-in task for `model`: `n` pairs (None: its own number). It has no other options.

    Raises UnknownName for another name or option, UsageError for what is no whole number, and what the task raises.
    """
    make = _named(name)
    if options:
        other = next(iter(options))
        raise UnknownName(
            f"task {name!r}: no option {other!r}; built-in tasks have n and seed.{did_you_mean(other, ('n', 'seed'))}",
            name=other,
        )
    for option, value in (("n", n), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise UsageError(f"task {name!r}: {option}={value!r}; give a whole number", value=value)
    return make(model, seed=seed) if n is None else make(model, n=n, seed=seed)


def describe(name: str) -> str:
    """What a built-in task asks, in one sentence. Raises UnknownName.

    >>> describe("pronoun")
    'After a sentence about a girl or a boy: does the story go on with she or with he?'
    """
    return (getdoc(_named(name)) or "").split("\n", 1)[0]


def _named(name: str) -> Callable[..., Task]:
    if name not in BUILTIN:
        raise UnknownName(f"task {name!r}: no such task.{did_you_mean(name, BUILTIN)}", name=name)
    return BUILTIN[name]
