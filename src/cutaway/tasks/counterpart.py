"""Which example is whose corrupt: data sets of single prompts have no corrupt prompt, so another example's serves.

The corrupt prompt of an example is the prompt of one with another right answer, which becomes the foil. Two rules:

1. An example and its counterpart belong to one cluster, so that no prompt stands in two splits. Examples whose cluster
   holds no counterpart are coupled by cluster: two clusters become one, and are each other's counterparts.
2. Like goes with like: counterparts share a template and have equally many tokens where that can be had (words, where
   no model is given), because pairs of unequal length do not align.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cutaway.artifacts import digest
from cutaway.errors import DataError
from cutaway.models.model import Model
from cutaway.tasks.build import common_roles, completed, linked
from cutaway.tasks.task import Task


class Item(NamedTuple):
    """An example as the search for its counterpart sees it."""

    asks: str
    """What is asked about: the subject, the statement. Its right answers are never the foil."""
    answer: str
    cluster: str
    size: int
    """Length of the prompt."""
    frame: str = ""
    """Its template, where there are several: lengths of the same template compare."""


def measure(model: Model | None) -> Callable[[str], int]:
    """Length of a text: in tokens of the model, or in words without one."""
    if model is None or model.tokenizer is None:
        return lambda text: len(text.split())
    tokenizer = model.tokenizer
    return lambda text: len(tokenizer(text)["input_ids"])


def counterparts(items: Sequence[Item], *, seed: int = 0) -> tuple[list[int | None], list[str]]:
    """For each item the index of its counterpart (None where no item has another answer), and its cluster.

    >>> counterparts([Item("Paris", "France", "a", 1), Item("Rome", "Italy", "b", 1)])
    ([1, 0], ['b', 'b'])
    """
    search = _Search(items, seed)
    search.couple()
    members: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        members[search.home[item.cluster]].append(index)
    return [search.best(index, members[search.home[item.cluster]]) for index, item in enumerate(items)], [
        search.home[item.cluster] for item in items
    ]


def task_of(
    described: Sequence[Mapping[str, Any]],
    description: str,
    total: int,
    *,
    name: str,
    metric: str = "logit_diff",
    seed: int = 0,
) -> Task:
    """A task of pairs in their fields; the description says how many of `total` rows were left out, where some were.

    Copies of a pair are put into one cluster. Raises DataError when nothing is left.
    """
    if not described:
        raise DataError(
            f"task {name!r}: none of {total} rows has a counterpart, a row with another answer that could be its "
            "corrupt prompt; add rows with other answers",
            task=name,
        )
    if all("cluster" in values for values in described):
        contents = [
            (f"cluster {values['cluster']}", (values["clean"], values["corrupt"], values["answer"], values["foil"]))
            for values in described
        ]
        homes = linked([str(values["cluster"]) for values in described], contents)
        described = [{**values, "cluster": home} for values, home in zip(described, homes)]
    pairs = completed(described, name=name, seed=seed)
    if len(described) < total:
        description = f"{description} {total - len(described)} of {total} rows without a counterpart are left out."
    return Task(name, description, pairs, metric, common_roles(pairs), seed)


class _Search:
    """Clusters, and which of them have become one."""

    def __init__(self, items: Sequence[Item], seed: int) -> None:
        self.items = items
        self.seed = seed
        self.right: dict[str, set[str]] = defaultdict(set)
        members: dict[str, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            self.right[item.asks].add(item.answer)
            members[item.cluster].append(index)
        self.members = dict(members)
        self.home = {cluster: cluster for cluster in members}
        order = sorted(range(len(items)), key=lambda index: digest([seed, items[index].asks, index]))
        self.rank = {index: place for place, index in enumerate(order)}

    def fits(self, index: int, other: int) -> bool:
        """Whether `other` may be the counterpart of `index`: its answer is wrong there."""
        return self.items[other].answer not in self.right[self.items[index].asks]

    def best(self, index: int, among: Sequence[int]) -> int | None:
        """The counterpart nearest in size; among equals the next one in the seeded order."""
        found = [other for other in among if self.fits(index, other)]
        item, n = self.items[index], len(self.items)

        def distance(other: int) -> tuple[bool, int, int]:
            there = self.items[other]
            return there.frame != item.frame, abs(there.size - item.size), (self.rank[other] - self.rank[index]) % n

        return min(found, key=distance, default=None)

    def couple(self) -> None:
        """Join clusters that lack a counterpart: first those of one kind, then any two, then to a joined one."""
        lacking = {
            cluster: first for cluster, held in self.members.items() if (first := self._lacking(held)) is not None
        }
        hosts = [cluster for cluster in self.members if cluster not in lacking]
        alike: dict[tuple[str, int], list[str]] = defaultdict(list)
        for cluster, first in lacking.items():
            alike[self._kind(first)].append(cluster)
        left: list[str] = []
        for kind in sorted(alike):
            left += self._pair_up(alike[kind], lacking)
        left = self._pair_up(left, lacking)
        alone = set(left)
        hosts += [cluster for cluster in lacking if cluster not in alone]
        self._attach(left, lacking, hosts)

    def _kind(self, index: int) -> tuple[str, int]:
        """What items must share to be counterparts of equal length."""
        return self.items[index].frame, self.items[index].size

    def _lacking(self, held: Sequence[int]) -> int | None:
        """The first member that has no counterpart inside its cluster."""
        return next((index for index in held if not any(self.fits(index, other) for other in held)), None)

    def _pair_up(self, clusters: Sequence[str], lacking: dict[str, int]) -> list[str]:
        """Join clusters two by two; what stays alone is returned.

        Sorted by answer, the most frequent first, each meets the one half the list further on: no answer that fills at
        most half of the list meets itself.
        """
        answers = {cluster: self.items[lacking[cluster]].answer for cluster in clusters}
        count = Counter(answers.values())
        ordered = sorted(
            clusters,
            key=lambda c: (-count[answers[c]], digest([self.seed, answers[c]]), self.rank[lacking[c]]),
        )
        half = len(ordered) // 2
        alone = ordered[half : len(ordered) - half]
        for first, second in zip(ordered[:half], ordered[len(ordered) - half :]):
            a, b = lacking[first], lacking[second]
            if self.fits(a, b) and self.fits(b, a):
                self.home[second] = first
            else:
                alone += [first, second]
        return alone

    def _attach(self, clusters: Sequence[str], lacking: dict[str, int], hosts: Sequence[str]) -> None:
        """Give each remaining cluster to one that holds a counterpart for it, of the same size where there is one."""
        alike: dict[tuple[str, int], list[str]] = defaultdict(list)
        for cluster in hosts:
            alike[self._kind(self.members[cluster][0])].append(cluster)
        for turn, cluster in enumerate(clusters):
            index = lacking[cluster]
            for group in (alike[self._kind(index)], hosts):
                start = turn % len(group) if group else 0
                host = next((c for c in (*group[start:], *group[:start]) if self._holds(c, index)), None)
                if host is not None:
                    self.home[cluster] = self.home[host]
                    break

    def _holds(self, cluster: str, index: int) -> bool:
        return any(self.fits(index, other) for other in self.members[cluster])
