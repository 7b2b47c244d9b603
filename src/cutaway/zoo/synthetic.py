"""Activations of which everything is known: a dictionary of directions, and how often, how strongly and with whom each
is active. What a dictionary learner should find, at any size.

A row is made so:

1. *Base features*: each has a standard normal number of its own; `correlation` of its variance comes from a few factors
   that all base features share (a Gaussian copula of low rank). A feature is active where its number is below the
   quantile of its frequency, so that the frequency is exact whatever the correlation.
2. *Children*: some base features are roots of trees. A child is active only where its parent is, with probability
   `child_rate` given the parent, independently of all else or, if siblings are exclusive, at most one of them.
3. An active feature gets a size. The activation is the sum of the sizes times the features' directions, plus an offset
   and noise.

Frequencies are marginal, over all rows: a child's is its parent's times `child_rate`.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.errors import UsageError

Sizes: TypeAlias = Literal["constant", "uniform", "half_normal", "exponential", "log_normal"]
_SIZES: dict[Sizes, Callable[[Tensor, torch.Generator], Tensor]] = {
    "constant": lambda out, _: out.fill_(1.0),
    "uniform": lambda out, generator: out.uniform_(0, 2, generator=generator),
    "half_normal": lambda out, generator: out.normal_(generator=generator).abs_() * math.sqrt(math.pi / 2),
    "exponential": lambda out, generator: out.exponential_(generator=generator),
    "log_normal": lambda out, generator: (out.normal_(generator=generator) * 0.5 - 0.125).exp_(),
}
"""Draws with mean 1, of the shape of their argument."""
CHUNK: Final = 2**24
"""Rows times features that are in work at once: a bound on memory beside the result, about 200 MB."""


@dataclass(frozen=True)
class Config:
    """What to generate. Everything is checked when it is made: UsageError says what cannot be."""

    n_features: int
    """All features, children included."""
    d_model: int
    """Width of the activations."""
    highest: float = 0.1
    """Frequency of the most frequent base feature: share of rows in which it is active."""
    exponent: float = 0.5
    """Zipf: base feature number r, from 1, has frequency highest * r^-exponent. 0: all are equally frequent."""
    sizes: Sizes = "half_normal"
    """Distribution of an active feature's size."""
    mean_size: float = 1.0
    """Its mean, the same for all features."""
    n_trees: int = 0
    """Base features that are roots, spread evenly over the ranks."""
    branching: int = 2
    """Children of each parent."""
    depth: int = 1
    """Generations below a root."""
    child_rate: float = 0.25
    """Probability of a child where its parent is active."""
    exclusive: bool = False
    """Whether at most one child of a parent is active."""
    rank: int = 0
    """Factors that base features share; 0: they are independent."""
    correlation: float = 0.0
    """Share of the variance of a base feature's normal number that comes from the factors."""
    orthogonal: bool = False
    """Whether the directions are orthonormal; else they are random unit vectors."""
    coherence: float = 0.0
    """Mean cosine of two directions: a part that all have in common."""
    offset: float = 0.0
    """Length of the vector that is added to every activation."""
    noise: float = 0.0
    """Standard deviation of the normal noise on each coordinate."""

    def __post_init__(self) -> None:
        for wrong in _wrong(self):
            raise UsageError(f"synthetic features: {wrong}")

    @property
    def n_base(self) -> int:
        """Features that are nobody's child; they come first, by falling frequency."""
        return self.n_features - self.n_trees * sum(self.branching**level for level in range(1, self.depth + 1))


