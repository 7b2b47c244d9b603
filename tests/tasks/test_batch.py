"""The metrics' arithmetic against sums written out by hand, and its laws: rows are independent, padding is nothing."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.models.tokens import Tokens
from cutaway.tasks import Batch, Pair, Task
from tests.tasks.vocabularies import loaded

GIRL = Pair("The girl smiled.", "The boy smiled.", " She", " He", id="girl")
BOY = Pair("Mary and the boy ran.", "Mary and the girl ran.", " He", " She", id="boy")
LONG = Pair("The girl smiled.", "The boy smiled.", " She smiled.", " He", id="long")


def batch(metric: str, *pairs: Pair) -> Batch:
    return Task("t", "a test", pairs or (GIRL, BOY), metric=metric).encode(loaded("byte_bpe"))


def logits_for(tokens: Tokens, seed: int = 0) -> Tensor:
    """Random logits of whole rows."""
    d_vocab = loaded("byte_bpe").anatomy.d_vocab
    return torch.randn(len(tokens), tokens.width, d_vocab, generator=torch.Generator().manual_seed(seed)) * 3


def by_hand(found: Batch, logits: Tensor) -> list[tuple[float, float]]:
    """For each pair the summed log-probabilities of answer and foil, token by token."""
    scores = []
    for pair in range(found.n):
        both = []
        for copy, targets in enumerate((found.answers[pair], found.foils[pair])):
            row = pair + copy * found.n if found.stacked else pair
            start = found.clean.offsets[row] + found.clean.roles["end"][row]
            both.append(
                sum(
                    math.log(torch.softmax(logits[row, start + step].double(), -1)[token])
                    for step, token in enumerate(targets)
                )
            )
        scores.append((both[0], both[1]))
    return scores


VALUE = {
    "logit_diff": lambda answer, foil: answer - foil,
    "logprob_diff": lambda answer, foil: answer - foil,
    "prob": lambda answer, foil: math.exp(answer),
    "accuracy": lambda answer, foil: float(answer > foil),
}


@pytest.mark.parametrize("name", list(VALUE))
def test_single_tokens_score_as_by_hand(name: str) -> None:
    found = batch(name)
    logits = logits_for(found.clean)
    expected = [VALUE[name](answer, foil) for answer, foil in by_hand(found, logits)]
    assert found.logits == "end"
    assert len(found.clean) == found.n == 2
    assert found.values(found.select(logits)).tolist() == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) == 2


@pytest.mark.parametrize("name", ["logprob_diff", "prob", "accuracy"])
def test_answers_of_several_tokens_sum_their_log_probabilities(name: str) -> None:
    found = batch(name, LONG, BOY)
    logits = logits_for(found.clean)
    assert [len(found.answers[0]), len(found.foils[0])] == [3, 1]
    assert (found.n, len(found.clean)) == (2, 4)
    expected = [VALUE[name](answer, foil) for answer, foil in by_hand(found, logits)]
    assert found.values(found.select(logits)).tolist() == pytest.approx(expected, abs=1e-4)


def test_stacked_rows_keep_end_at_the_last_token_of_the_prompt() -> None:
    found = batch("logprob_diff", LONG, BOY)
    prompts = [loaded("byte_bpe").encode([pair.clean]).lengths[0] for pair in (LONG, BOY)]
    assert found.clean.roles["end"] == (prompts[0] - 1, prompts[1] - 1) * 2
    assert found.clean.lengths == (prompts[0] + 3, prompts[1] + 1, prompts[0] + 1, prompts[1] + 1)
    assert found.clean.lengths == found.corrupt.lengths
    last = found.clean.roles["end"][1]
    assert found.logits[1] == (last, last, last)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [("logit_diff", (GIRL, BOY))]
    + [(name, pairs) for name in ("logprob_diff", "prob", "kl") for pairs in ((GIRL, BOY), (LONG, BOY))],
)
def test_rows_may_be_computed_in_any_chunks(name: str, pairs: tuple[Pair, ...]) -> None:
    found = batch(name, *pairs)
    chosen = found.select(logits_for(found.clean))
    if name == "kl":
        found = found.with_reference(found.select(logits_for(found.clean, seed=1)))
    whole = found.row_scores(chosen, torch.arange(len(chosen)))
    for size in (1, 3):
        parts = [found.row_scores(chosen[rows], rows) for rows in torch.arange(len(chosen)).split(size)]
        assert torch.equal(torch.cat(parts), whole)
    backwards = torch.arange(len(chosen)).flip(0)
    assert torch.equal(found.row_scores(chosen[backwards], backwards).flip(0), whole)
    assert whole.abs().min() > 0


@pytest.mark.parametrize("pairs", [(GIRL, BOY), (LONG, BOY)], ids=["single", "stacked"])
def test_padding_on_either_side_gives_the_same_logits(pairs: tuple[Pair, ...]) -> None:
    found = batch("logprob_diff", *pairs)
    rows = [found.clean.row(row) for row in range(len(found.clean))]
    left = loaded("byte_bpe").encode(rows, pad="left", roles=found.clean.roles)
    moved = replace(found, clean=left)
    logits = logits_for(found.clean)
    shifted = torch.zeros_like(logits)
    for row, (length, offset) in enumerate(zip(left.lengths, left.offsets)):
        shifted[row, offset : offset + length] = logits[row, :length]
    assert max(left.offsets) > 0
    assert torch.equal(moved.select(shifted), found.select(logits))


def test_kl_is_zero_for_the_clean_run_and_the_divergence_otherwise() -> None:
    found = batch("kl", LONG, BOY)
    assert not found.stacked
    clean, other = (found.select(logits_for(found.clean, seed)) for seed in (0, 1))
    measured = found.with_reference(clean)
    p, q = clean[:, -1].double().softmax(-1), other[:, -1].double().softmax(-1)
    assert measured.values(clean).tolist() == [0.0, 0.0]
    assert measured.values(other).tolist() == pytest.approx((p * (p.log() - q.log())).sum(-1).tolist(), rel=1e-4)
    assert measured.values(other).min() > 0.1


def test_kl_without_the_clean_run_says_what_to_do() -> None:
    found = batch("kl")
    with pytest.raises(UsageError, match="with_reference"):
        found.values(found.select(logits_for(found.clean)))


def test_a_reference_has_one_row_a_pair() -> None:
    found = batch("kl")
    with pytest.raises(UsageError, match="3 rows of logits for 2 pairs"):
        found.with_reference(torch.zeros(3, 5))


def test_scores_of_the_ids_that_the_metric_reads_are_those_of_all_logits() -> None:
    found = batch("logit_diff")
    logits = logits_for(found.clean)
    ends = found.select(logits)
    assert found.vocab == tuple((a[0], f[0]) for a, f in zip(found.answers, found.foils))
    few = torch.stack([row[:, list(ids)] for row, ids in zip(ends, found.vocab)])
    whole = found.row_scores(ends, torch.arange(found.n))
    assert torch.equal(found.picked_scores(few), whole)
    assert whole[:, 0].ne(whole[:, 1]).all()
    assert found.picked_scores(few.half()).dtype == torch.float32


@pytest.mark.parametrize(("metric", "pairs"), [("prob", ()), ("kl", ()), ("logprob_diff", (LONG, GIRL))])
def test_metrics_that_read_the_whole_vocabulary_say_so(metric: str, pairs: tuple[Pair, ...]) -> None:
    assert batch(metric, *pairs).vocab is None


def test_combine_wants_all_rows() -> None:
    with pytest.raises(UsageError, match="1 rows for a batch of 2"):
        batch("logit_diff").combine(torch.zeros(1, 2))


def test_half_precision_is_widened_before_any_difference() -> None:
    found = batch("logprob_diff")
    logits = found.select(logits_for(found.clean)).bfloat16()
    assert found.values(logits).dtype == torch.float32
    assert torch.equal(found.values(logits), found.values(logits.float()))


def test_gradients_reach_the_logits_of_answer_and_foil_alone() -> None:
    found = batch("logit_diff")
    logits = logits_for(found.clean).requires_grad_()
    found.values(found.select(logits)).sum().backward()
    assert logits.grad is not None
    touched = {tuple(index) for index in logits.grad.nonzero().tolist()}
    expected = {
        (row, end, token[row][0])
        for row, end in enumerate(found.clean.roles["end"])
        for token in (found.answers, found.foils)
    }
    assert touched == expected


@pytest.mark.parametrize("pairs", [(GIRL, BOY), (LONG, BOY)], ids=["single", "stacked"])
def test_a_run_of_the_model_gives_what_each_row_gives_alone(pairs: tuple[Pair, ...]) -> None:
    model = loaded("byte_bpe")
    found = batch("logprob_diff", *pairs)
    expected = []
    for pair in range(found.n):
        both = []
        for targets in (found.answers[pair], found.foils[pair]):
            prompt = model.encode([pairs[pair].clean]).row(0)
            with torch.no_grad():
                logits = model.module(input_ids=torch.tensor([[*prompt, *targets]])).logits[0].log_softmax(-1)
            both.append(sum(float(logits[len(prompt) - 1 + step, token]) for step, token in enumerate(targets)))
        expected.append(both[0] - both[1])
    logits = model.run(found.clean, logits=found.logits).logits
    assert logits is not None
    assert found.values(logits).tolist() == pytest.approx(expected, abs=1e-4)
    whole = model.run(found.clean).logits
    assert whole is not None
    assert torch.allclose(found.select(whole), logits, atol=1e-5)
