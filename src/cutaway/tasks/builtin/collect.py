"""What the built-in tasks share: filling templates with spans, and choosing the pairs that fit a tokenizer."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from cutaway.errors import DataError, Misaligned, OutOfRange, TokenizerUnfit
from cutaway.models.model import Model
from cutaway.tasks.align import align_pair, require_single
from cutaway.tasks.metric import metric_named
from cutaway.tasks.pair import Pair, assign_splits

Candidates = Mapping[str, Iterator[Pair]]
"""Cluster -> pairs of that cluster, in a seeded random order; finite."""


def fill(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """A template with its {slots} filled, and the span of characters of each slot (the last, where one stands twice).

    >>> fill("The {subject} sat.", {"subject": "girl"})
    ('The girl sat.', {'subject': (4, 8)})
    """
    text, spans = "", {}
    for part in re.split(r"(\{\w+\})", template):
        if part.startswith("{"):
            spans[part[1:-1]] = (len(text), len(text) + len(words[part[1:-1]]))
            text += words[part[1:-1]]
        else:
            text += part
    return text, spans


def contrast(
    template: str,
    clean: Mapping[str, str],
    corrupt: Mapping[str, str],
    answers: tuple[str, str],
    roles: Iterable[str] | Mapping[str, str],
) -> Pair:
    """A pair from one template, filled twice; `answers` are answer and foil, each with its leading space.

    `roles` names the slots that are positions; a mapping gives them another name (role -> slot).

    >>> contrast("The {who} sat.", {"who": "girl"}, {"who": "boy"}, (" She", " He"), ["who"]).positions
    {'who': (4, 8)}
    """
    slots = roles if isinstance(roles, Mapping) else {role: role for role in roles}
    (text, where), (other, other_where) = fill(template, clean), fill(template, corrupt)
    spans, other_spans = ({role: found[slot] for role, slot in slots.items()} for found in (where, other_where))
    return Pair(text, other, *answers, spans, other_spans)


def collect(
    task: str, candidates: Candidates, model: Model, *, n: int, seed: int, metric_name: str
) -> tuple[Pair, ...]:
    """`n` pairs that align for the model's tokenizer, taken from the clusters in turn, with ids, clusters and splits.

    Clusters are used up to `n`, so that a small task still has as many as it can. Raises Misaligned with the counts
    when fewer than `n` candidates fit, and OutOfRange for n < 1.
    """
    if n < 1:
        raise OutOfRange(f"n={n}: a task has at least one pair", n=n)
    chosen: list[Pair] = []
    tried = _Tried(model, metric_name)
    open_clusters = list(candidates)
    while open_clusters and len(chosen) < n:
        for cluster in open_clusters[: n - len(chosen)]:
            found = next((pair for pair in candidates[cluster] if tried.fits(replace(pair, id=cluster))), None)
            if found is None:
                open_clusters.remove(cluster)
            else:
                chosen.append(replace(found, cluster=cluster))
    if len(chosen) < n:
        fewer = f"ask for at most {len(chosen)}, or " if chosen else ""
        raise Misaligned(
            f"task {task!r}: {len(chosen)} of {n} pairs fit the tokenizer of {model.name} ({tried.n} candidates "
            f"tried); {fewer}write a task of your own for this model. First that did not fit: {tried.refusal}",
            task=task,
            found=len(chosen),
            wanted=n,
            tried=tried.n,
        )
    splits = assign_splits((pair.cluster for pair in chosen), seed=seed)
    return tuple(
        replace(pair, id=f"{task}-{index:03d}", split=splits[pair.cluster]) for index, pair in enumerate(chosen)
    )


class _Tried:
    """Which candidates fit, and why the first that did not was refused."""

    def __init__(self, model: Model, metric_name: str) -> None:
        self.model = model
        self.metric = metric_named(metric_name)
        self.n = 0
        self.refusal = "none"
        self._seen: set[object] = set()

    def fits(self, pair: Pair) -> bool:
        """Whether the pair is new, aligns, and has the answers that the metric needs."""
        if pair.clean in self._seen:
            return False
        self._seen.add(pair.clean)
        self.n += 1
        try:
            found = align_pair(pair, self.model)
            if self.metric.single_token:
                require_single(pair, found, self.metric.name, self.model)
        except (DataError, TokenizerUnfit) as error:
            self.refusal = str(error) if self.refusal == "none" else self.refusal
            return False
        return True
