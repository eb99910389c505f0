"""Checkpoints between the folders of hosts and S3."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.core.base_backend import BackendDict
from moto.s3.models import s3_backends

from windlass.local import storage
from windlass.local.cloud import ACCOUNT
from windlass.local.jobs.checkpoints import Checkpoints

PREFIX = "s3://bucket/checkpoints"


@pytest.fixture(autouse=True)
def bucket() -> Iterator[None]:
    s3_backends[ACCOUNT]["aws"].create_bucket("bucket", "us-east-1")
    yield
    BackendDict.reset()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline


def test_everything_on_s3_is_restored_into_every_folder(tmp_path: Path) -> None:
    storage.write(f"{PREFIX}/deep/1.pt", b"one")
    storage.write("s3://bucket/checkpoints-of-another/2.pt", b"two")
    folders = [tmp_path / "a", tmp_path / "b"]

    Checkpoints(PREFIX, folders, tmp_path).restore()

    assert all((folder / "deep" / "1.pt").read_bytes() == b"one" for folder in folders)
    assert not list(tmp_path.rglob("2.pt"))


def test_a_file_goes_up_only_when_nobody_writes_it_any_more(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    sync = Checkpoints(PREFIX, [folder], tmp_path, interval_seconds=0.05)
    sync.restore()
    writing = threading.Event()

    def write() -> None:
        size = 0
        while not writing.is_set():
            size += 1
            (folder / "half.pt").write_bytes(b"x" * size)

    writer = threading.Thread(target=write)
    writer.start()
    (folder / "whole.pt").write_bytes(b"whole")
    sync.start()
    until(lambda: storage.exists(f"{PREFIX}/whole.pt"))
    assert not storage.exists(f"{PREFIX}/half.pt")

    writing.set()
    writer.join()

    until(lambda: storage.exists(f"{PREFIX}/half.pt"))
    sync.close()
    assert storage.read(f"{PREFIX}/half.pt") == (folder / "half.pt").read_bytes()


def test_what_a_host_has_changed_itself_is_not_overwritten(tmp_path: Path) -> None:
    storage.write(f"{PREFIX}/step.txt", b"1")
    folder = tmp_path / "a"
    sync = Checkpoints(PREFIX, [folder], tmp_path, interval_seconds=600)
    sync.restore()
    (folder / "step.txt").write_bytes(b"own, longer")
    storage.write(f"{PREFIX}/step.txt", b"theirs, longer still")

    sync._pull()

    assert (folder / "step.txt").read_bytes() == b"own, longer"
    sync.close()
    assert storage.read(f"{PREFIX}/step.txt") == b"own, longer"


def test_the_last_state_goes_up_however_fresh(tmp_path: Path) -> None:
    sync = Checkpoints(PREFIX, [tmp_path / "a"], tmp_path, interval_seconds=600)
    sync.restore()
    sync.start()
    (tmp_path / "a" / "last.pt").write_bytes(b"last")

    sync.close()

    assert storage.read(f"{PREFIX}/last.pt") == b"last"


def test_a_bucket_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(storage.NoBucket):
        Checkpoints("s3://no-such-bucket-here/x", [tmp_path / "a"], tmp_path).restore()
