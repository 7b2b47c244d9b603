"""The rows of the programs, against the programs in plain Python."""

from itertools import pairwise
from typing import Any

import pytest

from cutaway.zoo.handmade import PROGRAMS, build
from cutaway.zoo.handmade.programs import _CAPITALS, _PEOPLE, HOME, MANY, SEAT

ROWS = 60


def expected(program: str, words: list[str], at: int) -> str:
    """The right answer at a position, by the words up to it."""
    seen = words[1 : at + 1]
    if program == "induction":
        earlier = max(i for i, word in enumerate(seen[:-1]) if word == seen[-1])
        return seen[earlier + 1]
    if program == "reverse":
        listed = seen[: seen.index("|")]
        told = len(seen) - len(listed) - 1
        return [*listed[::-1], "<eos>"][told]
    if program == "histogram":
        return str(seen.count(seen[-1]))
    if program == "majority":
        return "a" if seen.count("a") > seen.count("b") else "b"
    if program == "sorted":
        numbers = [int(word) for word in seen[:-1]]
        return "yes" if all(a <= b for a, b in pairwise(numbers)) else "no"
    people = _PEOPLE.split()
    capitals = _CAPITALS.split()
    (person,) = (people.index(word) for word in seen if word in people)
    return capitals[SEAT[HOME[person]]]


@pytest.mark.parametrize("program", PROGRAMS)
def test_rows_ask_what_the_program_says(program: str) -> None:
    made = build(program)
    rows, words = made.rows(ROWS, 3), made.blueprint.words
    assert rows.answered.any(-1).all()
    asked = set()
    for row, at in rows.answered.nonzero().tolist():
        told = [words[i] for i in rows.ids[row].tolist()]
        assert told[0] == "<bos>"
        right = words[int(rows.answers[row, at])]
        assert right == expected(program, told, at), (told, at)
        assert words[int(rows.foils[row, at])] != right
        asked.add(right)
    assert len(asked) > {"majority": 1, "sorted": 1, "histogram": MANY - 1}.get(program, 4)


def test_reversed_lists_and_their_answers_are_in_the_rows() -> None:
    """The answer is the next token, where the row goes on."""
    rows = build("reverse").rows(ROWS, 0)
    nxt = rows.ids[:, 1:][rows.answered[:, :-1]]
    right = rows.answers[:, :-1][rows.answered[:, :-1]]
    assert (nxt == right).all()


def test_a_seed_is_a_draw() -> None:
    made = build("sorted")
    assert (made.rows(20, 1).ids == made.rows(20, 1).ids).all()
    assert (made.rows(20, 1).ids != made.rows(20, 2).ids).any()
    half = (made.rows(400, 0).answers[:, -1] == made.blueprint.words.index("yes")).float().mean().item()
    assert 0.4 < half < 0.65


def test_margins_and_hits_look_at_the_answers_alone() -> None:
    made = build("majority")
    rows = made.rows(10, 0)
    logits: Any = rows.ids[..., None].expand(-1, -1, len(made.blueprint.words)).float() * 0
    logits[:, -1].scatter_(1, rows.answers[:, -1:], 3.0)
    logits[:, -1].scatter_(1, rows.foils[:, -1:], 1.0)
    assert rows.margins(logits).tolist() == [2.0] * 10
    assert rows.hits(logits).all()
