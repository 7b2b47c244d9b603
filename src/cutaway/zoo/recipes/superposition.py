"""`superposition-*`: toy models that hold more features than they have dimensions (Elhage et al. 2022, Toy models of
superposition), in the phases that depend on how rare, how important and how related the features are.

    python -m cutaway.zoo.recipes.superposition --out DIR --name superposition-5-2

y = ReLU(W^T W x + b) is trained to give x back; x_i is 0, or a size drawn evenly from 0 to 1. The loss is the squared
error times the feature's importance. Dense features get a dimension each, the most important ones, and the others
none; rarer ones share: two a dimension, opposite to each other, then five in a plane, and so on. Which features go
opposite to each other follows from which are seldom active together. Small models are trained several times at once
and the best is kept. Cost: 3 to 8 s of one CPU core a small model, about 30 s for `superposition-400-30`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor, nn

from cutaway.zoo.card import Card, Direction, Score, Truth
from cutaway.zoo.exact import tapped
from cutaway.zoo.networks.superposition import Superposition
from cutaway.zoo.train import Progress, finish, main, save_module, score

Draw = Callable[[Float[Tensor, " instance"], int, int, torch.Generator], Float[Tensor, "instance batch feature"]]


def alone(rates: Tensor, n_rows: int, n_features: int, generator: torch.Generator) -> Tensor:
    """Features that have nothing to do with each other, each active at the instance's rate."""
    active = _chance(rates, n_rows, n_features, generator) < rates[:, None, None]
    return _sized(active, generator)


