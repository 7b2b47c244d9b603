"""Build: a program and its variants as a model with its tokenizer, its rows and its truth."""

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

from cutaway.errors import UnknownName, UsageError, did_you_mean
from cutaway.zoo.card import Truth
from cutaway.zoo.handmade import rows as drawing
from cutaway.zoo.handmade.blueprint import ONE, Blueprint
from cutaway.zoo.handmade.edges import establish
from cutaway.zoo.handmade.programs import PROGRAMS
from cutaway.zoo.handmade.rows import BOS, SPECIAL, Rows
from cutaway.zoo.handmade.variants import filled, with_backup, with_ballast, with_decoys, with_suppressor
from cutaway.zoo.handmade.writer import write_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SATURATED, SOFT = 12.0, 3.0
"""Nats by which a head prefers what it looks for."""
N_MEASURED, MEASURED_SEED = 64, 1_000_003


@dataclass(frozen=True)
class Handmade:
    """A model whose weights were written, with what is known of it."""

    program: str
    """What it computes, a name of `PROGRAMS`."""
    blueprint: Blueprint
    """What was written."""
    module: Any
    """The Hugging Face model, float32, in evaluation mode."""

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """One token a word, separated by blanks; BOS is put first."""
        return tokenizer(self.blueprint.words)

    def rows(self, n: int, seed: int) -> Rows:
        """`n` valid inputs with their answers; the same seed gives the same."""
        return drawing.draw(n, seed, PROGRAMS[self.program].row, self.blueprint.length)

    @cached_property
    def truth(self) -> Truth:
        """Every component with its role and effects, every connection with its three truths. Computed when first asked
        for: one forward pass for each node and ablation and for each edge and each of its two effects, on 64 rows
        (a second or two)."""
        measured = self.rows(N_MEASURED, MEASURED_SEED)
        found = establish(self.module, self.blueprint, measured, PROGRAMS[self.program].behavior)
        return found.model_copy(update={"setup": {**found.setup, "seed": float(MEASURED_SEED)}})


def build(
    program: str,
    *,
    architecture: str = "llama",
    rotate: int | None = None,
    decoys: int = 0,
    duplicate: bool = False,
    suppressor: bool = False,
    soft: bool = False,
    kv_groups: int = 1,
) -> Handmade:
    """A transformer that computes `program` because its weights were written so. Cost: milliseconds.

    Every variant answers every valid row correctly, but `soft` ones, whose accuracy has to be measured. Norms are the
    identity only up to a part in a thousand; see `writer`. Raises UnknownName for a program or an
    architecture that is not known, UsageError for options that it cannot have.

    >>> build("majority").truth.sites("count")
    ('z.0.h0',)

    Args:
        architecture: 'llama', 'gpt2' or 'gemma2' (norms after the sublayers too, for which each layer has a head that
            writes a constant: `ballast`).
        rotate: seed of a random rotation of the residual basis; the outputs stay.
        decoys: heads added to each layer that look and write, where nothing reads.
        duplicate: a second mover, one layer after the first, that steps in when the first brings nothing.
        suppressor: a head in a layer of its own at the end that takes back part of the answer.
        soft: heads prefer what they look for by 3 nats and not by 12.
        kv_groups: heads that share keys and values; empty heads fill the layers up to a multiple of it.
    """
    _require_options(rotate=rotate, decoys=decoys, kv_groups=kv_groups)
    if not isinstance(program, str) or program not in PROGRAMS:
        raise UnknownName(
            f"program {program!r}: not one of {', '.join(PROGRAMS)}; name one.{did_you_mean(str(program), PROGRAMS)}",
            found=program,
            known=tuple(PROGRAMS),
        )
    m = SOFT if soft else SATURATED
    made = PROGRAMS[program].blueprint(m)
    made = with_backup(made, m) if duplicate else made
    made = with_suppressor(made, m) if suppressor else made
    made = with_decoys(made, decoys, m) if decoys else made
    made = _completed(made, m, kv_groups, post_norm=architecture == "gemma2")
    return Handmade(program, made, write_model(made, architecture, rotate=rotate, kv_groups=kv_groups))


def _require_options(**options: Any) -> None:
    """Refuse (UsageError) what is no whole number in its range."""
    for name, value in options.items():
        least = 1 if name == "kv_groups" else 0
        if name == "rotate" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
            raise UsageError(f"{name}={value!r}: give a whole number, {least} or more", value=value)


def _completed(made: Blueprint, m: float, kv_groups: int, *, post_norm: bool) -> Blueprint:
    """With as many heads in every layer, a multiple of those that share, two at least."""
    most = max(2, *(len(block.heads) for block in made.blocks)) + post_norm
    n_heads = ceil(most / max(kv_groups, 1)) * max(kv_groups, 1)
    made = filled(made, n_heads - post_norm, m)
    return with_ballast(made, ONE) if post_norm else made


def tokenizer(words: tuple[str, ...]) -> "PreTrainedTokenizerFast":
    """One token a word, separated by blanks; BOS is put first. The first four words are the special ones."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    inner: Any = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=64,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **names,
    )
