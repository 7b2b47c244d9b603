"""Registration: what a claim rests on, hashed before it is tested, and what it can be expected to show.

The plan holds digests of the model's weights, its tokenizer, the task's pairs split by split, and the program text of
every room whose code can move a number. Nothing of it depends on the time or the machine: the same claim about the same
things gives the same plan, and so the same name.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cutaway.artifacts
from cutaway.artifacts import digest, file_digest
from cutaway.claims.controls import Controls, choose_controls, same_component
from cutaway.claims.evidence import run_all
from cutaway.claims.forecast import forecast
from cutaway.claims.ledger import Entry
from cutaway.errors import EmptyTask, OutOfRange, UsageError
from cutaway.models import Model, Site
from cutaway.models.sites import PATTERN_KINDS
from cutaway.patching.ablate import donor_rows
from cutaway.stats import clusters_needed, require_clusters
from cutaway.tasks import SPLITS, Task, align_pair, metric_named

if TYPE_CHECKING:
    from cutaway.claims.claim import Claim

Progress: TypeAlias = Callable[[int, int], None]
FORMAT = "cutaway.plan/1"
ROOMS = ("artifacts", "axes", "claims", "engine", "models", "patching", "stats", "tasks")
"""Rooms whose code can move a number of a result."""


def make_plan(
    claim: "Claim", model: Model, task: Task, *, search: int, max_tokens: int, progress: Progress | None = None
) -> dict[str, Any]:
    """The plan of a claim. Runs nothing on the confirm split. See `Claim.freeze`."""
    _check(claim, model, task, search)
    confirm, metric = task.split("confirm"), metric_named(task.metric)
    earlier, splits = _before_confirm(task, claim.alpha)
    controls = choose_controls(
        model,
        claim.subject,
        claim.exclude,
        tokens=earlier.encode(model).clean,
        n_controls=claim.n_controls,
        alpha=claim.alpha,
        seed=claim.seed,
    )
    found = run_all(claim, (), model, earlier, instruments=True, max_tokens=max_tokens, stream=1, progress=progress)
    rest = {"split": splits, "n_clusters": len(confirm.clusters), "alpha": claim.alpha}
    return {
        "format": FORMAT,
        "claim": claim.to_json(),
        "model": {"name": model.name, "digest": model.digest},
        "tokenizer": {"digest": model.tokenizer_digest},
        "task": _task(task) | {"prompts": _prompts(confirm, model)},
        "code": code(),
        "search": search,
        "controls": _controls(controls),
        "power": [
            forecast(one, claim.subject, metric, measured, **rest) for one, measured in zip(claim.predictions, found)
        ],
    }


def _check(claim: "Claim", model: Model, task: Task, search: int) -> None:
    """Refuse what cannot be tested, before anything is run."""
    if task.name != claim.task:
        raise UsageError(
            f"task {task.name!r}: the claim is about {claim.task!r}; give that task, or write another claim"
        )
    if isinstance(search, bool) or not isinstance(search, int):
        raise UsageError(
            f"search={search!r}: give the number of cells that were tried before this claim, as an integer"
        )
    if search < 1:
        raise OutOfRange(f"search {search}: give the number of cells that were tried before this claim, at least 1")
    confirm = task.split("confirm")
    for prediction in claim.predictions:
        prediction.estimand(metric_named(task.metric))
    require_clusters(len(confirm.clusters), claim.alpha, what=f"the confirm split of task {task.name!r}")
    model.body.expand([*claim.subject, *claim.exclude])
    batch = confirm.encode(model)
    sites = [Site.parse(text) for text in claim.subject]
    for site in sites:
        batch.clean.positions(site.pos)
    cells = [prediction.cell(claim.subject) for prediction in claim.predictions]
    if any(cell.change == "resample" and cell.data == "task" for cell in cells):
        anywhere = all(isinstance(site.pos, str) and site.kind not in PATTERN_KINDS for site in sites)
        donor_rows(batch, batch.clean, claim.seed, anywhere=anywhere)


def _controls(controls: Controls) -> dict[str, Any]:
    matched = "kind, then layer" if controls.rule == "enumerated" else "kind, then layer, then mean |activation|"
    return {
        "rule": controls.rule,
        "population": controls.population,
        "matched_on": matched,
        "sets": [{"sites": list(one)} for one in controls.sets],
        "activation": {name: float(f"{value:.4g}") for name, value in controls.activation.items()},
    }


def differences(plan: Mapping[str, Any], model: Model, task: Task) -> dict[str, tuple[str, str]]:
    """What is not as it was frozen: name -> (digest in the plan, digest now)."""
    now = {
        "model": (plan["model"]["digest"], model.digest),
        "tokenizer": (plan["tokenizer"]["digest"], model.tokenizer_digest),
        "task": (plan["task"]["digest"], task.digest),
        "code": (plan["code"]["digest"], code()["digest"]),
    }
    return {name: (str(old), str(new)) for name, (old, new) in now.items() if old != new}


def seen_before(plan: str, entries: Sequence[Entry]) -> list[str]:
    """Plans that had opened some of the same prompts of the same model, for some of the same components, before this
    claim was registered: with them in view it is exploratory. Prompts are compared token by token, so that no other
    text, name, split or order of a task hides them. The same claim registered again (after an update of the code, say)
    is not another one: what counts is when it was first registered on the same model and task.
    """
    frozen = {entry.plan: entry for entry in entries if entry.kind == "freeze"}
    again = [entry for entry in frozen.values() if _same_claim(frozen[plan].body, entry.body)]
    mine = min(again, key=lambda entry: entry.seq)
    found = []
    for entry in entries:
        other = frozen.get(entry.plan)
        if (
            entry.kind == "open_split"
            and entry.seq < mine.seq
            and other is not None
            and _same_ground(mine.body, other.body)
        ):
            found.append(entry.plan)
    return list(dict.fromkeys(found))


@cache
def code() -> dict[str, str]:
    """Version of the package and SHA-256 of the program text that can move a number; read once, as it was loaded."""
    text = program_text(Path(cutaway.artifacts.__file__).parent)
    return {"version": str(importlib.import_module("cutaway").__version__), "digest": text}


def program_text(root: Path) -> str:
    """SHA-256 of the files of ROOMS below a package's folder."""
    files = sorted(
        path
        for path in root.rglob("*")
        if path.suffix in (".py", ".toml") and path.relative_to(root).parts[0].removesuffix(".py") in ROOMS
    )
    return digest([[path.relative_to(root).as_posix(), file_digest(path)] for path in files])


