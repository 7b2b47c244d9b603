"""Rows: inputs of a written model with what it has to answer at which position."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PAD, BOS, EOS, UNK = range(4)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Rows:
    """Token rows of equal length, with the answers that the logits of a position must give."""

    ids: Int[Tensor, "batch pos"]
    """Tokens; each row starts with BOS and may end with padding."""
    answered: Bool[Tensor, "batch pos"]
    """Whether the logits at this position have a right answer."""
    answers: Int[Tensor, "batch pos"]
    """The right token; padding where there is none."""
    foils: Int[Tensor, "batch pos"]
    """A wrong token of the same kind; padding where there is none."""

    def margins(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " answer"]:
        """Logit of the right token minus the foil's, in nats, at every position with an answer."""
        right, wrong = (logits.gather(2, ids[..., None])[..., 0] for ids in (self.answers, self.foils))
        return (right - wrong)[self.answered]

    def hits(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Bool[Tensor, " answer"]:
        """Whether the right token is ranked first, at every position with an answer."""
        return (logits.argmax(-1) == self.answers)[self.answered]


@dataclass(frozen=True)
class Row:
    """One row before it is padded."""

    ids: list[int]
    answers: dict[int, tuple[int, int]]
    """Position -> (right token, foil)."""


def draw(n: int, seed: int, one: Callable[[random.Random], Row], length: int) -> Rows:
    """`n` rows from one generator, padded on the right to `length`."""
    chance = random.Random(seed)
    rows = [one(chance) for _ in range(n)]
    ids = torch.full((n, length), PAD)
    answered = torch.zeros(n, length, dtype=torch.bool)
    answers, foils = torch.full_like(ids, PAD), torch.full_like(ids, PAD)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        for position, (right, foil) in row.answers.items():
            answered[at, position], answers[at, position], foils[at, position] = True, right, foil
    return Rows(ids, answered, answers, foils)


def other(chance: random.Random, candidates: Sequence[int], right: int) -> int:
    """One of the candidates that is not the right one."""
    return chance.choice([each for each in candidates if each != right])
