"""Sections of a report against the data beside them: model, task, maps, headline, limits; and the ledger's results.

What is compared depends on what is there: an artifact by one of the names in SOURCES, written by a study, binds the
section that is drawn from it. A section without its artifact is not checked, and its finding says so.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cutaway.claims.ledger import Entry
from cutaway.errors import BrokenEvidence
from cutaway.patching import Effects
from cutaway.report import figures
from cutaway.report.compare import require, require_equal
from cutaway.report.folder import LEDGER, Report
from cutaway.report.summary import LIMITS, headline, task_card
from cutaway.tasks import Task

EFFECTS = ("residual", "denoised", "ablated", "estimated")
"""Artifacts `<name>.safetensors`: effects as `cutaway.patching.Effects` saves them."""
STUDY, TASK = "study.json", "task.jsonl"
SOURCES: dict[str, tuple[str, ...]] = {
    "position_map": ("residual",),
    "head_map": ("ablated",),
    "mlps": ("ablated",),
    "attribution": ("denoised", "estimated"),
}
"""Section to the effects that it is drawn from; all but the first may be missing."""
ROUNDING = 1e-3
"""Relative difference between two runs of the same prompts in other company: the number format's rounding."""
_DRAWN: dict[str, Callable[..., Any]] = {
    "position_map": figures.position_map,
    "head_map": figures.head_map,
    "mlps": figures.mlps,
    "attribution": figures.attribution,
}

Check = tuple[str, Callable[[], str]]
"""Name of a finding, and what gives its text or raises."""


def checks(report: Report, entries: Sequence[Entry]) -> Iterator[Check]:
    """All checks of sections; `entries` are those of the ledger, filled by then."""
    yield "model", lambda: _check_model(report, entries)
    yield "task", lambda: _check_task(report, entries)
    yield "explore values", lambda: _check_values(report)
    for name in SOURCES:
        yield name, lambda name=name: _check_drawn(report, name)
    yield "claims", lambda: _check_complete(report, entries)
    yield "headline", lambda: _check_headline(report)
    yield "limits", lambda: _check_limits(report)


def unshown(entries: Iterable[Entry], model: str, task: str, plans: Iterable[str]) -> list[Entry]:
    """Results of the ledger that a report about this model and task (digests) has to show beside those of `plans`.

    A claim that was registered again, word for word (after an update of the code, say), counts once; of such a one the
    last result is returned. Results of other models and tasks do not count.
    """
    entries = list(entries)
    claims = {
        entry.plan: json.dumps(entry.body["claim"], sort_keys=True)
        for entry in entries
        if entry.kind == "freeze" and _digest(entry, "model") == model and _digest(entry, "task") == task
    }
    shown = {claims.get(plan) for plan in plans}
    last = {claims[entry.plan]: entry for entry in entries if entry.kind == "result" and entry.plan in claims}
    return [entry for claim, entry in last.items() if claim not in shown]


def _digest(entry: Entry, part: str) -> str | None:
    return entry.body.get(part, {}).get("digest")


def _has(report: Report, name: str) -> bool:
    return any(entry.name == name for entry in report.manifest.artifacts)


def _path(report: Report, name: str) -> Path:
    """File of an artifact, its bytes checked."""
    report.artifact(name)
    return report.folder / next(entry.path for entry in report.manifest.artifacts if entry.name == name)


def _effects(report: Report) -> dict[str, Effects]:
    names = [name for name in EFFECTS if _has(report, f"{name}.safetensors")]
    return {name: Effects.load(_path(report, f"{name}.safetensors")) for name in names}


def _frozen(report: Report, entries: Sequence[Entry]) -> list[Entry]:
    """The frozen plans of the claims that are shown."""
    plans = {card.plan for card in report.study.claims}
    return [entry for entry in entries if entry.kind == "freeze" and entry.plan in plans]


