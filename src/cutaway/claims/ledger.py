"""The ledger: what was registered, opened, measured and changed, in an order that nobody can rewrite unseen.

One SQLite file, one table. Triggers refuse updates, deletes and replacements; each entry holds the hash of the one
before it, so that a change made behind the triggers breaks the chain from there on, and SQLite's own counter shows
entries cut off the end. An entry is appended in one transaction that first takes the write lock: writers queue, and an
interrupted one leaves nothing. `export` writes the same entries as JSON lines. Format: docs/formats/ledger.md.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.artifacts import canonical, digest, write_text
from cutaway.errors import BrokenEvidence, ClaimError, SplitOpened

if TYPE_CHECKING:
    import sqlite3

KINDS = ("freeze", "open_split", "resume", "result", "reopen_split", "rerun", "deviation")
GENESIS = "0" * 64
"""What stands in the place of the hash before the first entry."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, kind TEXT NOT NULL, plan TEXT NOT NULL,
  body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS entries_keep_order BEFORE INSERT ON entries
  WHEN NEW.seq IS NOT NULL AND NEW.seq > 0 AND NEW.seq != (SELECT coalesce(max(seq), 0) + 1 FROM entries)
  BEGIN SELECT raise(ABORT, 'the ledger is append-only: entries are added at its end'); END;
CREATE TRIGGER IF NOT EXISTS entries_no_update BEFORE UPDATE ON entries
  BEGIN SELECT raise(ABORT, 'the ledger is append-only: an entry cannot be changed'); END;
CREATE TRIGGER IF NOT EXISTS entries_no_delete BEFORE DELETE ON entries
  BEGIN SELECT raise(ABORT, 'the ledger is append-only: an entry cannot be removed'); END;
"""
_WAIT = 60.0
"""Seconds that a writer queues for the lock."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    seq: int
    """Place, from 1."""
    time: str
    """UTC, ISO 8601."""
    kind: str
    """`freeze`, `open_split`, `resume`, `result`, `reopen_split`, `rerun` or `deviation`."""
    plan: str
    """SHA-256 of the plan that the entry belongs to."""
    body: Mapping[str, Any]
    previous: str
    """Hash of the entry before."""
    hash: str
    """SHA-256 of the canonical JSON of all other fields."""

    @property
    def content(self) -> dict[str, Any]:
        """All fields but the hash."""
        return {name: getattr(self, name) for name in ("seq", "time", "kind", "plan", "body", "previous")}


