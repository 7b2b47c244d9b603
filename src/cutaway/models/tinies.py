"""Tinies: a small random model of any type that transformers knows, built from data.

One table of field values serves every configuration class (`[fields]` of `types.toml`); what a type needs beyond it is
a row of its own (`[types.NAME]`), nested for the configurations inside it, and a row may name another `class` of a
`type`. Nothing is downloaded.

>>> tiny_config("llama").hidden_size
32
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

import torch
from torch import nn

MOST_PARAMETERS: Final = 20_000_000
"""A model beyond this is not tiny: some size of its configuration has no row."""


class NotBuilt(Exception):
    """transformers itself cannot make or run this type from a tiny configuration; the text says why."""


@cache
def table() -> Mapping[str, Any]:
    """`types.toml`: `fields` for all, `types` for each, `refused` with the reason why a type has no tiny."""
    text = resources.files("cutaway.models").joinpath("types.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def causal_types() -> list[str]:
    """Types that transformers maps to a class with a causal language-model head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    """A small configuration of a type: the table's fields, then the type's own row."""
    from transformers import CONFIG_MAPPING

    row = table()["types"].get(model_type, {})
    return _config(CONFIG_MAPPING[row.get("type", model_type)], row.get("config", {}))


def _config(cls: Any, row: Mapping[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    names = {field.name for field in dataclasses.fields(cls)}
    names |= set(getattr(cls, "attribute_map", {}))
    known = table()["fields"]
    values = {name: known[name] for name in names if name in known}
    for name, sub in _inner(cls).items():
        inner = dict(row.get(name, {}))
        found = CONFIG_MAPPING[inner.pop("model_type")] if "model_type" in inner else sub
        if found is not None:
            values[name] = _config(found, inner).to_dict()
    subs = _inner(cls)
    flat = {key: _plain(value) for key, value in row.items() if key not in subs}
    left_out = set(row.get("leave_out", ()))
    return cls(**{key: value for key, value in {**values, **flat}.items() if key not in {*left_out, "leave_out"}})


def _inner(cls: Any) -> dict[str, Any]:
    """Configurations inside one, by name, with the class that transformers takes by default (None: it has none)."""
    from transformers import CONFIG_MAPPING

    specs = {**(getattr(cls, "sub_configs", None) or {}), **(getattr(cls, "sub_configs_defaults", None) or {})}
    found: dict[str, Any] = {}
    for name, spec in specs.items():
        kind = getattr(spec, "model_type", "") or ""
        chosen = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else getattr(spec, "config_class", spec)
        found[name] = chosen if dataclasses.is_dataclass(chosen) else None
    return found


def _plain(value: Any) -> Any:
    return None if value == "none" else value


def tiny(model_type: str, seed: int = 0) -> nn.Module:
    """A random model of a type in evaluation mode (float32, CPU), every parameter random, norms and biases included.

    Raises NotBuilt when transformers cannot make it. torch's global random state stays as it was.
    """
    import transformers

    row = table()["types"].get(model_type, {})
    try:
        config = tiny_config(model_type)
        if "class" in row:
            make = getattr(transformers, row["class"])._from_config
        else:
            make = transformers.AutoModelForCausalLM.from_config
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            size = sum(p.numel() for p in make(config).parameters())
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {_line(error)}") from error
    if size > MOST_PARAMETERS:
        raise NotBuilt(f"{size:,} parameters from a tiny configuration")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = make(tiny_config(model_type)).float().eval()
        except Exception as error:
            raise NotBuilt(f"{type(error).__name__}: {_line(error)}") from error
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * row.get("noise", 0.1))
    return module


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
