"""`cutaway zoo`: training again and measuring again, on the smallest model and on recipes that take no time."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import zoo
from cutaway.cli.main import app
from cutaway.zoo import catalogue
from cutaway.zoo.train import finish, score

NAME = "induction-2l"
FIELDS = zoo.card(NAME).model_dump(exclude={"files", "name", "accuracy", "base"})


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["zoo", *words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A recipe that writes a card in no time, for two models that are there and one that is a relative."""
    found = SimpleNamespace(asked=[], right=96)

    def make(name: str, folder: Path, *, seed: Any = None, progress: Any = None, device: str = "cpu") -> zoo.Card:
        found.asked.append((name, folder, seed, device, torch.get_num_threads()))
        progress(3, 3, f"training {name}")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        return finish(folder, **FIELDS, name=name, accuracy=[score("b", "w", found.right, 100, 0.95)])

    def card(name: str) -> zoo.Card:
        base = "second" if name == "first" else None
        return zoo.Card(**FIELDS, name=name, base=base, accuracy=(), files={})

    found.make = make
    monkeypatch.setattr(catalogue, "recipe", lambda name: found)
    for where in (zoo, catalogue):
        monkeypatch.setattr(where, "recipe", lambda name: found)
        monkeypatch.setattr(where, "card", card)
        monkeypatch.setattr(where, "names", lambda: ("first", "second"))
    return found


def test_check_measures_again_and_says_the_same_as_the_card() -> None:
    (found,) = json.loads(run("check", NAME, "--json").stdout)
    assert found["holds"]
    assert (found["name"], found["changed"], found["missed"]) == (NAME, [], 0)
    assert [zoo.Score(**each) for each in found["accuracy"]] == list(zoo.card(NAME).accuracy)


def test_check_prints_a_table_and_fails_when_a_target_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    low = score("induction", "some rows", 90, 100, 0.95)
    free = score("else", "other rows", 10, 100)
    for scores, code in (((low, free), 1), ((free,), 0)):
        one = zoo.Check(NAME, scores, ())
        monkeypatch.setattr(zoo, "check", lambda name, one=one: one)
        text = run("check", NAME, code=code).stdout
        assert ("MISSED" in text) == bool(code)
        assert "10.0%" in text
        assert f"targets missed {code}" in text
    assert "zoo.check(name) for name in" in run("check", NAME).stderr


def test_check_fails_when_a_file_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "check", lambda name: zoo.Check(name, (), ("model.safetensors",)))
    text = run("check", code=1).stdout
    assert f"{NAME}: not the files of its card: model.safetensors" in text
    assert f"models with changed files {len(zoo.names())}" in text


def test_train_makes_the_model_below_out(recipe: SimpleNamespace, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    result = run("train", "first", "--out", str(tmp_path), "--seed", "4", "--threads", "2", "--device", "meta")
    assert recipe.asked == [("first", tmp_path / "first", 4, "meta", 2)]
    assert torch.get_num_threads() == threads
    assert "96.0%" in result.stdout
    assert "training first: 3 of 3" in result.stderr
    assert "not the shipped files" in result.stderr
    assert "zoo.recipe(name).make(name, Path(" in result.stderr
    assert "seed=4, device='meta')" in result.stderr


def test_train_fails_when_a_target_is_missed_and_after_all_are_made(recipe: SimpleNamespace, tmp_path: Path) -> None:
    recipe.right = 94
    result = run("train", "--all", "--out", str(tmp_path), "--json", code=1)
    found = json.loads(result.stdout)
    assert [(each["name"], each["missed"]) for each in found] == [("second", 1), ("first", 1)]  # the base first
    assert all((tmp_path / name / "card.json").exists() for name in ("first", "second"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "NAME or --all: give one of them; the models are "),
        (["train", NAME, "--all"], "NAME or --all: give one of them"),
        (["train", "induction2l"], "Did you mean 'induction-2l'?"),
        (["check", "induction2l"], "Did you mean 'induction-2l'?"),
    ],
)
def test_what_cannot_be_meant_is_usage(words: list[str], message: str) -> None:
    assert message in run(*words, code=2).stderr


def test_train_writes_over_nothing(recipe: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    run("train", "second", "--out", str(tmp_path))
    (tmp_path / "first" / "model.safetensors").write_text("mine")
    assert (
        "holds files already; remove it, or give another --out"
        in run("train", "--all", "--out", str(tmp_path), code=2).stderr
    )
    assert (tmp_path / "first" / "model.safetensors").read_text() == "mine"
    assert len(recipe.asked) == 1
