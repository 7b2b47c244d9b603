"""Alignment by token, over the kinds of tokenizers that differ at word boundaries."""

import pytest

import cutaway
from cutaway.errors import AnswersEqual, DataError, Misaligned, TokenizerUnfit, TokenNotSingle
from cutaway.tasks import Pair, Task, align_pair, vocabulary_digest
from tests.families import tiny
from tests.tasks.vocabularies import KINDS, byte_bpe, loaded, model_of, word_level

EVERY = pytest.mark.parametrize("kind", list(KINDS))
GIRL = Pair("The girl smiled.", "The boy smiled.", " She", " He", {"subject": (4, 8)}, {"subject": (4, 7)}, id="girl")


def encode(kind: str, pair: Pair, metric: str = "logit_diff") -> object:
    return Task("t", "a test", (pair,), metric=metric, roles=tuple(pair.positions)).encode(loaded(kind))


@EVERY
def test_an_answer_is_what_follows_the_prompt(kind: str) -> None:
    model = loaded(kind)
    found = align_pair(GIRL, model)
    for prompt, ids in ((GIRL.clean, found.clean), (GIRL.corrupt, found.corrupt)):
        for text, answer in ((GIRL.answer, found.answer), (GIRL.foil, found.foil)):
            assert tuple(model.encode([f"{prompt}{text}"]).row(0)) == ids + answer
    assert [text.strip() for text in model.strings(list(found.answer))] == ["She"]
    assert [text.strip() for text in model.strings(list(found.foil))] == ["He"]


@EVERY
def test_a_role_is_the_last_token_of_its_span(kind: str) -> None:
    model = loaded(kind)
    found = align_pair(GIRL, model)
    texts = [text.strip() for text in model.strings(list(found.clean))]
    assert texts[found.roles["subject"]] == "girl"
    assert texts[found.roles["end"]] == "."
    assert found.roles["end"] == len(found.clean) - 1


def test_a_role_of_several_tokens_is_its_last_one() -> None:
    pair = Pair("The zyx ran", "The xyz ran", " because", " and", {"subject": (4, 7)}, id="p")
    model = loaded("byte_bpe")
    found = align_pair(pair, model)
    assert len(found.clean) > 4
    assert model.strings(list(found.clean))[found.roles["subject"]].strip().endswith("x")


@EVERY
def test_a_misaligned_pair_is_named_with_both_counts_and_its_tokens(kind: str) -> None:
    pair = Pair("The girl smiled.", "The girl and the boy smiled.", " She", " He", id="p9")
    clean, corrupt = (len(loaded(kind).encode([text]).row(0)) for text in (pair.clean, pair.corrupt))
    assert clean != corrupt
    with pytest.raises(
        Misaligned, match=f"pair 'p9': clean has {clean} tokens, corrupt {corrupt}; .*girl.*boy"
    ) as caught:
        align_pair(pair, loaded(kind))
    assert caught.value.fields == {"pair": "p9", "clean": clean, "corrupt": corrupt}


@EVERY
def test_roles_must_land_on_the_same_token(kind: str) -> None:
    pair = Pair(
        "The girl and the boy ran.", "The boy and the girl ran.", " She", " He", {"s": (4, 8)}, {"s": (16, 20)}, id="p3"
    )
    with pytest.raises(
        Misaligned, match=r"role 's' is token \d of \d in clean and token \d of \d in corrupt"
    ) as caught:
        align_pair(pair, loaded(kind))
    assert caught.value.clean != caught.value.corrupt


@pytest.mark.parametrize("kind", ["byte_bpe", "prepended_bpe"])
@pytest.mark.parametrize(
    ("prompt", "answer"), [("The girl ", "smiled"), ("The gi", "rl"), ("The gi", "rl smiled because she ran")]
)
def test_a_prompt_that_changes_at_the_seam_is_refused(kind: str, prompt: str, answer: str) -> None:
    with pytest.raises(Misaligned, match=r"tokens change at the seam.*begin the answer with the space"):
        align_pair(Pair(prompt, prompt, answer, "ran", id="seam"), loaded(kind))


def test_an_answer_that_is_split_by_what_precedes_it_is_refused() -> None:
    model = model_of(byte_bpe("The girl's ball. The boy's ball. "))
    with pytest.raises(Misaligned, match=r"answer \"'s\" is \[\"'s\"\] after clean and \[\"'\" 's'\] after corrupt"):
        align_pair(Pair("The girl", "The.", "'s", " ball", id="p"), model)


def test_an_answer_of_several_tokens_is_refused_for_logit_diff_and_shown() -> None:
    pair = Pair("The girl", "The boy", " smiled because", " ran", id="p2")
    with pytest.raises(
        TokenNotSingle, match=r"' smiled because' is 2 tokens .*smiled.*because.*metric='logprob_diff'"
    ) as caught:
        encode("byte_bpe", pair)
    assert len(caught.value.tokens) == 2
    encode("byte_bpe", pair, "logprob_diff")


@EVERY
def test_unknown_words_are_refused_rather_than_compared(kind: str) -> None:
    pair = Pair("The wizard smiled.", "The witch smiled.", " She", " He", id="p1")
    if kind in ("word_level", "slow_words"):
        with pytest.raises(TokenizerUnfit, match=r"no token for a part of 'The wizard smiled.'"):
            align_pair(pair, loaded(kind))
    else:
        assert (
            loaded(kind).tokenizer.unk_token_id
            not in align_pair(Pair("The ézé ran", "The ézè ran", " and", " because"), loaded(kind)).clean
        )


def test_answers_that_become_the_same_tokens_are_refused() -> None:
    with pytest.raises(AnswersEqual, match="same tokens"):
        align_pair(Pair("The girl", "The boy", " ran", "  ran", id="p"), loaded("word_level"))


def test_a_role_on_nothing_but_a_space_is_refused() -> None:
    with pytest.raises(DataError, match="no token covers role 'gap'"):
        align_pair(
            Pair("The girl ran", "The boy ran", " and", " because", {"gap": (3, 4)}, id="p"), loaded("word_level")
        )


def test_a_slow_tokenizer_needs_spans_that_end_with_a_token() -> None:
    with pytest.raises((DataError, TokenizerUnfit), match=r"no token for a part|inside a token"):
        align_pair(Pair("The girl ran", "The boy ran", " and", " because", {"s": (4, 6)}, id="p"), loaded("slow_words"))


def test_ids_are_taken_as_they_are() -> None:
    pair = Pair((1, 5, 6, 7), (1, 5, 8, 7), 6, (8,), {"middle": (1, 3)}, id="ids")
    found = align_pair(pair, loaded("word_level"))
    assert (found.clean, found.corrupt, found.answer, found.foil) == ((1, 5, 6, 7), (1, 5, 8, 7), (6,), (8,))
    assert found.roles == {"middle": 2, "end": 3}


def test_the_vocabulary_digest_follows_the_words_and_their_ids() -> None:
    same, other = word_level(["a", "b"]), word_level(["b", "a"])
    assert vocabulary_digest(model_of(same)) == vocabulary_digest(model_of(word_level(["a", "b"])))
    assert vocabulary_digest(model_of(same)) != vocabulary_digest(model_of(other))


def test_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(TokenizerUnfit, match="text needs a tokenizer"):
        align_pair(GIRL, cutaway.load(tiny("llama"), audit=False))
