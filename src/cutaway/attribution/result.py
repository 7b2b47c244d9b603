"""Scores of tokens, as data: what every method of attribution to tokens returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.artifacts import Provenance, save_tensors, saved
from cutaway.errors import UsageError
from cutaway.figures import Bars, Figure, Strip
from cutaway.models import Model

BARS = 30
"""Tokens up to which a single prompt is drawn as bars too."""


@dataclass(frozen=True)
class TokenScores:
    """What each token contributes to the target, in the target's unit; a row a prompt.

    `value - baseline_value` is what there is to explain. Methods that promise completeness share it out to the tokens;
    `gap` says how much of it they missed, or gave twice.
    """

    scores: Float[Tensor, "row pos"]
    """Contribution of each token of the unpadded row; NaN behind its end. Positive: the token raises the target."""
    value: Float[Tensor, " row"]
    """The target on the prompt."""
    baseline_value: Float[Tensor, " row"]
    """The target with every token at its baseline."""
    tokens: tuple[tuple[str, ...], ...]
    """Text of each token of each row (its id where there is no tokenizer)."""
    method: str
    baseline: str
    """What a token is exchanged for."""
    target: str
    complete: bool
    """The method promises that the scores add up to value - baseline_value."""
    steps: int
    """Points on the way from the baseline, or sampled coalitions."""
    provenance: Provenance

    @property
    def gap(self) -> Float[Tensor, " row"]:
        """Sum of the scores - (value - baseline_value): 0 for complete attributions."""
        return self.scores.nansum(1) - (self.value - self.baseline_value)

    @property
    def error(self) -> float:
        """Sum over rows of |gap|, as a share of the sum of |value - baseline_value|; inf with nothing to explain."""
        size, missed = float((self.value - self.baseline_value).abs().sum()), float(self.gap.abs().sum())
        return missed / size if size > 0 else 0.0 if missed == 0 else float("inf")

    def facts(self) -> dict[str, Any]:
        """What belongs to the whole result."""
        what = "complete" if self.complete else "not a complete method"
        error = f"{self.error:.2%} of the change" if self.error != float("inf") else "no change to explain"
        return {
            "method": self.method,
            "baseline": self.baseline,
            "target": self.target,
            "value": _mean(self.value),
            "at_the_baseline": _mean(self.baseline_value),
            "completeness": f"{what}: the scores miss value - baseline by {error} ({self.steps} steps)",
        }

    def table(self) -> list[dict[str, Any]]:
        """One record a token."""
        return [
            {"row": row, "position": i, "token": token, "score": float(self.scores[row, i])}
            for row, texts in enumerate(self.tokens)
            for i, token in enumerate(texts)
        ]

    def figures(self) -> tuple[Figure, ...]:
        """The prompts, shaded by their tokens' scores; a short single prompt also as bars."""
        sentence = f"What each token contributes to {self.target}, by {self.method} against {self.baseline}."
        rows = [
            tuple((token, float(score)) for token, score in zip(texts, line))
            for texts, line in zip(self.tokens, self.scores.tolist())
        ]
        strip = Strip("Attribution to tokens", sentence, "target's unit", tuple(rows))
        if len(rows) > 1 or len(rows[0]) > BARS:
            return (strip,)
        labels = tuple(f"{i} {token}" for i, (token, _) in enumerate(rows[0]))
        return strip, Bars("Tokens", sentence, "target's unit", labels, tuple(score for _, score in rows[0]))

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256. Raises UsageError for a folder."""
        if Path(path).is_dir():
            raise UsageError(f"{path}: this is a folder; give a file in it, such as scores.safetensors", path=str(path))
        manifest = {"kind": "token scores", "format": 1, **{name: getattr(self, name) for name in _TEXTS}}
        manifest["provenance"] = self.provenance
        return save_tensors(Path(path), {name: getattr(self, name) for name in _TENSORS}, manifest)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "TokenScores":
        """Read a saved file. Raises WrongModel when `model` is not the one it was made with, BrokenEvidence when the
        file is not a saved `TokenScores`."""
        with saved(path, "token scores", None if model is None else model.digest) as (tensors, manifest):
            texts = {name: manifest[name] for name in _TEXTS}
            texts["tokens"] = tuple(tuple(row) for row in texts["tokens"])
            return cls(
                **{name: tensors[name] for name in _TENSORS}, **texts, provenance=Provenance(**manifest["provenance"])
            )


_TENSORS = ("scores", "value", "baseline_value")
_TEXTS = ("tokens", "method", "baseline", "target", "complete", "steps")


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def left_aligned(rows: list[Tensor]) -> Float[Tensor, "row pos"]:
    """Rows of unequal length, NaN behind the end of each."""
    found = torch.full((len(rows), max(map(len, rows))), float("nan"))
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found
