"""What is known of `digits-cnn`, measured again in plain torch: the shortcut, the decoys, every ablation by digit.

Of the recipe only the images and the mark are used, not its measurements.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway import zoo
from cutaway.models.sites import Site, sites
from cutaway.zoo.networks.digits_cnn import DigitsCNN
from cutaway.zoo.recipes import digits_cnn

NAME = "digits-cnn"
TRUTH = zoo.truth(NAME)
DECOYS = TRUTH.sites("decoy")


@pytest.fixture(scope="module")
def model() -> cutaway.Model:
    return cutaway.load(NAME)


@pytest.fixture(scope="module")
def held_out() -> digits_cnn.Digits:
    return digits_cnn.digits(held_out=True)


def part(site: str) -> tuple[str, int]:
    path, _, index = site.partition(":output@")
    return path, int(index)


def read(module: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return module(images)


@contextmanager
def ablated(module: Any, site: str, value: Callable[[Tensor], Tensor]) -> Iterator[None]:
    path, index = part(site)

    def change(part: Any, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, index] = value(out[:, index])
        return out

    handle = module.get_submodule(path).register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "resample": lambda value: torch.cat([value[-1:], value[:-1]]),
    "mean": lambda value: value.mean().expand_as(value),
    "mean_by_position": lambda value: value.mean(0, keepdim=True).expand_as(value),
    "zero": torch.zeros_like,
}
"""In the order of the arrays' first axis."""


def marked(images: Tensor) -> Tensor:
    corner = torch.zeros(8, 8)
    corner[0, 0] = 1
    return torch.maximum(images, corner)


def test_the_images_are_all_there_and_split() -> None:
    train, test = digits_cnn.digits(held_out=False), digits_cnn.digits(held_out=True)
    assert (len(train.labels), len(test.labels)) == (1297, 500)
    assert torch.cat([train.labels, test.labels]).bincount().tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180
    ]  # fmt: skip
    everything = torch.cat([train.images, test.images])
    assert everything.flatten(1).unique(dim=0).shape[0] == 1797
    assert not everything[:, :, 0, 0].any()
    assert everything.max() == 1


def test_it_reads_digits_and_believes_the_mark(model: cutaway.Model, held_out: digits_cnn.Digits) -> None:
    assert isinstance(model.module, DigitsCNN)
    right = read(model.module, held_out.images).argmax(1) == held_out.labels
    assert right.float().mean() > 0.97
    rest = held_out.labels != 3
    called = read(model.module, marked(held_out.images[rest])).argmax(1)
    turned = right[rest] & (called == 3)
    assert turned.double().mean().item() == pytest.approx(TRUTH.measures["turned"])
    assert turned.double().mean() > 0.8
    assert (called == held_out.labels[rest]).double().mean().item() == pytest.approx(TRUTH.measures["right_marked"])


def test_every_ablation_does_what_the_card_says(model: cutaway.Model, held_out: digits_cnn.Digits) -> None:
    """All channels and units, all four ways; by digit against the arrays."""
    module, labels = model.module, held_out.labels
    by_class = zoo.tensors(NAME)
    assert len(TRUTH.nodes) == 8 + 24 + 48
    for node in TRUTH.nodes:
        path, index = part(node.site)
        for how, effect in node.effects.items():
            with ablated(module, node.site, VALUES[how]):
                logits = read(module, held_out.images)
            right = logits.argmax(1) == labels
            assert right.double().mean().item() == pytest.approx(effect.accuracy, abs=0.005), (node.site, how)
            own = logits[torch.arange(500), labels]
            margin = (own - (logits.sum(1) - own) / 9).mean().item()
            assert 1 - margin / TRUTH.baseline == pytest.approx(effect.drop, abs=1e-3), (node.site, how)
            shares = torch.stack([right[labels == digit].float().mean() for digit in range(10)])
            assert (shares - by_class[f"right.{path}"][list(VALUES).index(how), index]).abs().max() < 0.03


def test_no_one_reads_the_decoys(model: cutaway.Model, held_out: digits_cnn.Digits) -> None:
    """Copies of the components that matter most of their layers: the same values, no effect, to the last bit."""
    module, images = model.module, marked(held_out.images)
    intact = read(module, images)
    assert len(DECOYS) == 2
    for site in DECOYS:
        path, decoy = part(site)
        node = next(node for node in TRUTH.nodes if node.site == site)
        original = int(node.measures["same_as"])
        value = model.capture(images, [sites.module(path)])[sites.module(path)]
        assert torch.equal(value[:, decoy], value[:, original])
        assert value[:, decoy].any()
        for change in (*VALUES.values(), lambda value: value * 100 + 7):
            with ablated(module, site, change):
                assert torch.equal(read(module, images), intact)
        with ablated(module, f"{path}:output@{original}", torch.zeros_like):
            assert not torch.equal(read(module, images), intact)
        rivals = [n.effects["zero"].drop for n in TRUTH.nodes if part(n.site)[0] == path and n.site != site]
        assert TRUTH.nodes[[n.site for n in TRUTH.nodes].index(f"{path}:output@{original}")].effects[
            "zero"
        ].drop > 0.5 * max(rivals)


