"""Conversations: the tokenizer's own template, begun once, up to where the model answers."""

from functools import cache
from typing import Any

import pytest

from cutaway.errors import TokenizerUnfit, UsageError
from cutaway.models import Model, stream
from tests.models.samples import loaded, spoken, tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {% if m.role == 'user' %}t60{% elif m.role == 'assistant' %}t61"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %} {{ m.content }} "
    "{% if not loop.last or m.role == 'user' %}t62{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} t61{% endif %}"
)
TALK = [{"role": "user", "content": "t5 t9"}, {"role": "assistant", "content": "t7"}, {"role": "user", "content": "t8"}]


@cache
def chatty() -> Model:
    words: Any = tokenizer()
    words.chat_template = TEMPLATE
    return Model(loaded("llama").module, words, loaded("llama").anatomy, "llama")


def test_messages_go_through_the_template_and_begin_once() -> None:
    model = chatty()
    wanted = [1, 60, 5, 9, 62, 61, 7, 62, 60, 8, 62, 61]
    assert model.encode(TALK).row(0) == wanted
    both = model.encode([TALK, TALK[:1]], pad="left")
    assert [both.row(row) for row in range(2)] == [wanted, [1, 60, 5, 9, 62, 61]]
    assert both.texts is not None
    assert both.texts[1][-1] == "t61"
    made = model.generate([TALK, TALK[:1]], max_new_tokens=3, stop=())
    assert made == model.generate([wanted, wanted[:6]], max_new_tokens=3, stop=()) or made.row(0)[:12] == wanted
    assert [made.row(r) for r in range(2)] == [
        model.generate([ids], max_new_tokens=3, stop=()).row(0) for ids in (wanted, wanted[:6])
    ]
    assert len(list(stream(model, TALK, max_new_tokens=3, stop=()))) == 3


def test_an_answer_that_was_begun_is_continued() -> None:
    assert chatty().encode(TALK[:2]).row(0) == [1, 60, 5, 9, 62, 61, 7]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user"}], "it needs a role and a content"),
        ([{"content": "t5"}], "it needs a role and a content"),
        ([{"role": "wizard", "content": "t5"}], "the chat template refuses these messages.*only user and assistant"),
    ],
)
def test_messages_that_do_not_fit_are_refused(messages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chatty().encode(messages)


def test_a_text_that_begins_twice_is_refused() -> None:
    words: Any = tokenizer()
    words.chat_template = "{{ bos_token }} {{ bos_token }} " + TEMPLATE.removeprefix("{{ bos_token }}")
    model = Model(loaded("llama").module, words, loaded("llama").anatomy, "llama")
    with pytest.raises(UsageError, match="begins the text twice"):
        model.encode(TALK)
    with pytest.raises(UsageError, match="bos= belongs to texts"):
        chatty().encode(TALK, bos=True)


def test_without_a_template_there_is_no_conversation() -> None:
    with pytest.raises(TokenizerUnfit, match="its tokenizer has no chat template"):
        spoken("llama").encode(TALK)
    with pytest.raises(TokenizerUnfit, match="no chat template"):
        loaded("llama").encode(TALK)
