"""The loop: behavior check, identify, freeze claims, open the confirm split once, verdicts, report.

1. Behavior check on `explore`: no behavior, no study (NoBehavior).
2. Identify on `explore`: residual states, heads and MLPs, attribution, logit lens, attention scores.
3. Propose claims from that, and freeze them (the `calibrate` split gives their power).
4. Open `confirm`, once, for all claims; controls, placebo and positive control run with them.
5. Write the report: evidence that somebody else can re-verify.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cutaway.claims import Ledger
from cutaway.errors import NoBehavior, UsageError
from cutaway.loop import assemble
from cutaway.loop.confirm import confirm, holds
from cutaway.loop.identify import Behavior, ablation_for, behavior, candidates, identify, together
from cutaway.loop.options import Options
from cutaway.loop.propose import chosen_of, propose
from cutaway.loop.steps import Progress, Steps, silent, steps_folder
from cutaway.models import Model
from cutaway.report import StudyReport, behavior_check, write
from cutaway.report.folder import require_room
from cutaway.report.schema import BehaviorCheck
from cutaway.tasks import Task, metric_named

LEAST_GAP: Mapping[str, float] = MappingProxyType({"nat": 0.5, "probability": 0.1, "share": 0.1})
"""Smallest mean gap that counts as behavior, by the metric's unit."""


@dataclass(frozen=True)
class StudyResult:
    """A finished study."""

    folder: Path
    """The report's folder."""
    report: StudyReport
    verdicts: dict[str, str]
    """Sentence of each claim -> its verdict."""
    supported: bool
    """Every claim about components came out supported, and no decoy did."""


def study(
    model: Model,
    task: Task,
    *,
    out: Path | str,
    seed: int = 0,
    n_candidates: int = 3,
    alpha: float = 0.05,
    minimum_gap: float | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> StudyResult:
    """Study which components of a model cause a behavior, test claims about them, and write a report.

    Finished steps are kept beside the report, in `.OUT.steps`, with the ledger; the same study goes on from there
    after an interruption. Raises NoBehavior when the mean gap between clean and corrupt prompts is not reliably at
    least `minimum_gap`, or the model is right on no more than half of the prompts: nothing is studied then.

    Args:
        n_candidates: how many components get a claim of their own.
        minimum_gap: in the metric's unit; None: 0.5 nat, or a tenth of a probability or share.
        force: compute every step again. The ledger is kept: what was opened stays opened, and is recorded as re-run.
    """
    _require(model, task, out)
    out = Path(out)
    options = Options(seed=seed, n_candidates=n_candidates, alpha=alpha, minimum_gap=minimum_gap)
    require_room(out)
    steps = Steps(steps_folder(out), model, task, progress or silent, fresh=force)
    try:
        with steps.alone():
            return _study(model, task, out, steps, options)
    except KeyboardInterrupt:
        raise steps.interrupted("the study") from None


def _require(model: object, task: object, out: object) -> None:
    """Refuse what is no model, no task or no place, before anything runs."""
    if not isinstance(model, Model):
        raise UsageError(f"study: the first argument is a {type(model).__name__}; give a model, cutaway.load(...)")
    if not isinstance(task, Task):
        raise UsageError(f"study: the task is {task!r}; give a task, as in cutaway.tasks.get('induction', model)")
    if not isinstance(out, Path | str) or not str(out):
        raise UsageError(f"study: out={out!r}; give the folder that the report goes into")


def _study(model: Model, task: Task, out: Path, steps: Steps, options: Options) -> StudyResult:
    began = time.monotonic()
    steps.progress(0, 1, "behavior")
    explore = task.split("explore")
    shown = behavior(model, explore)
    check = checked(shown, options.minimum_gap)
    steps.progress(1, 1, "behavior")
    if not check.passed:
        raise no_behavior(model, task, check)
    ablation = ablation_for(model, task, options.seed)
    findings = identify(model, explore, shown.batch, steps, ablation=ablation, seed=options.seed)
    chosen = chosen_of(candidates(findings), options.n_candidates)
    joint = together(model, shown.batch, chosen, steps, ablation=ablation, seed=options.seed)
    proposals = propose(findings, joint, task.name, options)
    ledger = Ledger(steps.folder / "ledger.sqlite")
    tested = confirm(model, task, proposals, ledger, search=findings.search, steps=steps)
    evidence = assemble.Evidence(model, task, shown, check, findings, tuple(chosen), tuple(tested), options, ledger)
    report = assemble.report_of(evidence, time.monotonic() - began)
    write(out, report, assemble.artifacts_of(evidence), assemble.ledger_lines(ledger))
    return StudyResult(out, report, {t.proposal.claim.sentence: t.verdict for t in tested}, holds(tested))


def checked(shown: Behavior, minimum_gap: float | None) -> BehaviorCheck:
    """The behavior check: a gap that is reliably large enough, and more than half of the clean prompts right."""
    least = minimum_gap if minimum_gap is not None else LEAST_GAP.get(shown.batch.metric.unit, 0.1)
    found = behavior_check(
        split="explore",
        clean=shown.clean,
        corrupt=shown.corrupt,
        clusters=shown.batch.clusters,
        accuracy=shown.accuracy,
        threshold=least,
    )
    return found if shown.accuracy > 0.5 else found.model_copy(update={"passed": False})


def no_behavior(model: Model, task: Task, check: BehaviorCheck) -> NoBehavior:
    """The error that stops a study before it starts."""
    unit = metric_named(task.metric).unit
    low = "-" if check.gap.low is None else f"{check.gap.low:.3g}"
    gap = f"the gap from corrupt to clean prompts is {check.gap.value:.3g} {unit}"
    why = []
    if check.gap.low is None or check.gap.low < check.threshold:
        why.append(f"{gap} with lower bound {low}, and at least {check.threshold:g} is needed")
    if check.accuracy <= 0.5:
        why.append(f"{check.accuracy:.0%} of the clean prompts are right, and more than half is needed")
    return NoBehavior(
        f"{model.name} does not show {task.name!r} on the explore split: {'; '.join(why)}. There is nothing to "
        "explain; choose another task, or minimum_gap= when a smaller gap is the behavior",
        gap=check.gap.value,
        accuracy=check.accuracy,
        threshold=check.threshold,
    )
