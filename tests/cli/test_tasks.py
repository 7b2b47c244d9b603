"""`cutaway tasks`: built-in ones and files, in the tokens of a model."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cutaway
from cutaway import tasks
from cutaway.cli.main import app


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
    text = run("show", "induction", "--n", "24", "--examples", "1")
    assert "24 pairs" in text
    assert text.count("\n  clean ") == text.count("\n  corrupt ") == 3
    found = json.loads(run("show", "induction", "--n", "24", "--json"))
    task = tasks.get("induction", cutaway.load("induction-2l"), n=24)
    assert found["digest"] == task.digest
    assert found["splits"] == task.splits
    assert len(found["pairs"]) == 24


def test_show_a_file(saved: Path) -> None:
    found = json.loads(run("show", str(saved), "--json"))
    assert found["digest"] == tasks.Task.load(saved).digest


def test_the_seed_decides() -> None:
    digests = {json.loads(run("show", "induction", "--n", "24", "--seed", seed, "--json"))["digest"] for seed in "001"}
    assert len(digests) == 2


def test_the_printed_python_does_the_same(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["induction", "--n", "24", "--seed", "5"], [str(saved)]):
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
        (["{saved}", "--n", "8"], "UsageError", 2),
        (["{broken}"], "BadTaskFile", 1),
    ],
)
def test_bad_input_is_one_message(saved: Path, tmp_path: Path, words: list[str], name: str, code: int) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(saved.read_text().replace('"split"', '"spilt"', 1))
    text = run("show", *(word.format(saved=saved, broken=broken) for word in words), code=code)
    assert text.splitlines()[-1].startswith(f"{name}: ")
