"""Edits while generating: positions are absolute, with the cache and without it."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import cutaway
from cutaway import sites
from tests.silent.oracle import at, continued, plus
from tests.silent.shapes import BLOCKS, Shape, vector
from tests.silent.suite import Attempt, Refused, Right, mistake, must_work

SITE, NEW = sites.resid_post[1], 7
"""The prompts have four tokens; the window of Gemma-2 as many."""


def steered(t: Shape, edit: Callable, position: int | None, name: str) -> Iterator[Attempt]:
    """The edit, and the oracle's greedy continuation by whole passes."""
    v = vector() * 4

    def change(ids: Tensor):
        if position is None:
            return [("resid_post.1", plus(v))]
        return [("resid_post.1", at(position, plus(v)))] if position < ids.shape[1] else []

    wanted, plain = continued(t.twin, t.ids, NEW, change), continued(t.twin, t.ids, NEW)
    for cache in (True, False):
        yield Right(
            f"{name}, cache={cache}",
            lambda c=cache: t.model.generate(t.rows, [edit(v)], max_new_tokens=NEW, cache=c, stop=[]).ids,
            wanted,
            plain.float() if bool((wanted != plain).any()) else None,
        )


@must_work("10a", "generate with a cache: an edit at position 0, in the prompt")
def in_prompt(t: Shape) -> Iterator[Attempt]:
    yield from steered(t, lambda v: SITE.at(0).add(v), 0, "at(0)")
    yield from steered(t, lambda v: SITE.at(-1).add(v), 3, "at(-1)")
    yield from steered(t, lambda v: SITE.at("end").add(v), 3, "at('end')")


@must_work("10b", "generate with a cache: an edit at position 8, a generated token")
def of_new(t: Shape) -> Iterator[Attempt]:
    yield from steered(t, lambda v: SITE.at(8).add(v), 8, "at(8)")
    yield from steered(t, lambda v: SITE.at(4).add(v), 4, "at(4)")
    words = r"position 10 (of row 0 is|was) never reached; 10 positions \(0-9\).*generate more tokens"
    yield Refused("at(10)", lambda: t.model.generate(t.rows, [SITE.at(10).zero()], max_new_tokens=NEW, stop=[]), words)


def _cache(t: Shape):
    """A cache of the four tokens, filled by one's own call."""
    from transformers import DynamicCache

    cache = DynamicCache(config=t.hf.config)
    with torch.no_grad():
        t.hf(t.ids, past_key_values=cache, use_cache=True)
    return cache


def _passed(t: Shape, position: int) -> Iterator[Attempt]:
    site = sites.module(BLOCKS[t.name].format(1)).at(position)
    new = t.other[:, :1]
    words = r"goes on from a cache of 4 tokens and computes the new ones alone.*model\.generate"
    raw = lambda: cutaway.Raw((new,), {"past_key_values": _cache(t), "use_cache": True})  # noqa: E731
    yield Refused("add", lambda: t.model.run(raw(), [site.add(vector())]), words)
    yield Refused("zero", lambda: t.model.run(raw(), [site.zero()]), words)
    kept = sites.resid_post[1].at(position)
    yield Refused(
        "a site of the vocabulary",
        lambda: t.model.run(raw(), [kept.zero()]),
        "address it by path|address sites by module path|cache of 4",
    )


@mistake("10c", "a step on a filled cache, an edit at position 0 that has passed")
def passed_first(t: Shape) -> Iterator[Attempt]:
    yield from _passed(t, 0)


@mistake("10d", "the same, an edit at position 2")
def passed_third(t: Shape) -> Iterator[Attempt]:
    yield from _passed(t, 2)


@must_work("10e", "steer every position while generating")
def everywhere(t: Shape) -> Iterator[Attempt]:
    yield from steered(t, lambda v: SITE.add(v), None, "add(v)")
    yield from steered(t, lambda v: sites.module(BLOCKS[t.name].format(1)).add(v), None, "sites.module(block).add(v)")
