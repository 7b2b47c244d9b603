"""Tuned lens: for each layer an affine map, fitted so that its state predicts what the model finally predicts.

    logits of layer l = head(h + A_l h + b_l)          A, b begin at zero: the logit lens

1. Run a batch of rows: the state that enters each block, and the model's own distribution at every position.
2. For each layer set the output of the last block to its translated states; the loss is KL(own || read-out), averaged
   over the tokens. Its slope at the translated states comes from one backward pass through the head alone, and gives
   those of A and b: slope^T h and the sum of the slopes.
3. Step with momentum, weight decay (towards the logit lens), a limit on each layer's slope, and a rate that falls to
   zero. Layers do not touch each other.
4. Measure on rows that were held out: the same divergence for the fitted lens and for the logit lens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance, digest, require_same_model
from cutaway.engine import Run
from cutaway.errors import OutOfRange, UnknownName
from cutaway.figures import Figure, Lines
from cutaway.lenses import store
from cutaway.lenses.grid import divergence
from cutaway.lenses.states import MAX_TOKENS, Progress, chunks, last_state, level, provenance, read_states
from cutaway.lenses.texts import Source, open_rows
from cutaway.models import Model, RunResult, Site, Tokens
from cutaway.models.gradients import backward
from cutaway.models.taps import Resume

OPTIMIZERS = ("sgd", "adam")
MOMENTUM, WEIGHT_DECAY, LIMIT = 0.9, 1e-3, 1.0
"""Of the paper's recipe; the limit is on the norm of one layer's slope."""
RATES = {"sgd": 0.1, "adam": 1e-3}


@dataclass(frozen=True)
class TunedLens:
    """For each block an affine map of the state that enters it."""

    weights: Float[Tensor, "layer d_model d_model"]
    """A: what is added to state h of the input of block l is A_l h + b_l."""
    biases: Float[Tensor, "layer d_model"]
    held_out: Float[Tensor, "layer row"]
    """KL(model's own || this lens) on rows that were held out, mean over their tokens, nat. No rows: not measured
    here."""
    baseline: Float[Tensor, "layer row"]
    """The same of the logit lens."""
    losses: Float[Tensor, "layer step"]
    """The same while fitting, over each step's rows."""
    settings: dict[str, Any]
    provenance: Provenance
    name: str = field(default="tuned")

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return len(self.weights)

    @property
    def labels(self) -> tuple[str, ...]:
        """The states that are translated."""
        return tuple(f"resid_pre.{layer}" for layer in range(self.n_layers))

    def require(self, model: Model) -> None:
        """Refuse another model (WrongModel)."""
        require_same_model(self.provenance.model, model.digest, "this tuned lens")

    def translate(self, site: Site, state: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """h + A h + b of the layer; what leaves the last block is left as it is.

        Raises UsageError for a state inside a block, OutOfRange for a layer that the model does not have.
        """
        layer = level(self.n_layers, site)
        if layer == self.n_layers:
            return state
        weight, bias = self.weights[layer].to(state.device), self.biases[layer].to(state.device)
        return (state.float() + state.float() @ weight.T + bias).to(state.dtype)

    def table(self) -> list[dict[str, Any]]:
        """One row a layer: held-out divergence of this lens and of the logit lens, and the share that is left."""
        rows = []
        for layer, label in enumerate(self.labels):
            tuned, plain = self.held_out[layer].mean().item(), self.baseline[layer].mean().item()
            rows.append(
                {
                    "site": label,
                    "divergence": tuned,
                    "logit_lens": plain,
                    "share_left": tuned / plain if plain else float("nan"),
                    "better_rows": (self.held_out[layer] < self.baseline[layer]).double().mean().item(),
                }
            )
        return rows

    def figures(self) -> tuple[Figure, ...]:
        """Held-out divergence by layer beside the logit lens, and the losses of the fit."""
        found: list[Figure] = []
        if self.held_out.shape[1]:
            lines = {"logit lens": self.baseline, "tuned lens": self.held_out}
            found.append(
                Lines(
                    "Distance from the model's own prediction, on rows held out",
                    "KL of each layer's read-out from the model's own distribution at the same token; lower is nearer.",
                    "nat",
                    "state",
                    tuple(map(float, range(self.n_layers))),
                    {name: tuple(values.mean(1).tolist()) for name, values in lines.items()},
                    self.labels,
                )
            )
        if self.losses.shape[1]:
            found.append(
                Lines(
                    "Loss while fitting",
                    "The same distance on the rows of each step; it should fall and become flat.",
                    "nat",
                    "step",
                    tuple(map(float, range(self.losses.shape[1]))),
                    {label: tuple(values.tolist()) for label, values in zip(self.labels, self.losses)},
                )
            )
        return tuple(found)

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        return store.save(self, path, "tuned_lens")

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "TunedLens":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        return store.load(cls, path, "tuned_lens", model)


def fit_tuned_lens(
    model: Model,
    source: Source,
    *,
    steps: int = 250,
    tokens_a_step: int = 4096,
    optimizer: str = "sgd",
    rate: float | None = None,
    d_row: int = 128,
    n_held_out: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> TunedLens:
    """For each layer the affine map h + A h + b whose read-out is nearest to the model's final distribution.

    Minimises KL(model's own || head(h + A h + b)) at the same position, nat a token, from A = b = 0; Nesterov momentum
    0.9, weight decay 1e-3, slopes of a layer limited to norm 1, a rate that falls linearly. Source: Belrose et al. 2023
    (2303.08112). Cost: a step is one forward pass of its rows, and for each layer the last block and the head, forward
    and backward. Memory: one chunk's states of all layers and its logits, and 3 x layers x d_model^2 numbers.
    Laws: zero steps are the logit lens; what leaves the last block is the model itself; layers do not touch each other.
    Misleads: a lens is fitted to predict the answer, so it may compute what the layer does not yet have; held-out rows
    are neighbours of the others in the same text (docs/methods/tuned-lens.md).
    Raises SiteUnavailable for a model without an unembedding, DataError for fewer than ten rows, UnknownName,
    OutOfRange.

    Args:
        source: token rows, or text files that are cut into rows of `d_row` tokens. One row in ten is held out.
        optimizer: "sgd" (the paper's) or "adam", which takes fewer steps on small models.
        rate: at the first step; None: 0.1 for sgd, 0.001 for adam.
        max_tokens: tokens whose logits are held at a time; it does not change the steps.
    """
    if optimizer not in OPTIMIZERS:
        raise UnknownName(f"optimizer={optimizer!r}: it is one of {', '.join(OPTIMIZERS)}", name=optimizer)
    rate = RATES[optimizer] if rate is None else rate
    for name, value, least in (("steps", steps, 0), ("tokens_a_step", tokens_a_step, 1)):
        if value < least:
            raise OutOfRange(f"{name}={value}: at least {least}")
    if not rate > 0:
        raise OutOfRange(f"rate={rate}: a positive number")
    last_state(model)
    rows = open_rows(model, source, d_row=d_row, n_held_out=n_held_out)
    n, d = model.body.n_layers, model.body.d_model
    weights, biases = torch.zeros(n, d, d, device=model.device), torch.zeros(n, d, device=model.device)
    parameters = [*weights.unbind(), *biases.unbind()]
    stepper = _stepper(optimizer, parameters, rate)
    losses = torch.zeros(n, steps)
    batches = rows.batches(tokens_a_step, torch.Generator().manual_seed(seed))
    for step in range(steps):
        slopes = [torch.zeros_like(parameter) for parameter in parameters]
        losses[:, step] = _accumulate(model, next(batches), weights, biases, slopes, max_tokens)
        for layer in range(n):
            norm = torch.sqrt(slopes[layer].square().sum() + slopes[n + layer].square().sum())
            for which in (layer, n + layer):
                parameters[which].grad = slopes[which] * min(1.0, LIMIT / max(norm.item(), 1e-12))
        for group in stepper.param_groups:
            group["lr"] = rate * (1 - step / steps)
        stepper.step()
        if progress is not None:
            progress(step + 1, steps + 1)
    settings = {
        "steps": steps,
        "tokens_a_step": tokens_a_step,
        "optimizer": optimizer,
        "rate": rate,
        "held_out_rows": len(rows.held_out),
    }
    made = provenance(model, digest([rows.digest, settings]), seed)
    nothing = torch.zeros(n, 0)
    lens = TunedLens(weights.cpu(), biases.cpu(), nothing, nothing, losses, settings, made)
    held_out, baseline = (
        measured(model, lens, rows.held_out, max_tokens),
        measured(model, None, rows.held_out, max_tokens),
    )
    if progress is not None:
        progress(steps + 1, steps + 1)
    return TunedLens(lens.weights, lens.biases, held_out, baseline, losses, settings, made)


def measured(
    model: Model, lens: "TunedLens | None", rows: Tokens, max_tokens: int = MAX_TOKENS
) -> Float[Tensor, "layer row"]:
    """KL(model's own || read-out) of the state that enters each block, mean over each row's tokens, nat."""
    found = []
    for some, values, final in _forward(model, rows, max_tokens):
        moved = [values[site] if lens is None else lens.translate(site, values[site]) for site in values]
        real = some.mask

        def reduce(result: RunResult, index: Tensor, final: Tensor = final, real: Tensor = real) -> Tensor:
            assert result.logits is not None
            mask = real[index].to(result.logits.device)
            each = divergence(final[index.to(final.device)], result.logits.float().log_softmax(-1))
            return (each.where(mask, 0.0).sum(1) / mask.sum(1)).cpu()

        found.append(torch.stack(read_states(model, some, moved, "all", reduce, max_tokens=max_tokens)))
    return torch.cat(found, 1)


def _stepper(optimizer: str, parameters: Sequence[Tensor], rate: float) -> torch.optim.Optimizer:
    if optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    return torch.optim.Adam(parameters, lr=rate, weight_decay=WEIGHT_DECAY)


def _forward(model: Model, rows: Tokens, max_tokens: int) -> Iterator[tuple[Tokens, dict[Site, Tensor], Tensor]]:
    """In pieces: rows, the state that enters each block, and the model's own log-probabilities."""
    places = tuple(Site("resid_pre", layer) for layer in range(model.body.n_layers))
    for piece in chunks(rows, max_tokens):
        some = rows.take(piece)
        (result,) = engine.plan(model, [Run(some, reads=places, logits="all")], max_tokens=max_tokens).execute()
        values = {site: result.activations[site] for site in places}
        yield some, values, result.logits.float().log_softmax(-1)


def _accumulate(
    model: Model, rows: Tokens, weights: Tensor, biases: Tensor, slopes: Sequence[Tensor], max_tokens: int
) -> Float[Tensor, " layer"]:
    """Add the slopes of the mean loss over all tokens of the rows; returns that loss of each layer."""
    n, total = model.body.n_layers, sum(rows.lengths)
    losses = torch.zeros(n)
    last = last_state(model)
    for some, values, final in _forward(model, rows, max_tokens):
        mask = some.mask.to(final.device)
        begin = Site("resid_pre", n - 1)
        resume = Resume(n - 1, values[begin]) if n > 1 and not model.body.resume else None
        for layer, value in enumerate(values.values()):
            state = value.float()
            moved = (state + state @ weights[layer].T + biases[layer]).to(model.dtype)

            def loss(logits: Tensor | None, _: Any, mask: Tensor = mask, final: Tensor = final) -> Tensor:
                assert logits is not None  # all are asked for
                return divergence(final, logits.float().log_softmax(-1)).where(mask, 0.0).sum() / total

            edit = last.apply(lambda _, moved=moved: moved)
            found = backward(model, some, loss, [last], logits="all", edits=[edit], resume=resume)
            slope = found.gradients[last].float().masked_fill(~mask[..., None], 0.0)
            slopes[layer].add_(torch.einsum("bpi,bpj->ij", slope, state))
            slopes[n + layer].add_(slope.sum((0, 1)))
            losses[layer] += found.metric
    return losses
