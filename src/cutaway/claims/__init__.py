"""Claims: sentences about mechanisms as pre-registered, controlled tests with four verdicts.

    claim = Claim("Head 1.3 is the induction head", ("z.1.h3",), "induction", (Necessary(at_least=0.3),))
    result = claim.freeze(model, task, search=64).run(model, task, Ledger("ledger.sqlite"))
    result.verdict, result.reason

Design: docs/design/claims.md. Files: docs/formats/ledger.md.
"""

from cutaway.claims.claim import Claim, ClaimResult, FrozenClaim, Rerun
from cutaway.claims.ledger import Entry, Ledger, read_jsonl, verify_entries
from cutaway.claims.prediction import Cell, Estimand, Mediates, Necessary, Prediction, Specific, Sufficient
from cutaway.claims.verdict import verdict

__all__ = [
    "Cell",
    "Claim",
    "ClaimResult",
    "Entry",
    "Estimand",
    "FrozenClaim",
    "Ledger",
    "Mediates",
    "Necessary",
    "Prediction",
    "Rerun",
    "Specific",
    "Sufficient",
    "read_jsonl",
    "verdict",
    "verify_entries",
]
