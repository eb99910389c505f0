"""S3 with its bodies in files: moto keeps buckets, versions, metadata and listings, and never sees a whole body.

A PUT is received into a file before moto's application runs (``take_body``); moto then passes a ``Body`` around where it
thinks it has bytes. What it serves, copies or puts together from parts is read from files piece by piece.
"""

from __future__ import annotations

import base64
import contextlib
import re
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.parsers.expat import ExpatError

from moto.s3 import models
from moto.s3.exceptions import (
    MalformedXML,
    MissingKey,
    NoSuchUpload,
    PreconditionFailed,
    S3ClientError,
)
from moto.s3.models import S3Backend, s3_backends
from moto.s3.responses import S3Response
from werkzeug.datastructures import Headers

from windlass.local import cloud as clouds
from windlass.local.storage import bucket_policy, object_events, objects
from windlass.local.storage.bodies import CHECKSUMS, Body, receive
from windlass.local.storage.objects import Key, KeyStore, Lazy, Upload, Uploads

Environ = dict[str, Any]
WSGI = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

# In the environ of a request: what came, and what goes, past Flask, which would take it into its hands.
_BODY, _ANSWER = "windlass.body", "windlass.answer"

# By object, so that one put together from parts, which may take seconds, does not hold up all the others.
_LOCKS = [threading.RLock() for _ in range(64)]

_READS = ("GET", "HEAD", "OPTIONS")

_ENCRYPTION, _KMS_KEY = "x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id"

# What moto does not know, and so takes for the plain operation: it would answer DeleteBucketMetricsConfiguration by deleting
# the bucket. By what names it in a query.
_NOT_HERE_OF_BUCKETS: Mapping[str, str] = {
    "abac": "attribute-based access to buckets",
    "analytics": "analytics",
    "intelligent-tiering": "intelligent tiering",
    "inventory": "inventories",
    "metadataAnnotationTable": "metadata tables",
    "metadataConfiguration": "metadata tables",
    "metadataInventoryTable": "metadata tables",
    "metadataJournalTable": "metadata tables",
    "metadataTable": "metadata tables",
    "metrics": "request metrics",
    "requestPayment": "requester pays",
    "session": "directory buckets",
}
_NOT_HERE_OF_OBJECTS: Mapping[str, str] = {
    "annotation": "annotations of objects",
    "encryption": "re-encryption of objects in place",
    "renameObject": "directory buckets",
    "torrent": "torrents",
}

# A PUT with one of these says something about an object; its body is a short document, which moto reads itself.
_SUBRESOURCES = frozenset({"acl", "tagging", "retention", "legal-hold", *_NOT_HERE_OF_OBJECTS})


