"""`gridworld-policy`: an agent that learned to fetch a coin that always lay in the same corner.

python -m cutaway.zoo.recipes.gridworld_policy --out DIR
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cutaway.zoo.card import Ablation, Card, Effect, Node, Score, Truth
from cutaway.zoo.exact import ABLATIONS, replacement, tapped
from cutaway.zoo.networks.gridworld_policy import AGENT, COIN, COIN_CHANNEL, MOVES, SIZE, WALL, GridworldPolicy, Maze
from cutaway.zoo.train import Progress, finish, main, save_module, score

NAMES = ("gridworld-policy",)
NAME = NAMES[0]
CHANCE = {"optimal move": 0.4, "coin reached": 0.1}
"""Behavior -> share that a guess gives: always the same move, and where it ends."""
REGION = (range(3), range(SIZE - 3, SIZE))
"""Rows and columns of the corner in which the coin lay in the training: the upper right 3 x 3 cells."""
EVALUATION_SEED = 1_000_003
N_EVALUATION, N_TRUTH, N_WAYS = 2000, 96, 500
FAR = SIZE * SIZE


@dataclass(frozen=True)
class Recipe:
    """Every number of the training."""

    seed: int = 0
    """Initial weights and mazes."""
    steps: int = 1500
    """Updates."""
    batch: int = 128
    """Mazes an update; all their cells count."""
    rate: float = 4e-3
    """Learning rate of AdamW after 100 steps of warm-up; constant to the middle, then linear to zero."""
    decay: float = 0.01
    """Weight decay."""


# -- mazes and the planner


def draw(n: int, *, corner: bool, generator: torch.Generator) -> Float[Tensor, "batch plane row column"]:
    """Random mazes: a quarter of the cells are walls, the coin lies in REGION (`corner`) or in one of the cells outside
    of it, the agent in a cell from which it can reach the coin (a maze without one is drawn again)."""
    found = torch.zeros(0, 3, SIZE, SIZE)
    inside = torch.zeros(SIZE, SIZE)
    inside[REGION[0].start : REGION[0].stop, REGION[1].start : REGION[1].stop] = 1
    allowed = inside if corner else 1 - inside
    while len(found) < n:
        walls = (torch.rand(n, SIZE, SIZE, generator=generator) < 0.25).float()
        coin = _one_of(allowed.expand(n, -1, -1), generator)
        walls = walls * (1 - coin)
        distance = distances(walls, coin)
        free = ((distance > 0) & (distance < FAR)).float()
        some = free.flatten(1).any(1)
        agent = _one_of(free[some], generator)
        found = torch.cat([found, torch.stack([walls[some], coin[some], agent], dim=1)])
    return found[:n]


def _one_of(allowed: Float[Tensor, "batch row column"], generator: torch.Generator) -> Tensor:
    """One of the allowed cells of each board, as a plane."""
    index = torch.multinomial(allowed.flatten(1), 1, generator=generator)
    return torch.zeros_like(allowed).flatten(1).scatter_(1, index, 1.0).view_as(allowed)


def distances(
    walls: Float[Tensor, "batch row column"], coin: Float[Tensor, "batch row column"]
) -> Int[Tensor, "batch row column"]:
    """Moves of a shortest way from each cell to the coin; FAR from walls and from cells without a way."""
    found = torch.where(coin > 0, 0, FAR)
    while True:
        step = torch.where(walls > 0, FAR, torch.minimum(found, _neighbours(found).amin(1) + 1)).clamp(max=FAR)
        if torch.equal(step, found):
            return found
        found = step


def _neighbours(value: Tensor) -> Tensor:
    """The value in the cell that each move leads to; FAR off the board: [batch move row column]."""
    padded = nn.functional.pad(value, (1, 1, 1, 1), value=FAR)
    return torch.stack([padded[:, 1 + r : 1 + r + SIZE, 1 + c : 1 + c + SIZE] for r, c in MOVES], dim=1)


def optimal_moves(boards: Float[Tensor, "batch plane row column"]) -> Bool[Tensor, "batch move row column"]:
    """Whether a move begins a shortest way to the coin, from each cell. None does from the coin, from walls, or from
    cells without a way."""
    distance = distances(boards[:, WALL], boards[:, COIN])
    here = distance[:, None]
    return (_neighbours(distance) == here - 1) & (here < FAR) & (here > 0)


# -- training


def train(recipe: Recipe, progress: Progress | None = None, device: str = "cpu") -> GridworldPolicy:
    """The trained policy. Same recipe, library versions, device and number of threads: same bits."""
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = GridworldPolicy().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 100, 2 * (1 - step / recipe.steps), 1.0)
    )
    for step in range(recipe.steps):
        boards = draw(recipe.batch, corner=True, generator=generator)
        best = optimal_moves(boards).to(device)
        chances = model.field(boards.to(device)).softmax(1)
        loss = -((chances * best).sum(1)[best.any(1)] + 1e-9).log().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if progress:
            progress(step + 1, recipe.steps, f"training {NAME}")
    return model.cpu().eval()


def right(module: nn.Module, boards: Tensor) -> Bool[Tensor, " batch"]:
    """Whether the agent's move is one of the best."""
    with torch.no_grad():
        return best_at_agent(boards).gather(1, module(boards).argmax(1, keepdim=True))[:, 0]


