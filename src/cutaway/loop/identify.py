"""Identify: what the explore split says about where a behavior lives. Every number here is a hypothesis."""

from dataclasses import dataclass, replace

import torch

from cutaway import engine, lenses, patching
from cutaway.claims import Specific
from cutaway.engine import Run
from cutaway.errors import Misaligned
from cutaway.lenses import HeadScores, LogitLens
from cutaway.loop.steps import Steps
from cutaway.models import Model, Site, sites
from cutaway.patching import Effects
from cutaway.patching.ablate import donor_rows
from cutaway.patching.measure import Cell, encode, measure, required
from cutaway.tasks import Batch, Task, metric_named


@dataclass(frozen=True)
class Behavior:
    """The metric of the unedited runs, in pair order; `sign` turned so that larger means more of the behavior."""

    batch: Batch
    clean: tuple[float, ...]
    corrupt: tuple[float, ...]
    accuracy: float
    """Share of clean prompts on which the answer beats the foil."""


@dataclass(frozen=True)
class Findings:
    """What was measured on the explore split."""

    residual: Effects
    """Denoising of each residual state at each named position."""
    denoised: Effects
    """Denoising of each head and MLP, all positions."""
    ablated: Effects
    """Ablation of each head and MLP on the clean runs."""
    estimated: Effects | None
    """Attribution patching of the same heads and MLPs; None where the metric has no gradient."""
    lens: LogitLens | None
    """Logit lens at the answer position; None for a model without an unembedding."""
    scores: HeadScores | None
    """Previous-token, duplicate-token and induction scores; None where no head shows its weights."""

    ablation: str
    """What ablated parts were set to: `resample`, or `mean` where some prompt has no partner of its length."""

    neutral: float
    """Mean KL (nat) that exchanging a whole neutral prompt for another makes: the most that a side effect can be."""

    @property
    def search(self) -> int:
        """How many cells were looked at."""
        return sum(len(part) for part in (self.residual, self.denoised, self.ablated))


def behavior(model: Model, task: Task) -> Behavior:
    """Clean and corrupt metric of every pair of a split. Cost: two forward passes."""
    batch = encode(model, task)
    runs = [Run(rows, logits=batch.logits) for rows in (batch.clean, batch.corrupt)]
    plan = engine.plan(model, runs)
    clean, corrupt = (
        batch.combine(scores)
        for scores in plan.execute(reduce=lambda r, rows: batch.row_scores(required(r.logits), rows))
    )
    right = replace(batch, metric=metric_named("accuracy"), reference=None)
    (scores,) = engine.plan(model, runs[:1]).execute(reduce=lambda r, rows: right.row_scores(required(r.logits), rows))
    sign = batch.metric.sign
    accuracy = float(right.combine(scores).mean())
    return Behavior(batch, tuple((sign * clean).tolist()), tuple((sign * corrupt).tolist()), accuracy)


def components(model: Model) -> list[Site]:
    """Every head and every MLP that the model has."""
    body = model.body
    found: list[Site] = []
    for layer, parts in enumerate(body.layers):
        if "z" in parts.taps and body.status(sites.z[layer]).editable:
            found += [sites.z[layer].head(head) for head in range(body.n_heads or 0)]
        if "mlp_out" in parts.taps and body.status(sites.mlp_out[layer]).editable:
            found.append(sites.mlp_out[layer])
    return found


def ablation_for(model: Model, task: Task, seed: int) -> str:
    """`resample` where every prompt of every split has a donor of its length, else `mean`. Runs nothing."""
    for split in task.splits:
        batch = task.split(split).encode(model)
        try:
            donor_rows(batch, batch.clean, seed)
        except Misaligned:
            return "mean"
    return "resample"


