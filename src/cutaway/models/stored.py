"""Folders that hold something else than a Hugging Face model whole: plain modules, and relatives as differences.

A plain module: `config.json` names a class of `cutaway.zoo.networks` and its arguments, `model.safetensors` holds the
state dict. Nothing else is ever instantiated: a folder cannot make Python import code of its choice.

    {"cutaway_module": "cutaway.zoo.networks.toy.Toy", "arguments": {"n_features": 5, "d_hidden": 2}}

A relative: `config.json` is transformers' own, and `difference.safetensors` says how the parameters differ from those
of a base. For a parameter W of the base it holds `W.delta` (same shape: W + delta) or `W.left` [rows r] and `W.right`
[r columns] (W + left @ right); what it does not name is the base's. Its metadata name the base and the SHA-256 of the
base's weight file, so that a difference is never added to other weights. All sums are in float32.
"""

import importlib
import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from cutaway.artifacts import file_digest
from cutaway.errors import ModelIncomplete

NETWORKS: Final = "cutaway.zoo.networks."
"""Where the classes of plain modules live."""
WEIGHTS: Final = "model.safetensors"
DIFFERENCE: Final = "difference.safetensors"
HALF: Final = (torch.bfloat16, torch.float16)
"""Dtypes that weights are stored in to be small, and not computed in."""


def plain_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a folder that holds a plain module; None for any other folder."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever reads the folder next says what is wrong
    return config if isinstance(config, dict) and "cutaway_module" in config else None