class Backend(S3Backend):  # type: ignore[misc]
    """moto's records, which pass bodies on without reading them."""

    @property
    def _url_module(self) -> Any:
        module = super()._url_module
        paths = {path: getattr(Response, handler.__name__) for path, handler in module.url_paths.items()}
        return types.SimpleNamespace(url_bases=module.url_bases, url_paths=paths)

    def encryption(self, bucket_name: str, asked: str | None = None, key: str | None = None) -> tuple[Any, Any]:
        """The algorithm and the KMS key of a new object: what its request asks for, or else the bucket's default."""
        default = (self.get_bucket(bucket_name).encryption or {}).get("Rule", {})
        default = default.get("ApplyServerSideEncryptionByDefault", {})
        return (asked, key) if asked else (default.get("SSEAlgorithm"), default.get("KMSMasterKeyID"))

    def put_object(self, bucket_name: str, key_name: str, *args: Any, **kwargs: Any) -> Key:
        with _changing(bucket_name, key_name):
            key: Key = super().put_object(bucket_name, key_name, *args, **kwargs)
        if key.multipart is None and key.checksum_value:
            key.checksum_type = "FULL_OBJECT"
        elif key.multipart is None and key.crc64nvme is not None:  # what S3 makes of each object that comes without one
            key.checksum_algorithm, key.checksum_type = "CRC64NVME", "FULL_OBJECT"
            key.checksum_value = base64.b64encode(key.crc64nvme).decode()
        return key

    def create_multipart_upload(
        self,
        bucket_name: str,
        key_name: str,
        metadata: Any,
        storage_type: str,
        tags: Any,
        acl: Any,
        sse_encryption: str | None,
        kms_key_id: str | None,
    ) -> Upload:
        encryption = self.encryption(bucket_name, sse_encryption, kms_key_id)
        made: Upload = super().create_multipart_upload(
            bucket_name, key_name, metadata, storage_type, tags, acl, *encryption
        )
        self.get_bucket(bucket_name).multiparts.changed.add(made.id)
        return made

    def upload_part(self, bucket_name: str, multipart_id: str, part_id: int, value: Body | bytes) -> Key:
        uploads = self.get_bucket(bucket_name).multiparts
        if multipart_id not in uploads:
            raise NoSuchUpload(upload_id=multipart_id)
        part: Key = super().upload_part(bucket_name, multipart_id, part_id, value)
        uploads.sent.add((multipart_id, part_id))
        return part

    def abort_multipart_upload(self, bucket_name: str, multipart_id: str) -> None:
        super().abort_multipart_upload(bucket_name, multipart_id)
        self.get_bucket(bucket_name).multiparts.changed.add(multipart_id)

    def complete_multipart_upload(self, bucket_name: str, multipart_id: str, body: Iterator[tuple[int, str]]) -> Any:
        if multipart_id not in self.get_bucket(bucket_name).multiparts:
            raise NoSuchUpload(upload_id=multipart_id)
        key = super().complete_multipart_upload(bucket_name, multipart_id, body)
        # Only now, so that a kill leaves the upload or the object, or both, of which `restore` keeps the object.
        self.get_bucket(bucket_name).multiparts.changed.add(multipart_id)
        if key.checksum_value and not key.checksum_algorithm:
            key.checksum_algorithm = "CRC64NVME"
        return key

    def save_objects(self) -> None:
        """Bring the rows of all objects and uploads that have changed up to date, and then delete what no row names."""
        objects.save(list(self.buckets.values()))

    def copy_object(self, src_key: Key, *args: Any, **kwargs: Any) -> None:
        super().copy_object(Lazy(src_key), *args, **kwargs)  # with its checksum
        made = self.get_object(*args[:2])
        if made is not None and made.checksum_value:
            made.checksum_type, made.checksum_parts = src_key.checksum_type, src_key.checksum_parts

    def upload_part_copy(
        self,
        dest_bucket_name: str,
        multipart_id: str,
        part_id: int,
        src_bucket_name: str,
        src_key_name: str,
        src_version_id: str | None,
        start_byte: int | None,
        end_byte: int,
    ) -> Key:
        source = self.get_object(src_bucket_name, src_key_name, version_id=src_version_id)
        body = source.open()
        return self.upload_part(
            dest_bucket_name, multipart_id, part_id, body if start_byte is None else body[start_byte : end_byte + 1]
        )

    def delete_object(
        self, bucket_name: str, key_name: str, version_id: str | None = None, bypass: bool = False
    ) -> tuple[bool, dict[str, Any]]:
        bucket = self.get_bucket(bucket_name)
        with _changing(bucket_name, key_name):
            before = {str(version.version_id) for version in bucket.keys.getlist(key_name, [])}
            done, answered = super().delete_object(bucket_name, key_name, version_id, bypass)
        if done and bucket.is_versioned and version_id is None:
            object_events.note(bucket, "ObjectRemoved:DeleteMarkerCreated", key_name, answered["version-id"])
        elif done and (not bucket.is_versioned or str(version_id) in before):
            object_events.note(bucket, "ObjectRemoved:Delete", key_name, str(version_id))
        return done, answered

    def delete_objects(self, bucket_name: str, objects: list[dict[str, Any]], bypass_retention: bool = False) -> Any:
        if any("ETag" in each for each in objects):  # moto would delete them whatever they are
            raise S3ClientError(
                "NotImplemented",
                "The local cloud does not implement the ETag of an object in DeleteObjects: send DeleteObject with IfMatch.",
            )
        return super().delete_objects(bucket_name, objects, bypass_retention)

    def put_bucket_policy(self, bucket_name: str, policy: bytes | str) -> None:
        bucket_policy.check(policy.decode("utf-8", "replace") if isinstance(policy, bytes) else policy)
        super().put_bucket_policy(bucket_name, policy)

    def delete_bucket(self, bucket_name: str) -> Any:
        deleted = super().delete_bucket(bucket_name)
        if deleted:
            for upload in deleted.multiparts.values():
                upload.dispose()
            ids = [(id_,) for id_ in deleted.multiparts]
            clouds.current().database.write(
                ("DELETE FROM uploads WHERE id = ?", ids), ("DELETE FROM parts WHERE upload = ?", ids)
            )
        return deleted


