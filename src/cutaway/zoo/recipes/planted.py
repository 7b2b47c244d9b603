"""`planted`: a written model with a direction that it uses, two that it does not read, and one that is dormant.

    cutaway zoo train planted --out DIR

The weights are written as those of `handmade-*` are, in a rotated basis; `cutaway.zoo.handmade.planted` says what is in
them. Cost: no training; the measurements take about 5 s of one CPU core.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from cutaway.zoo.card import Card, Score, Truth
from cutaway.zoo.handmade.planted import Planted, PlantedRows, build_planted, draw_rows
from cutaway.zoo.train import Progress, finish, main, save_hf, score, sizes

NAMES: Final = ("planted",)
CHANCE: Final = {"mood": 0.5}
"""Behavior -> share that a guess gives."""
SEED: Final = 3
"""Of the rotation of the basis."""
N_EVALUATION, EVALUATION_SEED = 512, 2_000_003


def plan(seed: int | None = None) -> Planted:
    """The model as it is written."""
    return build_planted(SEED if seed is None else seed)


def rows(n: int, seed: int) -> PlantedRows:
    """`n` inputs with the answer and the labels of both concepts."""
    return draw_rows(n, seed)


def evaluate(name: str, module: Any) -> tuple[Score, ...]:
    """Accuracy on fresh rows."""
    fresh = rows(N_EVALUATION, EVALUATION_SEED).rows
    with torch.no_grad():
        logits = module(fresh.ids, attention_mask=torch.ones_like(fresh.ids), use_cache=False).logits
    return (score("mood", "fresh rows", int(fresh.hits(logits).sum()), N_EVALUATION, 1.0),)


def establish(name: str, module: Any) -> Truth:
    """Components, connections and directions, each measured by exact intervention, in the shipped rotation."""
    return replace(plan(), module=module).truth()


def make(
    name: str, folder: Path, *, seed: int | None = None, progress: Progress | None = None, device: str = "cpu"
) -> Card:
    """Write the weights, load them again, measure, write the card. `seed` is of the rotation; `device` does nothing."""
    del device
    planned = plan(seed)
    module: Any = save_hf(folder, planned.module, planned.tokenizer, torch.float32)
    save_file(dict(planned.directions), folder / "truth.safetensors", metadata={"format": "pt"})
    if progress:
        progress(1, 2, "written")
    truth = replace(planned, module=module).truth()
    card = finish(
        folder,
        name=name,
        summary="a used, two decodable but unread, and a dormant direction, planted in a model that judges a word",
        architecture=type(module).__name__,
        sizes=sizes(module),
        data="None: nothing was trained. A row has a pleasant or unpleasant word and a land or sea animal.",
        training="None: the weights were written, in a basis that is rotated at random but for its constant.",
        seed=SEED if seed is None else seed,
        recipe="planted",
        accuracy=evaluate(name, module),
        known=(
            "All of it, by construction. At the last position after layer 0, the mood of the word lies on `mood`, "
            "which the last MLP reads, and again on `shadow`, which nothing reads; the animal lies on `animal`, which "
            "nothing reads. `dormant` is 0 on every input and the last MLP reads it. Patching `illusion`, between "
            "`shadow` and `dormant`, flips the answer, though the model uses neither half on any input."
        ),
        limits=(
            "The directions are orthogonal and exact; in a trained model they would not be. Only rows of the generator "
            "are valid inputs. Unread directions move the answer a little, through the scale of the norms."
        ),
        licence="Apache-2.0",
        truth=truth,
    )
    if progress:
        progress(2, 2, "measured")
    return card


if __name__ == "__main__":
    main(NAMES, make)
