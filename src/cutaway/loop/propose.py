"""Propose: claims written from the explore split, before the confirm split is opened.

For each of the strongest components that can be told from others one claim; one for all of them together; one decoy,
about the component that did least, which must not come out supported; and one on side effects. Thresholds are half of
what the explore split showed: a claim that holds only at the size it was found with is a claim about that split.

A claim is tested against matched components. One that did at least half as much on the explore split is no control: it
is known to take part too, and is named in the claim as excluded. Where fewer than three others are left (an MLP in a
model of few layers), no claim could ever be supported, and none is made; the report says so.
"""

from dataclasses import dataclass
from typing import Literal

from cutaway.claims import Claim, Mediates, Necessary, Prediction, Specific, Sufficient
from cutaway.claims.verdict import MIN_ENUMERATED
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
    """The `n` strongest components that reach LEAST and leave enough controls; where none does, the strongest."""
    strong = [c for c in ranked if c.strength >= LEAST]
    return [c for c in strong if n_controls(c, ranked) >= MIN_ENUMERATED][:n] or strong[:n]


def untested(ranked: list[Candidate], chosen: list[Candidate]) -> list[Candidate]:
    """Components stronger than one that was chosen, about which no claim is made: they leave too few controls."""
    if not chosen:
        return []
    return [c for c in ranked if c not in chosen and c.strength > chosen[-1].strength]


def partners(candidate: Candidate, ranked: list[Candidate]) -> list[Candidate]:
    """The other components of its kind that did at least half as much on the explore split."""
    same = [c for c in ranked if c.site.kind == candidate.site.kind and c is not candidate]
    return [c for c in same if c.strength >= candidate.strength / 2]


def n_controls(candidate: Candidate, ranked: list[Candidate]) -> int:
    """How many of its kind are left to compare it with."""
    return sum(c.site.kind == candidate.site.kind for c in ranked) - 1 - len(partners(candidate, ranked))


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
        sentence, predictions = _sentence(candidate, findings, behavior), _predictions(candidate, findings.ablation)
        known = _known(candidate, ranked, chosen)
        found.append(
            Proposal(name, "component", Claim(sentence, (name,), predictions=predictions, exclude=known, **shared))
        )
    joint = _joint(together, findings.ablation) if together is not None else ()
    apart = _apart(ranked, chosen)
    if joint and apart is not None:
        sentence = f"{' and '.join(names)} together carry {behavior}."
        found.append(
            Proposal("together", "together", Claim(sentence, names, predictions=joint, exclude=apart, **shared))
        )
    return [*found, *_controls(findings, ranked, chosen, shared, behavior)]


def _known(candidate: Candidate, ranked: list[Candidate], chosen: list[Candidate]) -> tuple[str, ...]:
    """What is no control of this component: the other candidates, and its partners."""
    known = [c for c in chosen if c is not candidate]
    return tuple(str(c.site) for c in (*known, *(c for c in partners(candidate, ranked) if c not in known)))


def _apart(ranked: list[Candidate], chosen: list[Candidate]) -> tuple[str, ...] | None:
    """What is in no matched set of the candidates together: every partner of one of them. Where that leaves too few to
    make a set, only the candidates themselves; None where these alone leave too few."""
    known = [c for c in ranked if c not in chosen and any(c in partners(each, ranked) for each in chosen)]
    for left_out in (known, []):
        free = [c.site.kind for c in ranked if c not in chosen and c not in left_out]
        if all(free.count(c.site.kind) >= sum(d.site.kind == c.site.kind for d in chosen) + 1 for c in chosen):
            return tuple(str(c.site) for c in left_out)
    return None


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
