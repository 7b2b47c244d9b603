"""Logit lens: what the model would answer if the residual stream of a layer were the last one.

1. Keep the residual stream at the wanted places and one position.
2. For each, run the model with the output of its last block, at that position, set to the kept value.
3. Read the logits there: the model's own final norm, unembedding, scales and soft-caps have been applied, whatever they
   are. The last place is the model itself.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.artifacts import Provenance, digest
from cutaway.errors import OutOfRange, UnknownName
from cutaway.figures import Figure, Lines
from cutaway.lenses import store
from cutaway.lenses.grid import translated
from cutaway.lenses.states import Lens, Wanted, provenance, read_states, states, words_of
from cutaway.models import Model, RunResult, Site, Tokens
from cutaway.tasks import Batch, Task

FIXED = 3
"""Columns before the top tokens in a reduced row: answer logit, foil logit, log-probability of the answer."""


@dataclass(frozen=True)
class LogitLens:
    """The next-token read-out of residual states at one position, per place and example."""

    labels: tuple[str, ...]
    """Where: `resid_pre.0`, `resid_post.0`, ..., in the order of the request."""
    position: str
    """Role or index that was read."""
    on: str
    """Side of the pairs: `clean` or `corrupt`."""
    difference: Float[Tensor, "site example"]
    """Logit of the answer minus logit of the foil, nat. Positive: this state already prefers the answer."""
    probability: Float[Tensor, "site example"]
    """Probability of the answer's first token, 0 to 1."""
    top_ids: Int[Tensor, "site example k"]
    """Most probable next tokens, best first."""
    top_probabilities: Float[Tensor, "site example k"]
    texts: Mapping[int, str]
    """Text of every id in `top_ids`; empty without a tokenizer."""
    clusters: tuple[str, ...]
    ids: tuple[str, ...]
    provenance: Provenance
    lens: str = "logit"
    """`logit`, or the kind of the fitted lens that was used."""

    def __len__(self) -> int:
        """Number of places."""
        return len(self.labels)

    def table(self) -> list[dict[str, Any]]:
        """One row a place: mean difference, mean probability, share that prefers the answer, commonest first token."""
        rows = []
        for i, label in enumerate(self.labels):
            best, count = Counter(self.top_ids[i, :, 0].tolist()).most_common(1)[0]
            rows.append(
                {
                    "site": label,
                    "difference": self.difference[i].mean().item(),
                    "probability": self.probability[i].mean().item(),
                    "prefers_answer": (self.difference[i] > 0).double().mean().item(),
                    "commonest": self.texts.get(best, str(best)),
                    "commonest_share": count / self.top_ids.shape[1],
                }
            )
        return rows

    def figures(self) -> tuple[Figure, ...]:
        """Preference and probability of the answer by place, averaged over the examples."""
        x = tuple(map(float, range(len(self))))
        axes = {"x_axis": "place", "x": x, "x_labels": self.labels}
        return (
            Lines(
                f"Answer minus foil by place ({self.lens} lens)",
                "Positive: a state of this place, read as if it were the last, prefers the answer.",
                "nat",
                lines={"difference": tuple(self.difference.mean(1).tolist())},
                **axes,
            ),
            Lines(
                f"Probability of the answer by place ({self.lens} lens)",
                "Of the answer's first token, in the read-out of each place.",
                "probability",
                lines={"answer": tuple(self.probability.mean(1).tolist())},
                **axes,
            ),
        )

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        return store.save(self, path, "logit_lens")

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "LogitLens":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        return store.load(cls, path, "logit_lens", model)


def logit_lens(
    model: Model,
    task: Task | Batch,
    sites: Wanted | None = None,
    *,
    lens: Lens | None = None,
    position: str | int = "end",
    on: str = "clean",
    k: int = 5,
    progress: Callable[[int, int], None] | None = None,
    max_tokens: int = 4096,
) -> LogitLens:
    """Answer minus foil, probability of the answer, and the top tokens, read from residual states at one position.

    Read-out of state h: the model's logits at the position if its last block had put out h there. Difference in nat,
    positive where h prefers the answer. Source: nostalgebraist 2020.
    Cost: one forward pass, and for each place the last block and one column of logits.
    Law: at the last block's output it is the model itself.
    Misleads: early states live in another basis (a tuned lens corrects that); a state may carry the answer in a form
    that only later layers read out; a norm makes small states loud (docs/methods/logit-lens.md).
    Raises SiteUnavailable for a model without an unembedding, UsageError for a site that is not a residual state.
    Answers of several tokens: their first token is read, at the end of the prompt.

    Args:
        sites: residual states; None: `resid_pre.0`, then `resid_post` of every layer.
        lens: a fitted lens (tuned, Jacobian) that translates each state first; None: the state as it is.
        position: a role or an index; the same token is read and predicted from.
        k: top tokens to keep.
    """
    if on not in ("clean", "corrupt"):
        raise UnknownName(f"on={on!r}: it is one of clean, corrupt", name=on)
    batch = task.encode(model) if isinstance(task, Task) else task
    places = states(model, sites)
    if lens is not None:
        lens.require(model)
    if not 1 <= k <= (model.body.d_vocab or 0):
        raise OutOfRange(f"k={k}: between 1 and the {model.body.d_vocab} tokens of the vocabulary", k=k)
    rows = (batch.clean if on == "clean" else batch.corrupt).take(range(batch.n))
    wanted = position if isinstance(position, str) else tuple((place[0],) for place in rows.positions(position))
    rows.positions(position)  # refuses one that the rows do not have
    acts = model.capture(rows, places)
    values = [translated(lens, site, acts[site]) for site in places]
    targets = torch.tensor([[answer[0], foil[0]] for answer, foil in zip(batch.answers, batch.foils)])
    reduced = read_states(
        model,
        rows,
        values,
        wanted,
        lambda result, index: _read_out(result, targets[index], k),
        at=position,
        max_tokens=max_tokens,
        progress=progress,
    )
    return _assemble(model, batch, rows, places, torch.stack(reduced).cpu(), k, str(position), on, lens)


def _read_out(result: RunResult, targets: Int[Tensor, "row 2"], k: int) -> Float[Tensor, "row column"]:
    """Of each row the answer's and the foil's logit, the answer's log-probability, top log-probabilities, top ids."""
    assert result.logits is not None  # every run here asks for logits
    logits = result.logits.float().reshape(len(targets), -1)
    chosen = logits.gather(1, targets.to(logits.device))
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(k)
    answer = logprobs.gather(1, targets[:, :1].to(logits.device))
    return torch.cat([chosen.double(), answer.double(), top.values.double(), top.indices.double()], 1)


def _assemble(
    model: Model,
    batch: Batch,
    rows: Tokens,
    places: Sequence[Site],
    reduced: Tensor,
    k: int,
    position: str,
    on: str,
    lens: Lens | None,
) -> LogitLens:
    top_ids = reduced[:, :, FIXED + k :].long()
    data = digest([rows.digest, position, batch.answers, batch.foils])
    return LogitLens(
        labels=tuple(map(str, places)),
        position=position,
        on=on,
        difference=(reduced[:, :, 0] - reduced[:, :, 1]).float(),
        probability=reduced[:, :, 2].exp().float(),
        top_ids=top_ids,
        top_probabilities=reduced[:, :, FIXED : FIXED + k].exp().float(),
        texts=words_of(model, top_ids),
        clusters=batch.clusters,
        ids=batch.ids,
        provenance=provenance(model, data),
        lens="logit" if lens is None else lens.name,
    )
