"""`cutaway path`: paths, the map of edges, direct and total effects, from the command to what is shown and saved."""

import json
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import cutaway
from cutaway import zoo
from cutaway.cli.command import Command
from cutaway.cli.path import nodes, path
from cutaway.patching.edges import Direct, Edges, direct, edges
from cutaway.patching.paths import paths

app = typer.Typer(pretty_exceptions_enable=False)
app.command("path", cls=Command)(path)


@app.callback()
def root() -> None:
    """The command as part of a group."""


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["path", "induction", "-m", "induction-2l", "--n", "12", *words])


@cache
def task() -> tuple[cutaway.Model, cutaway.Task]:
    model = cutaway.load("induction-2l")
    return model, cutaway.tasks.get("induction", model, n=12, seed=0)


def test_a_path_as_json_and_as_a_file(tmp_path: Path) -> None:
    (previous,), (induction,) = (zoo.truth("induction-2l").heads(role) for role in ("previous_token", "induction"))
    key = induction.replace("z", "k", 1)
    words = ("--from", "z.0.h*", "--to", "logits", "--through", key, "--freeze", "heads+mlps", "--mode", "zero")
    file = tmp_path / "path.safetensors"
    result = run(*words, "--json", "--out", str(file))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["method"] == "zero, heads+mlps frozen"
    assert [row["sender"] for row in found["rows"]] == [f"z.0.h{head}" for head in range(4)]
    assert {row["receiver"] for row in found["rows"]} == {f"{key} -> logits"}
    best = max(found["rows"], key=lambda row: row["share"])
    assert best["sender"] == previous
    model, pairs = task()
    effects = paths(model, pairs, "z.0.h*", "logits", through=[key], frozen="heads+mlps", mode="zero")
    assert [row["effect"] for row in found["rows"]] == pytest.approx(effects.mean().tolist(), abs=1e-6)
    assert Edges.load(file, model).labels == effects.labels
    line = "cutaway.patching.paths(model, task, ['z.0.h*'], ['logits'], mode='zero', frozen='heads+mlps', through="
    assert f"{line}[['{key}']])" in result.stderr.replace("\n", "")


def test_the_map_of_edges_is_shown(tmp_path: Path) -> None:
    page = tmp_path / "edges.html"
    result = run("--edges", "--from", "embed,z.1.h*", "--to", "v.1.h0, logits", "--html", str(page))
    assert result.exit_code == 0, result.stderr
    assert "embed" in result.stdout
    assert "v.1.h0" in result.stdout
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    model, pairs = task()
    found = edges(model, pairs, ["embed", "z.1.h*"], ["v.1.h0", "logits"])
    lines = [line for line in result.stdout.splitlines() if line.lstrip().startswith(("embed ", "z.1.h"))]
    assert len([line for line in lines if " nat " in line]) == len(found)


def test_edges_at_positions() -> None:
    result = run("--edges", "--from", "embed", "--to", "v.1.h0", "--positions", "successor,-1", "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert [row["receiver"] for row in rows] == ["v.1.h0@successor", "v.1.h0@-1"]
    assert abs(rows[0]["effect"]) > 1
    assert rows[1]["effect"] == 0


def test_direct_beside_total(tmp_path: Path) -> None:
    file = tmp_path / "direct.safetensors"
    result = run("--direct", "--json", "--out", str(file))
    assert result.exit_code == 0, result.stderr
    rows = {row["component"]: row for row in json.loads(result.stdout)["rows"]}
    (induction,) = zoo.truth("induction-2l").heads("induction")
    model, pairs = task()
    effects = direct(model, pairs)
    assert set(rows) == set(effects.components)
    assert rows[induction]["direct_effect"] > 10
    assert rows[induction]["direct_effect"] == pytest.approx(
        effects.select(f"{induction} -> logits").mean().item(), abs=1e-5
    )
    assert Direct.load(file, model).labels == effects.labels


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "logits", "--freeze", "heads"], "--from is missing"),
        (["--from", "embed", "--to", "logits"], "--freeze is missing"),
        (["--from", "embed", "--to", "logits", "--freeze", "mlps"], "heads+mlps"),
        (["--from", "embed", "--to", "logits", "--freeze", "heads", "--positions", "end"], "goes with --edges"),
        (["--edges", "--freeze", "heads"], "does not go with --edges"),
        (["--edges", "--through", "z.1.h0"], "does not go with --edges"),
        (["--direct", "--to", "logits"], "does not go with --direct"),
        (["--edges", "--direct"], "one of them at a time"),
        (["--from", " , embed", "--to", "logits", "--freeze", "heads"], "nodes"),
        (["--from", "z.1.h0", "--to", "q.1.h0", "--freeze", "heads"], "comes before it"),
    ],
)
def test_wrong_calls_are_usage(words: list[str], says: str) -> None:
    result = run(*words)
    assert result.exit_code == 2, result.stderr
    assert says in result.stderr


def test_commas_separate_nodes_but_not_the_numbers_of_one() -> None:
    assert nodes("z.0.h1,2,mlp_out.0, embed") == ["z.0.h1,2", "mlp_out.0", "embed"]
    assert nodes("k.1.h0@3,4,logits@end") == ["k.1.h0@3,4", "logits@end"]
