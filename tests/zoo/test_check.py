"""Measuring a shipped model again: targets that are missed and files that are not the card's are seen."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cutaway import zoo
from cutaway.zoo import catalogue
from cutaway.zoo.train import score

NAME = "induction-2l"


def test_a_shipped_model_holds_and_is_measured_as_its_card_says() -> None:
    found = zoo.check(NAME)
    assert found.holds
    assert found.scores == zoo.card(NAME).accuracy
    assert found.scores


def test_a_missed_target_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    low = score("induction", "some rows", 90, 100, target=0.95)
    free = score("induction", "other rows", 10, 100)
    recipe = SimpleNamespace(evaluate=lambda name, module: (low, free))
    monkeypatch.setattr(catalogue, "recipe", lambda name: recipe)
    found = zoo.check(NAME)
    assert found.missed == (low,)
    assert not found.holds


def test_changed_missing_and_added_files_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / NAME
    shutil.copytree(zoo.path(NAME), folder)
    monkeypatch.setattr(catalogue, "path", lambda name: folder)
    assert zoo.check(NAME).holds
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n")
    (folder / "generation_config.json").unlink()
    (folder / "more.txt").write_text("")
    found = zoo.check(NAME)
    assert found.changed == ("config.json", "generation_config.json", "more.txt")
    assert not found.holds