def read_plain(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The plain module of a folder, in evaluation mode; weights stored in half precision become float32.

    Raises ModelIncomplete when the class, its arguments or the tensors do not fit.
    """
    cls, arguments = _network(folder, config["cutaway_module"]), config.get("arguments", {})
    with torch.random.fork_rng(devices=[]):
        try:
            module = cls(**arguments)
        except Exception as error:
            raise ModelIncomplete(
                f"model {folder}: {cls.__name__} cannot be made from the arguments {arguments!r} of config.json "
                f"({type(error).__name__}: {error}); {remedy(folder)}",
                missing=[],
            ) from error
    state = {name: full(value) for name, value in _tensors(folder, folder / WEIGHTS).items()}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in state:  # a copy into float32 would round what is stored in float64
            tensor.data = tensor.data.to(state[name].dtype)
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ModelIncomplete(
            f"model {folder}: the tensors of {WEIGHTS} are not those of {cls.__name__} "
            f"({' '.join(str(error).split())}); {remedy(folder)}",
            missing=[],
        ) from error
    return module.eval()


def _network(folder: Path, path: Any) -> type[nn.Module]:
    """The class of a plain module, which must be one of the package's networks."""
    if not isinstance(path, str) or not path.startswith(NETWORKS):
        raise ModelIncomplete(
            f"model {folder}: config.json names the class {path!r}, and only those of {NETWORKS.rstrip('.')} are made "
            "from a folder; make your module yourself and give it to cutaway.wrap(module)",
            missing=[],
        )
    file, _, name = path.removeprefix(NETWORKS).rpartition(".")
    try:
        found = getattr(importlib.import_module(NETWORKS + file), name) if file.isidentifier() else None
    except (ImportError, AttributeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == NETWORKS + file):
        raise ModelIncomplete(
            f"model {folder}: config.json names the class {path!r}, which this version of cutaway does not have; "
            f"update cutaway, or {remedy(folder)}",
            missing=[path],
        )
    return found


def remedy(folder: Path) -> str:
    """What to do about a folder whose files are not as they must be."""
    own = Path(__file__).parent.parent in folder.resolve().parents
    return "reinstall cutaway, whose own file it is" if own else "restore the folder"


def _check_difference(folder: Path) -> None:
    """The difference is the one that the card beside it was written for. Raises ModelIncomplete."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        wanted = card["files"][DIFFERENCE]
    except (OSError, ValueError, KeyError, TypeError):
        return  # a difference without a card, or with one that does not speak of it
    found = file_digest(folder / DIFFERENCE)
    if found != wanted:
        raise ModelIncomplete(
            f"model {folder}: {DIFFERENCE} has the hash {found[:12]}, and its card was written for {wanted[:12]}; "
            f"{remedy(folder)}",
            missing=[DIFFERENCE],
        )


def is_relative(folder: Path) -> bool:
    """Whether a folder holds a relative that is stored as a difference."""
    return (folder / DIFFERENCE).exists() and not (folder / WEIGHTS).exists()


def base_of(folder: Path, embedded: Path) -> Path:
    """Folder of a relative's base: the one of that name beside it, else the embedded one.

    Raises ModelIncomplete when there is none, or when its weights are not those that the difference was taken from.
    """
    from safetensors import SafetensorError, safe_open

    _check_difference(folder)
    try:
        with safe_open(folder / DIFFERENCE, framework="pt") as file:
            said = file.metadata() or {}
    except SafetensorError as error:
        raise _broken(folder, folder / DIFFERENCE, error) from error
    name = said.get("base", "")
    places = [parent / name for parent in (folder.parent, embedded)]
    found = next((place for place in places if name and (place / WEIGHTS).exists()), None)
    if found is None:
        raise ModelIncomplete(
            f"model {folder}: a difference from {name!r}, which is neither beside it nor an embedded model; put the "
            f"folder of {name!r} beside it",
            missing=[name],
        )
    if file_digest(found / WEIGHTS) != said.get("base_sha256"):
        raise ModelIncomplete(
            f"model {folder}: a difference from other weights of {name!r} than those in {found}; make the relative "
            "again from these, or restore the base",
            missing=[name],
        )
    return found


def read_relative(folder: Path, base: Path) -> dict[str, Tensor]:
    """The state dict of a relative: the base's tensors plus the differences, in float32.

    Raises ModelIncomplete for a difference that names an unknown parameter or has the wrong shape.
    """
    state = {name: full(value) for name, value in _tensors(folder, base / WEIGHTS).items()}
    for name, value in differences(folder, _tensors(folder, folder / DIFFERENCE)).items():
        if name not in state:
            raise ModelIncomplete(
                f"model {folder}: {DIFFERENCE} changes {name!r}, which its base {base.name!r} does not have; "
                f"{remedy(folder)}",
                missing=[name],
            )
        if value.shape != state[name].shape:
            raise ModelIncomplete(
                f"model {folder}: {DIFFERENCE} changes {name!r} by {list(value.shape)}, which is "
                f"{list(state[name].shape)} in its base {base.name!r}; {remedy(folder)}",
                missing=[name],
            )
        state[name] = state[name] + value
    return state


def differences(folder: Path, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameter -> what is added to it, in float32, from the tensors of a difference."""
    found: dict[str, Tensor] = {}
    for key, value in stored.items():
        name, _, part = key.rpartition(".")
        other = stored.get(f"{name}.right")
        if part == "delta":
            found[name] = full(value)
        elif part == "left" and other is not None and value.ndim == other.ndim == 2 and value.shape[1] == len(other):
            found[name] = full(value) @ full(other)
        elif part != "right" or f"{name}.left" not in stored:
            raise ModelIncomplete(
                f"model {folder}: {DIFFERENCE} holds {key!r} {list(value.shape)}, which is neither a delta nor one of "
                f"two factors left [rows r] and right [r columns]; {remedy(folder)}",
                missing=[key],
            )
    return found


def full(value: Tensor) -> Tensor:
    """The tensor as it is computed with: stored in half precision, it becomes float32."""
    return value.float() if value.dtype in HALF else value


def _tensors(folder: Path, file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise _broken(folder, file, error) from error


def _broken(folder: Path, file: Path, error: Exception) -> ModelIncomplete:
    return ModelIncomplete(
        f"model {folder}: {file.name} cannot be read ({error}); {remedy(folder)}", missing=[file.name]
    )
