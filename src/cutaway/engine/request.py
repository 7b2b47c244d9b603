"""Requests: what is to be computed, as frozen data. A list of runs is all that a plan needs to know."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.errors import OutOfRange, UsageError
from cutaway.models.edits import Edit
from cutaway.models.forward import LogitsAt
from cutaway.models.model import Model, RunResult
from cutaway.models.sites import Site
from cutaway.models.tokens import Tokens

Vocab: TypeAlias = tuple[tuple[int, ...], ...]
"""For each row token ids, equally many."""


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass, declared: inputs, edits, and what to return."""

    inputs: Tokens
    edits: tuple[Edit, ...] = ()
    reads: tuple[Site, ...] = ()
    """Whole sites to return, after the edits; selections are made on the result."""
    logits: LogitsAt = "none"
    """'all', 'none', a role such as 'end', or for each row a tuple of positions."""
    vocab: Vocab | None = None
    """For each row the token ids whose logits are returned, [batch pos id] in this order; None: the whole vocabulary.
    A metric that reads two of fifty thousand should say so: the rest is then not computed."""

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, Tokens):
            raise UsageError(
                f"inputs of a Run are encoded rows, not {type(self.inputs).__name__}; write Run(model.encode(prompts))"
            )

    def ids(self) -> Int[Tensor, "batch id"] | None:
        """`vocab` as a tensor."""
        return None if self.vocab is None else torch.tensor(self.vocab)


Reduce: TypeAlias = Callable[[RunResult, Int[Tensor, " rows"]], Tensor]
"""Turns the result of some rows of a run into something with those rows on its first axis; the rows' indices are
given."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total) in tokens x layers."""


def check_vocab(model: Model, index: int, run: Run) -> None:
    """Refuse ids for another number of rows, of unequal number, or outside the vocabulary."""
    if run.vocab is None:
        return
    counts = {len(row) for row in run.vocab}
    if len(run.vocab) != len(run.inputs) or len(counts) != 1 or 0 in counts:
        raise UsageError(
            f"run {index}: vocab holds {len(run.vocab)} rows of {sorted(counts)} ids for {len(run.inputs)} rows of "
            "tokens; give each row equally many ids, and at least one",
            run=index,
        )
    n = model.body.d_vocab
    bad = next((i for row in run.vocab for i in row if i < 0 or (n is not None and i >= n)), None)
    if bad is not None:
        raise OutOfRange(f"run {index}: vocab names token {bad}, and this model has {n} (0-{(n or 0) - 1})", run=index)