def together(rates: Tensor, n_rows: int, n_features: int, generator: torch.Generator) -> Tensor:
    """Features 0 and 1, 2 and 3, ... are active in the same rows, with sizes of their own."""
    active = _chance(rates, n_rows, n_features // 2, generator) < rates[:, None, None]
    return _sized(active.repeat_interleave(2, -1), generator)


def exclusive(rates: Tensor, n_rows: int, n_features: int, generator: torch.Generator) -> Tensor:
    """Features 0 and 1, 2 and 3, ... are never active in the same row."""
    chance = _chance(rates, n_rows, n_features // 2, generator)
    first, either = chance < rates[:, None, None], chance < 2 * rates[:, None, None]
    return _sized(torch.stack([first, either & ~first], -1).flatten(-2), generator)


def tree(rates: Tensor, n_rows: int, n_features: int, generator: torch.Generator) -> Tensor:
    """Features 0, 3, ... are parents, active at the rate; one of the two after each is active in 80 % of their rows."""
    parent = _chance(rates, n_rows, n_features // 3, generator) < rates[:, None, None]
    which = _chance(rates, n_rows, n_features // 3, generator)
    return _sized(torch.stack([parent, parent & (which < 0.4), parent & (which >= 0.6)], -1).flatten(-2), generator)


def _chance(rates: Tensor, n_rows: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(len(rates), n_rows, n, generator=generator, device=rates.device)


def _sized(active: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(active.shape, generator=generator, device=active.device) * active


@dataclass(frozen=True)
class Spec:
    """One toy model: its features and its training."""

    n_features: int
    d_hidden: int
    rate: float
    """How often a feature is active (of `tree` a parent)."""
    draw: Draw = alone
    """Which features are active together."""
    ratio: float = 1.0
    """Importance of a feature as a multiple of that of the one before it; the first has 1."""
    closer: float = 0.25
    """Share of the mean row's error that counts as giving a row back."""
    promised: float = 0.9
    """Share of the rows that is given back so, at least."""
    restarts: int = 6
    """Models that are trained at once; the one with the least loss on fresh rows is kept."""
    steps: int = 3000
    batch: int = 256
    rows_to_choose: int = 32_768
    learning_rate: float = 1e-2
    seed: int = 0


SPECS = {
    "superposition-5-2": Spec(5, 2, 0.05, ratio=0.9, promised=0.6),
    "superposition-5-2-pairs": Spec(5, 2, 0.2, ratio=0.9, promised=0.65),
    "superposition-5-2-dense": Spec(5, 2, 1.0, ratio=0.9, closer=0.75, promised=0.75),
    "superposition-400-30": Spec(
        400, 30, 0.3, closer=1.0, restarts=1, steps=1000, rows_to_choose=2048, learning_rate=5e-3
    ),
    "superposition-correlated": Spec(6, 3, 0.1, together, restarts=24),
    "superposition-anticorrelated": Spec(6, 3, 0.1, exclusive, restarts=24),
    "superposition-hierarchical": Spec(6, 4, 0.2, tree, restarts=24),
}
NAMES = tuple(SPECS)
CHANCE: dict[str, float] = {}
"""Behavior -> share that a guess gives: the mean row is never closer than itself."""
TRACE = dict.fromkeys(
    ("superposition-5-2", "superposition-5-2-pairs"),
    "fifteen numbers, of which two or three orders still give some rows back",
)
"""Models whose scrambled twin keeps a trace, and why."""
LADDER = (0.5, 0.3, 0.15)
"""Rates at which the model with 400 features is trained; the network is the one of its spec's rate."""
PLATEAUS = {"3/4": 3 / 4, "2/3": 2 / 3, "1/2": 1 / 2, "2/5": 2 / 5, "3/8": 3 / 8}
"""Dimensionality of features in a tetrahedron, a triangle, an opposite pair, a pentagon, a square antiprism."""
NEAR = 0.0125
"""What counts as on a plateau; half of the distance between the two closest."""
SITE = "hidden:output"


@dataclass(frozen=True)
class Trained:
    """Models that were trained at once, and their loss on fresh rows."""

    weight: Float[Tensor, "instance feature hidden"]
    bias: Float[Tensor, "instance feature"]
    loss: Float[Tensor, " instance"]


def importance(spec: Spec) -> Float[Tensor, " feature"]:
    """Weight of each feature in the loss."""
    return spec.ratio ** torch.arange(spec.n_features)


def train(
    spec: Spec,
    rates: Float[Tensor, " instance"],
    weights: Float[Tensor, "... feature"],
    progress: Progress | None = None,
) -> Trained:
    """One model an instance, each with its rate and its importances. Same arguments and versions: same bits."""
    generator = torch.Generator(rates.device).manual_seed(spec.seed)
    n, m = spec.n_features, spec.d_hidden
    start = torch.randn(len(rates), n, m, generator=generator, device=rates.device)
    weight = (start * min(0.5, n**-0.5)).requires_grad_()
    bias = torch.zeros(len(rates), n, device=rates.device, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=spec.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 50, 1.0, 3 * (1 - step / spec.steps))
    )
    weights = weights.to(rates.device).expand(len(rates), n)[:, None]

    def losses(n_rows: int) -> Float[Tensor, " instance"]:
        x = spec.draw(rates, n_rows, n, generator)
        y = torch.baddbmm(bias[:, None], x @ weight, weight.transpose(1, 2)).relu()
        return (weights * (x - y).square()).sum(2).mean(1)

    for step in range(spec.steps):
        optimiser.zero_grad()
        losses(spec.batch).sum().backward()
        optimiser.step()
        schedule.step()
        if progress:
            progress(step + 1, spec.steps, "training")
    with torch.no_grad():
        return Trained(weight.detach().cpu(), bias.detach().cpu(), losses(spec.rows_to_choose).cpu())


def dimensionality(weight: Float[Tensor, "feature hidden"]) -> Float[Tensor, " feature"]:
    """D_i = |W_i|^2 / sum over j of (W_i / |W_i| . W_j)^2: the part of a dimension that a feature has for itself,
    0 when it is not represented (Elhage et al., section "The geometry of superposition")."""
    norms = weight.norm(dim=1)
    unit = weight / norms.clamp_min(1e-8)[:, None]
    return norms.square() / (unit @ weight.T).square().sum(1).clamp_min(1e-8)


def rises(module: nn.Module, x: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
    """The network's output above what it says of a row without features: a feature that has no room comes back as its
    mean, whatever the row."""
    with torch.no_grad():
        return module(x) - module(torch.zeros_like(x))


def responses(module: nn.Module) -> Float[Tensor, "feature output"]:
    """The rises when one feature alone is active, with size 1."""
    return rises(module, torch.eye(len(module.get_parameter("bias"))))


def represented(module: nn.Module) -> Bool[Tensor, " feature"]:
    """Whether a feature that is alone and of size 1 comes back as at least a half."""
    return responses(module).diagonal() >= 0.5


def evaluate(name: str, module: nn.Module) -> tuple[Score, ...]:
    """Rows as in the training, with features: is what comes back closer than the mean row is, by `Spec.closer`?"""
    spec, generator = SPECS[name], torch.Generator().manual_seed(1_000_003)
    x = spec.draw(torch.tensor([spec.rate]), 4000, spec.n_features, generator)[0]
    mean, weights = x.mean(0), importance(spec)
    x = x[(x > 0).any(1)]
    with torch.no_grad():
        off, guessed = ((weights * (x - y).square()).sum(1) for y in (module(x), mean))
    right = int((off <= spec.closer * guessed).sum())
    what = f"fresh rows with features, at most {spec.closer:g} of the mean row's weighted squared error"
    return (score("give back the features", what, right, len(x), target=spec.promised),)


def establish(name: str, module: nn.Module) -> Truth:
    """The features and their geometry, read off the weights; which are represented, from runs with each one alone."""
    spec, weight = SPECS[name], module.get_parameter("weight").detach()
    return Truth(
        behavior="Give back features that do not fit into the hidden dimensions side by side.",
        evidence=(
            "Row i of the weights is the direction of feature i in the hidden space, by construction of the network. A "
            "feature is represented when, alone and of size 1, it comes back as at least a half: one forward pass "
            "each. That the network uses it is seen from the loss without its direction. Geometry is measured on the "
            "weights."
        ),
        metric="squared error times importance, summed over features, mean over fresh rows",
        baseline=_loss(spec, module),
        setup={"rows": spec.rows_to_choose, "rate": spec.rate, "importance_ratio": spec.ratio},
        directions=tuple(_directions(spec, module)) if spec.n_features <= MOST_DIRECTIONS else (),
        features=FEATURES | (LADDER_FEATURES if name == "superposition-400-30" else {}),
        measures=geometry(weight, represented(module)) | _relations(spec, weight),
        legend=LEGEND,
    )


MOST_DIRECTIONS = 20
"""Models with more features have them as arrays alone."""
FEATURES = {
    "features": "[feature hidden]: direction and length of each feature in the hidden space",
    "bias": "[feature]",
    "dimensionality": "[feature]: the part of a dimension that the feature has for itself",
    "represented": "[feature]: whether it comes back",
    "importance": "[feature]: its weight in the loss",
}
LADDER_FEATURES = {
    "ladder_rates": "[rate]: how often a feature is active",
    "ladder_features": "[rate feature hidden]: the features of a model that was trained at this rate",
    "ladder_bias": "[rate feature]",
}
LEGEND = {
    "length": "length of the feature's direction",
    "dimensionality": "|W_i|^2 / sum over j of (W_i / |W_i| . W_j)^2",
    "alone": "how far its output rises when it alone is active, with size 1",
    "interference": "the largest rise of another output then",
    "loss_without": "the metric when the direction is projected out of the hidden space",
    "n_represented": "features that are represented",
    "dimensions_per_feature": "hidden dimensions over the squared norm of the weights",
    "smallest_dimensionality": "of the represented features",
    "largest_dimensionality": "of the represented features",
    "n_near_A/B": f"represented features whose dimensionality is within {NEAR} of A/B",
    "cosine_in_pair": "mean cosine of the two features of a pair",
    "smallest_cosine_across": "mean over features of the smallest cosine with a feature of another pair",
    "cosine_of_siblings": "mean cosine of two children of one parent",
    "cosine_of_parent_and_child": "mean absolute cosine of a child with its parent",
    "cosine_across_trees": "largest absolute cosine of features of different trees",
    "@RATE": "after a measure's name: in the model of the ladder that was trained at this rate",
}


def _loss(spec: Spec, module: nn.Module) -> float:
    generator = torch.Generator().manual_seed(1_000_033)
    x = spec.draw(torch.tensor([spec.rate]), spec.rows_to_choose, spec.n_features, generator)[0]
    with torch.no_grad():
        return (importance(spec) * (x - module(x)).square()).sum(1).mean().item()


def _directions(spec: Spec, module: nn.Module) -> Iterator[Direction]:
    weight, found, kept = module.get_parameter("weight").detach(), responses(module), represented(module)
    shares = dimensionality(weight)
    for feature in kept.nonzero()[:, 0].tolist():
        others = found[feature].clone()
        others[feature] = 0
        unit = weight[feature] / weight[feature].norm()
        with tapped(module, "hidden", after=lambda hidden, unit=unit: hidden - (hidden @ unit)[:, None] * unit):
            without = _loss(spec, module)
        yield Direction(
            name=f"feature {feature}",
            site=SITE,
            role="used",
            tensor=f"feature_{feature}",
            evidence="intervention",
            measures={
                "length": weight[feature].norm().item(),
                "dimensionality": shares[feature].item(),
                "alone": found[feature, feature].item(),
                "interference": others.max().item(),
                "loss_without": without,
            },
        )


def geometry(weight: Float[Tensor, "feature hidden"], kept: Bool[Tensor, " feature"]) -> dict[str, float]:
    """Numbers about how the represented features lie."""
    shares = dimensionality(weight)[kept]
    near = {f"n_near_{name}": float(((shares - value).abs() < NEAR).sum()) for name, value in PLATEAUS.items()}
    return {
        "n_represented": float(kept.sum()),
        "dimensions_per_feature": weight.shape[1] / weight.square().sum().item(),
        "smallest_dimensionality": shares.min().item(),
        "largest_dimensionality": shares.max().item(),
        **near,
    }


def _relations(spec: Spec, weight: Float[Tensor, "feature hidden"]) -> dict[str, float]:
    """Cosines between features that have to do with each other, and between those that do not."""
    unit = weight / weight.norm(dim=1, keepdim=True).clamp_min(1e-8)
    cosine = unit @ unit.T
    if spec.draw in (together, exclusive):
        own = torch.arange(spec.n_features) // 2
        across = cosine.masked_fill(own[:, None] == own, 2.0)
        in_pair = cosine[::2, 1::2].diagonal()
        return {
            "cosine_in_pair": in_pair.mean().item(),
            "smallest_cosine_across": across.min(1).values.mean().item(),
        }
    if spec.draw is tree:
        own = torch.arange(spec.n_features) // 3
        parents, first, second = cosine[::3], torch.arange(1, len(own), 3), torch.arange(2, len(own), 3)
        children = torch.stack([parents[:, first].diagonal(), parents[:, second].diagonal()])
        return {
            "cosine_of_siblings": cosine[first, second].mean().item(),
            "cosine_of_parent_and_child": children.abs().mean().item(),
            "cosine_across_trees": cosine[own[:, None] != own].abs().max().item(),
        }
    return {}


def arrays(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The tensors that the truth names, but for the ladder."""
    weight = module.get_parameter("weight").detach()
    unit = weight / weight.norm(dim=1, keepdim=True).clamp_min(1e-8)
    return {
        "features": weight,
        "bias": module.get_parameter("bias").detach(),
        "dimensionality": dimensionality(weight),
        "represented": represented(module),
        "importance": importance(SPECS[name]),
        **{item.tensor: unit[int(item.tensor.rpartition("_")[2])] for item in establish(name, module).directions},
    }


def build(weight: Float[Tensor, "feature hidden"], bias: Float[Tensor, " feature"]) -> Superposition:
    """The network with these weights."""
    module = Superposition(*weight.shape)
    module.load_state_dict({"weight": weight, "bias": bias})
    return module.eval()


def make(
    name: str, folder: Path, *, seed: int | None = None, progress: Progress | None = None, device: str = "cpu"
) -> Card:
    """Train, write the folder, measure what it gives back, write the card."""
    spec = SPECS[name] if seed is None else replace(SPECS[name], seed=seed)
    ladder = name == "superposition-400-30"
    rates = LADDER if ladder else (spec.rate,) * spec.restarts
    parts = [(rate,) for rate in rates] if ladder else [rates]  # large models one after the other
    runs = [train(spec, torch.tensor(part, device=device), importance(spec), progress) for part in parts]
    trained = Trained(*(torch.cat([getattr(run, field) for run in runs]) for field in ("weight", "bias", "loss")))
    best = LADDER.index(spec.rate) if ladder else int(trained.loss.argmin())
    module = save_module(
        folder,
        build(trained.weight[best], trained.bias[best]),
        "cutaway.zoo.networks.superposition.Superposition",
        {"n_features": spec.n_features, "d_hidden": spec.d_hidden},
    )
    tensors, truth = arrays(name, module), establish(name, module)
    if ladder:
        tensors |= {
            "ladder_rates": torch.tensor(LADDER),
            "ladder_features": trained.weight.half(),
            "ladder_bias": trained.bias.half(),
        }
        measures = {**truth.measures, **along_the_ladder(tensors)}
        truth = truth.model_copy(update={"measures": measures})
    save_file(tensors, folder / "truth.safetensors")
    return finish(folder, **_card(name, spec, module, truth))


def along_the_ladder(tensors: dict[str, Tensor]) -> dict[str, float]:
    """The geometry of each model of the ladder."""
    found = {}
    for rate, weight, bias in zip(
        tensors["ladder_rates"].tolist(), tensors["ladder_features"].float(), tensors["ladder_bias"].float()
    ):
        numbers = geometry(weight, represented(build(weight, bias)))
        found |= {f"{measure}@{rate:.2g}": value for measure, value in numbers.items()}
    return found


DRAWN: dict[Draw, str] = {
    alone: "each active on its own",
    together: "0 and 1, 2 and 3, 4 and 5 always active together, with sizes of their own",
    exclusive: "0 and 1, 2 and 3, 4 and 5 never active together",
    tree: "0 and 3 parents, each with two children (1 and 2, 4 and 5) of which at most one is active, in 80 % of the "
    "parent's rows and in no others",
}


def _card(name: str, spec: Spec, module: nn.Module, truth: Truth) -> dict[str, Any]:
    n, m = spec.n_features, spec.d_hidden
    chosen = f"The best of {spec.restarts} models. " if spec.restarts > 1 else ""
    return {
        "name": name,
        "summary": f"{n} features in {m} dimensions, {SUMMARY[name]}",
        "architecture": "cutaway.zoo.networks.superposition.Superposition",
        "sizes": {"n_parameters": sum(each.numel() for each in module.parameters()), "n_features": n, "d_hidden": m},
        "data": f"Random rows, never the same twice: features {DRAWN[spec.draw]}; rate {spec.rate:g}, sizes even "
        f"from 0 to 1, importances {spec.ratio:g}^i.",
        "training": f"{spec.steps} steps of Adam at {spec.learning_rate}, {spec.batch} rows each, linear to zero in "
        f"the last third. {chosen}Stored as float32.",
        "seed": spec.seed,
        "recipe": "superposition",
        "accuracy": evaluate(name, module),
        "known": _known(name, truth.measures),
        "limits": ("Of the plateaus only 1/2 is sharp at these rates. " if n > MOST_DIRECTIONS else "")
        + "The features are the inputs, so that they are known; that networks at large have such features is "
        "not shown by it. Another seed turns or mirrors the hidden space and may order the features otherwise; the "
        "geometry comes again.",
        "licence": "Apache-2.0",
        "truth": truth,
    }


SUMMARY = {
    "superposition-5-2": "rare: a pentagon",
    "superposition-5-2-pairs": "less rare: two opposite pairs, and one feature left out",
    "superposition-5-2-dense": "always active: the two most important have a dimension each",
    "superposition-400-30": "equally important: opposite pairs and what comes after them as features get rarer",
    "superposition-correlated": "in pairs that are active together: orthogonal within a pair",
    "superposition-anticorrelated": "in pairs that exclude each other: opposite within a pair",
    "superposition-hierarchical": "parents with children that exclude each other",
}


def _known(name: str, measures: Mapping[str, float]) -> str:
    own = {key: value for key, value in measures.items() if "@" not in key and value != 0}
    text = "; ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in own.items())
    return f"Every feature's direction, as the network is built of them. {text}. The legend says what each number is."


if __name__ == "__main__":
    main(NAMES, make)