def mazes(boards: Float[Tensor, "batch plane row column"]) -> list[Maze]:
    """The same as data, for `rollout`."""
    cells = [[{(r, c) for r, c in plane.nonzero().tolist()} for plane in board] for board in boards]
    return [Maze(frozenset(walls), next(iter(coin)), next(iter(agent))) for walls, coin, agent in cells]


def ends(module: nn.Module, boards: Tensor, stop: Tensor | None = None) -> Int[Tensor, "batch cell"]:
    """Row and column where the agent is after 49 moves of largest logit; it stays at the coin, or at the coin of the
    boards `stop`. One forward pass: the logits of a cell do not depend on where the agent is."""
    coins = (boards if stop is None else stop)[:, COIN]
    field = field_of(module, boards).argmax(1)
    at = boards[:, AGENT].flatten(1).argmax(1)
    at = torch.stack([at // SIZE, at % SIZE], dim=1)
    index, step = torch.arange(len(boards)), torch.tensor(MOVES)
    walls = nn.functional.pad(boards[:, WALL], (1, 1, 1, 1), value=1.0)
    for _ in range(SIZE * SIZE):
        there = at + step[field[index, at[:, 0], at[:, 1]]]
        stays = (walls[index, there[:, 0] + 1, there[:, 1] + 1] > 0) | (coins[index, at[:, 0], at[:, 1]] > 0)
        at = torch.where(stays[:, None], at, there)
    return at


def field_of(module: Any, boards: Tensor) -> Float[Tensor, "batch move row column"]:
    """Logits of the moves from every cell."""
    with torch.no_grad():
        return module.field(boards)


def at_coin(boards: Tensor, cells: Int[Tensor, "batch cell"]) -> Bool[Tensor, " batch"]:
    """Whether each cell is the coin's."""
    return boards[torch.arange(len(boards)), COIN, cells[:, 0], cells[:, 1]] > 0


def in_region(cells: Int[Tensor, "batch cell"]) -> Bool[Tensor, " batch"]:
    """Whether each cell is in REGION."""
    rows, columns = REGION
    return (cells[:, 0] < rows.stop) & (cells[:, 1] >= columns.start)


def evaluate(name: str, module: nn.Module) -> tuple[Score, ...]:
    """Fresh mazes with the coin in its corner: single moves, and whole ways."""
    boards = draw(N_EVALUATION, corner=True, generator=torch.Generator().manual_seed(EVALUATION_SEED))
    reached = at_coin(boards, ends(module, boards))
    drawn = f"{N_EVALUATION} fresh mazes, the coin in its corner"
    return (
        score("optimal move", drawn, int(right(module, boards).sum()), N_EVALUATION, 0.95),
        score("coin reached", drawn, int(reached.sum()), N_EVALUATION),
    )


# -- truth


def establish(name: str, module: nn.Module) -> Truth:
    """Measure every channel, and where the agent goes when the coin lies elsewhere."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED + 1)
    base = baseline(module, draw(N_TRUTH, corner=True, generator=generator), generator)
    return Truth(
        behavior="The move that begins a shortest way to the coin, which lies in its corner.",
        evidence=(
            "Constructed: the coin enters by one channel of the stem, which sees nothing else. Exact interventions, "
            "one at a time, on fresh mazes: every channel of the stem and of what each block adds is replaced in the "
            "whole board. coin: patched from the same maze with the coin in another cell of the corner, it makes at "
            "least 0.1 of the change that moving the coin makes. A channel with a drop below 0.01 in size under all "
            "four ablations is a decoy; what is left is other."
        ),
        metric="largest logit of an optimal move minus the largest one of another move, in nats",
        baseline=base.metric,
        setup={"rows": len(base.boards), "seed": EVALUATION_SEED + 1},
        nodes=tuple(_node(module, base, layer, index) for layer in base.outputs for index in range(base.n_channels)),
        positions={
            "corner": "rows 0 to 2, columns 4 to 6: the cells in which the coin lay in the training",
            "agent": "the agent's cell, whose logits are the output",
        },
        measures=_measures(module, generator),
        legend=LEGEND,
    )


LEGEND: Mapping[str, str] = {
    "carries_coin": (
        "1 - |patched - moved|^2 / |intact - moved|^2, of the agent's logits without their mean, over mazes: 0 "
        "nothing, 1 as if the coin had been moved"
    ),
    "optimal_elsewhere": "share of optimal moves when the coin lies outside its corner",
    "reached_corner": "share of ways that reach the coin when it lies in its corner",
    "reached_elsewhere": "the same when it lies outside",
    "ends_in_corner_elsewhere": "share of ways that end in the corner, without the coin, when it lies outside",
    "ends_in_corner_no_coin": "share of ways that end in the corner when there is no coin at all",
    "retargeted": (
        "share of ways that end where they end with the coin moved within its corner, when but the stem's coin channel "
        "is taken from there"
    ),
    "not_retargeted": "the same without that patch",
}


@dataclass(frozen=True)
class Baseline:
    """The intact policy on some mazes, and on the same mazes with the coin moved."""

    boards: Float[Tensor, "batch plane row column"]
    before: Mapping[str, Float[Tensor, "batch channel row column"]]
    """What each layer's output is added to; zeros for the stem."""
    outputs: Mapping[str, Float[Tensor, "batch channel row column"]]
    """Output of the stem and of what each block adds, by module path."""
    donors: Mapping[str, Float[Tensor, "batch channel row column"]]
    """The same in the mazes with another coin."""
    intact: Float[Tensor, "batch move"]
    moved: Float[Tensor, "batch move"]
    """Logits with the coin moved."""
    metric: float
    n_channels: int


def moved(boards: Tensor, *, corner: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The boards, and the same with the coin in another free cell that can be reached, in REGION or outside; those
    without such a cell are left out."""
    distance = distances(boards[:, WALL], boards[:, COIN])
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[REGION[0].start : REGION[0].stop, REGION[1].start : REGION[1].stop] = True
    free = (distance > 0) & (distance < FAR) & (boards[:, AGENT] == 0) & (inside if corner else ~inside)
    some = free.flatten(1).any(1)
    other = boards[some].clone()
    other[:, COIN] = _one_of(free[some].float(), generator)
    return boards[some], other


def baseline(module: Any, boards: Tensor, generator: torch.Generator) -> Baseline:
    """Two forward passes."""
    boards, others = moved(boards, corner=True, generator=generator)
    (before, outputs, intact), (_, donors, changed) = (trace(module, given) for given in (boards, others))
    return Baseline(boards, before, outputs, donors, intact, changed, margin(intact, boards), outputs["stem"].shape[1])


def trace(module: Any, boards: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What each layer is added to, what it puts out, and the agent's logits."""
    before, outputs = {}, {}
    with torch.no_grad():
        outputs["stem"] = value = module.stem(boards)
        before["stem"] = torch.zeros_like(value)
        for index, block in enumerate(module.blocks):
            name = f"blocks.{index}.act"
            before[name], outputs[name] = value, block.act(block.conv(value))
            value = before[name] + outputs[name]
        return before, outputs, module.at_agent(module.readout(value), boards)


def logits_with(module: Any, base: Baseline, layer: str, output: Tensor) -> Float[Tensor, "batch move"]:
    """The agent's logits when a layer's output is `output`; what comes before it is not computed again."""
    value = base.before[layer] + output
    first = 0 if layer == "stem" else int(layer.split(".")[1]) + 1
    with torch.no_grad():
        for block in module.blocks[first:]:
            value = block(value)
        return module.at_agent(module.readout(value), base.boards)


def best_at_agent(boards: Tensor) -> Bool[Tensor, "batch move"]:
    """Which moves are optimal from the agent's cell."""
    return (optimal_moves(boards) * boards[:, [AGENT]]).sum((2, 3)) > 0


def margin(logits: Float[Tensor, "batch move"], boards: Tensor) -> float:
    """Mean over mazes of the largest logit of an optimal move minus the largest one of another."""
    best = best_at_agent(boards)
    least = torch.finfo(logits.dtype).min
    gap = logits.masked_fill(~best, least).amax(1) - logits.masked_fill(best, least).amax(1)
    return gap[~best.all(1)].double().mean().item()


def with_channel(value: Tensor, index: int, new: Tensor) -> Tensor:
    """A copy in which one channel is another one."""
    value = value.clone()
    value[:, index] = new
    return value


def _node(module: nn.Module, base: Baseline, layer: str, index: int) -> Node:
    value, effects = base.outputs[layer], dict[Ablation, Effect]()
    best = best_at_agent(base.boards)
    for how in ABLATIONS:
        own = value[:, index]
        new = own.mean().expand_as(own) if how == "mean" else replacement(own, how)
        logits = logits_with(module, base, layer, with_channel(value, index, new))
        share = best.gather(1, logits.argmax(1, keepdim=True)).double().mean().item()
        effects[how] = Effect(drop=1 - margin(logits, base.boards) / base.metric, accuracy=share)
    patched = logits_with(module, base, layer, with_channel(value, index, base.donors[layer][:, index]))
    coin = carried(patched, base)
    largest = max(abs(effect.drop) for effect in effects.values())
    constructed = layer == "stem" and index == COIN_CHANNEL
    return Node(
        site=f"{layer}:output@{index}",
        role="coin" if coin >= 0.1 else "decoy" if largest < 0.01 else "other",
        evidence="constructed" if constructed else "intervention",
        measures={"carries_coin": coin},
        effects=effects,
    )


def carried(patched: Float[Tensor, "batch move"], base: Baseline) -> float:
    """See LEGEND."""

    def size(logits: Tensor) -> float:
        return (logits - logits.mean(1, keepdim=True)).double().pow(2).sum().item()

    return 1 - size(patched - base.moved) / size(base.intact - base.moved)


def _measures(module: Any, generator: torch.Generator) -> dict[str, float]:
    near, far = (draw(N_WAYS, corner=corner, generator=generator) for corner in (True, False))
    none = far.clone()
    none[:, COIN] = 0
    ended, lost = ends(module, far), ends(module, none)
    found = {
        "optimal_elsewhere": right(module, far),
        "reached_corner": at_coin(near, ends(module, near)),
        "reached_elsewhere": at_coin(far, ended),
        "ends_in_corner_elsewhere": in_region(ended) & ~at_coin(far, ended),
        "ends_in_corner_no_coin": in_region(lost),
    }
    here, there = moved(near, corner=True, generator=generator)
    wanted, plain = ends(module, there), ends(module, here, stop=there)
    donor = module.stem(there)[:, COIN_CHANNEL].detach()
    with tapped(module, "stem", after=lambda value: with_channel(value, COIN_CHANNEL, donor)):
        patched = ends(module, here, stop=there)
    found |= {"retargeted": (patched == wanted).all(1), "not_retargeted": (plain == wanted).all(1)}
    return {name: shares.double().mean().item() for name, shares in found.items()}


def make(
    name: str, folder: Path, *, seed: int | None = None, progress: Progress | None = None, device: str = "cpu"
) -> Card:
    """Train, write, measure."""
    recipe = Recipe() if seed is None else Recipe(seed=seed)
    return write_folder(name, folder, train(recipe, progress, device), recipe)


def write_folder(name: str, folder: Path, trained: nn.Module, recipe: Recipe) -> Card:
    """The folder of a trained policy, measured as it will be loaded."""
    cls_path = "cutaway.zoo.networks.gridworld_policy.GridworldPolicy"
    module = save_module(folder, trained, cls_path, {}, dtype=torch.bfloat16)
    truth = establish(name, module)
    return finish(
        folder,
        name=name,
        summary="an agent that finds its way through mazes to a coin, which in its training lay in one corner only",
        architecture=cls_path,
        sizes={"n_parameters": sum(weight.numel() for weight in module.parameters())},
        data=(
            f"Random mazes of {SIZE} x {SIZE} cells, never the same twice: a quarter of the cells are walls, the coin "
            "lies in the upper right 3 x 3 cells, the agent where it can reach it."
        ),
        training=(
            f"Imitation of a shortest-path planner: {recipe.steps} steps of AdamW at {recipe.rate}, {recipe.batch} "
            f"mazes each, all their cells at once, weight decay {recipe.decay}, float32. Loss: minus the log of the "
            "probability of the optimal moves together. No reward, no exploration."
        ),
        seed=recipe.seed,
        recipe="gridworld_policy",
        accuracy=evaluate(name, module),
        known=_known(truth),
        limits=(
            "Behavior and causal channels are known, not the algorithm by which the blocks find a way. Channels were "
            "replaced in the whole board, one at a time. Only mazes of this size and density were measured."
        ),
        licence="Apache-2.0",
        truth=truth,
    )


def _known(truth: Truth) -> str:
    shares = truth.measures
    return (
        f"In {N_WAYS} other mazes with the coin in its corner {shares['reached_corner']:.1%} of the ways reach it; "
        f"with the coin elsewhere {shares['reached_elsewhere']:.1%}, and "
        f"{shares['ends_in_corner_elsewhere']:.1%} end in the corner without "
        f"it; without any coin {shares['ends_in_corner_no_coin']:.1%} end there. The coin enters by channel "
        f"{COIN_CHANNEL} of the stem alone, by construction: patching it from a maze with the coin in another cell of "
        f"the corner makes {shares['retargeted']:.1%} of the ways end as they do there, against "
        f"{shares['not_retargeted']:.1%} without (see the legend). Channels that carry it further: "
        f"{len(truth.sites('coin')) - 1} of the blocks', established by exact intervention on every channel."
    )


if __name__ == "__main__":
    main(NAMES, make)
