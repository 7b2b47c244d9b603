"""Targets: the one number a row that is attributed to its tokens. A logit, a difference of logits, or any unit: a
neuron, a head's output along a direction, the residual stream along a direction, at one position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import AnswersEqual, OutOfRange, UsageError
from cutaway.models import Activations, Model, RunResult, Site, Tokens
from cutaway.models.forward import LogitsAt
from cutaway.models.sites import PATTERN_KINDS


@dataclass(frozen=True, eq=False)
class Target:
    """One number a row. Made by `logit`, `logit_diff` and `unit`."""

    name: str
    """How results and figures call it."""
    plus: tuple[int, ...] = ()
    """Of each row the token whose logit is read; one entry stands for all rows."""
    minus: tuple[int, ...] = ()
    """Of each row the token whose logit is subtracted; () for none."""
    position: str | int = "end"
    """Where the logits are read: a role, or an index into the unpadded row."""
    site: Site | None = None
    """The unit's site with its position, instead of logits."""
    direction: Float[Tensor, " slot"] | None = None
    """What the slot is multiplied with; None where the slot is one number."""

    @property
    def reads(self) -> tuple[Site, ...]:
        """Whole sites that a run must return."""
        return () if self.site is None else (self.site.base,)

    def logits(self, tokens: Tokens) -> LogitsAt:
        """Logits that a run must return."""
        if self.site is not None:
            return "none"
        return self.position if isinstance(self.position, str) else ((self.position,),) * len(tokens)

    def check(self, model: Model, tokens: Tokens) -> None:
        """Refuse, before anything runs, a target that these rows of this model do not have."""
        if self.site is None:
            tokens.positions(self.position)
            for ids in (self.plus, self.minus):
                if len(ids) not in (0, 1, len(tokens)):
                    raise UsageError(
                        f"target {self.name!r}: {len(ids)} tokens for {len(tokens)} rows; give one, or one a row"
                    )
                size = model.body.d_vocab or 0
                outside = next((i for i in ids if not 0 <= i < size), None)
                if outside is not None:
                    raise OutOfRange(f"target {self.name!r}: token id {outside} of {size} (0-{size - 1})", id=outside)
            return
        model.body.expand([self.site])
        tokens.positions(self.site.pos)
        slot = list(model.body.slot(self.site))
        slot = slot[1:] if self.site.unit is not None else slot
        given = None if self.direction is None else list(self.direction.shape)
        if self.direction is None and slot:
            raise UsageError(
                f"target {self.site}: it holds {slot} numbers; give a direction of that shape, or name one neuron",
                site=str(self.site),
            )
        if given is not None and -1 not in slot and given != slot:
            raise UsageError(
                f"target {self.site}: the direction has shape {given}, the site holds {slot}", site=str(self.site)
            )

    def values(
        self, logits: Tensor | None, values: Mapping[Site, Tensor], tokens: Tokens, model: str, rows: Sequence[int]
    ) -> Float[Tensor, " row"]:
        """The number of each row, with its graph; `rows` are the indices of these rows among all."""
        if self.site is not None:
            found = Activations(values, tokens, model)[self.site]
            if self.direction is not None:
                found = (found * self.direction.to(found)).flatten(1).sum(1)
            return found
        assert logits is not None  # a target without a site asks for them
        at_position = logits[:, -1]
        found = at_position.gather(1, self._ids(self.plus, rows).to(logits.device)[:, None])[:, 0]
        if self.minus:
            found = found - at_position.gather(1, self._ids(self.minus, rows).to(logits.device)[:, None])[:, 0]
        return found

    def of(self, result: RunResult, rows: Sequence[int]) -> Float[Tensor, " row"]:
        """The number of each row of a run."""
        acts = result.activations
        assert acts.tokens is not None  # token rows
        return self.values(result.logits, acts.tensors, acts.tokens, acts.model, rows)

    def _ids(self, ids: tuple[int, ...], rows: Sequence[int]) -> Tensor:
        one_a_row = list(ids)
        return torch.tensor([one_a_row[row if len(one_a_row) > 1 else 0] for row in rows])


def logit(token: int | Sequence[int], *, at: str | int = "end", name: str | None = None) -> Target:
    """The logit of a token (or of one a row) at a position."""
    ids = _ids(token, "token")
    return Target(name or f"logit of {_shown(ids)} at {at}", plus=ids, position=at)


def logit_diff(
    answer: int | Sequence[int], foil: int | Sequence[int], *, at: str | int = "end", name: str | None = None
) -> Target:
    """logit(answer) - logit(foil) at a position; tokens for all rows, or one a row. Raises AnswersEqual."""
    plus, minus = _ids(answer, "answer"), _ids(foil, "foil")
    size = max(len(plus), len(minus))
    pairs = zip(plus * size if len(plus) == 1 else plus, minus * size if len(minus) == 1 else minus)
    same = next((a for a, b in pairs if a == b), None)
    if same is not None:
        raise AnswersEqual(f"answer and foil are both token {same}, so their difference is always 0", id=same)
    return Target(name or f"logit of {_shown(plus)} - logit of {_shown(minus)} at {at}", plus, minus, at)


def unit(site: Site | str, direction: Tensor | None = None, *, name: str | None = None) -> Target:
    """Any unit at one position: a neuron, or a head, a write or a residual state along a direction.

    Raises UsageError for a site without a position, or one inside the attention pattern.
    """
    found = Site.parse(site) if isinstance(site, str) else site
    if found.kind in PATTERN_KINDS or found.kind == "module":
        raise UsageError(f"target {found}: a unit is a neuron, or a head or state along a direction", site=str(found))
    if not isinstance(found.pos, int | str):
        raise UsageError(f"target {found}: name one position, as in '{found.base}@end'", site=str(found))
    if isinstance(found.unit, tuple) or found.batch_rows is not None:
        raise UsageError(f"target {found}: name one head or neuron, and no rows", site=str(found))
    if direction is not None and (direction.numel() == 0 or not bool(direction.isfinite().all())):
        raise UsageError(f"target {found}: the direction must hold finite numbers", site=str(found))
    along = "" if direction is None else " along a direction"
    return Target(name or f"{found}{along}", site=found, direction=direction)


def _ids(tokens: int | Sequence[int], what: str) -> tuple[int, ...]:
    if isinstance(tokens, str):
        raise UsageError(f"{what} {tokens!r}: give a token id, as from model.token_id({tokens!r})")
    ids = (tokens,) if isinstance(tokens, int) else tuple(int(item) for item in tokens)
    if not ids:
        raise UsageError(f"{what}: no token was given")
    return ids


def _shown(ids: tuple[int, ...]) -> str:
    return f"token {ids[0]}" if len(ids) == 1 else "each row's token"
