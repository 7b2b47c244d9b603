"""Blueprint: a transformer as it is meant, before it becomes the weights of some architecture.

The residual stream has named coordinates. What a part reads is a linear form of them, what it writes is a form too;
`writer` turns both into weights. One coordinate, `one`, holds the constant `ONE` at every position: it carries every
bias, and it is so much longer than all the rest that the norms divide by nearly the same number everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from cutaway.errors import OutOfRange

Form: TypeAlias = Mapping[int, float]
"""Coordinate -> coefficient."""
ONE: Final = 32.0
"""Value of the constant coordinate. The other coordinates hold 0 or 1 in size, few of them at a time, so that a norm's
scale moves by `1 / ONE**2` at most for each two that are set."""


@dataclass(frozen=True)
class Match:
    """A term of an attention score: what the query position holds times what the key position holds, in nats."""

    query: Form
    key: Form


@dataclass(frozen=True)
class Head:
    """An attention head: where it looks and what it moves."""

    role: str
    matches: tuple[Match, ...] = ()
    """Terms of the score; a head without any looks everywhere alike."""
    offset: int | None = None
    """Distance back at which it looks, by position alone; None: positions do not count."""
    margin: float = 0.0
    """By how many nats that distance beats every other."""
    moves: tuple[tuple[Form, Form], ...] = ()
    """What it reads at the position that it looks at, and where it writes that."""
    mover: bool = False
    """It brings what the answer is made of: the head that a duplicate stands in for and a suppressor works against."""


@dataclass(frozen=True)
class Unit:
    """A neuron: it writes `write` times what it reads where that is positive, and nothing where it is negative."""

    read: Form
    write: Form
    sharp: float
    """The reading is so far from zero on every valid input: by it a smooth neuron is made sharp enough."""


@dataclass(frozen=True)
class Mlp:
    """The neurons of a layer."""

    role: str = "none"
    units: tuple[Unit, ...] = ()


@dataclass(frozen=True)
class Block:
    """A layer: heads first, then neurons."""

    heads: tuple[Head, ...] = ()
    mlp: Mlp = Mlp()


class Layout:
    """The coordinates of the residual stream, handed out in order."""

    def __init__(self) -> None:
        self.parts: dict[str, range] = {}
        self.size = 0

    def add(self, name: str, n: int) -> range:
        """`n` new coordinates."""
        self.parts[name] = range(self.size, self.size + n)
        self.size += n
        return self.parts[name]

    def copy(self) -> "Layout":
        """Another one with the same coordinates, to be grown apart."""
        twin = Layout()
        twin.parts, twin.size = dict(self.parts), self.size
        return twin


@dataclass(frozen=True)
class Blueprint:
    """A whole model."""

    words: tuple[str, ...]
    """The vocabulary; its token ids are the places in it."""
    layout: Layout
    """`one`, `token` (one coordinate a word), what the program needs, and `out`."""
    blocks: tuple[Block, ...]
    answers: tuple[int, ...]
    """Token ids of the words that the coordinates `out` stand for."""
    unembed: Mapping[int, Form]
    """Token id -> what its logit reads. Other tokens have logit 0."""
    length: int
    """Tokens that a row may have."""
    embed: Mapping[int, Form] = field(default_factory=dict)
    """Token id -> what its embedding holds besides `one` and its own coordinate of `token`."""

    def const(self, value: float) -> dict[int, float]:
        """A form that is `value` everywhere."""
        return const(self.layout, value)

    def with_block(self, at: int, block: Block) -> "Blueprint":
        """With one more layer before layer `at`."""
        return replace(self, blocks=(*self.blocks[:at], block, *self.blocks[at:]))

    def mover(self) -> tuple[int, int]:
        """Layer and place of the head that brings what the answer is made of."""
        found = [(at, i) for at, block in enumerate(self.blocks) for i, head in enumerate(block.heads) if head.mover]
        if len(found) != 1:
            raise OutOfRange(f"blueprint: {len(found)} movers; a program has one", found=len(found))
        return found[0]


def const(layout: Layout, value: float) -> dict[int, float]:
    """A form that is `value` everywhere."""
    return {layout.parts["one"][0]: value / ONE}


def plus(*forms: Form) -> dict[int, float]:
    """The sum of forms."""
    total: dict[int, float] = {}
    for form in forms:
        for at, value in form.items():
            total[at] = total.get(at, 0.0) + value
    return total


def times(factor: float, form: Form) -> dict[int, float]:
    """A multiple of a form."""
    return {at: factor * value for at, value in form.items()}


def step(layout: Layout, read: Form, low: float, high: float, write: Form, sharp: float) -> tuple[Unit, Unit]:
    """Two neurons that together write `write` where `read` is above `high`, and nothing where it is below `low`."""
    slope = times(1 / (high - low), write)
    return (
        Unit(plus(read, const(layout, -low)), slope, sharp),
        Unit(plus(read, const(layout, -high)), times(-1.0, slope), sharp),
    )


def copies(sources: Sequence[int], targets: Sequence[int], factor: float = 1.0) -> tuple[tuple[Form, Form], ...]:
    """Moves that copy coordinates to coordinates."""
    return tuple(({source: 1.0}, {target: factor}) for source, target in zip(sources, targets, strict=True))
