"""Patchscopes: put a state of one prompt into another prompt that is written to say what a state holds.

1. Run the source prompts; keep the state h at a place and position, and the model's own next token there.
2. Run the target prompt with the state at its placeholder replaced by h, in a layer; read the next token, or continue.
3. The null: the same with states of other prompts (the same place and position). The target prompt, the layer and the
   size of a state answer much by themselves; only what h does beyond the nulls, the lift, speaks of h.

SelfIE is the same with an instruction for a target, several placeholders, and several layers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance, digest
from cutaway.engine import Run
from cutaway.errors import OutOfRange, TooFewClusters, UsageError
from cutaway.figures import Figure, Heatmap, Lines
from cutaway.lenses import store
from cutaway.lenses.states import Inputs, Progress, Steps, Wanted, provenance, rows_of, states, texts_of, words_of
from cutaway.models import Edit, Model, RunResult, Site, Tokens
from cutaway.models.model import Prompts
from cutaway.stats import Interval, mean_interval

IDENTITY = "cat -> cat; 1135 -> 1135; hello -> hello; ?"
"""A target that asks for the token itself; its placeholder is the last token."""
Slots: TypeAlias = str | Sequence[int]
"""Positions, or the text of a token."""


@dataclass(frozen=True)
class Patchscope:
    """What the target prompt says next with each state in it, and with other prompts' states instead."""

    labels: tuple[str, ...]
    """Places that the states come from."""
    position: str
    slots: tuple[int, ...]
    """Positions of the target prompt that were replaced."""
    into: str
    """Layers of the target run: `same`, or their indices."""
    target: tuple[str, ...]
    expected: Int[Tensor, " example"]
    """The token that is looked for: the model's own next token at the position, or the one that was given."""
    top_ids: Int[Tensor, "site example k"]
    top_probabilities: Float[Tensor, "site example k"]
    surprisal: Float[Tensor, "site example"]
    """-log probability of the expected token, nat."""
    hit: Float[Tensor, "site example"]
    """1 where the expected token is the most probable."""
    null_surprisal: Float[Tensor, "site null example"]
    null_hit: Float[Tensor, "site null example"]
    tokens: tuple[tuple[str, ...], ...]
    texts: dict[int, str]
    provenance: Provenance

    def __len__(self) -> int:
        """Number of places."""
        return len(self.labels)

    def lift(self, site: int, *, alpha: float = 0.05) -> Interval:
        """Surprisal of a null minus that of the state, nat, with an interval over the nulls. Positive: the state says
        more of the expected token than other states do. Raises TooFewClusters for too few nulls."""
        each = (self.null_surprisal[site] - self.surprisal[site]).mean(1)
        return mean_interval(np.asarray(each.double().tolist()), [str(i) for i in range(len(each))], alpha=alpha)

    def table(self) -> list[dict[str, Any]]:
        """One row a place: precision at 1 and surprisal, those of the nulls, and the lift with its interval."""
        rows = []
        for i, label in enumerate(self.labels):
            lift = (self.null_surprisal[i].mean() - self.surprisal[i].mean()).item()
            try:
                interval = self.lift(i)
                low, high = interval.low, interval.high
            except TooFewClusters:
                low, high = None, None
            rows.append(
                {
                    "site": label,
                    "precision": self.hit[i].mean().item(),
                    "null_precision": self.null_hit[i].mean().item(),
                    "surprisal": self.surprisal[i].mean().item(),
                    "null_surprisal": self.null_surprisal[i].mean().item(),
                    "lift": lift,
                    "low": low,
                    "high": high,
                    "says": self.texts.get(int(self.top_ids[i, 0, 0]), str(int(self.top_ids[i, 0, 0]))),
                }
            )
        return rows

    def figures(self) -> tuple[Figure, ...]:
        """Precision and surprisal by place beside the nulls', and the words of the first examples."""
        rows, x = self.table(), tuple(map(float, range(len(self))))
        shown = range(min(12, len(self.tokens)))
        words = tuple(
            tuple(self.texts.get(int(t), str(int(t))) for t in self.top_ids[i, : len(shown), 0])
            for i in range(len(self))
        )
        return (
            Lines(
                "Surprisal of the expected token",
                "In the target prompt, with each place's state and with other prompts' states (the null); lower is "
                "more probable. Only the gap between the two speaks of the state.",
                "nat",
                "place",
                x,
                {"state": tuple(r["surprisal"] for r in rows), "null": tuple(r["null_surprisal"] for r in rows)},
                self.labels,
            ),
            Lines(
                "Precision at 1",
                "Share of examples whose most probable token is the expected one.",
                "share",
                "place",
                x,
                {"state": tuple(r["precision"] for r in rows), "null": tuple(r["null_precision"] for r in rows)},
                self.labels,
            ),
            Heatmap(
                "What the target prompt says",
                "Most probable next token with the state of each place; its colour is the probability.",
                "probability",
                "place",
                "prompt",
                self.labels,
                tuple(map(str, shown)),
                tuple(tuple(row[: len(shown)].tolist()) for row in self.top_probabilities[:, :, 0]),
                texts=words,
            ),
        )

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        return store.save(self, path, "patchscope")

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Patchscope":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        return store.load(cls, path, "patchscope", model)


