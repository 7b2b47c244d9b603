"""Verifying a report: an honest one holds, and whatever is changed in it is named."""

import json
import shutil
from copy import deepcopy as copy_of
from pathlib import Path
from typing import Any

import pytest

from cutaway import report
from cutaway.artifacts import canonical, digest
from cutaway.errors import BrokenEvidence
from cutaway.report import folder as folders
from cutaway.report import page
from cutaway.report.schema import StudyReport
from tests.report import sample


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("original")
    return report.write(place / "report", sample.study(), sample.artifacts(), sample.ledger_lines())


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "report"))


def broken(folder: Path) -> list[str]:
    return [finding.name for finding in report.verify(folder).broken]


def test_an_honest_report_holds(original: Path) -> None:
    found = report.verify(original)
    assert found.holds, found.broken
    found.require()
    names = [finding.name for finding in found.findings]
    assert {"report.json", "report.html", "claims.jsonl", "behavior", "claim carriers", "claim decoy"} <= set(names)
    assert {card.verdict for card in report.load(original).study.claims} == {"supported", "refuted", "inconclusive"}


def test_a_report_without_claims_holds(tmp_path: Path) -> None:
    assert broken(report.write(tmp_path / "report", sample.study(claims=False), {}, [])) == []


def flip(path: Path, place: int) -> None:
    """Change one byte to another printable one."""
    content = bytearray(path.read_bytes())
    content[place] = ord("x") if content[place] != ord("x") else ord("y")
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["report.json", "report.html", "claims.jsonl", "environment.json"])
def test_one_byte_of_a_file_is_named(copy: Path, name: str, share: float) -> None:
    size = (copy / name).stat().st_size
    flip(copy / name, min(size - 1, int(share * size)))
    assert broken(copy)[0] == name
    with pytest.raises(BrokenEvidence, match=name):
        report.verify(copy).require()


def test_one_byte_of_an_artifact_is_named(copy: Path) -> None:
    for entry in report.load(copy).manifest.artifacts:
        before = (copy / entry.path).read_bytes()
        flip(copy / entry.path, entry.n_bytes // 2)
        assert broken(copy)[0] == f"artifacts/{entry.name}"
        (copy / entry.path).write_bytes(before)
    assert broken(copy) == []


@pytest.mark.parametrize("name", ["report.json", "report.html", "claims.jsonl", "environment.json"])
def test_white_space_is_a_change_too(copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes() + b"\n")
    assert broken(copy)[0] == name


@pytest.mark.parametrize("name", ["report.json", "report.html", "claims.jsonl", "environment.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert broken(copy)[0] == name


def test_a_missing_artifact_is_named(copy: Path) -> None:
    entry = report.load(copy).manifest.artifacts[0]
    (copy / entry.path).unlink()
    assert broken(copy)[:2] == [f"artifacts/{entry.name}", "claim carriers"]


def test_an_added_file_is_named(copy: Path) -> None:
    (copy / "artifacts" / "extra.json").write_text("{}")
    assert broken(copy) == ["folder"]
    assert "extra.json" in report.verify(copy).broken[0].detail


def rewrite(copy: Path, change: Any, *, files: dict[str, bytes] | None = None) -> None:
    """Forge: change the study's data and make every hash in report.json, and the page, fit again."""
    data = json.loads((copy / "report.json").read_text())
    change(data["study"])
    study = StudyReport.model_validate(data["study"])
    artifacts = {entry["name"]: (copy / entry["path"]).read_bytes() for entry in data["artifacts"]} | (files or {})
    lines = (copy / "claims.jsonl").read_text().splitlines()
    report.write(copy, study, artifacts, lines)


def test_the_forger_of_these_tests_can_write_an_honest_report(copy: Path) -> None:
    rewrite(copy, lambda study: None)
    assert broken(copy) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda study: study["claims"][1].update(verdict="supported"), "claim decoy"),
        (lambda study: study["claims"][1].update(sentence="Head 2.5 does it all."), "claim decoy"),
        (lambda study: study["claims"][0]["predictions"][0].update(minimum=0.1), "claim carriers"),
        (lambda study: study["claims"][0]["predictions"][1]["estimate"].update(value=0.9), "claim carriers"),
        (lambda study: study["claims"][0]["predictions"][0]["controls"].pop(), "claim carriers"),
        (lambda study: study["claims"][2]["worst"].pop(), "claim early-mlps"),
        (lambda study: study["claims"][2].update(search=1), "claim early-mlps"),
        (lambda study: study["claims"][2].update(plan="f" * 64), "claim early-mlps"),
        (lambda study: study["behavior"].update(passed=False), "behavior"),
        (lambda study: study["behavior"]["clean"].__setitem__(3, 9.0), "behavior"),
        (lambda study: study["behavior"]["gap"].update(low=4.9), "behavior"),
    ],
)
def test_a_forged_study_does_not_follow_from_its_raw_values(copy: Path, change: Any, named: str) -> None:
    rewrite(copy, change)
    assert [name for name in broken(copy) if name != "claims"] == [named]


