"""Fitting a task to a model: what does not align is dropped and counted, long answers are scored as sequences."""

import pytest

import cutaway
from cutaway.errors import Misaligned, TokenizerUnfit, WrongModel
from cutaway.tasks import Pair, Task, fit, fitted
from tests.families import tiny
from tests.tasks.vocabularies import byte_bpe, loaded

GOOD = [(f"The {a} and the {b} ran.", f"The {b} and the {a} ran.", " She", " He") for a in ("girl", "boy", "man")
        for b in ("girl", "boy", "man") if a != b]  # fmt: skip
LONG = ("The girl and the girl", "The boy and the boy", " smiled because", " ran")
UNEQUAL = ("The girl and Ann ran.", "The girl and the boy and Ann ran.", " She", " He")


def test_a_task_that_fits_is_left_as_it_is() -> None:
    task = Task.from_pairs(GOOD)
    found = fit(task, loaded("byte_bpe"))
    assert found.task is task
    assert fitted(task, loaded("byte_bpe")) is task
    assert (found.total, found.dropped, found.n_long) == (6, {}, 0)
    assert found.summary == "6 of 6 pairs align."


def test_pairs_that_do_not_align_are_dropped_and_counted() -> None:
    moved = Pair(
        "The girl and the boy ran.", "The boy and the girl ran.", " She", " He", {"w": (4, 8)}, {"w": (16, 20)}
    )
    task = Task.from_pairs([*(Pair(*item, {"w": (4, 7)}) for item in GOOD), moved, Pair(*UNEQUAL, {"w": (4, 7)})])
    found = fit(task, loaded("byte_bpe"), least=1)
    assert len(found.task) == 6
    assert found.kinds == {"with a position at different tokens": 1, "of unequal length": 1}
    assert set(found.dropped) == {"task-006", "task-007"}
    assert "clean has" in found.dropped["task-007"]
    assert (
        "6 of 8 pairs align (dropped: 1 with a position at different tokens, 1 of unequal length)."
        in fitted(task, loaded("byte_bpe"), least=1).description
    )
    assert found.task.encode(loaded("byte_bpe")).n == 6


def test_unknown_words_seams_and_long_prompts_are_counted() -> None:
    odd = [
        ("The witch ran.", "The boy ran.", " She", " He"),
        ("The girl ran.", "The boy ran.", " Mary", "  Mary"),
    ]
    kinds = fit(Task.from_pairs([*GOOD, *odd]), loaded("word_level"), least=1).kinds
    assert kinds == {"with unknown words": 1, "with equal answers": 1}
    short = cutaway.load(tiny("gpt2", vocab_size=len(byte_bpe()), n_positions=16), byte_bpe(), audit=False)
    far = ("The girl ran. " * 4 + "She", "The boy ran. " * 4 + "She", " ran", " smiled")
    seam = ("The gi", "The gi", "rl", "rls")
    found = fit(Task.from_pairs([*GOOD, far, seam]), short, least=1)
    assert found.kinds == {"longer than the context": 1, "whose answer changes the prompt": 1}
    found.task.encode(short)


def test_an_answer_of_several_tokens_makes_it_sequences() -> None:
    task = Task.from_pairs([*GOOD, LONG])
    found = fit(task, loaded("byte_bpe"))
    assert found.task.metric == "logprob_diff"
    assert (found.n_long, found.metric) == (1, "logit_diff")
    assert "1 have an answer or foil of several tokens" in fitted(task, loaded("byte_bpe")).description
    assert found.task.encode(loaded("byte_bpe")).stacked
    for metric in ("prob", "accuracy", "kl", "logprob_diff"):
        kept = Task.from_pairs([*GOOD, LONG], metric=metric)
        assert fit(kept, loaded("byte_bpe")).task is kept


def test_a_long_answer_that_is_dropped_changes_no_metric() -> None:
    task = Task.from_pairs([*GOOD, (LONG[0] + " and Ann", *LONG[1:])])
    found = fit(task, loaded("byte_bpe"), least=1)
    assert len(found.task) == 6
    assert found.task.metric == "logit_diff"


def test_too_few_are_refused_with_the_counts() -> None:
    unequal = [(clean, f"{corrupt} {n}", answer, foil, f"k{n}") for n, (clean, corrupt, answer, foil) in
               enumerate([UNEQUAL] * 3)]  # fmt: skip
    with pytest.raises(
        Misaligned, match=r"1 of 4 pairs \(clusters: 1\) fit .*, and 4 or more clusters.*clean has"
    ) as caught:
        fit(Task.from_pairs([(*GOOD[0], "good"), *unequal]), loaded("byte_bpe"))
    assert caught.value.found == 1
    with pytest.raises(Misaligned, match="2 or more"):
        fit(Task.from_pairs([(*GOOD[0], "good"), *unequal]), loaded("byte_bpe"), least=2)
    lost = [Pair(*item, cluster=f"{n}", split="explore") for n, item in enumerate(GOOD)]
    task = Task.from_pairs([*lost, Pair(*UNEQUAL, cluster="z", split="confirm")])
    with pytest.raises(Misaligned, match=r"confirm has none"):
        fit(task, loaded("byte_bpe"))


def test_what_no_pair_can_mend_is_raised() -> None:
    with pytest.raises(TokenizerUnfit, match="has none"):
        fit(Task.from_pairs(GOOD), cutaway.load(tiny("llama"), audit=False))
    with pytest.raises(WrongModel):
        fit(Task.from_pairs([([1, 2], [1, 3], 4, 5)], model=loaded("word_level")), loaded("byte_bpe"))
