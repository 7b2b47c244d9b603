"""The ledger: appended only, chained, broken entries named, writers queued, an interruption leaves nothing."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cutaway.artifacts import digest
from cutaway.claims import Entry, Ledger, read_jsonl, verify_entries
from cutaway.errors import BrokenEvidence, ClaimError, SplitOpened

PLAN = "a" * 64
OTHER = "b" * 64


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite")
    for number in range(5):
        made.append("deviation", PLAN, {"text": f"entry {number}", "value": 0.1 * number})
    return made


def tamper(ledger: Ledger, *statements: str) -> None:
    """Somebody who knows SQL: the triggers are dropped first and put back after."""
    connection = sqlite3.connect(ledger.path)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in triggers:
        connection.execute(sql)
    connection.commit()
    connection.close()


def test_entries_continue_one_another(ledger: Ledger) -> None:
    entries = ledger.entries()
    assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.previous for entry in entries[1:]] == [entry.hash for entry in entries[:-1]]
    assert ledger.head == entries[-1].hash
    assert ledger.verify() == 5
    assert Ledger(ledger.path).entries() == entries, "opening it again changes nothing"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = '{}' WHERE seq = 2",
        "DELETE FROM entries WHERE seq = 5",
        "INSERT OR REPLACE INTO entries SELECT seq, time, kind, plan, '{}', previous, hash FROM entries WHERE seq = 2",
        "INSERT INTO entries SELECT 9, time, kind, plan, body, previous, hash FROM entries WHERE seq = 2",
    ],
)
def test_the_file_refuses_to_be_rewritten(ledger: Ledger, statement: str) -> None:
    connection = sqlite3.connect(ledger.path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()
    assert ledger.verify() == 5


@pytest.mark.parametrize(
    ("statements", "seq", "reason"),
    [
        (['UPDATE entries SET body = \'{"text": "better"}\' WHERE seq = 3'], 3, "was changed"),
        (["UPDATE entries SET time = '2020-01-01' WHERE seq = 2"], 2, "was changed"),
        (["UPDATE entries SET body = 'no json' WHERE seq = 4"], 4, "no JSON"),
        (["DELETE FROM entries WHERE seq = 3"], 3, "entry 4 stands in its place"),
        (["DELETE FROM entries WHERE seq = 5"], 5, "missing from the end"),
        (["DELETE FROM entries"], 1, "missing from the end"),
        (
            [
                "UPDATE entries SET seq = 99 WHERE seq = 2",
                "UPDATE entries SET seq = 2 WHERE seq = 3",
                "UPDATE entries SET seq = 3 WHERE seq = 99",
            ],
            2,
            "does not continue",
        ),
    ],
)
def test_what_was_done_behind_the_triggers_is_named(
    ledger: Ledger, statements: list[str], seq: int, reason: str
) -> None:
    tamper(ledger, *statements)
    with pytest.raises(BrokenEvidence, match=reason) as caught:
        ledger.verify()
    assert caught.value.seq == seq
    assert f"entry {seq} is broken" in str(caught.value)


def test_an_entry_rehashed_by_hand_breaks_the_next_one(ledger: Ledger) -> None:
    from cutaway.artifacts import canonical, digest

    entry = ledger.entries()[2]
    content = {**entry.content, "body": {"text": "better"}}
    tamper(
        ledger,
        f"UPDATE entries SET body = '{canonical(content['body'])}', hash = '{digest(content)}' WHERE seq = 3",
    )
    with pytest.raises(BrokenEvidence) as caught:
        ledger.verify()
    assert caught.value.seq == 4


def test_the_export_is_the_same_chain(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "claims.jsonl"
    assert ledger.export(path) == 5
    assert read_jsonl(path) == ledger.entries()
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text(
        "\n".join([*lines[:2], lines[2].replace("entry 2", "entry two"), *lines[3:]]) + "\n", encoding="utf-8"
    )
    with pytest.raises(BrokenEvidence, match="entry 3 is broken"):
        read_jsonl(path)
    path.write_text("\n".join([*lines[:2], "{", *lines[3:]]) + "\n", encoding="utf-8")
    with pytest.raises(BrokenEvidence, match="entry 3 is broken: its line cannot be read"):
        read_jsonl(path)
    record = json.loads(lines[0])
    path.write_text(json.dumps({**record, "extra": 1}) + "\n", encoding="utf-8")
    with pytest.raises(BrokenEvidence, match="entry 1 is broken"):
        read_jsonl(path)


def test_a_split_is_opened_once_a_plan(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.open_split(PLAN, {"split": "confirm"}).kind == "open_split"
    assert ledger.open_split(PLAN, {"split": "confirm"}).kind == "resume", "interrupted before its result"
    ledger.append("result", PLAN, {"verdict": "refuted"})
    with pytest.raises(SplitOpened, match="entry 3") as caught:
        ledger.open_split(PLAN, {"split": "confirm"})
    assert caught.value.plan == PLAN
    assert ledger.open_split(OTHER, {"split": "confirm"}).kind == "open_split"
    assert ledger.result(PLAN) == {"verdict": "refuted"}
    assert ledger.result(OTHER) is None
    assert ledger.verify() == 4
    with pytest.raises(SplitOpened, match="entry 3"):
        ledger.append("result", PLAN, {"verdict": "supported"})
    assert ledger.verify() == 4


RESULT = """
import sys
from cutaway.claims.ledger import Ledger
from cutaway.errors import SplitOpened
try:
    Ledger(sys.argv[1]).append("result", "a" * 64, {"by": sys.argv[2]})
