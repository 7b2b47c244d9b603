"""What holds for every importer, whatever its shape."""

import gzip
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from cutaway.errors import BadTaskFile, UsageError
from cutaway.tasks import Labelled, Pair, Task, fit, importers, read, read_task
from tests.tasks.importers.files import FILES, ROWS, lines, put, put_ravel
from tests.tasks.vocabularies import loaded, model_of, word_level

TASKS: dict[str, Callable[[Path, int], Task]] = {
    "counterfactuals": lambda p, s: importers.counterfactuals(put(p, "counterfactuals.csv"), seed=s),
    "counterfactuals_hard": lambda p, s: importers.counterfactuals(
        put(p, "counterfactuals.jsonl"), corrupt="corrupted_hard", seed=s
    ),
    "agreement": lambda p, s: importers.counterfactuals(put(p, "agreement.jsonl"), seed=s),
    "blimp_one_prefix": lambda p, s: importers.blimp_one_prefix(put(p, "blimp.jsonl"), seed=s),
    "statements": lambda p, s: importers.statements(put(p, "statements.csv"), seed=s).as_task(seed=s),
    "behaviors_spoken": lambda p, s: importers.behaviors(put(p, "behaviors_spoken.jsonl"), seed=s),
    "behaviors_listed": lambda p, s: importers.behaviors(put(p, "behaviors_listed.jsonl"), seed=s),
    "relation": lambda p, s: importers.relation(put(p, "relation.json"), seed=s),
    "known_facts": lambda p, s: importers.known_facts(put(p, "facts.jsonl"), seed=s),
    "ravel": lambda p, s: importers.ravel(put_ravel(p), "animal", "Sound", seed=s),
    "word_pairs": lambda p, s: importers.word_pairs(put(p, "words.json"), n_shots=1, seed=s),
    "word_pairs_labels": lambda p, s: importers.word_pairs(put(p, "words.json"), n_shots=2, corrupt="labels", seed=s),
    "ioi_prompts": lambda p, s: importers.ioi_prompts(put(p, "prompts.jsonl"), seed=s),
    "ioi_templates": lambda p, s: importers.ioi_templates(put(p, "templates.json"), n=8, seed=s),
    "winobias": lambda p, s: importers.winobias(put(p, "coreference.txt"), seed=s),
    "winogenerated": lambda p, s: importers.winogenerated(put(p, "blanks.jsonl"), seed=s),
}
EVERY = pytest.mark.parametrize("name", list(TASKS))


@EVERY
def test_clean_and_corrupt_differ_and_stay_in_one_split(name: str, tmp_path: Path) -> None:
    task = TASKS[name](tmp_path, 0)
    where: dict[object, set[str]] = defaultdict(set)
    for pair in task.pairs:
        assert pair.clean != pair.corrupt
        for prompt in (pair.clean, pair.corrupt):
            where[prompt].add(pair.split)
    assert all(len(splits) == 1 for splits in where.values())


@EVERY
def test_the_foil_is_right_where_the_corrupt_prompt_is_asked_for_itself(name: str, tmp_path: Path) -> None:
    task = TASKS[name](tmp_path, 0)
    right: dict[object, set[object]] = defaultdict(set)
    for pair in task.pairs:
        right[pair.clean].add(pair.answer)
    asked = [pair for pair in task.pairs if pair.corrupt in right]
    assert all(pair.foil in right[pair.corrupt] for pair in asked)
    assert all(pair.foil not in right[pair.clean] for pair in task.pairs)
    if name in ("agreement", "relation", "statements", "behaviors_spoken", "blimp_one_prefix"):
        assert len(asked) == len(task)


@EVERY
def test_the_seed_decides_and_the_same_seed_gives_the_same(name: str, tmp_path: Path) -> None:
    assert TASKS[name](tmp_path, 0) == TASKS[name](tmp_path, 0)
    assert len({TASKS[name](tmp_path, seed).digest for seed in range(3)}) == 3


