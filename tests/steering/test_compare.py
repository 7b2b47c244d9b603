"""The comparison: both texts are those of generate, gains are those of two runs, and it is saved whole."""

from pathlib import Path
from typing import Any

import pytest

from cutaway import sites
from cutaway.errors import TokenizerUnfit, UsageError, WrongModel
from cutaway.models.streams import Piece
from cutaway.steering import Comparison, compare, steering
from tests.models.samples import loaded, spoken, vector

PROMPTS = ["t5 t9 t4 t8", "t8 t7"]
SITE = sites.resid_post[1]


def compared(**options: Any) -> Comparison:
    model = spoken("llama")
    edits = steering(model, SITE.at("new"), vector(), strength=9.0).edits()
    return compare(model, PROMPTS, edits, max_new_tokens=5, stop=(), **options)


def test_both_texts_are_those_of_generate_and_gains_those_of_two_runs() -> None:
    model, found = spoken("llama"), compared()
    edits = [SITE.at("new").add(vector() / vector().norm(), scale=9.0)]
    tokens = model.encode(PROMPTS, pad="left")
    plain = model.generate(tokens, max_new_tokens=5, stop=())
    steered = model.generate(tokens, edits, max_new_tokens=5, stop=())
    with_, without = (model.run(steered, use).logits.log_softmax(-1) for use in (edits, []))
    for row, prompt in enumerate(PROMPTS):
        assert found.prompts[row] == prompt
        assert found.plain[row].split() == model.strings(plain.row(row)[-5:])
        assert found.steered[row].split() == model.strings(steered.row(row)[-5:]) == list(found.tokens[row])
        ids = steered.ids[row, -5:]
        wanted = [float((with_ - without)[row, column - 1, token]) for column, token in zip(range(-5, 0), ids)]
        assert found.gain[row] == pytest.approx(wanted, abs=1e-4)
    assert found.plain != found.steered
    assert found.gain[0][0] == 0.0  # the first new token is predicted from the prompt, where nothing is added
    assert max(map(abs, found.gain[0][1:])) > 0.01


def test_without_steering_it_is_the_plain_text() -> None:
    found = compare(spoken("llama"), PROMPTS, [], max_new_tokens=5, stop=())
    assert found.plain == found.steered
    assert found.gain == ((0.0,) * 5,) * 2
    assert found.figures() == ()


def test_samples_are_drawn_alike_and_told_as_they_are_written() -> None:
    seen: dict[tuple[str, int], str] = {}

    def note(name: str, piece: Piece) -> None:
        seen[name, piece.row] = seen.get((name, piece.row), "") + piece.text

    found = compared(temperature=1.0, seed=4, n_samples=2, on_text=note)
    assert len(found) == 4
    assert found.prompts == (PROMPTS[0],) * 2 + (PROMPTS[1],) * 2
    assert [seen["steered", row] for row in range(4)] == list(found.steered)
    assert [seen["plain", row] for row in range(4)] == list(found.plain)
    assert len(set(found.steered)) > 2


def test_it_is_saved_whole(tmp_path: Path) -> None:
    found = compared(temperature=1.0, seed=4)
    found.save(tmp_path / "c.st")
    back = Comparison.load(tmp_path / "c.st", spoken("llama"))
    assert (back.table(), back.figures(), back.provenance) == (found.table(), found.figures(), found.provenance)
    assert back.provenance.seed == 4
    with pytest.raises(WrongModel):
        Comparison.load(tmp_path / "c.st", loaded("gpt2"))


def test_what_would_move_is_refused() -> None:
    for place in (-1, [0, -2], slice(-3, None)):
        with pytest.raises(UsageError, match="would move as the text grows"):
            compare(spoken("llama"), PROMPTS, [SITE.at(place).zero()])
    with pytest.raises(TokenizerUnfit, match="no tokenizer, so there are no texts"):
        compare(loaded("llama"), [[5, 6]], [])
