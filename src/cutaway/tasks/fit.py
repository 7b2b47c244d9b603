"""Which pairs of a task fit a model's tokenizer, and how their answers are then scored.

1. A pair that does not align in the model's tokens, or is longer than its context, is dropped, with its reason.
2. Where the metric compares single tokens (`logit_diff`) and some answer or foil of what is left has several, the task
   is scored as sequences: `logprob_diff`, which sums over the tokens of each answer.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cutaway.errors import CutawayError, DataError, Misaligned, OutOfRange, TokenizerUnfit
from cutaway.models.model import Model
from cutaway.stats import clusters_needed
from cutaway.tasks.align import Aligned, align_pair
from cutaway.tasks.metric import metric_named
from cutaway.tasks.pair import Pair
from cutaway.tasks.task import Task

KINDS = {
    "TokenizerUnfit": "with unknown words",
    "AnswersEqual": "with equal answers",
    "OutOfRange": "longer than the context",
}


@dataclass(frozen=True)
class Fit:
    """A task as it fits a model."""

    task: Task
    """The pairs that align, with the metric that suits their answers; the task itself where nothing had to change."""
    total: int
    """Pairs before."""
    dropped: Mapping[str, str]
    """Id of each dropped pair -> why."""
    kinds: Mapping[str, int]
    """Kind of error -> pairs dropped for it."""
    n_long: int
    """Pairs kept whose answer or foil has several tokens."""
    metric: str
    """The task's own metric, before."""

    @property
    def summary(self) -> str:
        """One sentence: what was dropped, and how answers are scored."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        parts = [f"{len(self.task)} of {self.total} pairs align" + (f" (dropped: {kinds})" if kinds else "")]
        if self.task.metric != self.metric:
            parts.append(
                f"{self.n_long} have an answer or foil of several tokens, so that the metric is {self.task.metric} "
                f"instead of {self.metric}"
            )
        return "; ".join(parts) + "."


def fit(task: Task, model: Model, *, least: int | None = None) -> Fit:
    """The pairs that align in the model's tokens, and the metric that their answers need. Cost: tokenising.

    `least`: clusters that must be left; None: what a study needs, as many as an interval takes (6; all, when the task
    has fewer) and a pair in every split that had one. Raises Misaligned, with the counts, when fewer are left;
    WrongModel, and TokenizerUnfit for a model without a tokenizer.
    """
    task.require_vocabulary(model)
    if model.tokenizer is None and task.tokenizer is None:
        raise TokenizerUnfit(f"task {task.name!r}: text needs a tokenizer, and {model.name} has none; load one with it")
    kept, dropped, n_long = [], {}, 0
    kinds: Counter[str] = Counter()
    for pair in task.pairs:
        try:
            found = _within(align_pair(pair, model), pair, model)
        except (DataError, TokenizerUnfit, OutOfRange) as error:
            dropped[pair.id] = str(error)
            kinds[_kind(error)] += 1
            continue
        kept.append(pair)
        n_long += max(len(found.answer), len(found.foil)) > 1
    lost = [split for split, count in task.splits.items() if count and all(pair.split != split for pair in kept)]
    n_clusters = len({pair.cluster for pair in kept})
    needed = max(1, min(clusters_needed(), len(task.clusters)) if least is None else least)
    if (lost and least is None) or n_clusters < needed:
        raise Misaligned(
            f"task {task.name!r}: {len(kept)} of {len(task)} pairs (clusters: {n_clusters}) fit the tokenizer of "
            f"{model.name}, and {needed} or more clusters are needed, with pairs in every split"
            + (f" ({lost[0]} has none)" if lost else "")
            + "; make the pairs for this model, or use another. First that did not fit: "
            + next(iter(dropped.values()), "none"),
            task=task.name,
            found=len(kept),
            wanted=needed,
            tried=len(task),
        )
    single = metric_named(task.metric).single_token
    metric = "logprob_diff" if single and n_long else task.metric
    changed = bool(dropped) or metric != task.metric
    fitting = replace(task, pairs=tuple(kept), metric=metric) if changed else task
    return Fit(fitting, len(task), dropped, dict(kinds), n_long, task.metric)


def fitted(task: Task, model: Model, *, least: int | None = None) -> Task:
    """The task as it fits the model; its description says what `fit` dropped or changed. Raises what `fit` raises."""
    found = fit(task, model, least=least)
    if found.task is task:
        return task
    return replace(found.task, description=f"{task.description} [{Path(model.name).name}: {found.summary}]".strip())


def _within(found: Aligned, pair: Pair, model: Model) -> Aligned:
    """Refuse (OutOfRange) a prompt that, with its answer, is longer than the model's context."""
    n = len(found.clean) + max(len(found.answer), len(found.foil))
    limit = None if model.anatomy is None else model.anatomy.length
    if limit is not None and n > limit:
        raise OutOfRange(
            f"pair {pair.id!r}: {n} tokens with its answer, and the context of {model.name} is {limit}; shorten the "
            "prompt, or load a model with a longer context",
            length=n,
            limit=limit,
        )
    return found


def _kind(error: CutawayError) -> str:
    """What to count a refusal as."""
    if isinstance(error, Misaligned):
        if "clean" in error.fields and "role" not in error.fields:
            return "of unequal length"
        return "with a position at different tokens" if "role" in error.fields else "whose answer changes the prompt"
    return KINDS.get(type(error).__name__, "with a position on no token")
