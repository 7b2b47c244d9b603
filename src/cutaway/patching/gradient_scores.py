"""Gradient scores: estimates of what patching every part would do, each method with its error against real patches.

    atp        <donor - base, slope>                                                        two passes, one backward
    atp_star   AtP with two repairs (Kramar et al. 2024): queries and keys through the attention pattern that they
               would give, not through the slope of the softmax; and one backward pass for each layer with nothing
               passing through what that layer writes, so that direct and indirect effects cannot cancel
    ig         integrated gradients: the mean slope on the straight line from base to donor of one site at a time, all
               else live; steps are doubled until the units of a site add up to the effect of patching the whole site
    relevance  AtP with the slopes of relevance rules (RelP): norms held, activations as quotients, gates halved

After the estimates, a random sample of the cells is patched for real, and the result says how near they came.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance, save_tensors, saved
from cutaway.engine import Run
from cutaway.errors import OutOfRange, SiteUnavailable, UsageError
from cutaway.figures import Bars, Figure, Points
from cutaway.models import Activations, Model, Site, Tokens
from cutaway.models.gradients import Gradients, backward
from cutaway.models.relevance import Rules, choose_rules
from cutaway.models.taps import Resume
from cutaway.patching.attribution import (
    KINDS,
    Estimate,
    bases_of,
    estimated,
    first_order,
    per_pair,
    require_gradient,
    slopes_of,
    summed,
)
from cutaway.patching.effects import Effects
from cutaway.patching.gradient_check import Agreement, compare, sample
from cutaway.patching.measure import MAX_TOKENS, Positions, Progress, choose, encode, only, other, required, side
from cutaway.patching.sweep import BASES, sweep
from cutaway.tasks import Batch, Task

METHODS = ("atp", "atp_star", "ig", "relevance")
QUERIES_AND_KEYS = ("q", "k")
STREAM = ("embed", "resid_pre", "resid_mid", "resid_post")
"""Sites that what a layer writes is only a part of: cutting the writes of their own layer leaves them an effect."""
SLIGHT = 0.05
"""Share of the gap between the sides below which the effect of a whole site is nothing to be complete about."""
SHOWN = 20
"""Cells in the figure of the strongest."""


@dataclass(frozen=True)
class Completeness:
    """How well the estimates of one site's units add up to the exact effect of patching the whole site."""

    site: str
    steps: int
    """Midpoints on the line from base to donor."""
    error: float
    """Sum over examples of |sum of the units - exact|, as a share of the sum of |exact| (of SLIGHT of the gap between
    the sides, where that is more: a site without effect has no share to speak of)."""


