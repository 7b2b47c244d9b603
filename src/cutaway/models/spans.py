"""Spans: slices of rows, of their prompts, and of what comes after the prompts.

    sites.resid_post[3].at(prompt)        resid_post.3@prompt        every token of the prompt
    sites.resid_post[3].at(new)           resid_post.3@new           every token after the prompt
    sites.resid_post[3].at(new[:5])       resid_post.3@new[:5]       the first five of these
    sites.resid_post[3].at(slice(2, 6))   resid_post.3@2:6           positions 2 to 5 of the row

The prompt ends at the role 'end'. What follows is new: tokens that a generation adds, or the answer in the rows of a
task; so a span means the same in a run over a finished text as in the generation that wrote it.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from cutaway.errors import UsageError

RESERVED: Final = ("prompt", "new")
"""Words that name a part of the row, and so no role."""
_BOUNDS: Final = r"(?P<start>-?\d+)?:(?P<stop>-?\d+)?"
_TEXT: Final = re.compile(rf"(?P<part>prompt|new)(?:\[{_BOUNDS}\])?|{_BOUNDS.replace('P<', 'P<row_')}")


@dataclass(frozen=True)
class Span:
    """A slice of each row. Bounds are those of a Python slice: `stop` is left out, and what lies beyond is cut off."""

    part: Literal["row", "prompt", "new"] = "row"
    start: int | None = None
    """Negative numbers count from the end of the row; while generating, as everywhere, from the end of the prompt."""
    stop: int | None = None

    def __post_init__(self) -> None:
        low, high = self.start or 0, self.stop
        if self.part == "new" and (low < 0 or (high is not None and high < 0)):
            raise UsageError(
                f"span {self}: new tokens are counted from the first one, 0; nobody knows the last one yet"
            )
        if high is not None and (low < 0) == (high < 0) and high <= low:
            raise UsageError(f"span {self}: it holds nothing; the second number must be above the first")

    def __getitem__(self, bounds: Any) -> "Span":
        """A slice of the whole part, as in `new[:5]`."""
        if not isinstance(bounds, slice):
            raise UsageError(f"{self.part}[{bounds!r}]: a slice is needed, as in {self.part}[2:5]")
        if (self.start, self.stop) != (None, None):
            raise UsageError(f"span {self}: it is a slice already; slice {self.part} itself")
        return of_slice(bounds, self.part)

    def within(self, length: int, n_prompt: int, anchor: int) -> range:
        """Positions in a row of `length` tokens whose prompt has `n_prompt`; negative bounds count from `anchor`."""
        first, size = {"row": (0, length), "prompt": (0, n_prompt), "new": (n_prompt, length - n_prompt)}[self.part]
        back = anchor if self.part == "row" else size
        low, high = (b if b is None else max(0, b + back if b < 0 else b) for b in (self.start, self.stop))
        low, high = min(low or 0, size), size if high is None else min(high, size)
        return range(first + low, first + max(low, high))

    def __str__(self) -> str:
        bounds = f"{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}"
        if self.part == "row":
            return bounds
        return self.part if bounds == ":" else f"{self.part}[{bounds}]"


prompt: Final = Span("prompt")
"""Every token up to the role 'end'."""
new: Final = Span("new")
"""Every token after it."""


def of_slice(bounds: slice, part: Any = "row") -> Span:
    """The span of a Python slice. Raises UsageError for steps."""
    if bounds.step not in (None, 1):
        raise UsageError(f"position {bounds}: a span has no steps; list the positions: range(0, 8, 2)")
    for bound in (bounds.start, bounds.stop):
        if bound is not None and type(bound) is not int:
            raise UsageError(f"position {bounds}: {bound!r} is no whole number; write it as in new[2:5]")
    return Span(part, bounds.start, bounds.stop)


def parse(text: str) -> Span | None:
    """The span that a text names ('prompt', 'new[:5]', '2:6'); None for what is no span."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    if match["part"] is None:
        return Span("row", *(None if match[n] is None else int(match[n]) for n in ("row_start", "row_stop")))
    return Span(match["part"], *(None if match[n] is None else int(match[n]) for n in ("start", "stop")))  # type: ignore[arg-type]
