"""Conditions: a linear probe, read earlier in the same pass, that decides where an edit acts.

    when = Condition(sites.resid_post[2], direction, threshold=3.0, rule="end")
    model.generate(prompt, [sites.resid_post[4].add(vector).when(when)])

The score of a token is direction . h + bias, h being the site's value there after the edits of that site (at the
edit's own site: as it comes to the edit). A token fires where its score is over the threshold. The rule says what a
firing token switches on:

    token     the edit acts at the tokens that fire, each for itself
    end       the edit acts in the rows whose prompt's last token (the role 'end') fires
    prompt    the edit acts in the rows of which any token of the prompt fires

In every case the edit acts only where its own site selects, and with 'end' and 'prompt' on all of these positions,
those before the firing token included: the prompt is read as a whole. Conditional steering: Lee et al. 2024 (CAST).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.errors import BadEdit
from cutaway.models.sites import Site
from cutaway.models.tokens import Tokens

if TYPE_CHECKING:
    import cutaway.models.model

RULES: Final = ("token", "end", "prompt")
ORDER: Final = (
    "resid_pre", "attn_in", "q", "z", "attn_out", "attn_write", "resid_mid", "mlp_in", "mlp_pre", "mlp_act", "router",
    "mlp_out", "mlp_write", "resid_post",
)  # fmt: skip
"""Kinds that hold one vector a token, in the order in which a block comes to them (a parallel block may differ: there
the run itself finds a condition that comes too late)."""


@dataclass(frozen=True, eq=False)
class Condition:
    """A probe over a threshold. Edits that hold the same object share its scores."""

    site: Site
    """What the probe reads: one vector a token, so a residual state, a write, or one head."""
    direction: Tensor
    """The probe's weights; not normalised."""
    threshold: float = 0.0
    """Scores over it fire; minus infinity lets every token fire, infinity none."""
    bias: float = 0.0
    """Added to every score."""
    rule: str = "token"
    """What a token that fires switches on: 'token', 'end' or 'prompt'."""

    def __post_init__(self) -> None:
        site, name = self.site, f"condition at {self.site}"
        if self.rule not in RULES:
            raise BadEdit(f"{name}: rule={self.rule!r}; it is one of {', '.join(RULES)}", site=str(site))
        if site.kind not in (*ORDER, "embed", "final_norm") or (
            site.axis is not None and not isinstance(site.unit, int)
        ):
            raise BadEdit(
                f"{name}: a probe reads one vector a token; name a residual state, a write, or one head, as in "
                "resid_post.2 or z.2.h1",
                site=str(site),
            )
        if site.pos is not None or site.batch_rows is not None:
            raise BadEdit(
                f"{name}: it is read at every token of every row, and rule= says which of them count; give {site.base}",
                site=str(site),
            )
        direction = self.direction
        if not direction.is_floating_point() or direction.ndim > 1 or not bool(direction.isfinite().all()):
            raise BadEdit(
                f"{name}: the direction is {direction.dtype} of shape {list(direction.shape)}; give one vector of "
                "finite floats",
                site=str(site),
            )
        if float(direction.norm()) == 0.0 or self.threshold != self.threshold or not abs(self.bias) < float("inf"):
            raise BadEdit(
                f"{name}: direction 0, threshold {self.threshold} or bias {self.bias} decides nothing; give a "
                "direction that is not zero, a threshold that is a number, and a finite bias",
                site=str(site),
            )
        object.__setattr__(self, "direction", direction.detach().clone())

    def check(self, model: "cutaway.models.model.Model", edited: Site) -> None:
        """Refuse a probe of another width, and one that comes after the edit (BadEdit)."""
        body, site = model.body, self.site
        body.tap(site)
        slot = list(body.slot(site)[1 if isinstance(site.unit, int) else 0 :])
        if -1 not in slot and list(self.direction.shape) != slot:
            raise BadEdit(
                f"condition at {site}: the direction has shape {list(self.direction.shape)}, the site {slot}",
                site=str(site),
            )
        if (
            edited.kind != "module"
            and site.base != edited.base
            and self._place(site, body) >= self._place(edited, body)
        ):
            raise BadEdit(
                f"condition at {site}: it comes after the edit of {edited}, which waits for it; choose an earlier site",
                site=str(site),
            )

    def _place(self, site: Site, body: Any) -> tuple[float, int]:
        if site.layer is None:
            return (-1.0 if site.kind == "embed" else float(body.n_layers), 0)
        kinds = {"k": "q", "v": "q", "scores": "q", "pattern": "q", "expert_out": "router"}
        return float(site.layer), ORDER.index(kinds.get(site.kind, site.kind))

    def scores(self, value: Float[Tensor, "batch pos *slot"]) -> Float[Tensor, "batch pos"]:
        """The score of every token."""
        if isinstance(self.site.unit, int):
            value = value.select(2, self.site.unit)
        direction = self.direction.to(value.device, torch.float32)
        found = value.detach().float()
        return (found * direction if direction.ndim == 0 else found @ direction) + self.bias

    def holds(self, signal: "Signal", tokens: Tokens, first: int, start: int, width: int) -> Bool[Tensor, "batch pos"]:
        """Where an edit may act: rows `first : first + len(tokens)` of the pass, `width` columns from `start` on."""
        fires = signal.scores[first : first + len(tokens)] > self.threshold
        if self.rule == "token":
            return fires[:, start - signal.start : start - signal.start + width]
        prompts = [tokens.prompt(row) for row in range(len(tokens))]
        if self.rule == "end":
            rows = torch.stack([fires[row, columns[-1] - signal.start] for row, columns in enumerate(prompts)])
        else:
            low = [columns[0] - signal.start for columns in prompts]
            rows = torch.stack([fires[row, a : a + len(c)].any() for row, (a, c) in enumerate(zip(low, prompts))])
        return rows[:, None].expand(-1, width)


@dataclass(frozen=True)
class Signal:
    """The scores of a condition, from column `start` on."""

    start: int
    scores: Float[Tensor, "batch pos"]

    @property
    def stop(self) -> int:
        """One past the last column that has a score."""
        return self.start + self.scores.shape[1]

    def then(self, later: "Signal") -> "Signal":
        """With the scores of later columns, where they follow on; else these alone."""
        if self.stop != later.start or later.start == 0:
            return later
        return Signal(self.start, torch.cat([self.scores, later.scores], 1))
