"""Tasks that come with cutaway: by name, made for a model's tokenizer, the same for the same seed.

>>> names()
('induction', 'ioi', 'pronoun')
"""

from collections.abc import Callable
from inspect import getdoc

from cutaway.errors import UnknownName, did_you_mean
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


def get(name: str, model: Model, n: int | None = None, seed: int = 0) -> Task:
    """A built-in task for `model`: `n` pairs (None: its own number). Raises UnknownName, and what the task raises."""
    make = _named(name)
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