@EVERY
def test_positions_stand_on_what_they_name(name: str, tmp_path: Path) -> None:
    task = TASKS[name](tmp_path, 0)
    for pair in task.pairs:
        assert pair.corrupt_positions is None or set(pair.corrupt_positions) == set(pair.positions)
        for prompt, spans in ((pair.clean, pair.positions), (pair.corrupt, pair.corrupt_positions or {})):
            for start, stop in spans.values():
                words = str(prompt)[start:stop]
                assert words == words.strip()
                assert not (str(prompt) + " ")[stop].isalnum()


@EVERY
def test_some_pairs_fit_a_tokenizer(name: str, tmp_path: Path) -> None:
    task = TASKS[name](tmp_path, 0)
    texts = [str(text) for pair in task.pairs for text in (pair.clean, pair.corrupt, pair.answer, pair.foil)]
    model = model_of(word_level(sorted(set(re.findall(r"\w+|[^\w\s]+", " ".join(texts))))))
    found = fit(task, model, least=1)
    assert len(found.task) + len(found.dropped) == found.total
    assert len(found.task) > found.total / 2
    assert found.task.encode(model).n == len(found.task)


@pytest.mark.parametrize("name", list(ROWS))
def test_files_are_recognised_with_all_their_rows(name: str, tmp_path: Path) -> None:
    found = read(put(tmp_path, name))
    assert len(found) == ROWS[name]
    assert found.name == name.split(".")[0]
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(FILES[name].encode()))
    assert read(packed).digest == found.digest


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("templates.json",)])
def test_a_file_that_was_damaged_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    text = FILES[name]
    half = text[: len(text) * 2 // 3].rstrip("\n} ]\"'.")
    with pytest.raises(BadTaskFile) as caught:
        read(put(tmp_path, name, half))
    assert caught.value.line == half.count("\n") + 1 or name == "questions.csv"
    assert str(caught.value).startswith(f"{tmp_path / name}, line ")


def test_a_file_of_no_known_shape_lists_the_shapes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,colour\nx,y\n")
    with pytest.raises(BadTaskFile, match=r"columns are prompt, colour, .*blimp \(sentence_good, sentence_bad\)"):
        read(tmp_path / "a.csv")


def test_a_file_of_two_shapes_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("statement,text,label\nx,y,1\n")
    with pytest.raises(BadTaskFile, match=r"fits statements and labelled \(columns statement, text, label\)"):
        read(tmp_path / "a.csv")


def test_a_task_file_is_read_as_it_stands(tmp_path: Path) -> None:
    task = Task("mine", "", (Pair("The girl ran.", "The boy ran.", " She", " He", id="0"),))
    task.save(tmp_path / "mine.jsonl")
    assert read(tmp_path / "mine.jsonl") == task
    assert read_task(tmp_path / "mine.jsonl", loaded("byte_bpe")) == task
    with pytest.raises(UsageError, match="its pairs are what they are"):
        read_task(tmp_path / "mine.jsonl", loaded("byte_bpe"), n=1)


def test_every_file_becomes_a_task_that_a_model_encodes(tmp_path: Path) -> None:
    model = loaded("byte_bpe")
    assert isinstance(read(put(tmp_path, "texts.jsonl")), Labelled)
    for name in ("prompts.jsonl", "questions.csv"):
        task = read_task(put(tmp_path, name), model, n=6)
        assert task.encode(model).n == 6
    rows = [
        {"text": f"The {who} and the {other} {verb}.", "label": label}
        for who in ("girl", "boy", "man")
        for other in ("girl", "boy", "man", "park")
        for label, verb in enumerate(("ran", "smiled"))
    ]
    task = read_task(put(tmp_path, "a.jsonl", lines(rows)), model)
    assert (task.pairs[0].answer, task.pairs[0].foil) == (" 0", " 1")
    assert task.encode(model).n == len(task) > 12