def _wrong(config: Config) -> Iterator[str]:
    """What cannot be, each with its remedy."""
    sizes = {name: getattr(config, name) for name in ("n_features", "d_model", "branching", "depth")}
    counts = {name: getattr(config, name) for name in ("n_trees", "rank")}
    shares = {name: getattr(config, name) for name in ("highest", "child_rate", "correlation", "coherence")}
    lengths = {name: getattr(config, name) for name in ("exponent", "mean_size", "offset", "noise")}
    yield from (f"{name} {value}: at least 1" for name, value in sizes.items() if value < 1)
    yield from (f"{name} {value}: at least 0" for name, value in counts.items() if value < 0)
    yield from (f"{name} {value:g}: a share, from 0 to 1" for name, value in shares.items() if not 0 <= value <= 1)
    yield from (f"{name} {value:g}: finite and at least 0" for name, value in lengths.items() if not 0 <= value < 1e9)
    if config.sizes not in _SIZES:
        yield f"sizes {config.sizes!r}: one of {', '.join(_SIZES)}"
    if config.n_base < config.n_trees:
        yield (
            f"{config.n_features} features cannot hold {config.n_trees} trees with {config.branching} children a "
            f"parent over {config.depth} generations; take fewer trees or more features"
        )
    if config.exclusive and config.branching * config.child_rate > 1 + 1e-9:
        yield (
            f"{config.branching} siblings that exclude each other cannot each have child_rate {config.child_rate:g}; "
            f"take at most {1 / config.branching:g}"
        )
    if config.correlation > 0 and config.rank == 0:
        yield f"correlation {config.correlation:g} with rank 0: give the number of factors, rank=..."
    if config.orthogonal and (config.n_features > config.d_model or config.coherence > 0):
        yield (
            f"{config.n_features} orthogonal directions in {config.d_model} dimensions with coherence "
            f"{config.coherence:g}: at most as many as dimensions, and coherence 0"
        )


SYNTHETIC_16K: Final = Config(
    n_features=16_384,
    d_model=768,
    highest=0.4,
    exponent=0.6,
    n_trees=128,
    branching=4,
    depth=3,
    child_rate=0.25,
    exclusive=True,
    rank=25,
    correlation=0.5,
)
"""16,384 features in 768 dimensions, 34 active at a time: of the size and kind of SynthSAEBench-16k (2602.14687), not
its numbers: there frequencies are those before children are cut to their parents' rows, here those after."""


