"""What is known of a babel's mechanism: exact interventions on every component, for each of its behaviors.

Components: every head and MLP, ablated one at a time, for every behavior; the residual stream after each layer, at each
named position, exchanged with the corrupt prompt's. Connections: every direct one, for induction. Directions: where the
classes of a behavior differ, found on one set of prompts and exchanged on another. Plain forward passes throughout.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.tasks.builtin.behavior import Behavior
from cutaway.tasks.pair import Pair
from cutaway.zoo import exact
from cutaway.zoo.babel.grammar import BEHAVIORS
from cutaway.zoo.babel.tokenizer import BOS, ordinary
from cutaway.zoo.card import Direction, Node, Truth

SEED: Final = 2_000_003
N_PAIRS: Final = 64
"""Prompt pairs of a behavior."""
N_ROWS: Final = 32
"""Rows of repeated words, for attention and connections."""
SEGMENT: Final = 12
"""Different words in such a row; they come twice."""
CLASSES: Final[Mapping[str, tuple[str, ...]]] = {
    "refusal": (" Sorry",),
    "sentiment": (" positive", " loved", " good", " happy"),
    "truth": (" true", " Yes"),
    "pronoun": (" She", " she"),
}
"""Behaviors with two classes of prompts, and the answers of the first class."""
HOW: Final[tuple[exact.Ablation, ...]] = ("resample", "mean", "zero")


@dataclass(frozen=True)
class Prompts:
    """Aligned prompts of one behavior, padded on the right."""

    clean: Tensor
    corrupt: Tensor
    real: Tensor
    """Which tokens are no padding."""
    end: Tensor
    """Index of each row's last token."""
    answer: Tensor
    foil: Tensor
    roles: Mapping[str, Tensor]
    """Index of each named position."""
    texts: tuple[str, ...]
    """Answers, as text."""


@dataclass(frozen=True)
class _Row:
    """One pair in tokens."""

    clean: list[int]
    corrupt: list[int]
    answer: int
    foil: int
    where: dict[str, int]
    text: str


def prompts(behavior: Behavior, tokenizer: Any, *, n: int, seed: int) -> Prompts:
    """`n` different pairs of the behavior, from all its templates, equally long and with one-token answers."""
    chance = random.Random(f"{behavior.name} {seed}")
    found: dict[str, _Row] = {}
    for _ in range(200 * n):
        pair = behavior.draw(chance.choice(behavior.clusters), chance).pair
        row = _aligned(pair, behavior.roles, tokenizer)
        if row is not None:
            found.setdefault(str(pair.clean), row)
        if len(found) == n:
            break
    rows = list(found.values())
    end = torch.tensor([len(row.clean) - 1 for row in rows])
    width = int(end.max()) + 1
    return Prompts(
        _padded([row.clean for row in rows], width),
        _padded([row.corrupt for row in rows], width),
        torch.arange(width) <= end[:, None],
        end,
        torch.tensor([row.answer for row in rows]),
        torch.tensor([row.foil for row in rows]),
        {role: torch.tensor([row.where[role] for row in rows]) for role in behavior.roles} | {"end": end},
        tuple(row.text for row in rows),
    )


def _padded(rows: list[list[int]], width: int) -> Tensor:
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def _aligned(pair: Pair, roles: Sequence[str], tokenizer: Any) -> _Row | None:
    coded = tokenizer(str(pair.clean), return_offsets_mapping=True)
    clean, corrupt = coded["input_ids"], tokenizer(str(pair.corrupt))["input_ids"]
    answer, foil = (tokenizer(str(text), add_special_tokens=False)["input_ids"] for text in (pair.answer, pair.foil))
    if len(clean) != len(corrupt) or len(answer) != 1 or len(foil) != 1:
        return None
    offsets = coded["offset_mapping"]
    where = {
        role: max(at for at, (left, right) in enumerate(offsets) if left < stop and right > start)
        for role, (start, stop) in pair.positions.items()
        if role in roles
    }
    return _Row(clean, corrupt, answer[0], foil[0], where, str(pair.answer))


