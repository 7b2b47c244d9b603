"""Requests: what is to be computed, as frozen data. A list of runs is all that a plan needs to know."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Int
from torch import Tensor

from cutaway.models.edits import Edit
from cutaway.models.forward import LogitsAt
from cutaway.models.model import RunResult
from cutaway.models.sites import Site
from cutaway.models.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass, declared: inputs, edits, and what to return."""

    inputs: Tokens
    edits: tuple[Edit, ...] = ()
    reads: tuple[Site, ...] = ()
    """Whole sites to return, after the edits; selections are made on the result."""
    logits: LogitsAt = "none"
    """'all', 'none', a role such as 'end', or for each row a tuple of positions."""


Reduce: TypeAlias = Callable[[RunResult, Int[Tensor, " rows"]], Tensor]
"""Turns the result of some rows of a run into something with those rows on its first axis; the rows' indices are
given."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total) in tokens x layers."""
