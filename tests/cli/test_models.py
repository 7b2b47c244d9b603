"""`cutaway models` on an embedded model and on a folder."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cutaway
from cutaway.cli.main import app
from tests.families import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a Hugging Face folder, without a tokenizer."""
    place = tmp_path_factory.mktemp("models") / "tiny-gemma"
    tiny("gemma2").save_pretrained(place)
    return place


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["models", *words])
    assert result.exit_code == code, result.output
    return result.stdout


def test_list_names_what_load_takes() -> None:
    cards = json.loads(run("list", "--json"))
    assert [card["name"] for card in cards] == cutaway.models.embedded_names()
    lines = run("list").splitlines()
    assert len(lines) == 1 + len(cards)
    for card, line in zip(cards, lines[1:]):
        assert line.split()[:3] == [card["name"], f"{card['sizes']['n_parameters']:,}", f"{card['n_bytes']:,}"]
        assert all(score["behavior"] in line for score in card["accuracy"])
        assert card["summary"] in line
        assert card["known"] in line
    assert {card["name"]: card["n_bytes"] for card in cards}["induction-2l"] > 400_000


def test_sites_by_name_and_by_folder(folder: Path) -> None:
    for name in ("induction-2l", str(folder)):
        text = run("sites", name)
        assert "n_layers" in text.splitlines()[0]
        assert "verified" not in text
        kinds = [line.split()[0] for line in text.splitlines()[2:]]
        assert {"embed", "resid_pre", "pattern", "mlp_write", "logits"} <= set(kinds)


def test_audit_says_what_holds_and_why_not(folder: Path) -> None:
    found = json.loads(run("audit", str(folder), "--json"))
    model = cutaway.load(str(folder))
    assert found["digest"] == model.digest
    assert found["sizes"]["n_kv_heads"] == 2
    state = {row["site"]: row for row in found["sites"]}
    assert set(state) == {str(site) for site in model.body.sites()}
    assert state["resid_post.1"]["state"] == "verified"
    assert state["router.0"]["state"] == "refused"
    assert state["router.0"]["reason"] in run("audit", str(folder))


def test_layers_are_written_short() -> None:
    from cutaway.cli.models import _span

    assert _span([None]) == ""
    assert _span([0, 1, 2, 3]) == "0-3"
    assert _span([0, 2, 4]) == "0,2,4"
    assert _span([4]) == "4"


def test_an_incomplete_folder_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = CliRunner().invoke(app, ["models", "audit", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("ModelIncomplete: ")
