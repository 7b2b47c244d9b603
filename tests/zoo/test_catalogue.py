"""The catalogue: names, folders, cards, and models that Hugging Face loads as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from cutaway import zoo
from cutaway.artifacts import file_digest
from cutaway.errors import UnknownName


@pytest.mark.parametrize("name", zoo.names())
def test_every_file_is_the_one_of_the_card(name: str) -> None:
    card, folder = zoo.card(name), zoo.path(name)
    assert card.files == {file.name: file_digest(file) for file in folder.iterdir() if file.name != "card.json"}
    assert card.sha256 == file_digest(folder / "model.safetensors")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_loads_as_any_other(name: str) -> None:
    """Warnings are errors here. What the card says of the sizes is what is loaded."""
    model: Any = AutoModelForCausalLM.from_pretrained(zoo.path(name))
    tokenizer = AutoTokenizer.from_pretrained(zoo.path(name))
    config, sizes = model.config, zoo.card(name).sizes
    assert type(model).__name__ == zoo.card(name).architecture
    assert sizes["n_layers"] == len(model.model.layers)
    assert sizes["n_parameters"] == sum(weight.numel() for weight in model.parameters())
    assert sizes["d_vocab"] == len(tokenizer) == config.vocab_size
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )
    assert len({config.bos_token_id, config.pad_token_id, config.eos_token_id}) == 3
    assert config.attention_dropout == 0
    assert not model.training
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_the_names_are_those_of_the_folders() -> None:
    assert "induction-2l" in zoo.names()
    assert all(zoo.path(name).name == name == zoo.card(name).name for name in zoo.names())


@pytest.mark.parametrize("ask", [zoo.card, zoo.path, zoo.truth])
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
