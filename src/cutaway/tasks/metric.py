"""Metrics: the one number a pair gets from a run, with its unit and its sign.

A metric is a function of two scores of a row, the answer's and the foil's, read at the end of the prompt. For answers
of several tokens a score is the summed log-probability of the tokens, log p(a_1..a_k | prompt). `kl` looks at the whole
next-token distribution instead and compares it with that of the clean unedited run.

| name | value | unit | sign |
|---|---|---|---|
| logit_diff | logit(answer) - logit(foil) | nat | + |
| logprob_diff | log p(answer) - log p(foil) | nat | + |
| prob | p(answer) | probability | + |
| accuracy | 1 where p(answer) > p(foil), else 0 | share | + |
| kl | KL(clean unedited run, this run) at the end of the prompt | nat | - |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UnknownName, did_you_mean

Scores = Float[Tensor, " example"]


def _difference(answer: Scores, foil: Scores) -> Scores:
    return answer - foil


def _probability(answer: Scores, foil: Scores) -> Scores:  # noqa: ARG001
    return answer.exp()


def _right(answer: Scores, foil: Scores) -> Scores:
    return (answer > foil).to(answer.dtype)


@dataclass(frozen=True)
class Metric:
    """What a task measures, as data: results carry it, reports print it."""

    name: str
    """Name by which tasks and files know it."""
    unit: str
    """'nat', 'probability' or 'share'."""
    sign: int
    """+1: larger is more of the behavior; -1: larger is further from it."""
    doc: str
    """One sentence: the quantity, and when it misleads."""
    reads: Literal["logit", "logprob", "distribution"]
    """What a row's score is: a raw logit, a (summed) log-probability, or the whole next-token distribution."""
    differentiable: bool
    """Whether a gradient of it means anything."""
    of: Callable[[Scores, Scores], Scores] | None = None
    """Value of a pair from the scores of answer and foil; None where the distribution is compared."""

    @property
    def single_token(self) -> bool:
        """Whether answer and foil must be one token each."""
        return self.reads == "logit"


_DOCS = {
    "logit_diff": "Logit of the answer minus logit of the foil at the end of the prompt; blind to all other tokens.",
    "logprob_diff": "Log-probability of the answer minus that of the foil, each summed over its tokens; favours the "
    "shorter of two unequal answers.",
    "prob": "Probability of the answer, the product over its tokens; near 0 and 1 effects look small.",
    "accuracy": "1 where the answer is more probable than the foil, else 0 (also at a tie); hides changes that flip no "
    "pair.",
    "kl": "KL divergence of the run's next-token distribution from that of the clean unedited run at the end of the "
    "prompt, sum p_clean (log p_clean - log p_run); 0 for the clean run; any change counts, wanted or not.",
}

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", "nat", 1, _DOCS["logit_diff"], "logit", True, _difference),
        Metric("logprob_diff", "nat", 1, _DOCS["logprob_diff"], "logprob", True, _difference),
        Metric("prob", "probability", 1, _DOCS["prob"], "logprob", True, _probability),
        Metric("accuracy", "share", 1, _DOCS["accuracy"], "logprob", False, _right),
        Metric("kl", "nat", -1, _DOCS["kl"], "distribution", True),
    )
}
"""All metrics by name."""


def metric_named(name: str) -> Metric:
    """The metric of that name. Raises UnknownName.

    >>> metric_named("kl").sign
    -1
    """
    if name not in METRICS:
        raise UnknownName(f"metric {name!r}: no such metric.{did_you_mean(name, METRICS)}", name=name)
    return METRICS[name]
