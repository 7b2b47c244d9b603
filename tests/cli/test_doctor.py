"""`cutaway doctor`: healthy here, and exact about what is not."""

import json
from importlib import metadata

import pytest
from typer.testing import CliRunner

from cutaway.cli import doctor
from cutaway.cli.doctor import Check
from cutaway.cli.main import app


def test_this_environment_is_healthy() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 0, found
    names = {check["name"] for check in found["checks"]}
    assert {"python", "cutaway", "torch", "transformers", "device", "working directory", "model induction-2l"} <= names
    assert "verified" in next(check["found"] for check in found["checks"] if check["name"] == "model induction-2l")


@pytest.mark.parametrize(("needed", "code", "word"), [(True, 1, "To mend: pip this"), (False, 0, "Optional: pip this")])
def test_what_is_missing_comes_with_its_line(
    monkeypatch: pytest.MonkeyPatch, needed: bool, code: int, word: str
) -> None:
    monkeypatch.setattr(doctor, "LOOKS", (lambda: [Check("torch", False, "too old", "pip this", needed)],))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code
    assert word in result.stdout


def test_versions_are_compared() -> None:
    here = metadata.version("numpy")
    assert doctor._package("numpy", f">={here}").ok
    old = doctor._package("numpy", ">=999")
    assert (old.ok, old.fix) == (False, "python -m pip install 'numpy>=999'")
    assert not doctor._package("no-such-package-anywhere", ">=1").ok
