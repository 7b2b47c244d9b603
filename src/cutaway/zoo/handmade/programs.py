"""The programs that are written into weights: for each its vocabulary, its blueprint and its rows.

    induction   a word stood earlier: what followed it then follows now
    reverse     after `|`, the list before it from its end to its start, then <eos>
    histogram   at each letter, how often it occurred so far
    majority    at `?`, which of two symbols occurred more often
    sorted      at `?`, whether the numbers before it never fall
    lookup      at `capital?`, the capital of the country of the person that the row names

`m` is by how many nats a head prefers what it looks for to what it does not; where there is nothing to be found it
looks at BOS, which is half as attractive, and brings nothing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cutaway.zoo.handmade.blueprint import (
    Block,
    Blueprint,
    Form,
    Head,
    Layout,
    Match,
    Mlp,
    Unit,
    const,
    copies,
    plus,
    step,
)
from cutaway.zoo.handmade.rows import BOS, EOS, SPECIAL, Row, other

LOGIT: Final = 10.0
"""Logit of an answer that is written in full."""
MANY: Final = 4
"""Largest count that `histogram` tells."""
LARGEST: Final = 12
"""Largest number of `sorted`."""
APART: Final = 0.4
"""Distance of one number to the next in the coordinate that holds a number."""
SPREAD: Final = {"share": 2.0, "balance": 4.0}
"""What a coordinate is stretched by: the neurons that read it need not be so steep."""


@dataclass(frozen=True)
class Program:
    """What is written, and how it is asked."""

    behavior: str
    blueprint: Callable[[float], Blueprint]
    """Margin of its attention in nats -> the model."""
    row: Callable[[random.Random], Row]


def _words(text: str) -> tuple[int, ...]:
    """Token ids of so many words after the special ones."""
    return tuple(range(len(SPECIAL), len(SPECIAL) + len(text.split())))


def _layout(words: tuple[str, ...], **parts: int) -> Layout:
    layout = Layout()
    layout.add("one", 1)
    layout.add("token", len(words))
    for name, n in parts.items():
        layout.add(name, n)
    return layout


def _rest(layout: Layout, m: float) -> Match:
    """What makes BOS attractive."""
    return Match(const(layout, m), {layout.parts["token"][BOS]: 1.0})


def _logits(layout: Layout, answers: tuple[int, ...]) -> dict[int, Form]:
    return {answer: {at: LOGIT} for answer, at in zip(answers, layout.parts["out"], strict=True)}


# -- induction

_ANIMALS = "ant bat bear bee bull calf cat clam cod cow crab crow deer dog dove duck"
_ANIMAL_IDS = _words(_ANIMALS)


def _induction(m: float) -> Blueprint:
    words = (*SPECIAL, *_ANIMALS.split())
    layout = _layout(words, before=len(_ANIMAL_IDS), out=len(_ANIMAL_IDS))
    token, before, out = (layout.parts[name] for name in ("token", "before", "out"))
    mine = [token[i] for i in _ANIMAL_IDS]
    previous = Head("previous_token", offset=1, margin=m, moves=copies(mine, before))
    found = tuple(Match({a: 2 * m}, {b: 1.0}) for a, b in zip(mine, before))
    mover = Head("induction", matches=(*found, _rest(layout, m)), moves=copies(mine, out), mover=True)
    return Blueprint(
        words,
        layout,
        (Block((previous,)), Block((mover,))),
        _ANIMAL_IDS,
        _logits(layout, _ANIMAL_IDS),
        length=16,
    )


def _induction_row(chance: random.Random) -> Row:
    """Segments of three to six different words, each two or three times, with up to two others between."""
    fresh = chance.sample(_ANIMAL_IDS, len(_ANIMAL_IDS))
    ids, answers = [BOS], {}
    while len(ids) < 16:
        segment = [fresh.pop() for _ in range(min(chance.randint(3, 6), len(fresh)))]
        for copy in range(chance.choice((2, 2, 3))):
            ids += [fresh.pop() for _ in range(min(chance.choice((0, 0, 1, 2)) if copy else 0, len(fresh)))]
            if copy:
                for at in range(len(segment) - 1):
                    answers[len(ids) + at] = (segment[at + 1], other(chance, segment, segment[at + 1]))
            ids += segment
        if len(fresh) < 6:
            break
    return Row(ids[:16], {at: pair for at, pair in answers.items() if at < 16})


# -- reverse

_REVERSE = f"{_ANIMALS} |"
_SEPARATOR = _words(_REVERSE)[-1]


def _reverse(m: float) -> Blueprint:
    words = (*SPECIAL, *_REVERSE.split())
    listed, asked = (*_ANIMAL_IDS, BOS), (*_ANIMAL_IDS, _SEPARATOR)
    layout = _layout(words, before=len(listed), after=1, out=len(listed))
    token, before, (after,), out = (layout.parts[name] for name in ("token", "before", "after", "out"))
    previous = Head("previous_token", offset=1, margin=m, moves=copies([token[i] for i in listed], before))
    seen = Match(const(layout, 2 * m), {token[_SEPARATOR]: 1.0})
    marker = Head("after_separator", matches=(seen, _rest(layout, m)), moves=copies([token[_SEPARATOR]], [after]))
    same = tuple(Match({token[i]: 2 * m}, {token[i]: 1.0}) for i in asked)
    not_after = Match(const(layout, -4 * m), {after: 1.0, token[_SEPARATOR]: -1.0})
    # BOS too has BOS before it, as far as the first head can tell: there nothing is brought
    moves = (*copies(before[:-1], out[:-1]), ({before[-1]: 1.0, token[BOS]: -1.0}, {out[-1]: 1.0}))
    mover = Head("reverse", matches=(*same, not_after, _rest(layout, m)), moves=moves, mover=True)
    answers = (*_ANIMAL_IDS, EOS)
    return Blueprint(
        words, layout, (Block((previous, marker)), Block((mover,))), answers, _logits(layout, answers), length=14
    )


def _reverse_row(chance: random.Random) -> Row:
    """Three to six different words, the separator, the words from the last to the first, <eos>."""
    listed = chance.sample(_ANIMAL_IDS, chance.randint(3, 6))
    told = [*reversed(listed), EOS]
    ids = [BOS, *listed, _SEPARATOR, *told]
    start = len(listed) + 1
    return Row(ids[:14], {start + at: (right, other(chance, told, right)) for at, right in enumerate(told)})


# -- histogram

_LETTERS, _COUNTS = "a b c d e f g h", " ".join(str(n) for n in range(1, MANY + 1))
_LETTER_IDS = _words(_LETTERS)
_COUNT_IDS = _words(f"{_LETTERS} {_COUNTS}")[len(_LETTER_IDS) :]


def _histogram(m: float) -> Blueprint:
    words = (*SPECIAL, *_LETTERS.split(), *_COUNTS.split())
    layout = _layout(words, share=1, out=MANY)
    token, (share,), out = (layout.parts[name] for name in ("token", "share", "out"))
    mine = [token[i] for i in _LETTER_IDS]
    same = tuple(Match({at: m}, {at: 1.0}) for at in mine)
    letter: Form = dict.fromkeys(mine, 1.0)
    mover = Head("count", matches=(*same, _rest(layout, m)), moves=((letter, {share: SPREAD["share"]}),), mover=True)
    # n occurrences and BOS share the attention alike: n / (n + 1) of it lies on letters
    units = []
    for n in range(MANY):
        low, high = (SPREAD["share"] * found / (found + 1) for found in (n, n + 1))
        edge = 0.2 * (high - low)
        told = {out[n]: 1.0} if n == 0 else {out[n]: 1.0, out[n - 1]: -1.0}
        units += step(layout, {share: 1.0}, low + edge, high - edge, told, sharp=edge)
    block = Block((mover,), Mlp("thresholds", tuple(units)))
    return Blueprint(words, layout, (block,), _COUNT_IDS, _logits(layout, _COUNT_IDS), length=14)


def _histogram_row(chance: random.Random) -> Row:
    """Letters, none more often than can be told."""
    pool = chance.sample(_LETTER_IDS, 5) * MANY
    letters = chance.sample(pool, 13)
    answers = {}
    for at, letter in enumerate(letters):
        right = _COUNT_IDS[letters[: at + 1].count(letter) - 1]
        answers[at + 1] = (right, other(chance, _COUNT_IDS, right))
    return Row([BOS, *letters], answers)


# -- majority

_VOTES = "a b - ?"
_A, _B, _BLANK, _ASK = _words(_VOTES)


def _majority(m: float) -> Blueprint:
    words = (*SPECIAL, *_VOTES.split())
    layout = _layout(words, balance=1, out=2)
    token, (balance,), out = (layout.parts[name] for name in ("token", "balance", "out"))
    votes = Match(const(layout, 2 * m), {token[_A]: 1.0, token[_B]: 1.0})
    weighed = ({token[_A]: 1.0, token[_B]: -1.0}, {balance: SPREAD["balance"]})
    mover = Head("count", matches=(votes, _rest(layout, m)), moves=(weighed,), mover=True)
    units = (
        *step(layout, {balance: 1.0}, 0.05, 0.3, {out[0]: 1.0}, sharp=0.05),
        *step(layout, {balance: -1.0}, 0.05, 0.3, {out[1]: 1.0}, sharp=0.05),
    )
    return Blueprint(
        words, layout, (Block((mover,), Mlp("sign", units)),), (_A, _B), _logits(layout, (_A, _B)), length=14
    )


def _majority_row(chance: random.Random) -> Row:
    """An odd number of votes, 5 to 11, blanks between them, and the question."""
    n = chance.choice((5, 7, 9, 11))
    votes = [chance.choice((_A, _B)) for _ in range(n)] + [_BLANK] * (12 - n)
    chance.shuffle(votes)
    right, foil = (_A, _B) if votes.count(_A) > votes.count(_B) else (_B, _A)
    return Row([BOS, *votes, _ASK], {13: (right, foil)})


# -- sorted

_NUMBERS = " ".join(str(n) for n in range(1, LARGEST + 1))
_SORTED = f"{_NUMBERS} yes no ?"
_NUMBER_IDS, (_YES, _NO, _IS_IT) = _words(_SORTED)[:LARGEST], _words(_SORTED)[LARGEST:]


def _sorted(m: float) -> Blueprint:
    words = (*SPECIAL, *_SORTED.split())
    layout = _layout(words, size=1, before=1, falls=1, out=1)
    (size,), (before,), (falls,), (no,) = (layout.parts[name] for name in ("size", "before", "falls", "out"))
    sizes = {i: {size: at * APART} for at, i in enumerate((BOS, *_NUMBER_IDS, _IS_IT))}
    previous = Head("previous_number", offset=1, margin=m, moves=copies([size], [before]))
    drop = {before: 1.0, size: -1.0}
    low, high = 0.2 * APART, 0.8 * APART
    compare = Mlp("compare", step(layout, drop, low, high, {falls: 1.0}, sharp=low))
    m = min(m, 8.0)  # what it looks for is computed, and rounding counts as often as it is stressed
    found = Match(const(layout, 2 * m), {falls: 1.0})
    mover = Head("find_fall", matches=(found, _rest(layout, m)), moves=copies([falls], [no]), mover=True)
    unembed: dict[int, Form] = {_NO: {no: LOGIT}, _YES: {layout.parts["token"][_IS_IT]: LOGIT / 2}}
    blocks = (Block((previous,), compare), Block((mover,)))
    return Blueprint(words, layout, blocks, (_NO,), unembed, length=9, embed=sizes)


def _sorted_row(chance: random.Random) -> Row:
    """Seven numbers, in order for half of the rows, else with two neighbours or any two exchanged, or in any order."""
    numbers = sorted(chance.choices(_NUMBER_IDS, k=7))
    if chance.random() < 0.5:
        kind = chance.randrange(3)
        at = chance.randrange(6)
        if kind == 0:
            numbers[at], numbers[at + 1] = numbers[at + 1], numbers[at]
        elif kind == 1:
            a, b = chance.sample(range(7), 2)
            numbers[a], numbers[b] = numbers[b], numbers[a]
        else:
            chance.shuffle(numbers)
    right, foil = (_YES, _NO) if numbers == sorted(numbers) else (_NO, _YES)
    return Row([BOS, *numbers, _IS_IT], {8: (right, foil)})


# -- lookup

_PEOPLE = "Ada Ben Cleo Dan Eve Finn Gil Hana Ivo Jun Kim Lea"
_COUNTRIES = "Chile Egypt Japan Kenya Norway Spain"
_CAPITALS = "Santiago Cairo Tokyo Nairobi Oslo Madrid"
_FILLERS = "the one of from here says that well"
_LOOKUP = f"{_PEOPLE} {_COUNTRIES} {_CAPITALS} {_FILLERS} capital?"
_IDS = _words(_LOOKUP)
_PERSON_IDS, _COUNTRY_IDS, _CAPITAL_IDS, _FILLER_IDS, _ASKED = (
    _IDS[:12],
    _IDS[12:18],
    _IDS[18:24],
    _IDS[24:32],
    _IDS[32],
)
HOME: Final = tuple(at * 5 % 6 for at in range(12))
"""Person -> country, by place in their lists; a country has two people."""
SEAT: Final = tuple(range(6))
"""Country -> capital, by place in their lists."""


def _lookup(m: float) -> Blueprint:
    words = (*SPECIAL, *_LOOKUP.split())
    layout = _layout(words, who=12, country=6, out=6)
    token, who, country, out = (layout.parts[name] for name in ("token", "who", "country", "out"))
    people = [token[i] for i in _PERSON_IDS]
    named = Match(const(layout, 2 * m), dict.fromkeys(people, 1.0))
    mover = Head("find_person", matches=(named, _rest(layout, m)), moves=copies(people, who), mover=True)
    homes = _table(layout, [(who[person], country[HOME[person]]) for person in range(12)])
    seats = _table(layout, [(country[at], out[SEAT[at]]) for at in range(6)])
    blocks = (Block((mover,), Mlp("country_of_person", homes)), Block((), Mlp("capital_of_country", seats)))
    return Blueprint(words, layout, blocks, _CAPITAL_IDS, _logits(layout, _CAPITAL_IDS), length=9)


def _table(layout: Layout, pairs: list[tuple[int, int]]) -> tuple[Unit, ...]:
    """A neuron a key: it writes the value where the key is set."""
    return tuple(Unit(plus({key: 1.0}, const(layout, -0.5)), {value: 2.0}, sharp=0.5) for key, value in pairs)


def _lookup_row(chance: random.Random) -> Row:
    """Fillers with one person among them, then the question."""
    person = chance.randrange(12)
    told = chance.choices(_FILLER_IDS, k=7)
    told[chance.randrange(7)] = _PERSON_IDS[person]
    right = _CAPITAL_IDS[SEAT[HOME[person]]]
    return Row([BOS, *told, _ASKED], {8: (right, other(chance, _CAPITAL_IDS, right))})


PROGRAMS: Final = {
    "induction": Program(
        "The present word stood earlier in the row: the word that followed it then follows now.",
        _induction,
        _induction_row,
    ),
    "reverse": Program(
        "After the separator, the words before it come from the last to the first, then <eos>.",
        _reverse,
        _reverse_row,
    ),
    "histogram": Program(
        f"At each letter, the number of its occurrences so far, up to {MANY}.", _histogram, _histogram_row
    ),
    "majority": Program(
        "At the question mark, the symbol that occurred more often than the other.", _majority, _majority_row
    ),
    "sorted": Program("At the question mark, whether no number was followed by a smaller one.", _sorted, _sorted_row),
    "lookup": Program(
        "At the question, the capital of the country of the person that the row names.", _lookup, _lookup_row
    ),
}
"""Program name -> what it is."""
