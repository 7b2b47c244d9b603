"""Word pairs in context: lists of input and output, asked with a few examples in front (function vectors, Todd et al.
2024).

    Q: hot        the examples, drawn from the same split as the query,
    A: cold       never from its own cluster
    Q: up         the query
    A:            ->  down
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cutaway.errors import OutOfRange, UsageError
from cutaway.models.model import Model
from cutaway.tasks.counterpart import Item, counterparts, measure, task_of
from cutaway.tasks.pair import SplitName, assign_splits
from cutaway.tasks.rows import read_rows, stem
from cutaway.tasks.task import Task


class Words(NamedTuple):
    """One input and its output."""

    given: str
    wanted: str


def word_pairs(
    path: Path | str,
    *,
    n_shots: int = 4,
    corrupt: Literal["query", "labels"] = "query",
    template: str = "Q: {input}\nA:",
    model: Model | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Task:
    """A few-shot task from pairs of `input` and `output`.

    Args:
        n_shots: examples before the query.
        corrupt: 'query': the same examples with another query, whose output is the foil; position `query` is the
            query's last token. 'labels': the same query after examples whose outputs have changed places, which tell
            nothing about what is asked; the foil is the output of one of them.
        model: queries find counterparts of equal length in its tokens; without it, in words.

    Raises BadTaskFile; OutOfRange when a split has too few words for the examples; UsageError for a template without
    {input}.
    """
    if template.count("{input}") != 1 or corrupt not in ("query", "labels") or n_shots < 0:
        raise UsageError(
            f"template {template!r}, corrupt {corrupt!r}, n_shots {n_shots}: {{input}} stands once in a template, "
            "corrupt is 'query' or 'labels', and examples are counted from 0"
        )
    words = [Words(row.text("input"), row.text("output")) for row in read_rows(path)]
    length = measure(model)
    items = [Item(w.given, w.wanted, w.given, length(template.replace("{input}", w.given))) for w in words]
    partners, clusters = counterparts(items, seed=seed)
    splits = assign_splits(clusters, seed=seed)
    pools: dict[SplitName, list[int]] = defaultdict(list)
    for index, cluster in enumerate(clusters):
        pools[splits[cluster]].append(index)
    held = Counter(clusters)
    make = _queried if corrupt == "query" else _shuffled
    described = []
    for index, other in enumerate(partners):
        if other is None:
            continue
        cluster = clusters[index]
        drawn = _drawn(pools[splits[cluster]], n_shots + held[cluster], f"shots {seed} {cluster}")
        shots = [words[place] for place in drawn if clusters[place] != cluster][:n_shots]
        if len(shots) < n_shots:
            raise OutOfRange(
                f"n_shots={n_shots}: a split of {path} has {len(shots)} words besides the query's; ask for fewer "
                "examples, or add words",
                n_shots=n_shots,
            )
        described.append(
            {
                **make(shots, words[index], words[other], template),
                "cluster": cluster,
                "split": splits[cluster],
            }
        )
    text = f"{n_shots} examples of input and output, then an input: the answer is its output."
    return task_of(described, text, len(words), name=name or stem(path), seed=seed)


def _drawn(pool: Sequence[int], n: int, seed: str) -> list[int]:
    """`n` of the pool, or all of it, in an order that the seed decides."""
    return random.Random(seed).sample(pool, min(n, len(pool)))


def _prompt(shots: Sequence[Words], query: str, template: str) -> tuple[str, int]:
    """The examples and the query, and where the query begins."""
    head = "".join(f"{template.replace('{input}', shot.given)} {shot.wanted}\n\n" for shot in shots)
    return head + template.replace("{input}", query), len(head) + template.index("{input}")


def _queried(shots: Sequence[Words], query: Words, other: Words, template: str) -> dict[str, Any]:
    clean, start = _prompt(shots, query.given, template)
    corrupt, _ = _prompt(shots, other.given, template)
    return {
        "clean": clean,
        "corrupt": corrupt,
        "answer": f" {query.wanted}",
        "foil": f" {other.wanted}",
        "positions": {"query": (start, start + len(query.given))},
        "corrupt_positions": {"query": (start, start + len(other.given))},
    }


def _shuffled(shots: Sequence[Words], query: Words, other: Words, template: str) -> dict[str, Any]:
    """Each example gets the next one's output."""
    moved = [Words(shot.given, after.wanted) for shot, after in zip(shots, [*shots[1:], *shots[:1]])]
    clean, start = _prompt(shots, query.given, template)
    corrupt, corrupt_start = _prompt(moved, query.given, template)
    foil = next((shot.wanted for shot in shots if shot.wanted != query.wanted), other.wanted)
    return {
        "clean": clean,
        "corrupt": corrupt,
        "answer": f" {query.wanted}",
        "foil": f" {foil}",
        "positions": {"query": (start, start + len(query.given))},
        "corrupt_positions": {"query": (corrupt_start, corrupt_start + len(query.given))},
    }
