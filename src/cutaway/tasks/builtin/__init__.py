"""Tasks that come with cutaway: by name, made for a model's tokenizer, the same for the same seed.

>>> names()[:4]
('addition', 'agreement', 'alphabetical', 'antonym')
"""

from collections.abc import Callable
from inspect import getdoc
from typing import Any

from cutaway.errors import UnknownName, UsageError, did_you_mean
from cutaway.models.model import Model
from cutaway.tasks.builtin.addition import ADDITION, addition
from cutaway.tasks.builtin.agreement import AGREEMENT, agreement
from cutaway.tasks.builtin.alphabetical import ALPHABETICAL, alphabetical
from cutaway.tasks.builtin.antonym import ANTONYM, antonym
from cutaway.tasks.builtin.brackets import BRACKETS, brackets
from cutaway.tasks.builtin.facts import FACTS, facts
from cutaway.tasks.builtin.greater_than import GREATER_THAN, greater_than
from cutaway.tasks.builtin.induction import CARD, induction
from cutaway.tasks.builtin.ioi import IOI, ioi
from cutaway.tasks.builtin.pronoun import PRONOUN, pronoun
from cutaway.tasks.builtin.refusal import REFUSAL, refusal
from cutaway.tasks.builtin.rhyme import RHYME, rhyme
from cutaway.tasks.builtin.sentiment import SENTIMENT, sentiment
from cutaway.tasks.builtin.translation import TRANSLATION, translation
from cutaway.tasks.builtin.truth import TRUTH, truth
from cutaway.tasks.task import Task

BUILTIN: dict[str, Callable[..., Task]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        induction, ioi, greater_than, agreement, pronoun, facts, alphabetical, addition, antonym, translation,
        sentiment, truth, brackets, rhyme, refusal,
    )
}  # fmt: skip
"""Each is `f(model, *, n=..., seed=0) -> Task`."""
CARDS: dict[str, str] = {
    "induction": CARD,
    **{
        behavior.name: behavior.card
        for behavior in (
            IOI, GREATER_THAN, AGREEMENT, PRONOUN, FACTS, ALPHABETICAL, ADDITION, ANTONYM, TRANSLATION, SENTIMENT,
            TRUTH, BRACKETS, RHYME, REFUSAL,
        )
    },
}  # fmt: skip


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


def card(name: str) -> str:
    """What a built-in task asks, how its pairs are made and what its positions are, in one paragraph. Raises
    UnknownName.

    >>> card("addition").partition(": ")[0]
    'Two whole numbers from 0 to 49'
    """
    _named(name)
    return CARDS[name]


def _named(name: str) -> Callable[..., Task]:
    if name not in BUILTIN:
        raise UnknownName(f"task {name!r}: no such task.{did_you_mean(name, BUILTIN)}", name=name)
    return BUILTIN[name]
