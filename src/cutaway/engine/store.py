"""A store of base runs: what one plan of a study computed on plain inputs, the next need not compute again."""

import tempfile
import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import TypeAlias

import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.models.sites import Site

Key: TypeAlias = tuple[object, ...]


class Store:
    """Sites and logits of plain runs, by model, inputs and site, within a bound on memory.

    Give one to the plans of a study: `plan(model, runs, store=store)`. The least recently used go first: to files that
    are mapped into memory when `spill` names a folder, else away, where no plan is using them. Values are those that
    the runs gave, bit for bit. Weights that changed are another model. Use it in one thread; `close()`, or the end of a
    `with`, removes the files.
    """

    def __init__(self, max_bytes: int, *, spill: Path | str | None = None) -> None:
        if max_bytes < 0:
            raise UsageError(f"max_bytes={max_bytes}: at least 0")
        if spill is not None and not Path(spill).is_dir():
            raise UsageError(f"spill={str(spill)!r}: no such folder; make it, or leave it out to keep nothing on disk")
        self.max_bytes = max_bytes
        self.hits, self.misses = 0, 0
        """Values found here, and values that had to be computed."""
        self._held: OrderedDict[Key, Tensor] = OrderedDict()
        self._mapped: dict[Key, Tensor] = {}
        self._pinned: Counter[Key] = Counter()
        self._folder = None if spill is None else Path(tempfile.mkdtemp(prefix="cutaway-store-", dir=spill))
        self._tidy = None if self._folder is None else weakref.finalize(self, rmtree, self._folder, ignore_errors=True)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._held) + len(self._mapped)

    @property
    def held_bytes(self) -> int:
        """Bytes in memory; files are not counted."""
        return sum(map(_bytes, self._held.values()))

    @property
    def spilled_bytes(self) -> int:
        """Bytes in files."""
        return sum(map(_bytes, self._mapped.values()))

    def close(self) -> None:
        """Forget everything, and remove the files."""
        self._held.clear()
        self._mapped.clear()
        if self._tidy is not None:
            self._tidy()
            self._folder = None

    def get(self, key: Key) -> Tensor | None:
        """The value, not a copy; None when it is not here."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        return self._mapped.get(key)

    def put(self, key: Key, value: Tensor) -> None:
        """Keep a value that nobody else changes."""
        if self.get(key) is None:
            self._held[key] = value
        self._make_room()

    @contextmanager
    def pinned(self, keys: Sequence[Key]) -> Iterator[None]:
        """While open, these values stay: in memory, or in files."""
        self._pinned.update(keys)
        try:
            yield
        finally:
            self._pinned.subtract(keys)
            self._make_room()

    def _make_room(self) -> None:
        excess = self.held_bytes - self.max_bytes
        for key in list(self._held):
            if excess <= 0:
                return
            value = self._held[key]
            if self._folder is not None:
                self._mapped[key] = _on_disk(value, self._folder / f"{len(self._mapped):06d}.bin")
            elif self._pinned[key] > 0:
                continue
            del self._held[key]
            excess -= _bytes(value)


class Stored(Mapping[Site, Tensor]):
    """Sites of one plain run that a store holds, fetched when they are asked for."""

    def __init__(self, store: Store, keys: Mapping[Site, Key]) -> None:
        self.store, self.keys_ = store, keys

    def __getitem__(self, site: Site) -> Tensor:
        found = self.store.get(self.keys_[site])
        assert found is not None  # pinned
        return found

    def __iter__(self) -> Iterator[Site]:
        return iter(self.keys_)

    def __len__(self) -> int:
        return len(self.keys_)


def _on_disk(value: Tensor, path: Path) -> Tensor:
    """The same tensor, mapped from a file: the system reads what is used and drops it when memory is short."""
    mapped = torch.from_file(str(path), shared=True, size=value.numel(), dtype=value.dtype).view(value.shape)
    mapped.copy_(value)
    return mapped


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