@dataclass(frozen=True)
class GradientScores:
    """Estimated effects of every unit, with their error against real patches of a sample of them."""

    effects: Effects
    """The estimates, per cell and example: values = base + estimate."""
    method: str
    agreement: Agreement | None
    """The sample that was patched for real; None when that was switched off."""
    completeness: tuple[Completeness, ...] = ()
    """For integrated gradients, of every site."""
    rules: tuple[str, ...] = ()
    """Relevance rules that were in force."""
    refused: tuple[tuple[str, str], ...] = ()
    """Relevance rules that the model does not allow, each with the reason."""

    def table(self) -> list[dict[str, Any]]:
        """One row a cell, strongest first: mean estimate, spread over clusters, and the exact effect if patched."""
        known = {} if self.agreement is None else dict(zip(self.agreement.labels, self.agreement.exact))
        rows = self.effects.table()
        keep = ("site", "effect", "share", "cluster_se", "unit")
        return [
            {name: rows[i][name] for name in keep} | {"exact": known.get(rows[i]["site"])}
            for i in self.effects.order("size")
        ]

    def facts(self) -> dict[str, Any]:
        """What belongs to the whole result: how near the sample came, completeness, rules."""
        found: dict[str, Any] = {"method": self.method}
        if self.agreement is not None:
            found["agreement"] = self.agreement.sentence(self.effects.unit)
        if self.completeness:
            worst = max(self.completeness, key=lambda one: one.error)
            found["completeness"] = (
                f"units of a site add up to its exact effect to {worst.error:.1%} at worst ({worst.site}, "
                f"{worst.steps} steps)"
            )
        if self.method == "relevance":
            found["rules"] = ", ".join(self.rules) or "none"
            found |= {f"without {name}": reason for name, reason in self.refused}
        return found

    def figures(self) -> tuple[Figure, ...]:
        """The strongest cells, and the sample: estimate beside exact effect."""
        strong = self.effects.order("size")[:SHOWN]
        mean = self.effects.mean().tolist()
        unit = self.effects.unit
        bars = Bars(
            f"Estimated effects by {self.method}",
            f"Mean estimated effect of taking each part from the other side, {self.effects.on} run edited; the "
            f"{len(strong)} strongest of {len(self.effects)}. Positive: it raises the metric.",
            unit,
            tuple(self.effects.labels[i] for i in strong),
            tuple(mean[i] for i in strong),
        )
        if self.agreement is None:
            return (bars,)
        checked = Points(
            "Estimate against exact patch",
            self.agreement.sentence(unit),
            f"exact effect ({unit})",
            f"estimate ({unit})",
            self.agreement.labels,
            self.agreement.exact,
            self.agreement.estimated,
        )
        return (bars, checked)

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256. Raises UsageError for a folder."""
        if Path(path).is_dir():
            raise UsageError(f"{path}: this is a folder; give a file in it, such as scores.safetensors", path=str(path))
        texts = {name: getattr(self.effects, name) for name in _TEXTS}
        own = {name: getattr(self, name) for name in ("method", "agreement", "completeness", "rules", "refused")}
        manifest = {"kind": "gradient scores", "format": 1, "effects": texts, **own}
        manifest["provenance"] = self.effects.provenance
        return save_tensors(Path(path), {name: getattr(self.effects, name) for name in _TENSORS}, manifest)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "GradientScores":
        """Read a saved file. Raises WrongModel when `model` is not the one it was made with, BrokenEvidence when the
        file is not a saved `GradientScores`."""
        with saved(path, "gradient scores", None if model is None else model.digest) as (tensors, manifest):
            texts = {name: _frozen(manifest["effects"][name]) for name in _TEXTS}
            found = Effects(
                **{name: tensors[name] for name in _TENSORS}, **texts, provenance=Provenance(**manifest["provenance"])
            )
            agreement = manifest["agreement"]
            return cls(
                found,
                manifest["method"],
                None if agreement is None else Agreement(**{key: _frozen(item) for key, item in agreement.items()}),
                tuple(Completeness(**one) for one in manifest["completeness"]),
                tuple(manifest["rules"]),
                tuple((name, reason) for name, reason in manifest["refused"]),
            )


_TENSORS = ("values", "clean", "corrupt")
_TEXTS = ("labels", "on", "method", "metric", "unit", "sign", "clusters", "ids")


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def gradient_scores(
    model: Model,
    task: Task | Batch,
    *,
    method: str = "atp",
    kinds: Sequence[str] | None = None,
    positions: Positions = None,
    mode: str = "denoise",
    rules: Sequence[str] | None = None,
    steps: int = 8,
    max_steps: int = 64,
    tolerance: float = 0.02,
    check: int = 60,
    seed: int = 0,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> GradientScores:
    """Estimated effect of patching every unit of these kinds from the other side, per pair, checked on a sample.

    raw = the estimate of m(base with the unit from the donor) - m(base), in the metric's unit; signs as in `sweep`.
    For atp_star the size is the mean over the layers l of |estimate with nothing passing through layer l's writes|
    (for a write: over the layers other than its own), with the sign of the sum of these estimates.
    Cost, in passes of all rows: atp and relevance 2 forward, 1 backward; atp_star L + 1 backward, and 2 forward more
    for queries and keys; ig 2 forward and, for each site, as many forward and backward as steps, from its layer on.
    Then `check` patches, through the planner.
    Source: Nanda 2023; Kramar et al. 2024 (arXiv 2403.00745); Sundararajan et al. 2017 and Hanna et al. 2024 (arXiv
    2403.17806) on integrated gradients; Jafari et al. 2025 (arXiv 2508.21258) on relevance.
    Laws: atp is exact where the metric is linear in the site; the estimate for a query is exact where what the head
    gives reaches the metric linearly; ig of a site's units adds up to the site's effect; a unit that both sides agree
    on gets exactly 0; rules and cut slopes leave all values bit for bit as they are.
    Misleads: docs/methods/attribution-patching.md. It ranks; it is no evidence.
    Raises SiteUnavailable for a kind, a rule or a repair that the model does not allow, UsageError for a metric without
    a gradient.

    Args:
        method: "atp", "atp_star", "ig" or "relevance", see the top of this file.
        kinds: kinds of site; heads and neurons of each become one cell each. None: heads (`z`), MLPs (`mlp_out`),
            neurons (`mlp_act`), and for atp_star queries and keys, as far as the model has them.
        positions: None sums over all positions of a row; else one cell for each of these, as in `sweep`.
        rules: relevance rules, see cutaway.models.relevance; None: those of the usual three that the model allows.
        steps: midpoints that integrated gradients begin with; doubled until the error is below `tolerance` of the
            site's effect, or `max_steps` is reached. The result says what was reached.
        check: cells that are patched for real, drawn from every kind alike; 0 for none.
    """
    choose("method", method, METHODS)
    choose("mode", mode, tuple(BASES))
    _check_numbers(steps, max_steps, tolerance, check)
    if rules is not None and method != "relevance":
        raise UsageError(f"rules belong to method='relevance', not to {method!r}; leave them out", method=method)
    batch = encode(model, task)
    require_gradient(batch, mode)
    chosen = choose_rules(model, rules) if method == "relevance" else Rules()
    usual = (*QUERIES_AND_KEYS, *KINDS) if method == "atp_star" else KINDS
    bases = bases_of(model, kinds, usual)
    groups = _writes(model) if method == "atp_star" else []
    if method == "atp_star":
        _require_patterns(model, bases)

    def estimator(piece: Batch, bases: Sequence[Site], cells: Sequence[Site]) -> Estimate:
        if method == "atp_star":
            return _star(model, piece, bases, cells, mode, groups, max_tokens)
        if method == "ig":
            return _integrated(model, piece, bases, cells, mode, (steps, max_steps, tolerance), max_tokens)
        return first_order(model, piece, bases, cells, mode, chosen)

    found, pieces = estimated(model, batch, bases, positions, mode, method, estimator, progress, max_tokens)
    agreement = None
    if check:
        drawn = sample(found.labels, check, seed)
        exact = sweep(model, batch, [found.labels[i] for i in drawn], mode=mode, max_tokens=max_tokens)
        agreement = compare(found, exact)
        found = replace(found, provenance=replace(found.provenance, seed=seed))
    return GradientScores(
        found, method, agreement, _completeness(pieces) if method == "ig" else (), chosen.names, chosen.refused
    )


def _check_numbers(steps: int, max_steps: int, tolerance: float, check: int) -> None:
    if not 1 <= steps <= max_steps:
        raise OutOfRange(f"steps={steps}, max_steps={max_steps}: needs 1 <= steps <= max_steps", steps=steps)
    if not tolerance > 0:
        raise OutOfRange(f"tolerance={tolerance}: a share of the effect above 0; 0.02 is usual", tolerance=tolerance)
    if check < 0:
        raise OutOfRange(f"check={check}: cells to patch for real, 0 for none", check=check)


# -- AtP*


def _writes(model: Model) -> list[list[Site]]:
    """For each layer what it adds to the residual stream. Raises SiteUnavailable, UsageError for a single layer."""
    body = model.body
    if body.n_layers < 2:
        raise UsageError(
            "atp_star leaves out one layer's writes at a time, and this model has one layer; use method='atp'"
        )
    groups = []
    for layer in range(body.n_layers):
        statuses = {kind: body.status(Site(kind, layer)) for kind in ("attn_write", "mlp_write")}
        found = [Site(kind, layer) for kind, one in statuses.items() if one.state != "refused" and one.editable]
        if not found:
            reason = "; ".join(one.reason for one in statuses.values() if one.reason)
            raise SiteUnavailable(
                f"atp_star: what layer {layer} of {model.name} writes is not known: {reason}; use method='atp'",
                site=f"attn_write.{layer}",
                reason=reason,
            )
        groups.append(found)
    return groups


def _require_patterns(model: Model, bases: Sequence[Site]) -> None:
    for site in bases:
        if site.kind in QUERIES_AND_KEYS:
            model.body.expand([Site(kind, site.layer) for kind in ("scores", "pattern")])


def _star(
    model: Model,
    batch: Batch,
    bases: Sequence[Site],
    cells: Sequence[Site],
    mode: str,
    groups: list[list[Site]],
    max_tokens: int,
) -> Estimate:
    """Every estimate once with each layer's writes cut; queries and keys by the patterns that they would give."""
    inputs = side(batch, BASES[mode])
    attending = [site for site in bases if site.kind in QUERIES_AND_KEYS]
    patterns = list(dict.fromkeys(Site("pattern", site.layer) for site in attending))
    # patterns are read on both sides, so that both run the same attention kernel and agree to the last bit
    donor = model.run(side(batch, other(BASES[mode])), reads=[*bases, *patterns], logits=batch.logits)
    plain = [site for site in bases if site not in attending]
    slopes, own = slopes_of(model, batch, inputs, [*plain, *patterns], without=groups)
    moved = _moved(model, inputs, attending, donor.activations, max_tokens)
    lines = []
    for cell in cells:
        by_layer = [
            _line(gradients, slopes, donor.activations, moved, inputs, cell)
            for layer, gradients in enumerate(slopes.cut)
            if layer != cell.layer or cell.kind in STREAM
        ]
        each = torch.stack([per_pair(line, batch) for line in by_layer])
        lines.append(each.abs().mean(0) * each.sum(0).sign())
    return Estimate(torch.cat(lines), own, batch.values(required(donor.logits)).detach().cpu())


