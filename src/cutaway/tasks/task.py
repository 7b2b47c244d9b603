"""A task: a behavior as data, defined before anyone looks inside the model.

A text task belongs to no model: the same file serves every tokenizer, and `encode` proves for each that clean and
corrupt align. A task of token ids belongs to one vocabulary and is refused by every other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cutaway.artifacts import digest
from cutaway.errors import DataError, EmptyTask, UnknownName, UsageError, WrongModel, did_you_mean
from cutaway.models.model import Model
from cutaway.tasks import build
from cutaway.tasks.align import encode_pairs, vocabulary_digest
from cutaway.tasks.batch import Batch
from cutaway.tasks.build import Given
from cutaway.tasks.metric import metric_named
from cutaway.tasks.pair import SPLITS, Pair, spread
from cutaway.tasks.rows import is_own, read_rows, stem


@dataclass(frozen=True)
class Task:
    """Pairs, the metric that measures the behavior on them, and the positions that have a name.

    The constructor refuses: no pairs (EmptyTask), an unknown metric (UnknownName), ids that repeat, a cluster in two
    splits, the same prompts in two clusters, a pair without one of the roles, text mixed with ids (DataError).

    >>> girl = Pair("The girl smiled.", "The boy smiled.", " She", " He", id="0")
    >>> len(Task("smile", "Who smiled?", (girl,)))
    1
    """

    name: str
    description: str
    pairs: tuple[Pair, ...]
    metric: str = "logit_diff"
    """Name in `cutaway.tasks.METRICS`."""
    roles: tuple[str, ...] = ()
    """Named positions that every pair has; `end`, the last token of the prompt, is added."""
    seed: int | None = None
    """Seed of the random choices that made the pairs; None when there was none."""
    tokenizer: str | None = field(default=None)
    """For pairs of token ids: digest of the vocabulary they belong to (`vocabulary_digest`). None for text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", (*(role for role in self.roles if role != "end"), "end"))
        if not self.pairs:
            raise EmptyTask(f"task {self.name!r}: no pairs; a task needs at least one", task=self.name)
        metric_named(self.metric)
        self._check_kinds()
        self._check_copies()
        splits: dict[str, str] = {}
        seen: set[str] = set()
        for index, pair in enumerate(self.pairs):
            if pair.id in seen:
                raise self._wrong(index, f"pair id {pair.id!r} stands twice; ids are unique")
            seen.add(pair.id)
            if splits.setdefault(pair.cluster, pair.split) != pair.split:
                raise self._wrong(
                    index,
                    f"cluster {pair.cluster!r} is in {splits[pair.cluster]} and in {pair.split} (pair {pair.id!r}); "
                    "splits are disjoint by cluster (cutaway.tasks.assign_splits makes them so)",
                )
            missing = set(self.roles) - {"end"} - set(pair.positions)
            if missing:
                raise self._wrong(
                    index,
                    f"pair {pair.id!r} has no position for {sorted(missing)}; every pair needs all roles of the task",
                )

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the task."""
        return digest([self.name, self.description, self.metric, self.roles, self.seed, self.tokenizer, self.pairs])

    @property
    def clusters(self) -> tuple[str, ...]:
        """The distinct clusters, in order of appearance. Per pair they are `Batch.clusters`."""
        return tuple(dict.fromkeys(pair.cluster for pair in self.pairs))

    @property
    def splits(self) -> dict[str, int]:
        """Pairs in each split."""
        return {name: sum(pair.split == name for pair in self.pairs) for name in SPLITS}

    def split(self, name: str) -> "Task":
        """The pairs of one split. Raises UnknownName, or EmptyTask where the split has none."""
        if name not in SPLITS:
            raise UnknownName(f"split {name!r}: no such split.{did_you_mean(name, SPLITS)}", name=name)
        chosen = tuple(pair for pair in self.pairs if pair.split == name)
        if not chosen:
            raise EmptyTask(
                f"task {self.name!r}: no pair in split {name!r} ({self.splits}); add clusters to it",
                task=self.name,
                split=name,
            )
        return replace(self, pairs=chosen)

    def require_vocabulary(self, model: Model) -> None:
        """Refuse (WrongModel) a model whose vocabulary is not the one that the task's token ids belong to."""
        if self.tokenizer is not None and self.tokenizer != vocabulary_digest(model):
            raise WrongModel(
                f"task {self.name!r}: made of the token ids of vocabulary {self.tokenizer[:12]}, {model.name} has "
                f"{vocabulary_digest(model)[:12]}; make the task again with this model",
                task=self.name,
                found=self.tokenizer,
                expected=vocabulary_digest(model),
            )

    def encode(self, model: Model) -> Batch:
        """The pairs as aligned token rows of `model`. Cost: tokenising, no forward pass.

        Raises Misaligned (naming the pair), TokenNotSingle, AnswersEqual, TokenizerUnfit, and WrongModel for a task of
        token ids that another tokenizer made.
        """
        self.require_vocabulary(model)
        return encode_pairs(self.pairs, metric_named(self.metric), self.roles, model)

    def sample(self, n: int, *, seed: int = 0) -> "Task":
        """`n` of the pairs (all, when there are fewer), spread over splits as they were, and over clusters evenly.

        Raises OutOfRange for n < 1.
        """
        kept = spread([pair.split for pair in self.pairs], [pair.cluster for pair in self.pairs], n, seed=seed)
        return replace(self, pairs=tuple(self.pairs[index] for index in kept))

    def save(self, path: Path | str) -> None:
        """Write the task as JSON lines (docs/formats/task.md); `load` gives back an equal one."""
        from cutaway.tasks import io  # pydantic takes a while to import

        header = io.Header(
            format=io.FORMAT,
            version=io.VERSION,
            name=self.name,
            description=self.description,
            metric=self.metric,
            roles=list(self.roles),
            seed=self.seed,
            tokenizer=self.tokenizer,
            n_pairs=len(self),
        )
        io.write(Path(path), header, self.pairs)

    @classmethod
    def load(cls, path: Path | str) -> "Task":
        """Read a task file. Raises BadTaskFile with line and reason; EmptyTask, AnswersEqual, UnknownName as such."""
        from cutaway.tasks import io

        header, pairs = io.read(Path(path))
        try:
            return cls(
                header.name,
                header.description,
                tuple(pairs),
                header.metric,
                tuple(header.roles),
                header.seed,
                header.tokenizer,
            )
        except (DataError, UnknownName) as error:
            line = error.fields.get("pair_idx", -1) + 2
            if type(error) is DataError:
                raise io.broken(Path(path), line, str(error)) from None
            raise type(error)(
                f"{path}, line {line}: {error}", **{**error.fields, "path": str(path), "line": line}
            ) from None

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[Given],
        name: str = "task",
        *,
        description: str = "",
        metric: str = "logit_diff",
        roles: Sequence[str] | None = None,
        seed: int = 0,
        model: Model | None = None,
    ) -> "Task":
        """A task from pairs as one writes them: (clean, corrupt, answer, foil[, cluster]), dictionaries, or Pairs.

        Ids, clusters and splits are filled in where none is named: pairs that share a prompt are one cluster, every
        other pair is its own, and whole clusters are dealt out to the splits. `roles`: None takes those that every pair
        has. `model`: only for token ids, the model whose vocabulary they belong to. Raises DataError, AnswersEqual.

        >>> Task.from_pairs([("The girl smiled.", "The boy smiled.", " She", " He")]).pairs[0].id
        'task-000'
        """
        made = build.pairs_of(pairs, name=name, seed=seed)
        return cls(
            name,
            description,
            made,
            metric,
            build.common_roles(made) if roles is None else tuple(roles),
            seed,
            None if model is None else vocabulary_digest(model),
        )

    @classmethod
    def from_csv(
        cls,
        path: Path | str,
        *,
        clean: str = "clean",
        corrupt: str = "corrupt",
        answer: str = "answer",
        foil: str = "foil",
        cluster: str | None = None,
        split: str | None = None,
        id: str | None = None,
        positions: Mapping[str, str] = MappingProxyType({}),
        corrupt_positions: Mapping[str, str] | None = None,
        name: str | None = None,
        description: str = "",
        metric: str = "logit_diff",
        seed: int = 0,
    ) -> "Task":
        """A task from the columns of a table: CSV, tab-separated, or JSON, plain or gzipped. A row is a pair.

        What no column is named for is filled in as in `from_pairs`. `positions` gives for each role the column that
        holds the words standing there in `clean` (`corrupt_positions`: in `corrupt`). Answers are text with their
        leading space. Raises BadTaskFile with the line and the column; AnswersEqual as such.
        """
        rows = read_rows(path)
        columns = {
            "clean": clean, "corrupt": corrupt, "answer": answer, "foil": foil,
            "cluster": cluster, "split": split, "id": id,
        }  # fmt: skip
        described = build.described_rows(rows, columns, positions, corrupt_positions)
        title = name or stem(path)
        return build.located(
            rows,
            lambda: cls(
                title,
                description,
                build.completed(described, name=title, seed=seed, rows=rows),
                metric,
                tuple(positions),
                seed,
            ),
        )

    @classmethod
    def from_jsonl(cls, path: Path | str, **columns: Any) -> "Task":
        """A task from JSON lines whose keys are named as the columns of `from_csv`, which does the work.

        A file in cutaway's own format is recognised by its header and read by `load`. Raises as `from_csv`, and
        UsageError where columns are named for such a file.
        """
        if not is_own(path):
            return cls.from_csv(path, **columns)
        if columns:
            raise UsageError(
                f"{path} is a cutaway task file, whose keys are fixed; read it by Task.load, without "
                f"{next(iter(columns))}="
            )
        return cls.load(path)

    def _check_copies(self) -> None:
        """A pair that is copied into another cluster, and so perhaps into another split, is no independent example."""
        seen: dict[object, Pair] = {}
        for index, pair in enumerate(self.pairs):
            content = (pair.clean, pair.corrupt, pair.as_prompt(pair.answer), pair.as_prompt(pair.foil))
            first = seen.setdefault(content, pair)
            if first.cluster != pair.cluster:
                raise self._wrong(
                    index,
                    f"pair {pair.id!r} (cluster {pair.cluster!r}, {pair.split}) has the prompts, answer and foil of "
                    f"pair {first.id!r} (cluster {first.cluster!r}, {first.split}); clusters are independent, so put "
                    "both into one, or leave one out",
                )

    def _check_kinds(self) -> None:
        for index, pair in enumerate(self.pairs):
            if pair.is_text != self.pairs[0].is_text:
                raise self._wrong(
                    index,
                    f"pair {pair.id!r} is {'text' if pair.is_text else 'token ids'} and the first is not; keep to one",
                )
        if self.pairs[0].is_text != (self.tokenizer is None):
            raise self._wrong(
                -1,
                f"tokenizer is {self.tokenizer!r}; pairs of token ids need the digest of their vocabulary "
                "(cutaway.tasks.vocabulary_digest(model)), pairs of text have none",
            )

    def _wrong(self, index: int, rule: str) -> DataError:
        return DataError(f"task {self.name!r}: {rule}", task=self.name, pair_idx=index)
