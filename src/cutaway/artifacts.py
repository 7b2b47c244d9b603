"""Identity and storage of results: digests, provenance, atomic files, tensors with a manifest.

A saved result is a folder-free pair inside one safetensors file: the tensors, and a manifest (canonical JSON in the
file's metadata) that says what they are and where they came from. Nothing is pickled. A file is written beside its
place and moved there whole, so an interruption leaves either the old file or the new one.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cutaway.errors import BrokenEvidence, WrongModel


@dataclass(frozen=True)
class Provenance:
    """Where a result came from; enough to refuse it elsewhere and to make it again."""

    model: str
    """Digest of the model's weights and configuration."""
    data: str
    """Digest of the inputs."""
    code: str
    """Version of cutaway."""
    seed: int | None = None
    """Seed of every random choice, None when there was none."""


def plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses to dicts, tuples to lists, paths to text. TypeError for what has no form."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: plain(item) for key, item in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if not isinstance(value, type) and hasattr(value, "tolist"):
        return plain(value.tolist())  # type: ignore[union-attr]
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def finite(value: Any) -> Any:
    """A JSON value with None for every number that JSON has no word for: NaN and the infinities."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, NaN and infinity refused (ValueError). Equal values give equal text."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of a tensor's bytes, shape and dtype, of raw bytes, or of a value's canonical JSON."""
    hasher = hashlib.sha256()
    if isinstance(value, bytes):
        hasher.update(value)
    elif isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        hasher.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
        hasher.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    else:
        hasher.update(canonical(value).encode())
    return hasher.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON (sorted keys, two spaces) whole or not at all."""
    write_text(path, json.dumps(plain(value), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> str:
    """Save tensors with their manifest in one safetensors file; returns the file's SHA-256."""
    content = save(
        {key: item.detach().cpu().contiguous() for key, item in tensors.items()}, {"manifest": canonical(manifest)}
    )
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and manifest of a file that `save_tensors` wrote. Raises BrokenEvidence when it is not such a file."""
    try:
        with safe_open(path, framework="pt") as file:
            manifest = json.loads((file.metadata() or {})["manifest"])
            return {key: file.get_tensor(key) for key in file.keys()}, manifest  # noqa: SIM118
    except FileNotFoundError:
        raise BrokenEvidence(
            f"{path}: no such file; every artifact of a result must stay beside it", path=str(path)
        ) from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise BrokenEvidence(
            f"{path}: not a saved result of cutaway ({error}); save it again", path=str(path)
        ) from None


@contextmanager
def saved(path: str | Path, kind: str, model: str | None) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Tensors and manifest of a saved result, to be put together while this is open.

    Raises BrokenEvidence for a result of another kind and for one that lacks a part, WrongModel for one of another
    model than the one with this digest.
    """
    tensors, manifest = load_tensors(Path(path))
    if manifest.get("kind") != kind:
        raise BrokenEvidence(
            f"{path}: holds {manifest.get('kind')!r}, not {kind!r}; load it with its own class", path=str(path)
        )
    try:
        if model is not None:
            require_same_model(manifest["provenance"]["model"], model, f"{path}")
        yield tensors, manifest
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenEvidence(
            f"{path}: a part of the saved {kind} is missing ({error}); save it again", path=str(path)
        ) from None


def require_same_model(found: str, expected: str, what: str) -> None:
    """Refuse an artifact of another model (WrongModel); both arguments are model digests."""
    if found != expected:
        raise WrongModel(
            f"{what} was made for model {found[:12]}, this is model {expected[:12]}; make it again with this model, or "
            "load the model that it belongs to",
            found=found,
            expected=expected,
        )
