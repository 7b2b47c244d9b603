"""Text as it is generated: each piece is given out once it is final, and texts at which a row ends are seen.

A token may be a part of a character, and a tokenizer may write a token differently after another: so the new text is
what the last few tokens decode to with the new one, beyond what they decode to without it, and a text that ends in the
middle of a character waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cutaway.errors import UsageError
from cutaway.models.tokens import Tokens

BROKEN: Final = "\ufffd"
"""What an unfinished character decodes to."""
CONTEXT: Final = 6
"""Tokens of the prompt that the first new one is decoded with."""


@dataclass(frozen=True)
class Piece:
    """New text of one row. Its pieces, joined, are what the row's new tokens say."""

    row: int
    text: str


@dataclass(frozen=True)
class Stop:
    """Where a row ends: after these tokens, and before these texts."""

    ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()

    def cut(self, text: str) -> int | None:
        """Where the first of the stop texts begins; None without one."""
        found = [at for stop in self.texts if (at := text.find(stop)) >= 0]
        return min(found, default=None)

    def waiting(self, text: str) -> int:
        """How much of the text's end may be the beginning of a stop text."""
        ends = [n for stop in self.texts for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return max(ends, default=0)


def stop_of(stop: Any, tokenizer: Any, module: Any) -> Stop:
    """What `stop=` means: None is the end-of-sequence token of the tokenizer and those of the model's own settings."""
    if stop is None:
        if tokenizer is None:
            return Stop()
        own = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
        listed = own if isinstance(own, list | tuple) else [own]
        return Stop(frozenset(int(i) for i in [tokenizer.eos_token_id, *listed] if i is not None))
    items = [stop] if isinstance(stop, int | str) else list(stop)
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | str) or item == "":
            raise UsageError(
                f"stop: {item!r} is neither a token id nor a text; give stop=2, stop='\\n' or a list of them"
            )
    texts = tuple(item for item in items if isinstance(item, str))
    if texts and tokenizer is None:
        raise UsageError(f"stop={texts[0]!r}: without a tokenizer there is no text; give token ids")
    return Stop(frozenset(item for item in items if isinstance(item, int)), texts)


@dataclass
class _Row:
    """One row: its last tokens, and what of their text is not given out yet."""

    ids: list[int]
    """Tokens of the window, oldest first."""
    known: int
    """How many of them have been turned to text."""
    held: str = ""
    """Text that may be the beginning of a stop text."""


@dataclass
class Reader:
    """Turns the new tokens of all rows to text."""

    tokenizer: Any
    stop: Stop
    rows: list[_Row] = field(default_factory=list)

    @classmethod
    def of(cls, tokenizer: Any, stop: Stop, prompts: Tokens) -> "Reader":
        """Before the first new token."""
        tails = [prompts.row(row)[-CONTEXT:] for row in range(len(prompts))]
        return cls(tokenizer, stop, [_Row(tail, len(tail)) for tail in tails])

    def read(self, row: int, token: int) -> tuple[str, bool]:
        """The text that became final with this token, and whether a stop text came up, before which it ends."""
        state = self.rows[row]
        state.ids.append(token)
        before, after = self._text(state.ids[: state.known]), self._text(state.ids)
        if after.endswith(BROKEN):
            return "", False
        fresh = after[len(before) :]
        if fresh:  # a window begins between two characters, and holds some text
            state.ids = state.ids[state.known :]
        state.known = len(state.ids)
        return self._given(state, state.held + fresh)

    def rest(self, row: int) -> str:
        """What was still waiting when the row ended."""
        state = self.rows[row]
        before, after = self._text(state.ids[: state.known]), self._text(state.ids)
        text, state.held, state.known = state.held + after[len(before) :], "", len(state.ids)
        return text

    def _given(self, state: _Row, fresh: str) -> tuple[str, bool]:
        cut = self.stop.cut(fresh)
        if cut is not None:
            state.held = ""
            return fresh[:cut], True
        wait = self.stop.waiting(fresh)
        text, state.held = fresh[: len(fresh) - wait], fresh[len(fresh) - wait :]
        return text, False

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