def _check_model(report: Report, entries: Sequence[Entry]) -> str:
    model, frozen = report.study.model, _frozen(report, entries)
    for entry in frozen:
        made, name = str(_digest(entry, "model")), entry.body.get("model", {}).get("name")
        plan = f"plan {entry.plan[:12]} was frozen for"
        require(made == model.digest, f"the report says {model.digest[:12]}, {plan} {made[:12]}")
        require(name == model.name, f"the report says {model.name!r}, {plan} {name!r}")
    effects = _effects(report)
    for name, part in effects.items():
        made = part.provenance.model
        require(made == model.digest, f"the report says {model.digest[:12]}, {name}.safetensors is of {made[:12]}")
    if _has(report, STUDY):
        named = json.loads(report.artifact(STUDY))["model"]
        named = named["name"] if isinstance(named, dict) else named
        require(named == model.name, f"the report says {model.name!r}, {STUDY} {named!r}")
    return f"is that of {len(frozen)} frozen plans and {len(effects)} files of effects"


def _check_task(report: Report, entries: Sequence[Entry]) -> str:
    shown, frozen = report.study.task, _frozen(report, entries)
    for entry in frozen:
        found = str(_digest(entry, "task"))
        require(
            found == shown.digest,
            f"the report says {shown.digest[:12]}, plan {entry.plan[:12]} was frozen for {found[:12]}",
        )
    if not _has(report, TASK):
        return f"is that of {len(frozen)} frozen plans; its card is not checked: there is no {TASK}"
    task = Task.load(_path(report, TASK))
    require_equal(task_card(task).model_dump(mode="json"), shown.model_dump(mode="json"), "task")
    pairs = {pair.id: pair for pair in task.pairs}
    for one in report.study.examples:
        known = pairs.get(one.id)
        where = None if known is None else (known.cluster, known.split)
        require(where == (one.cluster, one.split), f"example {one.id!r} is no such pair of {TASK}")
    return f"is that of {TASK} and {len(frozen)} frozen plans"


def _check_values(report: Report) -> str:
    """The behavior's values are those of the runs that were not edited, in every file of effects."""
    shown, effects = report.study.behavior, _effects(report)
    if not effects:
        return "not checked: there are no effects beside the report"
    for name, part in effects.items():
        require(part.clusters == shown.clusters, f"behavior: its clusters are not those of {name}.safetensors")
        found = {side: [part.sign * value for value in getattr(part, side).tolist()] for side in ("clean", "corrupt")}
        tolerance = ROUNDING if report.study.model.dtype in ("float32", "float64") else 50 * ROUNDING
        for side, values in found.items():
            require_equal(values, list(getattr(shown, side)), f"behavior.{side} ({name}.safetensors)", tolerance)
    return f"are those of {len(effects)} files of effects"


def _check_drawn(report: Report, section: str) -> str:
    first, *others = SOURCES[section]
    shown, effects = getattr(report.study, section), _effects(report)
    if first not in effects:
        return "is not shown" if shown is None else f"not checked: there is no {first}.safetensors"
    again = _DRAWN[section](effects[first], *(effects.get(name) for name in others))
    again, shown = (None if one is None else one.model_dump(mode="json") for one in (again, shown))
    require_equal(again, shown, section)
    return f"follows from {' and '.join(f'{name}.safetensors' for name in SOURCES[section] if name in effects)}"


def _check_complete(report: Report, entries: Sequence[Entry]) -> str:
    study = report.study
    missing = unshown(entries, study.model.digest, study.task.digest, [card.plan for card in study.claims])
    if missing:
        first = missing[0]
        said = first.body.get("claim", {}).get("sentence", "")
        raise BrokenEvidence(
            f"{LEDGER} has results of this model and task that the report does not show: {len(missing)}, the first in "
            f"entry {first.seq} ({first.body.get('outcome', {}).get('verdict', 'no verdict')}): {said!r}"
        )
    return f"all {len(study.claims)} are shown that {LEDGER} has results of, for this model and task"


def _check_headline(report: Report) -> str:
    if not _has(report, STUDY):
        return f"not checked: without {STUDY} the sentence is the writer's own"
    study = report.study
    again = headline(study.claims, study.task.name)
    require(again == study.sentence, f"the report says {study.sentence!r}, its claims give {again!r}")
    title = f"{study.task.name} in {Path(study.model.name).name}"
    require(study.title == title, f"the title is {study.title!r}, that of such a study {title!r}")
    return "follows from the claims"


def _check_limits(report: Report) -> str:
    if not _has(report, STUDY):
        return f"not checked: without {STUDY} the limits are the writer's own"
    missing = [text for text in LIMITS if text not in report.study.limits]
    require(not missing, f"the report leaves out {missing[:1]}")
    return "those of every study are there"