def _same_claim(mine: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """The same words, components, thresholds and seed, on the same model and pairs."""
    return all(mine[part]["digest"] == other[part]["digest"] for part in ("model", "task")) and (
        mine["claim"] == other["claim"]
    )


def _same_ground(mine: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Some of the same prompts, the same model, some of the same components."""
    subjects = [[Site.parse(text) for text in plan["claim"]["subject"]] for plan in (mine, other)]
    return (
        mine["model"]["digest"] == other["model"]["digest"]
        and any(same_component(one, two) for one in subjects[0] for two in subjects[1])
        and _same_prompts(mine["task"], other["task"])
    )


def _same_prompts(mine: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """A clean prompt of one is a prompt of the other. Corrupt ones alone do not count: a task may have one for all.

    A plan that did not record its prompts may have had any.
    """
    if "prompts" not in mine or "prompts" not in other:
        return True
    clean, corrupt = ([set(task["prompts"][side]) for task in (mine, other)] for side in ("clean", "corrupt"))
    return bool(clean[0] & (clean[1] | corrupt[1]) or clean[1] & corrupt[0])


def _prompts(confirm: Task, model: Model) -> dict[str, list[str]]:
    """Digests of the confirm prompts' tokens, in no order that says which pair they are of."""
    found = [align_pair(pair, model) for pair in confirm.pairs]
    return {side: sorted({digest(getattr(one, side)) for one in found}) for side in ("clean", "corrupt")}


def _task(task: Task) -> dict[str, Any]:
    parts = {name: task.split(name) for name, n in task.splits.items() if n}
    return {
        "name": task.name,
        "digest": task.digest,
        "metric": task.metric,
        "unit": metric_named(task.metric).unit,
        "splits": {
            name: {"digest": part.digest, "n_pairs": len(part), "n_clusters": len(part.clusters)}
            for name, part in parts.items()
        },
    }


def _before_confirm(task: Task, alpha: float) -> tuple[Task, str]:
    """The calibrate split; with explore where calibrate alone is too small to say how effects scatter."""
    for names in (("calibrate",), ("calibrate", "explore")):
        pairs = tuple(pair for pair in task.pairs if pair.split in names)
        enough = len({pair.cluster for pair in pairs}) >= clusters_needed(alpha)
        if pairs and (enough or len(names) == 2):
            return replace(task, pairs=pairs), " and ".join(name for name in SPLITS if name in names)
    raise EmptyTask(
        f"task {task.name!r}: no pair in calibrate or explore ({task.splits}); a claim is frozen on other pairs than "
        "it is tested on",
        task=task.name,
    )
