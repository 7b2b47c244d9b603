"""`cutaway trace`: where a fact is read out, from the command to what is shown and saved."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import cutaway
from cutaway.cli.command import Command
from cutaway.cli.trace import trace
from cutaway.patching import Trace
from cutaway.patching import trace as tracing

app = typer.Typer(pretty_exceptions_enable=False)
app.command("trace", cls=Command)(trace)


@app.callback()
def root() -> None:
    """The command as part of a group."""


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["trace", "facts", "-m", "babel", "--n", "24", "--samples", "2", *words])


def test_facts_are_drawn_and_saved(tmp_path: Path) -> None:
    file, page = tmp_path / "trace.safetensors", tmp_path / "trace.html"
    result = run("--kinds", "resid", "--out", str(file), "--html", str(page))
    assert result.exit_code == 0, result.stderr
    for words in (
        "Where the fact is carried",
        "What chance restores",
        "subject last",
        "resid_pre.1",
        "share of the total",
    ):
        assert words in result.stdout
    assert "best: resid_p" in result.stdout
    assert "Where the fact is carried" in page.read_text(encoding="utf-8")
    model = cutaway.load("babel")
    found = Trace.load(file, model)
    task = cutaway.tasks.get("facts", model, n=24, seed=0)
    again = tracing(model, task, kinds=["resid"], samples=2)
    assert found.table() == again.table()
    assert "trace(model, task, samples=2, kinds=['resid'])" in result.stderr


def test_severed_as_json_and_one_example() -> None:
    result = run("--severed", "mlp", "--no-null", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["severed"], found["samples"]) == ("mlp", 2)
    assert {row["place"] for row in found["rows"]} >= {"subject last", "end"}
    assert {row["chance"] for row in found["rows"]} == {None}
    result = run("--kinds", "mlp", "--no-null", "--example", "facts-000", "--window", "2")
    assert result.exit_code == 0, result.stderr
    assert "Where MLPs add the fact: facts-000" in result.stdout
    assert "mlp_out.0:2" in result.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--kinds", "residual"), "resid"),
        (("--severed", "heads"), "mlp"),
        (("--noise", "-1"), "from 0 on"),
        (("--noise", "0"), "nothing to restore"),
        (("--example", "facts-999"), "no such pair in the task"),
        (("--role", "object"), "object"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], says: str) -> None:
    result = run(*words)
    assert result.exit_code in (1, 2)
    assert says in result.stderr
