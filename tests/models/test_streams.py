"""Text as it is written: pieces are final, joined they are the text, characters stay whole, stop texts are cut out."""

from functools import cache
from typing import Any

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.models import Model, stream
from cutaway.models.streams import BROKEN, Piece, Reader, Stop, stop_of
from cutaway.models.tokens import from_rows
from tests.models.samples import loaded, rows, spoken

TEXTS = ("plain words", "naïve façade", "日本語のテキスト", "a 🙂🙃 b", "ﬁ …—“”", "Ünïcödé  two  blanks\n\nlines")


@cache
def by_bytes() -> Any:
    """A byte-level tokenizer without merges: a character outside ASCII is two to four tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(["<eos>", *letters])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@cache
def by_blanks() -> Any:
    """A tokenizer whose decoder writes a word's blank only after another word, as SentencePiece's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", "\u2581two", "\u2581words", "\u2581and", "s"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def read(tokenizer: Any, prompt: list[int], ids: list[int], *texts: str) -> tuple[list[str], bool]:
    """The pieces of one row, and whether it was stopped."""
    reader = Reader.of(tokenizer, Stop(texts=texts), from_rows([prompt], pad="left", pad_id=0))
    pieces = []
    for token in ids:
        text, stopped = reader.read(0, token)
        pieces.append(text)
        if stopped:
            break
    else:
        stopped = False
    return [*pieces, reader.rest(0)], stopped


@pytest.mark.parametrize("text", TEXTS)
def test_characters_are_never_broken_and_nothing_is_lost(text: str) -> None:
    tokenizer = by_bytes()
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    pieces, _ = read(tokenizer, tokenizer.encode("a"), ids)
    assert "".join(pieces) == text
    assert not any(BROKEN in piece for piece in pieces)
    naive = "".join(tokenizer.decode([token]) for token in ids)
    assert (BROKEN in naive) == (not text.isascii())


def test_a_character_that_never_ends_comes_at_the_end() -> None:
    tokenizer = by_bytes()
    pieces, _ = read(tokenizer, tokenizer.encode("a"), tokenizer.encode("b日")[:-1])
    assert pieces[0] == "b"
    assert set(pieces[1:-1]) <= {""}
    assert pieces[-1] == BROKEN
    pieces, _ = read(tokenizer, tokenizer.encode("a"), [*tokenizer.encode("日")[:-1], *tokenizer.encode("xy")])
    assert "".join(pieces) == BROKEN + "xy"


def test_blanks_between_words_come_with_the_second() -> None:
    tokenizer = by_blanks()
    ids = tokenizer.encode("two words and two words")
    assert read(tokenizer, tokenizer.encode("and"), ids)[0] == [" two", " words", " and", " two", " words", ""]
    assert "".join(read(tokenizer, [0], ids)[0]) == "two words and two words"
    assert read(tokenizer, [2], [4, 0, 1])[0] == ["s", "", " two", ""]


@pytest.mark.parametrize(
    ("stops", "text", "wanted"),
    [
        ((".",), "one. two", "one"),
        (("\n\n",), "one\n two\n\nthree", "one\n two"),
        (("END", "EN!"), "THE ENEMY EN! END", "THE ENEMY "),
        (("日本",), "a日木日本b", "a日木"),
        (("zzz",), "zz top", "zz top"),
        (("zzz",), "a zz", "a zz"),
    ],
)
def test_a_stop_text_ends_the_row_and_is_not_shown(stops: tuple[str, ...], text: str, wanted: str) -> None:
    tokenizer = by_bytes()
    pieces, stopped = read(tokenizer, tokenizer.encode("x"), tokenizer.encode(text), *stops)
    assert "".join(pieces) == wanted
    assert stopped == any(stop in text for stop in stops)


def test_pieces_of_a_batch_are_the_texts_of_its_rows() -> None:
    model = spoken("llama")
    prompts = ["t5 t9 t4", "t8 t7 t6 t5 t4"]
    made = model.generate(prompts, max_new_tokens=6, stop=())
    found = ["", ""]
    for piece in stream(model, prompts, max_new_tokens=6, stop=()):
        found[piece.row] += piece.text
    assert [text.split() for text in found] == [model.strings(made.row(row)[-6:]) for row in (0, 1)]
    seen: list[Piece] = []
    model.generate(prompts, max_new_tokens=6, stop=(), on_text=seen.append)
    assert seen == list(stream(model, prompts, max_new_tokens=6, stop=()))


def test_stops_are_ids_texts_and_the_models_own() -> None:
    model = spoken("llama")
    made = model.generate(["t5 t9 t4"], max_new_tokens=8, stop=())
    new = made.row(0)[-8:]
    third = next(token for token in new[2:] if token not in new[:2])
    until = new.index(third)
    assert model.generate(["t5 t9 t4"], max_new_tokens=8, stop=third).row(0)[4:] == new[: until + 1]
    assert model.generate(["t5 t9 t4"], max_new_tokens=8, stop=f"t{third} ").row(0)[4:] == new[: until + 2]
    words = "".join(p.text for p in stream(model, ["t5 t9 t4"], max_new_tokens=8, stop=[third]))
    assert words.split() == model.strings(new[: until + 1])
    eos = by_bytes()
    assert stop_of(None, eos, loaded("llama").module) == Stop(frozenset({0, 2}))
    assert stop_of(None, None, loaded("llama").module) == Stop()
    with pytest.raises(UsageError, match="True is neither a token id nor a text"):
        model.generate(["t5"], stop=[True])


def test_what_is_wrong_is_said_before_the_first_piece() -> None:
    with pytest.raises(UsageError, match="without a tokenizer there is none"):
        stream(loaded("llama"), rows())
    with pytest.raises(UsageError, match="max_new_tokens=0"):
        stream(spoken("llama"), ["t5"], max_new_tokens=0)


def test_a_model_with_bytes_streams_whole_characters() -> None:
    model = Model(loaded("llama").module, spoken("llama").tokenizer, loaded("llama").anatomy, "llama")
    pieces = list(stream(model, ["t5"], max_new_tokens=5, temperature=2.0, seed=1, n_samples=2, stop=()))
    assert {piece.row for piece in pieces} == {0, 1}
    assert torch.is_grad_enabled()