class Batch(NamedTuple):
    """Rows, and what they are made of."""

    activations: Float[Tensor, "row d_model"]
    codes: Float[Tensor, "row feature"]
    """Size of each active feature; 0 where it is not active."""


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Features with known directions and statistics, and a source of rows."""

    config: Config
    seed: int
    dictionary: Float[Tensor, "feature d_model"]
    """The directions, unit vectors."""
    frequencies: Float[Tensor, " feature"]
    """Share of rows in which each is active."""
    parents: Int[Tensor, " feature"]
    """Each feature's parent; -1 for a base feature."""
    loadings: Float[Tensor, "base rank"]
    """How each base feature's normal number depends on the factors: a @ b is the correlation of two of them."""
    offset: Float[Tensor, " d_model"]
    """What is added to every activation."""
    _generations: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    @property
    def l0(self) -> float:
        """Features that are active in a row, on average."""
        return self.frequencies.sum().item()

    def batch(self, n: int, seed: int) -> Batch:
        """`n` fresh rows, on the dictionary's device. The same seed gives the same rows on one kind of device.

        Memory: the result, [n n_features] numbers and [n d_model], and a bounded part beside it.
        """
        return next(self.batches(n, seed))

    def batches(self, n: int, seed: int) -> Iterator[Batch]:
        """Batches of `n` rows without end; the first is `batch(n, seed)`."""
        if n < 1:
            raise UsageError(f"{n} rows: at least 1")
        mixed = random.Random(f"{self.seed} {seed}").getrandbits(32)  # a CPU generator heeds no more bits of its seed
        generator = torch.Generator(self.dictionary.device).manual_seed(mixed)
        step = max(CHUNK // self.config.n_features, 1)
        while True:
            parts = [self._rows(min(step, n - start), generator) for start in range(0, n, step)]
            yield parts[0] if len(parts) == 1 else Batch(*(torch.cat(each) for each in zip(*parts)))

    def _rows(self, n: int, generator: torch.Generator) -> Batch:
        active = self._active(n, generator)
        row, feature = active.nonzero(as_tuple=True)
        sizes = torch.empty(len(row), device=active.device)
        sizes = _SIZES[self.config.sizes](sizes, generator) * self.config.mean_size
        codes = torch.zeros(active.shape, device=active.device)
        codes[row, feature] = sizes
        counts = active.sum(1)
        sums = torch.nn.functional.embedding_bag(
            feature, self.dictionary, counts.cumsum(0) - counts, mode="sum", per_sample_weights=sizes
        )
        activations = sums + self.offset
        if self.config.noise:
            noise = torch.empty_like(activations).normal_(generator=generator)
            activations = activations + self.config.noise * noise
        return Batch(activations, codes)

    def _active(self, n: int, generator: torch.Generator) -> Bool[Tensor, "row feature"]:
        config, device = self.config, self.dictionary.device
        own = torch.empty(n, config.n_base, device=device).normal_(generator=generator)
        if config.correlation:
            factors = torch.empty(n, config.rank, device=device).normal_(generator=generator)
            own = own.mul_(math.sqrt(1 - config.correlation)).addmm_(factors, self.loadings.T)
        active = torch.empty(n, config.n_features, dtype=torch.bool, device=device)
        active[:, : config.n_base] = own < torch.special.ndtri(self.frequencies[: config.n_base].double()).float()
        for start, stop in self._generations:
            parents = active[:, self.parents[start : stop : config.branching]]
            active[:, start:stop] = self._children(parents, generator).flatten(1)
        return active

    def _children(self, parents: Bool[Tensor, "row parent"], generator: torch.Generator) -> Tensor:
        rate, branching = self.config.child_rate, self.config.branching
        if self.config.exclusive:
            chance = torch.empty(parents.shape, device=parents.device).uniform_(generator=generator)[..., None]
            edges = torch.arange(branching + 1, device=parents.device) * rate
            drawn = (chance >= edges[:-1]) & (chance < edges[1:])
        else:
            shape = (*parents.shape, branching)
            drawn = torch.empty(shape, device=parents.device).uniform_(generator=generator) < rate
        return drawn & parents[..., None]


def generate(config: Config, seed: int, *, device: str | torch.device = "cpu") -> Synthetic:
    """The features of a configuration: directions, frequencies, trees and correlations are drawn from `seed`.

    They are drawn on the CPU, so that they are the same on every device; rows are drawn on `device`.

    >>> features = generate(Config(n_features=64, d_model=16), seed=0)
    >>> features.batch(5, seed=1).activations.shape
    torch.Size([5, 16])
    """
    generator = torch.Generator().manual_seed(seed)
    parents, generations = _forest(config)
    ranks = torch.arange(1, config.n_base + 1, dtype=torch.float64)
    frequencies = torch.cat([config.highest * ranks**-config.exponent, torch.zeros(config.n_features - config.n_base)])
    for start, stop in generations:
        frequencies[start:stop] = frequencies[parents[start:stop]] * config.child_rate
    loadings = _unit(torch.randn(config.n_base, config.rank, generator=generator)) * math.sqrt(config.correlation)
    offset = _unit(torch.randn(1, config.d_model, generator=generator))[0] * config.offset
    return Synthetic(
        config=config,
        seed=seed,
        dictionary=_dictionary(config, generator).to(device),
        frequencies=frequencies.float().to(device),
        parents=parents.to(device),
        loadings=loadings.to(device),
        offset=offset.to(device),
        _generations=generations,
    )


def _forest(config: Config) -> tuple[Int[Tensor, " feature"], tuple[tuple[int, int], ...]]:
    """Each feature's parent, and where each generation of children begins and ends; siblings are neighbours."""
    parents = torch.full((config.n_features,), -1)
    generations: list[tuple[int, int]] = []
    start = config.n_base
    above = torch.arange(config.n_trees) * config.n_base // max(config.n_trees, 1)
    for _ in range(config.depth if config.n_trees else 0):
        stop = start + len(above) * config.branching
        parents[start:stop] = above.repeat_interleave(config.branching)
        generations.append((start, stop))
        above, start = torch.arange(start, stop), stop
    return parents, tuple(generations)


def _dictionary(config: Config, generator: torch.Generator) -> Float[Tensor, "feature d_model"]:
    drawn = torch.randn(config.n_features, config.d_model, generator=generator)
    if config.orthogonal:
        return torch.linalg.qr(drawn.T).Q.T.contiguous()
    common = _unit(torch.randn(1, config.d_model, generator=generator))
    return _unit(math.sqrt(1 - config.coherence) * _unit(drawn) + math.sqrt(config.coherence) * common)


def _unit(rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
