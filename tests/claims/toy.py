"""A model and a task for the claims' own tests: a random transformer, and the behavior that it happens to have.

The answer of a pair is what the model says after the clean row, the foil what it says after the corrupt one. So the
behavior shows by construction, and every component takes some part in it. One head is made loud and one is made mute.
"""

from functools import cache

import torch

from cutaway import load
from cutaway.models import Model
from cutaway.tasks import Pair, Task, assign_splits, vocabulary_digest
from tests.families import tiny

LENGTH = 7
LOUD, MUTE = "z.2.h1", "z.2.h3"


@cache
def toy_model(seed: int = 0) -> Model:
    """A random Llama of three layers and four heads."""
    module = tiny("llama", seed)
    head = module.config.head_dim
    with torch.no_grad():
        out = module.model.layers[2].self_attn.o_proj.weight
        out[:, head : 2 * head] *= 6
        out[:, 3 * head : 4 * head] = 0
    return load(module)


@cache
def toy_task(n_clusters: int = 24, size: int = 4, seed: int = 0) -> Task:
    """Random rows; pairs of a cluster share their first three tokens."""
    model, chance = toy_model(), torch.Generator().manual_seed(seed)
    pairs: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for cluster in range(n_clusters):
        start = torch.randint(3, 99, (3,), generator=chance).tolist()
        for _ in range(size):
            tails = torch.randint(3, 99, (2, LENGTH - 3), generator=chance).tolist()
            pairs.append((f"c{cluster}", (*start, *tails[0]), (*start, *tails[1])))
    said = [
        model.run([row[side] for row in pairs], logits="end").logits.argmax(-1).flatten().tolist()  # type: ignore[union-attr]
        for side in (1, 2)
    ]
    splits = assign_splits([name for name, _, _ in pairs], seed=seed)
    made = [
        Pair(clean, corrupt, answer, foil, {"third": (2, 3)}, id=f"p{i}", cluster=name, split=splits[name])
        for i, ((name, clean, corrupt), answer, foil) in enumerate(zip(pairs, *said))
        if answer != foil
    ]
    return Task("toy", "What the model says.", tuple(made), roles=("third",), tokenizer=vocabulary_digest(model))
