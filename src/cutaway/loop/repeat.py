"""Repeat: run a report's study again, from what the report holds, and say which of its numbers moved."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cutaway import report
from cutaway.artifacts import require_same_model
from cutaway.errors import BrokenEvidence, ModelNotFound
from cutaway.loop.options import Options
from cutaway.loop.steps import Progress
from cutaway.loop.study import study
from cutaway.models import Model, load
from cutaway.report.summary import EARLIER
from cutaway.tasks import Task

_NOT_NUMBERS = ("environment", "plan", "rerun")
"""Sections that say where and how long, not what."""


@dataclass(frozen=True)
class Repeated:
    """A study, run again."""

    moved: dict[str, tuple[Any, Any]]
    """Place in `report.json` -> (recorded, found now), for every value that differs at all."""
    n_compared: int
    """Values compared."""
    verdicts_same: bool
    """Every claim came out as recorded."""

    @property
    def largest(self) -> float:
        """Largest absolute difference of two numbers; infinite where a text or a shape differs."""
        return max((_distance(a, b) for a, b in self.moved.values()), default=0.0)


def repeat(folder: Path | str, model: Model | None = None, *, progress: Progress | None = None) -> Repeated:
    """Run the study of a report again and compare every value of it.

    The model is loaded by the name in the report unless it is given; another model is refused (WrongModel). Cost: that
    of the study. Nothing is written beside the report.
    """
    found = report.load(folder)
    options = json.loads(found.artifact("study.json"))
    model = model or _model(options["model"])
    require_same_model(found.study.model.digest, model.digest, f"report {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "task.jsonl"
        path.write_bytes(found.artifact("task.jsonl"))
        task = Task.load(path)
        if task.digest != found.study.task.digest:
            raise BrokenEvidence(f"{folder}: task.jsonl is not the task of the report", path=str(folder))
        kept = {field.name: options[field.name] for field in fields(Options)}
        again = study(model, task, out=Path(scratch) / "report", progress=progress, **kept)
    recorded, now = own(found.study), again.report
    old, new = (dict(_leaves(r.model_dump(mode="json", exclude=set(_NOT_NUMBERS)))) for r in (recorded, now))
    # a plan's hash covers the program text, so it moves with the version; the numbers must not
    keys = [key for key in dict.fromkeys([*old, *new]) if not key.endswith(".plan")]
    moved = {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}
    same = [c.verdict for c in recorded.claims] == [c.verdict for c in now.claims]
    return Repeated(moved, len(keys), same)


def own(study: report.StudyReport) -> report.StudyReport:
    """The report without the claims that earlier studies left in its ledger: they are not this study's to repeat."""
    return study.model_copy(update={"claims": tuple(c for c in study.claims if not c.id.startswith(EARLIER))})


def _model(source: dict[str, str]) -> Model:
    """Load the model of a report, by what its name was."""
    name, kind = source["name"], source["kind"]
    if kind == "memory" or (kind == "folder" and not Path(name).expanduser().is_dir()):
        what = "was given in memory" if kind == "memory" else "is not in that folder here"
        raise ModelNotFound(
            f"the report's model {name!r} {what}; give it: repeat(folder, model), or --model", name=name
        )
    return load(name, dtype=None if source["dtype"] == "float32" else source["dtype"])


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{place}[{i}]")
    else:
        yield place, value


def _distance(a: Any, b: Any) -> float:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return abs(a - b) if numbers else float("inf")
