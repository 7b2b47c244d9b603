"""Laws of Grad-CAM: its formula in plain torch, and class activation maps where the two are the same thing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cutaway
from cutaway.attribution import ImageScores, grad_cam
from cutaway.errors import OutOfRange, SiteUnavailable, UnknownSite, UsageError, WrongModel
from cutaway.models import Model


class Pooled(nn.Module):
    """A convolution, a mean over the map, a linear read-out: class activation maps are exact here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


@pytest.fixture(scope="module")
def pooled() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cutaway.wrap(Pooled().eval())


@pytest.fixture(scope="module")
def digits() -> Model:
    return cutaway.load("digits-cnn")


def images(n: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(1))


def test_with_a_mean_and_a_linear_read_out_it_is_the_class_activation_map(pooled: Model) -> None:
    module: Any = pooled.module
    found = grad_cam(pooled, images(), "conv", classes=[0, 1, 3])
    with torch.no_grad():
        features, logits = module.conv(images()), module(images())
    for i, which in enumerate((0, 1, 3)):
        expected = torch.einsum("c,chw->hw", module.head.weight[which], features[i]).relu() / 64
        torch.testing.assert_close(found.maps[i], expected.detach())
        assert float(found.values[i]) == pytest.approx(float(logits[i, which]), abs=1e-6)
    assert found.maps.max() > 1e-3


def test_its_formula_by_hand(digits: Model) -> None:
    module: Any = digits.module
    found = grad_cam(digits, images(), "act2")
    for i, which in enumerate(found.classes):
        leaf = module.act2(module.conv2(module.pool(module.act1(module.conv1(images()[i : i + 1]))))).detach()
        leaf.requires_grad_(True)
        out = module.fc2(module.act3(module.fc1(leaf.flatten(1))))
        out[0, which].backward()
        module.zero_grad(set_to_none=True)
        expected = (leaf.grad.mean((2, 3), keepdim=True) * leaf).sum(1).relu()[0]
        torch.testing.assert_close(found.maps[i], expected.detach(), atol=1e-5, rtol=1e-4)
        assert which == int(out.argmax())
    assert found.spread.shape == (3, 8, 8)
    assert found.maps.shape == (3, 4, 4)
    assert found.maps.max() > 1e-3


def test_saved_and_shown(digits: Model, pooled: Model, tmp_path: Path) -> None:
    found = grad_cam(digits, images(6), "act1", classes=3)
    found.save(tmp_path / "maps.safetensors")
    again = ImageScores.load(tmp_path / "maps.safetensors", digits)
    assert torch.equal(again.maps, found.maps)
    assert again.table() == found.table()
    assert [row["class"] for row in found.table()] == [3] * 6
    assert len(found.figures()) == 4
    with pytest.raises(WrongModel):
        ImageScores.load(tmp_path / "maps.safetensors", pooled)


@pytest.mark.parametrize(
    ("shape", "layer", "classes", "error", "says"),
    [
        ((3, 8, 8), "act2", None, UsageError, "image channel height width"),
        ((3, 1, 8, 8), "act9", None, UnknownSite, "act"),
        ((3, 1, 8, 8), "act3", None, SiteUnavailable, "no map a channel"),
        ((3, 1, 8, 8), "act2", 10, OutOfRange, "class 10 of 10"),
        ((3, 1, 8, 8), "act2", [1, 2], UsageError, "one for all"),
    ],
)
def test_wrong_requests_say_what_to_do(
    digits: Model, shape: tuple[int, ...], layer: str, classes: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        grad_cam(digits, torch.zeros(shape), layer, classes=classes)
