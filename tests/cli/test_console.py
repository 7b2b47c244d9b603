"""Where words go: results to stdout, the rest to stderr, colours only to a terminal that wants them."""

import pytest
from rich.console import Console

from cutaway.cli import console


def test_results_and_remarks_part_ways(capsys: pytest.CaptureFixture[str]) -> None:
    console.show("a result [1]")
    console.say("a remark [2]")
    console.python("import cutaway")
    console.emit({"n": 1, "path": ("é", None)})
    out, err = capsys.readouterr()
    assert out == 'a result [1]\n{\n  "n": 1,\n  "path": [\n    "é",\n    null\n  ]\n}\n'
    assert err == "a remark [2]\n\nThe same in Python:\n\nimport cutaway\n\n"


def test_a_long_line_is_not_folded_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("site", "what"), [("z.0", "w" * 150), ("[bold]q.0", "x")])
    out = capsys.readouterr().out.splitlines()
    assert [len(line.strip().split()) for line in out] == [2, 2, 2]
    assert out[2].startswith("[bold]q.0")


def test_steps_are_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress() as advance:
        for done in range(4):
            advance(done, 3, "sweep")
        advance(1, 2, "heads")
    err = capsys.readouterr().err
    assert err.startswith("sweep: 3 of 3 in ")
    assert "heads" not in err


def test_steps_are_bars_with_the_time_left_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_stderr", lambda: Console(stderr=True, force_terminal=True, width=100))
    with console.progress() as advance:
        advance(1, 3, "sweep")
        advance(3, 3, "sweep")
    err = capsys.readouterr().err
    assert "3/3" in err
    assert "left" in err


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for force, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("NO_COLOR", force) if force else monkeypatch.delenv("NO_COLOR", raising=False)
        console.say("red", style="red")
        assert ("\x1b[31m" in capsys.readouterr().err) == coloured
