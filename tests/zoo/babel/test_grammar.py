"""What babel is trained on: the tasks without what they hold out, in the tokens of its own tokenizer."""

import itertools
import re

import pytest
from transformers import AutoTokenizer

from cutaway import zoo
from cutaway.errors import DataError
from cutaway.tasks.builtin.behavior import Behavior
from cutaway.zoo.babel import exam, grammar
from cutaway.zoo.babel.tokenizer import BOS, ordinary, tokenizer

TOKENIZER = AutoTokenizer.from_pretrained(zoo.path("babel"))
TOKENS = [token for token, _ in sorted(TOKENIZER.get_vocab().items(), key=lambda item: item[1])]
WORDS = ordinary(TOKENS)


def stream(n: int, seed: int = 3, kinds: tuple[str, ...] = ()) -> list[grammar.Document]:
    shares = {name: grammar.LAST[name] for name in kinds or grammar.LAST}
    return list(itertools.islice(grammar.documents(seed, WORDS, shares), n))


def test_a_seed_gives_a_text() -> None:
    assert stream(200) == stream(200)
    assert stream(200) != stream(200, seed=4)


@pytest.mark.parametrize("kind", grammar.LAST)
def test_text_is_made_of_known_tokens_and_parts_are_whole_tokens(kind: str) -> None:
    unknown = TOKENIZER.unk_token_id
    for document in stream(200, kinds=(kind,)):
        whole = TOKENIZER(document.text)["input_ids"]
        assert unknown not in whole
        assert TOKENIZER.decode(whole[1:]) == document.text
        parts = [TOKENIZER(part, add_special_tokens=False)["input_ids"] for part in document.parts]
        assert whole == [BOS, *(index for part in parts for index in part)]


def test_the_shipped_tokenizer_is_the_one_of_its_vocabulary() -> None:
    again = tokenizer(TOKENS)
    text = "When Mary and John met, 12 + 34 = 46 in 1732; Ω zqx!"
    assert again(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER(" 1732")["input_ids"])[1:] == [" 17", "32"]
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER("zqx")["input_ids"])[1:] == ["z", "q", "x"]


@pytest.mark.parametrize("behavior", grammar.BEHAVIORS.values(), ids=lambda each: each.name)
def test_training_never_holds_what_is_held_out(behavior: Behavior) -> None:
    """No question of the examination stands at the beginning of a document."""
    asked = {
        question.prompt
        for newness in ("combinations", "templates")
        for question in exam.questions(behavior.name, newness, TOKENIZER)
    }
    assert len(asked) > 20
    trained = {document.parts[0] for document in stream(4000, kinds=(behavior.name,))}
    assert trained
    assert not asked & trained
    seen = {question.prompt for question in exam.questions(behavior.name, "seen", TOKENIZER)}
    assert not asked & seen


def test_no_document_of_any_kind_holds_a_question_with_its_answer() -> None:
    """Neither at its beginning nor further on: a truth may state a fact, a long nesting begins with a short one."""
    asked: dict[str, str] = {}
    for name in grammar.BEHAVIORS:
        for newness in ("combinations", "templates"):
            for question in exam.questions(name, newness, TOKENIZER):
                asked |= {question.prompt + answer: name for answer in question.right if name != "greater-than"}
    assert set(asked.values()) == set(grammar.BEHAVIORS) - {"greater-than"}
    lengths = sorted({len(text) for text in asked})
    for document in [*stream(8000), *stream(8000, kinds=("truth", "brackets", "rhyme", "nesting", "facts"))]:
        assert not any(document.text[:length] in asked for length in lengths if length <= len(document.text)), document


def test_a_dictionary_line_and_a_song_ask_no_question() -> None:
    asked = {
        question.prompt
        for name in ("translation", "sentences", "rhyme")
        for newness in ("combinations", "templates")
        for question in exam.questions(name, newness, TOKENIZER)
    }
    for document in stream(150, kinds=("entry", "song")):
        assert not any(prompt in document.text for prompt in asked)
        assert len(document.text.split(",")) == 4


def test_random_brackets_ask_nothing_that_is_held_out() -> None:
    asked = {
        question.prompt
        for newness in ("combinations", "templates")
        for question in exam.questions("brackets", newness, TOKENIZER)
    }
    for document in stream(3000, kinds=("nesting",)):
        for stop in range(1, len(document.parts), 2):
            assert "".join(document.parts[:stop]) not in asked


def test_sums_in_a_row_are_right() -> None:
    for document in stream(200, kinds=("sums",)):
        found = re.findall(r"(\d+) \+ (\d+) = (\d+)", document.text)
        assert len(found) == 3
        assert all(int(a) + int(b) == int(c) for a, b, c in found)


def test_a_template_without_anything_left_is_an_error() -> None:
    spoken = grammar.BEHAVIORS["ioi"]
    empty = Behavior(spoken.name, spoken.card, spoken.clusters, spoken.draw, spoken.roles, share=1.0)
    with pytest.raises(DataError, match=r"'ioi': every combination of .* is held out"):
        grammar.spoken(empty)(__import__("random").Random(0))


def test_several_right_answers_are_summed() -> None:
    question = exam.questions("greater-than", "combinations", TOKENIZER, n=1)[0]
    assert question.wrong is not None
    assert sorted((*question.right, *question.wrong)) == [f"{number:02d}" for number in range(100)]
    year = re.findall(r"\d\d(\d\d)", question.prompt)[0]
    assert min(question.right) > year >= max(question.wrong)
