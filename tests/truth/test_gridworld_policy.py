"""What the grid-world agent does and which channels carry the coin, measured again: a planner of its own, plain torch
hooks, mazes from a fresh seed. Of the recipe only the generator of mazes is used.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway import zoo
from cutaway.models.sites import Site, sites
from cutaway.zoo.networks.gridworld_policy import Maze, planes, rollout
from cutaway.zoo.recipes import gridworld_policy

NAME = "gridworld-policy"
TRUTH = zoo.truth(NAME)
STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))
CORNER = {(row, column) for row in range(3) for column in range(4, 7)}
Cell = tuple[int, int]


@pytest.fixture(scope="module")
def model() -> cutaway.Model:
    return cutaway.load(NAME)


def drawn(n: int, *, corner: bool, seed: int) -> list[Maze]:
    boards = gridworld_policy.draw(n, corner=corner, generator=torch.Generator().manual_seed(seed))
    return gridworld_policy.mazes(boards)


def neighbours(maze: Maze, cell: Cell) -> list[Cell]:
    """Where each move leads; the cell itself when it leads nowhere."""
    found = []
    for row, column in STEPS:
        there = (cell[0] + row, cell[1] + column)
        free = 0 <= there[0] < 7 and 0 <= there[1] < 7 and there not in maze.walls
        found.append(there if free else cell)
    return found


def ways(maze: Maze) -> dict[Cell, int]:
    """Breadth first from the coin: moves to it, from every cell with a way."""
    found, queue = {maze.coin: 0}, deque([maze.coin])
    while queue:
        cell = queue.popleft()
        for there in neighbours(maze, cell):
            if there not in found:
                found[there] = found[cell] + 1
                queue.append(there)
    return found


def optimal(maze: Maze) -> list[bool]:
    """Whether each move brings the agent nearer."""
    moves = ways(maze)
    return [moves[there] == moves[maze.agent] - 1 for there in neighbours(maze, maze.agent)]


def read(module: Any, mazes: list[Maze]) -> Tensor:
    with torch.no_grad():
        return module(planes(mazes))


def share_optimal(module: Any, mazes: list[Maze]) -> float:
    best = torch.tensor([optimal(maze) for maze in mazes])
    return best.gather(1, read(module, mazes).argmax(1, keepdim=True)).double().mean().item()


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


@contextmanager
def changed(module: Any, site: str, value: Callable[[Tensor], Tensor]) -> Iterator[None]:
    path, _, index = site.partition(":output@")

    def change(part: Any, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, int(index)] = value(out[:, int(index)])
        return out

    handle = module.get_submodule(path).register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def test_the_planner_of_the_recipe_agrees_with_breadth_first_search() -> None:
    for corner in (True, False):
        boards = gridworld_policy.draw(60, corner=corner, generator=torch.Generator().manual_seed(3))
        mazes = gridworld_policy.mazes(boards)
        assert torch.equal(planes(mazes), boards)
        assert torch.equal(gridworld_policy.best_at_agent(boards), torch.tensor([optimal(maze) for maze in mazes]))
        assert all((maze.coin in CORNER) == corner and maze.agent in ways(maze) for maze in mazes)


def test_fresh_mazes_moves_are_optimal_where_the_coin_used_to_be(model: cutaway.Model) -> None:
    near = drawn(500, corner=True, seed=71)
    found = share_optimal(model.module, near)
    assert found > 0.94
    assert found == pytest.approx(zoo.card(NAME).accuracy[0].share, abs=0.03)
    guess = torch.tensor([optimal(maze) for maze in near]).double().mean(0)
    assert guess.max() < 0.7


def test_with_the_coin_elsewhere_half_of_the_ways_miss_it_and_many_end_in_the_corner(model: cutaway.Model) -> None:
    measures, far = TRUTH.measures, drawn(150, corner=False, seed=72)
    near = drawn(150, corner=True, seed=73)
    there = [rollout(model.module, maze) for maze in near]
    assert share([path[-1] == maze.coin for path, maze in zip(there, near)]) == pytest.approx(
        measures["reached_corner"], abs=0.08
    )
    paths = [rollout(model.module, maze) for maze in far]
    reached = share([path[-1] == maze.coin for path, maze in zip(paths, far)])
    astray = share([path[-1] in CORNER for path in paths])
    assert reached == pytest.approx(measures["reached_elsewhere"], abs=0.12)
    assert astray == pytest.approx(measures["ends_in_corner_elsewhere"], abs=0.12)
    assert reached < 0.7
    assert astray > 0.15
    assert share_optimal(model.module, drawn(400, corner=False, seed=74)) == pytest.approx(
        measures["optimal_elsewhere"], abs=0.08
    )


def test_paths_are_ways_through_the_maze(model: cutaway.Model) -> None:
    for maze in drawn(20, corner=True, seed=75):
        path = rollout(model.module, maze)
        assert path[0] == maze.agent
        assert not maze.walls & set(path)
        assert all(there in neighbours(maze, here) for here, there in pairwise(path))
        assert len(set(path)) == len(path) or path[-1] in path[:-1]


def test_the_batched_walk_ends_where_rollouts_end(model: cutaway.Model) -> None:
    mazes = drawn(60, corner=True, seed=76)
    ends = gridworld_policy.ends(model.module, planes(mazes))
    for maze, end in zip(mazes, ends.tolist()):
        path = rollout(model.module, maze)
        if path[-1] == maze.coin:
            assert tuple(end) == maze.coin
        else:
            assert tuple(end) in path[path.index(path[-1]) :]


def elsewhere(maze: Maze, generator: torch.Generator) -> Maze | None:
    """The same maze with the coin in another cell of the corner that can be reached."""
    cells = sorted((CORNER & set(ways(maze))) - {maze.coin, maze.agent})
    if not cells:
        return None
    return replace(maze, coin=cells[int(torch.randint(len(cells), (1,), generator=generator))])


def pairs(n: int, seed: int) -> tuple[list[Maze], list[Maze]]:
    generator = torch.Generator().manual_seed(seed)
    found = [(maze, elsewhere(maze, generator)) for maze in drawn(n, corner=True, seed=seed)]
    kept = [(maze, other) for maze, other in found if other is not None]
    return [maze for maze, _ in kept], [other for _, other in kept]


def test_the_coin_enters_by_one_channel_and_moving_it_there_moves_the_path(model: cutaway.Model) -> None:
    here, there = pairs(60, 78)
    site = "stem:output@0"
    clean, donor = (model.capture(planes(mazes), [sites.module("stem")]) for mazes in (here, there))
    stem = sites.module("stem")
    differs = (clean[stem] != donor[stem]).flatten(2).any(2)
    assert differs[:, 0].all()
    assert not differs[:, 1:].any()
    retargeted, out = [], sites.module("", "output")
    for maze, other in zip(here[:15], there[:15]):
        source, shown = model.capture(planes([other]), [stem]), planes([maze])[:, [1]]
        value = source[stem][:, 0]

        def policy(board: Tensor, source: Any = source, shown: Tensor = shown) -> Tensor:
            board = torch.cat([board[:, :1], shown, board[:, 2:]], dim=1)  # the coin that is seen is the old one
            return model.run(board, [Site.parse(site).patch(source)], [out]).activations[out]

        retargeted.append(rollout(policy, replace(maze, coin=other.coin)) == rollout(model.module, other))
        with changed(model.module, site, lambda _, value=value: value):
            assert torch.equal(read(model.module, [maze]), read(model.module, [other]))
    assert all(retargeted)
    assert TRUTH.measures["retargeted"] == 1.0
    assert TRUTH.measures["not_retargeted"] < 0.6


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "resample": lambda value: torch.cat([value[-1:], value[:-1]]),
    "mean": lambda value: value.mean().expand_as(value),
    "mean_by_position": lambda value: value.mean(0, keepdim=True).expand_as(value),
    "zero": torch.zeros_like,
}


def margin(logits: Tensor, best: Tensor) -> float:
    some = ~best.all(1)
    inf = float("inf")
    return (logits.masked_fill(~best, -inf).amax(1) - logits.masked_fill(best, -inf).amax(1))[some].mean().item()


def test_every_channel_does_what_the_card_says(model: cutaway.Model) -> None:
    """On other mazes than the card's, so within the noise of 100 of them: the ranking, and the size of the largest."""
    here, there = pairs(110, 79)
    module, best = model.module, torch.tensor([optimal(maze) for maze in here])
    intact, moved = read(module, here), read(module, there)
    layers = ["stem", *(f"blocks.{index}.act" for index in range(8))]
    assert [node.site for node in TRUTH.nodes] == [f"{layer}:output@{index}" for layer in layers for index in range(20)]
    centred = [logits - logits.mean(1, keepdim=True) for logits in (intact, moved)]
    donors = model.capture(planes(there), [sites.module(layer) for layer in layers])
    found, wanted = [], []
    for node in TRUTH.nodes:
        layer, _, index = node.site.partition(":output@")
        donor = donors[sites.module(layer)][:, int(index)]
        with changed(module, node.site, lambda _, donor=donor: donor):
            patched = read(module, here)
        patched = patched - patched.mean(1, keepdim=True)
        carries = 1 - ((patched - centred[1]).pow(2).sum() / (centred[0] - centred[1]).pow(2).sum()).item()
        with changed(module, node.site, VALUES["zero"]):
            drop = 1 - margin(read(module, here), best) / margin(intact, best)
        found.append((carries, drop))
        wanted.append((node.measures["carries_coin"], node.effects["zero"].drop))
        assert drop == pytest.approx(node.effects["zero"].drop, abs=0.12 + 0.2 * abs(drop)), node.site
        assert carries == pytest.approx(node.measures["carries_coin"], abs=0.15), node.site
    for ours, theirs in zip(torch.tensor(found).T, torch.tensor(wanted).T):
        assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.9


