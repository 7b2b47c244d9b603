"""Induction: random tokens that repeat.

A row is [BOS] filler A a_1 ... a_k a_1 ... a_j: a segment of k different random tokens and its beginning once more.
What followed a_j the first time is the answer. In the corrupt row that one token, the successor, is another one (the
foil), and nothing else differs: the row now asks for the foil, and the two runs agree on all that comes before.

    clean     ... X Y ... X   ->  Y
    corrupt   ... X Z ... X   ->  Z

Positions: `previous` (the first X), `successor` (the token after it), `end` (the second X). A head that writes "the
token before me was X" acts at `successor`; a head that finds this and copies acts at `end` (Olsson et al. 2022,
In-context Learning and Induction Heads). The distance k, j and with them the filler vary, so that no fixed position or
distance gives the answer. All rows are equally long: each can take the other's values.
"""

import random
import re
from collections.abc import Iterator
from typing import Any

from cutaway.errors import TokenizerUnfit
from cutaway.models.model import Model
from cutaway.tasks.align import vocabulary_digest
from cutaway.tasks.builtin.collect import collect
from cutaway.tasks.pair import Pair
from cutaway.tasks.task import Task

N_CLUSTERS = 24
LAGS = (5, 6, 7, 8, 9, 10, 11, 12)
"""Lengths of the repeated segment: the distance from a token to its repetition."""
LENGTH = 20
"""Tokens of a row after BOS."""
N_WORDS = LENGTH
"""Different tokens that a row may need, the foil included."""
TRIES = 200


CARD = (
    "A segment of random tokens repeats: does the model go on as it went on the first time? In the corrupt row the "
    "token that followed is another one, which is the foil; nothing else differs. Positions: previous (the first "
    "occurrence of the last token), successor (the token after it), end. Distances vary; clusters draw from different "
    "tokens."
)


def induction(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """Random tokens that repeat: does the model continue as it went on the first time?

    Works for any model with enough ordinary tokens; a task of ids, bound to the model's vocabulary. Clusters draw from
    different parts of the vocabulary (disjoint parts where it is large enough) and have one repeat distance each; draws
    are independent. Raises TokenizerUnfit when the vocabulary is too small.
    """
    tokens = ordinary_tokens(model)
    if len(tokens) < N_WORDS:
        raise TokenizerUnfit(
            f"task 'induction': {model.name} has {len(tokens)} ordinary tokens, and a row needs {N_WORDS} different "
            "ones; use a model with a larger vocabulary",
            found=len(tokens),
            needed=N_WORDS,
        )
    bos = getattr(model.tokenizer, "bos_token_id", None)
    start = () if bos is None else (int(bos),)
    chance = random.Random(f"induction {seed}")
    chance.shuffle(tokens)
    parts = [_part(tokens, index, chance) for index in range(N_CLUSTERS)]
    candidates = {
        f"part {index:02d}, distance {LAGS[index % len(LAGS)]}": _draws(
            part, LAGS[index % len(LAGS)], start, random.Random(f"induction {seed} {index}")
        )
        for index, part in enumerate(parts)
    }
    return Task(
        "induction",
        CARD,
        collect("induction", candidates, model, n=n, seed=seed, metric_name="logit_diff"),
        metric="logit_diff",
        roles=("previous", "successor", "end"),
        seed=seed,
        tokenizer=vocabulary_digest(model),
    )


def ordinary_tokens(model: Model) -> list[int]:
    """Ids that stand for visible text: in the embedding, not special, not added, not a lone byte. In order.

    Without a tokenizer, all ids.
    """
    d_vocab = model.body.d_vocab or 0
    if model.tokenizer is None:
        return list(range(d_vocab))
    tokenizer: Any = model.tokenizer
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    vocabulary = sorted((int(index), token) for token, index in tokenizer.get_vocab().items())
    kept = [
        index
        for index, token in vocabulary
        if index < d_vocab and index not in special and not re.fullmatch(r"<0x[0-9A-F]{2}>", token)
    ]
    texts = tokenizer.batch_decode([[index] for index in kept])
    return [
        index
        for index, text in zip(kept, texts)
        if text.strip() and text.strip().isprintable() and "\ufffd" not in text
    ]


def _part(tokens: list[int], index: int, chance: random.Random) -> list[int]:
    """The tokens of one cluster: a slice of the shuffled vocabulary, or a random subset where slices are too small."""
    size = len(tokens) // N_CLUSTERS
    if size >= N_WORDS:
        return tokens[index * size : (index + 1) * size]
    return chance.sample(tokens, N_WORDS)


def _draws(part: list[int], lag: int, start: tuple[int, ...], chance: random.Random) -> Iterator[Pair]:
    for _ in range(TRIES):
        first = chance.randint(1, min(lag - 2, LENGTH - lag - 1))
        n_filler = LENGTH - lag - first - 1
        *words, foil = chance.sample(part, n_filler + lag + 1)
        previous = len(start) + n_filler + first
        segment = words[n_filler:]
        clean = (*start, *words, *segment[: first + 1])
        successor = previous + 1
        yield Pair(
            clean=clean,
            corrupt=(*clean[:successor], foil, *clean[successor + 1 :]),
            answer=clean[successor],
            foil=foil,
            positions={"previous": (previous, previous + 1), "successor": (successor, successor + 1)},
        )
