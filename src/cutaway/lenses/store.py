"""Storage of this room's results: tensors and a manifest in one safetensors file, by the fields of their record."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from cutaway.artifacts import Provenance, save_tensors, saved
from cutaway.models import Model

Record = TypeVar("Record")


def save(result: Any, path: str | Path, kind: str) -> str:
    """Write a frozen record; returns the file's SHA-256. Fields that are None are left out."""
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in values.items() if name not in tensors and value is not None}
    return save_tensors(Path(path), tensors, {"kind": kind, "format": 1, **rest})


def load(cls: type[Record], path: str | Path, kind: str, model: Model | None) -> Record:
    """Read what `save` wrote. Raises WrongModel for another model's, BrokenEvidence for what is something else."""
    with saved(path, kind, None if model is None else model.digest) as (tensors, manifest):
        values: dict[str, Any] = {"provenance": Provenance(**manifest["provenance"])}
        for field in fields(cls):  # type: ignore[arg-type]
            if field.name in tensors:
                values[field.name] = tensors[field.name]
            elif field.name != "provenance":
                values[field.name] = _frozen(manifest.get(field.name))
        return cls(**values)


def _frozen(value: Any) -> Any:
    """JSON as the records have it: tuples for lists, whole numbers for the names of ids."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, Mapping):
        return {int(key) if key.lstrip("-").isdigit() else key: _frozen(item) for key, item in value.items()}
    return value