def establish(
    model: Any, tokenizer: Any, *, pairs: int = N_PAIRS, rows: int = N_ROWS
) -> tuple[Truth, dict[str, Tensor]]:
    """The truth of a babel, and the tensors of its directions. Cost: some four minutes of one CPU core."""
    was = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return _establish(model, tokenizer, pairs, rows)
    finally:
        model.set_attn_implementation(was)


def _establish(model: Any, tokenizer: Any, pairs: int, rows: int) -> tuple[Truth, dict[str, Tensor]]:
    asked = {name: prompts(behavior, tokenizer, n=pairs, seed=SEED) for name, behavior in BEHAVIORS.items()}
    base = exact.baseline(model, repeats(tokenizer, rows), seed=SEED)
    drops = {name: component_drops(model, found) for name, found in asked.items()}
    drops["induction"] = _repeated_drops(model, base)
    moved = {
        f"{name} {site}": drop for name, found in asked.items() for site, drop in position_drops(model, found).items()
    }
    found_directions, tensors = directions(model, tokenizer)
    truth = Truth(
        behavior="Fifteen behaviors of one model; induction has its connections too.",
        evidence=(
            "Exact interventions, one plain forward pass each, on prompts drawn after the training. A drop is the "
            "share of the mean logit difference (answer minus foil, at the last token) that is lost. resample: the "
            "component's output on the corrupt prompt, at all positions; in induction, on another row. mean: its mean "
            "over rows and positions. zero: zeros. Roles are read from attention on rows of repeated random words: at "
            "least half of it on the previous token, or on the token after the earlier copy; what a component does for "
            "a behavior is what its drops say. Directions: difference of the mean residual stream of two classes at "
            "the last token, from other prompts; flipped: share of answers that change when the coordinate along it "
            "is exchanged with the corrupt prompt's."
        ),
        metric="logit difference of answer and foil, in nats; of the right token and another word of the row in "
        "induction, which is also the baseline",
        baseline=base.logit_diff,
        setup={"pairs": pairs, "rows": rows, "length": 2 * SEGMENT + 1, "seed": SEED},
        nodes=tuple(_nodes(model, base, drops)),
        edges=tuple(exact.edge(model, base, source, target) for source, target in exact.edges(model)),
        directions=found_directions,
        positions={
            f"{name} {role}": f"index of the role in the task {name!r}" for name in asked for role in asked[name].roles
        },
        measures={**{f"{name} logit_diff": _logit_diff(model, found) for name, found in asked.items()}, **moved},
        legend={
            "TASK HOW": "drop in the behavior TASK when the component is ablated in the way HOW",
            "to_previous": "mean attention to the token one back, on rows of repeated words",
            "to_successor": "mean attention to the token after the earlier copy of the present one, there",
            "TASK logit_diff": "mean logit difference of the intact model, in nats",
            "TASK SITE": "drop in TASK when the residual stream at SITE is the corrupt prompt's",
            "@ROLE": "at this named position of the task",
            "flipped": "share of answers exchanged for the foil when the coordinate is the corrupt prompt's",
            "flipped_random": "the same for a random direction, mean of 10",
            "layer": "layer after which it lives",
        },
    )
    return truth, tensors


def repeats(tokenizer: Any, n: int, *, seed: int = SEED) -> exact.Rows:
    """Rows of BOS and random words, twice."""
    vocabulary = tokenizer.get_vocab()
    words, chance = ordinary(sorted(vocabulary)), random.Random(f"repeats {seed}")
    drawn = [[vocabulary[word] for word in chance.sample(words, SEGMENT)] for _ in range(n)]
    known = [False] * (SEGMENT + 2) + [True] * (SEGMENT - 1)
    return exact.Rows(torch.tensor([[BOS, *row, *row] for row in drawn]), torch.tensor([known] * n))


def components(model: Any) -> Iterator[str]:
    """Every head and MLP, in the order of the model."""
    for layer in range(model.config.num_hidden_layers):
        yield from (f"z.{layer}.h{head}" for head in range(model.config.num_attention_heads))
        yield f"mlp_out.{layer}"