def identify(model: Model, task: Task, batch: Batch, steps: Steps, *, ablation: str, seed: int) -> Findings:
    """All measurements on the explore split (`task`, encoded as `batch`), each a step of its own."""
    depth = model.body.n_layers
    states = [*(sites.resid_pre[layer] for layer in range(depth)), sites.resid_post[depth - 1]]
    parts = components(model)
    roles = tuple(batch.roles)
    names = [str(site) for site in parts]
    residual = steps.do(
        "residual stream",
        Effects.load,
        lambda p: patching.sweep(model, batch, states, positions=roles, progress=p),
        roles=roles,
    )
    denoised = steps.do(
        "heads and MLPs", Effects.load, lambda p: patching.sweep(model, batch, parts, progress=p), sites=names
    )
    ablated = steps.do(
        "ablation",
        Effects.load,
        lambda p: patching.ablate(model, batch, parts, value=ablation, seed=seed, progress=p),
        seed=seed,
        value=ablation,
    )
    kinds = [kind for kind in ("z", "mlp_out") if any(site.kind == kind for site in parts)]
    estimated = None
    if batch.metric.differentiable:
        estimated = steps.do(
            "attribution",
            Effects.load,
            lambda p: patching.attribution(model, batch, kinds=kinds, progress=p),
            kinds=kinds,
        )
    lens = None
    if model.body.unembed is not None and not model.body.resume:
        lens = steps.do("logit lens", LogitLens.load, lambda p: lenses.logit_lens(model, batch, progress=p))
    scores = None
    if "z" in kinds:
        scores = steps.do("attention scores", HeadScores.load, lambda p: lenses.head_scores(model, batch, progress=p))
    neutral = behavior(model, Specific(at_most=1.0).inputs(model, task, seed))
    change = sum(neutral.corrupt) / len(neutral.corrupt)
    return Findings(residual, denoised, ablated, estimated, lens, scores, ablation, abs(change))


@dataclass(frozen=True)
class Candidate:
    """A component that the explore split points to, with the shares of the clean-corrupt gap it had there."""

    site: Site
    needed: float
    """Share of the gap that ablation took away; negative: the part works against the behavior."""
    restored: float
    """Share of the gap that denoising gave back."""

    @property
    def strength(self) -> float:
        return max(abs(self.needed), abs(self.restored))


def candidates(findings: Findings) -> list[Candidate]:
    """All components, strongest first."""
    needed = findings.ablated.share().tolist()
    restored = findings.denoised.share().tolist()
    found = [Candidate(Site.parse(label), needed[i], restored[i]) for i, label in enumerate(findings.ablated.labels)]
    return sorted(found, key=lambda c: -c.strength)


@dataclass(frozen=True)
class Together:
    """Several components at once, on the explore split."""

    needed: float
    """Share of the gap that ablating all of them took away."""
    flipped: float
    """Share of pairs whose answer flipped when all of them were exchanged for the corrupt run's."""


def together(
    model: Model, batch: Batch, chosen: list["Candidate"], steps: Steps, *, ablation: str, seed: int
) -> Together | None:
    """Ablate and exchange all components at once; None when there are not several."""
    if len(chosen) < 2:
        return None
    parts = [candidate.site for candidate in chosen]
    names = [str(site) for site in parts]
    ablated = steps.do(
        "ablation together",
        Effects.load,
        lambda p: patching.ablate(model, batch, parts, value=ablation, together=True, seed=seed, progress=p),
        value=ablation,
        sites=names,
        seed=seed,
    )
    exchanged = steps.do("exchange together", Effects.load, lambda p: _exchanged(model, batch, parts, p), sites=names)
    flips = (exchanged.clean > 0) & (exchanged.values[0] <= 0)
    usable = batch.metric.name in ("logit_diff", "logprob_diff")
    return Together(float(ablated.share()[0]), float(flips.double().mean()) if usable else 0.0)


def _exchanged(model: Model, batch: Batch, parts: list[Site], progress: engine.Progress) -> Effects:
    donor = model.capture(batch.corrupt, list(dict.fromkeys(site.base for site in parts)))
    cell = Cell(" + ".join(map(str, parts)), tuple(site.patch(donor) for site in parts))
    return measure(model, batch, [cell], on="clean", method="noise", progress=progress)


def role_of(site: Site, scores: HeadScores | None) -> str:
    """Where a head looks, in words, when it is clear; '' otherwise. A description, not a claim."""
    if scores is None or site.kind != "z":
        return ""
    index = {label: i for i, label in enumerate(scores.labels)}.get(str(site).replace("z.", "pattern.", 1))
    if index is None:
        return ""
    words = {
        "previous": "attends to the previous token",
        "induction": "attends to the token after an earlier copy",
        "duplicate": "attends to an earlier copy",
    }
    best = max(words, key=lambda kind: torch.nan_to_num(scores.mean(kind)[index], nan=-1.0).item())
    value = float(scores.mean(best)[index])
    return f"{words[best]} ({value:.0%} of its weight)" if value >= 0.4 else ""