def _line(
    gradients: Activations,
    slopes: Gradients,
    donor: Activations,
    moved: dict[Site, "Moved"],
    inputs: Tokens,
    cell: Site,
) -> Float[Tensor, "unit row"]:
    """One estimate of a cell's units, from one set of gradients."""
    base = cell.base
    if base not in moved:
        return summed((donor[base] - slopes.activations[base]) * gradients[base], inputs, cell)
    return moved[base].effect(gradients[Site("pattern", cell.layer)], inputs, cell)


@dataclass(frozen=True)
class Moved:
    """What other queries or keys do to one layer's attention pattern, all else as in the base run."""

    site: Site
    n_units: int
    """Query heads, or key/value heads."""
    before: Float[Tensor, "row head query key"]
    """The base run's pattern."""
    after: Float[Tensor, "row head query key"]
    """With all queries, or all keys, from the donor."""
    alone: Float[Tensor, "row head query key"]
    """exp(donor's score - log of the base run's sum of exponentials): what a key alone would weigh, before the row is
    made to sum to one again."""
    still: Bool[Tensor, "row unit pos"]
    """Both sides agree there, so that nothing moves: exactly, where two passes would differ by rounding."""

    def effect(self, slope: Float[Tensor, "row head query key"], inputs: Tokens, cell: Site) -> Tensor:
        """Sum over the pattern of (after - before) x slope, by head; a line a unit.

        A query changes its own row. One key s changes every row t from it on: with f = p'' - p, where p'' is `alone`,
        and g the slope, the row's change is f (g_s - sum_u p_u g_u) / (1 + f).
        """
        real = inputs.mask.to(slope.device)[:, None, :, None]
        if self.site.kind == "q":
            rows = ((self.after - self.before) * slope).masked_fill(~real, 0.0).sum(3).masked_fill(self.still, 0.0)
            return summed(rows.transpose(1, 2).unsqueeze(3), inputs, cell)
        if cell.pos is None:
            whole = ((self.after - self.before) * slope).masked_fill(~real, 0.0).sum((2, 3))
            return self._shared(whole, 1).masked_fill(self.still.all(2), 0.0).T
        middle = (self.before * slope).sum(3, keepdim=True)
        shift = self.alone - self.before
        change = (shift * (slope - middle) / (1 + shift)).masked_fill(~real, 0.0).sum(2)
        moved = self._shared(change, 1).masked_fill(self.still, 0.0)
        return summed(moved.transpose(1, 2).unsqueeze(3), inputs, cell)

    def _shared(self, by_head: Tensor, axis: int) -> Tensor:
        """Sums over the query heads that read one key/value head."""
        return by_head.unflatten(axis, (self.n_units, -1)).sum(axis + 1)