class Ledger:
    """An append-only file of entries. Opening it creates the file; no connection is kept open between calls.

    >>> ledger = Ledger(folder / "ledger.sqlite")
    >>> ledger.append("deviation", "0" * 64, {"text": "the power failed"}).seq
    1
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connected() as connection:
            connection.executescript(_SCHEMA)

    def append(self, kind: str, plan: str, body: Mapping[str, Any]) -> Entry:
        """Add an entry at the end. Raises ClaimError for an unknown kind, ValueError for a body with NaN, SplitOpened
        for a second result of a plan, as where another process was faster."""

        def guard(entries: list[Entry]) -> str | None:
            self._require_no_result(plan, entries)
            return None

        return self._append(kind, plan, body, guard if kind == "result" else None)

    def open_split(self, plan: str, body: Mapping[str, Any]) -> Entry:
        """Record that a plan opens its `confirm` split. Raises SplitOpened when it already has a result.

        A plan that opened the split and was interrupted before its result may go on; that is recorded as `resume`.
        """

        def guard(entries: list[Entry]) -> str | None:
            self._require_no_result(plan, entries)
            return "resume" if any(entry.plan == plan and entry.kind == "open_split" for entry in entries) else None

        return self._append("open_split", plan, body, guard)

    def _require_no_result(self, plan: str, entries: list[Entry]) -> None:
        done = next((entry for entry in entries if entry.plan == plan and entry.kind == "result"), None)
        if done is not None:
            raise SplitOpened(
                f"plan {plan[:12]} opened its confirm split and has its result since {done.time} (entry {done.seq} of "
                f"{self.path.name}); a split is opened once a plan. Read the result with ledger.result(plan), check it "
                "with rerun(), or freeze a new claim on new data",
                plan=plan,
                seq=done.seq,
            )

    def register(self, plan: str, body: Mapping[str, Any]) -> Entry:
        """Record a frozen plan; a second registration of the same plan returns the first entry."""
        known = [entry for entry in self.entries() if entry.kind == "freeze" and entry.plan == plan]
        return known[0] if known else self.append("freeze", plan, body)

    def entries(self, kind: str | None = None, plan: str | None = None) -> list[Entry]:
        """All entries in order, or those of one kind or plan."""
        with self._connected() as connection:
            found = _read(connection)
        return [entry for entry in found if kind in (None, entry.kind) and plan in (None, entry.plan)]

    def result(self, plan: str) -> dict[str, Any] | None:
        """The recorded result of a plan, None before it ran."""
        found = self.entries("result", plan)
        return dict(found[0].body) if found else None

    @property
    def head(self) -> str:
        """Hash of the last entry; kept elsewhere, it proves that nothing before it was changed."""
        entries = self.entries()
        return entries[-1].hash if entries else GENESIS

    def verify(self) -> int:
        """Number of entries, all as they were written. Raises BrokenEvidence that names the first broken one."""
        with self._connected() as connection:
            entries = _read(connection, verify=True)
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entries'").fetchone()
        count = verify_entries(entries, str(self.path))
        if row is not None and row[0] != count:
            raise _broken(str(self.path), count + 1, f"it is missing from the end: {row[0]} entries were written")
        return count

    def export(self, path: str | Path) -> int:
        """Write all entries as JSON lines (canonical, one an entry); returns their number."""
        entries = self.entries()
        write_text(Path(path), "".join(canonical(entry.content | {"hash": entry.hash}) + "\n" for entry in entries))
        return len(entries)

    def _append(
        self, kind: str, plan: str, body: Mapping[str, Any], guard: Callable[[list[Entry]], str | None] | None = None
    ) -> Entry:
        if kind not in KINDS:
            raise ClaimError(f"ledger entry {kind!r}: entries are {', '.join(KINDS)}", kind=kind)
        text = canonical(body)
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                kind = (guard(_read(connection)) if guard else None) or kind
                last = connection.execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone() or (
                    0,
                    GENESIS,
                )
                now = datetime.now(UTC).isoformat(timespec="milliseconds")
                draft = Entry(last[0] + 1, now, kind, plan, json.loads(text), last[1], "")
                entry = Entry(**draft.content, hash=digest(draft.content))
                row = (entry.seq, now, kind, plan, text, entry.previous, entry.hash)
                connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
        return entry

    @contextmanager
    def _connected(self) -> "Iterator[sqlite3.Connection]":
        import sqlite3

        connection = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError | sqlite3.IntegrityError):
                raise
            raise BrokenEvidence(
                f"{self.path}: not a ledger ({error}); restore it from its export", path=str(self.path)
            ) from None
        finally:
            connection.close()


def verify_entries(entries: Iterable[Entry], where: str) -> int:
    """Number of entries of a whole chain. Raises BrokenEvidence that names the first broken entry."""
    previous, count = GENESIS, 0
    results: dict[str, int] = {}
    for count, entry in enumerate(entries, start=1):
        if entry.seq != count:
            raise _broken(where, count, f"entry {entry.seq} stands in its place: one was removed or moved")
        if entry.previous != previous:
            raise _broken(where, count, "it does not continue the entry before it: one was replaced or moved")
        if digest(entry.content) != entry.hash:
            raise _broken(where, count, "its content no longer matches its hash: it was changed")
        if entry.kind == "result" and results.setdefault(entry.plan, count) != count:
            raise _broken(where, count, f"plan {entry.plan[:12]} has its result in entry {results[entry.plan]} already")
        previous = entry.hash
    return count


def read_jsonl(path: str | Path) -> list[Entry]:
    """Entries of an exported ledger, verified. Raises BrokenEvidence that names the file and the first broken entry."""
    entries: list[Entry] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise _broken(str(path), number, f"its line cannot be read ({error})") from None
    verify_entries(entries, str(path))
    return entries


def _read(connection: "sqlite3.Connection", *, verify: bool = False) -> list[Entry]:
    entries = []
    for place, row in enumerate(connection.execute("SELECT * FROM entries ORDER BY seq"), start=1):
        try:
            entries.append(Entry(*row[:4], body=json.loads(row[4]), previous=row[5], hash=row[6]))
        except ValueError as error:
            if verify:
                verify_entries(entries, "ledger")
            raise _broken("ledger", place, f"its body is no JSON ({error})") from None
    return entries


def _broken(where: str, seq: int, reason: str) -> BrokenEvidence:
    return BrokenEvidence(
        f"{where}: entry {seq} is broken: {reason}. Restore the file; results after this entry prove nothing",
        seq=seq,
        path=where,
    )
