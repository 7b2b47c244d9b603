"""A lens over a whole prompt: for every layer and position what the state would predict.

1. Run the prompts once: residual states at the wanted places, and the model's own distribution at every position.
2. Set the output of the last block to each place's states, translated by the lens, and read the logits everywhere.
3. Keep of each distribution its top tokens, its entropy, its distance from the model's own, and the answer's rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance, digest
from cutaway.engine import Run
from cutaway.errors import OutOfRange
from cutaway.figures import Figure, Heatmap
from cutaway.lenses import store
from cutaway.lenses.states import (
    MAX_TOKENS,
    Inputs,
    Lens,
    Progress,
    Steps,
    Wanted,
    chunks,
    provenance,
    read_states,
    rows_of,
    states,
    texts_of,
    unpadded,
    words_of,
)
from cutaway.models import Model, RunResult, Site, Tokens

DRAWN = 3
"""Rows whose grids are drawn."""


@dataclass(frozen=True)
class LensGrid:
    """What every state of some rows would predict. Entries after a row's last token are NaN (ids: -1)."""

    labels: tuple[str, ...]
    """Where: `resid_pre.0`, `resid_post.0`, ..., in the order of the request."""
    lens: str
    """`logit`, or the kind of the fitted lens."""
    tokens: tuple[tuple[str, ...], ...]
    """Of each row the text of its tokens."""
    answers: Int[Tensor, "row pos"]
    """The token whose rank and probability are given: the one asked for, or the model's own best at this position."""
    top_ids: Int[Tensor, "site row pos k"]
    """Most probable next tokens, best first."""
    top_probabilities: Float[Tensor, "site row pos k"]
    entropy: Float[Tensor, "site row pos"]
    """Of the read-out, nat."""
    divergence: Float[Tensor, "site row pos"]
    """KL of the read-out from the model's own distribution at the position, nat; 0 at the last place."""
    probability: Float[Tensor, "site row pos"]
    """Of the answer, 0 to 1."""
    rank: Float[Tensor, "site row pos"]
    """Of the answer: how many tokens are at least as probable; 1 where it is ahead of all others."""
    texts: dict[int, str]
    """Text of every id above; empty without a tokenizer."""
    provenance: Provenance

    def __len__(self) -> int:
        """Number of places."""
        return len(self.labels)

    def word(self, token: int) -> str:
        """Text of an id."""
        return self.texts.get(token, str(token))

    def first(self, row: int = 0, position: int = -1, rank: int = 1) -> str | None:
        """The first place from which on, up to the last, the answer stands at `rank` or better; None when never."""
        column = range(len(self.tokens[row]))[position]
        good = (self.rank[:, row, column] <= rank).tolist()
        late = next((i for i in range(len(good), 0, -1) if not good[i - 1]), 0)
        return self.labels[late] if late < len(good) else None

    def table(self) -> list[dict[str, Any]]:
        """One row a place, prompt and position."""
        return [
            {
                "site": label,
                "row": row,
                "position": p,
                "token": token,
                "top": self.word(int(self.top_ids[i, row, p, 0])),
                "probability": self.top_probabilities[i, row, p, 0].item(),
                "entropy": self.entropy[i, row, p].item(),
                "divergence": self.divergence[i, row, p].item(),
                "answer": self.word(int(self.answers[row, p])),
                "answer_probability": self.probability[i, row, p].item(),
                "answer_rank": int(self.rank[i, row, p]),
            }
            for row, tokens in enumerate(self.tokens)
            for p, token in enumerate(tokens)
            for i, label in enumerate(self.labels)
        ]

    def figures(self) -> tuple[Figure, ...]:
        """For each of the first rows its top tokens and its distance from the model's own prediction."""
        return tuple(figure for row in range(min(DRAWN, len(self.tokens))) for figure in self._of_row(row))

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        return store.save(self, path, "lens_grid")

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "LensGrid":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        return store.load(cls, path, "lens_grid", model)

    def _of_row(self, row: int) -> tuple[Heatmap, Heatmap]:
        n = len(self.tokens[row])
        order = range(len(self) - 1, -1, -1)
        axes = {
            "row_axis": "place",
            "column_axis": "token that was read",
            "rows": tuple(self.labels[i] for i in order),
            "columns": self.tokens[row],
        }

        def grid(values: Tensor) -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(values[i, row, :n].tolist()) for i in order)

        words = tuple(tuple(self.word(int(t)) for t in self.top_ids[i, row, :n, 0]) for i in order)
        which = f", prompt {row}" if len(self.tokens) > 1 else ""
        return (
            Heatmap(
                f"What each layer would predict ({self.lens} lens{which})",
                "A cell holds the most probable next token, read from the state of that place at that token; its "
                "colour is the token's probability.",
                "probability",
                values=grid(self.top_probabilities[..., 0]),
                texts=words,
                **axes,
            ),
            Heatmap(
                f"Distance from the model's own prediction ({self.lens} lens{which})",
                "KL of the read-out from the model's distribution at that token: 0 where the state says already what "
                "the model will say.",
                "nat",
                values=grid(self.divergence),
                **axes,
            ),
        )


