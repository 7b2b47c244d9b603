"""`cutaway patch`: sites, positions, windows and sets, from the command to what is shown and saved."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import cutaway
from cutaway import zoo
from cutaway.cli.command import Command
from cutaway.cli.patch import parts, patch, where
from cutaway.errors import UsageError
from cutaway.patching import Effects, sweep

app = typer.Typer(pretty_exceptions_enable=False)
app.command("patch", cls=Command)(patch)


@app.callback()
def root() -> None:
    """The command as part of a group."""


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["patch", "induction", "-m", "induction-2l", "--n", "24", *words])


def test_json_file_and_page_hold_what_python_gives(tmp_path: Path) -> None:
    file, page = tmp_path / "sweep.safetensors", tmp_path / "sweep.html"
    result = run("--sites", "z.*.h*", "--positions", "end", "--json", "--out", str(file), "--html", str(page))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    model = cutaway.load("induction-2l")
    task = cutaway.tasks.get("induction", model, n=24, seed=0)
    effects = sweep(model, task, "z.*.h*", positions=["end"])
    assert [row["site"] for row in found["rows"]] == list(effects.labels)
    assert [row["effect"] for row in found["rows"]] == pytest.approx(effects.mean().tolist(), abs=1e-6)
    best = max(found["rows"], key=lambda row: row["share"])
    assert best["site"] == f"{zoo.truth('induction-2l').heads('induction')[0]}@end"
    assert Effects.load(file, model).labels == effects.labels
    assert "What brings the answer back" in page.read_text(encoding="utf-8")
    assert "sweep(model, task, ['z.*.h*'], positions=['end'], mode='denoise')" in result.stderr


def test_the_map_is_drawn_over_the_tasks_roles() -> None:
    result = run()
    assert result.exit_code == 0, result.stderr
    assert "What brings the answer back" in result.stdout
    assert "resid_post.1" in result.stdout
    assert "positions=task.roles" in result.stderr


def test_windows_sets_and_one_cell_by_example() -> None:
    result = run("--sites", "z.0.h1+z.1.h2,mlp_out.0", "--positions", "all", "--mode", "noise", "--cell", "mlp_out.0")
    assert result.exit_code == 0, result.stderr
    assert "z.0.h1 + z.1.h2" in result.stdout
    assert "mlp_out.0, example by example" in result.stdout
    result = run("--sites", "mlp_out.*", "--positions", "all", "--window", "2", "--json")
    assert [row["site"] for row in json.loads(result.stdout)["rows"]] == ["mlp_out.0:2"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--sites", "z.0.h1+"), "empty"),
        (("--positions", "sujet"), "these inputs name"),
        (("--mode", "denoize"), "denoise"),
        (("--window", "3"), "no 3 of the layers"),
        (("--out", "/"), "folder"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], says: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert says in result.stderr


def test_sites_and_positions_as_words() -> None:
    assert parts("z.0.h1,2, mlp_out.*") == ["z.0.h1,2", "mlp_out.*"]
    assert parts("z.0.h1+ z.1.h2") == [["z.0.h1", "z.1.h2"]]
    assert where("subject, -1,end") == ["subject", -1, "end"]
    assert where("each") == "each"
    assert where("all") is where(None) is None
    with pytest.raises(UsageError, match="empty"):
        where("end,")
