"""Whether a report is what was written, and whether its verdicts follow from its raw values; offline, with no model.

In this order: report.json against its own digest and form; every file against its hash; the page against the data; the
ledger's chain; each claim's card against the verdict that its raw values give now; the behavior check likewise; then
model, task, maps, headline and the number of claims against the artifacts and the ledger (sections.py). What this can
and cannot see: docs/formats/report.md.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.artifacts import digest
from cutaway.claims.ledger import Entry, read_jsonl
from cutaway.errors import BrokenEvidence, CutawayError
from cutaway.report import page, sections
from cutaway.report.cards import behavior_check, claim_card
from cutaway.report.compare import require, require_equal
from cutaway.report.folder import ARTIFACTS, ENVIRONMENT, LEDGER, MANIFEST, PAGE, Report, as_text, load
from cutaway.report.schema import ClaimCard
from cutaway.viz import html


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    name: str
    """The file, entry or section: `report.html`, `artifacts/<name>`, `claims.jsonl`, `claim <id>`, `head_map`..."""
    holds: bool
    detail: str
    """What was found."""


@dataclass(frozen=True)
class Verification:
    """All that was checked of one report."""

    folder: Path
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """True when nothing is broken."""
        return all(finding.holds for finding in self.findings)

    @property
    def broken(self) -> tuple[Finding, ...]:
        """What does not hold."""
        return tuple(finding for finding in self.findings if not finding.holds)

    def table(self) -> list[dict[str, Any]]:
        """One row a finding."""
        return [{"part": one.name, "holds": one.holds, "detail": one.detail} for one in self.findings]

    def require(self) -> None:
        """Raise BrokenEvidence that names what broke first, and how many parts did."""
        if self.holds:
            return
        first = self.broken[0]
        more = f" ({len(self.broken) - 1} more parts are broken)" if len(self.broken) > 1 else ""
        raise BrokenEvidence(
            f"{self.folder}: {first.name}: {first.detail}{more}. Restore the file, or write the report again",
            name=first.name,
            path=str(self.folder),
        )


def verify(folder: str | Path) -> Verification:
    """Check a report. Nothing is raised for broken evidence: it is among the findings, and `require()` raises it."""
    folder = Path(folder)
    try:
        report = load(folder)
    except BrokenEvidence as error:
        return Verification(folder, (Finding(MANIFEST, False, str(error)),))
    return Verification(folder, tuple(_findings(report)))


def _findings(report: Report) -> Iterator[Finding]:
    yield _finding(MANIFEST, lambda: _check_manifest(report))
    for name, sha256 in sorted(report.manifest.files.items()):
        yield _finding(name, lambda name=name, sha256=sha256: _check_bytes(report, name, sha256))
    for entry in report.manifest.artifacts:
        yield _finding(f"{ARTIFACTS}/{entry.name}", lambda entry=entry: _check_artifact(report, entry.name))
    yield _finding("folder", lambda: _check_no_more(report))
    yield _finding(ENVIRONMENT, lambda: _check_environment(report))
    yield _finding(PAGE, lambda: _check_page(report))
    yield _finding("behavior", lambda: _check_behavior(report))
    entries: list[Entry] = []
    yield _finding(LEDGER, lambda: _check_ledger(report, entries))
    for card in report.study.claims:
        yield _finding(f"claim {card.id}", lambda card=card: _check_claim(report, card, entries))
    for name, check in sections.checks(report, entries):
        yield _finding(name, check)


def _finding(name: str, check: Callable[[], str]) -> Finding:
    """Run one check; it returns what it found, or raises what is broken."""
    try:
        return Finding(name, True, check())
    except CutawayError as error:
        return Finding(name, False, str(error))
    except (ValueError, TypeError, KeyError, LookupError, OSError) as error:
        return Finding(name, False, f"it cannot be read: {type(error).__name__} {error}")


def _check_manifest(report: Report) -> str:
    written = as_text(report.manifest.model_dump(mode="json")).encode("utf-8")
    require(
        (report.folder / MANIFEST).read_bytes() == written,
        "its bytes are not those that cutaway writes for this content",
    )
    require(set(report.manifest.files) == {PAGE, LEDGER, ENVIRONMENT}, "its list of files is not that of a report")
    return "matches its digest"


def _check_bytes(report: Report, name: str, sha256: str) -> str:
    path = report.folder / name
    require(path.is_file(), "it is missing")
    require(digest(path.read_bytes()) == sha256, "its bytes no longer match their hash in report.json: it was changed")
    return "matches its hash"


def _check_artifact(report: Report, name: str) -> str:
    entry = next(entry for entry in report.manifest.artifacts if entry.name == name)
    require(entry.path.startswith(f"{ARTIFACTS}/{entry.sha256}."), f"its file {entry.path!r} is not named by its hash")
    require(len(report.artifact(name)) == entry.n_bytes, "its size is not the one in report.json")
    return "matches its hash"


def _check_no_more(report: Report) -> str:
    listed = {MANIFEST, *report.manifest.files, *(entry.path for entry in report.manifest.artifacts)}
    found = {path.relative_to(report.folder).as_posix() for path in report.folder.rglob("*") if path.is_file()}
    strange = sorted(name for name in found - listed if not Path(name).name.startswith("."))
    require(not strange, f"{strange[:1]} is not listed in report.json: it is no part of the evidence")
    return f"{len(listed)} files, all listed"


def _check_environment(report: Report) -> str:
    written = as_text(report.study.environment.model_dump(mode="json")).encode("utf-8")
    require((report.folder / ENVIRONMENT).read_bytes() == written, "it is not the environment in report.json")
    return "is the one in report.json"


def _check_page(report: Report) -> str:
    found = (report.folder / PAGE).read_bytes().decode("utf-8")
    expected = page.payload(report.study, report.manifest.artifacts)
    require(html.payload_of(found) == expected, "the data in the page is not that of report.json")
    if report.manifest.renderer != page.renderer():
        return "shows the data of report.json; another version of cutaway drew it, so its program text was not compared"
    require(found == page.render(report.study, report.manifest.artifacts), "it is not the page that report.json gives")
    return "is the page that report.json gives"


def _check_behavior(report: Report) -> str:
    shown = report.study.behavior
    again = behavior_check(
        split=shown.split,
        clean=shown.clean,
        corrupt=shown.corrupt,
        clusters=shown.clusters,
        accuracy=shown.accuracy,
        threshold=shown.threshold,
        alpha=1 - shown.gap.level,
    )
    require_equal(again.model_dump(mode="json"), shown.model_dump(mode="json"), "behavior")
    return "follows from its raw values"


def _check_ledger(report: Report, entries: list[Entry]) -> str:
    entries += read_jsonl(report.folder / LEDGER)
    frozen = {entry.plan: entry for entry in entries if entry.kind == "freeze"}
    for plan, entry in frozen.items():
        require(digest(entry.body) == plan, f"entry {entry.seq}: the frozen plan does not match its hash {plan[:12]}")
    return f"{len(entries)} entries, chained"


def _check_claim(report: Report, card: ClaimCard, entries: list[Entry]) -> str:
    record = json.loads(report.artifact(card.result))
    texts = {one.id: one.text for one in card.worst}
    again = claim_card(card.id, record, artifact=card.result, texts=texts)
    require(again.verdict == card.verdict, f"the report says {card.verdict!r}, its raw values give {again.verdict!r}")
    require_equal(again.model_dump(mode="json"), card.model_dump(mode="json"), f"claim {card.id}")
    mine = [entry for entry in entries if entry.plan == card.plan]
    frozen = next((entry.body for entry in mine if entry.kind == "freeze"), None)
    require(frozen is not None, f"{LEDGER} has no frozen plan {card.plan[:12]}")
    require(frozen is not None and frozen.get("claim") == record["claim"], "its claim is not the one that was frozen")
    results = [entry for entry in mine if entry.kind == "result"]
    require(bool(results), f"{LEDGER} has no result of plan {card.plan[:12]}")
    require(results[0].body == record, f"its result is not the one in entry {results[0].seq} of {LEDGER}")
    return f"{card.verdict}, follows from its raw values and stands in the ledger"
