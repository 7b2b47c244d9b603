"""`cutaway ablate`: what replaces a part, and what is lost, from the command to what is shown and saved."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import cutaway
from cutaway import zoo
from cutaway.cli.ablate import ablate
from cutaway.cli.command import Command
from cutaway.patching import Effects
from cutaway.patching import ablate as ablation

app = typer.Typer(pretty_exceptions_enable=False)
app.command("ablate", cls=Command)(ablate)


@app.callback()
def root() -> None:
    """The command as part of a group."""


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["ablate", "induction", "-m", "induction-2l", "--n", "24", *words])


def test_json_and_file_hold_what_python_gives(tmp_path: Path) -> None:
    file = tmp_path / "ablation.safetensors"
    result = run("--sites", "z.*.h*", "--value", "resample", "--draws", "2", "--json", "--out", str(file))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    model = cutaway.load("induction-2l")
    task = cutaway.tasks.get("induction", model, n=24, seed=0)
    effects = ablation(model, task, "z.*.h*", value="resample", draws=2)
    assert [row["effect"] for row in found["rows"]] == pytest.approx(effects.mean().tolist(), abs=1e-6)
    assert all("draw_sd" in row for row in found["rows"])
    truth = zoo.truth("induction-2l")
    needed = sorted(found["rows"], key=lambda row: -row["share"])[:2]
    assert {row["site"] for row in needed} == {*truth.heads("previous_token"), *truth.heads("induction")}
    back = Effects.load(file, model)
    assert back.draws is not None
    assert "ablate(model, task, ['z.*.h*'], value='resample', draws=2)" in result.stderr


def test_heads_and_mlps_are_drawn(tmp_path: Path) -> None:
    page = tmp_path / "ablation.html"
    result = run("--value", "zero", "--html", str(page))
    assert result.exit_code == 0, result.stderr
    assert "layer by head" in result.stdout
    assert "What is lost without each part" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--value", "meen"), "mean"),
        (("--value", "zero", "--draws", "3"), "not drawn"),
        (("--value", "zero", "--scale", "3"), "size of noise"),
        (("--on", "dirty"), "corrupt"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], says: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert says in result.stderr
