"""`handmade-*`: six programs as transformers whose weights were written, each with its mechanism by construction.

    cutaway zoo train handmade-induction --out DIR

What is shipped are the plain variants, three as Llama, three as GPT-2. All others (rotated basis, more decoys, a backup
head, a suppressor, soft attention, shared keys and values, norms after the sublayers) are built on demand by
`cutaway.zoo.handmade.build`. Cost: no training; the measurements take about 3 s of one CPU core a model.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from cutaway.zoo.card import Card, Score, Truth
from cutaway.zoo.handmade.build import SATURATED, Handmade, build
from cutaway.zoo.handmade.rows import Rows
from cutaway.zoo.train import Progress, finish, main, save_hf, score

ARCHITECTURE: Final = {
    "induction": "llama",
    "reverse": "llama",
    "lookup": "llama",
    "histogram": "gpt2",
    "majority": "gpt2",
    "sorted": "gpt2",
}
"""Program -> the architecture of the shipped model."""
NAMES: Final = tuple(f"handmade-{program}" for program in ARCHITECTURE)
CHANCE: Final = {
    "induction": 1 / 16,
    "reverse": 1 / 17,
    "lookup": 1 / 6,
    "histogram": 0.4,
    "majority": 0.5,
    "sorted": 0.5,
}
"""Behavior -> share that a guess gives."""
N_EVALUATION, EVALUATION_SEED = 512, 2_000_003

_SUMMARY: Final = {
    "induction": "continues repeated words, by one previous-token head and one induction head",
    "reverse": "repeats a list from its end, by a previous-token head, a marker of what comes after, and a mover",
    "lookup": "names the capital of a person's country, by a finding head and two tables, one a layer",
    "histogram": "counts the letter at hand, by one head that spreads over its occurrences and a row of thresholds",
    "majority": "names the more frequent of two symbols, by one averaging head and a sign",
    "sorted": "says whether a list never falls, by a previous-number head, a comparison and a head that finds a fall",
}


def plan(name: str) -> Handmade:
    """The model as it is written, before its weights are rounded."""
    program = name.removeprefix("handmade-")
    return build(program, architecture=ARCHITECTURE[program])


def rows(name: str, n: int, seed: int) -> Rows:
    """`n` valid inputs of a model, with their answers."""
    return plan(name).rows(n, seed)


def evaluate(name: str, module: Any) -> tuple[Score, ...]:
    """Accuracy at one answer of each of many fresh rows, so that the inputs are independent."""
    program = name.removeprefix("handmade-")
    fresh = rows(name, N_EVALUATION, EVALUATION_SEED)
    with torch.no_grad():
        logits = module(fresh.ids, attention_mask=torch.ones_like(fresh.ids), use_cache=False).logits
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    drawn = torch.rand(fresh.ids.shape, generator=generator).masked_fill(~fresh.answered, -1.0)
    row, at = torch.arange(len(drawn)), drawn.argmax(-1)
    right = int((logits[row, at].argmax(-1) == fresh.answers[row, at]).sum())
    return (score(program, "fresh rows, at one answer of each", right, N_EVALUATION, 1.0),)


def establish(name: str, module: Any) -> Truth:
    """Roles as they were written; effects of every component and every connection, by exact intervention."""
    return replace(plan(name), module=module).truth


def make(
    name: str, folder: Path, *, seed: int | None = None, progress: Progress | None = None, device: str = "cpu"
) -> Card:
    """Write the weights, load them again, measure, write the card. Nothing is random; `seed` and `device` change
    nothing."""
    del seed, device
    planned = plan(name)
    module: Any = save_hf(folder, planned.module, planned.tokenizer)
    if progress:
        progress(1, 2, "written")
    config, truth = module.config, establish(name, module)
    n_kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    card = finish(
        folder,
        name=name,
        summary=_SUMMARY[planned.program],
        architecture=type(module).__name__,
        sizes={
            "n_layers": config.num_hidden_layers,
            "n_heads": config.num_attention_heads,
            "n_kv_heads": n_kv_heads,
            "d_model": config.hidden_size,
            "d_head": getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
            "d_mlp": config.n_inner if config.model_type == "gpt2" else config.intermediate_size,
            "d_vocab": config.vocab_size,
            "n_parameters": sum(weight.numel() for weight in module.parameters()),
        },
        data="None: nothing was trained. Rows are drawn by the program's own generator.",
        training=(
            "None: the weights were written. Each coordinate of the residual stream has a meaning; heads prefer what "
            f"they look for by {SATURATED:g} nats; one coordinate holds a large constant, so that the norms are the "
            "identity up to a part in a thousand for each other coordinate that is set."
        ),
        seed=0,
        recipe="handmade",
        accuracy=evaluate(name, module),
        known=_known(truth),
        limits=(
            "A mechanism as clean as this is rare in trained models. Only rows of the generator are valid inputs. "
            "Decoys move the answer a little, through the scale of the norms: at most "
            f"{_most(truth):.1%} of the metric. Setting all of `embed` to zero at a port also takes the constant away."
        ),
        licence="Apache-2.0",
        truth=truth,
    )
    if progress:
        progress(2, 2, "measured")
    return card


def _known(truth: Truth) -> str:
    parts = ", ".join(f"{node.site} {node.role}" for node in truth.nodes if node.role != "decoy")
    return (
        f"All of it, by construction. Parts: {parts}. Decoys: {', '.join(truth.sites('decoy'))}. Every connection "
        "is in the truth, with its structure and what resampling and cutting it does."
    )


def _most(truth: Truth) -> float:
    return max(abs(effect.drop) for node in truth.nodes if node.role == "decoy" for effect in node.effects.values())


if __name__ == "__main__":
    main(NAMES, make)
