"""One forward pass of a model, with reads and edits: the primitive that every run, plan, gradient and generation is
made of."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor, nn

from cutaway.artifacts import require_same_model
from cutaway.errors import EngineError, ModelInTraining, OutOfMemory, SiteUnavailable, UsageError
from cutaway.models import attention
from cutaway.models.anatomy import Anatomy
from cutaway.models.edits import Edit, Placed
from cutaway.models.known import Known
from cutaway.models.sites import Site
from cutaway.models.taps import Resume, Session, every, forward_replaced
from cutaway.models.tokens import Tokens

if TYPE_CHECKING:
    import cutaway.models.model

LogitsAt: TypeAlias = str | tuple[tuple[int, ...], ...]
"""Where logits are wanted: 'all', 'none', a role such as 'end', or for each row a tuple of positions (equally many)."""


@dataclass(frozen=True)
class Raw:
    """Inputs of a wrapped module, passed on as they are. Axis 0 of every tensor counts rows."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def logit_columns(tokens: Tokens, logits: LogitsAt) -> list[list[int]] | None:
    """For each row the columns whose logits are wanted; None for all. [] in every row for 'none'."""
    if logits == "all":
        return None
    if logits == "none":
        return [[]] * len(tokens)
    if isinstance(logits, str):
        return tokens.columns(logits)
    if len(logits) != len(tokens) or len({len(row) for row in logits}) != 1:
        raise UsageError(
            f"logits: {len(logits)} rows of positions for {len(tokens)} rows of tokens; give each row equally "
            "many positions"
        )
    columns = [[p + (n if p < 0 else 0) for p in row] for row, n in zip(logits, tokens.lengths)]
    if any(not 0 <= p < n for row, n in zip(columns, tokens.lengths) for p in row):
        raise UsageError(
            "logits: a position lies outside its row; positions count the row's own tokens from 0, or from -1 backwards"
        )
    return [[p + offset for p in row] for row, offset in zip(columns, tokens.offsets)]


def check(model: "cutaway.models.model.Model", edits: Sequence[Placed], reads: Sequence[Site]) -> None:
    """All that can be known before the forward: sites exist, are editable, values fit, sources are of this model."""
    check_mode(model)
    check_run(model, edits, reads)


def check_mode(model: "cutaway.models.model.Model") -> None:
    """Refuse a model in training mode (ModelInTraining)."""
    if any(part.training for part in every(model.module)):
        raise ModelInTraining(
            "the model is in training mode, so dropout would make runs random; call model.module.eval() first"
        )


def check_run(
    model: "cutaway.models.model.Model", edits: Sequence[Placed], reads: Sequence[Site], digest: str | None = None
) -> None:
    """What `check` checks of one run; `digest` is the model's, where a caller with many runs has it at hand."""
    for site in [*reads, *(placed.site for placed in edits)]:
        if site.kind == "module":
            model.submodule(site.path or "")
    sources = [placed.edit.source for placed in edits if placed.edit.source is not None]
    own = digest or model.digest if sources else ""
    for source in sources:
        if source.model != own:
            require_same_model(source.model, own, "the source of a patch")
    for placed in edits:
        placed.edit.check_model(model)
    if model.anatomy is None:
        return
    for site in reads:
        model.anatomy.tap(site)
    for placed in edits:
        model.anatomy.tap(placed.site)
        status = model.anatomy.status(placed.site)
        if not status.editable:
            raise SiteUnavailable(
                f"site '{placed.site}': it can be read, not edited: {status.reason}",
                site=str(placed.site),
                reason=status.reason,
            )
        if placed.site.kind != "module":
            placed.check(model.anatomy.slot(placed.site))


