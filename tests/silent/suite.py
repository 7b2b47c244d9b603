"""The frame of the suite: what a case is, how one attempt at it is judged, and the outcomes of all as data.

A case is a program that users write: right, and then it must give the oracle's number, or a mistake, and then it must
be refused with its cause. `python -m tests.silent.suite` runs it as a user would, without the run-time type checks of
the tests, which would catch some mistakes before the library sees them.
"""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from tests.silent.shapes import SHAPES, Shape, changed, shape, snapshot

TOLERANCE = 1e-5
"""Of logits with a standard deviation near 1."""
MOVED = 1e-2
"""By so much at least the right number differs from that of the mistake, or the case would prove nothing."""
RIGHT, RAISES = "right", "raises"


@dataclass(frozen=True)
class Right:
    """A correct program: `run` must give `wanted`, which is far from `otherwise`, what the trap would give."""

    spelling: str
    run: Callable[[], Any]
    wanted: Tensor
    otherwise: Tensor | None = None
    bits: bool = False
    """Every bit must be equal."""


@dataclass(frozen=True)
class Refused:
    """A mistake, or what cannot be done: `run` must raise an error of cutaway whose message matches `words`."""

    spelling: str
    run: Callable[[], Any]
    words: str


Attempt = Right | Refused


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    kind: str
    """'mistake' or 'must-work'."""
    what: str
    attempts: Callable[[Shape], Iterable[Attempt]]
    shapes: tuple[str, ...] = SHAPES
    outcome: str = RIGHT
    """What must come out: 'right' or 'raises'."""


@dataclass(frozen=True)
class Outcome:
    """What came out of one case on one shape."""

    case: str
    shape: str
    outcome: str
    """'right', 'raises', or how it failed: 'WRONG', 'obscure', 'side effect'."""
    detail: str
    """Of a failure the spelling and what was seen; else the spellings."""
    n: int
    """Spellings tried."""


CASES: dict[str, Case] = {}
FILES = ("values", "selection", "padding", "others", "gradients", "generation", "numbers", "keeping", "unlisted")


def mistake(name: str, what: str, shapes: Iterable[str] = SHAPES, outcome: str = RAISES) -> Callable[..., Any]:
    """Registers a case that must be refused (or, where the vocabulary gives it a meaning, do what was meant)."""
    return _case(name, "mistake", what, shapes, outcome)


def must_work(name: str, what: str, shapes: Iterable[str] = SHAPES, outcome: str = RIGHT) -> Callable[..., Any]:
    """Registers a case that must give the oracle's number."""
    return _case(name, "must-work", what, shapes, outcome)


def _case(name: str, kind: str, what: str, shapes: Iterable[str], outcome: str) -> Callable[..., Any]:
    def register(attempts: Callable[[Shape], Iterable[Attempt]]) -> Callable[[Shape], Iterable[Attempt]]:
        assert name not in CASES, name
        CASES[name] = Case(name, kind, what, attempts, tuple(shapes), outcome)
        return attempts

    return register


def cases() -> dict[str, Case]:
    """All cases, in the order of the table."""
    for file in FILES:
        import_module(f"tests.silent.cases.{file}")
    return dict(sorted(CASES.items(), key=lambda item: _order(item[0])))


def _order(name: str) -> tuple[int, str]:
    number = re.match(r"\d+", name)
    assert number is not None
    return int(number[0]), name


def judge(case: Case, name: str) -> Outcome:
    """Every spelling of a case on one shape; the model and its twin must come out of each as they went in."""
    here, seen = shape(name), list[tuple[str, str]]()
    if name in SHAPES:
        assert float((here.wanted() - here.plain()).abs().max()) < TOLERANCE, "the oracle is not transformers' model"
    for attempt in case.attempts(here):
        before = snapshot(here.hf), _logits(here), snapshot(here.twin).parameters
        result = _judged(attempt)
        marks = [*changed(before[0], snapshot(here.hf))]
        if not torch.equal(before[1], _logits(here)):
            marks.append("logits of the user's own call")
        assert snapshot(here.twin).parameters == before[2], "the case changed the oracle"
        if marks:
            result = "side effect", f"changed: {', '.join(marks)}"
        if result[0] not in (RIGHT, RAISES):
            return Outcome(case.name, name, result[0], f"{attempt.spelling}: {result[1]}", len(seen) + 1)
        seen.append((attempt.spelling, result[0]))
    assert seen, f"{case.name} has no spelling for {name}"
    kinds = {kind for _, kind in seen}
    assert case.outcome in kinds, (case.name, seen)
    assert case.outcome == RIGHT or kinds == {RAISES}, (case.name, seen)
    return Outcome(case.name, name, case.outcome, "; ".join(spelling for spelling, _ in seen), len(seen))


def _logits(here: Shape) -> Tensor:
    """Of one's own call; in training mode, where dropout may draw, none."""
    return torch.zeros(()) if here.hf.training else here.plain()


def _judged(attempt: Attempt) -> tuple[str, str]:
    try:
        found = attempt.run()
    except CutawayError as error:
        if isinstance(attempt, Refused) and re.search(attempt.words, str(error)):
            return RAISES, str(error)
        return ("obscure" if isinstance(attempt, Refused) else "raised"), f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - whatever else comes out is what is judged
        return "obscure", f"{type(error).__name__}: {error}"
    if isinstance(attempt, Refused):
        return "WRONG", f"no error, {_short(found)}"
    if not isinstance(found, Tensor) or found.shape != attempt.wanted.shape:
        return "WRONG", f"{_short(found)} and not {list(attempt.wanted.shape)}"
    if attempt.otherwise is not None:
        assert float((attempt.wanted - attempt.otherwise).abs().max()) > MOVED, f"{attempt.spelling}: proves nothing"
    off = float((found.float() - attempt.wanted.float()).abs().max())
    if (attempt.bits and not torch.equal(found, attempt.wanted)) or not off <= TOLERANCE:
        return "WRONG", f"off by {off:.2g}"
    return RIGHT, f"off by {off:.2g}"


def _short(found: Any) -> str:
    return f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else repr(found)[:80]


def outcomes(wanted: Iterable[tuple[str, str]]) -> Iterator[Outcome]:
    """Judges cells of the table, each given by case and shape."""
    known = cases()
    for case, name in wanted:
        yield judge(known[case], name)


def cells() -> list[tuple[str, str]]:
    """Case and shape of every cell."""
    return [(case.name, name) for case in cases().values() for name in case.shapes]


def main(arguments: list[str]) -> int:
    """Outcomes as JSON lines: of the cells given as CASE:SHAPE, else of all."""
    torch.set_num_threads(1)
    wanted = [tuple(text.split(":")) for text in arguments] or cells()
    for case, name in wanted:
        with contextlib.redirect_stdout(sys.stderr):
            (found,) = outcomes([(case, name)])
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    from tests.silent import suite

    sys.exit(suite.main(sys.argv[1:]))
