"""Figures: what was found on the explore split, as the data that the report's charts are drawn from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cutaway import lenses
from cutaway.loop.identify import Behavior, Candidate, Findings, role_of
from cutaway.models import Model, Site
from cutaway.patching import Effects
from cutaway.report import schema
from cutaway.stats import mean_interval

N_PATTERNS = 2
"""Prompts whose attention patterns are shown."""
GAP_SHARE = "share of the clean-corrupt gap"
_ABLATED = {"resample": "its output on another prompt", "mean": "its mean over the prompts"}


def position_map(residual: Effects) -> schema.EffectMap:
    """Residual states by named position, denoised."""
    places = [label.split("@") for label in residual.labels]
    rows, columns = list(dict.fromkeys(p[0] for p in places)), list(dict.fromkeys(p[1] for p in places))
    share, half = residual.share(), half_widths(residual)
    at = {(row, column): i for i, (row, column) in enumerate(map(tuple, places))}
    return schema.EffectMap(
        title="Where the answer is carried",
        sentence="Each cell puts the clean run's residual stream, at one layer and position, into the corrupt run. "
        "1: this state alone brings the answer back; 0: it changes nothing; below 0: it makes things worse.",
        unit=GAP_SHARE,
        row_axis="residual state",
        column_axis="position",
        rows=tuple(rows),
        columns=tuple(columns),
        values=tuple(tuple(float(share[at[(r, c)]]) for c in columns) for r in rows),
        half_widths=tuple(tuple(half[at[(r, c)]] for c in columns) for r in rows),
        n_examples=len(residual.ids),
    )


def head_map(findings: Findings) -> schema.EffectMap | None:
    """Heads by layer, resample-ablated on the clean run."""
    heads = [(i, Site.parse(label)) for i, label in enumerate(findings.ablated.labels) if label.startswith("z.")]
    if not heads:
        return None
    share, half = findings.ablated.share(), half_widths(findings.ablated)
    layers, units = sorted({s.layer for _, s in heads}), sorted({s.unit for _, s in heads})  # type: ignore[type-var]
    at = {(s.layer, s.unit): i for i, s in heads}
    return schema.EffectMap(
        title="Which heads are needed",
        sentence=f"Each cell replaces one head's output in the clean run by {_ABLATED[findings.ablation]}. "
        "1: the behavior is lost as with a corrupt prompt; 0: the head does not matter; below 0: it works against it.",
        unit=GAP_SHARE,
        row_axis="layer",
        column_axis="head",
        rows=tuple(map(str, layers)),
        columns=tuple(map(str, units)),
        values=tuple(tuple(float(share[at[layer, unit]]) for unit in units) for layer in layers),
        half_widths=tuple(tuple(half[at[layer, unit]] for unit in units) for layer in layers),
        n_examples=len(findings.ablated.ids),
    )


def mlps(findings: Findings) -> schema.EffectSeries | None:
    share, half = findings.ablated.share(), half_widths(findings.ablated)
    items = [
        schema.LabelledEffect(label=label, value=float(share[i]), half_width=half[i])
        for i, label in enumerate(findings.ablated.labels)
        if label.startswith("mlp_out")
    ]
    if not items:
        return None
    text = (
        f"Each bar replaces one MLP's output in the clean run by {_ABLATED[findings.ablation]}; signs as for the heads."
    )
    return schema.EffectSeries(title="Which MLPs are needed", sentence=text, unit=GAP_SHARE, items=tuple(items))


def attribution(findings: Findings) -> schema.Attribution | None:
    """Gradient estimates beside exact patching, for every head and MLP."""
    if findings.estimated is None:
        return None
    exact = dict(zip(findings.denoised.labels, findings.denoised.share().tolist()))
    points = [
        schema.AttributionPoint(label=label, estimate=value, exact=exact[label])
        for label, value in zip(findings.estimated.labels, findings.estimated.share().tolist())
        if label in exact
    ]
    x, y = (torch.tensor([getattr(p, name) for p in points]) for name in ("estimate", "exact"))
    defined = len(points) > 2 and float(x.std()) > 0 and float(y.std()) > 0
    return schema.Attribution(
        title="How far a gradient would have got",
        sentence="Each point is a head or an MLP: its effect by attribution patching (two passes and one backward for "
        "all of them) against its exact effect by patching. On the diagonal the estimate is right.",
        unit=GAP_SHARE,
        correlation=max(-1.0, min(1.0, float(torch.corrcoef(torch.stack([x, y]))[0, 1]))) if defined else None,
        points=tuple(points),
    )


def attention(
    model: Model, shown: Behavior, chosen: Sequence[Candidate], findings: Findings
) -> tuple[schema.AttentionHead, ...]:
    """Patterns of the candidate heads on a few clean prompts."""
    heads = [c.site for c in chosen if c.site.kind == "z"]
    if not heads or findings.scores is None:
        return ()
    rows = list(range(min(N_PATTERNS, shown.batch.n)))
    patterns = lenses.attention_patterns(model, shown.batch.clean, heads, rows=rows)
    found = []
    for i, site in enumerate(heads):
        cards = [
            schema.AttentionExample(
                id=shown.batch.ids[r],
                tokens=patterns.tokens[k],
                weights=_weights(patterns.values[i, k], len(patterns.tokens[k])),
            )
            for k, r in enumerate(rows)
        ]
        role = role_of(site, findings.scores)
        found.append(
            schema.AttentionHead(
                site=patterns.labels[i],
                sentence=f"{site} {role or 'has no pattern with a name'}.",
                examples=tuple(cards),
            )
        )
    return tuple(found)


def _weights(pattern: Tensor, n: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(min(1.0, max(0.0, round(w, 6))) for w in row) for row in pattern[:n, :n].tolist())


def lens(findings: Findings, shown: Behavior) -> schema.LensReadout | None:
    """Logit lens at the answer position, averaged over the pairs, with top tokens of the first."""
    found = findings.lens
    if found is None:
        return None
    layers = []
    for i, label in enumerate(found.labels):
        interval = mean_interval(found.difference[i].double().numpy(), list(found.clusters))
        top = [
            schema.TopToken(token=found.texts.get(int(t), str(int(t))), prob=_share(float(p)))
            for t, p in zip(found.top_ids[i, 0], found.top_probabilities[i, 0])
        ]
        answer = float(found.probability[i].mean())
        ratio = (found.probability[i].double() * torch.exp(-found.difference[i].double())).mean()
        layers.append(
            schema.LensLayer(
                label=label,
                metric=schema.Estimate(value=interval.estimate, low=_bound(interval.low), high=_bound(interval.high)),
                answer_prob=_share(answer),
                foil_prob=_share(float(ratio)),
                top=tuple(top),
            )
        )
    return schema.LensReadout(
        sentence="What the model would say if its last block put out this layer's residual state: "
        "logit of the answer minus logit of the foil (nat), mean over clean prompts.",
        n_examples=len(found.ids),
        layers=tuple(layers),
        example=found.ids[0],
        answer=found.texts.get(shown.batch.answers[0][0]),
    )


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _bound(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def half_widths(effects: Effects) -> list[float]:
    """Half width of the cluster interval of each cell, as a share of the mean gap."""
    gap = abs(float(effects.gap.mean()))
    found = []
    for row in effects.raw.double():
        interval = mean_interval(row.numpy(), list(effects.clusters))
        width = (interval.high - interval.low) / 2 / gap
        found.append(width if width < float("inf") else 0.0)
    return found