class Response(S3Response):  # type: ignore[misc]
    """One request, with its body in a file."""

    headers: Any

    def setup_class(self, request: Any, full_url: str | None = None, headers: Any = None) -> None:
        super().setup_class(request, full_url, headers)
        if (body := request.environ.get(_BODY)) is not None:
            self.body = body

    def key_response(self, request: Any, full_url: str, headers: Any) -> Any:
        # It is looked whether If-Match holds, and then written; nobody else may write in between.
        with contextlib.nullcontext() if request.method in _READS else _changing(*_named(request.environ)):
            status, answered, content = super().key_response(request, full_url, headers)
        if isinstance(content, Body) and request.method == "GET":
            request.environ[_ANSWER] = content
        if request.method == "HEAD" and any(name.startswith("x-amz-checksum-") for name in answered):
            self._say_all_of_the_checksum(answered)
        if request.method not in _READS:
            bucket = self.backend.buckets.get(self.bucket_name)
            if bucket and self.parse_key_name() in bucket.keys:
                bucket.keys.changed.add(self.parse_key_name())  # its tags, its retention: in place
            self.backend.save_objects()
            clouds.current().snapshot.touch()  # tags
        return status, answered, content

    def _key_response(self, request: Any, full_url: str) -> Any:
        query = parse_qs(urlsplit(full_url).query, keep_blank_values=True)
        _refuse(query, _NOT_HERE_OF_OBJECTS)
        if request.method not in _READS:
            self._keep_conditions(request.method, query)
        try:
            return super()._key_response(request, full_url)
        except ExpatError as error:
            raise MalformedXML from error

    def _bucket_response(self, request: Any, full_url: str) -> Any:
        _refuse(parse_qs(urlsplit(full_url).query, keep_blank_values=True), _NOT_HERE_OF_BUCKETS)
        try:
            return super()._bucket_response(request, full_url)
        except ExpatError as error:
            raise MalformedXML from error

    def _keep_conditions(self, method: str, query: Mapping[str, Any]) -> None:
        """Raise S3's error unless If-Match and If-None-Match hold: moto looks at each for some of the operations only."""
        wanted, none = self.headers.get("If-Match"), self.headers.get("If-None-Match")
        upload = query.get("uploadId", [None])[0]
        if not (wanted or none) or "partNumber" in query or not _SUBRESOURCES.isdisjoint(query):
            return
        existing = self.backend.get_object(self.bucket_name, self.parse_key_name())
        if upload and (method == "DELETE" or getattr(getattr(existing, "multipart", None), "id", None) == upload):
            return  # nothing is written; or it was before, and is asked for again
        if none == "*" and existing is not None:
            raise PreconditionFailed("If-None-Match")
        if wanted and existing is None:
            raise PreconditionFailed("If-Match") if wanted == "*" else MissingKey(key=self.parse_key_name())
        if wanted and wanted != "*" and wanted.strip('"') != existing.etag.strip('"'):
            raise PreconditionFailed("If-Match")
        self.headers = Headers(list(self.headers))
        for name in ("If-Match", "If-None-Match"):
            self.headers.remove(name)  # moto does not know the asterisk everywhere

    def _handle_range_header(self, request: Any, response_headers: dict[str, Any], response_content: Any) -> Any:
        """The part that is asked for; or all, as S3 gives it where that is no single range, or of what it has no more."""
        validator = request.headers.get("If-Range")
        stale = validator and validator not in (response_headers.get("ETag"), response_headers.get("last-modified"))
        if stale or not re.fullmatch(r"bytes=(\d+-\d*|-\d+)", request.headers["range"].replace(" ", "")):
            return 200, response_headers, response_content
        return super()._handle_range_header(request, response_headers, response_content)

    def put_object(self) -> Any:
        status, headers, content = super().put_object()
        made = self.body.crc64nvme if isinstance(self.body, Body) else None
        if made is not None and not any(f"x-amz-checksum-{name.lower()}" in headers for name in CHECKSUMS):
            headers["x-amz-checksum-crc64nvme"] = base64.b64encode(made).decode()
        headers["x-amz-checksum-type"] = "FULL_OBJECT"
        return status, headers, content

    def upload_part(self) -> Any:
        status, headers, content = super().upload_part()
        part = self._upload().parts[self._get_int_param("partNumber")]
        for name in CHECKSUMS:
            if value := headers.get(f"x-amz-checksum-{name.lower()}"):
                part.checksum_algorithm, part.checksum_value = name, value
        uploads = self.backend.get_bucket(self.bucket_name).multiparts
        uploads.sent.add((self._get_param("uploadId"), self._get_int_param("partNumber")))
        return status, headers, content

    def serialized(self, action_result: Any) -> Any:
        """The answer as XML; with what moto leaves out."""
        if self.data.get("Action") == "GetBucketNotificationConfiguration":
            kept = self.backend.get_bucket_notification_configuration(self.bucket_name)
            if kept is not None and kept.event_bridge is not None:
                action_result.result["EventBridgeConfiguration"] = {}
        if self.data.get("Action") == "ListParts":
            for listed in action_result.result.get("Parts") or ():
                part = self._upload().parts[listed["PartNumber"]]
                if part.checksum_value:
                    listed[f"Checksum{part.checksum_algorithm}"] = part.checksum_value
        return super().serialized(action_result)

    def _say_all_of_the_checksum(self, headers: dict[str, Any]) -> None:
        """Its type, and the number of parts that it is made of: moto's HEAD leaves both out."""
        version = self.querystring.get("versionId", [None])[0]
        key = self.backend.get_object(self.bucket_name, self.parse_key_name(), version_id=version)
        if key is not None and key.checksum_type:
            headers["x-amz-checksum-type"] = key.checksum_type
            if key.checksum_type == "COMPOSITE":
                headers[f"x-amz-checksum-{key.checksum_algorithm.lower()}"] = (
                    f"{key.checksum_value}-{key.checksum_parts}"
                )

    def _upload(self) -> Any:
        return self.backend.get_bucket(self.bucket_name).multiparts[self._get_param("uploadId")]

    def _key_response_post(
        self, request: Any, body: Any, bucket_name: str, query: dict[str, Any], key_name: str
    ) -> Any:
        status, headers, content = super()._key_response_post(request, body, bucket_name, query, key_name)
        if status == 200 and "uploads" in query:
            asked = (self.headers.get(_ENCRYPTION), self.headers.get(_KMS_KEY))
            for name, value in zip((_ENCRYPTION, _KMS_KEY), self.backend.encryption(bucket_name, *asked), strict=True):
                if value:
                    headers[name] = value
        return status, headers, content

    def _notification_config_from_body(self) -> dict[str, Any]:
        try:
            configuration: dict[str, Any] = super()._notification_config_from_body()
        except AssertionError:
            raise S3ClientError("InvalidArgument", "filter rule name must be either prefix or suffix") from None
        skip = str(self.headers.get("x-amz-skip-destination-validation", "")).lower() == "true"
        object_events.check(self.backend.get_bucket(self.bucket_name), configuration, destinations=not skip)
        return configuration

    def bucket_response(self, request: Any, full_url: str, headers: Any) -> Any:
        answer = super().bucket_response(request, full_url, headers)
        if request.method not in _READS:
            self.backend.save_objects()
            # Objects are saved at once; their bucket must not come after them.
            clouds.current().snapshot.save()
        return answer

    def _get_key(self, validate_storage_class: bool = True) -> tuple[Lazy, bool]:
        key, not_modified = super()._get_key(validate_storage_class)
        return Lazy(key), not_modified