def lens_grid(
    model: Model,
    inputs: Inputs,
    sites: Wanted | None = None,
    *,
    lens: Lens | None = None,
    answer: str | int | None = None,
    on: str = "clean",
    k: int = 5,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> LensGrid:
    """Top tokens, entropy, distance from the final prediction and the answer's rank, at every place and position.

    Read-out of a state h: the model's distribution at the position if its last block had put out h there (or the
    lens's translation of h). Divergence is KL(model's own || read-out) in nat, at the same position.
    Source: nostalgebraist 2020; Belrose et al. 2023. Cost: one forward pass, and for each place the last block and the
    logits of all positions. Laws: at the last place the read-out is the model's own, with divergence 0.
    Misleads: as the logit lens does (docs/methods/logit-lens.md).
    Raises SiteUnavailable for a model without an unembedding, UsageError for a site that is no residual state,
    TokenNotSingle for an answer of several tokens, WrongModel for a lens of another model.

    Args:
        inputs: prompts in any form; of a task, the side `on`.
        sites: residual states; None: `resid_pre.0`, then `resid_post` of every layer.
        lens: a fitted lens; None: the logit lens.
        answer: token whose rank is followed, as text or id; None: at each position the model's own best token.
        k: top tokens to keep.
        max_tokens: tokens whose logits are held at a time. The result does not depend on it.
    """
    places = states(model, sites)
    if lens is not None:
        lens.require(model)
    rows = rows_of(model, inputs, on)
    token = model.token_id(answer) if isinstance(answer, str) else answer
    size = model.body.d_vocab or 0
    if not 1 <= k <= size:
        raise OutOfRange(f"k={k}: between 1 and the {size} tokens of the vocabulary", k=k)
    if token is not None and not 0 <= token < size:
        raise OutOfRange(f"answer={token}: this model has {size} tokens (0-{size - 1})", answer=token)
    parts: list[Tensor] = []
    answers: list[Tensor] = []
    pieces = chunks(rows, max_tokens)
    steps = Steps(progress, 2 * len(pieces))
    for piece in pieces:
        some = rows.take(piece)
        own = engine.plan(model, [Run(some, reads=tuple(places), logits="all")], max_tokens=max_tokens)
        (result,) = own.execute(progress=steps.next())
        final = result.logits.float().log_softmax(-1)
        followed = final.argmax(-1) if token is None else torch.full(final.shape[:2], token, device=final.device)
        values = [translated(lens, site, result.activations[site]) for site in places]

        def reduce(
            found: RunResult, index: Tensor, final: Tensor = final, followed: Tensor = followed
        ) -> Float[Tensor, "row pos column"]:
            assert found.logits is not None  # every run here asks for logits
            at = index.to(final.device)
            return _columns(found.logits.float().log_softmax(-1), final[at], followed[at], k).cpu()

        parts.append(
            torch.stack(read_states(model, some, values, "all", reduce, max_tokens=max_tokens, progress=steps.next()))
        )
        answers.append(followed.cpu())
    return _assemble(model, rows, places, torch.cat(parts, 1), torch.cat(answers), k, lens.name if lens else "logit")


def translated(
    lens: Lens | None, site: Site, state: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """A state as its lens gives it to the head."""
    return state if lens is None else lens.translate(site, state)


def divergence(
    final: Float[Tensor, "*batch d_vocab"], found: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(final || found) of log-probabilities, nat."""
    return (final.exp() * (final - found)).where(final.isfinite(), 0.0).sum(-1)


def _columns(
    found: Float[Tensor, "row pos d_vocab"],
    final: Float[Tensor, "row pos d_vocab"],
    answers: Int[Tensor, "row pos"],
    k: int,
) -> Float[Tensor, "row pos column"]:
    """Entropy, divergence, probability and rank of the answer, top probabilities, top ids."""
    own = found.gather(2, answers[..., None])
    entropy = -(found.exp() * found).where(found.isfinite(), 0.0).sum(-1)
    rank = (found >= own).sum(-1)
    top = found.topk(k)
    four = torch.stack([entropy, divergence(final, found), own[..., 0].exp(), rank], -1)
    return torch.cat([four.double(), top.values.exp().double(), top.indices.double()], -1)


def _assemble(
    model: Model, rows: Tokens, places: Sequence[Site], columns: Tensor, answers: Tensor, k: int, lens: str
) -> LensGrid:
    values = unpadded(rows, columns, float("nan"))
    ids = values[..., 4 + k :].nan_to_num(nan=-1.0).long()
    followed = unpadded(rows, answers[None], -1)[0]
    data = digest([rows.digest, list(map(str, places)), followed.tolist()])
    return LensGrid(
        labels=tuple(map(str, places)),
        lens=lens,
        tokens=texts_of(model, rows),
        answers=followed,
        top_ids=ids,
        top_probabilities=values[..., 4 : 4 + k].float(),
        entropy=values[..., 0].float(),
        divergence=values[..., 1].float(),
        probability=values[..., 2].float(),
        rank=values[..., 3].float(),
        texts=words_of(model, torch.cat([ids.flatten(), followed.flatten()])),
        provenance=provenance(model, data),
    )
