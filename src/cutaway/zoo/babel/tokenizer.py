"""babel's tokenizer: a word with the blank before it is one token, a year is two, what is unknown falls into letters.

An ordinary fast tokenizer. The text is cut into words, numbers and signs (each with its leading blank, as GPT-2's are);
a number of four digits is cut in the middle, others stay whole. Words that the grammar writes are one token each; any
other is spelled in single characters.
"""

import random
import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Final

from cutaway.zoo.babel import grammar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL: Final = ("<pad>", "<bos>", "<eos>", "<unk>")
BOS: Final = SPECIAL.index("<bos>")
PATTERN: Final = r" ?\d{2}(?=\d{2}(?!\d))| ?\d{1,3}| ?\p{L}+| ?[^\s\p{L}\d]|\s"
N_DOCUMENTS: Final = 60_000
"""Documents that the vocabulary is read from."""
LEAST: Final = 3
"""Times that a word must come in them."""
MAX_LENGTH: Final = 256
_PIECE: Final = re.compile(r" ?\d{2}(?=\d{2}(?!\d))| ?\d{1,3}| ?[^\W\d_]+| ?[^\s\w]|\s")


@cache
def vocabulary() -> list[str]:
    """All tokens in the order of their ids: special ones, characters, words in the order of the alphabet."""
    shares = {name: share for name, share in grammar.SHARES.items() if name not in ("copies", "base64ish", "foreign")}
    stream = grammar.documents(0, [], shares)
    seen = Counter(piece for _ in range(N_DOCUMENTS) for piece in _PIECE.findall(next(stream).text))
    chance = random.Random(0)
    strings = "".join(writer(chance).text for writer in (grammar.base64ish, grammar.foreign) for _ in range(2000))
    letters = {sign for sign in strings + "".join(seen) if not sign.isdigit()}
    numbers = {f"{number:02d}" for number in range(100)} | {f"{blank}{n}" for n in range(100) for blank in ("", " ")}
    words = {piece for piece, count in seen.items() if count >= LEAST} | numbers
    return [*SPECIAL, *sorted(letters), *sorted(words - letters)]


def ordinary(tokens: list[str]) -> list[str]:
    """Words with a leading blank: what random copies are made of."""
    return [token for token in tokens if re.fullmatch(r" [^\W\d_]{2,}", token)]


def tokenizer(tokens: list[str]) -> "PreTrainedTokenizerFast":
    """The tokenizer of this vocabulary; BOS is put first."""
    from tokenizers import Regex, Tokenizer, decoders
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    scores = [(token, -1.0 if len(token) > 1 else -2.0) for token in tokens]
    coded = Tokenizer(Unigram(scores, unk_id=SPECIAL.index("<unk>"), byte_fallback=False))
    coded.pre_tokenizer = Split(Regex(PATTERN), behavior="isolated")
    coded.decoder = decoders.Fuse()
    coded.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=coded,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **names,
    )