def forward(
    model: "cutaway.models.model.Model",
    tokens: Tokens,
    *,
    edits: Sequence[Placed] = (),
    reads: Sequence[Site] = (),
    logits: list[list[int]] | None = None,
    start: int = 0,
    resume: Resume | None = None,
    cache: Any = None,
    keep_graph: bool = False,
    vocab: Int[Tensor, "batch id"] | None = None,
    narrow: bool = False,
    known: Known | None = None,
    once: bool = False,
) -> tuple[Tensor | None, dict[Site, Tensor]]:
    """Logits at the wanted columns [batch columns d_vocab] (None when none are wanted) and the values of the sites
    read.

    With `start`, only the columns from there on are computed and `cache` holds keys and values of the earlier ones;
    values of sites then cover the computed columns (keys and values: all). Edits must all fire exactly once. With
    `vocab`, logits are those of each row's token ids alone, [batch columns id]; with `narrow` the unembedding computes
    no others. `known` is what the first computed block takes from another pass; `once`: the modules
    that are read are known to run once, so that the pass may stop after them.
    """
    whole = any(site.kind == "logits" for site in [*reads, *(p.site for p in edits)])
    wanted = logits if logits is None or any(logits) else []
    if wanted != [] and model.anatomy is not None:
        _require_logits(model.anatomy)
    kwargs = model.inputs(tokens, start, cache)
    keep = None
    if wanted and not whole and "logits_to_keep" in model.accepts:
        keep = sorted({column for row in wanted for column in row})
        kwargs["logits_to_keep"] = torch.tensor([column - start for column in keep], device=model.device)
    narrow = narrow and vocab is not None and bool(wanted) and not whole
    # a module that runs more often than once is noticed at the end of the pass
    stop_early = wanted == [] and not model.dispatched and (once or all(site.kind != "module" for site in reads))
    session = Session(
        model.module,
        model.anatomy,
        edits,
        reads,
        shape=(len(tokens), tokens.width - start),
        start=start,
        resume=resume,
        stop_early=stop_early,
        keep_graph=keep_graph,
    )
    out = None
    with memory_named(len(tokens)), torch.set_grad_enabled(keep_graph), ExitStack() as stack:
        if known is not None:
            stack.enter_context(known.installed(model, session))
        if narrow:
            assert vocab is not None
            stack.enter_context(_narrowed(model, vocab, wanted or [], keep, start, session))
        with session:
            out = model.module(**kwargs)
    session.check_fired()
    if wanted == []:
        return None, session.values
    found = getattr(out, "logits", None)
    if found is None:
        raise SiteUnavailable(
            f"{type(model.module).__name__} returns no logits; ask for logits='none' and read sites", reason="no logits"
        )
    selected = found if narrow else select_logits(found, wanted, keep, start)
    if vocab is not None and not narrow:
        selected = selected.gather(2, vocab.to(selected.device)[:, None].expand(-1, selected.shape[1], -1))
    if edits:
        real = select_logits(tokens.mask[:, start:, None], wanted, None, start)[..., 0].to(selected.device)
        refuse_overflow(
            edits,
            selected[real],
            real.nonzero()[:, 0],
            lambda: _again(model, tokens, logits, start, resume, cache, vocab)[real],
        )
    return selected, session.values


def _again(model: Any, tokens: Tokens, logits: Any, start: int, resume: Any, cache: Any, vocab: Any) -> Tensor:
    """The logits of the same pass without edits."""
    found, _ = forward(model, tokens, logits=logits, start=start, resume=resume, cache=cache, vocab=vocab)
    assert found is not None
    return found


def narrows(model: "cutaway.models.model.Model") -> bool:
    """The unembedding is a plain linear map, so that single columns of it can be computed."""
    path = model.anatomy.unembed if model.anatomy is not None else None
    return path is not None and not model.dispatched and type(model.module.get_submodule(path)) is nn.Linear


def _narrowed(
    model: "cutaway.models.model.Model",
    vocab: Int[Tensor, "batch id"],
    wanted: list[list[int]],
    keep: list[int] | None,
    start: int,
    session: Session,
) -> Any:
    """While open, the unembedding gives of each row only the wanted columns and ids."""
    unembed: Any = model.module.get_submodule(model.body.unembed or "")
    whole, ids = unembed.forward, vocab.to(unembed.weight.device)

    def forward(hidden: Tensor) -> Tensor:
        if attention.active.get() is not session:
            return whole(hidden)
        entries = select_logits(hidden, wanted, keep, start)
        found = torch.einsum("rcd,rvd->rcv", entries, unembed.weight[ids])
        return found if unembed.bias is None else found + unembed.bias[ids][:, None]

    return forward_replaced(unembed, forward)


