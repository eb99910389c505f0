"""The local cloud's own records, in SQLite: what is saved here is there again after a restart, even after SIGKILL.

    table = database.table("models")
    table.save("us-east-1/digits", {"created": datetime.now(UTC), ...})   # on disk when this returns
    table.items()                                                        # [("us-east-1/digits", {...})]

A power cut may lose the last moments; it never corrupts the file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    bucket TEXT NOT NULL, key TEXT NOT NULL, versions BLOB NOT NULL, PRIMARY KEY (bucket, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, bucket TEXT NOT NULL, upload BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    upload TEXT NOT NULL, number INTEGER NOT NULL, part BLOB NOT NULL, PRIMARY KEY (upload, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log_events (
    id INTEGER PRIMARY KEY, stream TEXT NOT NULL, ingested INTEGER NOT NULL, at INTEGER NOT NULL, message TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS log_events_of_stream ON log_events (stream, id);
"""


class Database:
    """One file, used from many threads."""

    def __init__(self, path: Path) -> None:
        self._lock, self._closed = threading.RLock(), False
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def table(self, kind: str) -> Table:
        """The records of one kind."""
        return Table(self, kind)

    def read(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a SELECT finds."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def write(self, *statements: tuple[str, Iterable[Sequence[Any]]]) -> None:
        """Statements, each with the rows of its parameters, in one transaction. Nothing happens once it is closed."""
        with self._lock:
            if self._closed:
                return
            self._db.execute("BEGIN")
            try:
                for statement, rows in statements:
                    self._db.executemany(statement, rows)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def clear(self) -> None:
        """Forget everything."""
        tables = ("records", "objects", "uploads", "parts", "log_events")
        self.write(*((f"DELETE FROM {table}", [()]) for table in tables))  # noqa: S608

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._db.close()


class Table:
    """Records of one kind: JSON with times, by key."""

    def __init__(self, database: Database, kind: str) -> None:
        self._database, self._kind = database, kind

    def save(self, key: str, value: Mapping[str, Any]) -> None:
        row = (self._kind, key, json.dumps(value, default=_encoded))
        self._database.write(("INSERT OR REPLACE INTO records (kind, key, value) VALUES (?, ?, ?)", [row]))

    def delete(self, key: str) -> None:
        self._database.write(("DELETE FROM records WHERE kind = ? AND key = ?", [(self._kind, key)]))

    def items(self) -> list[tuple[str, dict[str, Any]]]:
        """In the order of their keys."""
        rows = self._database.read("SELECT key, value FROM records WHERE kind = ? ORDER BY key", (self._kind,))
        return [(key, json.loads(value, object_hook=_decoded)) for key, value in rows]

    def values(self) -> list[dict[str, Any]]:
        return [value for _, value in self.items()]


def _encoded(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"$time": value.isoformat()}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"A record cannot hold {type(value).__name__}: {value!r}")


def _decoded(value: dict[str, Any]) -> Any:
    if value.keys() == {"$time"}:
        at = datetime.fromisoformat(value["$time"])
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    return value
