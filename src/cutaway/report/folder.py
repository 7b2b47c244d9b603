"""A report as a folder: written whole or not at all, and read back.

    report/
      report.json        manifest: the study's data, and the hash of every file
      report.html        the page, drawn from report.json
      claims.jsonl       the ledger's entries, hash-chained
      environment.json   where the study ran
      artifacts/<sha256>.<extension>

Format: docs/formats/report.md.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cutaway.artifacts import digest, write_bytes
from cutaway.errors import BrokenEvidence, UsageError, did_you_mean
from cutaway.report import page
from cutaway.report.schema import FORMAT, SCHEMA_VERSION, ArtifactEntry, Manifest, StudyReport

MANIFEST = "report.json"
PAGE = "report.html"
LEDGER = "claims.jsonl"
ENVIRONMENT = "environment.json"
ARTIFACTS = "artifacts"
MAX_PAGE_BYTES = 10 * 2**20
"""A page beyond this opens slowly; larger tables belong into artifacts."""


@dataclass(frozen=True)
class Report:
    """A report that was read back."""

    folder: Path
    manifest: Manifest

    @property
    def study(self) -> StudyReport:
        """What the page shows."""
        return self.manifest.study

    def artifact(self, name: str) -> bytes:
        """Bytes of an artifact, checked against their hash. Raises UsageError for an unknown name, BrokenEvidence."""
        entries = {entry.name: entry for entry in self.manifest.artifacts}
        if name not in entries:
            raise UsageError(f"report {self.folder} has no artifact {name!r}.{did_you_mean(name, entries)}", name=name)
        return _checked(self.folder, entries[name].path, entries[name].sha256)


def write(folder: str | Path, study: StudyReport, artifacts: Mapping[str, bytes], ledger_lines: Iterable[str]) -> Path:
    """Write a report; returns its folder. An earlier report in that place is replaced at the end, in one move.

    An interruption leaves what was there before. Raises UsageError when a claim's result is not among the artifacts,
    when the folder holds files that are no report's, or when the page would be larger than 10 MiB.

    Args:
        artifacts: raw data by name; the ending of the name becomes the file's.
        ledger_lines: lines of the ledger's export, in order.
    """
    folder = Path(folder)
    require_room(folder)
    _require_results(study, artifacts)
    entries = tuple(_entry(name, content) for name, content in sorted(artifacts.items()))
    text = page.render(study, entries)
    _require_small(text, study)
    files = {
        PAGE: text.encode("utf-8"),
        LEDGER: "".join(line.rstrip("\n") + "\n" for line in ledger_lines).encode("utf-8"),
        ENVIRONMENT: as_text(study.environment.model_dump(mode="json")).encode("utf-8"),
    }
    manifest = _manifest(study, entries, {name: digest(content) for name, content in files.items()})
    files[MANIFEST] = as_text(manifest.model_dump(mode="json")).encode("utf-8")
    files |= {entry.path: artifacts[entry.name] for entry in entries}
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, content in files.items():
            write_bytes(staged / name, content)
        staged.chmod(0o755)
        _move(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def load(folder: str | Path) -> Report:
    """Read a report. Only `report.json` is checked, against its own digest; `verify` checks the rest.

    Raises BrokenEvidence when there is none, when it was changed, or when its version is not known here.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise _broken(path, f"no such file; a report is a folder with a {MANIFEST}") from None
    except (ValueError, OSError) as error:
        raise _broken(path, f"it cannot be read as JSON ({error})") from None
    _require_version(path, record)
    try:
        manifest = Manifest.model_validate_json(json.dumps(record))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _broken(path, f"field {place}: {first['msg']}") from None
    if manifest_digest(manifest) != manifest.digest:
        raise _broken(path, "its content no longer matches its digest: it was changed")
    return Report(folder, manifest)


def manifest_digest(manifest: Manifest) -> str:
    """SHA-256 of the canonical JSON of all fields but the digest itself."""
    record = manifest.model_dump(mode="json", exclude={"digest"})
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return digest(text.encode("utf-8"))


def as_text(value: Any) -> str:
    """JSON as it is written into a report: sorted keys, two spaces, one line end."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _manifest(study: StudyReport, entries: tuple[ArtifactEntry, ...], files: dict[str, str]) -> Manifest:
    draft = Manifest(study=study, artifacts=entries, files=files, renderer=page.renderer(), digest="0" * 64)
    return draft.model_copy(update={"digest": manifest_digest(draft)})


def _entry(name: str, content: bytes) -> ArtifactEntry:
    ending = re.search(r"\.([A-Za-z0-9]{1,16})$", name)
    found = digest(content)
    path = f"{ARTIFACTS}/{found}.{ending[1].lower() if ending else 'bin'}"
    return ArtifactEntry(name=name, path=path, sha256=found, n_bytes=len(content))


def _move(staged: Path, folder: Path) -> None:
    """Put a finished folder in its place; the earlier one stays until the new one is there."""
    if not folder.exists():
        staged.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    try:
        folder.rename(aside / "report")
        try:
            staged.rename(folder)
        except BaseException:
            (aside / "report").rename(folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_room(folder: Path) -> None:
    """Refuse to replace anything but an earlier report."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder}: a file stands there; choose another place for the report", path=str(folder))
    own = {MANIFEST, PAGE, LEDGER, ENVIRONMENT, ARTIFACTS}
    other = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if other:
        raise UsageError(
            f"{folder}: it holds {other[0]!r}, which is no part of a report and would be lost; choose an empty folder",
            path=str(folder),
        )


def _require_results(study: StudyReport, artifacts: Mapping[str, bytes]) -> None:
    for claim in study.claims:
        if claim.result not in artifacts:
            raise UsageError(
                f"claim {claim.id!r}: its result {claim.result!r} is not among the artifacts; a verdict needs its raw "
                f"values.{did_you_mean(claim.result, artifacts)}",
                name=claim.result,
            )


def _require_small(text: str, study: StudyReport) -> None:
    size = len(text.encode("utf-8"))
    if size <= MAX_PAGE_BYTES:
        return
    sizes = {name: len(json.dumps(value)) for name, value in study.model_dump(mode="json").items()}
    largest = max(sizes, key=lambda name: sizes[name])
    raise UsageError(
        f"the page would have {size / 2**20:.1f} MiB, at most {MAX_PAGE_BYTES // 2**20} are allowed; most of it is "
        f"{largest!r}: show fewer examples there and give the whole as an artifact",
        section=largest,
    )


def _require_version(path: Path, record: Any) -> None:
    found = (record.get("format"), record.get("version")) if isinstance(record, dict) else (None, None)
    if found != (FORMAT, SCHEMA_VERSION):
        raise _broken(
            path,
            f"format {found[0]!r} version {found[1]!r}; this cutaway reads {FORMAT!r} version {SCHEMA_VERSION}",
        )


def _checked(folder: Path, name: str, sha256: str) -> bytes:
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError:
        raise _broken(path, "it is missing") from None
    if digest(content) != sha256:
        raise _broken(path, "its bytes no longer match their hash: it was changed")
    return content


def _broken(path: Path, reason: str) -> BrokenEvidence:
    return BrokenEvidence(f"{path}: {reason}. Restore it, or write the report again", path=str(path))
