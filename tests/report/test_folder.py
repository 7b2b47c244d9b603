"""Writing and reading a report: complete, repeatable, and whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cutaway import report
from cutaway.errors import BrokenEvidence, UsageError
from cutaway.report import folder as folders
from cutaway.report.schema import Manifest, StudyReport
from tests.report import sample


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return report.write(tmp_path / "report", sample.study(), sample.artifacts(), sample.ledger_lines())


def test_the_folder_is_complete(written: Path) -> None:
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    top = {name for name in names if "/" not in name}
    assert top == {"report.json", "report.html", "claims.jsonl", "environment.json"}
    entries = report.load(written).manifest.artifacts
    assert {entry.path for entry in entries} == names - top
    assert {entry.name for entry in entries} == set(sample.artifacts())
    assert all(entry.path == f"artifacts/{entry.sha256}.{entry.name.rsplit('.')[-1]}" for entry in entries)


def test_what_is_read_is_what_was_written(written: Path) -> None:
    found = report.load(written)
    assert found.study == sample.study()
    assert found.artifact("effects/heads.csv") == sample.artifacts()["effects/heads.csv"]
    with pytest.raises(UsageError, match=r"effects/heads\.csv"):
        found.artifact("effects/head.csv")


def test_equal_studies_give_equal_bytes(written: Path, tmp_path: Path) -> None:
    lines = (written / "claims.jsonl").read_text(encoding="utf-8").splitlines()
    again = report.write(tmp_path / "again", sample.study(), sample.artifacts(), lines)
    for path in written.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(written)).read_bytes(), path


def test_the_schema_goes_around() -> None:
    study = sample.study()
    text = study.model_dump_json()
    assert StudyReport.model_validate_json(text) == study
    assert StudyReport.model_validate(json.loads(text)) == study


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("title", ""),
        ("unknown", 1),
        ("behavior.threshold", float("nan")),
        ("behavior.accuracy", 1.2),
        ("behavior.clean", [1.0]),
        ("head_map.values", [[1.0]]),
        ("head_map.rows", []),
        ("model.digest", "abc"),
        ("model.n_layers", "12"),
        ("examples.0.differing", [99]),
        ("examples.0.corrupt", ["<s>"]),
        ("claims.0.verdict", "proven"),
        ("claims.1.id", "carriers"),
        ("attention.0.examples.0.weights", [[1.0]]),
        ("behavior.gap.low", 99.0),
    ],
)
def test_what_is_not_a_report_is_refused(place: str, value: Any) -> None:
    data = sample.study().model_dump(mode="json")
    StudyReport.model_validate(data)
    *above, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    inner: Any = data
    for key in above:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(ValidationError):
        StudyReport.model_validate(data)


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("stage", ["render", "write_bytes", "_move"])
def test_an_interruption_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_before: bool, stage: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    lines = sample.ledger_lines()
    if there_before:
        report.write(place / "report", sample.study(title="The earlier one"), sample.artifacts(), lines)
    owner = folders.page if stage == "render" else folders
    calls = 0

    real = getattr(owner, stage)

    def stop(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if stage != "write_bytes" or calls == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(owner, stage, stop)
    with pytest.raises(KeyboardInterrupt):
        report.write(place / "report", sample.study(), sample.artifacts(), lines)
    assert calls == (3 if stage == "write_bytes" else 1)
    assert [path.name for path in place.iterdir()] == (["report"] if there_before else [])
    if there_before:
        assert report.load(place / "report").study.title == "The earlier one"


def test_an_interrupted_exchange_puts_the_earlier_report_back(
    written: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = Path.rename

    def stop(self: Path, target: Path) -> Path:
        if target == written and ".old." not in str(self):
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        report.write(written, sample.study(title="The later one"), sample.artifacts(), [])
    assert report.load(written).study == sample.study()
    assert {path.name for path in tmp_path.iterdir()} == before


def test_an_earlier_report_is_replaced(written: Path) -> None:
    report.write(written, sample.study(claims=False, title="The later one"), {}, [])
    assert report.load(written).study.title == "The later one"
    assert not (written / "artifacts").exists()
    assert [path.name for path in written.parent.iterdir() if path.name.startswith(".")] == []


def test_other_files_are_not_lost(written: Path, tmp_path: Path) -> None:
    (written / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        report.write(written, sample.study(), sample.artifacts(), [])
    with pytest.raises(UsageError, match="a file stands there"):
        report.write(written / "report.json", sample.study(), sample.artifacts(), [])
    assert (written / "thesis.tex").read_text() == "years of work"


def test_a_verdict_needs_its_raw_values(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'claims/carriers\.json' is not among the artifacts"):
        report.write(tmp_path / "report", sample.study(), {}, [])
    assert list(tmp_path.iterdir()) == []


def test_a_page_too_large_names_its_largest_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_PAGE_BYTES", 2**18)
    report.write(tmp_path / "small", sample.study(), sample.artifacts(), [])
    long = ["a"] * 300
    heads = [
        {
            "site": "pattern.0.h0",
            "sentence": "Looks everywhere.",
            "examples": [{"id": "long", "tokens": long, "weights": [[1 / 300] * 300] * 300}],
        }
    ]
    with pytest.raises(UsageError, match="'attention'"):
        report.write(tmp_path / "report", sample.study(claims=False, attention=heads), {}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record.update(version=2), "version 2"),
        (lambda record: record.update(format="notes"), "'notes'"),
        (lambda record: record["study"].update(title="Another"), "digest"),
        (lambda record: record["study"]["behavior"].update(accuracy=7), r"study\.behavior\.accuracy"),
        (lambda record: record.pop("files"), "files"),
    ],
)
def test_a_changed_manifest_is_refused(written: Path, change: Any, says: str) -> None:
    record = json.loads((written / "report.json").read_text())
    change(record)
    (written / "report.json").write_text(json.dumps(record))
    with pytest.raises(BrokenEvidence, match=says):
        report.load(written)


def test_no_report_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BrokenEvidence, match=r"report\.json"):
        report.load(tmp_path / "nowhere")
    (tmp_path / "report.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BrokenEvidence, match="JSON"):
        report.load(tmp_path)


def test_the_manifest_says_which_version_it_is(written: Path) -> None:
    record = json.loads((written / "report.json").read_text())
    assert (record["format"], record["version"]) == ("cutaway-report", 1)
    assert Manifest.model_validate_json(json.dumps(record)).study.title == sample.study().title
