"""A cloud that hosts, and an endpoint on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.s3.models import s3_backends

from tests.unit.local.hosting.hosted import REGION, Cloud, make_config, make_model, start
from windlass.local.cloud import ACCOUNT


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    s3_backends[ACCOUNT]["aws"].create_bucket("models", REGION)
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.hosting.close()
    cloud.keeper.close()
    cloud.database.close()
    cloud.metrics.close()
    s3_backends.reset()


@pytest.fixture
def serving(cloud: Cloud) -> Cloud:
    """An endpoint on v1, and a config v2 to go to."""
    for name in ("v1", "v2"):
        make_model(cloud, name)
        make_config(cloud, name)
    start(cloud, "v1")
    return cloud
