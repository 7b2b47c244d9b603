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
        assert card["known"] not in line
    assert {card["name"]: card["n_bytes"] for card in cards}["induction-2l"] > 400_000


def test_show_says_what_is_known_of_a_model() -> None:
    card = json.loads(run("show", "induction-2l", "--json"))
    text = run("show", "induction-2l")
    assert text.startswith(f"induction-2l: {card['summary']}")
    assert card["known"] in text
    assert card["limits"] in text
    assert CliRunner().invoke(app, ["models", "show", "induction-9l"]).exit_code == 2


def test_audit_sweeps_over_types() -> None:
    found = json.loads(run("audit", "--type", "gptj", "--type", "vit", "--json"))
    rows = {row["model_type"]: row for row in found["types"]}
    assert [rows[name]["status"] for name in ("gptj", "vit")] == ["exact", "exact"]
    assert (rows["gptj"]["decomposed"], rows["gptj"]["patterns"], rows["gptj"]["softmaxes"]) == (2, 2, 2)
    assert found["summary"]["loaded and bit-exact"] == 1
    assert "gptj" in run("audit", "--type", "gptj")
    for words in ((), ("induction-2l", "--all-types"), ("--type", "gptjj")):
        assert CliRunner().invoke(app, ["models", "audit", *words]).exit_code == 2


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
