"""S3 as the local cloud itself reads and writes it, without a request.

storage.download_prefix("s3://bucket/data", Path("data"))
storage.write("s3://bucket/model.tar.gz", Path("model.tar.gz"))

Within ``authorizer.acting_as(role)`` that role must be allowed to.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from windlass.local.cloud import ACCOUNT
from windlass.local.iam import authorizer
from windlass.local.storage.bodies import Body

if TYPE_CHECKING:
    from windlass.local.storage.objects import Key


class Missing(LookupError):
    """No such object, or nothing under that prefix."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        super().__init__(f"No S3 objects found under S3 URL '{uri}'")


class Denied(Missing):
    """Whoever this thread acts for may not do that; ``str()`` is AWS's message."""

    def __init__(self, uri: str, message: str) -> None:
        super().__init__(uri)
        self.args = (message,)


class NoBucket(Missing):
    """No such bucket."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.args = (f"The S3 bucket of '{uri}' does not exist",)


def split(uri: str) -> tuple[str, str]:
    """Bucket and key: ``s3://b/k/l`` -> ``("b", "k/l")``."""
    if not uri.startswith("s3://"):
        raise Missing(uri)
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def bucket_exists(uri: str) -> bool:
    """Whether the bucket of that URI exists."""
    return split(uri)[0] in _backend().buckets


def exists(uri: str) -> bool:
    """Whether that object exists."""
    try:
        _object(uri)
    except Missing:
        return False
    return True


def read(uri: str) -> bytes:
    """The whole object. Raises Missing, NoBucket."""
    body: bytes = _object(uri).value
    return body


def version(uri: str) -> str:
    """Changes whenever the object is written. Raises Missing, NoBucket."""
    found = _object(uri)
    return f"{found.last_modified.isoformat()} {found.size}"


def open_body(uri: str) -> Body:
    """The object, to be read in parts. Raises Missing, NoBucket."""
    return _object(uri).open()


def write(uri: str, body: bytes | Path, kms_key: str | None = None) -> None:
    """Create or replace an object, encrypted by that key. Raises NoBucket."""
    from windlass.local.storage import object_events

    bucket, key = split(uri)
    encryption = "aws:kms" if kms_key else None
    header = "s3:x-amz-server-side-encryption"
    _require("s3:PutObject", uri, {header: "aws:kms", f"{header}-aws-kms-key-id": kms_key} if kms_key else None)
    if not bucket_exists(uri):
        raise NoBucket(uri)
    content = Body.of(body) if isinstance(body, Path) else body
    with object_events.told():
        _backend().put_object(bucket, key, content, encryption=encryption, kms_key_id=kms_key)
        _backend().save_objects()


def keys(prefix: str) -> list[str]:
    """The URIs of all objects that begin with that prefix, in order. Raises NoBucket."""
    bucket, start = split(prefix)
    _require("s3:ListBucket", f"s3://{bucket}", {"s3:prefix": start})
    if not bucket_exists(prefix):
        raise NoBucket(prefix)
    names = [name for name in list(_backend().get_bucket(bucket).keys) if name.startswith(start)]
    return [f"s3://{bucket}/{name}" for name in sorted(names) if _backend().get_object(bucket, name) is not None]


def download(uri: str, dest: Path) -> None:
    """One object into a file. Raises Missing, NoBucket."""
    body = open_body(uri)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with dest.open("wb", buffering=0) as file:
        body.copy_into(file)


def download_prefix(prefix: str, dest: Path) -> list[Path]:
    """All objects under a prefix into a folder, as SageMaker lays a channel out. Raises Missing, NoBucket, ValueError.

    ``s3://b/data`` puts ``data/a/b.csv`` at ``a/b.csv``, a single object ``data.csv`` at its own name.
    """
    dest.mkdir(parents=True, exist_ok=True)
    start = split(prefix)[1]
    folder = start if start.endswith("/") or not start else f"{start}/"
    written = []
    for uri in keys(prefix):
        key = split(uri)[1]
        name = key.removeprefix(folder) if key.startswith(folder) else key[start.rfind("/") + 1 :]
        if not name or name.endswith("/"):
            continue  # the markers that consoles put in place of folders
        path = dest / name
        if not path.resolve().is_relative_to(dest.resolve()):
            raise ValueError(f"The key of '{uri}' climbs out of the folder that it is downloaded to")
        download(uri, path)
        written.append(path)
    if not written:
        raise Missing(prefix)
    return written


def _backend() -> Any:
    from moto.s3.models import s3_backends

    return s3_backends[ACCOUNT]["aws"]


def _require(action: str, uri: str, context: dict[str, str] | None = None) -> None:
    if authorizer.acting() is not None:
        try:
            authorizer.require(action, f"arn:aws:s3:::{uri.removeprefix('s3://')}", context)
        except authorizer.Denied as denial:
            raise Denied(uri, str(denial)) from denial


def _object(uri: str) -> Key:
    _require("s3:GetObject", uri)
    bucket, key = split(uri)
    if not bucket_exists(uri):
        raise NoBucket(uri)
    found: Key | None = _backend().get_object(bucket, key)
    if found is None:
        raise Missing(uri)
    return found
