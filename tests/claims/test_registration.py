"""Registration: what the code digest covers, and when a claim counts as written after the data were seen."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import cutaway.artifacts
from cutaway.claims import Entry, registration


def test_the_code_digest_covers_what_can_move_a_number(tmp_path: Path) -> None:
    source, root = Path(cutaway.artifacts.__file__).parent, tmp_path / "cutaway"
    shutil.copytree(source, root, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    first = registration.program_text(root)
    (root / "cli").mkdir(exist_ok=True)
    (root / "cli" / "extra.py").write_text("x = 1\n", encoding="utf-8")
    assert registration.program_text(root) == first
    (root / "stats" / "extra.py").write_text("x = 1\n", encoding="utf-8")
    assert registration.program_text(root) != first
    assert set(registration.ROOMS) <= {path.stem for path in root.iterdir()}


def entry(seq: int, kind: str, plan: str, **changed: Any) -> Entry:
    body = {
        "task": {
            "digest": changed.get("task", "d"),
            "prompts": {"clean": changed.get("clean", ["p", "q"]), "corrupt": changed.get("corrupt", ["r", "s"])},
        },
        "model": {"digest": changed.get("model", "m")},
        "claim": {"subject": changed.get("subject", ["z.1.h3"]), "sentence": changed.get("sentence", plan)},
    }
    return Entry(seq, "", kind, plan, body if kind == "freeze" else {}, "", "")


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({}, ["a"]),
        ({"subject": ["z.1.h3@end", "z.0.h0"]}, ["a"]),
        ({"subject": ["z.1"]}, ["a"]),
        ({"subject": ["z.1.h2"]}, []),
        ({"task": "other"}, ["a"]),
        ({"task": "other", "sentence": "a"}, ["a"]),
        ({"clean": ["q", "new"]}, ["a"]),
        ({"clean": ["r"], "corrupt": ["p"]}, ["a"]),
        ({"clean": ["new"]}, []),
        ({"clean": ["new"], "corrupt": ["new 2"]}, []),
        ({"model": "other"}, []),
        ({"sentence": "a"}, []),
    ],
    ids=[
        "same ground", "a shared component", "the layer of the head", "other components", "an edited task",
        "the same words on an edited task", "one prompt of them", "sides exchanged", "only the corrupt prompts",
        "other prompts", "another model", "the same claim",
    ],
)  # fmt: skip
def test_a_claim_is_exploratory_on_ground_that_was_seen(changed: dict[str, Any], seen: list[str]) -> None:
    entries = [entry(1, "freeze", "a"), entry(2, "open_split", "a"), entry(3, "freeze", "b", **changed)]
    assert registration.seen_before("b", entries) == seen


def test_a_claim_registered_before_the_opening_is_not() -> None:
    entries = [entry(1, "freeze", "a"), entry(2, "freeze", "b"), entry(3, "open_split", "a")]
    assert registration.seen_before("b", entries) == []


def test_a_claim_registered_again_counts_from_its_first_registration() -> None:
    """As after an update of the code: the plan's hash is new, the claim is not."""
    same = {"subject": ["z.1.h3"], "sentence": "a"}
    entries = [
        entry(1, "freeze", "a", **same),
        entry(2, "freeze", "b", subject=["z.1.h3", "z.0.h0"]),
        entry(3, "open_split", "b"),
        entry(4, "freeze", "c", **same),
        entry(5, "freeze", "late", sentence="another"),
    ]
    assert registration.seen_before("c", entries) == []
    assert registration.seen_before("late", entries) == ["b"]


def test_a_plan_that_did_not_record_its_prompts_may_have_had_any() -> None:
    first = entry(1, "freeze", "a")
    del first.body["task"]["prompts"]
    entries = [first, entry(2, "open_split", "a"), entry(3, "freeze", "b", task="other", clean=["new"])]
    assert registration.seen_before("b", entries) == ["a"]
