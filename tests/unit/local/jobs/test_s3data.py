"""Which objects a data source means, and how they arrive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.core.base_backend import BackendDict
from moto.s3.models import s3_backends

from windlass.local import storage
from windlass.local.cloud import ACCOUNT
from windlass.local.jobs import s3data


@pytest.fixture(autouse=True)
def bucket() -> Iterator[None]:
    s3_backends[ACCOUNT]["aws"].create_bucket("bucket", "us-east-1")
    yield
    BackendDict.reset()


def write(**bodies: str) -> None:
    for key, body in bodies.items():
        storage.write(f"s3://bucket/{key.replace('__', '/')}", body.encode())


def test_names_are_relative_to_the_prefix() -> None:
    write(data__a="1", data__deep__b="2", data="3", database="4")

    assert [each.name for each in s3data.resolve("s3://bucket/data/")] == ["a", "deep/b"]
    assert [each.name for each in s3data.resolve("s3://bucket/data")] == ["data", "a", "deep/b", "database"]
    assert [each.name for each in s3data.resolve("https://bucket.s3.us-east-1.amazonaws.com/database")] == ["database"]


def test_every_object_goes_to_exactly_one_host() -> None:
    objects = [s3data.S3Object(f"s3://bucket/{n}", str(n)) for n in range(7)]

    shares = [s3data.share(objects, hosts=3, host=host) for host in range(3)]

    assert sorted(each.name for share in shares for each in share) == [str(n) for n in range(7)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("{", "not JSON"),
        ([], "must be a JSON list"),
        (["a"], "must be a JSON list"),
        ([{"prefix": "s3://bucket/"}, 1], "must be a JSON list"),
        ([{"prefix": "s3://bucket/"}, "absent"], "names 's3://bucket/absent', which does not exist"),
        ([{"prefix": "s3://bucket/"}], "No S3 objects found"),
    ],
)
def test_a_manifest_that_is_none_is_refused(manifest: Any, said: str) -> None:
    storage.write("s3://bucket/m", (manifest if isinstance(manifest, str) else json.dumps(manifest)).encode())

    with pytest.raises(s3data.Unavailable, match=said):
        s3data.resolve("s3://bucket/m", "ManifestFile")


def test_a_key_that_climbs_out_is_refused(tmp_path: Path) -> None:
    storage.write("s3://bucket/data/../../evil", b"x")

    with pytest.raises(s3data.Unavailable, match="climbs out"):
        s3data.download(s3data.resolve("s3://bucket/data/"), tmp_path / "in")

    assert not (tmp_path / "evil").exists()


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    write(data__a="1", data__a__b="2")

    with pytest.raises(s3data.Unavailable, match="previously downloaded file/folder clashes"):
        s3data.download(s3data.resolve("s3://bucket/data/"), tmp_path)


def test_what_is_not_gzip_is_told(tmp_path: Path) -> None:
    write(data__a="plain")

    with pytest.raises(s3data.Unavailable, match="not compressed with gzip"):
        s3data.download(s3data.resolve("s3://bucket/data/"), tmp_path, gunzip=True)
