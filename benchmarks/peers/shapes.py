"""The models of the benchmarks: shapes with random weights, and pairs of random tokens."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """One model, by the arguments of its configuration, and the sizes of its sweeps."""

    kind: str
    sizes: dict[str, int]
    n_tokens: int
    resid_rows: int
    """Pairs of the residual sweep."""
    head_rows: int
    """Pairs of the head sweep."""
    capture: tuple[int, int]
    """Rows and tokens of a capture."""

    @property
    def d_vocab(self) -> int:
        return self.sizes["vocab_size"]

    def module(self) -> Any:
        """The Hugging Face model; weights and norms random, so that nothing vanishes."""
        from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        if self.kind == "gpt2":
            module: Any = GPT2LMHeadModel(GPT2Config(**self.sizes, bos_token_id=0, eos_token_id=0))
        else:
            module = LlamaForCausalLM(LlamaConfig(**self.sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        return module.eval()


SHAPES = {
    "GPT-2 small": Shape("gpt2", {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257}, 15, 16, 4, (8, 64)),
    "small GQA": Shape(
        "llama",
        {
            "num_hidden_layers": 6,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 32000,
        },
        15,
        16,
        16,
        (8, 64),
    ),
    "4 layers of 256": Shape(
        "gpt2", {"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 5000}, 15, 16, 16, (8, 64)
    ),
}
"""Name in the tables -> shape."""


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupt rows of random tokens without a token in common, and the two ids that a metric compares."""

    clean: list[list[int]]
    corrupt: list[list[int]]
    answers: list[int]
    foils: list[int]

    def difference(self, logits: Tensor) -> Tensor:
        """Answer minus foil, from the logits of the last token [rows d_vocab]."""
        rows = torch.arange(len(self.answers))
        return logits[rows, self.answers] - logits[rows, self.foils]


def pairs(shape: Shape, n_rows: int) -> Pairs:
    """Random pairs; every position differs, so that no patch is idle."""
    chance = random.Random(0)
    clean, corrupt = [], []
    for _ in range(n_rows):
        ids = chance.sample(range(3, shape.d_vocab), 2 * shape.n_tokens)
        clean.append(ids[: shape.n_tokens])
        corrupt.append(ids[shape.n_tokens :])
    both = [chance.sample(range(3, shape.d_vocab), 2) for _ in range(n_rows)]
    return Pairs(clean, corrupt, [a for a, _ in both], [f for _, f in both])