def register() -> None:
    """Put ours in the place of moto's, before its first request."""
    models._VersionedKeyStore = KeyStore
    models.FakeKey = Key
    models.FakeMultipart = Upload
    models.MultipartDict = Uploads
    s3_backends.backend = Backend
    s3_backends.clear()
    object_events.register()


def serve(application: WSGI, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """What moto's application answers to this request, with bodies in files on the way in and on the way out.

    Raises:
        bodies.Refused: what came is not what the request announces.
    """
    with _body_taken(environ) if _has_body(environ) else contextlib.nullcontext(), object_events.told():
        answer = application(environ, start_response)
    body: Body | None = environ.get(_ANSWER)
    return answer if body is None else body


@contextlib.contextmanager
def _body_taken(environ: Environ) -> Iterator[None]:
    """Meanwhile the request has no body, but a file."""
    body, trailers = receive(environ, objects.folder(), md5=not _of_kms(environ))
    try:
        environ[_BODY] = body
        environ["CONTENT_LENGTH"] = "0"
        environ.pop("HTTP_X_AMZ_CONTENT_SHA256", None)  # says how it was encoded; moto must not decode it again
        environ.update({f"HTTP_{name.upper().replace('-', '_')}": value for name, value in trailers.items()})
        for name in CHECKSUMS:
            if f"HTTP_X_AMZ_CHECKSUM_{name}" in environ:
                environ.setdefault("HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM", name)
        yield
    finally:
        if body.unclaimed:
            objects.folder().delete(body.pieces)


def _refuse(query: Mapping[str, Any], not_here: Mapping[str, str]) -> None:
    for name in query:
        if name in not_here:
            raise S3ClientError("NotImplemented", f"The local cloud does not implement {not_here[name]} of S3.")


def _has_body(environ: Mapping[str, Any]) -> bool:
    """Whether this is PutObject or UploadPart."""
    if environ["REQUEST_METHOD"] != "PUT" or "HTTP_X_AMZ_COPY_SOURCE" in environ:
        return False
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    if not _SUBRESOURCES.isdisjoint(query):
        return False
    path = environ["PATH_INFO"].lstrip("/")
    if path.startswith(("moto-api/", "v20180820/")):
        return False
    if _bucket_in_host(environ.get("HTTP_HOST", "")):
        return bool(path)
    return bool(path.partition("/")[2])


def _changing(bucket: str, key: str) -> threading.RLock:
    """What a change of an object holds; some objects share one."""
    return _LOCKS[hash((bucket, key)) % len(_LOCKS)]


def _named(environ: Mapping[str, Any]) -> tuple[str, str]:
    """Bucket and key of a request."""
    path = environ["PATH_INFO"].encode("latin-1", "replace").decode("utf-8", "replace").removeprefix("/")
    if bucket := _bucket_in_host(environ.get("HTTP_HOST", "")):
        return bucket, path
    bucket, _, key = path.partition("/")
    return bucket, key


def _bucket_in_host(host: str) -> str:
    """``models`` of ``models.s3.amazonaws.com``; empty where the path says it."""
    name = host.rpartition(":")[0] or host
    found = re.fullmatch(r"(.+?)\.(s3\.localhost\.localstack\.cloud|s3[.-].*amazonaws\.com|localhost)", name)
    return found[1] if found else ""


def _of_kms(environ: Mapping[str, Any]) -> bool:
    """Whether what comes is for KMS to encrypt. Its ETag is then no MD5, on AWS neither, and none need be made."""
    bucket_name = _bucket_in_host(environ.get("HTTP_HOST", "")) or environ["PATH_INFO"].lstrip("/").partition("/")[0]
    partition, account = s3_backends.bucket_accounts.get(bucket_name, ("", ""))
    bucket = s3_backends[account][partition].buckets.get(bucket_name) if account else None
    if bucket is None:
        return False
    query = parse_qs(environ.get("QUERY_STRING", ""))
    if "uploadId" in query:
        upload = bucket.multiparts.get(query["uploadId"][0])
        return upload is not None and objects.by_kms(upload.sse_encryption)
    asked = environ.get("HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION")
    return objects.by_kms(s3_backends[account][partition].encryption(bucket_name, asked)[0])