@dataclass(frozen=True)
class Readings:
    """How the target prompt goes on with each state in it, and with other prompts' states instead."""

    labels: tuple[str, ...]
    said: tuple[tuple[str, ...], ...]
    """By place and example."""
    null_said: tuple[tuple[tuple[str, ...], ...], ...]
    """By place, null and example."""
    differs: Float[Tensor, "site example"]
    """Share of the nulls with which the target goes on otherwise. 0: the text says nothing of the state."""
    slots: tuple[int, ...]
    into: str
    tokens: tuple[tuple[str, ...], ...]
    provenance: Provenance

    def __len__(self) -> int:
        """Number of places."""
        return len(self.labels)

    def table(self) -> list[dict[str, Any]]:
        """One row a place and example: its text, one null's, and the share of the nulls that differ."""
        return [
            {
                "site": label,
                "example": e,
                "text": self.said[i][e],
                "null_text": self.null_said[i][0][e],
                "differs": self.differs[i, e].item(),
            }
            for i, label in enumerate(self.labels)
            for e in range(len(self.tokens))
        ]

    def figures(self) -> tuple[Figure, ...]:
        """The texts, shaded by how many nulls differ."""
        return (
            Heatmap(
                "What is said of each state",
                "How the target prompt goes on; the colour is the share of other prompts' states with which it goes on "
                "otherwise.",
                "share",
                "place",
                "prompt",
                self.labels,
                tuple(map(str, range(len(self.tokens)))),
                tuple(tuple(row.tolist()) for row in self.differs),
                texts=self.said,
            ),
        )

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        return store.save(self, path, "patchscope_readings")

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Readings":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        return store.load(cls, path, "patchscope_readings", model)


