"""What commands do with a result: files, JSON and text hold the same numbers."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cutaway.cli.deliver import check_targets, deliver
from cutaway.errors import UsageError
from cutaway.figures import Bars, Figure
from cutaway.viz.html import payload_of


class Fake:
    """A result of two cells."""

    def save(self, path: str | Path) -> str:
        Path(path).write_bytes(b"saved")
        return hashlib.sha256(b"saved").hexdigest()

    def table(self) -> list[dict[str, Any]]:
        return [{"site": "z.0.h1", "effect": 0.123456}, {"site": "z.0.h2", "effect": float("nan")}]

    def figures(self) -> tuple[Figure, ...]:
        return (Bars("Heads", "Each bar is a head.", "nat", ("z.0.h1",), (0.123456,)),)


def test_files_and_json_hold_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, html = tmp_path / "r.safetensors", tmp_path / "r.html"
    deliver(Fake(), title="Ablation", out=out, html=html, as_json=True, facts={"passes": 3})
    said = json.loads(capsys.readouterr().out)
    assert said["title"] == "Ablation"
    assert said["passes"] == 3
    assert said["rows"] == [{"site": "z.0.h1", "effect": 0.123456}, {"site": "z.0.h2", "effect": None}]
    assert said["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert payload_of(html.read_text(encoding="utf-8"))["figures"][0]["values"] == [0.123456]


def test_text_has_the_picture_the_facts_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver(Fake(), title="Ablation", out=tmp_path / "r.st", html=None, as_json=False, facts={"forward_passes": 3.0})
    said = capsys.readouterr().out
    assert "Each bar is a head." in said
    assert "forward passes: 3" in said
    assert ["z.0.h1", "0.1235"] in [line.split() for line in said.splitlines()]
    assert ["z.0.h2"] in [line.split() for line in said.splitlines()]
    assert f"Saved: {tmp_path / 'r.st'}" in said


def test_targets_that_cannot_be_written_are_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--out .*: this is a folder; give a file in it"):
        check_targets(tmp_path, None)
    with pytest.raises(UsageError, match=r"--html .*: the folder .*nowhere does not exist; make it first"):
        check_targets(None, tmp_path / "nowhere" / "page.html")
    check_targets(tmp_path / "a.safetensors", None)