def test_forged_raw_values_do_not_stand_in_the_ledger(copy: Path) -> None:
    forged = copy_of(sample.results()["decoy"])
    forged["predictions"][0]["values"] = [value + 3.0 for value in forged["predictions"][0]["values"]]
    card = report.claim_card("decoy", forged, artifact="claims/decoy.json")
    assert card.verdict == "supported"

    def change(study: dict[str, Any]) -> None:
        study["claims"][1] = card.model_dump(mode="json")

    rewrite(copy, change, files={"claims/decoy.json": canonical(forged).encode()})
    found = report.verify(copy).broken
    assert [finding.name for finding in found] == ["claim decoy"]
    assert "claims.jsonl" in found[0].detail


def relist(copy: Path, name: str) -> None:
    """Forge: make report.json list the present hash of a file."""
    manifest = report.load(copy).manifest
    files = manifest.files | {name: digest((copy / name).read_bytes())}
    draft = manifest.model_copy(update={"files": files})
    signed = draft.model_copy(update={"digest": folders.manifest_digest(draft)})
    (copy / "report.json").write_text(folders.as_text(signed.model_dump(mode="json")), encoding="utf-8")


def test_a_ledger_without_an_entry_is_named(copy: Path) -> None:
    lines = (copy / "claims.jsonl").read_text().splitlines(keepends=True)
    (copy / "claims.jsonl").write_text("".join(lines[:3] + lines[4:]))
    relist(copy, "claims.jsonl")
    assert broken(copy)[0] == "claims.jsonl"
    assert "entry 4" in report.verify(copy).broken[0].detail


def test_a_ledger_that_ends_early_lacks_the_result(copy: Path) -> None:
    lines = (copy / "claims.jsonl").read_text().splitlines(keepends=True)
    (copy / "claims.jsonl").write_text("".join(lines[:-1]))
    relist(copy, "claims.jsonl")
    assert broken(copy) == ["claim early-mlps"]
    assert "no result of plan" in report.verify(copy).broken[0].detail


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Two heads in layers", "Six heads in layers", "data in the page"),
        ("needs no network", "needs the network", "not the page"),
    ],
)
def test_an_edited_page_is_named_even_with_its_hash(copy: Path, old: str, new: str, says: str) -> None:
    path = copy / "report.html"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    relist(copy, "report.html")
    found = report.verify(copy).broken
    assert [finding.name for finding in found] == ["report.html"]
    assert says in found[0].detail


def test_a_page_of_another_version_is_compared_by_its_data(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "renderer", lambda: "f" * 64)
    found = report.verify(copy)
    assert found.holds
    assert any("another version" in finding.detail for finding in found.findings)


def test_findings_are_a_table(copy: Path) -> None:
    flip(copy / "environment.json", 20)
    rows = report.verify(copy).table()
    assert {row["part"] for row in rows if not row["holds"]} == {"environment.json"}
