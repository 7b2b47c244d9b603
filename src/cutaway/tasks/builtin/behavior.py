"""A built-in behavior: its card, its clusters, and how one random pair of a cluster is drawn.

Everything that reads the behaviors reads them here: `task` makes the pairs that fit a model's tokenizer, and the zoo's
language model is trained on documents made of the same draws, so that words and templates are written once. What its
training never held is decided by name: the clusters in `unseen`, and the combinations that `held_out` picks.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cutaway.artifacts import digest
from cutaway.errors import Misaligned
from cutaway.models.model import Model
from cutaway.tasks.builtin.collect import collect
from cutaway.tasks.pair import Pair
from cutaway.tasks.task import Task

TRIES = 200
"""Draws from a cluster before it counts as used up."""


class Drawn(NamedTuple):
    """A random pair, and the combination of words that it asks about."""

    pair: Pair
    key: str
    """The same for all pairs, in whatever template, that ask the same: 'Mary John', '12 34'."""


Draw = Callable[[str, random.Random], Drawn]


@dataclass(frozen=True)
class Behavior:
    """A behavior in templates. A cluster is a template, by its name; splits are disjoint by cluster."""

    name: str
    card: str
    """One paragraph: what is asked, how clean and corrupt differ, what the positions are. Its first sentence stands
    alone."""
    clusters: tuple[str, ...]
    draw: Draw
    """One random pair of a cluster."""
    roles: tuple[str, ...]
    """Named positions, besides `end`."""
    unseen: tuple[str, ...] = ()
    """Clusters that the zoo's language model was never trained on; every word of them it knows from others."""
    share: float = 0.12
    """Share of the combinations that it was never trained on either."""
    endings: tuple[str, ...] = (".",)
    """What may follow the answer in running text."""

    def task(self, model: Model, *, n: int = 96, seed: int = 0) -> Task:
        """`n` pairs that align in the tokens of `model`.

        Scored by the logit difference where answers and foils are single tokens there, else by the difference of their
        log-probabilities as sequences. Raises Misaligned, with the counts, when too few pairs align.
        """
        metric = "logit_diff"
        try:
            pairs = self._collect(model, n, seed, metric)
        except Misaligned:
            metric = "logprob_diff"
            pairs = self._collect(model, n, seed, metric)
        return Task(self.name, self.card, pairs, metric, self.roles, seed)

    def held_out(self, key: str) -> bool:
        """Whether the zoo's language model was never trained on this combination: a fixed `share` of all."""
        return int(digest([self.name, key])[:8], 16) < self.share * 16**8

    def _collect(self, model: Model, n: int, seed: int, metric: str) -> tuple[Pair, ...]:
        clusters = list(self.clusters)
        random.Random(f"{self.name} {seed}").shuffle(clusters)
        candidates = {name: self._draws(name, random.Random(f"{self.name} {seed} {name}")) for name in clusters}
        return collect(self.name, candidates, model, n=n, seed=seed, metric_name=metric)

    def _draws(self, cluster: str, chance: random.Random) -> Iterator[Pair]:
        for _ in range(TRIES):
            yield self.draw(cluster, chance).pair


def crossed(*parts: tuple[str, ...]) -> tuple[str, ...]:
    """Every combination of template parts, joined by ' | ', which `text_of` reads as one space.

    >>> crossed(("a", "b"), ("c",))
    ('a | c', 'b | c')
    """
    found = [""]
    for part in parts:
        found = [f"{left} | {right}" if left else right for left in found for right in part]
    return tuple(found)


def text_of(cluster: str) -> str:
    """The template that a cluster names.

    >>> text_of("I saw | a {thing}")
    'I saw a {thing}'
    """
    return cluster.replace(" | ", " ")
