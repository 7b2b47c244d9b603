"""Token rows: what a run reads, padded to a rectangle, with the names of positions.

Positions outside this file are indices into the row without its padding; `Tokens.column` turns them into columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.artifacts import digest
from cutaway.errors import OutOfRange, UsageError, did_you_mean
from cutaway.models.sites import Position, Where
from cutaway.models.spans import RESERVED, Span

NOT_YET = -(10**9)
"""A position, and a column, that lies in no row."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Rows of token ids. Frozen; equal when ids, mask and roles are equal."""

    ids: Int[Tensor, "batch pos"]
    """Token ids; padding holds any id."""
    mask: Bool[Tensor, "batch pos"]
    """True at real tokens, which are contiguous in each row."""
    roles: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Named positions: for each name the index in each unpadded row. 'end' (last real token) is added when missing."""
    texts: tuple[tuple[str, ...], ...] | None = None
    """One display string a real token, for predicates; None when there is no tokenizer."""

    def __post_init__(self) -> None:
        if self.ids.shape != self.mask.shape or self.ids.ndim != 2 or 0 in self.ids.shape:
            raise UsageError(
                f"tokens need ids and mask of one shape [batch pos], neither empty; got {tuple(self.ids.shape)} "
                f"and {tuple(self.mask.shape)}"
            )
        edges = (self.mask[:, 1:] != self.mask[:, :-1]).sum(1)
        if (
            bool((self.mask.sum(1) == 0).any())
            or bool((edges > 2).any())
            or bool(((edges == 2) & self.mask[:, 0]).any())
        ):
            raise UsageError(
                "tokens: each row needs at least one real token, and padding only before or after its real tokens"
            )
        if taken := set(RESERVED) & set(self.roles):
            raise UsageError(
                f"role {min(taken)!r}: this word names a part of every row (prompt, new); give the role another name"
            )
        if "end" not in self.roles:
            object.__setattr__(self, "roles", {**self.roles, "end": tuple(n - 1 for n in self.lengths)})
        for name, where in self.roles.items():
            bad = [(row, p) for row, (p, n) in enumerate(zip(where, self.lengths)) if not 0 <= p < n]
            if len(where) != len(self) or bad:
                raise UsageError(
                    f"role {name!r}: needs one position inside each of the {len(self)} rows; got {len(where)}, "
                    f"outside: {bad[:3]}"
                )

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Real tokens of each row."""
        return tuple(self.mask.sum(1).tolist())

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Padding before each row's first real token."""
        return tuple(self.mask.int().argmax(1).tolist())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids (without padding values), mask and roles."""
        return digest([self.ids.masked_fill(~self.mask, 0).tolist(), self.mask.int().tolist(), dict(self.roles)])

    @property
    def width(self) -> int:
        """Columns, padding included."""
        return self.ids.shape[1]

    @cached_property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Index of each real token in its row; 0 at padding."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    def row(self, index: int) -> list[int]:
        """Ids of one row without padding."""
        return self.ids[index][self.mask[index]].tolist()

    def take(self, rows: Sequence[int]) -> "Tokens":
        """The given rows, in the given order; columns are kept, so that values of both line up."""
        index = torch.as_tensor(list(rows))
        roles = {name: tuple(where[r] for r in rows) for name, where in self.roles.items()}
        texts = None if self.texts is None else tuple(self.texts[r] for r in rows)
        return Tokens(self.ids[index], self.mask[index], roles, texts)

    def repeat(self, times: int) -> "Tokens":
        """All rows, `times` times over."""
        return self.take(list(range(len(self))) * times)

    def grown(self, ids: Int[Tensor, " batch"], going: Sequence[bool], texts: Sequence[str] | None = None) -> "Tokens":
        """One more column; rows that do not go on get padding there. Nothing is checked again: the rows are right."""
        lengths = tuple(n + go for n, go in zip(self.lengths, going))
        if all(going):
            real, places = self.mask[:, -1:], self.position_ids[:, -1:] + 1
        else:
            real, places = torch.tensor(going)[:, None], torch.tensor(lengths)[:, None] - 1
        words = self.texts
        if words is not None and texts is not None:
            words = tuple((*row, text) if go else row for row, text, go in zip(words, texts, going))
        made = object.__new__(Tokens)
        made.__dict__.update(
            ids=torch.cat([self.ids, ids[:, None]], 1),
            mask=torch.cat([self.mask, real], 1),
            roles=self.roles,
            texts=words,
            lengths=lengths,
            offsets=self.offsets,
            position_ids=torch.cat([self.position_ids, places], 1),
        )
        return made

    def prompt(self, row: int) -> range:
        """Columns of a row's prompt: up to the role 'end'."""
        return range(self.offsets[row], self.offsets[row] + self.roles["end"][row] + 1)

    def positions(self, pos: Position, *, ends: Sequence[int] | None = None) -> list[list[int]]:
        """For each row the selected positions (unpadded). Raises OutOfRange, or UsageError for an unknown role.

        While generating, `ends` are the lengths of the prompts: negative positions count from there, and a position
        that the row does not have yet becomes NOT_YET.
        """
        if pos is None:
            return [list(range(n)) for n in self.lengths]
        if isinstance(pos, str):
            if pos not in self.roles:
                raise UsageError(
                    f"position {pos!r}: these inputs name {sorted(self.roles)}.{did_you_mean(pos, self.roles)}",
                    position=pos,
                )
            return [[p] for p in self.roles[pos]]
        if isinstance(pos, Where):
            if self.texts is None:
                raise UsageError(
                    f"position {pos}: a token predicate needs a tokenizer, and these inputs were given as ids "
                    "without one"
                )
            return [[p for p, text in enumerate(texts) if pos.predicate(text)] for texts in self.texts]
        if isinstance(pos, Span):
            rows = zip(self.lengths, self.roles["end"], ends or self.lengths)
            return [list(pos.within(length, end + 1, anchor)) for length, end, anchor in rows]
        wanted = (pos,) if isinstance(pos, int) else pos
        for row, length in enumerate(ends or self.lengths):
            for p in wanted:
                if p < -length or (p >= length and ends is None):
                    raise OutOfRange(
                        f"position {p}: row {row} has {length} tokens (0-{length - 1}, or -1 to -{length})",
                        position=p,
                        row=row,
                    )
        if ends is None:
            return [[p % length for p in wanted] for length in self.lengths]
        rows = zip(self.lengths, ends)
        return [[p + end if p < 0 else p if p < length else NOT_YET for p in wanted] for length, end in rows]

    def columns(self, pos: Position, *, ends: Sequence[int] | None = None) -> list[list[int]]:
        """For each row the columns of the selected positions; as in `positions`."""
        return [[p + offset for p in found] for found, offset in zip(self.positions(pos, ends=ends), self.offsets)]


def from_rows(
    rows: Sequence[Sequence[int]], *, pad: str, pad_id: int, roles: Mapping[str, Sequence[int]] | None = None
) -> Tokens:
    """Rows of ids, padded on the given side ('left' or 'right')."""
    if pad not in ("left", "right"):
        raise UsageError(f"pad={pad!r}: padding goes 'left' or 'right'")
    if not rows or any(len(row) == 0 for row in rows):
        raise UsageError("tokens: at least one row, and at least one token in each, are needed")
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if pad == "left" else slice(0, len(row))
        ids[i, span] = torch.as_tensor(list(row))
        mask[i, span] = True
    return Tokens(ids, mask, {name: tuple(where) for name, where in (roles or {}).items()})
