"""What capturing every residual site costs over a plain forward pass of the same Hugging Face module.

    python benchmarks/capture.py [--rounds N]

Random weights, CPU seconds at one thread; plain pass and capture in turn; the ratio is the median over rounds of
capture over the mean of the two plain passes beside it. Bound on GPT-2-small's shape: 1.05. The logits are those of
the plain pass, bit for bit, and the module's hooks are those of before.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cutaway import load
from cutaway.models import Model, Tokens

BOUND = 1.05
SHAPES = {
    "GPT-2 small, 8 x 64": ({"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257}, 8, 64),
    "4 layers of 256, 8 x 64": ({"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 5000}, 8, 64),
    "4 layers of 256, 1 x 8": ({"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 5000}, 1, 8),
}
"""Name -> configuration, rows, tokens. The bound holds for the first."""
KINDS = ("resid_pre", "resid_mid", "resid_post")


def random_model(sizes: dict[str, int]) -> Model:
    """A GPT-2 of these sizes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return load(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval())


def hooks(module: nn.Module) -> list[tuple[str, int]]:
    """Name and number of hooks of every submodule."""
    return [(name, len(m._forward_hooks) + len(m._forward_pre_hooks)) for name, m in module.named_modules()]


def cpu_seconds(work: Callable[[], Any], times: int) -> float:
    """CPU seconds of one call, over several."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def ratio(model: Model, tokens: Tokens, rounds: int, logits: str) -> tuple[float, float]:
    """Median ratio of a capture of all residual sites to the plain pass, and the plain pass in CPU seconds."""
    module: Any = model.module
    wanted = [f"{kind}.{layer}" for layer in range(model.body.n_layers) for kind in KINDS]

    @torch.no_grad()
    def plain() -> Tensor:
        return module(input_ids=tokens.ids, attention_mask=tokens.mask.long(), use_cache=False).logits

    def capture() -> Any:
        return model.run(tokens, reads=wanted, logits=logits)

    before = hooks(module)
    assert torch.equal(plain(), model.run(tokens, reads=wanted).logits)
    assert hooks(module) == before
    times = max(1, round(0.05 / cpu_seconds(plain, 3)))
    measured = [cpu_seconds(plain, times)]
    ratios = []
    for _ in range(rounds):
        own = cpu_seconds(capture, times)
        measured.append(cpu_seconds(plain, times))
        ratios.append(own / statistics.mean(measured[-2:]))
    return statistics.median(ratios), statistics.median(measured)


def main(rounds: int) -> int:
    """Print a line a shape; 1 when the first passes the bound."""
    torch.set_num_threads(1)
    found = []
    for name, (sizes, n_rows, n_tokens) in SHAPES.items():
        model = random_model(sizes)
        generator = torch.Generator().manual_seed(0)
        tokens = model.encode(torch.randint(0, sizes["vocab_size"], (n_rows, n_tokens), generator=generator))
        for logits in ("all", "none"):
            times, plain_s = ratio(model, tokens, rounds, logits)
            found.append(times)
            what = "with all logits" if logits == "all" else "without logits"
            print(f"{name:24s} plain {plain_s * 1000:8.2f} CPU ms; residual sites {what:16s} {times:.3f} times")
    print(f"bound on the first line: {BOUND}")
    return int(found[0] > BOUND)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    sys.exit(main(parser.parse_args().rounds))
