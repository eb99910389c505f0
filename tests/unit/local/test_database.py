"""Records are on disk when `save` returns, and come back as they were."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from windlass.local.database import Database


def test_records_come_back_in_another_process(tmp_path: Path) -> None:
    record = {"created": datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "request": {"a": [1, 2.5, None, True]}, "name": "ü"}
    first = Database(tmp_path / "state.sqlite")
    first.table("models").save("us-east-1/b", {"old": True})
    first.table("models").save("us-east-1/b", record)
    first.table("models").save("us-east-1/a", {})
    first.table("endpoints").save("us-east-1/a", {"other": 1})

    # Not closed: as after a kill.
    second = Database(tmp_path / "state.sqlite")

    assert second.table("models").items() == [("us-east-1/a", {}), ("us-east-1/b", record)]
    second.table("models").delete("us-east-1/b")
    assert second.table("models").values() == [{}]
    second.clear()
    assert second.table("models").items() == second.table("endpoints").items() == []
    first.close()
    second.close()


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.sqlite")
    insert = "INSERT INTO objects (bucket, key, versions) VALUES (?, ?, ?)"

    with pytest.raises(Exception, match="UNIQUE"):
        database.write((insert, [("b", "k", b"1")]), (insert, [("b", "k", b"2")]))

    assert database.read("SELECT * FROM objects") == []
    database.close()


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.sqlite")

    with pytest.raises(TypeError, match="A record cannot hold object"):
        database.table("models").save("m", {"what": object()})
    database.close()


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.sqlite")
    database.close()

    database.table("models").save("m", {})  # a job's last word may come after the server's

    again = Database(tmp_path / "state.sqlite")
    assert again.table("models").items() == []
    again.close()
