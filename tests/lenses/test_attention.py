"""Attention scores against slow loops over Hugging Face's own attention, and against heads that are what they claim."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cutaway.errors import BrokenEvidence, UnknownName, UsageError, WrongModel
from cutaway.lenses import HeadScores, Patterns, attention_patterns, head_scores
from cutaway.lenses.attention import KINDS, _average, _targets
from cutaway.models import Model, load, sites
from cutaway.models.tokens import Tokens, from_rows
from tests.families import tiny
from tests.patching.pairs import loaded, token_task

ROWS = [[11, 12, 13, 11, 12, 14], [20, 20, 21, 20], [30, 31, 32, 33, 34]]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return loaded("gpt2", "eager")


def slow(pattern: Tensor, row: list[int]) -> list[float]:
    """The three scores of one head on one row, in plain loops; NaN when no query has a target."""
    found: list[list[float]] = [[], [], []]
    for t in range(len(row)):
        repeats = [s for s in range(t) if row[s] == row[t]]
        targets = ([t - 1] if t else [], repeats, [s + 1 for s in repeats if s + 1 < t])
        for values, keys in zip(found, targets):
            if keys:
                values.append(sum(pattern[t, s].item() for s in keys))
    return [sum(values) / len(values) if values else math.nan for values in found]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bert"])
def test_scores_equal_slow_loops(family: str) -> None:
    model = loaded(family, "eager")
    scores = head_scores(model, model.encode(ROWS))
    assert scores.labels[:5] == ("pattern.0.h0", "pattern.0.h1", "pattern.0.h2", "pattern.0.h3", "pattern.1.h0")
    for r, row in enumerate(ROWS):
        with torch.no_grad():
            attention = model.module(input_ids=torch.tensor([row]), output_attentions=True).attentions
        for index in range(len(scores)):
            expected = slow(attention[index // 4][0, index % 4], row)
            own = [scores.previous[index, r], scores.duplicate[index, r], scores.induction[index, r]]
            torch.testing.assert_close(torch.stack(own), torch.tensor(expected), equal_nan=True, **CLOSE)
            weights = attention[index // 4][0, index % 4]
            entropy = -(weights * weights.clamp(min=1e-30).log()).sum(1).mean()
            torch.testing.assert_close(scores.entropy[index, r], entropy, **CLOSE)
            torch.testing.assert_close(scores.first[index, r], weights[1:, 0].mean(), **CLOSE)
    assert scores.duplicate[:, 2].isnan().all()
    assert scores.induction[:, :2].min() > 0


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_chance_is_even_attention(family: str) -> None:
    model = loaded(family, "eager")
    scores = head_scores(model, model.encode(ROWS))
    for r, row in enumerate(ROWS):
        even = torch.ones(len(row), len(row))
        even = even.tril() if family == "gpt2" else even
        expected = torch.tensor(slow(even / even.sum(1, keepdim=True), row))
        torch.testing.assert_close(scores.chance[:, r], expected, equal_nan=True, **CLOSE)


def test_heads_that_are_what_they_claim() -> None:
    """Patterns that look exactly at the targets score 1; looking elsewhere scores 0."""
    rows = from_rows(ROWS[:2], pad="right", pad_id=0)
    targets = _targets(rows)
    for kind in range(3):
        perfect = targets[kind].float() / targets[kind].sum(-1, keepdim=True).clamp(min=1)
        assert _average(perfect, targets)[kind].tolist() == pytest.approx([1.0, 1.0])
    away = torch.zeros(2, 6, 6)
    away[:, :, 0] = 1.0
    first = _average(away, targets)
    assert first[0].tolist() == pytest.approx([1 / 5, 1 / 3])  # only the second token's predecessor is the first


@pytest.mark.parametrize("pad", ["left", "right"])
def test_padding_adds_nothing(gpt2: Model, pad: str) -> None:
    together = head_scores(gpt2, from_rows(ROWS, pad=pad, pad_id=20))
    for r, row in enumerate(ROWS):
        alone = head_scores(gpt2, gpt2.encode([row]))
        for kind in (*KINDS, "first", "entropy"):
            torch.testing.assert_close(
                getattr(together, kind)[:, r], getattr(alone, kind)[:, 0], equal_nan=True, **CLOSE
            )


def test_the_bound_on_tokens_changes_nothing(gpt2: Model) -> None:
    rows: Tokens = gpt2.encode(ROWS)
    large, small = (head_scores(gpt2, rows, max_tokens=size) for size in (4096, 6))
    torch.testing.assert_close(large.previous, small.previous, **CLOSE)
    torch.testing.assert_close(large.induction, small.induction, equal_nan=True, **CLOSE)


def test_named_heads(gpt2: Model) -> None:
    every = head_scores(gpt2, gpt2.encode(ROWS))
    some = head_scores(gpt2, gpt2.encode(ROWS), ["z.2.h3", "pattern.0.h1", sites.z[1]])
    assert some.labels == ("pattern.2.h3", "pattern.0.h1", *(f"pattern.1.h{i}" for i in range(4)))
    torch.testing.assert_close(some.previous[0], every.previous[11], **CLOSE)
    torch.testing.assert_close(some.previous[1], every.previous[1], **CLOSE)
    assert every.top("previous", 2)[0] == every.labels[int(every.previous.mean(1).argmax())]


def test_the_table_leaves_out_what_no_row_has(gpt2: Model) -> None:
    scores = head_scores(gpt2, gpt2.encode([ROWS[2]]), "z.1.h2")
    (row,) = scores.table()
    assert row["head"] == "pattern.1.h2"
    assert row["duplicate"] is None
    assert row["induction_chance"] is None
    assert row["previous"] == pytest.approx(scores.previous.item())
    with pytest.raises(UsageError, match="repeats"):
        scores.top("induction")
    with pytest.raises(UnknownName, match="induction"):
        scores.mean("inductoin")


def test_a_task_means_its_clean_rows(gpt2: Model) -> None:
    task = token_task(gpt2)
    assert torch.equal(head_scores(gpt2, task).previous, head_scores(gpt2, task.encode(gpt2).clean).previous)


@pytest.mark.parametrize("pad", ["left", "right"])
def test_patterns_are_the_models_own(gpt2: Model, pad: str) -> None:
    found = attention_patterns(gpt2, from_rows(ROWS, pad=pad, pad_id=0), ["z.1.h2", "z.0.h0"])
    assert found.labels == ("pattern.1.h2", "pattern.0.h0")
    assert found.values.shape == (2, 3, 6, 6)
    for r, row in enumerate(ROWS):
        with torch.no_grad():
            attention = gpt2.module(input_ids=torch.tensor([row]), output_attentions=True).attentions
        n = len(row)
        torch.testing.assert_close(found.values[0, r, :n, :n], attention[1][0, 2], **CLOSE)
        assert found.values[:, r, n:].abs().sum() == 0
        assert found.tokens[r] == tuple(map(str, row))
    assert attention_patterns(gpt2, gpt2.encode(ROWS), "z.1.h2", rows=[2]).values.shape == (1, 1, 5, 5)


@pytest.mark.parametrize("wanted", ["mlp_out.0", "z.0.h1@end", "k.0.h1"])
def test_only_query_heads_have_patterns(gpt2: Model, wanted: str) -> None:
    with pytest.raises(UsageError, match="query heads"):
        head_scores(gpt2, gpt2.encode(ROWS), wanted)


def test_saved_results_come_back(gpt2: Model, tmp_path: Path) -> None:
    scores, patterns = head_scores(gpt2, gpt2.encode(ROWS)), attention_patterns(gpt2, gpt2.encode(ROWS), "z.1.h2")
    scores.save(tmp_path / "s.safetensors")
    patterns.save(tmp_path / "p.safetensors")
    back = HeadScores.load(tmp_path / "s.safetensors", gpt2)
    assert back.labels == scores.labels
    assert torch.equal(back.previous, scores.previous)
    assert torch.equal(Patterns.load(tmp_path / "p.safetensors", gpt2).values, patterns.values)
    with pytest.raises(BrokenEvidence, match="patterns"):
        HeadScores.load(tmp_path / "p.safetensors")
    with pytest.raises(WrongModel, match=r"s\.safetensors"):
        HeadScores.load(tmp_path / "s.safetensors", load(tiny("gpt2", seed=1)))


def test_figures_and_tables_hold_the_numbers(gpt2: Model) -> None:
    scores = head_scores(gpt2, gpt2.encode(ROWS))
    bars = scores.figures()[:3]
    assert [figure.labels[0] for figure in bars] == [scores.top(kind)[0] for kind in KINDS]
    assert len(head_scores(gpt2, gpt2.encode([ROWS[2]])).figures()) == 2  # no repeats: the previous token alone
    assert scores.table()[3]["first"] == pytest.approx(scores.first[3].mean().item())
    patterns = attention_patterns(gpt2, gpt2.encode(ROWS), "z.1.h2")
    assert len(patterns.table()) == sum(map(len, ROWS))
    row = patterns.table()[4]
    assert row["share"] == pytest.approx(patterns.values[0, 0, 4].max().item())
    assert patterns.figures()[1].values[2] == pytest.approx(patterns.values[0, 1, 2, :4].tolist())
