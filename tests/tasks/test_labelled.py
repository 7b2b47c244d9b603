"""Labelled texts: what they refuse, splits, and the task that asks for the label."""

from dataclasses import replace

import pytest

from cutaway.errors import DataError, EmptyTask, OutOfRange, UnknownName, UsageError
from cutaway.tasks import Labelled, fit
from tests.tasks.vocabularies import loaded

ROWS = [(f"{name} {verb}.", int(verb == "smiled")) for name in ("Ann", "Bob", "Mary", "John", "The girl", "The boy")
        for verb in ("ran", "smiled")]  # fmt: skip
UNITS = [text.rsplit(" ", 1)[0] for text, _ in ROWS]


def texts(**options: object) -> Labelled:
    return Labelled.of("who", ROWS, ("sad", "glad"), **{"clusters": UNITS, **options})  # pyright: ignore[reportArgumentType]


def test_what_it_holds() -> None:
    found = texts(seed=2)
    assert len(found) == 12
    assert found.counts == {"sad": 6, "glad": 6}
    assert list(found)[1][:3] == ("Ann smiled.", 1, "Ann")
    parts = [found.split(name) for name in ("explore", "calibrate", "confirm")]
    assert [len(part) for part in parts] == [4, 2, 6]
    assert sorted(text for part in parts for text in part.texts) == sorted(found.texts)
    assert found.digest != texts(seed=3).digest
    assert found.digest == texts(seed=2).digest


def test_a_sample_takes_whole_clusters() -> None:
    found = texts().sample(6, seed=1)
    assert len(found) == 6
    assert len(set(found.clusters)) == 4, "one whole cluster and half of one in confirm"
    assert sum(found.clusters.count(cluster) == 2 for cluster in set(found.clusters)) == 2
    with pytest.raises(OutOfRange):
        texts().sample(0)


def test_equal_texts_share_a_cluster() -> None:
    found = Labelled.of("t", [("a b", 0), ("c d", 1), ("a b", 1)], ("x", "y"))
    assert found.clusters[0] == found.clusters[2] != found.clusters[1]


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"labels": (2, *(0,) * 11)}, DataError, r"text 0 'Ann ran.' has label 2; the classes are 0-1"),
        ({"labels": (0,)}, DataError, "differ in number"),
        ({"splits": ("explore", "confirm", *("explore",) * 10)}, DataError, "shares its text or its cluster"),
        ({"texts": ("Bob ran.", *(text for text, _ in ROWS[1:]))}, DataError, "shares its text or its cluster"),
        ({"texts": ("", *(text for text, _ in ROWS[1:]))}, DataError, "text 0 '' is empty"),
        ({"texts": ()}, EmptyTask, "no texts"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, object], kind: type, says: str) -> None:
    with pytest.raises(kind, match=says):
        replace(texts(), **change)  # pyright: ignore[reportArgumentType]


def test_a_split_that_is_not_there() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'confirm'"):
        texts().split("confrm")
    with pytest.raises(EmptyTask, match="none there"):
        replace(texts(), splits=("explore",) * 12).split("confirm")


def test_the_task_asks_for_the_label() -> None:
    found = texts()
    task = found.as_task("{text} That is", seed=5)
    assert len(task) == 12
    labels = dict(zip(found.texts, found.labels))
    words = {0: " sad", 1: " glad"}
    for pair, (text, label, _, split) in zip(task.pairs, found):
        assert pair.clean == f"{text} That is"
        assert str(pair.clean)[slice(*pair.positions["text"])] == text
        other = str(pair.corrupt).removesuffix(" That is")
        assert (pair.answer, pair.foil) == (words[label], words[labels[other]])
        assert other.rsplit(" ", 1)[0] == text.rsplit(" ", 1)[0], "the partner is of the same cluster"
        assert pair.split == split
    asked = found.as_task("{text}", [" He", " She"], model=loaded("byte_bpe"))
    assert len(fit(asked, loaded("byte_bpe")).task) == 12


def test_texts_of_one_class_are_coupled_across_clusters_inside_a_split() -> None:
    one = Labelled.of("t", [(f"word {n}", n % 2) for n in range(24)], ("x", "y"))
    task = one.as_task("{text} is")
    assert len(task) >= 20
    for prompt in {pair.clean for pair in task.pairs}:
        assert len({pair.split for pair in task.pairs if prompt in (pair.clean, pair.corrupt)}) == 1
    with pytest.raises(DataError, match="none of 3 rows has a counterpart"):
        Labelled.of("t", [("a", 0), ("b", 0), ("c", 0)], ("x", "y")).as_task()


@pytest.mark.parametrize(("template", "answers"), [("This is", None), ("{text} {text}", None), ("{text}", [" a"])])
def test_a_template_needs_the_text_once_and_an_answer_a_class(template: str, answers: list[str] | None) -> None:
    with pytest.raises(UsageError, match=r"it needs {text} once, and an answer for each of sad, glad"):
        texts().as_task(template, answers)
