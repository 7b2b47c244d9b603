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


def built(name: str, **config: Any) -> Any:
    """A random model of a class of transformers, biases and norms included, with a config of its own."""
    import transformers

    cls = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = cls(cls.config_class(**config))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


SMALL = {"vocab_size": D_VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT_LIKE = {
    **SMALL,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "intermediate_size": 80,
}
ROBERTA = {**BERT_LIKE, "pad_token_id": 1, "bos_token_id": 0}
"""RoBERTa numbers its tokens from its padding id on: 62 of the 64 positions are for tokens."""


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
