"""The file format of the tuned-lens package: a folder with `config.json` and `params.pt`.

`config.json` has base_model_name_or_path, d_model, num_hidden_layers, bias, base_model_revision, unembed_hash and
lens_type; `params.pt` is a state dict with `{layer}.weight` [d_model d_model] and `{layer}.bias` [d_model]. The lens of
layer i acts on the state that enters block i, as here. The weights are loaded as tensors only, never as code.

The hash is of the unembedding printed with one decimal, of which only the corners are printed: it tells a model from
another, not a copy from one that was changed a little.
"""

import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.artifacts import digest, file_digest, write_json
from cutaway.errors import DataError, SiteUnavailable, WrongModel, did_you_mean
from cutaway.lenses.states import provenance
from cutaway.lenses.tuned import TunedLens
from cutaway.models import Model

KIND = "linear_tuned_lens"
NEEDED = ("base_model_name_or_path", "d_model", "num_hidden_layers")
FIELDS = (*NEEDED, "bias", "base_model_revision", "unembed_hash", "lens_type")


def unembedding_hash(model: Model) -> str:
    """The hash by which the tuned-lens package names an unembedding. Raises SiteUnavailable where there is none."""
    if model.body.unembed is None:
        raise SiteUnavailable(f"{model.name} has no unembedding of its own to hash", reason="no unembedding")
    weight: Any = model.module.get_submodule(model.body.unembed).weight
    wide = weight.detach().cpu()
    wide = wide.float() if wide.dtype == torch.bfloat16 else wide
    with np.printoptions(edgeitems=3, threshold=1000, linewidth=75, suppress=False, floatmode="maxprec"):
        printed = np.array_str(wide.numpy(), precision=1)
    return hashlib.sha256(printed.encode()).hexdigest()


def read_published(folder: str | Path, model: Model) -> TunedLens:
    """A lens in the format of the tuned-lens package, for this model.

    Raises DataError for a folder that is none, unknown fields and tensors of other names or shapes, WrongModel where
    sizes or the hash of the unembedding differ. What it was fitted on is not known, so it has no held-out divergence:
    `lenses.measured(model, lens, rows)` measures it.
    """
    folder = Path(folder)
    config = _config(folder / "config.json")
    sizes = {"d_model": model.body.d_model, "num_hidden_layers": model.body.n_layers}
    for name, own in sizes.items():
        if config[name] != own:
            raise WrongModel(f"{folder}: its {name} is {config[name]}, this model has {own}; load the model it is for")
    found = config.get("unembed_hash")
    if found is not None and found != unembedding_hash(model):
        raise WrongModel(
            f"{folder}: it was fitted to an unembedding with hash {found[:12]}, this model's is "
            f"{unembedding_hash(model)[:12]}; load the model it is for ({config['base_model_name_or_path']})",
            found=found,
        )
    state = _parameters(folder / "params.pt")
    n, d, with_bias = model.body.n_layers, model.body.d_model, bool(config.get("bias", True))
    shapes = {f"{i}.weight": [d, d] for i in range(n)} | ({f"{i}.bias": [d] for i in range(n)} if with_bias else {})
    if {name: list(value.shape) for name, value in state.items()} != shapes:
        odd = sorted(set(state) ^ set(shapes)) or [k for k in shapes if list(state[k].shape) != shapes[k]]
        raise DataError(f"{folder}: tensors {odd[:3]} are not those of {n} layers of width {d}", path=str(folder))
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            raise DataError(f"{folder}: tensor {name!r} holds NaN or infinity", path=str(folder))
    weights = torch.stack([state[f"{i}.weight"].float() for i in range(n)])
    biases = torch.stack([state[f"{i}.bias"].float() for i in range(n)]) if with_bias else torch.zeros(n, d)
    nothing = torch.zeros(n, 0)
    settings = {"source": "tuned-lens", **{k: v for k, v in config.items() if v is not None}}
    made = provenance(model, digest([file_digest(folder / name) for name in ("config.json", "params.pt")]))
    return TunedLens(weights, biases, nothing, nothing, nothing, settings, made)


def write_published(lens: TunedLens, folder: str | Path, model: Model) -> None:
    """Write a lens in the format of the tuned-lens package. Raises WrongModel for the lens of another model."""
    lens.require(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "base_model_name_or_path": model.name,
        "d_model": model.body.d_model,
        "num_hidden_layers": lens.n_layers,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": unembedding_hash(model),
        "lens_type": KIND,
    }
    state = {f"{i}.weight": weight.clone() for i, weight in enumerate(lens.weights)}
    state |= {f"{i}.bias": bias.clone() for i, bias in enumerate(lens.biases)}
    torch.save(state, folder / "params.pt")
    write_json(folder / "config.json", config)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no readable JSON ({error}); give a folder with config.json and params.pt") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: it holds a {type(config).__name__}, and an object is needed", path=str(path))
    unknown = sorted(set(config) - set(FIELDS))
    if unknown:
        raise DataError(f"{path}: field {unknown[0]!r} is not known.{did_you_mean(unknown[0], FIELDS)}", path=str(path))
    missing = [name for name in NEEDED if name not in config]
    if missing:
        raise DataError(f"{path}: field {missing[0]!r} is missing", path=str(path))
    if config.get("lens_type", KIND) != KIND:
        raise DataError(f"{path}: lens_type {config['lens_type']!r}; only {KIND!r} is read", path=str(path))
    return config


def _parameters(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path}: not a file of tensors alone, as torch.save writes them; it is not loaded", path=str(path)
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a file of tensors alone ({reason}); it is not loaded", path=str(path)) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: it holds something else than named tensors; it is not used", path=str(path))
    return dict(state)
