"""Generation with edits in force: positions are absolute, and the key/value cache changes the cost, never the tokens.

1. The edits are checked: they fit, and every position that they name will be reached.
2. Taps are placed once. Each step is a pass in which they act; between the steps the model is the plain one to all.
3. A pass computes the new column and keeps keys and values (or everything again, where they cannot be kept), the next
   token is chosen of its last logits, and a row that came to its end is padded from there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cutaway.errors import EditNeverApplied, UsageError
from cutaway.models.cache import growing
from cutaway.models.edits import Edit, Placed, edits_of
from cutaway.models.forward import check, forward, memory_named, refuse_overflow
from cutaway.models.sampling import Sampling
from cutaway.models.sites import Where
from cutaway.models.spans import Span
from cutaway.models.streams import Piece, Reader, Stop, stop_of
from cutaway.models.taps import Session
from cutaway.models.tokens import Tokens, from_rows

if TYPE_CHECKING:
    import cutaway.models.model


def generate(
    model: "cutaway.models.model.Model",
    prompt: Tokens,
    edits: Sequence[Edit] = (),
    *,
    max_new_tokens: int = 20,
    cache: bool = True,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    n_samples: int = 1,
    stop: int | str | Sequence[int | str] | None = None,
    on_token: Callable[[Tensor], None] | None = None,
    on_text: Callable[[Piece], None] | None = None,
) -> Tokens:
    """Prompts and their continuations, padded on the left; roles keep naming prompt positions ('end': the last
    prompt token).

    An edit without a position acts on every token, prompt and new. `at(prompt)` and `at(new)` are the tokens up to and
    after the role 'end', and slices of them; a number is an absolute position (a new token has one too), negative ones
    and 'end' count from the end of the prompt; a predicate acts on every token that satisfies it; a patch, or a value
    with one entry a prompt position, acts on the prompt. The last new token does not go through the model. All of this
    means the same in a run over the finished rows.
    Law: cache on = cache off, token for token; a batch = its rows one by one, sampled ones too.
    Cost with cache: one forward of the prompt and one of each new token. A model of which the audit could not show that
    its cache gives what full passes give (`model.anatomy.cached` says why) runs full passes, whatever `cache` says.
    Raises EditNeverApplied for a position that is not reached, OutOfRange where prompt and new tokens pass the model's
    context, EngineError where edits overflow.

    Args:
        cache: False computes everything again at each step: the slow oracle.
        temperature: 0 is greedy; above it, tokens are drawn from softmax(logits / temperature).
        top_k: draw among the k likeliest tokens only.
        top_p: draw among the fewest tokens that have this probability together.
        seed: of the draws; each row draws on its own, so that its tokens do not depend on the batch.
        n_samples: continuations of each prompt, one after another in the result.
        stop: token ids after which, and texts before which, a row ends, and is padded from there; the tokens of the
            text stay in the row. None: the end-of-sequence tokens of the tokenizer and of the model's settings.
        on_token: called with the new token of every row after each step, padding included.
        on_text: called with each piece of text once it is final; the stop text is not among them.
    """
    sampling = Sampling(temperature, top_k, top_p, seed, n_samples)
    job = _job(model, prompt, edits, max_new_tokens, cache, sampling, stop, with_text=on_text is not None)
    tokens = job.tokens
    for step in _steps(model, job):
        tokens = step.tokens
        if on_token is not None and step.new is not None:
            on_token(step.new)
        if on_text is not None:
            for piece in step.pieces:
                on_text(piece)
    return tokens


def stream(
    model: "cutaway.models.model.Model",
    prompt: Any,
    edits: Sequence[Edit] = (),
    *,
    max_new_tokens: int = 20,
    cache: bool = True,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    n_samples: int = 1,
    stop: int | str | Sequence[int | str] | None = None,
) -> Iterator[Piece]:
    """The continuations of prompts as text, piece by piece, each once it is final; options are those of `generate`.

    Between two pieces the model is the plain one; what is asked of it there is not steered. Everything that can be
    wrong with the call is said when it is made, before the first piece is asked for.

        for piece in stream(model, "The capital of", edits):
            print(piece.text, end="", flush=True)
    """
    sampling = Sampling(temperature, top_k, top_p, seed, n_samples)
    rows = model.encode(prompt, pad="left")
    job = _job(model, rows, edits, max_new_tokens, cache, sampling, stop, with_text=True)
    return (piece for step in _steps(model, job) for piece in step.pieces)


@dataclass(frozen=True)
class _Job:
    """A checked request."""

    tokens: Tokens
    edits: tuple[Edit, ...]
    n_steps: int
    cache: bool
    sampling: Sampling
    stop: Stop
    reader: Reader | None
    """Turns tokens to text, where text is asked for or ends a row."""
    words: bool
    """Texts of new tokens are needed at once, for predicates."""


@dataclass(frozen=True)
class _Step:
    """What one step gave."""

    tokens: Tokens
    new: Tensor | None
    """None after the last step, when only text was left."""
    pieces: tuple[Piece, ...] = ()


def _job(
    model: "cutaway.models.model.Model",
    prompt: Tokens,
    edits: Sequence[Edit],
    n_steps: int,
    cache: bool,
    sampling: Sampling,
    stop: Any,
    *,
    with_text: bool,
) -> _Job:
    edits = edits_of(edits)
    if n_steps < 1:
        raise UsageError(f"max_new_tokens={n_steps}: at least 1")
    if not getattr(model.module, "can_generate", lambda: True)():
        name = type(model.module).__name__
        raise UsageError(f"{name} does not predict next tokens, so it cannot continue a prompt; use run() or capture()")
    if with_text and model.tokenizer is None:
        raise UsageError("text was asked for, and without a tokenizer there is none; use on_token=, which gives ids")
    tokens = model.admit(_left_padded(prompt, model.pad_id), n_steps)
    check(model, [Placed(edit, tokens, ends=tokens.lengths) for edit in edits], [])
    for edit in edits:
        _require_reach(edit, tokens, n_steps)
    if sampling.n_samples > 1:
        rows = [row for row in range(len(tokens)) for _ in range(sampling.n_samples)]
        tokens = tokens.take(rows)
        edits = tuple(edit.take(rows) or edit for edit in edits)
    ends = stop_of(stop, model.tokenizer, model.module)
    reader = Reader.of(model.tokenizer, ends, tokens) if with_text or ends.texts else None
    words = tokens.texts is not None and any(isinstance(edit.site.pos, Where) for edit in edits)
    return _Job(tokens, edits, n_steps, cache and not model.body.cached, sampling, ends, reader, words)


def _steps(model: "cutaway.models.model.Model", job: _Job) -> Iterator[_Step]:
    """Step by step; after the last one, every edit must have fired."""
    tokens, edits, ends, seen = job.tokens, job.edits, job.tokens.lengths, 0
    state: Any = growing(model.module.config) if job.cache else None
    chances, going = job.sampling.generators(len(tokens)), [True] * len(tokens)
    placed = [Placed(edit, tokens, ends=ends) for edit in edits]
    session = Session(model.module, model.anatomy, placed, [], shape=(len(tokens), tokens.width))
    with session.over_steps():
        for left in reversed(range(job.n_steps)):
            session.step(placed, seen, (len(tokens), tokens.width - seen))
            new = job.sampling.choose(_next_logits(model, session, tokens, state), chances)
            if not all(going):
                new = torch.where(torch.tensor(going), new, torch.full_like(new, model.pad_id))
            seen = tokens.width if job.cache else 0
            tokens = tokens.grown(new, going, model.strings(new) if job.words else None)
            pieces, going = _read(job, new.tolist(), going, last=left == 0)
            if not left or not any(going):
                _require_fired(edits, session.fired, max(tokens.lengths) - 1)
                yield _Step(_worded(model, job, tokens), new, tuple(pieces))
                return
            yield _Step(tokens, new, tuple(pieces))
            placed = [Placed(edit, tokens, start=seen, ends=ends) for edit in edits]


def _next_logits(model: "cutaway.models.model.Model", session: Session, tokens: Tokens, state: Any) -> Tensor:
    """Next-token logits [batch d_vocab]."""
    kwargs = model.inputs(tokens, session.start, state)
    # a site that is the logits has to have all of its columns
    if "logits_to_keep" in model.accepts and all(placed.site.kind != "logits" for placed in session.edits):
        kwargs["logits_to_keep"] = 1
    out: Any = None
    with memory_named(len(tokens)), torch.no_grad(), session.acting():
        out = model.module(**kwargs)
    found = out.logits[:, -1]
    if session.edits and not bool(found.sum(dtype=torch.float32).isfinite()):
        real = tokens.mask[:, -1].to(found.device)
        last = [[tokens.width - 1]] * len(tokens)
        refuse_overflow(
            session.edits,
            found[real],
            real.nonzero()[:, 0],
            lambda: forward(model, tokens, logits=last)[0][real, 0],  # type: ignore[index]
        )
    return found


def _read(job: _Job, new: list[int], going: list[bool], *, last: bool) -> tuple[list[Piece], list[bool]]:
    """The text that became final, and which rows go on."""
    if job.reader is None:
        return [], [go and token not in job.stop.ids for go, token in zip(going, new)]
    pieces, onward = [], list(going)
    for row, (token, go) in enumerate(zip(new, going)):
        if not go:
            continue
        text, stopped = job.reader.read(row, token)
        onward[row] = not stopped and token not in job.stop.ids
        if last or not onward[row]:
            text += job.reader.rest(row)
        if text:
            pieces.append(Piece(row, text))
    return pieces, onward


def _require_reach(edit: Edit, tokens: Tokens, n_steps: int) -> None:
    """Every position that an edit names will go through the model, in every row that it speaks of."""
    pos, rows = edit.site.pos, edit.site.batch_rows or range(len(tokens))
    for row in rows:
        n_run = tokens.lengths[row] + n_steps - 1
        for p in (pos,) if isinstance(pos, int) else pos if isinstance(pos, tuple) else ():
            if p >= n_run:
                raise _never(edit, f"position {p} of row {row} is never reached", n_run)
    if isinstance(pos, Span):
        ends = zip(tokens.lengths, tokens.roles["end"])
        found = [pos.within(length + n_steps - 1, end + 1, length) for length, end in ends]
        if not any(found[row] for row in rows):
            raise _never(edit, "it selects no token that is ever reached", max(tokens.lengths) + n_steps - 1)


def _require_fired(edits: Sequence[Edit], fired: Sequence[int], n_run: int) -> None:
    """Every edit fired, and every position that it names was among the `n_run` that went through the model: rows may
    have ended before."""
    for edit, count in zip(edits, fired):
        pos = edit.site.pos
        wanted = (pos,) if isinstance(pos, int) else pos if isinstance(pos, tuple) else ()
        missed = [p for p in wanted if p >= n_run]
        if missed or count == 0:
            raise _never(edit, f"position {missed[0]} was never reached" if missed else "it never fired", n_run)


def _never(edit: Edit, what: str, n_run: int) -> EditNeverApplied:
    return EditNeverApplied(
        f"edit {edit}: {what}; {n_run} positions (0-{n_run - 1}) go through the model, the last token does not: "
        "generate more tokens, or choose an earlier position",
        site=str(edit.site),
    )


def _worded(model: "cutaway.models.model.Model", job: _Job, tokens: Tokens) -> Tokens:
    """With the texts of all tokens, when those of the prompt were there."""
    if tokens.texts is None or job.words:
        return tokens
    fresh = [model.strings(tokens.row(row)[n:]) for row, n in enumerate(job.tokens.lengths)]
    texts = tuple((*old, *new) for old, new in zip(tokens.texts, fresh))
    return Tokens(tokens.ids, tokens.mask, tokens.roles, texts)


def _left_padded(tokens: Tokens, pad_id: int) -> Tokens:
    if all(offset + n == tokens.width for offset, n in zip(tokens.offsets, tokens.lengths)):
        return tokens
    moved = from_rows([tokens.row(r) for r in range(len(tokens))], pad="left", pad_id=pad_id, roles=tokens.roles)
    return replace(moved, texts=tokens.texts)
