"""All jobs of one peer beside plain hooks and cutaway, in one process; prints one JSON document.

    build/peers/NAME/bin/python benchmarks/peers/run.py NAME [--shape NAME] [--share N] [--job NAME]

CPU seconds at one thread, interleaved: of every N-th cell the loop by hand and the peer's run in turn, cutaway's whole
sweep before and after. What a loop costs is the median of its cells times their number, since each is one whole pass,
and what it stores. Values are compared first: of the timed cells the peer's and cutaway's with those by hand.
"""

# ruff: noqa: E402 (the paths have to be known before the imports)

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

from peers.shapes import SHAPES, Pairs, Shape, pairs
from peers.tools import TOOLS, Hand, Tool, head_size

from cutaway import load
from cutaway.engine import MAX_TOKENS
from cutaway.engine.proofs import proofs
from cutaway.models import Model, Site, sites
from cutaway.patching import sweep
from cutaway.tasks import Batch, Pair, Task, vocabulary_digest

WARM_UP = 2


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def sweep_job(shape: Shape, module: Any, name: str, job: str, every: int) -> dict[str, Any]:
    """One sweep by hand, by the peer and by cutaway."""
    found = pairs(shape, shape.resid_rows if job == "resid" else shape.head_rows)
    clean, corrupt = torch.tensor(found.clean), torch.tensor(found.corrupt)
    units = shape.n_tokens if job == "resid" else module.config.num_attention_heads
    cells = [(layer, unit) for layer in range(module.config.num_hidden_layers) for unit in range(units)]
    chosen = range(every // 2, len(cells), every)
    ours = Ours(module, found, job)
    hand, peer = Hand(module, job), TOOLS[name](module, job)
    proofs(ours.model)  # once a model, as its audit
    for tool in (hand, peer):
        tool.keep(clean)
        for _ in range(WARM_UP):
            tool.cell(corrupt, *cells[0])
    kept = {tool: seconds(lambda tool=tool: tool.keep(clean))[0] for tool in (hand, peer)}
    first_s, effects = seconds(ours.effects)
    times: dict[Tool, list[float]] = {hand: [], peer: []}
    apart = {"peer": 0.0, "cutaway": 0.0}
    largest = 0.0
    for index in chosen:
        values = {}
        for tool in (hand, peer):
            spent, logits = seconds(lambda tool=tool, index=index: tool.cell(corrupt, *cells[index]))
            times[tool].append(spent)
            values[tool] = found.difference(logits)
        largest = max(largest, float(values[hand].abs().max()))
        apart["peer"] = max(apart["peer"], float((values[peer] - values[hand]).abs().max()))
        apart["cutaway"] = max(apart["cutaway"], float((effects.values[index] - values[hand]).abs().max()))
    second_s, _ = seconds(ours.effects)
    by_hand, by_peer = (kept[tool] + statistics.median(times[tool]) * len(cells) for tool in (hand, peer))
    own = statistics.mean([first_s, second_s])
    return {
        "cells": len(cells),
        "timed": len(chosen),
        "rows": len(found.clean),
        "tokens": shape.n_tokens,
        "hand_s": by_hand,
        "peer_s": by_peer,
        "cutaway_s": own,
        "times_hand": by_hand / own,
        "times_peer": by_peer / own,
        "apart_peer": apart["peer"],
        "apart_cutaway": apart["cutaway"],
        "largest_value": largest,
    }


class Ours:
    """The same sweep, as a user of cutaway asks for it."""

    def __init__(self, module: Any, found: Pairs, job: str) -> None:
        self.model: Model = load(module)
        rows = zip(found.clean, found.corrupt, found.answers, found.foils)
        made = tuple(Pair(tuple(c), tuple(x), a, f, id=str(i)) for i, (c, x, a, f) in enumerate(rows))
        task = Task("random", "Random tokens.", made, tokenizer=vocabulary_digest(self.model))
        self.batch: Batch = task.encode(self.model)
        self.job = job

    def effects(self) -> Any:
        wanted: Any = sites.resid_pre[:] if self.job == "resid" else sites.z[:].heads()
        positions = "each" if self.job == "resid" else None
        return sweep(self.model, self.batch, wanted, positions=positions, max_tokens=MAX_TOKENS)


def capture_job(shape: Shape, module: Any, name: str, rounds: int) -> dict[str, Any]:
    """The residual stream before every block with all logits, over the plain pass."""
    n_rows, n_tokens = shape.capture
    ids = torch.randint(3, shape.d_vocab, (n_rows, n_tokens), generator=torch.Generator().manual_seed(0))
    model, peer, hand = load(module), TOOLS[name](module, "resid"), Hand(module, "resid")
    tokens = model.encode(ids)
    wanted = [Site("resid_pre", layer) for layer in range(model.body.n_layers)]
    works: dict[str, Callable[[], Any]] = {
        "plain": lambda: hand.logits(ids),
        "hand": lambda: hand.capture(ids),
        "peer": lambda: peer.capture(ids),
        "cutaway": lambda: model.run(tokens, reads=wanted),
    }
    expected = hand.logits(ids)
    assert torch.equal(model.run(tokens, reads=wanted).logits, expected)
    apart = float((peer.capture(ids)[1] - expected).abs().max())
    times: dict[str, list[float]] = {key: [] for key in works}
    for _ in range(rounds):
        for key, work in works.items():
            times[key].append(seconds(work)[0])
    plain = statistics.median(times["plain"])
    ratios = {key: statistics.median(times[key]) / plain for key in ("hand", "peer", "cutaway")}
    return {"rows": n_rows, "tokens": n_tokens, "plain_s": plain, "apart_peer": apart, **ratios}


def main(name: str, shapes: list[str], jobs: list[str], every: int) -> None:
    """Print what was measured."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"peer": name, "version": metadata.version(name), "torch": torch.__version__, "jobs": {}}
    for shape_name in shapes:
        shape = SHAPES[shape_name]
        module = shape.module()
        assert head_size(module) * module.config.num_attention_heads == module.config.hidden_size
        for job in jobs:
            try:
                if job == "capture":
                    result = capture_job(shape, module, name, rounds=5)
                else:
                    result = sweep_job(shape, module, name, job, every)
            except Exception as error:  # noqa: BLE001 - what a peer raises is its result
                result = {"error": f"{type(error).__name__}: {error}"}
            found["jobs"][f"{shape_name}: {job}"] = result
            print(shape_name, job, result, file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=TOOLS)
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--job", action="append", choices=["capture", "resid", "heads"])
    parser.add_argument("--share", type=int, default=6)
    chosen = parser.parse_args()
    main(chosen.name, chosen.shape or list(SHAPES), chosen.job or ["capture", "resid", "heads"], chosen.share)
