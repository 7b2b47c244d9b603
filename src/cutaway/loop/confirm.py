"""Confirm: freeze all claims of a study, then open the confirm split once for each."""

from dataclasses import dataclass

from cutaway.claims import ClaimResult, FrozenClaim, Ledger
from cutaway.errors import ClaimChanged
from cutaway.loop.propose import Proposal
from cutaway.loop.steps import Steps
from cutaway.models import Model
from cutaway.tasks import Task


@dataclass(frozen=True)
class Tested:
    """A proposed claim and what came of it."""

    proposal: Proposal
    result: ClaimResult

    @property
    def verdict(self) -> str:
        return self.result.verdict


def confirm(
    model: Model, task: Task, proposals: list[Proposal], ledger: Ledger, *, search: int, steps: Steps
) -> list[Tested]:
    """All claims with their results. What the ledger has a result for keeps it."""
    frozen = []
    for i, proposal in enumerate(proposals):
        steps.progress(i, len(proposals), "claims frozen")
        frozen.append((proposal, proposal.claim.freeze(model, task, search=search, ledger=ledger)))
    steps.progress(1, 1, "claims frozen")
    tested = []
    for proposal, plan in frozen:
        label = f"confirm: {proposal.name}"
        tested.append(Tested(proposal, _result(plan, model, task, ledger, label, steps)))
        steps.progress(1, 1, label)
        steps.kept.append(label)
    return tested


def _result(plan: FrozenClaim, model: Model, task: Task, ledger: Ledger, label: str, steps: Steps) -> ClaimResult:
    recorded = ledger.result(plan.sha256)
    if recorded is None:
        return plan.run(model, task, ledger, progress=lambda done, total: steps.progress(done, total, label))
    if steps.fresh:
        again = plan.rerun(model, task, ledger, reason="study run again with force")
        if not again.same:
            raise ClaimChanged(
                f"{label}: run again, it came out {again.again.verdict}; the ledger has {again.recorded.verdict}. "
                "Go on without force, or study into another folder",
                changed=["verdict"],
            )
    return ClaimResult(recorded)


def holds(tested: list[Tested]) -> bool:
    """There is a claim about components, all such claims are supported, and no decoy is."""
    main = [t.verdict for t in tested if t.proposal.role in ("component", "together")]
    decoys = [t.verdict for t in tested if t.proposal.role == "decoy"]
    return bool(main) and all(v == "supported" for v in main) and "supported" not in decoys
