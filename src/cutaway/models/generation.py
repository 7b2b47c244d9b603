"""Generation with edits in force: positions are absolute, and the key/value cache changes the cost, never the
tokens."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cutaway.errors import EditNeverApplied, UsageError
from cutaway.models.cache import growing
from cutaway.models.edits import Edit, Placed, edits_of
from cutaway.models.forward import check, forward, memory_named, refuse_overflow
from cutaway.models.taps import Session
from cutaway.models.tokens import Tokens

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
    generator: torch.Generator | None = None,
    stop: int | None = None,
    on_token: Callable[[Tensor], None] | None = None,
) -> Tokens:
    """Prompts and their continuations, padded on the left; roles keep naming prompt positions ('end': the last
    prompt token).

    An edit without a position acts on every token, prompt and new; a position is absolute (a new token has one too),
    negative ones and 'end' count from the end of the prompt; a predicate acts on every token that satisfies it; a
    patch, or a value with one entry a prompt position, acts on the prompt. Greedy at temperature 0, else sampled with
    the given generator. A row that produces `stop` (default: the tokenizer's end-of-sequence id) is padded from there.
    With `cache=False` each step recomputes everything: the slow oracle. Cost with cache: one forward of the prompt and
    one of each new token. A model of which the audit could not show that its cache gives what full passes give
    (`model.anatomy.cached` says why) runs full passes, whatever `cache` says. Raises EditNeverApplied for a position
    that was never reached, OutOfRange where prompt and new tokens pass the model's context, EngineError where edits
    overflow.
    """
    edits = edits_of(edits)
    _check_request(model, max_new_tokens, temperature, generator)
    tokens = model.admit(_left_padded(prompt, model.pad_id), max_new_tokens)
    ends = tokens.lengths
    check(model, [Placed(edit, tokens, ends=ends) for edit in edits], [])
    fired = [0] * len(edits)
    stop = getattr(model.tokenizer, "eos_token_id", None) if stop is None else stop
    cache = cache and not model.body.cached
    state, seen, done = growing(model.module.config) if cache else None, 0, torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(max_new_tokens):
        logits = _step(
            model, [Placed(edit, tokens, start=seen, ends=ends) for edit in edits], tokens, fired, state, seen
        )
        seen = tokens.width if cache else 0
        new = _choose(logits, temperature, generator)
        new = torch.where(done, torch.full_like(new, model.pad_id), new)
        tokens = _extended(model, tokens, new, done)
        if on_token is not None:
            on_token(new)
        if stop is not None:
            done = done | (new == stop)
            if bool(done.all()):
                break
    _require_fired(edits, fired, max(tokens.lengths) - 1)
    return tokens


def _check_request(
    model: "cutaway.models.model.Model", max_new_tokens: int, temperature: float, generator: torch.Generator | None
) -> None:
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens}: at least 1")
    if temperature < 0:
        raise UsageError(f"temperature={temperature}: 0 is greedy, above it samples")
    if temperature > 0 and generator is None:
        raise UsageError("sampling needs generator=torch.Generator().manual_seed(...), so that it can be repeated")
    if not getattr(model.module, "can_generate", lambda: True)():
        name = type(model.module).__name__
        raise UsageError(f"{name} does not predict next tokens, so it cannot continue a prompt; use run() or capture()")


def _step(
    model: "cutaway.models.model.Model",
    placed: Sequence[Placed],
    tokens: Tokens,
    fired: list[int],
    state: Any,
    seen: int,
) -> Tensor:
    """Next-token logits [batch d_vocab]; counts which edits fired."""
    session = Session(model.module, model.anatomy, placed, [], shape=(len(tokens), tokens.width - seen), start=seen)
    kwargs = model.inputs(tokens, seen, state)
    if "logits_to_keep" in model.accepts:
        kwargs["logits_to_keep"] = 1
    out: Any = None
    with memory_named(len(tokens)), torch.no_grad(), session:
        out = model.module(**kwargs)
    for i, count in enumerate(session.fired):
        fired[i] += count
    found = out.logits[:, -1]
    if placed:
        real = tokens.mask[:, -1].to(found.device)
        last = [[tokens.width - 1]] * len(tokens)
        refuse_overflow(
            placed,
            found[real],
            real.nonzero()[:, 0],
            lambda: forward(model, tokens, logits=last)[0][real, 0],  # type: ignore[index]
        )
    return found


def _require_fired(edits: Sequence[Edit], fired: list[int], n_run: int) -> None:
    """Every edit fired, and every position that it names was among the `n_run` that went through the model."""
    for edit, count in zip(edits, fired):
        pos = edit.site.pos
        wanted = (pos,) if isinstance(pos, int) else pos if isinstance(pos, tuple) else ()
        missed = [p for p in wanted if p >= n_run]
        if missed or count == 0:
            what = f"position {missed[0]} was never reached" if missed else "it never fired"
            raise EditNeverApplied(
                f"edit {edit}: {what}; {n_run} positions (0-{n_run - 1}) went through the model, the last token "
                "does not: "
                "generate more tokens, or choose an earlier position",
                site=str(edit.site),
            )


def _left_padded(tokens: Tokens, pad_id: int) -> Tokens:
    from cutaway.models.tokens import from_rows

    if all(offset + n == tokens.width for offset, n in zip(tokens.offsets, tokens.lengths)):
        return tokens
    moved = from_rows([tokens.row(r) for r in range(len(tokens))], pad="left", pad_id=pad_id, roles=tokens.roles)
    return replace(moved, texts=tokens.texts)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1).cpu()
    return torch.multinomial((logits.float() / temperature).softmax(-1).cpu(), 1, generator=generator)[:, 0]


def _extended(model: "cutaway.models.model.Model", tokens: Tokens, new: Tensor, done: Tensor) -> Tokens:
    """One more column. Rows that are done get a masked-out pad, which is kept real inside the model's mask only."""
    ids = torch.cat([tokens.ids, new[:, None]], 1)
    mask = torch.cat([tokens.mask, ~done[:, None]], 1)
    texts = None
    if tokens.texts is not None:
        fresh = model.strings(new)
        texts = tuple(row if over else (*row, text) for row, text, over in zip(tokens.texts, fresh, done.tolist()))
    return Tokens(ids, mask, tokens.roles, texts)