except SplitOpened:
    sys.exit(3)
"""


def test_two_processes_give_one_result(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path)
    running = [subprocess.Popen([sys.executable, "-c", RESULT, str(path), name]) for name in "xy"]
    assert sorted(process.wait() for process in running) == [0, 3]
    assert len(Ledger(path).entries("result")) == 1


def test_a_chain_with_two_results_of_a_plan_is_broken(tmp_path: Path) -> None:
    """As by a writer that keeps the chain, but not the rule."""
    previous, entries = "0" * 64, []
    for seq, verdict in enumerate(("refuted", "supported"), start=1):
        draft = Entry(seq, "", "result", PLAN, {"verdict": verdict}, previous, "")
        entries.append(replace(draft, hash=digest(draft.content)))
        previous = entries[-1].hash
    assert verify_entries(entries[:1], "here") == 1
    with pytest.raises(BrokenEvidence, match=r"entry 2 is broken: plan .* has its result in entry 1") as caught:
        verify_entries(entries, "here")
    assert caught.value.seq == 2


def test_a_plan_is_registered_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    first = ledger.register(PLAN, {"a": 1})
    assert ledger.register(PLAN, {"a": 1}) == first
    assert len(ledger.entries("freeze", PLAN)) == 1


def test_what_has_no_form_is_refused_and_leaves_nothing(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(ClaimError, match="'note'"):
        ledger.append("note", PLAN, {})
    with pytest.raises(ValueError):
        ledger.append("deviation", PLAN, {"value": float("nan")})
    assert ledger.verify() == 5
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(BrokenEvidence, match="not a ledger"):
        Ledger(broken)


WRITER = """
import sys
from cutaway.claims.ledger import Ledger
ledger = Ledger(sys.argv[1])
for number in range(int(sys.argv[3])):
    ledger.append("deviation", sys.argv[2] * 64, {"number": number})
"""


def writer(path: Path, name: str, n: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(n)])


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    running = [writer(path, name, 25) for name in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    ledger = Ledger(path)
    assert ledger.verify() == 50
    for name in "ab":
        assert [entry.body["number"] for entry in ledger.entries(plan=name * 64)] == list(range(25))


def test_a_killed_writer_leaves_a_whole_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    process = writer(path, "a", 100_000)
    deadline = time.monotonic() + 60
    while len(ledger.entries()) < 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    kept = ledger.verify()
    assert kept >= 10
    assert [entry.body["number"] for entry in ledger.entries()] == list(range(kept))
    ledger.append("deviation", OTHER, {})
    assert ledger.verify() == kept + 1


def test_threads_queue(ledger: Ledger) -> None:
    threads = [
        threading.Thread(target=lambda: [ledger.append("deviation", OTHER, {}) for _ in range(10)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.verify() == 45
