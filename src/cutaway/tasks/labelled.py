"""Labelled texts: what probes, directions and steering are fitted on. Texts with a class each, in clusters and splits.

A task asks a question about two prompts; labelled texts only say what each text is (true or false, positive or
negative). `as_task` asks a model for the label, so that the same data serve both.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from cutaway.artifacts import digest
from cutaway.errors import DataError, EmptyTask, UnknownName, UsageError, did_you_mean
from cutaway.models.model import Model
from cutaway.tasks.build import linked
from cutaway.tasks.counterpart import Item, counterparts, measure, task_of
from cutaway.tasks.pair import SPLITS, SplitName, assign_splits, spread
from cutaway.tasks.task import Task


@dataclass(frozen=True)
class Labelled:
    """Texts with a class each. Frozen; refuses what does not fit together, and one text in two clusters (DataError).

    >>> Labelled.of("size", [("An ant is large.", 0), ("A whale is large.", 1)], ("false", "true")).counts
    {'false': 1, 'true': 1}
    """

    name: str
    description: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    """Of each text the index of its class."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of their index."""
    clusters: tuple[str, ...]
    """Of each text its independent unit: its subject, question or document."""
    splits: tuple[SplitName, ...]
    seed: int | None = None
    """Seed that dealt the clusters out to the splits."""

    def __post_init__(self) -> None:
        if not self.texts:
            raise EmptyTask(f"labelled texts {self.name!r}: no texts; at least one is needed", name=self.name)
        counts = {len(self.texts), len(self.labels), len(self.clusters), len(self.splits)}
        if len(counts) != 1:
            raise DataError(f"labelled texts {self.name!r}: texts, labels, clusters and splits differ in number")
        home: dict[str, tuple[str, str]] = {}
        for index, (text, label, cluster, split) in enumerate(self):
            if not text:
                raise self._wrong(index, "is empty; leave it out")
            if not 0 <= label < len(self.classes):
                raise self._wrong(index, f"has label {label}; the classes are 0-{len(self.classes) - 1}")
            if split not in SPLITS:
                raise self._wrong(index, f"is in split {split!r}; splits are {', '.join(SPLITS)}")
            for key in (f"cluster {cluster}", f"text {text}"):
                first = home.setdefault(key, (cluster, split))
                if first != (cluster, split):
                    raise self._wrong(
                        index,
                        f"(cluster {cluster!r}, {split}) shares its text or its cluster with one in cluster "
                        f"{first[0]!r}, {first[1]}; splits are disjoint by cluster, and a text is in one",
                    )

    @classmethod
    def of(
        cls,
        name: str,
        rows: Iterable[tuple[str, int]],
        classes: Sequence[str],
        *,
        clusters: Sequence[str] | None = None,
        splits: Sequence[SplitName] | None = None,
        description: str = "",
        seed: int = 0,
    ) -> "Labelled":
        """Texts with labels; each its own cluster unless `clusters` names them; equal texts are in one.

        Without `splits`, whole clusters are dealt out to them by the seed.
        """
        pairs = list(rows)
        texts = tuple(text for text, _ in pairs)
        width = len(str(max(len(texts) - 1, 0)))
        given = [f"{index:0{width}d}" for index in range(len(texts))] if clusters is None else list(clusters)
        homes = tuple(linked(given, [(f"cluster {given[i]}", f"text {text}") for i, text in enumerate(texts)]))
        dealt = assign_splits(homes, seed=seed)
        where: tuple[SplitName, ...] = tuple(dealt[home] for home in homes) if splits is None else tuple(splits)
        return cls(name, description, texts, tuple(label for _, label in pairs), tuple(classes), homes, where, seed)

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[tuple[str, int, str, SplitName]]:
        return iter(zip(self.texts, self.labels, self.clusters, self.splits))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in it."""
        return digest(
            [self.name, self.description, self.texts, self.labels, self.classes, self.clusters, self.splits, self.seed]
        )

    @property
    def counts(self) -> dict[str, int]:
        """Texts of each class."""
        return {name: self.labels.count(index) for index, name in enumerate(self.classes)}

    def split(self, name: str) -> "Labelled":
        """The texts of one split. Raises UnknownName, or EmptyTask where the split has none."""
        if name not in SPLITS:
            raise UnknownName(f"split {name!r}: no such split.{did_you_mean(name, SPLITS)}", name=name)
        return self._take([index for index, split in enumerate(self.splits) if split == name])

    def sample(self, n: int, *, seed: int = 0) -> "Labelled":
        """`n` of the texts, spread over splits as they were, cluster by cluster. Raises OutOfRange for n < 1."""
        return self._take(spread(self.splits, self.clusters, n, seed=seed, whole=True))

    def as_task(
        self,
        template: str = "{text} This statement is",
        answers: Sequence[str] | None = None,
        *,
        model: Model | None = None,
        seed: int = 0,
        metric: str = "logit_diff",
    ) -> Task:
        """Ask for the label: the template's prompt, the class's word as the answer, and as corrupt a text of another
        class, of equal length where there is one (in tokens of `model`; without one in words).

        Position `text` is the last token of the text. `answers`: a word a class, with its leading space; None takes the
        classes' names. Texts without a counterpart are left out, and the description counts them. Raises UsageError
        for a template without {text}, DataError when no text has a counterpart.
        """
        words = [f" {name}" for name in self.classes] if answers is None else list(answers)
        if template.count("{text}") != 1 or len(words) != len(self.classes):
            raise UsageError(
                f"template {template!r} with {len(words)} answers: it needs {{text}} once, and an answer for each of "
                f"{', '.join(self.classes)}"
            )
        length, start = measure(model), template.index("{text}")
        prompts = [template.replace("{text}", text) for text in self.texts]
        partners, clusters = self._partners([length(prompt) for prompt in prompts], seed)
        described = [
            {
                "clean": prompts[i],
                "corrupt": prompts[j],
                "answer": words[self.labels[i]],
                "foil": words[self.labels[j]],
                "positions": {"text": (start, start + len(self.texts[i]))},
                "corrupt_positions": {"text": (start, start + len(self.texts[j]))},
                "cluster": clusters[i],
                "split": self.splits[i],
            }
            for i, j in enumerate(partners)
            if j is not None
        ]
        return task_of(
            described,
            f"{self.name}: {self.description} Asked as {template!r}.",
            len(self),
            name=self.name,
            metric=metric,
            seed=seed,
        )

    def _partners(self, sizes: Sequence[int], seed: int) -> tuple[list[int | None], list[str]]:
        """Counterparts inside each split: what is dealt out stays where it is."""
        partners: list[int | None] = [None] * len(self)
        clusters = list(self.clusters)
        for split in SPLITS:
            rows = [index for index, where in enumerate(self.splits) if where == split]
            items = [Item(self.texts[i], self.classes[self.labels[i]], self.clusters[i], sizes[i]) for i in rows]
            found, homes = counterparts(items, seed=seed)
            for place, i in enumerate(rows):
                other = found[place]
                partners[i] = None if other is None else rows[other]
                clusters[i] = homes[place]
        return partners, clusters

    def _take(self, kept: Sequence[int]) -> "Labelled":
        if not kept:
            raise EmptyTask(f"labelled texts {self.name!r}: none there; the splits are {set(self.splits)}")
        columns = {
            field: tuple(getattr(self, field)[index] for index in kept)
            for field in ("texts", "labels", "clusters", "splits")
        }
        return replace(self, **columns)

    def _wrong(self, index: int, rule: str) -> DataError:
        return DataError(
            f"labelled texts {self.name!r}: text {index} {self.texts[index][:60]!r} {rule}", name=self.name, row=index
        )
