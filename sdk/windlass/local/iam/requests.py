"""The API call in an HTTP request: service, operation, parameters, and whose access key signed it.

call = requests.read(environ)       # a body that was read can be read again
call.service, call.operation, call.params, call.access_key
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from botocore import xform_name
from moto.core.parse import PROTOCOL_PARSERS
from moto.core.request import Request, determine_request_protocol
from moto.core.routing import get_service_router
from moto.core.utils import get_service_model
from werkzeug.exceptions import NotFound

Environ = dict[str, Any]

# Where the name in a signature's scope is not that of the service's model. A model of the data plane goes by its paths.
_MODELS = {"monitoring": "cloudwatch", "elasticloadbalancing": "elbv2"}
_MOST_BYTES = 32 << 20  # more than any service but S3 takes
_BODYLESS_FOR_S3 = frozenset({"delete", "tagging", "acl", "uploads", "uploadId"})


@dataclass(frozen=True)
class Call:
    """One call of an AWS API.

    Attributes:
        service: botocore's name of its model.
        prefix: what its actions begin with, ``sagemaker``.
        operation: ``CreateTrainingJob``; empty when the request is for none that is known.
        params: as the service's model has them.
        access_key: of who signed it; empty when nobody did.
        token: the session's, if one came.
        region: of the signature.
        headers: those of the request, in lower case.
        source_ip: of the client.
    """

    service: str
    prefix: str
    operation: str
    params: Mapping[str, Any]
    access_key: str = ""
    token: str = ""
    region: str = "us-east-1"
    headers: Mapping[str, str] = field(default_factory=dict)
    source_ip: str = "127.0.0.1"
    body: bytes | None = None


def read(environ: Environ) -> Call:
    """What is asked, and by whom. The body is read only where it says so, and put back."""
    access_key, region, scope, token = _signer(environ)
    service = _service(environ, scope)
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
    }
    body = None if _is_stream(environ, service) else _body(environ)
    try:
        operation, params = _parsed(environ, service, body or b"")
    except (NotFound, NotImplementedError, LookupError, ValueError, TypeError, AttributeError, OSError):
        operation, params = _target(environ), {}  # no well-formed call: the service refuses it in its own way
    prefix = {"cloudwatch": "cloudwatch", "sagemaker-runtime": "sagemaker", "sagemaker-metrics": "sagemaker"}.get(
        service, "cloudwatch" if scope == "monitoring" else scope
    )
    return Call(
        service,
        prefix,
        operation,
        params,
        access_key,
        token,
        region,
        headers,
        str(environ.get("REMOTE_ADDR") or "127.0.0.1"),
        body,
    )


def _signer(environ: Environ) -> tuple[str, str, str, str]:
    """Access key, region, service and session token of a signature in the header or in the query."""
    credential = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition(",")[0].strip()
    token = environ.get("HTTP_X_AMZ_SECURITY_TOKEN", "")
    if not credential:
        query = parse_qs(environ.get("QUERY_STRING", ""))
        credential = query.get("X-Amz-Credential", [""])[0]
        token = query.get("X-Amz-Security-Token", [token])[0]
        if not credential and (key := query.get("AWSAccessKeyId", [""])[0]):  # the presigned URLs of old
            return key, "us-east-1", "s3", query.get("x-amz-security-token", [token])[0]
    parts = credential.split("/")
    if len(parts) < 5:
        return "", "us-east-1", "s3", ""
    return "/".join(parts[:-4]), parts[-3], parts[-2], token


def _service(environ: Environ, scope: str) -> str:
    path = environ.get("PATH_INFO", "")
    if scope == "sagemaker":
        if path.startswith("/endpoints/"):
            return "sagemaker-runtime"
        if path.startswith("/BatchPutMetrics"):
            return "sagemaker-metrics"
    return _MODELS.get(scope, scope)


def _is_stream(environ: Environ, service: str) -> bool:
    """Whether its body is an object, which says nothing about what is asked and may be of any size."""
    if service != "s3":
        return False
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    return environ["REQUEST_METHOD"] not in ("POST",) or _BODYLESS_FOR_S3.isdisjoint(query)


def _body(environ: Environ) -> bytes:
    """The whole body, put back for whoever reads it next."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length <= 0 and not environ.get("wsgi.input_terminated"):
        return b""
    body: bytes = environ["wsgi.input"].read(min(length, _MOST_BYTES) if length else _MOST_BYTES)
    environ["wsgi.input"] = _Again(body, environ["wsgi.input"]) if length > _MOST_BYTES else io.BytesIO(body)
    return body


class _Again:
    """What was read, and then the rest."""

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first, self._rest = io.BytesIO(first), rest

    def read(self, size: int = -1) -> bytes:
        data = self._first.read(size)
        more: bytes = self._rest.read(size - len(data) if size >= 0 else -1) if size < 0 or len(data) < size else b""
        return data + more


def _target(environ: Environ) -> str:
    return str(environ.get("HTTP_X_AMZ_TARGET", "")).rpartition(".")[2]


def _parsed(environ: Environ, service: str, body: bytes) -> tuple[str, Mapping[str, Any]]:
    if environ.get("HTTP_CONTENT_ENCODING") == "gzip":
        body = gzip.decompress(body)
    if operation := _target(environ):
        params = json.loads(body or b"{}")
        return operation, params if isinstance(params, dict) else {}
    if environ.get("HTTP_SMITHY_PROTOCOL") == "rpc-v2-cbor":
        return environ.get("PATH_INFO", "").rpartition("/")[2], {}
    copy = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    copy.pop("HTTP_CONTENT_ENCODING", None)
    request = Request(copy)
    model, labels = get_service_router(service).match(request)
    parser = PROTOCOL_PARSERS[determine_request_protocol(get_service_model(service), request.content_type)](model)
    parsed = parser.parse(
        {
            "method": request.method,
            "values": request.values,
            "headers": request.headers,
            "body": body,
            "url_path": request.path,
            "url_params": labels,
        }
    )
    return model.name, parsed


def pythonic(operation: str) -> str:
    """``CreateTrainingJob`` -> ``create_training_job``."""
    return str(xform_name(operation))
