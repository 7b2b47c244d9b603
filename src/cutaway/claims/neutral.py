"""Neutral prompts: inputs that a task is not about, as a task of their own with the metric `kl`.

Each prompt is its own cluster. Its pair is another neutral prompt of the same length, which serves the positive
control: exchanging the whole input must change what the model says.
"""

from collections.abc import Sequence

import numpy as np

from cutaway.errors import UsageError
from cutaway.models import Model
from cutaway.tasks import Batch, Pair, Task, vocabulary_digest

SHORTEST = 4
"""Tokens that a neutral prompt needs at least."""


def neutral_task(model: Model, texts: Sequence[str], *, n: int, like: Batch, seed: int) -> Task:
    """Neutral prompts for a model: texts cut to one length in tokens, or, without texts, `n` rows of random tokens.

    Random rows repeat no token, and take their length and first token from the rows `like`.
    """
    rows = _texts(model, texts) if texts else _random(model, like, n, seed)
    return Task(
        "neutral",
        "Prompts that the task is not about.",
        tuple(_pair(i, rows) for i in range(len(rows))),
        metric="kl",
        tokenizer=vocabulary_digest(model),
    )


def _pair(i: int, rows: Sequence[tuple[int, ...]]) -> Pair:
    answer = rows[i][-1]  # a pair needs an answer and a foil; kl reads neither
    return Pair(
        rows[i],
        rows[(i + 1) % len(rows)],
        answer,
        answer - 1 if answer else 1,
        id=f"neutral {i}",
        cluster=f"neutral {i}",
        split="confirm",
    )


def _random(model: Model, like: Batch, n: int, seed: int) -> list[tuple[int, ...]]:
    """Rows of different tokens, uniform over the vocabulary without its special tokens."""
    special = set(getattr(model.tokenizer, "all_special_ids", None) or ())
    size = min(model.body.d_vocab or 0, len(model.tokenizer) if model.tokenizer is not None else 1 << 62)
    usual = [i for i in range(size) if i not in special]
    starts = {like.clean.row(i)[0] for i in range(len(like.clean))}
    start = tuple(starts) if len(starts) == 1 and starts <= special else ()
    length = min(int(np.median(like.clean.lengths)) - len(start), len(usual))
    length = max(length, min(SHORTEST, len(usual)))
    rng = np.random.default_rng([seed, 2])
    return [start + tuple(int(i) for i in rng.choice(usual, size=length, replace=False)) for _ in range(n)]


def _texts(model: Model, texts: Sequence[str]) -> list[tuple[int, ...]]:
    tokens = model.encode(list(texts))
    shortest = min(tokens.lengths)
    if shortest < SHORTEST:
        short = texts[tokens.lengths.index(shortest)]
        raise UsageError(
            f"neutral prompt {short!r} has {shortest} tokens: all are cut to the shortest, which needs {SHORTEST}; "
            "write longer ones"
        )
    rows = [tuple(tokens.row(i)[:shortest]) for i in range(len(tokens))]
    if len(set(rows)) < len(rows):
        raise UsageError(
            f"neutral prompts: cut to the shortest ({shortest} tokens), two of them are the same; write longer ones"
        )
    return rows
