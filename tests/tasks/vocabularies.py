"""Small tokenizers of the kinds that differ at word boundaries, made in the test, and models that use them.

>>> loaded("byte_bpe").tokenizer.tokenize("The girl")
['The', 'Ġgirl']
"""

from functools import cache
from typing import Any

import cutaway
from cutaway.models.model import Model
from tests.families import tiny

TEXT = (
    "The girl smiled. She ran. The boy smiled. He ran. The grandmother smiled because she ran. "
    "The man ran because he smiled. "
    "Mary and John went to the shop. John gave a book to Mary. Ann and Bob sat in the park. Bob gave a ball to Ann."
)
WORDS = sorted(set(TEXT.replace(".", " .").split()))
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def word_level(words: list[str] | None = None) -> Any:
    """One token a word, nothing kept of spaces, BOS in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        models.WordLevel(
            {word: index for index, word in enumerate(SPECIAL + (WORDS if words is None else words))}, "<unk>"
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def byte_bpe(text: str = TEXT) -> Any:
    """GPT-2's kind: the space belongs to the token after it, no BOS is added, every text has tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def prepended_bpe() -> Any:
    """Llama's kind: a space is put before the text, BOS in front, unknown characters fall back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    lone_bytes = [f"<0x{value:02X}>" for value in range(256)]
    words = TEXT.replace(".", " .").split()
    trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=SPECIAL[:3] + lone_bytes, show_progress=False)
    backend.train_from_iterator(words * 20, trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def slow_words() -> Any:
    """A tokenizer in Python, without offsets: one token a word, a full stop is a word."""
    from transformers import PreTrainedTokenizer

    class SlowWords(PreTrainedTokenizer):
        def __init__(self, **options: Any) -> None:
            self.words = {word: index for index, word in enumerate(SPECIAL + WORDS)}
            super().__init__(**options)

        @property
        def vocab_size(self) -> int:
            return len(self.words)

        def get_vocab(self) -> dict[str, int]:
            return dict(self.words)

        def _tokenize(self, text: str, **options: Any) -> list[str]:
            return text.replace(".", " .").split()

        def _convert_token_to_id(self, token: str) -> int:
            return self.words.get(token, 0)

        def _convert_id_to_token(self, index: int) -> str:
            return {i: word for word, i in self.words.items()}[index]

    return SlowWords(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")


KINDS = {"word_level": word_level, "byte_bpe": byte_bpe, "prepended_bpe": prepended_bpe, "slow_words": slow_words}


def model_of(tokenizer: Any) -> Model:
    """A tiny random Llama with this tokenizer."""
    return cutaway.load(tiny("llama", vocab_size=len(tokenizer)), tokenizer, audit=False)


@cache
def loaded(kind: str) -> Model:
    """The model of one kind of tokenizer; made once."""
    return model_of(KINDS[kind]())
