"""Figures that need the model: attention patterns and the logit lens, as the data that charts are drawn from.

Those that follow from saved effects alone are in `cutaway.report.figures`, which verification uses too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cutaway import lenses
from cutaway.loop.identify import Behavior, Candidate, Findings, role_of
from cutaway.models import Model
from cutaway.report import schema
from cutaway.stats import mean_interval

N_PATTERNS = 2
"""Prompts whose attention patterns are shown."""


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
