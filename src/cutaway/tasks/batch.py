"""A task as token rows of one model, and the metric's arithmetic on their logits.

Two layouts:

- answers and foils of one token: row i is the prompt of pair i; both are read from the logits at its end;
- several tokens: 2n rows, prompt + answer of every pair, then prompt + foil of every pair. Position `end` stays the
  last token of the prompt, and the score of a row is the summed log-probability of what follows it.

`row_scores` looks at each row alone, so that rows may be computed in chunks of any size and in any order; `combine`
puts the scores of all rows together to one value a pair.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.axes import Logits, PerExample
from cutaway.errors import UsageError
from cutaway.models.tokens import Tokens
from cutaway.tasks.metric import Metric

AnswerLogits = Float[Tensor, "rows answer_pos d_vocab"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Clean and corrupt rows that agree token by token in length and in every named position."""

    clean: Tokens
    corrupt: Tokens
    metric: Metric
    ids: tuple[str, ...]
    """Of each pair its id."""
    clusters: tuple[str, ...]
    """Of each pair its cluster: the unit of every interval and test."""
    answers: tuple[tuple[int, ...], ...]
    """Of each pair the tokens of its answer."""
    foils: tuple[tuple[int, ...], ...]
    reference: Float[Tensor, "example d_vocab"] | None = None
    """For `kl`: log-probabilities of the clean unedited run at the end of each prompt. Set by `with_reference`."""

    @property
    def n(self) -> int:
        """Pairs. Rows are n or 2n."""
        return len(self.ids)

    @property
    def stacked(self) -> bool:
        """Whether answers and foils are rows of their own (2n rows)."""
        return len(self.clean) != self.n

    @property
    def roles(self) -> tuple[str, ...]:
        """Named positions, `end` among them."""
        return tuple(self.clean.roles)

    @cached_property
    def logits(self) -> str | tuple[tuple[int, ...], ...]:
        """What a run of these rows must return: 'end', or for each row the positions that predict its answer's tokens.

        Rows with a shorter answer repeat their last position, so that the result is a rectangle.
        """
        if not self.stacked:
            return "end"
        ends = self.clean.roles["end"]
        return tuple(
            tuple(end + min(step, len(targets) - 1) for step in range(self._d_answer))
            for end, targets in zip(ends, self._targets)
        )

    @cached_property
    def vocab(self) -> tuple[tuple[int, ...], ...] | None:
        """For each row the token ids whose logits the metric reads, answer and foil; None where it reads them all.

        Runs that return these alone spare the rest of the unembedding; `picked_scores` takes their logits.
        """
        if self.stacked or self.metric.reads != "logit":
            return None
        return tuple((answer[0], foil[0]) for answer, foil in zip(self.answers, self.foils))

    def picked_scores(self, logits: Float[Tensor, "rows answer_pos id"]) -> Float[Tensor, "rows score"]:
        """Scores of some rows from their logits at `self.logits` of the ids in `self.vocab`, as `row_scores` gives."""
        return _wide(logits)[:, -1]

    def with_reference(self, logits: Float[Tensor, "*example d_vocab"]) -> "Batch":
        """This batch with the logits of the clean unedited run as what `kl` compares with, one row a pair, at `end`.

        Both runs of a kl task are measured against it: the clean one gives 0, the corrupt one KL(clean, corrupt), and
        an edited run of either kind its distance from the clean behavior.
        """
        rows = _wide(logits).detach().reshape(-1, logits.shape[-1])
        if len(rows) != self.n:
            raise UsageError(
                f"reference: {len(rows)} rows of logits for {self.n} pairs; "
                "give the clean run's logits at 'end', one row a pair"
            )
        return replace(self, reference=rows.log_softmax(-1))

    def row_scores(
        self, logits: Float[Tensor, "rows *answer_pos d_vocab"], rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows score"]:
        """Scores of some rows from their logits at `self.logits`; row-local, in float32 or wider.

        One token: columns are the answer's and the foil's logit or log-probability. Several: one column, the summed
        log-probability. kl: one column, the divergence; raises UsageError without a reference.
        """
        values = _wide(logits)
        values = values.unsqueeze(1) if values.ndim == 2 else values
        if self.metric.reads == "distribution":
            return self._divergence(values[:, -1], rows).unsqueeze(1)
        if self.metric.reads == "logprob":
            values = values.log_softmax(-1)
        index = rows.to(values.device)
        if not self.stacked:
            return values[:, -1].gather(1, self._pair_targets.to(values.device)[index])
        targets, used = (item.to(values.device)[index] for item in self._row_targets)
        found = values.gather(2, targets.unsqueeze(2)).squeeze(2)
        return found.where(used, 0.0).sum(1, keepdim=True)

    def combine(self, scores: Float[Tensor, "row score"]) -> PerExample:
        """The metric's value of each pair, from the scores of all rows in row order."""
        if len(scores) != len(self.clean):
            raise UsageError(
                f"combine: scores of {len(scores)} rows for a batch of {len(self.clean)}; give all rows, in order"
            )
        if self.metric.of is None:
            return scores[:, 0]
        if self.stacked:
            return self.metric.of(scores[: self.n, 0], scores[self.n :, 0])
        return self.metric.of(scores[:, 0], scores[:, 1])

    def values(self, logits: Float[Tensor, "row *answer_pos d_vocab"]) -> PerExample:
        """The metric's value of each pair, from the logits of all rows at `self.logits`."""
        return self.combine(self.row_scores(logits, torch.arange(len(logits))))

    def select(self, logits: Logits) -> AnswerLogits:
        """From the logits of whole rows, padding included, those that the metric reads. Keeps gradients."""
        columns = (
            self.clean.columns("end")
            if isinstance(self.logits, str)
            else [[position + offset for position in row] for row, offset in zip(self.logits, self.clean.offsets)]
        )
        index = torch.tensor(columns, device=logits.device)
        return logits.gather(1, index.unsqueeze(2).expand(-1, -1, logits.shape[2]))

    def _divergence(self, logits: Float[Tensor, "rows d_vocab"], rows: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        if self.reference is None:
            raise UsageError(
                "kl: this batch does not know the clean run yet; run the clean rows once without edits and use "
                "batch.with_reference(logits at 'end')"
            )
        found = logits.log_softmax(-1)
        clean = self.reference.to(found.device, found.dtype)[rows.to(found.device)]
        return (clean.exp() * (clean - found)).where(clean.isfinite(), 0.0).sum(-1)

    @property
    def _targets(self) -> tuple[tuple[int, ...], ...]:
        """For each row of the stacked layout the tokens whose log-probability is summed."""
        return self.answers + self.foils

    @property
    def _d_answer(self) -> int:
        return max(map(len, self._targets))

    @cached_property
    def _pair_targets(self) -> Int[Tensor, "example 2"]:
        return torch.tensor([[a[0], f[0]] for a, f in zip(self.answers, self.foils)])

    @cached_property
    def _row_targets(self) -> tuple[Int[Tensor, "row answer_pos"], Bool[Tensor, "row answer_pos"]]:
        width = self._d_answer
        ids = torch.tensor([list(row) + [row[-1]] * (width - len(row)) for row in self._targets])
        used = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in self._targets])
        return ids, used


def _wide(values: Tensor) -> Tensor:
    """Half precision to float32: differences of logits need the digits."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
