"""Propose: claims written from the explore split, before the confirm split is opened.

For each of the strongest components one claim; one for all of them together; one decoy, about the component that did
least, which must not come out supported; and one on side effects. Thresholds are half of what the explore split showed:
a claim that holds only at the size it was found with is a claim about that split.
"""

from dataclasses import dataclass
from typing import Literal

from cutaway.claims import Claim, Mediates, Necessary, Prediction, Specific, Sufficient
from cutaway.loop.identify import Candidate, Findings, Together, candidates, role_of
from cutaway.loop.options import Options
from cutaway.report.summary import DECOY

LEAST = 0.1
"""Share of the gap below which a component is no candidate, and below which no threshold is set."""
SIDE_EFFECT = 0.1
"""Largest mean KL (nat) on neutral prompts that counts as no side effect."""

Role = Literal["component", "together", "decoy", "side effects"]


@dataclass(frozen=True)
class Proposal:
    """A claim and why it was written."""

    name: str
    role: Role
    claim: Claim


def chosen_of(ranked: list[Candidate], n: int) -> list[Candidate]:
    """The `n` strongest components that reach LEAST."""
    return [c for c in ranked if c.strength >= LEAST][:n]


def propose(findings: Findings, together: Together | None, task: str, options: Options) -> list[Proposal]:
    """The claims of a study. Empty when no component reaches LEAST on the explore split."""
    ranked = candidates(findings)
    chosen = chosen_of(ranked, options.n_candidates)
    if not chosen:
        return []
    behavior = f"the {task} behavior"
    names = tuple(str(c.site) for c in chosen)
    shared = {"task": task, "alpha": options.alpha, "seed": options.seed}
    found = []
    for candidate, name in zip(chosen, names):
        others = tuple(other for other in names if other != name)
        sentence, predictions = _sentence(candidate, findings, behavior), _predictions(candidate, findings.ablation)
        found.append(
            Proposal(name, "component", Claim(sentence, (name,), predictions=predictions, exclude=others, **shared))
        )
    joint = _joint(together, findings.ablation) if together is not None else ()
    if joint:
        claim = Claim(f"{' and '.join(names)} together carry {behavior}.", names, predictions=joint, **shared)
        found.append(Proposal("together", "together", claim))
    return [*found, *_controls(findings, ranked, chosen, shared, behavior)]


def _joint(together: Together, ablation: str) -> tuple[Prediction, ...]:
    """What all candidates at once are predicted to do, again at half of what they did on the explore split."""
    found: list[Prediction] = []
    if together.needed >= LEAST:
        found.append(Necessary(at_least=round(together.needed / 2, 3), ablation=ablation))
    if together.flipped >= 2 * LEAST:
        found.append(Mediates(at_least=round(together.flipped / 2, 3)))
    return tuple(found)


def _controls(
    findings: Findings, ranked: list[Candidate], chosen: list[Candidate], shared: dict, behavior: str
) -> list[Proposal]:
    first, names = chosen[0], tuple(str(c.site) for c in chosen)
    same_kind = [c for c in ranked if c.site.kind == first.site.kind and c not in chosen]
    found = []
    if same_kind and same_kind[-1].strength < LEAST:
        decoy = str(same_kind[-1].site)
        sentence = f"{decoy} is necessary for {behavior}. {DECOY}: it did least on the explore split.)"
        claim = Claim(
            sentence,
            (decoy,),
            predictions=(Necessary(at_least=LEAST, ablation=findings.ablation),),
            exclude=names,
            **shared,
        )
        found.append(Proposal(f"decoy {decoy}", "decoy", claim))
    if not breakable(findings):
        return found
    subject = str(first.site)
    sentence = f"Ablating {subject} leaves other text alone."
    claim = Claim(sentence, (subject,), predictions=(Specific(at_most=SIDE_EFFECT),), **shared)
    found.append(Proposal(f"side effects of {subject}", "side effects", claim))
    return found


def breakable(findings: Findings) -> bool:
    """A claim on side effects could fail: neutral prompts matter to the model by more than the bound."""
    return findings.neutral > SIDE_EFFECT


def _sentence(candidate: Candidate, findings: Findings, behavior: str) -> str:
    role = role_of(candidate.site, findings.scores)
    what = f"{candidate.site}, which {role}," if role else str(candidate.site)
    if candidate.needed <= -LEAST:
        return f"{what} works against {behavior}: without it the behavior grows."
    ways = [
        word
        for word, share in (("is necessary for", candidate.needed), ("carries", candidate.restored))
        if share >= LEAST
    ]
    return f"{what} {' and '.join(ways) or 'takes part in'} {behavior}."


def _predictions(candidate: Candidate, ablation: str) -> tuple[Prediction, ...]:
    """One prediction for each way in which the component mattered, at half the size it had."""
    found: list[Prediction] = []
    if abs(candidate.needed) >= LEAST:
        half = max(abs(candidate.needed) / 2, LEAST / 2)
        found.append(Necessary(at_least=round(half if candidate.needed > 0 else -half, 3), ablation=ablation))
    if candidate.restored >= LEAST:
        found.append(Sufficient(at_least=round(min(candidate.restored / 2, 0.9), 3)))
    return tuple(found) or (Necessary(at_least=round(candidate.needed / 2 or LEAST, 3), ablation=ablation),)
