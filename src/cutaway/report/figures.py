"""Figures of a study as functions of its raw effects: drawn when a report is written, and again when it is verified.

One number everywhere: mean effect / mean gap over cluster means, as a claim estimates it, with the half width of its
Fieller interval.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from cutaway.models import Site
from cutaway.patching import Effects
from cutaway.patching.effects import GAP_SHARE
from cutaway.report import schema

Grid: TypeAlias = tuple[tuple[float, ...], ...]
_ABLATED = {
    "resample": "its output on another prompt",
    "mean": "its mean over the prompts",
    "mean_by_position": "its mean at each position",
    "zero": "zero",
}


def position_map(residual: Effects) -> schema.EffectMap:
    """Residual states by named position, denoised."""
    places = [label.split("@") for label in residual.labels]
    rows, columns = list(dict.fromkeys(p[0] for p in places)), list(dict.fromkeys(p[1] for p in places))
    at = {label: tuple(place) for label, place in zip(residual.labels, places)}
    values, halves = _grid(residual, at, rows, columns)
    return schema.EffectMap(
        title="Where the answer is carried",
        sentence="Each cell puts the clean run's residual stream, at one layer and position, into the corrupt run. "
        "1: this state alone brings the answer back; 0: it changes nothing; below 0: it makes things worse.",
        unit=GAP_SHARE,
        row_axis="residual state",
        column_axis="position",
        rows=tuple(rows),
        columns=tuple(columns),
        values=values,
        half_widths=halves,
        n_examples=len(residual.ids),
    )


def head_map(ablated: Effects) -> schema.EffectMap | None:
    """Heads by layer, ablated on the clean run; None without heads."""
    heads = {label: Site.parse(label) for label in ablated.labels if label.startswith("z.")}
    if not heads:
        return None
    at = {label: (str(site.layer), str(site.unit)) for label, site in heads.items()}
    layers, units = (sorted({place[i] for place in at.values()}, key=int) for i in (0, 1))
    values, halves = _grid(ablated.select(list(heads)), at, layers, units)
    return schema.EffectMap(
        title="Which heads are needed",
        sentence=f"Each cell replaces one head's output in the clean run by {_ABLATED[ablated.method]}. "
        "1: the behavior is lost as with a corrupt prompt; 0: the head does not matter; below 0: it works against it.",
        unit=GAP_SHARE,
        row_axis="layer",
        column_axis="head",
        rows=tuple(layers),
        columns=tuple(units),
        values=values,
        half_widths=halves,
        n_examples=len(ablated.ids),
    )


def mlps(ablated: Effects) -> schema.EffectSeries | None:
    """MLPs in layer order, ablated on the clean run; None without MLPs."""
    chosen = [label for label in ablated.labels if label.startswith("mlp_out")]
    if not chosen:
        return None
    found = ablated.select(chosen).shares()
    items = [schema.LabelledEffect(label=label, value=value, half_width=half) for label, (value, half) in found.items()]
    text = f"Each bar replaces one MLP's output in the clean run by {_ABLATED[ablated.method]}; signs as for the heads."
    return schema.EffectSeries(title="Which MLPs are needed", sentence=text, unit=GAP_SHARE, items=tuple(items))


def attribution(denoised: Effects, estimated: Effects | None) -> schema.Attribution | None:
    """Gradient estimates beside exact patching, for every head and MLP; None without estimates."""
    if estimated is None:
        return None
    exact = dict(zip(denoised.labels, denoised.share().tolist()))
    points = [
        schema.AttributionPoint(label=label, estimate=value, exact=exact[label])
        for label, value in zip(estimated.labels, estimated.share().tolist())
        if label in exact
    ]
    x, y = (np.array([getattr(point, name) for point in points]) for name in ("estimate", "exact"))
    defined = len(points) > 2 and float(x.std()) > 0 and float(y.std()) > 0
    return schema.Attribution(
        title="How far a gradient would have got",
        sentence="Each point is a head or an MLP: its effect by attribution patching (two passes and one backward for "
        "all of them) against its exact effect by patching. On the diagonal the estimate is right.",
        unit=GAP_SHARE,
        correlation=max(-1.0, min(1.0, float(np.corrcoef(x, y)[0, 1]))) if defined else None,
        points=tuple(points),
    )


def _grid(
    effects: Effects, at: Mapping[str, tuple[str, ...]], rows: list[str], columns: list[str]
) -> tuple[Grid, Grid | None]:
    """Values and half widths of a map; no half widths where one of them is unbounded."""
    found = {at[label]: one for label, one in effects.shares().items()}
    values = tuple(tuple(found[row, column][0] for column in columns) for row in rows)
    halves = [[found[row, column][1] for column in columns] for row in rows]
    known = tuple(tuple(half for half in row if half is not None) for row in halves)
    whole = all(len(row) == len(columns) for row in known)
    return values, known if whole else None