def _moved(
    model: Model, inputs: Tokens, attending: Sequence[Site], donor: Activations, max_tokens: int
) -> dict[Site, Moved]:
    """The patterns that the donor's queries and keys would give, layer by layer; the model's own attention says."""
    if not attending:
        return {}
    layers = sorted({site.layer for site in attending if site.layer is not None})
    wanted = {layer: (Site("scores", layer), Site("pattern", layer)) for layer in layers}
    runs = [Run(inputs, reads=(*attending, *(site for pair in wanted.values() for site in pair)))]
    runs += [
        Run(inputs, edits=(site.patch(only(donor, site)),), reads=wanted[site.layer])  # type: ignore[index]
        for site in attending
    ]
    base, *others = engine.plan(model, runs, max_tokens=max_tokens).execute()
    found = {}
    for site, other_run in zip(attending, others):
        scores, pattern = (base.activations[one] for one in wanted[site.layer])  # type: ignore[index]
        new_scores, new_pattern = (other_run.activations[one] for one in wanted[site.layer])  # type: ignore[index]
        top = pattern.argmax(3, keepdim=True)
        total = scores.gather(3, top) - pattern.gather(3, top).log()
        still = (donor[site] == base.activations[site]).all(3).transpose(1, 2)
        found[site] = Moved(site, model.body.n_units(site), pattern, new_pattern, (new_scores - total).exp(), still)
    return found


# -- integrated gradients


