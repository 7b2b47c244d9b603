"""Padding: positions are those of the row without it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cutaway import sites
from cutaway.models import Model
from tests.silent.oracle import plus
from tests.silent.shapes import Shape, padded, vector
from tests.silent.suite import Attempt, Refused, Right, mistake, must_work

SITE = sites.resid_post[1]
LONG, SHORT = [8, 9, 10, 11, 12, 13], [5, 6, 7]


def alone(t: Shape, change=None) -> Tensor:
    """Logits of each row by itself, one after another; `change` of resid_post.1 at the last token."""
    found = []
    for row in (SHORT, LONG):
        edits = [("resid_post.1", lambda x: torch.cat([x[:, :-1], change(x[:, -1:])], 1))] if change else []
        found.append(t.wanted(*edits, ids=torch.tensor([row]))[0])
    return torch.cat(found)


def real(logits: Tensor, mask: Tensor) -> Tensor:
    return logits[mask]


@must_work("4a", "a left-padded batch, mask given")
def left(t: Shape) -> Iterator[Attempt]:
    ids, mask = padded([SHORT, LONG], "left")
    yield from _given(t, ids, mask)
    yield Right(
        "encode(pad='left')", lambda: real(t.run(inputs=t.model.encode([SHORT, LONG], pad="left")), mask), alone(t)
    )


@must_work("4b", "a right-padded batch, mask given")
def right(t: Shape) -> Iterator[Attempt]:
    ids, mask = padded([SHORT, LONG], "right")
    yield from _given(t, ids, mask)
    yield Right("lists", lambda: real(t.run(inputs=[SHORT, LONG]), mask), alone(t))


def _given(t: Shape, ids: Tensor, mask: Tensor) -> Iterator[Attempt]:
    wanted = alone(t)
    yield Right("a tensor of booleans", lambda: real(t.run(inputs=t.model.encode(ids, mask=mask)), mask), wanted)
    yield Right(
        "a tokenizer's 0 and 1", lambda: real(t.run(inputs=t.model.encode(ids, mask=mask.long())), mask), wanted
    )
    yield Right("lists", lambda: real(t.run(inputs=t.model.encode(ids.tolist(), mask=mask.tolist())), mask), wanted)
    # inside the attention, where another kernel or mask may be at work
    heads = [t.wanted(("pattern.1", _first_gone), ids=torch.tensor([row]))[0] for row in (SHORT, LONG)]
    edit = sites.pattern[1].head(0).zero()
    yield Right(
        "an edit of a pattern",
        lambda: real(t.run(edit, inputs=t.model.encode(ids, mask=mask)), mask),
        torch.cat(heads),
        wanted,
    )


def _first_gone(pattern: Tensor) -> Tensor:
    return torch.cat([pattern[:, :1] * 0, pattern[:, 1:]], 1)


@mistake("4c", "a left-padded batch, mask forgotten")
def left_forgotten(t: Shape) -> Iterator[Attempt]:
    ids, _ = padded([SHORT, LONG], "left")
    words = "row 0 begins with the padding id 0, and no mask was given: padding would be read as text; pass"
    yield Refused("a tensor", lambda: t.run(inputs=ids), words)
    yield Refused("lists", lambda: t.run(inputs=ids.tolist()), words)
    bare = Model(t.hf, None, t.model.anatomy, t.name)
    yield Refused("without a tokenizer", lambda: bare.run(ids), words)
    yield Refused("generate", lambda: t.model.generate(ids, max_new_tokens=2), words)
    found = t.model.tokenizer(
        [" ".join(f"t{i}" for i in row) for row in (SHORT, LONG)], padding=True, padding_side="left"
    )
    yield Refused("a tokenizer's lists", lambda: t.run(inputs=found["input_ids"]), words)
    yield Refused(
        "all that a tokenizer gives", lambda: t.run(inputs=found), r"'input_ids'.*would be run as texts; give encode"
    )


@must_work("4d", "a right-padded batch, mask forgotten")
def right_forgotten(t: Shape) -> Iterator[Attempt]:
    ids, mask = padded([SHORT, LONG], "right")
    v = vector()
    yield Right("a tensor", lambda: real(t.run(inputs=ids), mask), alone(t))
    yield Right("lists", lambda: real(t.run(inputs=ids.tolist()), mask), alone(t))
    yield Right("edit at -1", lambda: real(t.run(SITE.at(-1).add(v), inputs=ids), mask), alone(t, plus(v)), alone(t))


@must_work("4e", "two prompts of unequal length given as text")
def texts(t: Shape) -> Iterator[Attempt]:
    words = [" ".join(f"t{i}" for i in row) for row in (SHORT, LONG)]
    for side in ("left", "right"):
        tokens = t.model.encode(words, pad=side)
        yield Right(f"padded on the {side}", lambda k=tokens: real(t.run(inputs=k), k.mask), alone(t))
    mask = t.model.encode(words).mask
    yield Right("as they are", lambda: real(t.run(inputs=words), mask), alone(t))


@mistake("4f", "an edit at position -1 in a right-padded batch: the last real token is meant", outcome="right")
def last(t: Shape) -> Iterator[Attempt]:
    v = vector()
    wanted = alone(t, plus(v))
    for side in ("right", "left"):
        ids, mask = padded([SHORT, LONG], side)
        tokens = t.model.encode(ids, mask=mask)
        for pos in (-1, "end", [-1]):
            edit = SITE.at(pos).add(v)
            yield Right(
                f"at({pos!r}), {side}", lambda k=tokens, e=edit: real(t.run(e, inputs=k), k.mask), wanted, alone(t)
            )
    ids, mask = padded([SHORT, LONG], "right")
    tokens = t.model.encode(ids, mask=mask)
    yield Refused("at(3) of 3", lambda: t.run(SITE.at(3).add(v), inputs=tokens), r"row 0 has 3 tokens \(0-2")