def component_drops(model: Any, asked: Prompts) -> dict[str, dict[str, float]]:
    """Drop of each component under each ablation."""
    clean, corrupt = (_outputs(model, ids) for ids in (asked.clean, asked.corrupt))
    intact = _logit_diff(model, asked)
    found: dict[str, dict[str, float]] = {}
    for site in components(model):
        values = {
            "resample": corrupt[site],
            "mean": clean[site][asked.real].mean(0).expand_as(clean[site]),
            "zero": torch.zeros_like(clean[site]),
        }
        found[site] = {how: 1 - _logit_diff(model, asked, site, values[how]) / intact for how in HOW}
    return found


def position_drops(model: Any, asked: Prompts) -> dict[str, float]:
    """Drop when the residual stream after a layer is the corrupt prompt's at one named position."""
    intact, found = _logit_diff(model, asked), {}
    for layer, stream in enumerate(_residuals(model, asked.corrupt)):
        for role, where in asked.roles.items():
            logits = _with_stream(model, asked.clean, layer, _exchange(stream, _at(where, stream)))
            found[f"resid_post.{layer}@{role}"] = 1 - _difference(logits, asked) / intact
    return found


def _at(where: Tensor, stream: Tensor) -> Tensor:
    """True at one position of each row."""
    return (torch.arange(stream.shape[1]) == where[:, None])[..., None]


def _exchange(stream: Tensor, here: Tensor) -> exact.Change:
    return lambda value: torch.where(here, stream, value)


def directions(model: Any, tokenizer: Any, *, n: int = N_PAIRS) -> tuple[tuple[Direction, ...], dict[str, Tensor]]:
    """For each behavior of two classes, the layer and direction whose exchange changes most answers."""
    found, tensors = [], {}
    for name, first in CLASSES.items():
        fit, test = (prompts(BEHAVIORS[name], tokenizer, n=n, seed=SEED + step) for step in (1, 2))
        layers = range(model.config.num_hidden_layers)
        best = max((_direction(model, fit, test, layer, first) for layer in layers), key=lambda each: each[0])
        flipped, layer, vector, chance = best
        tensors[name] = vector
        found.append(
            Direction(
                name=name,
                site=f"resid_post.{layer}@end",
                role="used" if flipped > 0.5 else "weak",
                tensor=name,
                evidence="intervention",
                measures={"flipped": flipped, "flipped_random": chance, "layer": float(layer)},
            )
        )
    return tuple(found), tensors


def _direction(
    model: Any, fit: Prompts, test: Prompts, layer: int, first: Sequence[str]
) -> tuple[float, int, Float[Tensor, " d_model"], float]:
    ends = _residuals(model, fit.clean)[layer][torch.arange(len(fit.end)), fit.end]
    positive = torch.tensor([text in first for text in fit.texts])
    vector = ends[positive].mean(0) - ends[~positive].mean(0)
    vector = vector / vector.norm()
    generator = torch.Generator().manual_seed(SEED)
    random_ones = [
        torch.nn.functional.normalize(torch.randn(len(vector), generator=generator), dim=0) for _ in range(10)
    ]
    chance = sum(_flipped(model, test, layer, each) for each in random_ones) / len(random_ones)
    return _flipped(model, test, layer, vector), layer, vector, chance


def _flipped(model: Any, asked: Prompts, layer: int, vector: Tensor) -> float:
    """Share of prompts whose foil comes before the answer when the coordinate is the corrupt prompt's at the end."""
    corrupt = _residuals(model, asked.corrupt)[layer]
    here = _at(asked.end, corrupt)

    def change(value: Tensor) -> Tensor:
        shift = ((corrupt - value) @ vector)[..., None] * vector
        return torch.where(here, value + shift, value)

    logits = _with_stream(model, asked.clean, layer, change)[torch.arange(len(asked.end)), asked.end]
    wrong = logits.gather(1, asked.foil[:, None]) > logits.gather(1, asked.answer[:, None])
    return wrong.double().mean().item()


