"""Jacobian lens: how a change of a layer's state changes the last states, on average, as a map between the two.

    J_l = mean over prompts and source positions p of  sum over p' >= p of  d h_last[p'] / d h_l[p]
    read-out of a state h:  softmax of head(J_l h)

1. Repeat a prompt once for each of some output coordinates. In one backward pass each repetition gets the slope of its
   own coordinate of the last block's output, summed over the positions; at the states of all layers this is one row of
   J for each repetition and source position. Average over source positions.
2. Go on until all coordinates are done, then to the next prompt, and keep the running mean.
3. Stop when a prompt changes the mean little (the smoothed relative change in Frobenius norm), or after the last one.

Nothing is fitted to predictions, so the lens cannot learn to compute what the layer does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.artifacts import Provenance, digest, require_same_model
from cutaway.errors import DataError, OutOfRange, SiteUnavailable
from cutaway.figures import Bars, Figure, Lines
from cutaway.lenses import store
from cutaway.lenses.states import Inputs, Progress, last_state, level, provenance, rows_of
from cutaway.models import Model, Site, Tokens
from cutaway.models.gradients import backward

SMOOTHING = 0.9
"""Share of the old value in the smoothed change."""


@dataclass(frozen=True)
class JacobianLens:
    """For each block the mean Jacobian from the state that enters it to the last block's output."""

    matrices: Float[Tensor, "layer d_model d_model"]
    """J: row i says how coordinate i of the last state answers to the state of the layer."""
    halves: Float[Tensor, " layer"]
    """Relative Frobenius distance between the means over every other prompt: 0 where the prompts agree. NaN for one."""
    changes: Float[Tensor, " prompt"]
    """By how much each prompt changed the running mean, relative, smoothed; mean over the layers. NaN for the first."""
    n_prompts: int
    """Prompts that were used."""
    converged: bool
    """Whether the change fell below the tolerance before the prompts ended."""
    settings: dict[str, Any]
    provenance: Provenance
    name: str = field(default="jacobian")

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return len(self.matrices)

    @property
    def labels(self) -> tuple[str, ...]:
        """The states that are translated."""
        return tuple(f"resid_pre.{layer}" for layer in range(self.n_layers))

    def require(self, model: Model) -> None:
        """Refuse another model (WrongModel)."""
        require_same_model(self.provenance.model, model.digest, "this Jacobian lens")

    def translate(self, site: Site, state: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """J h of the layer; what leaves the last block is left as it is.

        Raises UsageError for a state inside a block, OutOfRange for a layer that the model does not have.
        """
        layer = level(self.n_layers, site)
        if layer == self.n_layers:
            return state
        return (state.float() @ self.matrices[layer].to(state.device).T).to(state.dtype)

    def table(self) -> list[dict[str, Any]]:
        """One row a layer: size of J against the identity, how far it is from it, and how far the prompts disagree."""
        eye = torch.eye(self.matrices.shape[1])
        return [
            {
                "site": label,
                "size": (matrix.norm() / eye.norm()).item(),
                "distance_from_identity": ((matrix - eye).norm() / eye.norm()).item(),
                "disagreement": self.halves[layer].item(),
            }
            for layer, (label, matrix) in enumerate(zip(self.labels, self.matrices))
        ]

    def figures(self) -> tuple[Figure, ...]:
        """How far the prompts disagree, by layer, and how the mean settled."""
        found: list[Figure] = [
            Bars(
                "Disagreement of the prompts",
                "Relative distance between the mean Jacobians of every other prompt: large where one matrix does not "
                "speak for all prompts.",
                "relative",
                self.labels,
                tuple(self.halves.tolist()),
            )
        ]
        if len(self.changes) > 1:
            found.append(
                Lines(
                    "How the mean settled",
                    "Smoothed relative change of the mean Jacobian by one more prompt, averaged over the layers.",
                    "relative",
                    "prompt",
                    tuple(map(float, range(len(self.changes)))),
                    {"change": tuple(self.changes.tolist())},
                )
            )
        return tuple(found)

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        return store.save(self, path, "jacobian_lens")

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "JacobianLens":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        return store.load(cls, path, "jacobian_lens", model)


def fit_jacobian_lens(
    model: Model,
    inputs: Inputs,
    *,
    skip_first: int = 16,
    skip_last: int = 1,
    d_row: int = 128,
    tolerance: float = 2e-3,
    least: int = 16,
    progress: Progress | None = None,
    max_tokens: int = 4096,
) -> JacobianLens:
    """Mean Jacobian from each layer's state to the last block's output, over prompts and positions.

    J_l = mean over prompts and source positions p of the sum over p' >= p of d h_last[p'] / d h_l[p]; p and p' leave
    out the first and the last positions of a prompt. Unit: last state per state. Source: Anthropic 2026 (Verbalizable
    representations form a global workspace). Cost: for each prompt d_model rows forward and backward, in passes of
    `max_tokens` tokens. Memory: one such pass, and 4 x layers x d_model^2 numbers.
    Laws: blocks that write nothing give the identity; equal to Jacobians taken coordinate by coordinate.
    Misleads: a mean hides what depends on the prompt (see `halves`); a first order map of a large change
    (docs/methods/jacobian-lens.md).
    Raises SiteUnavailable for a model that is not causal or has no unembedding, DataError where no prompt is long
    enough, OutOfRange.

    Args:
        skip_first: positions left out at the start of each prompt, where the first token's oddities live.
        skip_last: positions left out at its end.
        d_row: longer prompts are cut to so many tokens.
        tolerance: stop when the smoothed relative change by one more prompt is smaller; 0: use all prompts.
        least: prompts that are used in any case.
    """
    last = last_state(model)
    if not model.body.causal:
        raise SiteUnavailable(
            f"{model.name} is not causal: a state changes earlier positions too, and the lens sums over later ones",
            reason="not causal",
        )
    for name, value, smallest in (
        ("skip_first", skip_first, 0),
        ("skip_last", skip_last, 0),
        ("least", least, 1),
        ("d_row", d_row, 1),
        ("max_tokens", max_tokens, 1),
        ("tolerance", tolerance, 0.0),
    ):
        if value < smallest:
            raise OutOfRange(f"{name}={value}: at least {smallest}")
    rows = rows_of(model, inputs)
    prompts = [ids for i in range(len(rows)) if len(ids := rows.row(i)[:d_row]) > skip_first + skip_last]
    if not prompts:
        raise DataError(
            f"no prompt has more than skip_first + skip_last = {skip_first + skip_last} tokens; give longer ones, or "
            "skip fewer"
        )
    n, d = model.body.n_layers, model.body.d_model
    mean, halves = torch.zeros(n, d, d), torch.zeros(2, n, d, d)
    changes: list[float] = []
    converged = False
    for index, ids in enumerate(prompts):
        tokens = model.encode([ids])
        found = _of_prompt(model, tokens, last, slice(skip_first, len(ids) - skip_last), max_tokens)
        moved = (found - mean) / (index + 1)
        mean += moved
        halves[index % 2] += found
        change = (moved.norm(dim=(1, 2)) / mean.norm(dim=(1, 2)).clamp(min=1e-30)).mean().item()
        before = changes[-1] if index > 1 else change
        changes.append(float("nan") if index == 0 else SMOOTHING * before + (1 - SMOOTHING) * change)
        if progress is not None:
            progress(index + 1, len(prompts))
        converged = index + 1 >= max(2, least) and changes[-1] < tolerance
        if converged:
            break
    if progress is not None:
        progress(len(prompts), len(prompts))
    used = len(changes)
    settings = {
        "skip_first": skip_first,
        "skip_last": skip_last,
        "d_row": d_row,
        "tolerance": tolerance,
        "least": least,
    }
    return JacobianLens(
        matrices=mean,
        halves=_disagreement(halves, used, mean),
        changes=torch.tensor(changes),
        n_prompts=used,
        converged=converged,
        settings=settings,
        provenance=provenance(model, digest([prompts[:used], settings])),
    )


def _of_prompt(
    model: Model, tokens: Tokens, last: Site, span: slice, max_tokens: int
) -> Float[Tensor, "layer d_model d_model"]:
    """The Jacobian of one prompt, averaged over source positions and summed over targets."""
    n, d = model.body.n_layers, model.body.d_model
    places = [Site("resid_pre", layer) for layer in range(n)]
    step = max(1, max_tokens // tokens.width)
    found = torch.zeros(n, d, d)
    for first in range(0, d, step):
        outputs = torch.arange(first, min(first + step, d))

        def target(_: Tensor | None, values: Mapping[Site, Tensor], outputs: Tensor = outputs) -> Tensor:
            state = values[last][:, span].float().sum(1)
            return state.gather(1, outputs.to(state.device)[:, None]).sum()

        rows = tokens.repeat(len(outputs)) if len(outputs) > 1 else tokens
        slopes = backward(model, rows, target, places, reads=[last], logits="none").gradients
        for layer, site in enumerate(places):
            found[layer, outputs] = slopes[site][:, span].float().mean(1).cpu()
    return found


def _disagreement(halves: Float[Tensor, "2 layer d d"], n: int, mean: Float[Tensor, "layer d d"]) -> Tensor:
    if n < 2:
        return torch.full((len(mean),), float("nan"))
    first, second = halves[0] / ((n + 1) // 2), halves[1] / (n // 2)
    return (first - second).norm(dim=(1, 2)) / mean.norm(dim=(1, 2)).clamp(min=1e-30)
