"""One example of a behavior: a clean prompt, a corrupt one, the answer, the foil, and where its named tokens are.

A pair is either text throughout (and then belongs to no tokenizer) or token ids throughout. The splits of a task are
disjoint by cluster: pairs that share a template, a document or an entity stay together, so that what was tuned on one
split says nothing about the next one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from cutaway.artifacts import digest
from cutaway.errors import AnswersEqual, DataError, OutOfRange

Prompt: TypeAlias = str | tuple[int, ...]
Spans: TypeAlias = Mapping[str, tuple[int, int]]
SplitName: TypeAlias = Literal["explore", "calibrate", "confirm"]

SPLITS: tuple[SplitName, ...] = ("explore", "calibrate", "confirm")
"""In the order in which a study opens them: look around, tune, test."""
SHARES: tuple[float, ...] = (1 / 3, 1 / 6, 1 / 2)
"""Share of the clusters that each split gets by default."""


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupt prompt that differ in what decides between answer and foil.

    Clean leads to the answer, corrupt to the foil (or to neither). Raises AnswersEqual, and DataError for what else
    does not fit together. `clean == corrupt` is allowed, for tasks that only measure change (kl on neutral prompts);
    patching between them does nothing.

    >>> Pair("The girl smiled.", "The boy smiled.", " She", " He", id="0").is_text
    True
    """

    clean: Prompt
    """Prompt on which the behavior shows: text, or token ids with every special token written out."""
    corrupt: Prompt
    """The same length in tokens, without what decides the answer."""
    answer: str | int | tuple[int, ...]
    """What should follow `clean`. Text includes its leading space: ' she'."""
    foil: str | int | tuple[int, ...]
    """What the answer is compared with; what should follow `corrupt`."""
    positions: Spans = field(default_factory=dict)
    """Role -> half-open span in `clean`, in characters (text) or tokens (ids). The role is the span's last token."""
    corrupt_positions: Spans | None = None
    """The same for `corrupt`; None: the tokens at the same indices."""
    id: str = ""
    """Name of the pair, unique in its task."""
    cluster: str = "all"
    """Independent unit that the pair belongs to: its template, document or entity."""
    split: SplitName = "explore"
    """Split that the pair's cluster belongs to."""

    def __post_init__(self) -> None:
        values = (self.clean, self.corrupt, self.answer, self.foil)
        if len({isinstance(value, str) for value in values}) == 2:
            raise self._wrong("mixes text and token ids; write prompts, answer and foil all as text or all as ids")
        for name in ("clean", "corrupt", "answer", "foil"):
            if getattr(self, name) in ("", ()):
                raise self._wrong(f"has an empty {name}; write at least one token")
        if self.as_prompt(self.answer) == self.as_prompt(self.foil):
            raise AnswersEqual(
                f"{self._label}: answer and foil are both {self.answer!r}; they must differ",
                pair=self.id,
                answer=self.answer,
            )
        if self.split not in SPLITS:
            raise self._wrong(f"is in split {self.split!r}; splits are {', '.join(SPLITS)}")
        if self.cluster == "":
            raise self._wrong("has an empty cluster; name its template, document or entity")
        self._check_seam()
        self._check_spans()

    @property
    def is_text(self) -> bool:
        """Text (any tokenizer) rather than token ids (one tokenizer)."""
        return isinstance(self.clean, str)

    @staticmethod
    def as_prompt(value: str | int | tuple[int, ...]) -> Prompt:
        """An answer in the form of a prompt: a single id becomes a tuple of one."""
        return (value,) if isinstance(value, int) else value

    def _check_seam(self) -> None:
        """One space between prompt and answer, not two: with two no answer is likely, and nothing else would tell."""
        for name in ("clean", "corrupt"):
            prompt = getattr(self, name)
            spaced = any(isinstance(value, str) and value[0].isspace() for value in (self.answer, self.foil))
            if spaced and isinstance(prompt, str) and prompt[-1].isspace():
                raise self._wrong(f"ends {name} with a space and begins its answer or foil with one; keep the answer's")

    def _check_spans(self) -> None:
        if "end" in self.positions or "end" in (self.corrupt_positions or {}):
            raise self._wrong("names the role 'end', which is always the last token of the prompt; leave it out")
        if self.corrupt_positions is not None and set(self.corrupt_positions) != set(self.positions):
            raise self._wrong(
                f"names roles {sorted(self.positions)} in clean and {sorted(self.corrupt_positions)} in corrupt; "
                "name the same in both"
            )
        for where, prompt in ((self.positions, self.clean), (self.corrupt_positions or {}, self.corrupt)):
            for role, (start, stop) in where.items():
                if not 0 <= start < stop <= len(prompt):
                    unit = "characters" if self.is_text else "tokens"
                    raise self._wrong(
                        f"puts role {role!r} at ({start}, {stop}); a span is start < stop within 0-{len(prompt)} {unit}"
                    )

    @property
    def _label(self) -> str:
        return f"pair {self.id!r}"

    def _wrong(self, rule: str) -> DataError:
        return DataError(f"{self._label} {rule}", pair=self.id)


