"""`report.html`: the page that is drawn from a study's data, and from nothing else."""

from collections.abc import Sequence
from typing import Any

from cutaway.report.schema import ArtifactEntry, StudyReport
from cutaway.viz import html

ENTRY = "report-page.js"
ELEMENT = "cutaway-report"


def render(study: StudyReport, artifacts: Sequence[ArtifactEntry]) -> str:
    """The page as text. Equal data and equal `renderer()` give equal bytes."""
    return html.page(
        study.title, payload(study, artifacts), entry=ENTRY, element=ELEMENT, plain_text=_plain_text(study)
    )


def payload(study: StudyReport, artifacts: Sequence[ArtifactEntry]) -> dict[str, Any]:
    """The data that stands in the page."""
    return {
        "study": study.model_dump(mode="json"),
        "artifacts": [entry.model_dump(mode="json") for entry in artifacts],
    }


def renderer() -> str:
    """SHA-256 of the program text that draws pages."""
    return html.renderer(ENTRY)


def _plain_text(study: StudyReport) -> str:
    verdicts = "".join(f" {claim.verdict}: {claim.sentence}" for claim in study.claims)
    return (
        f"{study.title}. {study.sentence}{verdicts} The figures of this page are drawn by its own script, which needs "
        "no network; the same data stands in report.json beside it."
    )
