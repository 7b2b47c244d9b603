"""Activation patching: which parts carry what decides the answer?

1. Run the donor side of every pair once and keep its values at all sites of the sweep.
2. For every cell, a site (at a position), run the base side with that cell's value taken from the donor.
3. Score every run by the task's metric.

`denoise` edits the corrupt run with clean values: what restores the behavior is sufficient for it, given the rest of
the corrupt run. `noise` edits the clean run with corrupt values: what breaks it is necessary, given the rest of the
clean run. They disagree wherever parts back each other up (noise misses them) or work only together (denoise does).
"""

from cutaway.models import Model
from cutaway.patching.effects import Effects
from cutaway.patching.measure import (
    MAX_TOKENS,
    Cell,
    Groups,
    Positions,
    Progress,
    choose,
    encode,
    grouped,
    measure,
    only,
    other,
    side,
)
from cutaway.tasks import Batch, Task

BASES = {"denoise": "corrupt", "noise": "clean"}
"""Mode to the side that is edited."""


def sweep(
    model: Model,
    task: Task | Batch,
    sites: Groups,
    *,
    positions: Positions = None,
    mode: str = "denoise",
    window: int | None = None,
    together: bool = False,
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Effects:
    """Metric of the base run with each cell's value taken from the other side, per pair.

    raw = m(base with the cell from the donor) - m(base), in the metric's unit. Positive in `denoise`: the cell carries
    the answer; negative in `noise`: the answer needs it. `normalised` is the share of the gap: 1 for a cell that
    decides everything, in either mode. Source: Vig et al. 2020; Meng et al. 2022; Heimersheim and Nanda 2024.
    Cost: two forward passes a side and one a cell, of which only the layers and positions after the edit are computed.
    Laws: a cell whose donor equals its base gives exactly 0; all positions of resid_pre.0 give the whole gap.
    Misleads: a saturated metric, backup parts, pairs that differ in more than the answer
    (docs/methods/activation-patching.md).
    Raises SiteUnavailable, OutOfRange, UnknownName; Misaligned for positions="each" on prompts of unequal length.

    Args:
        sites: sites, their texts, or sets; `sites.z[:].heads()` is a cell for every head. A list among them is one
            cell.
        positions: a cell for each of these roles or indices; "each" for every position; None: all positions at once.
        mode: "denoise" edits the corrupt run, "noise" the clean one.
        window: patch this many consecutive layers of a kind as one cell; a cell for each place where they fit.
        together: one cell (a position) that patches all sites.
        max_tokens: bound on the tokens of one forward pass. The result does not depend on it.
    """
    choose("mode", mode, tuple(BASES))
    batch = encode(model, task)
    on = BASES[mode]
    groups = grouped(model, sites, positions, batch, window=window, together=together)
    bases = list(dict.fromkeys(site.base for _, members in groups for site in members))
    donor = model.capture(side(batch, other(on)), bases)
    cells = [Cell(label, tuple(site.patch(only(donor, site)) for site in members)) for label, members in groups]
    return measure(model, batch, cells, on=on, method=mode, progress=progress, max_tokens=max_tokens)
