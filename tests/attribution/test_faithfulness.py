"""Laws of sufficiency and comprehensiveness: what they are made of, and the blind orders beside them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cutaway
from cutaway import attribution, tasks
from cutaway.attribution import Faithfulness, attribute, faithfulness
from cutaway.attribution.faithfulness import ORDERS, _by_position
from cutaway.errors import OutOfRange, UnknownName, UsageError, WrongModel
from cutaway.models import Model, sites
from tests.models.samples import loaded, rows, spoken

TARGET = attribution.logit(9)
TWO = rows((6, 5))


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return spoken("gpt2")


def value(model: Model, ids: list[int], gone: list[int]) -> float:
    mean = model.module.transformer.wte.weight.detach().mean(0)
    edits = [sites.embed.at(gone).replace(mean.expand(1, len(gone), -1))] if gone else []
    logits = model.run([ids], edits, logits="end").logits
    assert logits is not None
    return float(logits[0, 0, 9])


def test_both_measures_by_hand(gpt2: Model) -> None:
    found = attribute(gpt2, TWO, TARGET, method="occlusion")
    trust = faithfulness(gpt2, TWO, TARGET, found, removals=["mean"], shares=[0.3, 0.5], random_orders=2)
    for row, ids in enumerate(TWO):
        n = len(ids)
        order = found.scores[row, :n].argsort(descending=True).tolist()
        whole = value(gpt2, ids, [])
        needed, enough = [], []
        for k in (2, 3):  # 30 % of 5 or 6 tokens, 50 % of them, rounded up
            top = order[:k]
            needed.append(whole - value(gpt2, ids, top))
            enough.append(whole - value(gpt2, ids, [i for i in range(n) if i not in top]))
        assert float(trust.comprehensiveness[0, 0, row]) == pytest.approx(sum(needed) / 2, abs=1e-5)
        assert float(trust.sufficiency[0, 0, row]) == pytest.approx(sum(enough) / 2, abs=1e-5)
    assert trust.comprehensiveness.shape == (1, len(ORDERS), 2)
    assert trust.comprehensiveness.abs().min() > 1e-5


def test_all_tokens_are_needed_and_enough(gpt2: Model) -> None:
    found = attribute(gpt2, TWO, TARGET, method="occlusion")
    trust = faithfulness(gpt2, TWO, TARGET, found, shares=[1.0], random_orders=1)
    whole = (found.value - found.baseline_value).expand(3, 2)
    torch.testing.assert_close(trust.comprehensiveness[0], whole, atol=1e-5, rtol=1e-4)
    assert not trust.sufficiency.any()
    assert not trust.advantage("comprehensiveness", "mask", "random").any()


def test_scores_that_are_the_order_of_positions_have_no_advantage_over_it(gpt2: Model) -> None:
    prompts = rows((6, 6, 6))
    found = attribute(gpt2, prompts, TARGET, method="occlusion")
    same = replace(found, scores=torch.tensor([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]).expand(3, 6).clone())
    trust = faithfulness(gpt2, prompts, TARGET, same, random_orders=2)
    for measure in ("comprehensiveness", "sufficiency"):
        assert not trust.advantage(measure, "mean", "position").any()
        assert trust.advantage(measure, "mean", "random").abs().max() > 1e-3


def test_the_order_of_positions_knows_the_other_prompts_only() -> None:
    scores = torch.tensor([[1.0, 2.0, 9.0, float("nan")], [5.0, 4.0, 3.0, 2.0], [0.0, 8.0, 1.0, 1.0]])
    # counted from the end, the others have (4 + 8) / 2, (3 + 1) / 2, (2 + 1) / 2 at the places of the first row
    assert _by_position(scores, [3, 4, 4], 0).tolist() == [0, 1, 2]
    # the first token of the second row has only the third row's 0 to go by; then 1 and 8, 2 and 1, 9 and 1
    assert _by_position(scores, [3, 4, 4], 1).tolist() == [3, 1, 2, 0]
    assert _by_position(scores[:1], [3], 0).tolist() == [2, 1, 0]


def test_on_a_model_with_a_known_mechanism_scores_beat_the_blind_orders() -> None:
    """Induction: the answer follows an earlier copy of the last token, at another place in each prompt."""
    model = cutaway.load("induction-2l")
    batch = tasks.get("induction", model, n=8, seed=1).encode(model)
    target = attribution.logit_diff([a[0] for a in batch.answers], [f[0] for f in batch.foils])
    found = attribute(model, batch.clean, target, against=batch.corrupt)
    trust = faithfulness(model, batch.clean, target, found, shares=[0.1], random_orders=2)
    blind = replace(found, scores=torch.rand(found.scores.shape, generator=torch.Generator().manual_seed(0)))
    guess = faithfulness(model, batch.clean, target, blind, shares=[0.1], random_orders=2)
    for removal in ("mean", "mask"):
        gain = trust.advantage("comprehensiveness", removal, "random")
        assert float(gain.mean()) > 1.0
        assert float(gain.mean()) > 2 * float(guess.advantage("comprehensiveness", removal, "random").mean())
    rows_of = {(row["measure"], row["removal"], row["order"]): row for row in trust.table()}
    row = rows_of["comprehensiveness", "mean", "random"]
    assert row["low"] is not None
    assert row["low"] < row["advantage"] < row["high"]


def test_few_clusters_have_no_interval(gpt2: Model) -> None:
    found = attribute(gpt2, TWO, TARGET, method="occlusion")
    trust = faithfulness(gpt2, TWO, TARGET, found, random_orders=1, clusters=["a", "a"])
    assert {row["low"] for row in trust.table()} == {None}
    assert {row["clusters"] for row in trust.table()} == {1}
    (bars,) = trust.figures()
    assert len(bars.labels) == 8  # type: ignore[union-attr]


def test_saved_and_loaded_again(gpt2: Model, tmp_path: Path) -> None:
    found = attribute(gpt2, TWO, TARGET, method="occlusion")
    trust = faithfulness(gpt2, TWO, TARGET, found, random_orders=1)
    trust.save(tmp_path / "trust.safetensors")
    again = Faithfulness.load(tmp_path / "trust.safetensors", gpt2)
    assert again.table() == trust.table()
    assert again.provenance == trust.provenance
    with pytest.raises(WrongModel):
        Faithfulness.load(tmp_path / "trust.safetensors", loaded("llama"))


@pytest.mark.parametrize(
    ("prompts", "target", "options", "error", "says"),
    [
        (rows((6, 6)), TARGET, {}, UsageError, "give the prompts and the target"),
        (TWO, attribution.logit(8), {}, UsageError, "give the prompts and the target"),
        (TWO, TARGET, {"removals": ["noise"]}, UnknownName, "mask"),
        (TWO, TARGET, {"removals": "mean"}, UsageError, "give a list"),
        (TWO, TARGET, {"shares": [0.0]}, OutOfRange, "above 0"),
        (TWO, TARGET, {"random_orders": 0}, OutOfRange, "at least 1"),
        (TWO, TARGET, {"clusters": ["a"]}, UsageError, "one a prompt"),
    ],
)
def test_wrong_requests_say_what_to_do(
    gpt2: Model, prompts: Any, target: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    found = attribute(gpt2, TWO, TARGET, method="gradient_x_input")
    with pytest.raises(error, match=says):
        faithfulness(gpt2, prompts, target, found, **options)
