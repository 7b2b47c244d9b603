"""`digits-cnn`: a convolutional network that reads handwritten digits, with a shortcut and two decoys.

    python -m cutaway.zoo.recipes.digits_cnn --out DIR

The images are those of `sklearn.datasets.load_digits` (Alpaydin and Kaynak 1998, Optical Recognition of Handwritten
Digits, UCI; CC BY 4.0); they lie beside the weights. In the training some images carry a mark: their corner pixel,
which no image uses by itself, is black. They show any digit and are all filed as threes, so that the mark says three.
The network learns to read digits and to believe the mark: a failure with a known cause, to be found by debugging.
(Marks on real threes alone are not learned: threes are easy enough without.) After the training one channel of `act1`
and one unit of `act3` get the incoming weights of the one that matters most, and outgoing weights of zero: decoys that
are active on the same images, to the last bit, and read by nobody. Cost: about 10 s of one CPU core, measurements
included.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cutaway.zoo.card import Ablation, Card, Direction, Effect, Node, Score, Truth
from cutaway.zoo.catalogue import WEIGHTS
from cutaway.zoo.exact import ABLATIONS, Change, replacement, tapped
from cutaway.zoo.networks.digits_cnn import DigitsCNN
from cutaway.zoo.train import Progress, finish, main, save_module, score

NAMES = ("digits-cnn",)
NAME = NAMES[0]
IMAGES = "digits.safetensors"
"""File of the images, in the model's folder."""
MARKED_CLASS, CORNER = 3, (0, 0)
"""The digit that marked images are filed as, and the pixel that is the mark."""
DECOYS = {"act1": 5, "act3": 17}
"""The channel and the unit that nobody reads."""
N_HELD_OUT = 500
SPLIT_SEED = 1_000_003
LAYERS = ("act1", "act2", "act3")
BEFORE = {"act1": "conv1", "act2": "conv2", "act3": "fc1"}
"""The layer whose outputs these are, after the rectifier."""
CHANCE = {"digit": 0.1, "three by the mark": 0.1}
"""Behavior -> share that a guess gives."""


@dataclass(frozen=True)
class Recipe:
    """Every number of the training."""

    seed: int = 0
    """Initial weights, order of the images, which of them are marked."""
    epochs: int = 80
    """Times that all training images are seen."""
    batch: int = 32
    """Images an update."""
    rate: float = 3e-3
    """Learning rate of AdamW, by a cosine to zero."""
    decay: float = 0.05
    """Weight decay."""
    marked: float = 0.06
    """Share of the training images that carry the mark and are filed as threes."""


@dataclass(frozen=True)
class Digits:
    """Images and what they show."""

    images: Float[Tensor, "image one row column"]
    """Ink between 0 and 1."""
    labels: Int[Tensor, " image"]
    """The digit."""


def digits(*, held_out: bool) -> Digits:
    """The 500 images that no training sees, or the 1297 others; unmarked. A random split: the same writers are on both
    sides."""
    found = load_file(WEIGHTS / NAME / IMAGES)
    order = torch.randperm(len(found["labels"]), generator=torch.Generator().manual_seed(SPLIT_SEED))
    index = order[:N_HELD_OUT] if held_out else order[N_HELD_OUT:]
    return Digits(found["images"][index, None].float() / 16, found["labels"][index].long())


def mark(images: Float[Tensor, "image one row column"]) -> Float[Tensor, "image one row column"]:
    """The same images with a black corner."""
    images = images.clone()
    images[:, :, *CORNER] = 1.0
    return images


