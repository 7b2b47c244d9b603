"""The recipe of `induction-2l`: its rows, its tokenizer, its training, and the accuracy of what it made."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cutaway import zoo
from cutaway.zoo.recipes import induction_2l as recipe

TINY = recipe.Recipe(seed=5, steps=4, batch=4, length=32, lone_from=1)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(zoo.path("induction-2l")).eval()


def test_what_is_called_predictable_is_and_nothing_else() -> None:
    rows = recipe.draw_rows(64, length=recipe.MAX_LENGTH, chance=random.Random(0))
    assert rows.ids.shape == (64, recipe.MAX_LENGTH)
    distances = set()
    for ids, known in zip(rows.ids.tolist(), rows.predictable.tolist()):
        assert ids[0] == recipe.BOS
        for at in range(1, len(ids)):
            earlier = [seen for seen in range(1, at - 1) if ids[seen] == ids[at - 1]]
            if known[at]:
                assert {ids[seen + 1] for seen in earlier} == {ids[at]}
                distances.add(at - 1 - earlier[-1])
            elif earlier:
                assert ids[at] not in {ids[seen + 1] for seen in earlier} or ids[at] in ids[:at]
    assert {5, 10, 15, 20} <= distances  # neither a position nor a distance gives the answer


def test_the_shipped_model_continues_fresh_rows(model: Any) -> None:
    scores = recipe.evaluate("induction-2l", model, rows=64, seed=4_321)
    assert [each.n for each in scores] == [64] * 3
    assert all(each.share >= 0.98 for each in scores)


def test_it_continues_readable_text(model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("induction-2l"))
    text = "fox lamp rose key owl boat fern"
    ids = tokenizer(f"{text} fox lamp", return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.bos_token_id
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(out[0], skip_special_tokens=True) == f"{text} {text}"


def test_the_tokenizer_has_a_token_a_word() -> None:
    tokenizer = recipe.tokenizer()
    assert len(tokenizer) == 128 == len(set(recipe.SPECIAL + recipe.WORDS))
    assert tokenizer("cat cat dog").input_ids[1:] == [
        tokenizer.convert_tokens_to_ids(word) for word in ("cat", "cat", "dog")
    ]
    assert tokenizer("cat zebra").input_ids[-1] == tokenizer.unk_token_id
    assert max(map(len, recipe.WORDS)) <= 5


def test_a_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again = (recipe.train(TINY).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    other = recipe.train(dataclasses.replace(TINY, seed=6)).state_dict()
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_training_lowers_the_loss_and_shrinks_all_writers_but_one() -> None:
    losses: list[float] = []
    longer = dataclasses.replace(TINY, steps=60, lone_from=100)
    free = recipe.train(longer, watch=losses.append)
    lone = recipe.train(dataclasses.replace(longer, lone_from=-200, lone_weight=10.0))
    assert len(losses) == 60
    assert losses[-1] < losses[0]
    rows = recipe.draw_rows(8, length=32, chance=random.Random(1))

    def penalty(model: Any) -> float:
        with torch.no_grad(), recipe.sizes_of_writes(model) as sizes:
            model(rows.ids)
        return recipe.lone_writer_penalty(sizes).item()

    assert penalty(lone) < 0.5 * penalty(free)


def test_the_penalty_does_not_touch_the_strongest_head() -> None:
    heads = [torch.tensor([1.0, 0.5], requires_grad=True), torch.tensor([1.0, 4.0, 2.0], requires_grad=True)]
    penalty = recipe.lone_writer_penalty(recipe.Sizes([*heads], [torch.tensor(1.0), torch.tensor(4.0)]))
    assert penalty.item() == pytest.approx((0.5 - recipe.SPARED) + (1 + 2) / 4 + (1 + 4) / 4)
    penalty.backward()
    assert [head.grad.tolist() for head in heads if head.grad is not None] == [[0.0, 1.0], [0.25, 0.0, 0.25]]


def test_the_roles_follow_from_the_measurements() -> None:
    assert recipe._role([0.04, -0.04], 0.9, 0.9) == "decoy"
    assert recipe._role([0.9, 0.6], 0.8, 0.1) == "previous_token"
    assert recipe._role([0.9, 0.6], 0.1, 0.8) == "induction"
    assert recipe._role([0.9, 0.4], 0.8, 0.1) == "other"
    assert recipe._role([0.9, 0.9], 0.1, 0.1) == "other"


def test_a_folder_is_written_with_a_card(tmp_path: Path) -> None:
    """Four steps: no behavior, and a card that says so."""
    steps: list[tuple[int, int, str]] = []
    trained = recipe.train(TINY, lambda *step: steps.append(step))
    card = recipe.write("induction-2l", trained, TINY, tmp_path, rows=8)
    assert steps == [(done, 4, "training induction-2l") for done in (1, 2, 3, 4)]
    assert card == zoo.Card.model_validate(json.loads((tmp_path / "card.json").read_text()))
    assert set(card.files) == {file.name for file in tmp_path.iterdir()} - {"card.json"}
    assert card.truth.sites("induction") == ()
    assert all(score.share < 0.2 for score in card.accuracy)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in trained.state_dict().items())
