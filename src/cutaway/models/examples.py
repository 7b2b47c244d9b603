"""Examples: small random inputs for a module that is not run on rows of token ids: images, sound, encoder-decoders.

Made from the configuration alone, seeded, two rows; what is not known is not guessed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.models.forward import Raw

ROWS = 2
N_TOKENS = (7, 5)
"""Tokens of the encoder and of the decoder."""


@dataclass(frozen=True)
class Example:
    """Inputs on which a wrapped module was watched, and rows and positions of its body."""

    inputs: Raw
    shape: tuple[int, int]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def width(self) -> int:
        return self.shape[1]


def example(module: nn.Module) -> Raw | None:
    """Arguments of one pass; None when the configuration does not say what the module takes."""
    config: Any = getattr(module, "config", None)
    maker = _MAKERS.get(getattr(module, "main_input_name", ""))
    if config is None or maker is None:
        return None
    generator = torch.Generator().manual_seed(0)
    given = maker(module, config, generator)
    if given is None:
        return None
    if getattr(config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = _ids(config, N_TOKENS[1], generator)
    elif "input_ids" in _names(module) and "input_ids" not in given:
        given["input_ids"] = _ids(config, N_TOKENS[0], generator)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return Raw((), {name: value.to(device) for name, value in given.items()})


def _names(module: nn.Module) -> frozenset[str]:
    from cutaway.models.forward import accepted

    return accepted(module.forward)


def _text(config: Any) -> Any:
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def _ids(config: Any, n: int, generator: torch.Generator) -> Tensor:
    size = getattr(_text(config), "vocab_size", None) or getattr(config, "vocab_size", 99)
    return torch.randint(3, min(int(size), 5000), (ROWS, n), generator=generator)


def _tokens(module: nn.Module, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    given = {"input_ids": _ids(config, N_TOKENS[0], generator)}
    if "pixel_values" in _names(module) and hasattr(config, "vision_config"):
        given |= _image(module, config, generator) or {}  # a pair of towers
    return given


def _image(module: nn.Module, config: Any, generator: torch.Generator) -> dict[str, Tensor] | None:  # noqa: ARG001
    config = getattr(config, "vision_config", None) or config
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    return {"pixel_values": torch.randn(ROWS, int(channels), int(height), int(width), generator=generator)}


def _sound(module: nn.Module, config: Any, generator: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG001
    return {"input_values": torch.randn(ROWS, 4000, generator=generator)}


def _features(module: nn.Module, config: Any, generator: torch.Generator) -> dict[str, Tensor] | None:  # noqa: ARG001
    bins, length = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    if bins is None or length is None:
        return None
    return {"input_features": torch.randn(ROWS, int(bins), 2 * int(length), generator=generator)}


_MAKERS = {"input_ids": _tokens, "pixel_values": _image, "input_values": _sound, "input_features": _features}
