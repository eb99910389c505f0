"""One S3 object sent in parts: each is checked by S3 on arrival, and an upload that broke off goes on where it was.

    upload = Upload("bucket", "key", where, unfinished=upload_id)      # or "" to begin anew
    if not upload.has(1, len(body), sha256, md5): upload.send(1, body, sha256)
    upload.complete()                                                  # CorruptArtifact if S3 put other parts together

Parts may be sent from several threads, and by two programs at once: the same part twice is the same part.
"""

from __future__ import annotations

import abc
import base64
import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from windlass import aws
from windlass.errors import AccessDenied, CorruptArtifact, InvalidInput, NotFound, ServiceError

T = TypeVar("T")

PART_LEAST, PARTS_MOST = 5 << 20, 10_000  # S3 user guide, multipart upload limits; the last part may be smaller

# Another program completed or aborted the upload, or put other bytes in the place of a part of ours.
_TAKEN = frozenset(["NoSuchUpload", "InvalidPart", "InvalidPartOrder"])


class Upload:
    """An upload under way.

    Args:
        unfinished: id of one that broke off; its parts are taken over where they hold what they should.
    """

    def __init__(self, bucket: str, key: str, where: str, *, unfinished: str = "") -> None:
        self._where, self._s3 = where, aws.client("s3")
        self._of: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self._there: dict[int, Mapping[str, Any]] = {}
        self._parts: dict[int, tuple[str, str]] = {}  # number -> ETag, sha256
        if unfinished:
            self._of["UploadId"] = unfinished
            listed = aws.pages(where, "s3", "list_parts", "Parts", **self._of)
            self._there = {part["PartNumber"]: part for part in listed}
        else:
            made = self._call(self._s3.create_multipart_upload, ChecksumAlgorithm="SHA256")
            self._of["UploadId"] = made["UploadId"]

    def has(self, number: int, size: int, sha256: str, md5: Callable[[], str]) -> bool:
        """Whether an upload that broke off left this part."""
        part = self._there.get(number)
        if part is None or part["Size"] != size:
            return False
        # Stores that list no checksum give an MD5 as ETag; where it is neither (KMS), the part is sent again.
        said = part.get("ChecksumSHA256")
        if said != in_base64(sha256) and (said or part["ETag"].strip('"') != md5()):
            return False
        self._parts[number] = (part["ETag"], sha256)
        return True

    def send(self, number: int, body: Any, sha256: str) -> None:
        """Send a part: bytes, or a file-like object that can be rewound. S3 refuses it when it is not what was hashed."""
        answer = self._call(self._s3.upload_part, PartNumber=number, Body=body, ChecksumSHA256=in_base64(sha256))
        self._parts[number] = (answer["ETag"], sha256)

    def copy(self, number: int, source: Mapping[str, str], offset: int, size: int, sha256: str) -> bool:
        """Take a part from another object on S3. False when S3 says that other bytes are there, or the object is gone."""
        stretch = f"bytes={offset}-{offset + size - 1}"
        try:
            answer = self._call(
                self._s3.upload_part_copy, PartNumber=number, CopySource=dict(source), CopySourceRange=stretch
            )["CopyPartResult"]
        except NotFound as error:
            if error.code in _TAKEN:
                raise
            return False
        if answer.get("ChecksumSHA256", in_base64(sha256)) != in_base64(sha256):
            return False
        self._parts[number] = (answer["ETag"], sha256)
        return True

    def complete(self) -> None:
        """Put the parts together.

        Raises:
            CorruptArtifact: S3 says that it put other parts together than were sent.
        """
        parts = [
            {"PartNumber": number, "ETag": tag, "ChecksumSHA256": in_base64(sha256)}
            for number, (tag, sha256) in sorted(self._parts.items())
        ]
        done = self._call(self._s3.complete_multipart_upload, MultipartUpload={"Parts": parts})
        said = done.get("ChecksumSHA256", "").partition("-")[0]
        if said and said != in_base64(of_parts(sha256 for _, (_, sha256) in sorted(self._parts.items()))):
            what = "S3 put it together from other parts than were sent"
            raise CorruptArtifact(what, where=self._where, hint="Publish again.")

    def abort(self) -> None:
        """Give up: S3 forgets the parts, which cost storage until then."""
        try:
            self._call(self._s3.abort_multipart_upload)
        except NotFound:
            return  # another program ended it

    def _call(self, operation: Callable[..., Any], **params: Any) -> Any:
        with checked(self._where):
            return aws.call(self._where, operation, **self._of, **params)


def until_ours(work: Callable[[str], T], unfinished: str) -> T:
    """Do ``work`` with the id of an unfinished upload; and anew, with none, when another program ended that meanwhile."""
    for _ in range(2):
        try:
            return work(unfinished)
        except ServiceError as error:
            if error.code not in _TAKEN:
                raise
            unfinished = ""
    return work("")


def unfinished(bucket: str, prefix: str, where: str) -> dict[str, str]:
    """Key -> id of the newest upload that broke off, or is under way, below a prefix.

    Whoever may not list them (``s3:ListBucketMultipartUploads``) begins anew each time.
    """
    found = aws.pages(where, "s3", "list_multipart_uploads", "Uploads", Bucket=bucket, Prefix=prefix)
    try:
        return {item["Key"]: item["UploadId"] for item in sorted(found, key=lambda item: item["Initiated"])}
    except AccessDenied:
        return {}


def put(bucket: str, key: str, body: Any, sha256: str, where: str) -> None:
    """Send a small object whole."""
    with checked(where):
        params = {"Bucket": bucket, "Key": key, "Body": body, "ChecksumSHA256": in_base64(sha256)}
        aws.call(where, aws.client("s3").put_object, **params)


class Body(io.RawIOBase):
    """A body that botocore can read, measure and rewind. What it is made of says how to fill a buffer from a place in it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self._at = size, 0

    @abc.abstractmethod
    def fill(self, buffer: memoryview, at: int) -> int:
        """Copy bytes from ``at`` on. Returns how many, at least one: the buffer never reaches beyond the end."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        count = self.fill(view, self._at) if view else 0
        self._at += count
        return count


@contextlib.contextmanager
def checked(where: str) -> Iterator[None]:
    """A digest that S3 refuses, as an error that says what it means."""
    try:
        yield
    except ServiceError as error:
        if error.code not in ("BadDigest", "XAmzContentChecksumMismatch", "InvalidDigest"):
            raise
        hint = "Build it again, then publish; if no file changed, the network damages what it carries."
        what = "a file is not what it was when the bundle was built"
        raise InvalidInput(what, where=where, hint=hint) from error


def in_base64(sha256: str) -> str:
    """As S3 writes a checksum."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def of_parts(digests: Iterable[str]) -> str:
    """What S3 calls a composite checksum: the SHA-256 of the parts' SHA-256."""
    return hashlib.sha256(b"".join(bytes.fromhex(sha256) for sha256 in digests)).hexdigest()
