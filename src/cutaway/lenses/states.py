"""Residual states as the lenses see them: which there are, how they are read by the model's own head, and the rows
they come from.

A state is read by running the model with the output of its last block set to the state: its final norm, unembedding,
scales and soft-caps are then its own, whatever they are, and differentiable.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance
from cutaway.engine import Reduce, Run
from cutaway.errors import OutOfRange, SiteUnavailable, UsageError
from cutaway.models import Activations, Model, Site, SiteSet, Tokens
from cutaway.models.forward import LogitsAt
from cutaway.models.model import Prompts
from cutaway.tasks import Batch, Task

Wanted: TypeAlias = Site | SiteSet | str | Iterable[Site | SiteSet | str]
Inputs: TypeAlias = Prompts | Task | Batch
Progress: TypeAlias = Callable[[int, int], None]
STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Kinds that are states of the residual stream."""
MAX_TOKENS = 1024
"""Tokens whose logits over the whole vocabulary are held at a time."""


@runtime_checkable
class Lens(Protocol):
    """A map from the state of a layer to one that the model's head can read."""

    @property
    def name(self) -> str:
        """What kind of lens it is."""
        ...

    def require(self, model: Model) -> None:
        """Refuse another model (WrongModel)."""
        ...

    def translate(self, site: Site, state: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The state of this site as the last block might have put it out."""
        ...


def last_state(model: Model) -> Site:
    """The output of the last block. Raises SiteUnavailable for a model without an unembedding or without layers."""
    if model.body.d_vocab is None:
        raise SiteUnavailable(
            f"{model.name} has no unembedding: there is no vocabulary to read a state in", reason="no unembedding"
        )
    return model.body.expand([Site("resid_post", model.body.n_layers - 1)])[0]


def states(model: Model, wanted: Wanted | None) -> list[Site]:
    """The residual states of a request; None: what enters the first block, and what leaves each."""
    last_state(model)
    every = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(model.body.n_layers))]
    found = model.body.expand(every if wanted is None else wanted)
    for site in found:
        if site.kind not in STREAM or site.pos is not None or site.batch_rows is not None:
            rule = f"the lens reads whole residual states ({', '.join(STREAM)}), and takes the position as position="
            raise UsageError(f"site {str(site)!r}: {rule}", site=str(site))
    return found


def level(model_layers: int, site: Site) -> int:
    """How many blocks a state has passed: `resid_pre.L` and `resid_post.(L - 1)` are one state.

    Raises UsageError for a state inside a block, OutOfRange for a layer that the lens does not have.
    """
    if site.kind not in ("resid_pre", "resid_post") or site.layer is None:
        raise UsageError(
            f"site {str(site)!r}: this lens was fitted to states between blocks; read resid_pre or resid_post",
            site=str(site),
        )
    found = site.layer + (site.kind == "resid_post")
    if not 0 <= found <= model_layers:
        raise OutOfRange(f"site {str(site)!r}: this lens has layers 0-{model_layers - 1}", site=str(site))
    return found


def rows_of(model: Model, inputs: Inputs, on: str = "clean") -> Tokens:
    """Rows of prompts, or of one side of a task (one a pair)."""
    if isinstance(inputs, Task | Batch):
        batch = inputs.encode(model) if isinstance(inputs, Task) else inputs
        return (batch.clean if on == "clean" else batch.corrupt).take(range(batch.n))
    return model.encode(inputs)


def chunks(rows: Tokens, max_tokens: int) -> list[list[int]]:
    """Indices of the rows, in pieces of at most `max_tokens` tokens (at least one row)."""
    if max_tokens < 1:
        raise UsageError(f"max_tokens={max_tokens}: at least 1")
    step = max(1, max_tokens // rows.width)
    return [list(range(first, min(first + step, len(rows)))) for first in range(0, len(rows), step)]


def read_states(
    model: Model,
    rows: Tokens,
    values: Sequence[Float[Tensor, "batch pos d_model"]],
    logits: LogitsAt,
    reduce: Reduce,
    *,
    at: Any = None,
    max_tokens: int,
    progress: Progress | None = None,
) -> list[Tensor]:
    """For each tensor of states what `reduce` makes of the model's logits if its last block had put them out.

    Args:
        at: positions that are set; None: all.
    """
    last = last_state(model)
    edits = [last.at(at).patch(Activations({last: value.to(model.dtype)}, rows, model.digest)) for value in values]
    runs = [Run(rows, edits=(edit,), logits=logits) for edit in edits]
    return engine.plan(model, runs, max_tokens=max_tokens).execute(progress=progress, reduce=reduce)


def unpadded(rows: Tokens, values: Tensor, fill: float | int) -> Tensor:
    """Values [place batch pos ...] with each row's first real token in column 0, and `fill` after its last."""
    width = max(rows.lengths)
    found = torch.full((values.shape[0], len(rows), width, *values.shape[3:]), fill, dtype=values.dtype)
    for row, (start, n) in enumerate(zip(rows.offsets, rows.lengths)):
        found[:, row, :n] = values[:, row, start : start + n].cpu()
    return found


def texts_of(model: Model, rows: Tokens) -> tuple[tuple[str, ...], ...]:
    """Display strings of each row's tokens; ids as text without a tokenizer."""
    return tuple(tuple(model.strings(rows.row(i))) for i in range(len(rows)))


def words_of(model: Model, ids: Int[Tensor, "..."]) -> dict[int, str]:
    """Text of every id that occurs; empty without a tokenizer."""
    seen = sorted({int(i) for i in ids.unique().tolist() if i >= 0})
    return dict(zip(seen, model.strings(seen))) if model.tokenizer is not None else {}


def provenance(model: Model, data: str, seed: int | None = None) -> Provenance:
    """Where a result comes from."""
    return Provenance(model.digest, data, importlib.import_module("cutaway").__version__, seed)


class Steps:
    """One progress over several plans of about equal length."""

    def __init__(self, progress: Progress | None, n: int) -> None:
        self._progress, self._n, self._done = progress, n, 0

    def next(self) -> Progress | None:
        """The callback of the next plan."""
        step, self._done, tell = self._done, self._done + 1, self._progress
        if tell is None:
            return None
        return lambda done, of: tell(step * 1000 + 1000 * done // max(1, of), self._n * 1000)

    def finish(self) -> None:
        """Say that one more step is done, where it has no plan of its own."""
        tell = self.next()
        if tell is not None:
            tell(1, 1)
