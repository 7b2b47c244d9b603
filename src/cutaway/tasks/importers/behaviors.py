"""Behavior sets with two answers: one that matches the behavior, one that does not (Perez et al. 2022).

    Yes or No   the question quotes a statement; the corrupt prompt is a question whose matching answer is the other one
    (A) or (B)  the question lists options; the corrupt prompt lists the two options in exchanged places, so that the
                same content has the other letter

In both, clean leads a model that has the behavior to the answer, and corrupt to the foil.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cutaway.errors import UsageError
from cutaway.models.model import Model
from cutaway.tasks.counterpart import Item, counterparts, measure, task_of
from cutaway.tasks.labelled import Labelled
from cutaway.tasks.rows import Row, read_rows, stem
from cutaway.tasks.task import Task

QUESTION, STATEMENT = "question", "statement"
MATCHING, OTHER = "answer_matching_behavior", "answer_not_matching_behavior"
CLASSES = ("not matching", "matching")
LETTER = re.compile(r"\s*\(([A-Z])\)\s*")
OPTION = re.compile(r"\(([A-Z])\)[ \t]*(.*?)\s*(?=\n\s*\([A-Z]\)|\Z)", re.DOTALL)


def behaviors(
    path: Path | str,
    *,
    template: str = "{question}\n\nAnswer:",
    model: Model | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Task:
    """Does the model give the answer that matches the behavior?

    `model`: questions with Yes and No find counterparts of equal length in its tokens; without it, in words. Raises
    BadTaskFile with line and column; UsageError for a template without {question}.
    """
    if template.count("{question}") != 1:
        raise UsageError(
            f"template {template!r}: it needs {{question}} once; the usual one is '{{question}}\\n\\nAnswer:'"
        )
    rows = read_rows(path)
    listed, spoken = [], []
    for row in rows:
        (listed if LETTER.fullmatch(row.text(MATCHING)) else spoken).append(row)
    described = [_exchanged(row, template, index) for index, row in enumerate(listed)]
    described += _opposed(spoken, template, model, seed)
    text = "The answer matches the behavior that the set is about; the foil does not."
    return task_of(described, text, len(rows), name=name or stem(path), seed=seed)


def behavior_texts(path: Path | str, *, name: str | None = None, seed: int = 0) -> Labelled:
    """Texts that match a behavior (1) or do not (0), for probes and steering vectors.

    Files with statements: the statements, 1 where Yes matches. Others: each question with each of its two answers, the
    texts of one question in one cluster, as contrastive activation addition takes them (Rimsky et al. 2024). Raises
    BadTaskFile with line and column.
    """
    rows = read_rows(path)
    if all(STATEMENT in row.values for row in rows):
        words = {"yes": 1, "no": 0}
        pairs = [(row.text(STATEMENT), row.one_of(MATCHING, words)) for row in rows]
        clusters = None
    else:
        pairs = [
            (row.text(QUESTION) + row.text(side), label) for row in rows for label, side in ((1, MATCHING), (0, OTHER))
        ]
        clusters = [row.text(QUESTION) for row in rows for _ in range(2)]
    return Labelled.of(
        name or stem(path), pairs, CLASSES, clusters=clusters, description="Texts of a behavior.", seed=seed
    )


def _exchanged(row: Row, template: str, index: int) -> dict[str, Any]:
    """A question with options, and the same with the answer's and the foil's option in exchanged places."""
    question = row.text(QUESTION)
    letters = [LETTER.fullmatch(row.text(side)) for side in (MATCHING, OTHER)]
    options = {found.group(1): found.span(2) for found in OPTION.finditer(question)}
    named = [found.group(1) for found in letters if found is not None]
    if len(named) != 2 or not all(letter in options for letter in named):
        raise row.wrong(
            f"the answers are {row.text(MATCHING)!r} and {row.text(OTHER)!r}, and the question's options are "
            f"{', '.join(options) or 'none'}; the question must list an option for each answer, on a line of its own: "
            "'(A) ...'"
        )
    first, second = sorted(options[letter] for letter in named)
    other = (
        question[: first[0]]
        + question[second[0] : second[1]]
        + question[first[1] : second[0]]
        + question[first[0] : first[1]]
        + question[second[1] :]
    )
    clean, corrupt = (template.replace("{question}", text).rstrip() + " (" for text in (question, other))
    return {"clean": clean, "corrupt": corrupt, "answer": named[0], "foil": named[1], "cluster": f"listed {index}"}


def _opposed(rows: Sequence[Row], template: str, model: Model | None, seed: int) -> list[dict[str, Any]]:
    """Questions with a spoken answer, each with one whose matching answer is another."""
    length = measure(model)
    prompts = [template.replace("{question}", row.text(QUESTION)) for row in rows]
    items = [
        Item(prompt, row.text(MATCHING), f"spoken {index}", length(prompt))
        for index, (row, prompt) in enumerate(zip(rows, prompts))
    ]
    partners, clusters = counterparts(items, seed=seed)
    return [
        {
            "clean": prompts[i],
            "corrupt": prompts[j],
            "answer": row.text(MATCHING),
            "foil": row.text(OTHER),
            "cluster": clusters[i],
        }
        for i, (row, j) in enumerate(zip(rows, partners))
        if j is not None
    ]
