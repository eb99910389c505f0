"""The rig: the cloud that these tests run against. The same tests are meant for AWS itself (``--rig=aws``)."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

import windlass as wl
from benchmarks.wire import Wire
from tests.cloud.shop import Shop
from tests.conformance.shapes import watch
from windlass import foundation as foundations
from windlass.local import LocalCloud

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}


VIOLATIONS: list[str] = []
"""What the rigs' clients were answered and AWS would not have."""


@pytest.fixture(autouse=True)
def every_answer_fits_its_service_model() -> Iterator[None]:
    VIOLATIONS.clear()
    yield
    assert VIOLATIONS == []


@dataclass
class Rig:
    """A cloud with a bucket and a role in it.

    Attributes:
        env: what makes boto3, in this process or another, talk to it.
        bucket: an empty bucket.
        role: the ARN of a role that SageMaker may assume.
    """

    env: dict[str, str]
    bucket: str = ""
    role: str = ""
    cloud: LocalCloud | None = None
    _clients: dict[str, Any] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def client(self, service: str) -> Any:
        """A boto3 client."""
        if service not in self._clients:
            self._clients[service] = boto3.client(
                service,
                endpoint_url=self.env["AWS_ENDPOINT_URL"],
                region_name=self.env["AWS_REGION"],
                aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            )
            watch(self._clients[service], VIOLATIONS.append)
        return self._clients[service]

    def unique(self, prefix: str) -> str:
        """A name that no other test uses."""
        return f"{prefix}-{next(self._numbers)}-{uuid.uuid4().hex[:6]}"

    def upload(self, key: str, body: bytes) -> str:
        """Put an object into the bucket. Returns its URI."""
        self.client("s3").put_object(Bucket=self.bucket, Key=key, Body=body)
        return f"s3://{self.bucket}/{key}"

    def upload_source(self, files: Mapping[str, str]) -> str:
        """Put a source.tar.gz of these files into the bucket. Returns its URI."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for name, text in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(text.encode())
                tar.addfile(member, io.BytesIO(text.encode()))
        return self.upload(f"{self.unique('source')}/source.tar.gz", packed.getvalue())

    def download(self, uri: str) -> bytes:
        """The object at that URI."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        with self.client("s3").get_object(Bucket=bucket, Key=key)["Body"] as body:
            content: bytes = body.read()
        return content

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


@pytest.fixture(scope="session")
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    if request.config.getoption("--rig") == "aws":
        pytest.skip("the rig on AWS itself is not written yet")
    with LocalCloud.up(tmp_path_factory.mktemp("cloud"), lifeline=True) as cloud:
        rig = Rig(env=cloud.env, cloud=cloud)
        rig.bucket = rig.unique("rig")
        rig.client("s3").create_bucket(Bucket=rig.bucket)
        created = rig.client("iam").create_role(RoleName=rig.unique("rig"), AssumeRolePolicyDocument=json.dumps(TRUST))
        rig.role = created["Role"]["Arn"]
        yield rig
        rig.close()


@contextmanager
def sdk_on(rig: Rig) -> Iterator[None]:
    """The SDK of this process talks to the rig: it reads where it goes from the environment, as boto3 does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_PROFILE", raising=False)
        for name, value in rig.env.items():
            patch.setenv(name, value)
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        yield


@pytest.fixture(scope="session")
def contract(rig: Rig) -> foundations.Contract:
    """The foundation of the project ``windlass``, deployed once."""
    with sdk_on(rig):
        return foundations.deploy()


@pytest.fixture(scope="module")
def foundation(rig: Rig, contract: foundations.Contract) -> Iterator[foundations.Contract]:
    """A deployed foundation, with the SDK of this process pointed at it."""
    with sdk_on(rig):
        yield contract


@pytest.fixture(scope="session")
def open_shop(rig: Rig, contract: foundations.Contract, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with sdk_on(rig):
        shop = Shop(rig, tmp_path_factory.mktemp("shop"))
        shop.run = shop.trained()
        shop.version = wl.register(shop.run, "good", approve=True)
        shop.pending = wl.register(shop.run, "good")
        shop.endpoint = wl.deploy(shop.version, "live")
    yield shop
    with sdk_on(rig):
        shop.endpoint.delete()


@pytest.fixture(scope="module")
def shop(open_shop: Shop, foundation: foundations.Contract) -> Shop:
    """``good/1`` is approved and serves ``live``; ``good/2`` is not approved."""
    return open_shop


@pytest.fixture
def wire(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The SDK speaks to the rig through a wire that counts."""
    address = urlsplit(rig.env["AWS_ENDPOINT_URL"])
    with Wire(str(address.hostname), address.port or 80) as wire:
        for name, value in rig.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.url)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        yield wire
