"""`cutaway attention`: scores of all heads, patterns of some."""

import json
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

import cutaway
from cutaway.cli.attention import attention
from cutaway.cli.command import Command

app = typer.Typer()
app.command("attention", cls=Command)(attention)


@app.callback()
def root() -> None:
    """A group, so that the command keeps its name."""


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["attention", *words, "--model", "induction-2l"])
    assert result.exit_code == code, result.output
    return result


def test_scores_name_the_known_heads(tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    found = json.loads(run("induction", "--n", "24", "--json", "--out", str(out)).stdout)["rows"]
    truth = cutaway.zoo.truth("induction-2l")
    for kind, role in (("previous", "previous_token"), ("induction", "induction")):
        best = max(found, key=lambda row, kind=kind: row[kind])
        assert best["head"].replace("pattern", "z") in truth.heads(role)
        assert best[kind] > 2 * best[f"{kind}_chance"]
    assert cutaway.lenses.HeadScores.load(out, cutaway.load("induction-2l")).labels[0] == found[0]["head"]


def test_patterns_of_a_prompt() -> None:
    model = cutaway.load("induction-2l")
    prompt = "".join(model.strings([20, 21, 20]))
    found = json.loads(run(prompt, "--head", "z.0.h3", "--json").stdout)["rows"]
    assert [row["query"] for row in found] == list(range(len(model.encode(prompt).row(0))))
    said = run(prompt, "--head", "z.0.h3")
    assert "Attention of pattern.0.h3" in said.stdout
    assert "attention_patterns(model, model.encode(" in said.stderr


def test_wrong_heads_are_exit_2() -> None:
    assert "query heads" in run("induction", "--head", "mlp_out.0", code=2).stderr
