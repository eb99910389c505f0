"""What the parts of the local cloud stand on in these tests: S3 with its bodies in files, as in a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from windlass.local import cloud as clouds
from windlass.local.database import Database
from windlass.local.snapshot import Snapshot
from windlass.local.storage import s3
from windlass.local.storage.bodies import Folder


@pytest.fixture(autouse=True)
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    state: Path = tmp_path_factory.mktemp("ground")
    database = Database(state / "state.sqlite")
    parts = SimpleNamespace(
        bodies=Folder(state / "s3"), database=database, snapshot=Snapshot(state / "services.pickle")
    )
    clouds.install(cast(clouds.Cloud, parts))
    s3.register()
    yield
    clouds.install(None)
    database.close()
