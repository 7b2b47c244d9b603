"""Grad-CAM: where in an image the features of one layer speak for a class.

    weight of channel c   w_c = mean over the map of dF / dA_c          A: the layer's output, F: the class's output
    map                   relu( sum over c of w_c A_c )

For modules wrapped with `cutaway.wrap`. Source: Selvaraju et al. 2017 (arXiv 1610.02391).
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.artifacts import Provenance, digest, save_tensors, saved
from cutaway.errors import OutOfRange, SiteUnavailable, UsageError
from cutaway.figures import Figure, Heatmap
from cutaway.models import Model, Raw, Site, sites
from cutaway.models.gradients import backward_raw

SHOWN = 4
"""Images that are drawn."""


@dataclass(frozen=True)
class ImageScores:
    """A map an image: how much each place of the layer speaks for the class, in units of its output."""

    maps: Float[Tensor, "image row column"]
    """On the layer's own grid; 0 and above."""
    spread: Float[Tensor, "image height width"]
    """The same on the image's grid, interpolated."""
    values: Float[Tensor, " image"]
    """The class's output."""
    classes: tuple[int, ...]
    layer: str
    """Path of the module."""
    provenance: Provenance

    def table(self) -> list[dict[str, Any]]:
        """One row an image: its class, the output, and the place that speaks loudest."""
        rows = []
        for i, (grid, found) in enumerate(zip(self.maps, self.classes)):
            row, column = divmod(int(grid.argmax()), grid.shape[1])
            rows.append(
                {"image": i, "class": found, "value": float(self.values[i]), "row": row, "column": column}
                | {"most": float(grid.max())}
            )
        return rows

    def figures(self) -> tuple[Figure, ...]:
        """The first maps."""
        height, width = self.maps.shape[1:]
        return tuple(
            Heatmap(
                f"Image {i}: class {self.classes[i]}",
                f"How much each place of {self.layer} speaks for the class (Grad-CAM); 0: not at all, or against it.",
                "class's output",
                "row",
                "column",
                tuple(map(str, range(height))),
                tuple(map(str, range(width))),
                tuple(tuple(line) for line in grid),
            )
            for i, grid in enumerate(self.maps[:SHOWN].tolist())
        )

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256. Raises UsageError for a folder."""
        if Path(path).is_dir():
            raise UsageError(f"{path}: this is a folder; give a file in it, such as maps.safetensors", path=str(path))
        texts = {name: getattr(self, name) for name in ("classes", "layer", "provenance")}
        tensors = {name: getattr(self, name) for name in ("maps", "spread", "values")}
        return save_tensors(Path(path), tensors, {"kind": "image scores", "format": 1, **texts})

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "ImageScores":
        """Read a saved file. Raises WrongModel, BrokenEvidence."""
        with saved(path, "image scores", None if model is None else model.digest) as (tensors, manifest):
            return cls(
                **{name: tensors[name] for name in ("maps", "spread", "values")},
                classes=tuple(manifest["classes"]),
                layer=manifest["layer"],
                provenance=Provenance(**manifest["provenance"]),
            )


def grad_cam(
    model: Model,
    images: Tensor,
    layer: str,
    *,
    classes: int | Sequence[int] | None = None,
) -> ImageScores:
    """How much each place of a layer speaks for a class, image by image.

    Cost: one forward and one backward pass of all images (and one forward more to find the classes).
    Laws: where the layer is followed by a mean over the map and a linear read-out, the map is relu(sum w_c A_c / size),
    w the read-out's weights; further down it is a first-order account, blind to what lies in between.
    Misleads: one weight a channel, the same everywhere: two places that act against each other in one channel look
    alike; what speaks against the class is cut off; a coarse layer cannot point.
    Raises UnknownSite, SiteUnavailable for a layer that gives no maps, OutOfRange, UsageError.

    Args:
        layer: path of the module whose output is a map a channel, as in "act2".
        classes: the class of each image, or one for all; None: the class that the model gives.
    """
    if images.ndim != 4 or not len(images):
        raise UsageError(f"images: shape {tuple(images.shape)}; give [image channel height width], at least one image")
    site = sites.module(layer, "output")
    if classes is None:
        chosen = _predicted(model, images)
    else:
        chosen = (classes,) * len(images) if isinstance(classes, int) else tuple(classes)
    if len(chosen) != len(images):
        raise UsageError(f"classes: {len(chosen)} for {len(images)} images; give one a image, or one for all")
    kept: list[Tensor] = []

    def total(out: Any, _: Mapping[Site, Tensor]) -> Tensor:
        scores = _scores(out, len(images))
        wrong = next((i for i in chosen if not 0 <= i < scores.shape[1]), None)
        if wrong is not None:
            raise OutOfRange(f"class {wrong} of {scores.shape[1]} (0-{scores.shape[1] - 1})", index=wrong)
        kept.append(scores.gather(1, torch.tensor(chosen, device=scores.device)[:, None])[:, 0])
        return kept[0].sum()

    found = backward_raw(model, Raw((images,), {}), total, [site])
    features, slopes = found.activations[site], found.gradients[site]
    if features.ndim != 4 or len(features) != len(images):
        raise SiteUnavailable(
            f"layer {layer!r}: it gives shape {tuple(features.shape)}, no map a channel; choose a convolution's output",
            site=str(site),
            reason="no maps",
        )
    maps = (slopes.mean((2, 3), keepdim=True) * features).sum(1).relu()
    spread = torch.nn.functional.interpolate(
        maps[:, None], size=tuple(images.shape[2:]), mode="bilinear", align_corners=False
    )[:, 0]
    data = digest([digest(images), layer, list(chosen)])
    return ImageScores(
        maps=maps.float().cpu(),
        spread=spread.float().cpu(),
        values=kept[0].detach().float().cpu(),
        classes=chosen,
        layer=layer,
        provenance=Provenance(model.digest, data, importlib.import_module("cutaway").__version__, None),
    )


def _predicted(model: Model, images: Tensor) -> tuple[int, ...]:
    """The class with the largest output, image by image."""
    whole = sites.module("", "output")
    return tuple(_scores(model.capture(Raw((images,), {}), whole)[whole], len(images)).argmax(1).tolist())


def _scores(out: Any, n: int) -> Float[Tensor, "image class"]:
    found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != n:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(out).__name__
        raise UsageError(f"the module returns {shape}; Grad-CAM needs one row of class outputs an image")
    return found