def patchscope(
    model: Model,
    inputs: Inputs,
    sites: Wanted | None = None,
    *,
    position: str | int = "end",
    target: Prompts = IDENTITY,
    slots: Slots = (-1,),
    into: int | Sequence[int] | None = None,
    expected: Sequence[str | int] | None = None,
    nulls: int | Prompts = 8,
    k: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
    max_tokens: int = 4096,
) -> Patchscope:
    """Next token of a target prompt with a state put in place of its placeholder; with nulls, and the lift over them.

    surprisal = -log p(expected | target prompt with the state), nat; lift = mean surprisal of the nulls minus it.
    Source: Ghandeharioun et al. 2024 (2401.06102); Chen et al. 2024 (SelfIE). Cost: one forward pass of the sources and
    of the nulls' sources, and (1 + nulls) target runs a place and example, from the layer of the placeholder on.
    Laws: a state that is already there changes nothing. Misleads: the target prompt answers by itself; surprisal
    without the lift says nothing of the state; a state may mean nothing in another layer
    (docs/methods/patchscopes.md).
    Raises UsageError for a placeholder that is not in the target, OutOfRange, SiteUnavailable.

    Args:
        inputs: source prompts; of a task, its clean side.
        sites: places the states come from; None: `resid_pre.0`, then `resid_post` of every layer.
        position: role or index of the source's state.
        target: one prompt.
        slots: its placeholders: positions, or the text of a token, which is replaced wherever it stands.
        into: layer, or layers, whose output is replaced in the target run; None: the place that the state comes from.
        expected: for each prompt the token to look for; None: the model's own next token at the position.
        nulls: so many rows of random tokens for each prompt, or prompts to take the nulls' states from.
    """
    scope = _Scope(model, inputs, sites, position, target, slots, into, nulls, seed)
    if not 1 <= k <= (model.body.d_vocab or 0):
        raise OutOfRange(f"k={k}: between 1 and the {model.body.d_vocab} tokens of the vocabulary", k=k)
    steps = Steps(progress, 2)
    values, own = scope.states(steps.next(), max_tokens)
    if expected is not None:
        if len(expected) != scope.n:
            raise UsageError(f"expected: {len(expected)} tokens for {scope.n} prompts; give each prompt one")
        own = torch.tensor([model.token_id(e) if isinstance(e, str) else e for e in expected])
    wanted = own.repeat(scope.copies)

    def reduce(result: RunResult, index: Tensor) -> Float[Tensor, "row column"]:
        assert result.logits is not None
        found = result.logits.float().reshape(len(index), -1).log_softmax(-1)
        top = found.topk(k)
        one = found.gather(1, wanted[index].to(found.device)[:, None])
        return torch.cat([one.double(), top.values.exp().double(), top.indices.double()], 1).cpu()

    runs = [Run(scope.rows, edits=edits, logits="end") for edits in scope.edits(values)]
    found = torch.stack(engine.plan(model, runs, max_tokens=max_tokens).execute(progress=steps.next(), reduce=reduce))
    found = found.unflatten(1, (scope.copies, scope.n))
    hit = (found[..., 1 + k].long() == own).float()
    top_ids = found[:, 0, :, 1 + k :].long()
    return Patchscope(
        labels=tuple(map(str, scope.places)),
        position=str(position),
        slots=scope.slots,
        into=scope.named,
        target=texts_of(model, scope.target)[0],
        expected=own,
        top_ids=top_ids,
        top_probabilities=found[:, 0, :, 1 : 1 + k].float(),
        surprisal=-found[:, 0, :, 0].float(),
        hit=hit[:, 0],
        null_surprisal=-found[:, 1:, :, 0].float(),
        null_hit=hit[:, 1:],
        tokens=texts_of(model, scope.source),
        texts=words_of(model, torch.cat([top_ids.flatten(), own])),
        provenance=scope.provenance(seed),
    )


def patchscope_readings(
    model: Model,
    inputs: Inputs,
    sites: Wanted | None = None,
    *,
    position: str | int = "end",
    target: Prompts = IDENTITY,
    slots: Slots = (-1,),
    into: int | Sequence[int] | None = None,
    nulls: int | Prompts = 4,
    max_new_tokens: int = 12,
    seed: int = 0,
    progress: Progress | None = None,
) -> Readings:
    """How a target prompt goes on, greedily, with a state put in place of its placeholders; beside it the nulls' texts.

    As `patchscope`, whose arguments it has; SelfIE is this with an instruction, several placeholders and layers.
    Cost: (1 + nulls) continuations a place and example. Misleads: a fluent text that the nulls give too says nothing of
    the state: read `differs` first.
    """
    scope = _Scope(model, inputs, sites, position, target, slots, into, nulls, seed)
    steps = Steps(progress, 1 + len(scope.places))
    values, _ = scope.states(steps.next(), 4096)
    said, null_said, differs = [], [], []
    for edits in scope.edits(values):
        out = model.generate(scope.rows, edits, max_new_tokens=max_new_tokens)
        start = scope.target.lengths[0]
        texts = [_text(model, out.row(i)[start:]) for i in range(len(out))]
        by_copy = [tuple(texts[first : first + scope.n]) for first in range(0, len(texts), scope.n)]
        said.append(by_copy[0])
        null_said.append(tuple(by_copy[1:]))
        differs.append(
            [sum(null[e] != by_copy[0][e] for null in by_copy[1:]) / (scope.copies - 1) for e in range(scope.n)]
        )
        steps.finish()
    return Readings(
        labels=tuple(map(str, scope.places)),
        said=tuple(said),
        null_said=tuple(null_said),
        differs=torch.tensor(differs),
        slots=scope.slots,
        into=scope.named,
        tokens=texts_of(model, scope.source),
        provenance=scope.provenance(seed),
    )


