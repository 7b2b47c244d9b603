"""Pairs from what people have: tuples, dictionaries, tables. Ids, clusters and splits are filled in where they lack.

1. A pair without an id gets the task's name and its number.
2. Where no cluster is named, pairs that share a prompt are one cluster, and every other pair is its own: prompts that
   share their words share their luck.
3. Where no split is named, whole clusters are dealt out by `assign_splits`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeAlias, TypeVar

from cutaway.errors import DataError
from cutaway.tasks.pair import SPLITS, Pair, Prompt, Spans, assign_splits
from cutaway.tasks.rows import Row, broken

Given: TypeAlias = Pair | Mapping[str, Any] | Sequence[Any]
"""A pair as a caller writes it: a Pair, a dictionary of its fields, or (clean, corrupt, answer, foil[, cluster])."""

ORDER = ("clean", "corrupt", "answer", "foil", "cluster")
"""What the items of a tuple are."""
Made = TypeVar("Made")
FIELDS = tuple(field.name for field in fields(Pair))


def pairs_of(given: Iterable[Given], *, name: str, seed: int) -> tuple[Pair, ...]:
    """Pairs with ids, clusters and splits. Raises DataError, naming the item; AnswersEqual as such."""
    items = list(given)
    ready = [item for item in items if isinstance(item, Pair)]
    usual = {"id": "", "cluster": "all", "split": "explore"}
    lacks = {key: value for key, value in usual.items() if all(getattr(pair, key) == value for pair in ready)}
    return completed([_described(item, index, lacks) for index, item in enumerate(items)], name=name, seed=seed)


def completed(
    described: Sequence[Mapping[str, Any]], *, name: str, seed: int, rows: Sequence[Row] | None = None
) -> tuple[Pair, ...]:
    """Pairs from their fields; what lacks is filled in. `rows`: where each was read, for the errors."""
    width = max(3, len(str(len(described) - 1)))
    pairs = [
        _made({"id": f"{name}-{index:0{width}d}", **values}, None if rows is None else rows[index])
        for index, values in enumerate(described)
    ]
    if not _all_or_none(described, "cluster"):
        joined = linked([pair.id for pair in pairs], [(pair.clean, pair.corrupt) for pair in pairs])
        pairs = [replace(pair, cluster=cluster) for pair, cluster in zip(pairs, joined)]
    if _all_or_none(described, "split"):
        return tuple(pairs)
    splits = assign_splits((pair.cluster for pair in pairs), seed=seed)
    return tuple(replace(pair, split=splits[pair.cluster]) for pair in pairs)


def linked(names: Sequence[str], contents: Sequence[Iterable[Any]]) -> list[str]:
    """For each item the name of the first item that it is linked to: items that share a content, also in a chain.

    >>> linked(["a", "b", "c"], [("x",), ("y",), ("x", "z")])
    ['a', 'b', 'a']
    """
    root = list(range(len(names)))
    seen: dict[Any, int] = {}

    def top(item: int) -> int:
        while root[item] != item:
            root[item] = root[root[item]]
            item = root[item]
        return item

    for index, content in enumerate(contents):
        for part in content:
            first, second = sorted((top(seen.setdefault(part, index)), top(index)))
            root[second] = first
    return [names[top(index)] for index in range(len(names))]


def common_roles(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Roles that every pair has, in the order of the first."""
    return tuple(role for role in pairs[0].positions if all(role in pair.positions for pair in pairs)) if pairs else ()


def changed(clean: Prompt, corrupt: Prompt) -> tuple[Spans, Spans]:
    """The words in which two texts differ, as the role `changed`: from the first that differs to the last one.

    Empty where one of the texts has no such word.

    >>> changed("The girl ran", "The tall boy ran")
    ({'changed': (4, 8)}, {'changed': (4, 12)})
    """
    words = [list(re.finditer(r"\S+", text)) for text in (clean, corrupt) if isinstance(text, str)]
    if len(words) < 2:
        return {}, {}
    left, right = ([word.group() for word in found] for found in words)
    shortest = min(len(left), len(right))
    head = next((i for i in range(shortest) if left[i] != right[i]), shortest)
    tail = next((i for i in range(shortest - head) if left[-1 - i] != right[-1 - i]), shortest - head)
    spans = [
        {"changed": (found[head].start(), found[-1 - tail].end())} for found in words if len(found) - tail - head > 0
    ]
    return (spans[0], spans[1]) if len(spans) == 2 else ({}, {})


