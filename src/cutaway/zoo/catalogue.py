"""The embedded models: names, folders, cards. All of it lies in the package; nothing is fetched."""

from pathlib import Path
from typing import Final

from cutaway.errors import UnknownName, did_you_mean
from cutaway.zoo.card import Card

WEIGHTS: Final = Path(__file__).parent / "weights"
"""One folder a model, each an ordinary Hugging Face folder with a card."""


def _cards() -> dict[str, Card]:
    found = (Card.model_validate_json(file.read_bytes()) for file in sorted(WEIGHTS.glob("*/card.json")))
    return {card.name: card for card in found}


CARDS: Final = _cards()
"""Name -> card, in the order of the names."""


def names() -> tuple[str, ...]:
    """Names of the embedded models, sorted."""
    return tuple(CARDS)


def card(name: str) -> Card:
    """What is known of an embedded model. Raises UnknownName, with the nearest name.

    >>> card("induction-2l").sizes["n_layers"]
    2
    """
    if name not in CARDS:
        raise UnknownName(
            f"embedded model {name!r}: not in the zoo; `cutaway models list` shows what is.{did_you_mean(name, CARDS)}",
            found=name,
            known=names(),
        )
    return CARDS[name]


def path(name: str) -> Path:
    """Folder of an embedded model, as `AutoModelForCausalLM.from_pretrained` takes it. Raises UnknownName."""
    return WEIGHTS / card(name).name
