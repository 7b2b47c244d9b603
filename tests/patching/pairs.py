"""Pairs of random tokens for tiny models without a tokenizer, and hand-written hooks on plain Hugging Face."""

import random
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.models import Model, Tokens, load
from cutaway.tasks import Batch, Pair, Task, vocabulary_digest
from tests.families import tiny

LOW = 10
"""First id in use: lower ones are special."""


@cache
def loaded(family: str, attention: str | None = None) -> Model:
    """The tiny model of a family, loaded once: no test may change it."""
    return load(tiny(family, **({} if attention is None else {"attn_implementation": attention})))


def token_task(
    model: Model,
    n: int = 6,
    *,
    lengths: tuple[int, ...] = (7,),
    metric: str = "logit_diff",
    d_answer: int = 1,
    clusters: int = 3,
    seed: int = 0,
) -> Task:
    """Pairs that differ in the token at `subject` and in one after it; pair i has length lengths[i % len(lengths)]."""
    chance = random.Random(seed)
    high = model.body.d_vocab or 0
    pairs = []
    for i in range(n):
        clean = [chance.randrange(LOW, high) for _ in range(lengths[i % len(lengths)])]
        where = 1 + i % 2
        corrupt = list(clean)
        for changed in (where, min(where + 2, len(clean) - 1)):
            corrupt[changed] = chance.randrange(LOW, high)
        words = chance.sample(range(LOW, high), 2 * d_answer)
        answer, foil = words[:d_answer], words[d_answer:]
        spans = {"subject": (where, where + 1)}
        pairs.append(
            Pair(tuple(clean), tuple(corrupt), tuple(answer), tuple(foil), spans, id=str(i), cluster=f"c{i % clusters}")
        )
    roles = ("subject", "end")
    return Task("random", "Random tokens.", tuple(pairs), metric, roles, seed, vocabulary_digest(model))


def token_batch(model: Model, n: int = 6, **options: Any) -> Batch:
    """The same, encoded."""
    return token_task(model, n, **options).encode(model)


def plain_scores(batch: Batch, logits: Tensor) -> Tensor:
    """logit_diff at the end of each row, written out by hand."""
    ends = batch.clean.roles["end"]
    rows = zip(ends, batch.answers, batch.foils, strict=True)
    return torch.stack(
        [logits[i, end, answer[0]] - logits[i, end, foil[0]] for i, (end, answer, foil) in enumerate(rows)]
    )


def hooked(
    module: nn.Module, tokens: Tokens, hooks: dict[nn.Module, Callable[..., Any]], *, before: bool = False
) -> Tensor:
    """Logits of a plain Hugging Face forward with hand-written hooks on modules."""
    with ExitStack() as stack, torch.no_grad():
        for target, hook in hooks.items():
            handle = target.register_forward_pre_hook(hook) if before else target.register_forward_hook(hook)
            stack.callback(handle.remove)
        return module(input_ids=tokens.ids, attention_mask=tokens.mask.long(), use_cache=False).logits