def described_rows(
    rows: Sequence[Row],
    columns: Mapping[str, str | None],
    positions: Mapping[str, str],
    corrupt_positions: Mapping[str, str] | None,
) -> list[dict[str, Any]]:
    """Fields of pairs from the columns that hold them; a position's column holds the words that stand there."""
    found = []
    for row in rows:
        values = {key: _plain(row, key, column) for key, column in columns.items() if column is not None}
        values["positions"] = {role: span_of(row, values["clean"], column) for role, column in positions.items()}
        if corrupt_positions is not None:
            values["corrupt_positions"] = {
                role: span_of(row, values["corrupt"], column) for role, column in corrupt_positions.items()
            }
        found.append(values)
    return found


def span_of(row: Row, prompt: Any, column: str) -> tuple[int, int]:
    """Where the words in `column` stand in the prompt. Raises BadTaskFile where they do not stand there just once."""
    words = row.text(column)
    count = prompt.count(words) if isinstance(prompt, str) else 0
    if count != 1:
        raise row.wrong(
            f"column {column!r} is {words!r}, which stands {count} times in {prompt!r}; a position's words stand there "
            "once"
        )
    start = prompt.index(words)
    return start, start + len(words)


def located(rows: Sequence[Row], make: Callable[[], Made]) -> Made:
    """What `make` makes of rows; a DataError about the pair of a row gets its line."""
    try:
        return make()
    except DataError as error:
        index = error.fields.get("pair_idx", -1)
        if type(error) is not DataError:
            raise
        raise broken(rows[0].path, rows[index].line if index >= 0 else None, str(error)) from None


def _plain(row: Row, key: str, column: str) -> Any:
    """A cell as a pair takes it: text, a number, or a list of numbers."""
    if key == "split":
        return SPLITS[row.one_of(column, {split: index for index, split in enumerate(SPLITS)})]
    value = row.cell(column)
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return tuple(value)
    if isinstance(value, int) and not isinstance(value, bool) and key in ("answer", "foil"):
        return value
    return str(value) if key in ("id", "cluster") and isinstance(value, int) else row.text(column)


def _described(item: Given, index: int, lacks: Mapping[str, str]) -> dict[str, Any]:
    """A pair's fields. Those in `lacks` have their default in every Pair, which counts as not given."""
    if isinstance(item, Pair):
        return {name: getattr(item, name) for name in FIELDS if name not in lacks}
    if isinstance(item, Mapping):
        values = dict(item)
    elif isinstance(item, str) or not 4 <= len(item) <= len(ORDER):
        raise DataError(
            f"item {index} is {item!r}; write (clean, corrupt, answer, foil), and a cluster if there is one"
        )
    else:
        values = dict(zip(ORDER, item))
    unknown = [name for name in values if name not in FIELDS]
    missing = [name for name in ORDER[:4] if name not in values]
    if unknown or missing:
        raise DataError(
            f"item {index}: "
            + (f"{unknown[0]!r} is no field of a pair" if unknown else f"{missing[0]!r} is missing")
            + f"; a pair has {', '.join(FIELDS)}"
        )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _all_or_none(described: Sequence[Mapping[str, Any]], field: str) -> bool:
    """Whether the pairs name the field. Raises DataError where some do and some do not."""
    named = [field in values for values in described]
    if any(named) and not all(named):
        raise DataError(
            f"item {named.index(False)} names no {field}, and others do; name one for each pair, or for none"
        )
    return any(named)


def _made(values: Mapping[str, Any], row: Row | None) -> Pair:
    """A pair; what is wrong with it keeps its kind when it has one, and gets the line it was read from."""
    try:
        return Pair(**values)
    except DataError as error:
        if row is None:
            raise
        if type(error) is DataError:
            raise row.wrong(str(error)) from None
        raise type(error)(
            f"{row.path}, line {row.line}: {error}", **{**error.fields, "path": str(row.path), "line": row.line}
        ) from None
