"""`cutaway lens`: the command gives the numbers of the Python that it prints."""

import json
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

import cutaway
from cutaway import lenses
from cutaway.cli import lens
from cutaway.cli.command import Command

app = typer.Typer()
app.add_typer(lens.app, name="lens")
MODEL = ["--model", "induction-2l"]


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["lens", *words])
    assert result.exit_code == code, result.output
    return result


def test_a_task_is_read_at_one_position(tmp_path: Path) -> None:
    out = tmp_path / "l.safetensors"
    found = json.loads(run("read", "induction", *MODEL, "--n", "12", "--json", "--out", str(out)).stdout)
    model = cutaway.load("induction-2l")
    own = lenses.logit_lens(model, cutaway.tasks.get("induction", model, n=12))
    assert [row["difference"] for row in found["rows"]] == [row["difference"] for row in own.table()]
    assert lenses.LogitLens.load(out, model).labels == own.labels


def test_a_prompt_is_read_everywhere_with_a_fitted_lens(tmp_path: Path) -> None:
    model = cutaway.load("induction-2l")
    words = model.strings([20, 21, 22, 23, 24])
    text = tmp_path / "t.txt"
    text.write_text("\n".join("".join(model.strings([20 + (i * j) % 30 for j in range(8)])) for i in range(1, 80)))
    fitted, page = tmp_path / "lens.safetensors", tmp_path / "p.html"
    said = run("fit-tuned", str(text), *MODEL, "--steps", "1", "--d-row", "6", "--out", str(fitted), "--json")
    assert {"divergence", "logit_lens"} <= set(json.loads(said.stdout)["rows"][0])
    prompt = "".join(words)
    result = run("read", prompt, *MODEL, "--lens", str(fitted), "--html", str(page))
    assert "tuned lens" in result.stdout
    assert "TunedLens.load" in result.stderr
    assert page.is_file()
    folder = tmp_path / "published"
    lenses.write_published(lenses.TunedLens.load(fitted, model), folder, model)
    assert "lens: tuned" in run("read", prompt, *MODEL, "--lens", str(folder)).stdout
    lines = run("fit-jacobian", str(text), *MODEL, "--skip-first", "0", "--d-row", "4", "--out", str(fitted)).stdout
    assert "prompts: " in lines
    assert "lens: jacobian" in run("read", prompt, *MODEL, "--lens", str(fitted)).stdout


def test_direct_contributions_name_the_induction_heads() -> None:
    found = json.loads(run("dla", "induction", *MODEL, "--n", "24", "--json").stdout)
    heads = [row["component"] for row in found["rows"] if row["component"].startswith("z.")]
    known = set(cutaway.zoo.truth("induction-2l").heads("induction"))
    assert set(heads[: len(known)]) == known
    assert found["largest_error"] < 1e-3 * abs(found["difference"])


def test_a_patchscope_has_its_null() -> None:
    model = cutaway.load("induction-2l")
    target = "".join(model.strings([30, 31, 32]))
    words = ["patchscope", "induction", *MODEL, "--n", "12", "--target", target, "--site", "resid_post.1"]
    (row,) = json.loads(run(*words, "--json").stdout)["rows"]
    assert row["lift"] > 0
    assert row["null_surprisal"] > row["surprisal"]
    assert "What is said of each state" in run(*words, "--generate", "2", "--nulls", "1").stdout


def test_wrong_requests_are_exit_2(tmp_path: Path) -> None:
    assert "it is one of" in run("dla", "induction", *MODEL, "--by", "layer", code=2).stderr
    assert "a task has its own" in run("read", "induction", *MODEL, "--answer", "x", code=2).stderr
    assert "--position belongs to a task" in run("read", "a b", *MODEL, "--position", "3", code=2).stderr
    assert "the prompt is empty" in run("read", " ", *MODEL, code=2).stderr
    assert "this is a folder" in run("read", "induction", *MODEL, "--out", str(tmp_path), code=2).stderr


def test_every_command_shows_its_errors() -> None:
    assert all(command.cls is Command for command in lens.app.registered_commands)
