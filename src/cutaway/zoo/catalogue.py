"""The embedded models: names, folders, cards, arrays, recipes. All of it lies in the package; nothing is fetched."""

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

from torch import Tensor

from cutaway.errors import UnknownName, did_you_mean
from cutaway.zoo.card import Card

WEIGHTS: Final = Path(__file__).parent / "weights"
"""One folder a model: what `cutaway.load` reads, with a card."""


@cache
def names() -> tuple[str, ...]:
    """Names of the embedded models, sorted."""
    return tuple(sorted(file.parent.name for file in WEIGHTS.glob("*/card.json")))


def card(name: str) -> Card:
    """What is known of an embedded model. Raises UnknownName, with the nearest name.

    >>> card("induction-2l").sizes["n_layers"]
    2
    """
    return _card(path(name))


@cache
def _card(folder: Path) -> Card:
    return Card.model_validate_json((folder / "card.json").read_bytes())


def path(name: str) -> Path:
    """Folder of an embedded model. Raises UnknownName, with the nearest name.

    Where the card's architecture is a class of transformers and it has no `base`, `from_pretrained` takes the folder;
    `cutaway.load` takes the name of any.
    """
    if name not in names():
        raise UnknownName(
            f"embedded model {name!r}: not in the zoo; `cutaway models list` shows what is."
            f"{did_you_mean(name, names())}",
            found=name,
            known=names(),
        )
    return WEIGHTS / name


def tensors(name: str) -> dict[str, Tensor]:
    """The arrays of a model's truth: the directions and features that it names. Empty when it has none.

    Axes are in the truth. Raises UnknownName, with the nearest name.
    """
    from safetensors.torch import load_file

    file = path(name) / "truth.safetensors"
    return load_file(file) if file.exists() else {}


def n_bytes(name: str) -> int:
    """Size of a model's folder on disk. Raises UnknownName, with the nearest name."""
    return sum(file.stat().st_size for file in path(name).rglob("*") if file.is_file())


def recipe(name: str) -> ModuleType:
    """The module that makes the model: NAMES, make, evaluate, establish. Imports transformers. Raises UnknownName."""
    return importlib.import_module(f"cutaway.zoo.recipes.{card(name).recipe}")