def refuse_overflow(edits: Sequence[Placed], found: Tensor, rows: Tensor, plain: Callable[[], Tensor]) -> None:
    """EngineError when logits [token d_vocab] are not finite, and are in the plain run; `rows` says whose they are.

    Costs one pass over the logits; only where something is not finite a plain run.
    """
    found = found.detach()
    if bool(found.sum(dtype=torch.float32).isfinite()) or bool(found.isfinite().all()):
        return
    broken = rows[(~found.isfinite() & plain().isfinite()).any(1)].tolist()
    if not broken:
        return
    names = list(dict.fromkeys(str(placed.edit) for placed in edits if any(map(placed.covers, broken))))
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    raise EngineError(
        f"with the edits {shown} the logits are NaN or infinite, and without them they are not: the values are too "
        f"large for {found.dtype}; use smaller ones",
        edits=names,
    )


def _require_logits(anatomy: Anatomy) -> None:
    """Or SiteUnavailable, before anything runs."""
    if "logits" not in anatomy.taps:
        reason = anatomy.refused.get("logits", "none were found")
        raise SiteUnavailable(
            f"site 'logits': this model does not have it: {reason}; or ask for logits='none' and read sites",
            site="logits",
            reason=reason,
        )


def select_logits(found: Tensor, wanted: list[list[int]] | None, keep: list[int] | None, start: int) -> Tensor:
    """The wanted columns of each row, from logits of all columns from `start` on or of the columns in `keep`."""
    if wanted is None:
        return found
    place = {column: i for i, column in enumerate(keep)} if keep is not None else None
    index = [[place[c] if place else c - start for c in row] for row in wanted]
    if all(row == list(range(found.shape[1])) for row in index):
        return found
    at = torch.tensor(index, device=found.device)
    return found[torch.arange(len(index), device=found.device)[:, None], at]


def run_raw(
    model: "cutaway.models.model.Model", inputs: Raw, edits: Sequence[Edit], reads: Sequence[Site]
) -> tuple[Any, dict[Site, Tensor]]:
    """One pass of a wrapped module: its own output, and the sites read."""
    refuse_passed(inputs, edits)
    placed = [Placed(edit, None) for edit in edits]
    check(model, placed, reads)
    session, out = Session(model.module, model.anatomy, placed, reads), None
    rows = next((len(t) for t in [*inputs.args, *inputs.kwargs.values()] if isinstance(t, Tensor) and t.ndim), 1)
    with memory_named(rows), torch.no_grad(), session:
        out = model.module(*inputs.args, **inputs.kwargs)
    session.check_fired()
    return out, session.values


def refuse_passed(inputs: Raw, edits: Sequence[Edit]) -> None:
    """A position in a pass that goes on from a filled cache would be counted from the first new token."""
    lengths = [getattr(item, "get_seq_length", int)() for item in [*inputs.args, *inputs.kwargs.values()]]
    n = max((int(length) for length in lengths), default=0)
    for edit in edits:
        if n and edit.site.pos is not None:
            raise UsageError(
                f"edit {edit}: this pass goes on from a cache of {n} tokens and computes the new ones alone, so "
                "earlier positions have passed; edit them in the run that fills the cache, or use model.generate, that "
                "counts positions",
                site=str(edit.site),
            )


class memory_named:
    """Turns the allocator's error into OutOfMemory, with the number of rows that was tried."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and ("allocate memory" in text or "not enough memory" in text)
        ):
            fit = max(1, self.rows // 2)
            raise OutOfMemory(
                f"out of memory in a pass of {self.rows} rows; try max_tokens (or a batch) for {fit} rows"
                if self.rows > 1
                else "out of memory with one row; use shorter prompts, a smaller dtype or another device",
                rows=self.rows,
                fit=fit,
            ) from error


def accepted(forward_function: Any) -> frozenset[str]:
    """Names of the arguments that a forward takes."""
    return frozenset(inspect.signature(forward_function).parameters)
