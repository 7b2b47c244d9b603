"""`cutaway study` on the embedded model, its scrambled twin, and a file: from the command to the report."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cutaway
from cutaway import zoo
from cutaway.cli.main import app

WORDS = ["study", "induction", "--model", "induction-2l", "--n", "48"]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One study, for all tests that look at what it left."""
    folder = tmp_path_factory.mktemp("study") / "report"
    return folder, CliRunner().invoke(app, [*WORDS, "--out", str(folder), "--json"])


def test_json_gives_the_report_and_the_verdicts(studied: tuple[Path, Result]) -> None:
    folder, result = studied
    found = json.loads(result.stdout)
    assert result.exit_code == 0, result.stderr
    assert Path(found["report"]) == folder
    assert Path(found["html"]).is_file()
    assert {"supported", "refuted"} <= set(found["verdicts"].values())
    recorded = {card.sentence: card.verdict for card in cutaway.report.load(folder).study.claims}
    assert found["verdicts"] == recorded


def test_steps_are_told_on_stderr(studied: tuple[Path, Result]) -> None:
    _, result = studied
    assert "residual stream: " in result.stderr
    assert "cutaway.study(model, task, out=" in result.stderr


def test_it_verifies_and_goes_on_from_what_is_there(studied: tuple[Path, Result]) -> None:
    folder, first = studied
    assert CliRunner().invoke(app, ["verify", str(folder)]).exit_code == 0
    again = CliRunner().invoke(app, [*WORDS, "--out", str(folder)])
    assert again.exit_code == 0, again.stderr
    assert "(kept from before)" in again.stderr
    assert str(folder / "report.html") in again.stdout.replace("\n", "")
    assert all(claim in again.stdout for claim in json.loads(first.stdout)["verdicts"])


def test_no_behavior_is_exit_3(tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    model = cutaway.load("induction-2l")
    zoo.scrambled(model.module, seed=0).save_pretrained(twin)
    model.tokenizer.save_pretrained(twin)
    result = CliRunner().invoke(app, ["study", "induction", "--model", str(twin), "--out", str(tmp_path / "report")])
    assert result.exit_code == 3, result.stderr
    assert result.stderr.splitlines()[-1].startswith("NoBehavior: ")
    assert not (tmp_path / "report").exists()


def test_a_task_file_is_studied_as_the_task_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    cutaway.tasks.get("induction", cutaway.load("induction-2l"), n=6).save(path)
    result = CliRunner().invoke(app, ["study", str(path), "--model", "induction-2l", "--out", str(tmp_path / "report")])
    assert "TooFewClusters" in result.stderr
    assert result.exit_code == 1
