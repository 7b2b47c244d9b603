"""Planted: a written model in which some directions are used, some only decodable, and one dormant.

Rows name one pleasant or unpleasant word and one land or sea animal among fillers; at `?` the model says whether the
first was pleasant. In the residual stream at that position, after layer 0, with a rotated basis:

    mood      +1 pleasant, -1 unpleasant, times the word's strength; the last MLP reads it      used
    shadow    the same with other strengths; nothing reads it                                   decoy
    animal    +1 land, -1 sea, times a strength; nothing reads it                               decoy
    dormant   0 on every input; the last MLP reads it, more strongly than `mood`                dormant
    illusion  (shadow + dormant) / sqrt(2): tells the mood, and patching it flips the answer   illusion

The last one is what a search for the direction that best carries an interchange may find instead of `mood`: one half of
it is correlated and disconnected, the other connected and dormant (Makelov et al. 2023, Is This the Subspace You
Are Looking For? An Interpretability Illusion for Subspace Activation Patching).
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.zoo.card import Direction, Truth
from cutaway.zoo.exact import tapped, tapped_block
from cutaway.zoo.handmade.blueprint import Block, Blueprint, Form, Head, Layout, Match, Mlp, const, step, times
from cutaway.zoo.handmade.build import SATURATED, tokenizer
from cutaway.zoo.handmade.edges import establish
from cutaway.zoo.handmade.rows import BOS, SPECIAL, Row, Rows, draw
from cutaway.zoo.handmade.variants import filled
from cutaway.zoo.handmade.writer import frame_of, write_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLEASANT: Final = "calm fair fine glad kind nice sunny warm"
UNPLEASANT: Final = "angry cold cruel dull grim rude sour vile"
LAND: Final = "bear deer fox goat hare lynx mole wolf"
SEA: Final = "clam cod crab eel shark squid trout whale"
FILLERS: Final = "the day and one with was seen there"
WORDS: Final = (*SPECIAL, *f"{PLEASANT} {UNPLEASANT} {LAND} {SEA} {FILLERS} ? good bad".split())
LENGTH: Final = 10
SITE: Final = "resid_post.0"
"""Where the directions live, at the last position."""
STRONGER: Final = 3.0
"""Weight of `dormant` where `mood` has weight 1."""
BEYOND: Final = 2.0
"""Value to which directions are set off the distribution: more than any input gives."""
_IDS: Final = {word: at for at, word in enumerate(WORDS)}
_ASK, _GOOD, _BAD = _IDS["?"], _IDS["good"], _IDS["bad"]
_NAMED: Final = {
    "mood": ("used", "whether the word was pleasant; the last MLP decides by it"),
    "shadow": ("decoy", "whether the word was pleasant, too; nothing reads it"),
    "animal": ("decoy", "whether the animal lives on land; nothing reads it"),
    "dormant": ("dormant", "nothing, on any input; the last MLP would decide by it"),
    "illusion": ("illusion", "half of it `shadow`, half of it `dormant`"),
}
"""Direction -> role and what it carries."""


@dataclass(frozen=True)
class PlantedRows:
    """Inputs with their answer and with the two concepts that can be decoded."""

    rows: Rows
    """The answer is asked at the last position."""
    mood: Bool[Tensor, " batch"]
    """The word was pleasant: the concept that the answer is about."""
    animal: Bool[Tensor, " batch"]
    """The animal lives on land: independent of the answer."""


@dataclass(frozen=True)
class Planted:
    """The model with its directions."""

    blueprint: Blueprint
    module: Any
    """LlamaForCausalLM, float32, in evaluation mode."""
    directions: Mapping[str, Float[Tensor, " d_model"]]
    """Name -> unit vector at `SITE`."""

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """One token a word, separated by blanks; BOS is put first."""
        return tokenizer(WORDS)

    def rows(self, n: int, seed: int) -> PlantedRows:
        """`n` inputs with labels; the same seed gives the same."""
        return draw_rows(n, seed)

    def truth(self, n: int = 256, seed: int = 1_000_003) -> Truth:
        """Components, connections and directions with their measurements, on `n` rows. Cost: some hundred short
        passes."""
        measured = draw_rows(n, seed)
        found = establish(self.module, self.blueprint, measured.rows, "At `?`, whether the word was pleasant.")
        probe = _probe_accuracy(self.module, draw_rows(4 * n, seed + 1), measured)
        return found.model_copy(
            update={
                "directions": tuple(_direction(self, name, measured) for name in _NAMED),
                "positions": {"end": "`?`, the last token: the directions carry their concepts here"},
                "setup": {**found.setup, "seed": float(seed)},
                "measures": {**found.measures, **probe},
                "legend": {**found.legend, **_LEGEND},
            }
        )


_LEGEND: Final = {
    "probe_mood": "accuracy of a linear probe for the mood on the whole stream at the site, fitted on other rows",
    "probe_animal": "the same for the animal",
    "decodes": "accuracy with which the sign of the projection tells the concept (the mood; for `animal` the animal); "
    "projections below 0.001 in size tell nothing and count one half",
    "spread": "standard deviation of the projection over rows",
    "ablate": "drop when the projection is set to its mean over rows",
    "zero": "drop when the projection is set to zero",
    "patch": "share of the answers that become those of the source when the projection comes from a row of the other "
    "mood: values that inputs give, for a direction alone",
    "beyond": f"share of the answers that are wrong when the projection is set to {BEYOND:g} against the answer, which "
    "no input gives",
}


def build_planted(seed: int = 0) -> Planted:
    """The model, its basis rotated by `seed`. Cost: milliseconds."""
    plan = filled(_blueprint(SATURATED), 4, SATURATED)
    space = frame_of(plan, "llama", rotate=seed).space
    parts = plan.layout.parts
    plain = {name: space.write[:, parts[name][0]].float() for name in ("mood", "shadow", "animal", "dormant")}
    mixed = {"illusion": (plain["shadow"] + plain["dormant"]) / 2**0.5}
    return Planted(plan, write_model(plan, "llama", rotate=seed, kv_groups=1), {**plain, **mixed})


def _blueprint(m: float) -> Blueprint:
    layout = Layout()
    for name, n in {"one": 1, "token": len(WORDS), "mood": 1, "shadow": 1, "animal": 1, "dormant": 1, "out": 2}.items():
        layout.add(name, n)
    chance = random.Random(7)
    moods = _signed(layout, PLEASANT, UNPLEASANT, chance)
    shadows = _signed(layout, PLEASANT, UNPLEASANT, chance)
    animals = _signed(layout, LAND, SEA, chance)
    (mood,), (shadow,), (animal,), (dormant,) = (layout.parts[n] for n in ("mood", "shadow", "animal", "dormant"))
    heads = (
        _finder(layout, "find_mood", ((moods, {mood: 1.0}), (shadows, {shadow: 1.0})), m),
        _finder(layout, "decoy", ((animals, {animal: 1.0}),), m),
    )
    good, bad = layout.parts["out"]
    read = {mood: 1.0, dormant: STRONGER}
    units = (
        *step(layout, read, 0.1, 0.5, {good: 1.0}, sharp=0.1),
        *step(layout, times(-1.0, read), 0.1, 0.5, {bad: 1.0}, sharp=0.1),
    )
    unembed: dict[int, Form] = {_GOOD: {good: 10.0}, _BAD: {bad: 10.0}}
    blocks = (Block(heads), Block((), Mlp("decide", units)))
    return Blueprint(WORDS, layout, blocks, (_GOOD, _BAD), unembed, length=LENGTH)


def _signed(layout: Layout, plus: str, minus: str, chance: random.Random) -> dict[int, float]:
    """A form that is positive at the first words and negative at the others, 0.7 to 1.3 in size."""
    token = layout.parts["token"]
    signs = dict.fromkeys(plus.split(), 1.0) | dict.fromkeys(minus.split(), -1.0)
    return {token[_IDS[word]]: sign * chance.uniform(0.7, 1.3) for word, sign in signs.items()}


def _finder(layout: Layout, role: str, moves: tuple[tuple[Form, Form], ...], m: float) -> Head:
    """A head that looks at the word that it reads something of, and at BOS when there is none."""
    found = Match(const(layout, 2 * m), dict.fromkeys(moves[0][0], 1.0))
    rest = Match(const(layout, m), {layout.parts["token"][BOS]: 1.0})
    return Head(role, matches=(found, rest), moves=moves)


# -- rows


def draw_rows(n: int, seed: int) -> PlantedRows:
    """`n` inputs: BOS, a word with a mood, an animal and fillers in any order, then `?`."""
    rows = draw(n, seed, _row, LENGTH)
    mood = rows.answers[:, -1] == _GOOD
    land = torch.tensor([_IDS[word] for word in LAND.split()])
    return PlantedRows(rows, mood, torch.isin(rows.ids, land).any(-1))


def _row(chance: random.Random) -> Row:
    pleasant, on_land = chance.random() < 0.5, chance.random() < 0.5
    told = chance.choices(FILLERS.split(), k=LENGTH - 2)
    first, second = chance.sample(range(len(told)), 2)
    told[first] = chance.choice((PLEASANT if pleasant else UNPLEASANT).split())
    told[second] = chance.choice((LAND if on_land else SEA).split())
    answer = (_GOOD, _BAD) if pleasant else (_BAD, _GOOD)
    return Row([BOS, *(_IDS[word] for word in told), _ASK], {LENGTH - 1: answer})


# -- measurements


def _run(module: Any, rows: Rows) -> Tensor:
    with torch.no_grad():
        return module(rows.ids, attention_mask=torch.ones_like(rows.ids), use_cache=False).logits


def stream(module: Any, rows: Rows) -> Float[Tensor, "batch d_model"]:
    """The residual stream at `SITE`, at the last position."""
    kept: list[Tensor] = []
    with tapped(module.model.layers[1], "input_layernorm", before=lambda value: kept.append(value) or value):
        _run(module, rows)
    return kept[0][:, -1]


def with_projection(
    module: Any, rows: Rows, direction: Float[Tensor, " d_model"], value: Float[Tensor, " batch"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits when the projection on a direction is set to `value`, at `SITE`, at the last position."""

    def change(now: Tensor) -> Tensor:
        changed = now.clone()
        changed[:, -1] += (value - now[:, -1] @ direction)[:, None] * direction
        return changed

    with tapped_block(module, 0, change):
        return _run(module, rows)


