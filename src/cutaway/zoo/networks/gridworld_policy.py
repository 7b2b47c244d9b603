"""A small agent in a grid world: the mazes, the policy network, and what it does when it is let go.

A maze is a square of cells, some of them walls, with a coin in one of them. The agent moves by one cell a step. As
planes, which is what the network sees, it is [batch plane row column] with the planes WALL, COIN, AGENT of zeros and
ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

SIZE = 7
"""Rows and columns of a maze."""
WALL, COIN, AGENT = range(3)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Up, down, left, right: what the four logits stand for."""
COIN_CHANNEL = 0
"""The one channel of the stem's output that the coin can reach."""


@dataclass(frozen=True)
class Maze:
    """Walls, the coin's cell and the agent's cell; row 0 is at the top."""

    walls: frozenset[tuple[int, int]]
    coin: tuple[int, int]
    agent: tuple[int, int]


class Stem(nn.Module):
    """The first convolution. The coin goes into the channel COIN_CHANNEL alone, which sees nothing else; the others see
    the walls, the row and the column."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.coin = nn.Conv2d(1, 1, kernel_size=1)
        self.ground = nn.Conv2d(4, n_channels - 1, kernel_size=3, padding=1)
        inside = torch.ones(1, 1, SIZE, SIZE)
        along = torch.linspace(-1, 1, SIZE)
        rows, columns = along[:, None].expand(SIZE, SIZE), along[None].expand(SIZE, SIZE)
        self.register_buffer("place", torch.cat([inside, rows[None, None], columns[None, None]], 1), persistent=False)
        self.place: Tensor

    def forward(self, planes: Float[Tensor, "batch plane row column"]) -> Float[Tensor, "batch channel row column"]:
        place = self.place.expand(len(planes), -1, -1, -1)
        ground = self.ground(torch.cat([planes[:, [WALL]], place], dim=1))
        return torch.cat([self.coin(planes[:, [COIN]]), ground], dim=1).relu()


class Block(nn.Module):
    """Adds to the channels what a convolution of them says, where that is positive."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_channels, n_channels, kernel_size=3, padding=1)
        self.act = nn.ReLU()

    def forward(self, value: Float[Tensor, "batch channel row column"]) -> Float[Tensor, "batch channel row column"]:
        return value + self.act(self.conv(value))


class AtAgent(nn.Module):
    """The four logits of the agent's cell."""

    def forward(
        self, field: Float[Tensor, "batch move row column"], planes: Float[Tensor, "batch plane row column"]
    ) -> Float[Tensor, "batch move"]:
        return (field * planes[:, [AGENT]]).sum((2, 3))


class GridworldPolicy(nn.Module):
    """A stem, blocks that add to its channels, and four logits for each cell, of which the agent's are given back."""

    def __init__(self, n_channels: int = 20, n_blocks: int = 8) -> None:
        super().__init__()
        self.stem = Stem(n_channels)
        self.blocks = nn.ModuleList(Block(n_channels) for _ in range(n_blocks))
        self.readout = nn.Conv2d(n_channels, len(MOVES), kernel_size=1)
        self.at_agent = AtAgent()

    def field(self, planes: Float[Tensor, "batch plane row column"]) -> Float[Tensor, "batch move row column"]:
        """Logits of the moves from every cell; the agent's place has no part in them."""
        value = self.stem(planes)
        for block in self.blocks:
            value = block(value)
        return self.readout(value)

    def forward(self, planes: Float[Tensor, "batch plane row column"]) -> Float[Tensor, "batch move"]:
        """Logits of up, down, left, right."""
        return self.at_agent(self.field(planes), planes)


def planes(mazes: Sequence[Maze]) -> Float[Tensor, "batch plane row column"]:
    """What the network sees of the mazes."""
    found = torch.zeros(len(mazes), 3, SIZE, SIZE)
    for index, maze in enumerate(mazes):
        for cell in maze.walls:
            found[(index, WALL, *cell)] = 1
        found[(index, COIN, *maze.coin)] = 1
        found[(index, AGENT, *maze.agent)] = 1
    return found


def rollout(
    policy: Callable[[Float[Tensor, "batch plane row column"]], Float[Tensor, "batch move"]],
    maze: Maze,
    n_moves: int = SIZE * SIZE,
) -> tuple[tuple[int, int], ...]:
    """The cells that the agent comes through, its first one included, when it always takes the move of largest logit.

    `policy` is the module, or any function from planes to logits. A move into a wall or off the board leaves it where
    it is. Ends at the coin, where it would go in a circle (the last cell is then one that came before), or after
    `n_moves`. Cost: one forward pass a move.
    """
    path = [maze.agent]
    while len(path) <= n_moves and path[-1] != maze.coin and path[-1] not in path[:-1]:
        with torch.no_grad():
            move = int(policy(planes([Maze(maze.walls, maze.coin, path[-1])])).argmax())
        row, column = path[-1][0] + MOVES[move][0], path[-1][1] + MOVES[move][1]
        free = 0 <= row < SIZE and 0 <= column < SIZE and (row, column) not in maze.walls
        path.append((row, column) if free else path[-1])
    return tuple(path)