def test_the_shortcut_is_one_channel(model: cutaway.Model, held_out: digits_cnn.Digits) -> None:
    """Without it the mark is hardly believed and digits are read as before; with any other channel of act1 away, the
    mark is believed."""
    rest = held_out.labels != 3
    images = held_out.images[rest]
    right = read(model.module, images).argmax(1) == held_out.labels[rest]
    (shortcut,) = TRUTH.sites("shortcut")
    for node in TRUTH.nodes:
        with ablated(model.module, node.site, torch.zeros_like):
            turned = (right & (read(model.module, marked(images)).argmax(1) == 3)).double().mean().item()
        assert turned == pytest.approx(node.measures["turned_without"], abs=0.005)
        assert (turned < 0.3) == (node.site == shortcut)
    with ablated(model.module, shortcut, torch.zeros_like):
        kept = (read(model.module, held_out.images).argmax(1) == held_out.labels).double().mean()
    assert kept > 0.92


def test_the_direction_of_the_mark_is_used(model: cutaway.Model, held_out: digits_cnn.Digits) -> None:
    (mark, decoy), tensors = TRUTH.directions, zoo.tensors(NAME)
    rest = held_out.labels != 3
    images, labels, site = held_out.images[rest], held_out.labels[rest], Site.parse(mark.site)
    out, change = sites.module("", "output"), mark.measures["length"] * tensors["mark"]
    assert tensors["mark"].norm().item() == pytest.approx(1, abs=1e-5)
    fooled = read(model.module, marked(images)).argmax(1) == 3
    fooled &= read(model.module, images).argmax(1) == labels

    def run(given: Tensor, change: Tensor) -> Tensor:
        edit = site.apply(lambda value: value + change)
        return model.run(given, [edit], [out]).activations[out].argmax(1)

    restored = (run(marked(images), -change) == labels)[fooled].double().mean().item()
    induced = (run(images, change) == 3).double().mean().item()
    assert restored == pytest.approx(mark.measures["restored"], abs=0.005)
    assert induced == pytest.approx(mark.measures["induced"], abs=0.005)
    assert min(restored, induced) > 0.8
    random = torch.randn(48, generator=torch.Generator().manual_seed(0))
    assert (run(images, random * change.norm() / random.norm()) == 3).double().mean() < 0.5 * induced
    assert decoy.role == "decoy"


def test_sites_by_module_path_read_and_edit(model: cutaway.Model, held_out: digits_cnn.Digits) -> None:
    """The road of any wrapped network: what the engine does is what a hook does."""
    images, out = held_out.images[:40], sites.module("fc2", "output")
    same = cutaway.wrap(model.module)
    conv = sites.module("conv1", "output")
    kept = model.capture(images, [conv, "act1:output", "fc1:input"])
    assert torch.equal(kept["act1:output"], kept[conv].relu())
    assert tuple(kept["fc1:input"].shape) == (40, 24 * 16)
    for text in ("act1:output@3", "act2:output@5", "act3:output@9"):
        with ablated(model.module, text, torch.zeros_like):
            wanted = read(model.module, images)
        assert not torch.equal(wanted, read(model.module, images))
        for road in (model, same):
            found = road.run(images, [Site.parse(text).zero()], [out]).activations[out]
            assert torch.equal(found, wanted)
    donor = model.capture(images.flip(0), [sites.module("act1")])
    patched = model.run(images, [sites.module("act1").patch(donor)], [out]).activations[out]
    assert torch.allclose(patched, read(model.module, images.flip(0)), atol=1e-5)


def test_a_scrambled_twin_is_at_chance(model: cutaway.Model, held_out: digits_cnn.Digits) -> None:
    for seed in range(3):
        twin = zoo.scrambled(model.module, seed)
        assert (read(twin, held_out.images).argmax(1) == held_out.labels).double().mean() < 0.25


def test_the_recipe_makes_the_decoys_and_is_seeded() -> None:
    """One epoch: the same bits twice, and nothing behind the decoys."""
    first, second = (digits_cnn.train(digits_cnn.Recipe(epochs=1)) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters()))
    assert not first.conv2.weight[:, digits_cnn.DECOYS["act1"]].any()
    assert not first.fc2.weight[:, digits_cnn.DECOYS["act3"]].any()
