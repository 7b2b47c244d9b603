"""Captured activations: a frozen mapping from sites to tensors, with the inputs and the model they belong to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cutaway import artifacts
from cutaway.errors import OutOfRange, UnknownSite, UsageError, did_you_mean
from cutaway.models.sites import PATTERN_KINDS, Site
from cutaway.models.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Activations(Mapping[Site, Tensor]):
    """Values of whole sites, shaped as in `cutaway.axes`. Indexing with a selection returns that selection."""

    tensors: Mapping[Site, Tensor]
    """One tensor for each site, nothing selected; independent copies."""
    tokens: Tokens | None
    """The inputs of the run; None for a wrapped module."""
    model: str
    """Digest of the model."""

    def __getitem__(self, site: Site | str) -> Tensor:
        """The values of a site. One head, neuron, integer position or role drops its axis; rows never do.

        Raises UnknownSite for what was not captured, UsageError for a predicate that selects unequal numbers of tokens.
        """
        site = Site.parse(site) if isinstance(site, str) else site
        if site.base not in self.tensors:
            raise UnknownSite(
                f"site {site.base}: not captured here.{did_you_mean(str(site.base), map(str, self.tensors))}",
                site=str(site),
            )
        return self._select(self.tensors[site.base], site)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def take(self, rows: Sequence[int]) -> "Activations":
        """The given rows, in the given order: row i of the result is row rows[i] of this. For resampling."""
        index = torch.as_tensor(list(rows))
        tokens = None if self.tokens is None else self.tokens.take(rows)
        return Activations(
            {site: value[index.to(value.device)] for site, value in self.tensors.items()}, tokens, self.model
        )

    def save(self, path: Path | str) -> str:
        """Save to one safetensors file; returns its SHA-256."""
        if self.tokens is None:
            raise UsageError("activations of a wrapped module cannot be saved: their inputs have no token form")
        tensors = {str(site): value for site, value in self.tensors.items()}
        tensors |= {":ids": self.tokens.ids, ":mask": self.tokens.mask.to(torch.uint8)}
        manifest = {"kind": "activations", "model": self.model, "roles": self.tokens.roles, "texts": self.tokens.texts}
        return artifacts.save_tensors(Path(path), tensors, manifest)

    @staticmethod
    def load(path: Path | str, model: str | None = None) -> "Activations":
        """Load what `save` wrote; with a model digest, refuse activations of another model (WrongModel)."""
        tensors, manifest = artifacts.load_tensors(Path(path))
        if model is not None:
            artifacts.require_same_model(manifest["model"], model, f"activations {path}")
        roles = {name: tuple(where) for name, where in manifest["roles"].items()}
        texts = None if manifest["texts"] is None else tuple(tuple(row) for row in manifest["texts"])
        tokens = Tokens(tensors.pop(":ids"), tensors.pop(":mask").bool(), roles, texts)
        return Activations({Site.parse(name): value for name, value in tensors.items()}, tokens, manifest["model"])

    def _select(self, value: Tensor, site: Site) -> Tensor:
        pattern = site.kind in PATTERN_KINDS
        pos_axis, unit_axis = (2, 1) if pattern else (1, 2)
        if site.unit is not None:
            _inside(site, site.axis or "unit", site.unit, value.shape[unit_axis])
        if site.batch_rows is not None:
            _inside(site, "row", site.batch_rows, value.shape[0])
        if site.pos is not None:
            value = self._positions(value, site, pos_axis)
        if site.unit is not None:
            dropped = site.pos is not None and isinstance(site.pos, int | str)
            axis = unit_axis - (1 if dropped and not pattern else 0)
            index = torch.as_tensor(site.unit, device=value.device)
            value = value.select(axis, site.unit) if isinstance(site.unit, int) else value.index_select(axis, index)
        if site.batch_rows is not None:
            value = value[list(site.batch_rows)]
        return value

    def _positions(self, value: Tensor, site: Site, axis: int) -> Tensor:
        if self.tokens is None:
            wanted = (
                [site.pos] if isinstance(site.pos, int) else list(site.pos) if isinstance(site.pos, tuple) else None
            )
            if wanted is None:
                raise UsageError(
                    f"site {site}: a wrapped module's inputs have no roles or token texts; select positions by number"
                )
            width = value.shape[axis]
            _inside(site, "position", tuple(p + width if p < 0 else p for p in wanted), width)
            columns = [[p % width for p in wanted]] * value.shape[0]
        else:
            columns = self.tokens.columns(site.pos)
        if len({len(c) for c in columns}) != 1:
            raise UsageError(
                f"site {site}: it selects unequal numbers of tokens in the rows ({sorted({len(c) for c in columns})})"
            )
        index = torch.tensor(columns, device=value.device)
        shape = [index.shape[0]] + [1] * (value.ndim - 1)
        shape[axis] = index.shape[1]
        expanded = list(value.shape)
        expanded[axis] = index.shape[1]
        found = value.gather(axis, index.view(shape).expand(expanded))
        return found.squeeze(axis) if isinstance(site.pos, int | str) else found


def _inside(site: Site, what: str, wanted: int | tuple[int, ...], size: int) -> None:
    for index in (wanted,) if isinstance(wanted, int) else wanted:
        if not 0 <= index < size:
            raise OutOfRange(f"site {site}: {what} {index} of {size} (0-{size - 1})", site=str(site))
