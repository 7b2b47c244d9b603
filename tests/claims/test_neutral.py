"""Neutral prompts: of the task's length, without repetition, the same for the same seed; texts cut to one length."""

import pytest

from cutaway.claims.neutral import neutral_task
from cutaway.errors import TokenizerUnfit
from tests.claims.toy import LENGTH, toy_model, toy_task


def test_random_prompts_repeat_no_token() -> None:
    model = toy_model()
    like = toy_task().encode(model)
    found = neutral_task(model, (), n=60, like=like, seed=3)
    assert len(found) == 60
    assert found.metric == "kl"
    assert len(found.clusters) == 60, "each prompt is its own cluster"
    for pair in found.pairs:
        assert len(set(pair.clean)) == len(pair.clean) == LENGTH
        assert pair.clean != pair.corrupt
    assert neutral_task(model, (), n=60, like=like, seed=3) == found
    assert neutral_task(model, (), n=60, like=like, seed=4).digest != found.digest


def test_texts_need_a_tokenizer() -> None:
    model = toy_model()
    with pytest.raises(TokenizerUnfit):
        neutral_task(model, ("some text",) * 50, n=50, like=toy_task().encode(model), seed=0)
