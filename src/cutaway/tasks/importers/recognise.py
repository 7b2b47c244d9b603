"""Which importer a file is for, by the columns of its first row."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cutaway.errors import UsageError
from cutaway.models.model import Model
from cutaway.tasks.fit import fitted
from cutaway.tasks.importers.behaviors import MATCHING, OTHER, QUESTION, behaviors
from cutaway.tasks.importers.blimp import BAD, GOOD, blimp
from cutaway.tasks.importers.counterfactuals import SHAPES as COLUMNS
from cutaway.tasks.importers.counterfactuals import counterfactuals
from cutaway.tasks.importers.facts import known_facts, relation
from cutaway.tasks.importers.names import ioi_prompts, ioi_templates
from cutaway.tasks.importers.pronouns import winogenerated
from cutaway.tasks.importers.questions import BEST, RIGHT, WRONG, truthfulqa
from cutaway.tasks.importers.statements import labelled, statements
from cutaway.tasks.importers.word_pairs import word_pairs
from cutaway.tasks.labelled import Labelled
from cutaway.tasks.rows import broken, is_own, read_rows
from cutaway.tasks.task import Task

Read: TypeAlias = Task | Labelled


@dataclass(frozen=True)
class Shape:
    """Columns by which a file is known, and what reads it."""

    columns: tuple[str, ...]
    importer: Callable[..., Read]
    sized: bool = False
    """Whether it looks for counterparts of equal length, and so takes a model."""

    def read(self, path: Path, model: Model | None, seed: int) -> Read:
        """What the importer makes of the file."""
        return self.importer(path, model=model, seed=seed) if self.sized else self.importer(path, seed=seed)


SHAPES: tuple[Shape, ...] = (
    *(Shape(tuple(one), counterfactuals) for one in COLUMNS),
    Shape((GOOD, BAD), blimp),
    Shape(("statement", "label"), statements),
    Shape(("text", "label"), labelled),
    Shape((QUESTION, MATCHING, OTHER), behaviors, sized=True),
    Shape(("prompt_templates", "samples"), relation, sized=True),
    Shape(("subject", "attribute", "prompt", "relation_id"), known_facts, sized=True),
    Shape(("input", "output"), word_pairs, sized=True),
    Shape(("prompt", "answer"), ioi_prompts),
    Shape(("NAMES", "PLACES", "OBJECTS"), ioi_templates),
    Shape(("occupation", "sentence_with_blank"), winogenerated, sized=True),
    Shape(("Question", BEST, RIGHT, WRONG), truthfulqa),
)


def read(path: Path | str, *, model: Model | None = None, seed: int = 0) -> Read:
    """A task, or labelled texts, from a file of any known shape; the shape is recognised by the columns.

    `model`: counterparts of equal length in its tokens, for the shapes that look for them. Raises BadTaskFile for a
    file of no known shape or of several, with the columns that were found; and what the importer raises.
    """
    path = Path(path)
    if is_own(path):
        return Task.load(path)
    first = read_rows(path)[0]
    fitting = [shape for shape in SHAPES if set(shape.columns) <= set(first.values)]
    if len(fitting) == 1:
        return fitting[0].read(path, model, seed)
    found = ", ".join(map(str, list(first.values)[:12]))
    if fitting:
        names = " and ".join(shape.importer.__name__ for shape in fitting)
        raise broken(path, first.line, f"fits {names} (columns {found}); call the one that is meant: tasks.importers")
    known = "; ".join(f"{shape.importer.__name__} ({', '.join(shape.columns)})" for shape in SHAPES)
    raise broken(
        path,
        first.line,
        f"the columns are {found}, which no importer is known by: {known}. Task.from_csv and importers.labelled take "
        "columns of any name",
    )


def read_task(path: Path | str, model: Model, *, n: int | None = None, seed: int = 0) -> Task:
    """A file of any known shape as a task for `model`, of at most `n` pairs.

    Labelled texts are asked for their label; what another tool wrote is fitted to the model's tokens (`tasks.fitted`).
    A cutaway task file is read as it stands, and its pairs are all taken. Raises what `read` and `fit` raise, and
    UsageError for `n` with a cutaway task file.
    """
    if is_own(path):
        if n is not None:
            raise UsageError(
                f"n={n}: {path} is a cutaway task file, its pairs are what they are; leave n out", n=n, task=str(path)
            )
        return Task.load(path)
    found = read(path, model=model, seed=seed)
    task = found.as_task(model=model, seed=seed) if isinstance(found, Labelled) else found
    fitting = fitted(task, model)
    return fitting if n is None else fitting.sample(n, seed=seed)