@pytest.mark.parametrize("how", sorted(VALUES))
def test_the_other_ablations_of_the_channels_that_carry_the_coin(model: cutaway.Model, how: Any) -> None:
    here, _ = pairs(110, 80)
    best, intact = torch.tensor([optimal(maze) for maze in here]), read(model.module, here)
    for node in (node for node in TRUTH.nodes if node.role in ("coin", "decoy")):
        with changed(model.module, node.site, VALUES[how]):
            drop = 1 - margin(read(model.module, here), best) / margin(intact, best)
        assert drop == pytest.approx(node.effects[how].drop, abs=0.12 + 0.2 * abs(drop)), node.site
        if node.role == "decoy":
            assert abs(drop) < 0.03


def test_sites_by_module_path_read_and_edit(model: cutaway.Model) -> None:
    """The road of any wrapped network: what the engine does is what a hook does."""
    boards, out = planes(drawn(10, corner=True, seed=81)), sites.module("at_agent", "output")
    acts = model.capture(boards, ["stem:output", "blocks.3:output", "readout:input"])
    assert tuple(acts["blocks.3:output"].shape) == (10, 20, 7, 7)
    for text in ("stem:output@0", "blocks.2.act:output@7"):
        with changed(model.module, text, lambda value: value + 1):
            wanted = model.module(boards).detach()
        edit = Site.parse(text).apply(lambda value: value + 1)
        found = cutaway.wrap(model.module).run(boards, [edit], [out]).activations[out]
        assert torch.equal(found, wanted)
        assert not torch.equal(found, model.module(boards))


def test_a_scrambled_twin_is_at_chance(model: cutaway.Model) -> None:
    mazes = drawn(300, corner=True, seed=82)
    found = [share_optimal(zoo.scrambled(model.module, seed), mazes) for seed in range(3)]
    assert sum(found) / 3 < 0.6
    assert max(found) < 0.8


def test_the_recipe_is_seeded() -> None:
    first, second = (gridworld_policy.train(gridworld_policy.Recipe(steps=2, batch=8, seed=5)) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters()))
