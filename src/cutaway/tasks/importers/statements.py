"""Labelled statements: true and false ones (geometry of truth, Marks and Tegmark 2023), sentiment, or any classes.

Each function gives `Labelled` texts, for probes and directions; their `as_task` asks a model for the label.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cutaway.errors import UsageError
from cutaway.tasks.labelled import Labelled
from cutaway.tasks.rows import Row, read_rows, stem

ENTITIES = ("subject", "city", "city1")
"""Columns that name what a statement is about, in the order in which they are tried as clusters."""


TRUTH = {"0": "false", "1": "true", "false": "false", "true": "true"}
SENTIMENT = {"0": "negative", "1": "positive", "negative": "negative", "positive": "positive"}


def statements(
    path: Path | str,
    *,
    text: str = "statement",
    label: str = "label",
    cluster: str | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Labelled:
    """Statements with label 1 (true) or 0 (false).

    Clusters: the column `cluster`; without one the subject or city that the file names, else each statement its own.
    Raises BadTaskFile with line and column.
    """
    return labelled(path, text=text, label=label, classes=TRUTH, cluster=cluster, name=name, seed=seed)


def sentiment(
    path: Path | str,
    *,
    text: str = "text",
    label: str = "label",
    cluster: str | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Labelled:
    """Texts with label 1 (positive) or 0 (negative). Raises BadTaskFile with line and column."""
    return labelled(path, text=text, label=label, classes=SENTIMENT, cluster=cluster, name=name, seed=seed)


def labelled(
    path: Path | str,
    *,
    text: str = "text",
    label: str = "label",
    classes: Mapping[str, str] | None = None,
    cluster: str | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Labelled:
    """Texts with any labels.

    `classes`: label as the file writes it -> name of its class; None takes the labels as they are. Clusters as in
    `statements`. Raises BadTaskFile with line and column.
    """
    rows = read_rows(path)
    if classes is None:
        classes = {word: word for word in sorted({str(row.cell(label)) for row in rows})}
    names = list(dict.fromkeys(classes.values()))
    words = {word.strip().lower(): names.index(found) for word, found in classes.items()}
    column = cluster or next((entity for entity in ENTITIES if entity in rows[0].values), None)
    return Labelled.of(
        name or stem(path),
        [(row.text(text), row.one_of(label, words)) for row in rows],
        names,
        clusters=None if column is None else [_unit(row, column) for row in rows],
        description=f"Texts that are {' or '.join(names)}.",
        seed=seed,
    )


def scenarios(files: Path | str | Sequence[Path | str], *, name: str = "scenarios", seed: int = 0) -> Labelled:
    """A class a file: JSON lists of texts (or rows with the column `text`), as
    representation engineering keeps emotions.

    `files`: the files, or a folder that holds them; a class is named as its file. Raises BadTaskFile, and UsageError
    where there are fewer than two files.
    """
    paths = sorted(Path(files).iterdir()) if isinstance(files, Path | str) and Path(files).is_dir() else files
    found = [Path(paths)] if isinstance(paths, Path | str) else [Path(one) for one in paths]
    if len(found) < 2:
        raise UsageError(f"scenarios: {len(found)} files ({', '.join(map(str, found))}); a class is a file, give two")
    rows = [(row.text("text"), index) for index, one in enumerate(found) for row in read_rows(one)]
    return Labelled.of(name, rows, [stem(one) for one in found], description="Texts of each kind.", seed=seed)


def _unit(row: Row, column: str) -> str:
    found = row.cell(column)
    return str(found) if isinstance(found, int) else row.text(column)