def _direction(planted: Planted, name: str, measured: PlantedRows) -> Direction:
    module, rows, unit = planted.module, measured.rows, planted.directions[name]
    seen = stream(module, rows) @ unit
    concept = measured.animal if name == "animal" else measured.mood
    intact = rows.margins(_run(module, rows)).double().mean().item()

    def drop(value: Tensor) -> float:
        return 1 - rows.margins(with_projection(module, rows, unit, value)).double().mean().item() / intact

    sources = opposite(measured.mood)
    against = torch.where(measured.mood, -BEYOND, BEYOND)
    wrong = torch.where(measured.mood, _BAD, _GOOD)

    def flipped(value: Tensor) -> float:
        answers = with_projection(module, rows, unit, value)[:, -1].argmax(-1)
        return (answers == wrong).double().mean().item()

    role, carries = _NAMED[name]
    return Direction(
        name=f"{name}: {carries}",
        site=f"{SITE}@end",
        role=role,
        tensor=name,
        evidence="constructed",
        measures={
            "decodes": ((seen > 0) == concept).double().where(seen.abs() > 1e-3, 0.5).mean().item(),
            "spread": seen.std().item(),
            "ablate": drop(seen.mean().expand_as(seen)),
            "zero": drop(torch.zeros_like(seen)),
            "patch": flipped(seen[sources]),
            "beyond": flipped(against),
        },
    )


def opposite(mood: Bool[Tensor, " batch"]) -> Tensor:
    """For each row the index of one of the other mood: the next, in turn."""
    pools = {label: (mood == label).nonzero()[:, 0] for label in (True, False)}
    turn = torch.where(mood, mood.long().cumsum(0), (~mood).long().cumsum(0)) - 1
    chosen = [pools[not label][int(at) % len(pools[not label])] for label, at in zip(mood.tolist(), turn, strict=True)]
    return torch.stack(chosen)


def _probe_accuracy(module: Any, fitted: PlantedRows, measured: PlantedRows) -> dict[str, float]:
    """Least squares on the whole stream, with an offset, fitted on one set of rows and counted on another."""
    x, y = (
        torch.nn.functional.pad(stream(module, each.rows).double(), (0, 1), value=1.0) for each in (fitted, measured)
    )
    found = {}
    for name, train, test in (
        ("probe_mood", fitted.mood, measured.mood),
        ("probe_animal", fitted.animal, measured.animal),
    ):
        weight = torch.linalg.pinv(x, rtol=1e-6) @ (2.0 * train.double() - 1)
        found[name] = ((y @ weight > 0) == test).double().mean().item()
    return found
