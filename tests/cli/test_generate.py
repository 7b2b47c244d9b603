"""`cutaway generate` on the embedded language model: from the command to both texts, file, page and JSON."""

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import cutaway
from cutaway.cli.command import Command
from cutaway.cli.generate import generate
from cutaway.steering import Comparison, Steering, compare, difference
from cutaway.viz.html import payload_of

app = typer.Typer()
app.command("generate", cls=Command)(generate)
PROMPT, TO, FROM, SITE = "The capital of", "The song: lake,", "Anna is", "resid_post.2@new"
VECTOR = ["--to", TO, "--from", FROM, "--site", SITE, "--strength", "1.5", "--unit", "norm"]


def run(*words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--model", "babel", "--max-new-tokens", "6"])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One command with everything, for all tests that look at what it left."""
    folder = tmp_path_factory.mktemp("generate")
    files = ["--out", str(folder / "c.st"), "--html", str(folder / "c.html"), "--save-steering", str(folder / "v.st")]
    return folder, run(PROMPT, *VECTOR, *files, "--json")


def test_json_holds_both_texts(done: tuple[Path, Result]) -> None:
    folder, result = done
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    model = cutaway.load("babel")
    vector = difference(model, TO, FROM, SITE, strength=1.5, unit="norm", reference=[TO, FROM, PROMPT])
    wanted = compare(model, [PROMPT], [vector], max_new_tokens=6)
    assert found["rows"][0]["plain"] == wanted.plain[0] != wanted.steered[0] == found["rows"][0]["steered"]
    assert found["steering"] == [str(vector)]
    assert Comparison.load(folder / "c.st", model) == wanted
    page = payload_of((folder / "c.html").read_text(encoding="utf-8"))
    assert [token for token, _ in page["figures"][0]["rows"][0]] == list(wanted.tokens[0])


def test_the_text_is_shown_as_it_is_written(done: tuple[Path, Result]) -> None:
    row = json.loads(done[1].stdout)["rows"][0]
    assert f"plain: {row['plain']}\nsteered: {row['steered']}" in done[1].stderr


def test_the_python_that_it_prints_does_the_same(done: tuple[Path, Result]) -> None:
    code = done[1].stderr.split("The same in Python:")[1].split("\nplain:")[0]
    space: dict[str, object] = {}
    exec(re.sub(r"\n+$", "\n", code), space)
    assert json.loads(done[1].stdout)["rows"][0] == space["result"].table()[0]  # type: ignore[attr-defined]


def test_a_saved_vector_steers_again(done: tuple[Path, Result], tmp_path: Path) -> None:
    again = run(PROMPT, "--steer", str(done[0] / "v.st"))
    assert again.exit_code == 0, again.stderr
    row = json.loads(done[1].stdout)["rows"][0]
    assert row["steered"].strip() in again.stdout
    assert row["plain"].strip() in again.stdout
    other = Steering.load(done[0] / "v.st")
    wrong = tmp_path / "wrong.st"
    Steering(other.site, other.direction, cutaway.artifacts.Provenance("0" * 64, "", "0")).save(wrong)
    refused = run(PROMPT, "--steer", str(wrong))
    assert refused.exit_code == 1
    assert "WrongModel" in refused.stderr


def test_several_prompts_and_samples(done: tuple[Path, Result]) -> None:
    result = run(PROMPT, TO, "--temperature", "1", "--seed", "3", "--samples", "2", "--json")
    rows = json.loads(result.stdout)["rows"]
    assert [row["prompt"] for row in rows] == [PROMPT, PROMPT, TO, TO]
    assert all(row["plain"] == row["steered"] for row in rows)
    assert len({row["plain"] for row in rows[:2]}) == 2
    assert result.stdout == run(PROMPT, TO, "--temperature", "1", "--seed", "3", "--samples", "2", "--json").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", TO], "--from and --site missing"),
        (["--strength", "2"], "belong to --to, --from and --site"),
        (["--save-steering", "v.st"], "saves the vector of --to and --from"),
        (["--out", "/nowhere/at/all.st"], "does not exist; make it first"),
        (["--to", TO, "--from", TO, "--site", "resid_post.2"], "no direction between them"),
        (["--to", TO, "--from", FROM, "--site", "resid_post.99"], "4 layers"),
        (
            ["--to", TO, "--from", FROM, "--site", "resid_post.2", "--unit", "feet"],
            "unit='feet'; it is one of absolute",
        ),
        (["--top-k", "5"], "temperature=0 is greedy"),
        (["--temperature", "1"], "sampling needs seed="),
        (["--chat"], "no chat template"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str) -> None:
    result = run(PROMPT, *words)
    assert result.exit_code in (1, 2)
    assert message in result.stderr.replace("\n", " ")
