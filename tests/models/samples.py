"""What the tests of models share: a loaded model a family, rows of tokens, a tokenizer, a hook written by hand.

>>> loaded("llama").body.n_kv_heads
2
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import cutaway
from cutaway.models import Model, Tokens
from tests.families import D_VOCAB, tiny


@cache
def loaded(family: str, attention: str = "") -> Model:
    """One model for all tests that leave it as it is; its attention is the family's own choice when none is named."""
    return cutaway.load(tiny(family, **({"attn_implementation": attention} if attention else {})))


@cache
def spoken(family: str) -> Model:
    """The same, with a tokenizer: token 7 is the word 't7'."""
    return Model(loaded(family).module, tokenizer(), loaded(family).anatomy, family)


def tokenizer(bos: bool = True) -> Any:
    """One token a word: `t0` to `t98`; with `bos`, token 1 begins a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"t{i}": i for i in range(D_VOCAB)}, "t3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "t0", "unk_token": "t3"}
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="t1 $A", special_tokens=[("t1", 1)])
        names["bos_token"] = "t1"
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def rows(lengths: Sequence[int] = (9, 9, 9), seed: int = 1) -> list[list[int]]:
    """Random rows of ordinary ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, D_VOCAB, (n,), generator=generator).tolist() for n in lengths]


def vector(size: int = 32, seed: int = 5) -> Tensor:
    """A random vector."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@contextmanager
def hooked(module: nn.Module, change: Callable[[Tensor], Tensor], port: str = "output") -> Iterator[None]:
    """The oracle of edits: a plain hook, written by hand, on the first tensor in or out."""

    def post(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    def pre(_: nn.Module, args: tuple[Any, ...]) -> Any:
        return (change(args[0]), *args[1:])

    handle = module.register_forward_hook(post) if port == "output" else module.register_forward_pre_hook(pre)
    try:
        yield
    finally:
        handle.remove()


def part(model: Model, path: str) -> nn.Module:
    """A submodule."""
    return model.module.get_submodule(path)


def plain(model: Model, tokens: Tokens, **options: Any) -> Any:
    """What Hugging Face's own call returns for the rows."""
    with torch.no_grad():
        return model.module(**model.inputs(tokens), **options)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest wanted value."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9))