def _integrated(
    model: Model,
    batch: Batch,
    bases: Sequence[Site],
    cells: Sequence[Site],
    mode: str,
    limits: tuple[int, int, float],
    max_tokens: int,
) -> Estimate:
    """One site at a time on the line from base to donor; steps doubled until its units add up to its effect."""
    inputs = side(batch, BASES[mode])
    resumes = not model.body.resume
    entries = [Site("resid_post", layer - 1) for layer in _layers(bases) if layer] if resumes else []
    donor = model.run(side(batch, other(BASES[mode])), reads=bases, logits=batch.logits)
    base = model.run(inputs, reads=list(dict.fromkeys([*bases, *entries])), logits=batch.logits)
    own = batch.values(required(base.logits)).detach().cpu()
    far = batch.values(required(donor.logits)).detach().cpu()
    exact = _exact(model, batch, inputs, bases, donor.activations, max_tokens)
    products, sums = {}, {}
    for site in bases:
        entry = Site("resid_post", site.layer - 1) if resumes and site.layer and site.kind != "embed" else None
        state = None if entry is None else base.activations[entry]
        difference = donor.activations[site] - base.activations[site]
        steps, most, tolerance = limits
        while True:
            slope = _mean_slope(
                model, batch, inputs, site, base.activations[site], difference, state, steps, max_tokens
            )
            products[site] = difference * slope
            whole = per_pair(summed(products[site], inputs, site), batch).sum(0)
            missed = float((whole - (exact[site] - own)).abs().sum())
            if missed <= tolerance * _size(exact[site] - own, far - own) or 2 * steps > most:
                break
            steps *= 2
        sums[site] = (steps, whole, exact[site] - own)
    values = torch.cat([per_pair(summed(products[cell.base], inputs, cell), batch) for cell in cells])
    return Estimate(values, own, far, sums)


def _size(effect: Float[Tensor, " example"], gap: Float[Tensor, " example"]) -> float:
    """What an error of a site's units is a share of."""
    return max(float(effect.abs().sum()), SLIGHT * float(gap.abs().sum()))


def _layers(bases: Sequence[Site]) -> list[int]:
    return sorted({site.layer for site in bases if site.layer is not None and site.kind != "embed"})


def _exact(
    model: Model, batch: Batch, inputs: Tokens, bases: Sequence[Site], donor: Activations, max_tokens: int
) -> dict[Site, Float[Tensor, " example"]]:
    """The metric with each whole site from the donor."""
    runs = [Run(inputs, edits=(site.patch(only(donor, site)),), logits=batch.logits) for site in bases]
    scores = engine.plan(model, runs, max_tokens=max_tokens).execute(
        reduce=lambda result, rows: batch.row_scores(required(result.logits), rows)
    )
    return {site: batch.combine(rows).detach().cpu() for site, rows in zip(bases, scores)}


def _mean_slope(
    model: Model,
    batch: Batch,
    inputs: Tokens,
    site: Site,
    base: Tensor,
    difference: Tensor,
    state: Tensor | None,
    steps: int,
    max_tokens: int,
) -> Tensor:
    """The slope at the site, averaged over the midpoints; several of them are rows of one pass."""
    total = torch.zeros_like(base)
    for shares in _chunks([(i + 0.5) / steps for i in range(steps)], max(1, max_tokens // inputs.ids.numel())):
        n = len(shares)
        mixed = torch.cat([base + share * difference for share in shares])
        wide = inputs.repeat(n)

        def target(logits: Tensor | None, _: Any, n: int = n) -> Tensor:
            rows = required(logits).chunk(n)
            return torch.stack([batch.values(part).sum() for part in rows]).sum()

        places = batch.logits if isinstance(batch.logits, str) else batch.logits * n
        resume = None if state is None else Resume(site.layer or 0, state.repeat(n, 1, 1))
        found = backward(model, wide, target, [site], logits=places, edits=[site.replace(mixed)], resume=resume)
        total += found.gradients[site].unflatten(0, (n, len(inputs))).sum(0)
    return total / steps


def _chunks(values: list[float], size: int) -> Iterator[list[float]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _completeness(pieces: Sequence[Estimate]) -> tuple[Completeness, ...]:
    """Over all pieces, of every site."""
    found = []
    gap = torch.cat([piece.donor - piece.base for piece in pieces])
    for site in pieces[0].sums:
        steps = max(piece.sums[site][0] for piece in pieces)
        whole, exact = (torch.cat(parts) for parts in zip(*(piece.sums[site][1:] for piece in pieces)))
        size, missed = _size(exact, gap), float((whole - exact).abs().sum())
        found.append(Completeness(str(site), steps, missed / size if size > 0 else 0.0 if missed == 0 else 1.0))
    return tuple(found)
