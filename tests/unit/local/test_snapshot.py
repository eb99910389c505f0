"""What moto keeps in memory survives, even where pickle alone would give up."""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from moto.core.base_backend import BackendDict
from moto.sqs.models import sqs_backends
from moto.ssm.models import ssm_backends

from windlass.local.cloud import ACCOUNT
from windlass.local.snapshot import Snapshot, StateUnreadable


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    yield
    BackendDict.reset()


def sqs() -> Any:
    return sqs_backends[ACCOUNT]["us-east-1"]


def restarted(path: Path) -> Snapshot:
    BackendDict.reset()
    snapshot = Snapshot(path)
    snapshot.load()
    return snapshot


def test_services_come_back_and_know_each_other(tmp_path: Path) -> None:
    queue = sqs().create_queue("q", {})
    sqs().marker = [queue, sqs()]
    Snapshot(tmp_path / "s").save()

    restarted(tmp_path / "s")

    assert sqs().marker == [sqs().queues["q"], sqs()]
    assert sqs().queues["q"] is not queue
    sqs().send_message("q", "still works")


class Strict(defaultdict[str, int]):
    def __init__(self, region: str) -> None:
        super().__init__(int)
        self.region = region


def test_what_pickle_cannot_take_is_taken_apart(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    strict = Strict("us-east-1")
    strict["a"] += 1
    sqs().held = [key, threading.Lock(), threading.RLock(), weakref.WeakValueDictionary(), strict]
    parameters = ssm_backends[ACCOUNT]["us-east-1"]  # its defaultdict has a lambda
    parameters._resource_tags["Parameter"]["/a"] = {"k": "v"}
    Snapshot(tmp_path / "s").save()

    restarted(tmp_path / "s")

    again, lock, rlock, weak, strict_again = sqs().held
    assert again.private_numbers() == key.private_numbers()
    assert lock.acquire(blocking=False)
    assert rlock.acquire(blocking=False)
    assert isinstance(weak, weakref.WeakValueDictionary)
    assert (strict_again, strict_again["new"], strict_again.region) == ({"a": 1, "new": 0}, 0, "us-east-1")
    tags = ssm_backends[ACCOUNT]["us-east-1"]._resource_tags
    assert tags["Parameter"]["/a"] == {"k": "v"}
    assert tags["new"]["/b"] == {}


def test_one_service_that_cannot_be_saved_does_not_take_the_others_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sqs().create_queue("q", {})
    ssm_backends[ACCOUNT]["us-east-1"].stream = (number for number in range(3))

    assert Snapshot(tmp_path / "s").save()

    assert "The state of ssm will not outlive this local cloud" in caplog.text
    restarted(tmp_path / "s")
    assert list(sqs().queues) == ["q"]


def test_parts_of_ours_come_back(tmp_path: Path) -> None:
    snapshot = Snapshot(tmp_path / "s")
    snapshot.include("alarms", lambda: {"a": 1}, lambda state: None)
    snapshot.save()
    found: list[Any] = []

    again = Snapshot(tmp_path / "s")
    again.include("alarms", lambda: None, found.append)
    again.load()

    assert found == [{"a": 1}]


def test_a_change_is_saved_soon_and_once_more_at_the_end(tmp_path: Path) -> None:
    saved = threading.Event()
    snapshot = Snapshot(tmp_path / "s")
    snapshot.include("told", lambda: saved.set() or "x", lambda state: None)  # type: ignore[func-returns-value]
    snapshot.start()

    snapshot.touch()
    assert saved.wait(30)
    saved.clear()
    snapshot.close()

    assert saved.is_set()


def test_a_first_start_has_nothing_to_load(tmp_path: Path) -> None:
    Snapshot(tmp_path / "s").load()


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"not a pickle")

    with pytest.raises(StateUnreadable, match=r"give another state folder"):
        Snapshot(tmp_path / "s").load()