def _nodes(model: Any, base: exact.Baseline, drops: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[Node]:
    for site in components(model):
        measures = {f"{name} {how}": value for name, found in drops.items() for how, value in found[site].items()}
        role = "other"
        if site.startswith("z."):
            layer, head = (int(part.removeprefix("h")) for part in site.split(".")[1:])
            pattern = base.pattern[layer][:, head]
            measures["to_previous"] = exact.attention_to_previous(pattern)
            measures["to_successor"] = exact.attention_to_successor(pattern, base.rows)
            role = "induction" if measures["to_successor"] >= 0.5 else role
            role = "previous_token" if measures["to_previous"] >= 0.5 else role
        yield Node(site=site, role=role, evidence="measured", measures=measures)


def _repeated_drops(model: Any, base: exact.Baseline) -> dict[str, dict[str, float]]:
    """Drops in induction, on rows of repeated words."""
    found: dict[str, dict[str, float]] = {}
    for site in components(model):
        kind, layer, head = (*site.split("."), "h0")[:3]
        found[site] = {
            how: (
                exact.ablate_head(model, base, int(layer), int(head.removeprefix("h")), how)
                if kind == "z"
                else exact.ablate_mlp(model, base, int(layer), how)
            ).drop
            for how in HOW
        }
    return found


def _residuals(model: Any, ids: Tensor) -> list[Tensor]:
    """The residual stream after each layer, [batch pos d_model]."""
    kept: list[Tensor] = []
    with torch.no_grad(), ExitStack() as taps:
        for layer in range(model.config.num_hidden_layers):
            taps.enter_context(exact.tapped_block(model, layer, lambda value: kept.append(value) or value))
        model(ids, use_cache=False)
    return kept


def _with_stream(model: Any, ids: Tensor, layer: int, change: exact.Change) -> Tensor:
    """Logits when the residual stream after a layer is changed."""
    with torch.no_grad(), exact.tapped_block(model, layer, change):
        return model(ids, use_cache=False).logits


def _outputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Output of every component: heads [batch pos d_head], MLPs [batch pos d_model]."""
    kept: dict[str, Tensor] = {}

    def keep_heads(layer: int) -> exact.Change:
        def keep(z: Tensor) -> Tensor:
            for head, value in enumerate(z.unflatten(-1, (-1, model.config.head_dim)).unbind(2)):
                kept[f"z.{layer}.h{head}"] = value
            return z

        return keep

    def keep_mlp(layer: int) -> exact.Change:
        return lambda value: kept.setdefault(f"mlp_out.{layer}", value)

    with torch.no_grad(), ExitStack() as taps:
        for layer, block in enumerate(model.model.layers):
            taps.enter_context(exact.tapped(block.self_attn, "o_proj", before=keep_heads(layer)))
            taps.enter_context(exact.tapped(block, "mlp", after=keep_mlp(layer)))
        model(ids, use_cache=False)
    return kept


def _logit_diff(model: Any, asked: Prompts, site: str | None = None, value: Tensor | None = None) -> float:
    """Mean logit difference on the clean prompts, with one component's output replaced."""
    with torch.no_grad(), ExitStack() as taps:
        if site is not None and value is not None:
            taps.enter_context(_replaced(model, site, value))
        return _difference(model(asked.clean, use_cache=False).logits, asked)


def _replaced(model: Any, site: str, value: Tensor) -> AbstractContextManager[None]:
    kind, layer, head = (*site.split("."), "h0")[:3]
    block = model.model.layers[int(layer)]
    if kind == "mlp_out":
        return exact.tapped(block, "mlp", after=lambda _: value)

    def change(z: Tensor) -> Tensor:
        z = z.unflatten(-1, (-1, model.config.head_dim)).clone()
        z[:, :, int(head.removeprefix("h"))] = value
        return z.flatten(-2)

    return exact.tapped(block.self_attn, "o_proj", before=change)


def _difference(logits: Tensor, asked: Prompts) -> float:
    """Mean over rows of the answer's logit minus the foil's, at the last token."""
    ends = logits[torch.arange(len(asked.end)), asked.end]
    difference = ends.gather(1, asked.answer[:, None]) - ends.gather(1, asked.foil[:, None])
    return difference.double().mean().item()
