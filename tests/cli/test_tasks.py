"""`cutaway tasks`: built-in ones and files, in the tokens of a model."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cutaway
from cutaway import tasks, zoo
from cutaway.cli.main import app
from cutaway.errors import NoBehavior
from cutaway.loop.identify import behavior
from cutaway.loop.study import checked


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["tasks", *words])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task file."""
    path = tmp_path_factory.mktemp("tasks") / "mine.jsonl"
    tasks.get("induction", cutaway.load("induction-2l"), n=24, seed=3).save(path)
    return path


def test_list() -> None:
    assert {row["name"] for row in json.loads(run("list", "--json"))} == set(tasks.names())
    text = run("list")
    assert all(name in text and tasks.describe(name) in text for name in tasks.names())


def test_show_a_built_in_task() -> None:
    text = run("show", "induction", "--model", "induction-2l", "--n", "24", "--examples", "1")
    assert "24 pairs" in text
    assert text.count("\n  clean ") == text.count("\n  corrupt ") == 3
    found = json.loads(run("show", "induction", "--model", "induction-2l", "--n", "24", "--json"))
    task = tasks.get("induction", cutaway.load("induction-2l"), n=24)
    assert found["digest"] == task.digest
    assert found["splits"] == task.splits
    assert len(found["pairs"]) == 24


def test_positions_are_marked_in_the_tokens() -> None:
    words = ("show", "induction", "--model", "induction-2l", "--n", "24", "--examples", "1")
    text = run(*words)
    found = json.loads(run(*words, "--json"))
    (one, *_) = found["alignment"]
    assert len(found["alignment"]) == 3
    assert set(one["positions"]) == {"previous", "successor", "end"}
    tokens = one["clean"]
    assert one["positions"]["end"] == len(tokens) - 1
    assert tokens[one["positions"]["successor"]] == one["answer"][0]
    assert one["corrupt"][one["positions"]["successor"]] == one["foil"][0]
    strip = next(line for line in text.splitlines() if line.startswith("  clean ") and "metric" not in line)
    assert f"|{tokens[one['positions']['successor']]}{{successor}}|" in strip
    assert f"{tokens[-1]}{{end}}  ->  {one['answer'][0]}" in strip


def test_the_behavior_is_what_a_study_checks() -> None:
    model = cutaway.load("induction-2l")
    task = tasks.get("induction", model, n=48)
    found = json.loads(run("show", "induction", "--model", "induction-2l", "--n", "48", "--json"))["behavior"]
    shown = behavior(model, task.split("explore"))
    check = checked(shown, None)
    assert check.passed
    assert found["shown"] == "yes"
    assert (found["gap"]["value"], found["gap"]["low"], found["gap"]["high"]) == pytest.approx(
        (check.gap.value, check.gap.low, check.gap.high)
    )
    assert found["threshold"] == check.threshold
    assert found["accuracy"]["value"] == pytest.approx(check.accuracy)
    assert found["clean"]["low"] < found["clean"]["value"] < found["clean"]["high"]
    assert found["clean"]["value"] - found["corrupt"]["value"] == pytest.approx(found["gap"]["value"])
    assert found["n_pairs"] == task.splits["explore"]


def test_a_model_without_the_behavior(tmp_path: Path) -> None:
    model = cutaway.load("induction-2l")
    task = tasks.get("induction", model, n=48)
    turned = tuple(replace(pair, answer=pair.foil, foil=pair.answer) for pair in task.pairs)
    replace(task, pairs=turned).save(tmp_path / "turned.jsonl")
    text = run("show", str(tmp_path / "turned.jsonl"), "--model", "induction-2l")
    assert "Does induction-2l show it? no." in text
    assert "0% of the clean prompts are right" in text
    with pytest.raises(NoBehavior):
        cutaway.study(model, tasks.Task.load(tmp_path / "turned.jsonl"), out=tmp_path / "out")


def test_too_few_clusters_leave_it_unclear() -> None:
    words = ("show", "induction", "--model", "induction-2l", "--n", "6")
    assert "Does induction-2l show it? unclear." in run(*words)
    found = json.loads(run(*words, "--json"))["behavior"]
    assert "needs at least 6" in found["why"]
    assert "gap" not in found


def test_half_right_is_unclear(tmp_path: Path) -> None:
    model = cutaway.load("induction-2l")
    task = tasks.get("induction", model, n=48)
    mixed = tuple(
        replace(pair, answer=pair.foil, foil=pair.answer) if int(pair.id[-1]) % 2 else pair for pair in task.pairs
    )
    replace(task, pairs=mixed).save(tmp_path / "mixed.jsonl")
    found = json.loads(run("show", str(tmp_path / "mixed.jsonl"), "--model", "induction-2l", "--json"))["behavior"]
    assert found["shown"] == "unclear"
    assert found["accuracy"]["low"] < 0.5 < found["accuracy"]["high"]
    assert "There is nothing to explain" in found["why"]


def test_the_default_model_is_embedded() -> None:
    name = next(name for name in ("babel", "induction-2l") if name in zoo.names())
    found = json.loads(run("show", "induction", "--n", "24", "--json"))
    assert found["model"] == name


@pytest.fixture
def in_folder(tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def test_show_a_data_set(in_folder: Path) -> None:
    words = ("map", "pan", "key", "pig", "cat", "bag")
    triples = [(a, b, c) for a in words for b in words for c in words if len({a, b, c}) == 3]
    rows = [f"{a} {b} {a},{a} {c} {a}, {b}, {c}" for a, b, c in triples]
    (in_folder / "set.csv").write_text("\n".join(["clean,corrupt,answer,foil", *rows]) + "\n")
    options = ["--model", "induction-2l", "--n", "20", "--seed", "3", "--json"]
    result = CliRunner().invoke(app, ["tasks", "show", "set.csv", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["pairs"]) == 20
    scene: dict[str, object] = {}
    exec(result.stderr.split("The same in Python:")[1], scene)
    assert scene["task"].digest == found["digest"]  # pyright: ignore[reportAttributeAccessIssue]


def test_show_a_file(saved: Path) -> None:
    found = json.loads(run("show", str(saved), "--model", "induction-2l", "--json"))
    assert found["digest"] == tasks.Task.load(saved).digest


def test_the_seed_decides() -> None:
    digests = {json.loads(run("show", "induction", "--n", "24", "--seed", seed, "--json"))["digest"] for seed in "001"}
    assert len(digests) == 2


def test_the_printed_python_does_the_same(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ioi", "--n", "24", "--seed", "5"], [str(saved), "--model", "induction-2l"]):
        result = CliRunner().invoke(app, ["tasks", "show", *words, "--json"])
        code = result.stderr.split("The same in Python:")[1]
        scene: dict[str, object] = {}
        exec(code, scene)
        assert scene["task"].digest == json.loads(result.stdout)["digest"]


@pytest.mark.parametrize(
    ("words", "name", "code"),
    [
        (["inducton"], "UnknownName", 2),
        (["no-such.jsonl"], "UsageError", 2),
        (["no-such.csv.gz"], "UsageError", 2),
        (["{saved}", "--n", "8"], "UsageError", 2),
        (["{broken}"], "BadTaskFile", 1),
    ],
)
def test_bad_input_is_one_message(saved: Path, tmp_path: Path, words: list[str], name: str, code: int) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(saved.read_text().replace('"split"', '"spilt"', 1))
    text = run("show", *(word.format(saved=saved, broken=broken) for word in words), code=code)
    assert text.splitlines()[-1].startswith(f"{name}: ")