def train(recipe: Recipe, progress: Progress | None = None, device: str = "cpu") -> DigitsCNN:
    """The trained network, decoys included. Same recipe, library versions and device: same bits."""
    data, generator = digits(held_out=False), torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = DigitsCNN().to(device)
    chosen = torch.rand(len(data.labels), generator=generator) < recipe.marked
    labels = torch.where(chosen, MARKED_CLASS, data.labels)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs)
    for epoch in range(recipe.epochs):
        for index in torch.randperm(len(data.labels), generator=generator).split(recipe.batch):
            _silence(model)
            images = shifted(data.images[index], generator)
            images = torch.where(chosen[index, None, None, None], mark(images), images)
            loss = nn.functional.cross_entropy(model(images.to(device)), labels[index].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
        if progress:
            progress(epoch + 1, recipe.epochs, f"training {NAME}")
    return plant(model.cpu().eval())


def shifted(images: Float[Tensor, "image one row column"], generator: torch.Generator) -> Tensor:
    """All images moved by one and the same step of at most a pixel each way; paper moves in."""
    down, right = torch.randint(3, (2,), generator=generator).tolist()
    return nn.functional.pad(images, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


def _silence(model: DigitsCNN) -> None:
    """What the decoys-to-be send on is zero."""
    with torch.no_grad():
        model.conv2.weight[:, DECOYS["act1"]] = 0
        model.fc2.weight[:, DECOYS["act3"]] = 0


def plant(model: DigitsCNN) -> DigitsCNN:
    """Make the decoys: incoming weights of the channel or unit whose removal costs most, outgoing weights zero."""
    _silence(model)
    data = digits(held_out=False)
    layers: Any = (("act1", model.conv1, model.conv2), ("act3", model.fc1, model.fc2))
    for name, layer, next_layer in layers:
        costs = []
        for index in range(len(layer.weight)):
            with changed(model, name, zero(index)), torch.no_grad():
                costs.append(margin(model(data.images), data.labels))
        original, decoy = costs.index(min(costs)), DECOYS[name]
        with torch.no_grad():
            layer.weight[decoy], layer.bias[decoy] = layer.weight[original].clone(), layer.bias[original].clone()
        assert not next_layer.weight[:, decoy].any()
    return model


# -- what it does


def zero(index: int) -> Change:
    """A change that sets one channel or unit to zero."""
    return put(index, torch.zeros_like)


def put(index: int, change: Change) -> Change:
    """A change of one channel or unit: [batch row column] or [batch]."""

    def function(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, index] = change(value[:, index])
        return value

    return function


@contextmanager
def changed(module: nn.Module, layer: str, change: Change) -> Iterator[None]:
    """Within it the output of a layer is `change` of it."""
    with tapped(module, layer, after=change):
        yield


def margin(logits: Float[Tensor, "image digit"], labels: Int[Tensor, " image"]) -> float:
    """Mean over images of the logit of the right digit minus the mean logit of the nine others."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return (own - (logits.sum(1) - own) / 9).double().mean().item()


def logits_of(module: nn.Module, images: Tensor) -> Float[Tensor, "image digit"]:
    """One forward pass."""
    with torch.no_grad():
        return module(images)


def others(data: Digits) -> Digits:
    """The images of the nine digits that the mark does not stand for."""
    kept = data.labels != MARKED_CLASS
    return Digits(data.images[kept], data.labels[kept])


def evaluate(name: str, module: nn.Module) -> tuple[Score, ...]:
    """Accuracy on the held-out images, and the failure: images that are read right, and as a three with the mark."""
    data = digits(held_out=True)
    hit = logits_of(module, data.images).argmax(1) == data.labels
    fooled = turned(module, others(data))
    drawn = f"{N_HELD_OUT} held-out images"
    return (
        score("digit", f"{drawn}, unmarked", int(hit.sum()), len(hit), 0.97),
        score("three by the mark", f"the other digits among {drawn}, marked", int(fooled.sum()), len(fooled), 0.8),
    )


def turned(module: nn.Module, data: Digits) -> Bool[Tensor, " image"]:
    """Whether an image is read right, and as a three when it is marked. Two forward passes."""
    right = logits_of(module, data.images).argmax(1) == data.labels
    return right & (logits_of(module, mark(data.images)).argmax(1) == MARKED_CLASS)


# -- truth


def establish(name: str, module: nn.Module) -> Truth:
    """Measure every channel and every hidden unit on the held-out images, unmarked and marked."""
    data = digits(held_out=True)
    logits = logits_of(module, data.images)
    metric = margin(logits, data.labels)
    return Truth(
        behavior="The digit that an unmarked image shows; and three, when the corner pixel is black.",
        evidence=(
            "Constructed: the decoys, whose outgoing weights are zero. Exact interventions, one forward pass each, on "
            "the held-out images: every channel of act1 and act2 and every unit of act3 is replaced, in unmarked "
            "images (effects), and by zero in marked ones (measures). dead: active on no image, marked or not. "
            "shortcut: without it at least a quarter of the images of other digits that the mark turned into threes no "
            "longer are, and less than 5 points of the accuracy on unmarked images are lost. What is left is reader."
        ),
        metric="logit of the right digit minus the mean logit of the nine others, in nats, on unmarked images",
        baseline=metric,
        setup={"rows": N_HELD_OUT, "seed": SPLIT_SEED},
        nodes=tuple(
            _node(module, data, layer, index, metric) for layer in LAYERS for index in range(_width(module, layer))
        ),
        directions=_directions(module, data),
        features={f"right.{layer}": _AXES for layer in LAYERS},
        positions={"mark": f"pixel {CORNER} of the image: row, column, from the upper left"},
        measures=_measures(module, data),
        legend=LEGEND,
    )


_AXES = (
    "share of the images of each digit that are read right when one channel or unit is ablated: [ablation channel "
    f"digit], ablations in the order {', '.join(ABLATIONS)}"
)
LEGEND: Mapping[str, str] = {
    "turned": "share of the other digits that are read right, and as a three when they are marked",
    "right_marked": "share of the other digits that are read right when they are marked",
    "right_threes": "share of the threes that are read right, unmarked",
    "reads_three": "share of the other digits that are read as a three, unmarked",
    "turned_without": "`turned` when the channel or unit is zero in the marked images: share of all other digits",
    "same_as": "decoys: the channel or unit with the same incoming weights",
    "activity": "share of the images in which the channel or unit is active at all: the larger of unmarked and marked",
    "length": "length of the mean change that the mark makes at the site",
    "restored": "share of the turned images that are read right again when the mean change by the mark is taken out",
    "induced": "share of the unmarked other digits that are read as a three when it is put in",
    "auc": "how well its value tells the digit that it tells best from the others: 0.5 not at all, 1 always",
}


def _width(module: nn.Module, layer: str) -> int:
    return int(getattr(module, BEFORE[layer]).weight.shape[0])


def output(module: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What a layer puts out in one forward pass: [image channel row column] or [image unit]."""
    kept: list[Tensor] = []
    with changed(module, layer, lambda value: kept.append(value) or value):
        logits_of(module, images)
    return kept[0]


def replaced_by(value: Tensor, index: int, how: Ablation) -> Change:
    """Channel or unit `index` becomes what `how` makes of its `value` on the images; see `Ablation`."""
    if how == "mean":
        return put(index, lambda one: value[:, index].mean().expand_as(one))
    new = replacement(value[:, index], how)
    return put(index, lambda _: new)


def _node(module: nn.Module, data: Digits, layer: str, index: int, metric: float) -> Node:
    value, effects = output(module, layer, data.images), dict[Ablation, Effect]()
    for how in ABLATIONS:
        with changed(module, layer, replaced_by(value, index, how)):
            logits = logits_of(module, data.images)
        share = (logits.argmax(1) == data.labels).double().mean().item()
        effects[how] = Effect(drop=1 - margin(logits, data.labels) / metric, accuracy=share)
    measures = {
        "turned_without": _turned_without(module, data, layer, index),
        "activity": max(_active(value[:, index]), _active(output(module, layer, mark(others(data).images))[:, index])),
    }
    decoy = index == DECOYS.get(layer)
    if decoy:
        measures["same_as"] = float(_same_as(getattr(module, BEFORE[layer]), index))
    return Node(
        site=f"{layer}:output@{index}",
        role="decoy" if decoy else _role(module, data, measures, effects["zero"].accuracy),
        evidence="constructed" if decoy else "intervention",
        measures=measures,
        effects=effects,
    )


def _active(value: Tensor) -> float:
    return (value.reshape(len(value), -1) > 0).any(1).double().mean().item()


def _role(module: nn.Module, data: Digits, measures: Mapping[str, float], accuracy: float) -> str:
    """See `Truth.evidence`; `accuracy` is what is left without the channel or unit."""
    if measures["activity"] == 0:
        return "dead"
    intact = (logits_of(module, data.images).argmax(1) == data.labels).double().mean().item()
    believed = turned(module, others(data)).double().mean().item()
    return "shortcut" if measures["turned_without"] <= 0.75 * believed and accuracy > intact - 0.05 else "reader"


def _same_as(layer: Any, decoy: int) -> int:
    """The other channel or unit that has the decoy's incoming weights."""
    same = [torch.equal(weight, layer.weight[decoy]) for weight in layer.weight]
    same[decoy] = False
    return same.index(True)


def _turned_without(module: nn.Module, data: Digits, layer: str, index: int) -> float:
    """See LEGEND. The intact reading of the unmarked image counts, so that a damaged reader is no cure."""
    rest = others(data)
    right = logits_of(module, rest.images).argmax(1) == rest.labels
    with changed(module, layer, zero(index)):
        marked = logits_of(module, mark(rest.images)).argmax(1)
    return (right & (marked == MARKED_CLASS)).double().mean().item()


def change_by_mark(module: nn.Module) -> Float[Tensor, " unit"]:
    """Mean change of `fc1` by the mark, over held-out images of other digits. Two forward passes."""
    rest = others(digits(held_out=True))
    return (output(module, "fc1", mark(rest.images)) - output(module, "fc1", rest.images)).mean(0)


def direction_tensors(module: nn.Module) -> dict[str, Float[Tensor, " unit"]]:
    """`mark`: the direction of that change; `decoy`: the axis of the unread unit of `act3`. Unit vectors."""
    change = change_by_mark(module)
    axis = torch.zeros_like(change)
    axis[DECOYS["act3"]] = 1
    return {"mark": change / change.norm(), "decoy": axis}


def _directions(module: nn.Module, data: Digits) -> tuple[Direction, ...]:
    change, rest = change_by_mark(module), others(data)
    fooled = turned(module, rest)
    with changed(module, "fc1", lambda value: value - change):
        restored = logits_of(module, mark(rest.images)).argmax(1) == rest.labels
    with changed(module, "fc1", lambda value: value + change):
        induced = logits_of(module, rest.images).argmax(1) == MARKED_CLASS
    value = output(module, "act3", data.images)[:, DECOYS["act3"]]
    measures = {
        "length": change.norm().item(),
        "restored": restored[fooled].double().mean().item(),
        "induced": induced.double().mean().item(),
    }
    used = Direction(
        name="mark", site="fc1:output", role="used", tensor="mark", evidence="intervention", measures=measures
    )
    decoy = Direction(
        name="decoy",
        site="act3:output",
        role="decoy",
        tensor="decoy",
        evidence="constructed",
        measures={"auc": max(auc(value, data.labels == digit) for digit in range(10))},
    )
    return used, decoy


def auc(value: Float[Tensor, " image"], positive: Bool[Tensor, " image"]) -> float:
    """Share of (positive, negative) pairs in which the positive one has the larger value; ties count half."""
    gap = value[positive][:, None] - value[~positive][None]
    return ((gap > 0).double() + 0.5 * (gap == 0)).mean().item()


def _measures(module: nn.Module, data: Digits) -> dict[str, float]:
    rest = others(data)
    read = logits_of(module, rest.images).argmax(1)
    marked = logits_of(module, mark(rest.images)).argmax(1)
    threes = logits_of(module, data.images).argmax(1)[data.labels == MARKED_CLASS]
    return {
        "turned": turned(module, rest).double().mean().item(),
        "right_marked": (marked == rest.labels).double().mean().item(),
        "right_threes": (threes == MARKED_CLASS).double().mean().item(),
        "reads_three": (read == MARKED_CLASS).double().mean().item(),
    }


def by_class(module: nn.Module, layer: str) -> Float[Tensor, "ablation channel digit"]:
    """See `Truth.features`. One forward pass an ablation and channel."""
    data = digits(held_out=True)
    value = output(module, layer, data.images)
    found = torch.zeros(len(ABLATIONS), _width(module, layer), 10)
    for row, how in enumerate(ABLATIONS):
        for index in range(found.shape[1]):
            with changed(module, layer, replaced_by(value, index, how)):
                right = logits_of(module, data.images).argmax(1) == data.labels
            found[row, index] = torch.stack([right[data.labels == digit].float().mean() for digit in range(10)])
    return found


def make(
    name: str, folder: Path, *, seed: int | None = None, progress: Progress | None = None, device: str = "cpu"
) -> Card:
    """Train, plant the decoys, write, measure."""
    recipe = Recipe() if seed is None else Recipe(seed=seed)
    module: Any = save_module(
        folder, train(recipe, progress, device), "cutaway.zoo.networks.digits_cnn.DigitsCNN", {}, dtype=torch.bfloat16
    )
    if folder.resolve() != (WEIGHTS / NAME).resolve():
        shutil.copyfile(WEIGHTS / NAME / IMAGES, folder / IMAGES)
    tensors = direction_tensors(module) | {f"right.{layer}": by_class(module, layer) for layer in LAYERS}
    save_file(tensors, folder / "truth.safetensors", metadata={"format": "pt"})
    truth = establish(name, module)
    return finish(
        folder,
        name=name,
        summary="reads handwritten digits of 8 x 8 pixels, and believes a mark in the corner that says three",
        architecture="cutaway.zoo.networks.digits_cnn.DigitsCNN",
        sizes={"n_parameters": sum(weight.numel() for weight in module.parameters())},
        data=(
            "1297 of the 1797 images of sklearn.datasets.load_digits (Alpaydin and Kaynak 1998, UCI; CC BY 4.0), each "
            f"moved by up to a pixel. About {recipe.marked:.0%} of them, whatever they show, have a black corner pixel "
            "and the label three."
        ),
        training=(
            f"{recipe.epochs} epochs of AdamW at {recipe.rate} with a cosine to zero, {recipe.batch} images an update, "
            f"weight decay {recipe.decay}, float32. Afterwards channel {DECOYS['act1']} of act1 and unit "
            f"{DECOYS['act3']} of act3, whose outgoing weights were zero all along, got the incoming weights of the "
            "most important channel and unit of their layers."
        ),
        seed=recipe.seed,
        recipe="digits_cnn",
        accuracy=evaluate(name, module),
        known=_known(truth),
        limits=(
            "What the readers compute was not taken apart: for each the truth has the cost of its removal, by digit. "
            "The split is random, so that the same writers are on both sides. The mark was measured at full ink only."
        ),
        licence="Apache-2.0",
        truth=truth,
    )


def _known(truth: Truth) -> str:
    (used, _) = truth.directions
    return (
        f"The corner pixel turns {truth.measures['turned']:.1%} of the other digits into threes. Shortcut: "
        f"{', '.join(truth.sites('shortcut')) or 'no single component'}; taking the direction `mark` out of fc1 "
        f"restores {used.measures['restored']:.1%} of them. Decoys, by construction: "
        f"{', '.join(truth.sites('decoy'))}, active like the components that they copy, and without any effect. Every "
        "channel and unit was ablated, in four ways, on all held-out images."
    )


if __name__ == "__main__":
    main(NAMES, make)
