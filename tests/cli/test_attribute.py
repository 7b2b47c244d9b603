"""`cutaway attribute` on embedded models: tokens and parts, as a picture, as JSON, saved, and what it refuses."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import cutaway
from cutaway.attribution import TokenScores
from cutaway.cli.attribute import attribute
from cutaway.cli.command import Command
from cutaway.patching.gradient_scores import GradientScores

app = typer.Typer()
app.command("attribute", cls=Command)(attribute)


@app.callback()
def _root() -> None:
    """So that the command keeps its name."""


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["attribute", *words])


def test_a_prompt_is_shaded_and_its_python_gives_the_same(tmp_path: Path) -> None:
    model = cutaway.load("induction-2l")
    text = model.tokenizer.decode([20, 31, 42, 20])
    words = (text, "-m", "induction-2l", "--method", "occlusion", "--out", str(tmp_path / "a"))
    result = run(*words, "--json", "--html", str(tmp_path / "page.html"))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    saved = TokenScores.load(tmp_path / "a", model)
    assert [row["token"] for row in found["rows"]] == list(saved.tokens[0])
    assert [row["score"] for row in found["rows"]] == pytest.approx(saved.scores[0].tolist())
    assert "Attribution to tokens" in (tmp_path / "page.html").read_text(encoding="utf-8")
    code = result.stderr[result.stderr.index("import cutaway") :].split("\n\nresult")[0]
    names: dict[str, object] = {}
    exec(code.split("attribution:")[0].strip(), names)
    again = names["result"]
    assert isinstance(again, TokenScores)
    assert again.scores[0].tolist() == pytest.approx(saved.scores[0].tolist())
    shown = run(*words)
    assert shown.exit_code == 0, shown.stderr
    assert "value - baseline" in shown.stdout


def test_a_task_has_its_answers_its_counterfactuals_and_its_clusters() -> None:
    words = ("induction", "-m", "induction-2l", "--n", "3", "--baseline", "counterfactual", "--faithfulness", "--json")
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["target"] == "the answer over the foil"
    assert found["baseline"] == "counterfactual"
    assert {row["row"] for row in found["rows"]} == set(range(3))
    orders = {(row["measure"], row["removal"], row["order"]) for row in found["faithfulness"]}
    assert len(orders) == 12
    assert "trust = attribution.faithfulness" in result.stderr


def test_parts_come_with_their_error(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    words = ("induction", "-m", "induction-2l", "--parts", "heads,mlps", "--n", "8", "--check", "5", "-o", str(path))
    result = run(*words, "--method", "ig", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["agreement"].startswith("5 of ")
    assert "add up to its exact effect" in found["completeness"]
    scores = GradientScores.load(path, cutaway.load("induction-2l"))
    assert [row["site"] for row in found["rows"]] == [row["site"] for row in scores.table()]
    assert {row["site"].split(".")[0] for row in found["rows"]} == {"z", "mlp_out"}
    shown = run(*words)
    assert shown.exit_code == 0, shown.stderr
    assert "patched for real: Spearman" in shown.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("some words", "--parts", "heads"), "is no task"),
        (("induction", "--parts", "head"), "heads, mlps, neurons"),
        (("induction", "--parts", "heads", "--baseline", "mean"), "--baseline belongs to tokens"),
        (("induction", "--parts", "heads", "--faithfulness"), "--faithfulness belongs to tokens"),
        (("induction", "--answer", "x"), "a task has its own"),
        (("some words", "--positions", "end"), "--positions belongs to --parts"),
        (("induction", "--method", "atp"), "method='atp'"),
        (("induction", "--out", "no/such/folder/file"), "does not exist"),
    ],
)
def test_words_that_do_not_fit_together_are_refused(words: tuple[str, ...], says: str) -> None:
    result = run(*words, "-m", "induction-2l")
    assert result.exit_code == 2
    assert says in result.stderr.replace("\n", " ")
