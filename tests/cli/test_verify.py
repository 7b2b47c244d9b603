"""`cutaway verify` on a made-up report, whole and broken."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cutaway import report
from cutaway.cli.main import app
from tests.report import sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return report.write(tmp_path / "report", sample.study(), sample.artifacts(), sample.ledger_lines())


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, words)])


def test_a_report_that_holds(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("The report holds.\n")
    assert json.loads(run(folder, "--json").stdout)["holds"] is True


def test_a_changed_byte_is_named(folder: Path) -> None:
    page = folder / "report.html"
    page.write_text(page.read_text(encoding="utf-8").replace("supported", "Supported", 1), encoding="utf-8")
    result = run(folder)
    assert result.exit_code == 1
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("BROKEN")][:1] == ["report.html"]
    found = json.loads(run(folder, "--json").stdout)
    assert found["holds"] is False
    assert {one["part"] for one in found["findings"] if not one["holds"]} >= {"report.html"}


def test_a_folder_that_is_no_report_fails(tmp_path: Path) -> None:
    assert run(tmp_path).exit_code == 1


def test_no_folder_is_usage(tmp_path: Path) -> None:
    assert run(tmp_path / "none").exit_code == 2