def assign_splits(
    clusters: Iterable[str], *, seed: int = 0, shares: tuple[float, ...] = SHARES
) -> dict[str, SplitName]:
    """A split for each cluster: whole clusters, in an order that depends on their names and the seed alone.

    `shares` are fractions of the clusters (explore, calibrate, confirm); three clusters or more leave no split with a
    positive share empty. Raises DataError when the shares are no partition.

    >>> sorted(assign_splits("abcdef").values())
    ['calibrate', 'confirm', 'confirm', 'confirm', 'explore', 'explore']
    """
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise DataError(
            f"shares {shares}: three fractions that sum to 1 are needed, for {', '.join(SPLITS)}", shares=shares
        )
    names = sorted(set(clusters), key=lambda name: digest([seed, name]))
    counts = _apportion(len(names), shares)
    labels: list[SplitName] = [split for split, count in zip(SPLITS, counts) for _ in range(count)]
    return dict(zip(names, labels))


def spread(
    splits: Sequence[SplitName], clusters: Sequence[str], n: int, *, seed: int, whole: bool = False
) -> list[int]:
    """Indices of `n` examples, in order; each split keeps its share. Raises OutOfRange for n < 1.

    Clusters give one example each in turn, or, with `whole`, all of theirs one after the other.

    >>> where, clusters = ["explore"] * 4, ["a", "a", "b", "b"]
    >>> spread(where, clusters, 2, seed=0), spread(where, clusters, 2, seed=0, whole=True)
    ([0, 3], [2, 3])
    """
    if n < 1:
        raise OutOfRange(f"n={n}: a sample has at least one example", n=n)
    if n >= len(splits):
        return list(range(len(splits)))
    turns: dict[str, int] = {}
    order = []
    for index in sorted(range(len(clusters)), key=lambda i: digest([seed, clusters[i], i])):
        cluster = clusters[index]
        turns[cluster] = turns.get(cluster, -1) + 1
        place = digest([seed, cluster])
        order.append((place, turns[cluster], index) if whole else (turns[cluster], place, index))
    counts = _apportion(n, tuple(splits.count(split) / len(splits) for split in SPLITS))
    found = []
    for split, count in zip(SPLITS, counts):
        found += [index for *_, index in sorted(item for item in order if splits[item[2]] == split)[:count]]
    return sorted(found)


def _apportion(total: int, shares: tuple[float, ...]) -> list[int]:
    """Whole numbers that sum to `total`, nearest to the shares; a wanted share gets at least one while they last."""
    counts = [1 if share > 0 and total >= len(shares) else 0 for share in shares]
    while sum(counts) < total:
        short = [share * total - count for share, count in zip(shares, counts)]
        counts[short.index(max(short))] += 1
    return counts
