"""How the next token is chosen from its logits: the best one, or a draw that can be repeated."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.artifacts import digest
from cutaway.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0; else a draw from softmax(logits / temperature), cut to the likeliest tokens.

    Every row draws from a generator of its own, seeded by the seed and the number of its sample: what a prompt gives
    does not depend on the batch that it is in, and equal prompts give equal samples.
    """

    temperature: float = 0.0
    top_k: int | None = None
    """Only the k likeliest tokens (and those as likely as the last of them)."""
    top_p: float | None = None
    """Only the fewest tokens that together have this probability, after `top_k`."""
    seed: int | None = None
    n_samples: int = 1
    """Continuations of each prompt; those of one prompt follow on one another."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature={self.temperature}: 0 is greedy, above it samples")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k={self.top_k}: at least 1 token must be left; None keeps all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p}: a probability above 0, at most 1; None keeps all")
        if self.n_samples < 1:
            raise UsageError(f"n_samples={self.n_samples}: at least 1")
        if self.seed is not None and not 0 <= self.seed < 2**62:
            raise UsageError(f"seed={self.seed}: a whole number from 0 on")
        if self.temperature > 0 and self.seed is None:
            raise UsageError("sampling needs seed=, a whole number, so that it can be repeated")
        usual = {"top_k": None, "top_p": None, "seed": None, "n_samples": 1}
        idle = [f"{name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value]
        if self.temperature == 0 and idle:
            raise UsageError(
                f"temperature=0 is greedy: {', '.join(idle)} would change nothing; give a temperature above 0, or "
                "leave that out"
            )

    def generators(self, n_rows: int) -> list[torch.Generator]:
        """One for each row of `n_rows`, samples of one prompt beside one another; none when greedy."""
        if self.temperature == 0 or self.seed is None:
            return []
        # torch seeds its generator by 32 bits
        seeds = [int(digest([self.seed, sample])[:8], 16) for sample in range(self.n_samples)]
        return [torch.Generator().manual_seed(seeds[row % self.n_samples]) for row in range(n_rows)]

    def choose(
        self, logits: Float[Tensor, "batch d_vocab"], generators: Sequence[torch.Generator]
    ) -> Int[Tensor, " batch"]:
        """The next token of each row, on the CPU."""
        if self.temperature == 0:
            return logits.argmax(-1).cpu()
        shares = self.probabilities(logits).cumsum(-1)
        draws = torch.stack([torch.rand((), dtype=torch.float64, generator=g) for g in generators])[:, None]
        return torch.searchsorted(shares, draws * shares[:, -1:], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)

    def probabilities(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
        """What is drawn from, float64 on the CPU; 0 for what is cut off."""
        scaled = logits.detach().double().cpu() / self.temperature
        low = float("-inf")
        if self.top_k is not None and self.top_k < scaled.shape[-1]:
            scaled = scaled.masked_fill(scaled < scaled.topk(self.top_k).values[:, -1:], low)
        if self.top_p is not None and self.top_p < 1:
            values, order = scaled.sort(dim=-1, descending=True, stable=True)
            shares = values.softmax(-1)
            cut = shares.cumsum(-1) - shares >= self.top_p
            scaled = scaled.masked_fill(torch.zeros_like(cut).scatter(1, order, cut), low)
        return scaled.softmax(-1)
