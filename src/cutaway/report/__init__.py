"""The evidence of a study as one folder: data, raw values, ledger and one page that opens offline.

    folder = report.write("report", study, artifacts, ledger_lines)
    report.load(folder).study
    report.verify(folder).require()

Format: docs/formats/report.md.
"""

from cutaway.report.cards import behavior_check, claim_card
from cutaway.report.folder import Report, load, write
from cutaway.report.schema import StudyReport
from cutaway.report.sections import unshown
from cutaway.report.summary import LIMITS, headline, task_card
from cutaway.report.verification import Finding, Verification, verify

__all__ = [
    "LIMITS",
    "Finding",
    "Report",
    "StudyReport",
    "Verification",
    "behavior_check",
    "claim_card",
    "headline",
    "load",
    "task_card",
    "unshown",
    "verify",
    "write",
]
