"""What a layer x position sweep costs beside one forward pass a cell on plain Hugging Face with hand-written hooks.

    python benchmarks/sweep.py [resid|heads] [--layers N] [--pairs N] [--tokens N]

GPT-2-small's shape with random weights, CPU seconds at one thread, both in one process: the naive loop is cut in two,
and the plan runs between its halves. Pairs have no token in common, so that no patch is idle. Bounds for the defaults:
5.5 times faster (heads: 4.5), largest difference 1e-5.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cutaway import engine, load
from cutaway.engine import Run
from cutaway.models import Model, Site, sites
from cutaway.patching import sweep
from cutaway.tasks import Batch, Pair, Task, vocabulary_digest

FASTER, APART = {"resid": 5.5, "heads": 4.5}, 1e-5
PAIRS = {"resid": 16, "heads": 4}
D_VOCAB, N_HEADS, D_MODEL = 50257, 12, 768
Hook = Callable[[nn.Module, tuple[Any, ...]], Any]


def random_model(n_layers: int) -> Model:
    """GPT-2-small's shape; weights and norms random, so that nothing vanishes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config(n_layer=n_layers, n_head=N_HEADS, n_embd=D_MODEL, vocab_size=D_VOCAB)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return load(module)


def random_batch(model: Model, n_pairs: int, n_tokens: int) -> Batch:
    """Pairs of random tokens without one in common."""
    chance = random.Random(0)
    pairs = []
    for i in range(n_pairs):
        ids = chance.sample(range(D_VOCAB), 2 * n_tokens)
        clean, corrupt = ids[:n_tokens], ids[n_tokens:]
        answer, foil = chance.sample(range(D_VOCAB), 2)
        pairs.append(Pair(tuple(clean), tuple(corrupt), answer, foil, id=str(i)))
    return Task("random", "Random tokens.", tuple(pairs), tokenizer=vocabulary_digest(model)).encode(model)


class Naive:
    """The loop that a careful person writes: one clean pass that keeps the values, then one full pass a cell."""

    def __init__(self, model: Model, batch: Batch, job: str) -> None:
        self.module: Any = model.module
        self.batch, self.job = batch, job
        self.d_head = D_MODEL // N_HEADS
        self.targets = [self._target(block) for block in self.module.transformer.h]
        self.kept: list[Tensor] = []

    def _target(self, block: Any) -> nn.Module:
        return block if self.job == "resid" else block.attn.c_proj

    def keep(self) -> None:
        """The clean values of all sites."""
        handles = [
            target.register_forward_pre_hook(lambda _, args: self.kept.append(args[0])) for target in self.targets
        ]
        self._forward(self.batch.clean.ids)
        for handle in handles:
            handle.remove()

    def cells(self, layers: range) -> Iterator[Tensor]:
        """The metric of every cell of some layers, one forward pass each."""
        units = self.batch.clean.width if self.job == "resid" else N_HEADS
        for layer in layers:
            for unit in range(units):
                handle = self.targets[layer].register_forward_pre_hook(self._patch(layer, unit))
                logits = self._forward(self.batch.corrupt.ids)[:, -1]
                handle.remove()
                yield torch.stack(
                    [row[a[0]] - row[f[0]] for row, a, f in zip(logits, self.batch.answers, self.batch.foils)]
                )

    def _patch(self, layer: int, unit: int) -> Hook:
        rows = unit if self.job == "resid" else slice(None)
        columns = slice(None) if self.job == "resid" else slice(unit * self.d_head, (unit + 1) * self.d_head)

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001
            changed = args[0].clone()
            changed[:, rows, columns] = self.kept[layer][:, rows, columns]
            return (changed, *args[1:])

        return hook

    @torch.no_grad()
    def _forward(self, ids: Tensor) -> Tensor:
        return self.module(input_ids=ids, use_cache=False).logits


def explain(model: Model, batch: Batch, cells: list[Site]) -> str:
    """The plan's own account, for the runs that the sweep declares."""
    donor = model.capture(batch.clean, list({site.base: None for site in cells}))
    runs = [Run(tokens, logits=batch.logits, vocab=batch.vocab) for tokens in (batch.clean, batch.corrupt)]
    runs += [Run(batch.corrupt, (site.patch(donor),), logits=batch.logits, vocab=batch.vocab) for site in cells]
    return str(engine.plan(model, runs).explain())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main(job: str, n_layers: int, n_pairs: int, n_tokens: int) -> int:
    """Print both times, their ratio and the largest difference; 1 when a bound is passed."""
    torch.set_num_threads(1)
    model = random_model(n_layers)
    batch = random_batch(model, n_pairs, n_tokens)
    wanted = sites.resid_pre[:] if job == "resid" else sites.z[:].heads()
    positions = "each" if job == "resid" else None
    found = model.body.expand(wanted)
    cells = [site.at(p) for site in found for p in range(n_tokens)] if job == "resid" else found
    print(explain(model, batch, cells))
    naive = Naive(model, batch, job)
    naive._forward(batch.clean.ids)  # warm up
    kept_s, _ = timed(naive.keep)
    first_s, first = timed(lambda: list(naive.cells(range(n_layers // 2))))
    plan_s, effects = timed(lambda: sweep(model, batch, wanted, positions=positions))
    second_s, second = timed(lambda: list(naive.cells(range(n_layers // 2, n_layers))))
    naive_s, expected = kept_s + first_s + second_s, torch.stack([*first, *second])
    apart = (effects.values - expected).abs().max().item()
    size = effects.raw.abs().max().item()
    print(
        f"naive    {naive_s:8.2f} CPU s: {len(cells)} cells, one forward pass each, {n_pairs} rows of {n_tokens} tokens"
    )
    print(f"cutaway  {plan_s:8.2f} CPU s: {naive_s / plan_s:.2f} times faster (bound {FASTER[job]})")
    print(f"largest difference {apart:.1e} (bound {APART:.0e}; largest effect {size:.2f} nat)")
    return int(naive_s / plan_s < FASTER[job] or not apart <= APART)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", nargs="?", default="resid", choices=["resid", "heads"])
    for name, default in (("layers", 12), ("pairs", None), ("tokens", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    sys.exit(main(chosen.job, chosen.layers, chosen.pairs or PAIRS[chosen.job], chosen.tokens))