class _Scope:
    """Sources, nulls and the target of one request, checked."""

    def __init__(
        self,
        model: Model,
        inputs: Inputs,
        sites: Wanted | None,
        position: str | int,
        target: Prompts,
        slots: Slots,
        into: int | Sequence[int] | None,
        nulls: int | Prompts,
        seed: int,
    ) -> None:
        self.model, self.position = model, position
        self.places = states(model, sites)
        self.source = rows_of(model, inputs)
        self.columns = [found[0] for found in self.source.columns(position)]
        self.n = len(self.source)
        self.target = model.encode(target)
        if len(self.target) != 1:
            raise UsageError(f"target: {len(self.target)} prompts; give one")
        self.slots = _slots(model, self.target, slots)
        layers = None if into is None else (into,) if isinstance(into, int) else tuple(into)
        self.layers = (
            None if layers is None else tuple(model.body.expand([Site("resid_post", layer) for layer in layers]))
        )
        self.named = "same" if layers is None else ",".join(map(str, layers))
        self.nulls = self._nulls(nulls, seed)
        self.copies = 1 + len(self.nulls)
        self.rows = self.target.repeat(self.copies * self.n)

    def states(self, progress: Progress | None, max_tokens: int) -> tuple[list[Tensor], Tensor]:
        """For each place the states to put in [copy * example, d_model], and the model's own next tokens."""
        runs = [
            Run(
                self.source,
                reads=tuple(self.places),
                logits=tuple((p[0],) for p in self.source.positions(self.position)),
            )
        ]
        runs += [Run(null, reads=tuple(self.places)) for null, _ in self.nulls]
        own, *others = engine.plan(self.model, runs, max_tokens=max_tokens).execute(progress=progress)
        row = torch.arange(self.n)
        values = []
        for site in self.places:
            parts = [own.activations[site][row, torch.tensor(self.columns)]]
            for (null, columns), found in zip(self.nulls, others):
                taken = found.activations[site][torch.arange(len(null)), torch.tensor(columns)]
                parts.append(taken if len(null) == self.n else taken.expand(self.n, -1))
            values.append(torch.cat(parts))
        return values, own.logits.reshape(self.n, -1).argmax(-1).cpu()

    def edits(self, values: Sequence[Tensor]) -> list[tuple[Edit, ...]]:
        """For each place the edits of the target run."""
        found = []
        for site, value in zip(self.places, values):
            wide = value[:, None].expand(-1, len(self.slots), -1).contiguous()
            found.append(tuple(one.at(self.slots).replace(wide) for one in self.layers or (site,)))
        return found

    def provenance(self, seed: int) -> Provenance:
        """Of a result."""
        asked = [self.source.digest, self.target.digest, str(self.position), list(self.slots), self.named]
        return provenance(self.model, digest([*asked, [null.digest for null, _ in self.nulls]]), seed)

    def _nulls(self, nulls: int | Prompts, seed: int) -> list[tuple[Tokens, list[int]]]:
        """Rows whose states are the nulls, with the column of each."""
        if isinstance(nulls, int):
            if nulls < 1:
                raise OutOfRange(
                    f"nulls={nulls}: at least 1; without them nothing says what the state adds", nulls=nulls
                )
            return [(self._random(random.Random(f"{seed} {i}")), self.columns) for i in range(nulls)]
        given = self.model.encode(nulls)
        where = self.position if isinstance(self.position, int) else "end"
        return [(given.take([i]), [columns[0]]) for i, columns in enumerate(given.columns(where))]

    def _random(self, chance: random.Random) -> Tokens:
        """The source rows with random tokens in them; a token that begins every text stays."""
        special = set(getattr(self.model.tokenizer, "all_special_ids", ()))
        allowed = [i for i in range(self.model.body.d_vocab or 0) if i not in special]
        ids = self.source.ids.clone()
        for row in range(self.n):
            for column in self.source.mask[row].nonzero()[:, 0].tolist():
                if int(ids[row, column]) not in special:
                    ids[row, column] = chance.choice(allowed)
        return Tokens(ids, self.source.mask, self.source.roles)


def _slots(model: Model, target: Tokens, slots: Slots) -> tuple[int, ...]:
    if not isinstance(slots, str):
        return tuple(sorted(set(target.positions(tuple(slots))[0])))
    texts = model.strings(target.row(0))
    found = tuple(i for i, text in enumerate(texts) if text.strip() == slots.strip())
    if not found:
        raise UsageError(f"placeholder {slots!r}: no token of the target {texts} is this text; give its position")
    return found


def _text(model: Model, ids: Sequence[int]) -> str:
    return "".join(model.strings(ids)) if model.tokenizer is not None else " ".join(map(str, ids))
