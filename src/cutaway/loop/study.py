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

from cutaway.claims import ClaimResult, Ledger
from cutaway.errors import ClaimChanged, NoBehavior
from cutaway.loop import assemble
from cutaway.loop.identify import ablation_for, behavior, candidates, identify, together
from cutaway.loop.propose import Proposal, chosen_of, propose
from cutaway.loop.steps import Progress, Steps, silent
from cutaway.models import Model
from cutaway.report import StudyReport, behavior_check, write
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
    began = time.monotonic()
    out = Path(out)
    steps = Steps(out.parent / f".{out.name}.steps", model, task, progress or silent, fresh=force)
    try:
        return _study(model, task, out, steps, seed, n_candidates, alpha, minimum_gap, began)
    except KeyboardInterrupt:
        raise steps.interrupted("the study") from None


def _study(
    model: Model,
    task: Task,
    out: Path,
    steps: Steps,
    seed: int,
    n: int,
    alpha: float,
    minimum_gap: float | None,
    began: float,
) -> StudyResult:
    explore = task.split("explore")
    steps.progress(0, 1, "behavior")
    shown = behavior(model, explore)
    check = checked(shown.clean, shown.corrupt, shown.batch.clusters, shown.accuracy, task.metric, minimum_gap)
    steps.progress(1, 1, "behavior")
    if not check.passed:
        raise no_behavior(model, task, check)
    ablation = ablation_for(model, task, seed)
    findings = identify(model, shown.batch, steps, ablation=ablation, seed=seed)
    chosen = chosen_of(candidates(findings), n)
    joint = (
        together(model, shown.batch, [c.site for c in chosen], steps, ablation=ablation, seed=seed)
        if len(chosen) > 1
        else None
    )
    proposals = propose(findings, joint, task.name, n=n, alpha=alpha, seed=seed, behavior=f"the {task.name} behavior")
    ledger = Ledger(steps.folder / "ledger.sqlite")
    results = _tested(model, task, proposals, ledger, findings.search, steps)
    options = {"seed": seed, "n_candidates": n, "alpha": alpha, "minimum_gap": minimum_gap}
    made = assemble.assemble(
        model, task, shown, check, findings, chosen, proposals, results, options, time.monotonic() - began
    )
    write(out, made.report, made.artifacts, assemble.ledger_lines(ledger))
    verdicts = {p.claim.sentence: r.verdict for p, r in zip(proposals, results)}
    return StudyResult(out, made.report, verdicts, holds(proposals, results))


def checked(
    clean: tuple[float, ...],
    corrupt: tuple[float, ...],
    clusters: tuple[str, ...],
    accuracy: float,
    metric: str,
    minimum_gap: float | None,
) -> BehaviorCheck:
    """The behavior check: a gap that is reliably large enough, and more than half of the clean prompts right."""
    unit = metric_named(metric).unit
    least = minimum_gap if minimum_gap is not None else LEAST_GAP.get(unit, 0.1)
    found = behavior_check(
        split="explore", clean=clean, corrupt=corrupt, clusters=clusters, accuracy=accuracy, threshold=least
    )
    return found if accuracy > 0.5 else found.model_copy(update={"passed": False})


def no_behavior(model: Model, task: Task, check: BehaviorCheck) -> NoBehavior:
    """The error that stops a study before it starts."""
    unit = metric_named(task.metric).unit
    low = "-" if check.gap.low is None else f"{check.gap.low:.3g}"
    return NoBehavior(
        f"{model.name} does not show {task.name!r}: on the explore split the gap from corrupt to clean prompts is "
        f"{check.gap.value:.3g} {unit} (lower bound {low}, needed {check.threshold:g}); {check.accuracy:.0%} of the "
        "clean prompts are right (needed: more than half). There is nothing to explain; choose another task, or "
        "minimum_gap= when a smaller gap is the behavior",
        gap=check.gap.value,
        accuracy=check.accuracy,
        threshold=check.threshold,
    )


def _tested(
    model: Model, task: Task, proposals: list[Proposal], ledger: Ledger, search: int, steps: Steps
) -> list[ClaimResult]:
    """Freeze all claims, then open the confirm split for each; what the ledger has a result for is taken from it."""
    label = "claims frozen"
    frozen = []
    for i, proposal in enumerate(proposals):
        steps.progress(i, len(proposals), label)
        frozen.append(proposal.claim.freeze(model, task, search=search, ledger=ledger))
    steps.progress(len(proposals), max(1, len(proposals)), label)
    results = []
    for proposal, plan in zip(proposals, frozen):
        label = f"confirm: {proposal.name}"
        recorded = ledger.result(plan.sha256)
        if recorded is not None and steps.fresh:
            again = plan.rerun(model, task, ledger, reason="study run again with force")
            if not again.same:
                raise ClaimChanged(
                    f"claim {proposal.name!r}: run again, it came out {again.again.verdict}; "
                    f"the ledger has {again.recorded.verdict}. Go on from there, or study into another folder",
                    changed=["verdict"],
                )
        if recorded is not None:
            results.append(ClaimResult(recorded))
        else:
            results.append(
                plan.run(
                    model, task, ledger, progress=lambda done, total, label=label: steps.progress(done, total, label)
                )
            )
        steps.progress(1, 1, label)
        steps.kept.append(label)
    return results


def holds(proposals: list[Proposal], results: list[ClaimResult]) -> bool:
    """There is a claim about components, all such claims are supported, and no decoy is."""
    main = [r.verdict for p, r in zip(proposals, results) if p.role in ("component", "together")]
    decoys = [r.verdict for p, r in zip(proposals, results) if p.role == "decoy"]
    return bool(main) and all(v == "supported" for v in main) and "supported" not in decoys
