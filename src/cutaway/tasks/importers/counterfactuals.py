"""Files whose rows are pairs already: a clean and a corrupt prompt, answer and foil, as text or as token ids.

Edge attribution with integrated gradients (Hanna et al. 2024) keeps its data like this, with the answers as token ids
of one tokenizer; sparse feature circuits (Marks et al. 2024) keeps `clean_prefix`, `patch_prefix` and the two answers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cutaway.errors import UsageError
from cutaway.models.model import Model
from cutaway.tasks.build import changed, common_roles, completed, located
from cutaway.tasks.rows import Row, read_rows, stem
from cutaway.tasks.task import Task


class Columns(NamedTuple):
    """Names under which a file keeps its pairs."""

    clean: str
    corrupt: str
    answer: str
    foil: str


IDS = Columns("clean", "corrupted", "correct_idx", "incorrect_idx")
"""Answers are token ids."""
SHAPES = (
    IDS,
    Columns("clean", "corrupted", "correct", "incorrect"),
    Columns("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"),
    Columns("clean", "corrupt", "answer", "foil"),
)


def counterfactuals(
    path: Path | str,
    *,
    corrupt: str | None = None,
    tokenizer: Any = None,
    cluster: str | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Task:
    """Pairs from a table of clean and corrupt prompts; the columns are recognised by their names.

    Position `changed` is the last word in which the prompts differ, where every pair has one. Pairs that share a prompt
    are one cluster, unless `cluster` names a column.

    Args:
        corrupt: column of the corrupt prompt, where a file has several (`corrupted_hard`).
        tokenizer: for `correct_idx` and `incorrect_idx`: what these ids belong to, a tokenizer, a model, or the folder
            or hub id of one. The answers become text, so that the task serves every model.

    Raises BadTaskFile with line and column; UsageError when ids come without a tokenizer.
    """
    rows = read_rows(path)
    shape = _shape(rows[0])
    words = None if shape is not IDS else _decoder(tokenizer, Path(path))
    described = [_described(row, shape, corrupt or shape.corrupt, words) for row in rows]
    if cluster is not None:
        described = [{**values, "cluster": str(row.cell(cluster))} for values, row in zip(described, rows)]
    title = name or stem(path)
    text = f"Pairs of a clean and a corrupt prompt ({shape.clean}, {corrupt or shape.corrupt})."
    return located(rows, lambda: _task(title, text, described, rows, seed))


def _task(name: str, text: str, described: Sequence[dict[str, Any]], rows: Sequence[Row], seed: int) -> Task:
    pairs = completed(described, name=name, seed=seed, rows=rows)
    return Task(name, text, pairs, "logit_diff", common_roles(pairs), seed)


def _described(row: Row, shape: Columns, corrupt: str, words: Any) -> dict[str, Any]:
    clean, other = row.text(shape.clean), row.text(corrupt)
    answers = [
        words(row, clean, row.number(column)) if words is not None else row.text(column)
        for column in (shape.answer, shape.foil)
    ]
    here, there = changed(clean, other)
    return {
        "clean": clean,
        "corrupt": other,
        "answer": answers[0],
        "foil": answers[1],
        "positions": here,
        "corrupt_positions": there,
    }


def _shape(row: Row) -> Columns:
    found = [shape for shape in SHAPES if set(shape) <= set(row.values)]
    if not found:
        known = "; ".join(", ".join(shape) for shape in SHAPES)
        raise row.wrong(
            f"the columns are {', '.join(map(str, row.values))}; expected are those of one of these: {known}. "
            "Task.from_csv takes other names"
        )
    return found[0]


def _decoder(tokenizer: Any, path: Path) -> Any:
    """From a prompt and a token id to the text that the id adds to the prompt."""
    if tokenizer is None:
        raise UsageError(
            f"{path}: {IDS.answer} and {IDS.foil} are token ids, and ids mean nothing without their tokenizer; name "
            "it: tokenizer=, the model or the tokenizer's folder that the file was made for"
        )
    if isinstance(tokenizer, str | Path):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(tokenizer))
    coder: Any = tokenizer.tokenizer if isinstance(tokenizer, Model) else tokenizer

    def word(row: Row, prompt: str, index: int) -> str:
        if index >= len(coder):
            raise row.wrong(
                f"token id {index} is not in this tokenizer of {len(coder)} tokens; name the one that the file is for"
            )
        ids = list(coder(prompt)["input_ids"])
        head, whole = (coder.decode(part, skip_special_tokens=True) for part in (ids, [*ids, index]))
        if not whole.startswith(head) or whole == head:
            raise row.wrong(
                f"token id {index} adds no text to {prompt!r}; name the tokenizer that the file was made for"
            )
        return whole[len(head) :]

    return word
