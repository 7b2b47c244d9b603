"""The catalogue: names, folders, cards, and models that load as any other, offline."""

import re
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

import cutaway
from cutaway import zoo
from cutaway.errors import UnknownName
from cutaway.zoo.catalogue import WEIGHTS
from cutaway.zoo.train import contents, missed


def test_all_together_is_small() -> None:
    assert 400_000 < sum(zoo.n_bytes(name) for name in zoo.names()) < 16_000_000


@pytest.mark.parametrize("name", zoo.names())
def test_every_file_is_the_one_of_the_card(name: str) -> None:
    card, folder = zoo.card(name), zoo.path(name)
    assert card.files == contents(folder)
    assert {file.stat().st_mode & 0o777 for file in folder.rglob("*") if file.is_file()} == {0o644}
    assert zoo.n_bytes(name) == sum((folder / file).stat().st_size for file in [*card.files, "card.json"])


@pytest.mark.parametrize("name", zoo.names())
def test_a_card_promises_and_keeps(name: str) -> None:
    """Scores with intervals around them, at least one of them promised, and none of the promised ones missed."""
    card = zoo.card(name)
    assert all(score.low <= score.share <= score.high and score.n > 0 for score in card.accuracy)
    assert any(score.target is not None for score in card.accuracy)
    assert missed(card.accuracy) == ()
    assert card.licence == "Apache-2.0"


@pytest.mark.parametrize("name", zoo.names())
def test_the_recipe_of_a_model_is_there(name: str) -> None:
    recipe = zoo.recipe(name)
    assert name in recipe.NAMES
    assert all(callable(getattr(recipe, part)) for part in ("make", "evaluate", "establish"))
    assert set(recipe.CHANCE) <= {score.behavior for other in zoo.names() for score in zoo.card(other).accuracy}


@pytest.mark.parametrize("name", zoo.names())
def test_what_a_truth_names_is_there(name: str) -> None:
    """Tensors of directions and features, explained measures, and components by their sites."""
    truth, tensors = zoo.truth(name), zoo.tensors(name)
    assert {*truth.features, *(each.tensor for each in truth.directions)} == set(tensors)
    measures = [truth.measures, *(each.measures for each in (*truth.nodes, *truth.directions))]
    # capitals stand for a value: step_K explains step_1, and @RATE the part of loss@0.5 behind the name
    explained = re.compile("|".join(re.sub(r"[A-Z]+", ".+", re.escape(key)) for key in truth.legend))
    parts = {part for each in measures for key in each for part in re.findall(r"^[^@]+|@.+", key)}
    assert [part for part in sorted(parts) if not explained.fullmatch(part)] == []
    assert max(Counter(node.site for node in truth.nodes).values(), default=1) == 1
    assert max(Counter((edge.source, edge.target) for edge in truth.edges).values(), default=1) == 1


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_loads_by_name_and_nothing_is_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors here, and so is any use of the network. What the card says is what is loaded."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a socket was asked for")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for what in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, what, refuse)
    model, card = cutaway.load(name, audit=False), zoo.card(name)
    module: Any = model.module
    assert model.name == name
    assert type(module).__name__ == card.architecture.rpartition(".")[2]
    assert card.sizes["n_parameters"] == sum(weight.numel() for weight in module.parameters())
    assert all(torch.isfinite(weight).all() for weight in module.parameters())
    assert all(weight.dtype in (torch.float32, torch.float64) for weight in module.parameters())
    assert not module.training
    if model.anatomy is not None:
        sizes = {key: size for key, size in card.sizes.items() if key.startswith(("n_layers", "n_heads", "d_model"))}
        assert sizes == {key: getattr(model.body, key) for key in sizes}


@pytest.mark.parametrize("name", [name for name in zoo.names() if (zoo.path(name) / "tokenizer.json").exists()])
def test_a_tokenizer_fits_its_model(name: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(zoo.path(name))
    tokenizer = AutoTokenizer.from_pretrained(zoo.path(name))
    config = model.config
    assert len(tokenizer) == config.vocab_size == zoo.card(name).sizes["d_vocab"]
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )
    ids = [at for at in (config.bos_token_id, config.pad_token_id, config.eos_token_id) if at is not None]
    assert len(set(ids)) == len(ids)


def test_the_names_are_those_of_the_folders() -> None:
    assert "induction-2l" in zoo.names() == tuple(sorted(folder.name for folder in WEIGHTS.iterdir()))
    assert all(zoo.path(name).name == name == zoo.card(name).name for name in zoo.names())
    assert list(zoo.names()) == cutaway.models.embedded_names()


@pytest.mark.parametrize("ask", [zoo.card, zoo.path, zoo.truth, zoo.tensors, zoo.recipe, zoo.check, zoo.n_bytes])
def test_an_unknown_name_brings_the_nearest(ask: Any) -> None:
    with pytest.raises(UnknownName, match=r"'induction2l'.*Did you mean 'induction-2l'\?") as caught:
        ask("induction2l")
    assert caught.value.found == "induction2l"


def test_a_card_is_frozen_and_complete(tmp_path: Path) -> None:
    card = zoo.card("induction-2l")
    with pytest.raises(ValidationError, match="frozen"):
        card.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        zoo.Card.model_validate({**card.model_dump(), "colour": "red"})
    with pytest.raises(ValidationError, match="known"):
        zoo.Card.model_validate({key: value for key, value in card.model_dump().items() if key != "known"})
