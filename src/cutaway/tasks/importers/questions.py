"""Questions with right and wrong answers (TruthfulQA, Lin et al. 2022), as a task and as labelled answers."""

from pathlib import Path

from cutaway.tasks.build import completed, located
from cutaway.tasks.labelled import Labelled
from cutaway.tasks.rows import Row, read_rows, stem
from cutaway.tasks.task import Task

QUESTION, BEST, RIGHT, WRONG = "Question", "Best Answer", "Correct Answers", "Incorrect Answers"


def truthfulqa(
    path: Path | str, *, template: str = "Q: {question}\nA:", name: str | None = None, seed: int = 0
) -> Task:
    """Is the best answer more probable than the first wrong one? Answers are scored as sequences.

    A question has no corrupt: clean and corrupt are the same prompt, so the task serves accuracy, and there is no gap
    to explain. Longer answers are less probable whatever they say. Raises BadTaskFile with line and column.
    """
    rows = read_rows(path)
    title = name or stem(path)
    described = []
    for row in rows:
        prompt = template.replace("{question}", row.text(QUESTION).strip())
        right = row.text(BEST).strip()
        wrong = next((one for one in _answers(row, WRONG) if one != right), None)
        if wrong is None:
            raise row.wrong(f"column {WRONG!r} holds no answer but the best one; add a wrong one")
        described.append({"clean": prompt, "corrupt": prompt, "answer": f" {right}", "foil": f" {wrong}"})
    text = "A question that people get wrong: the answer is the best one, the foil a common error."
    return located(
        rows,
        lambda: Task(title, text, completed(described, name=title, seed=seed, rows=rows), "logprob_diff", seed=seed),
    )


def truthfulqa_answers(
    path: Path | str, *, template: str = "Q: {question}\nA: {answer}", name: str | None = None, seed: int = 0
) -> Labelled:
    """Every answer after its question, true (1) or false (0); a question is a cluster. Raises BadTaskFile."""
    texts, clusters = [], []
    for row in read_rows(path):
        question = row.text(QUESTION).strip()
        for label, column in ((1, RIGHT), (0, WRONG)):
            for answer in _answers(row, column):
                texts.append((template.replace("{question}", question).replace("{answer}", answer), label))
                clusters.append(question)
    return Labelled.of(
        name or stem(path),
        texts,
        ("false", "true"),
        clusters=clusters,
        description="Answers to questions that people get wrong.",
        seed=seed,
    )


def _answers(row: Row, column: str) -> list[str]:
    """The answers of a cell, which semicolons part."""
    return [part.strip() for part in row.text(column).split(";") if part.strip()]
