"""The one seam to AWS: the only module that imports boto3.

    sagemaker = aws.client("sagemaker")
    with aws.errors("Describing endpoint 'digits'"):
        answer = sagemaker.describe_endpoint(EndpointName="digits")

Clients are plain boto3 ones from the default session, so profiles, SSO, regions and endpoint URLs are configured the way boto3
documents it. Errors leave here as :mod:`windlass.errors`, never as botocore's.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.eventstream
import botocore.exceptions
import urllib3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from windlass import __version__
from windlass.errors import (
    AccessDenied,
    Conflict,
    InvalidInput,
    ModelFailed,
    NotFound,
    QuotaExceeded,
    Refused,
    ServiceError,
    Throttled,
    Unreachable,
    WaitTimeout,
    WindlassError,
)
from windlass.plans import Plan, Request, Upload

T = TypeVar("T")

_CONFIG = Config(
    retries={"mode": "standard", "max_attempts": 5},
    user_agent_extra=f"windlass/{__version__}",
    max_pool_connections=32,
    read_timeout=70,  # InvokeEndpoint answers within 60 s
)

# Predictions may cost money or write something, and botocore would repeat them after a read timeout: `retries` knows better.
# Connections are kept, one for each of the threads that ask at once.
_RUNTIME_CONFIG = _CONFIG.merge(
    Config(retries={"mode": "standard", "total_max_attempts": 1}, connect_timeout=10, tcp_keepalive=True)
)

_lock = threading.Lock()
_clients: dict[tuple[str, str | None], Any] = {}
_session: boto3.session.Session | None = None


def client(service: str, *, region: str | None = None) -> Any:
    """A boto3 client of the default session, made once; clients are thread-safe, making them is not.

    ``boto3.setup_default_session(profile_name=...)`` chooses another account, as for any boto3 program.
    """
    global _session
    with _lock, errors(f"Connecting to {service}"):
        if boto3.DEFAULT_SESSION is None:
            boto3.setup_default_session()
        if boto3.DEFAULT_SESSION is not _session:
            _clients.clear()
            _session = boto3.DEFAULT_SESSION
        assert _session is not None
        key = (service, region)
        if key not in _clients:
            config = _RUNTIME_CONFIG if service == "sagemaker-runtime" else _CONFIG
            _clients[key] = _session.client(service, region_name=region, config=config)
        return _clients[key]


@contextlib.contextmanager
def acting_as(role_arn: str) -> Iterator[None]:
    """Within it all clients act as a role, of another account if it is one; without one, nothing changes."""
    if not role_arn:
        yield
        return
    answer = call(
        f"Assuming {role_arn}", client("sts").assume_role, RoleArn=role_arn, RoleSessionName="windlass-promote"
    )
    credentials, before = answer["Credentials"], boto3.DEFAULT_SESSION
    boto3.setup_default_session(
        aws_access_key_id=credentials["AccessKeyId"],
        aws_secret_access_key=credentials["SecretAccessKey"],
        aws_session_token=credentials["SessionToken"],
        region_name=region(),
    )
    try:
        yield
    finally:
        boto3.DEFAULT_SESSION = before


def region() -> str:
    """The region that requests go to."""
    return str(client("sagemaker").meta.region_name)


# ----------------------------------------------------------------------------------------------------------------- errors

# AWS's codes, by what they mean to a user. The first table that names a code wins; prefixes of messages tell apart what
# SageMaker calls ValidationException throughout.
_KINDS: tuple[tuple[type[ServiceError], frozenset[str]], ...] = (
    (
        NotFound,
        frozenset(
            "ResourceNotFound ResourceNotFoundException NoSuchKey NoSuchBucket NoSuchEntity ParameterNotFound 404 "
            "NotFoundException".split()
        ),
    ),
    (
        Conflict,
        frozenset(
            "ResourceInUse ResourceInUseException AlreadyExistsException EntityAlreadyExists ConflictException "
            "BucketAlreadyExists BucketAlreadyOwnedByYou OperationAborted ParameterAlreadyExists".split()
        ),
    ),
    (
        QuotaExceeded,
        frozenset("ResourceLimitExceeded LimitExceeded LimitExceededException ServiceQuotaExceededException".split()),
    ),
    (
        AccessDenied,
        frozenset(
            "AccessDenied AccessDeniedException AccessDeniedFault UnauthorizedOperation ExpiredToken ExpiredTokenException "
            "InvalidClientTokenId UnrecognizedClientException SignatureDoesNotMatch InvalidAccessKeyId AuthFailure "
            "403 Forbidden KMSAccessDeniedException".split()
        ),
    ),
    (
        Throttled,
        frozenset("Throttling ThrottlingException TooManyRequestsException RequestLimitExceeded SlowDown".split()),
    ),
    (ModelFailed, frozenset(["ModelError", "ModelStreamError"])),
    (
        Refused,
        frozenset(
            "ValidationException ValidationError InvalidParameterValue InvalidParameterCombination InvalidParameter "
            "MissingParameter InvalidRequest InvalidArgument".split()
        ),
    ),
)
_MISSING = ("could not find", "does not exist", "not found", "cannot find", "no such")
_EXISTING = ("already exist", "cannot create already", "cannot update in-progress", "is currently updating")

_HINTS: dict[type[ServiceError], str] = {
    AccessDenied: "Check credentials (aws sts get-caller-identity) and the role's policies.",
    QuotaExceeded: "Ask for quota in Service Quotas, or pass another instance_type=.",
    Throttled: "Wait a little, and try again.",
}
# Where what there is can be seen, by the operation that did not find something.
_LISTINGS = {
    "DescribeEndpoint": "See what there is: windlass status.",
    "DescribeTrainingJob": "See what there is: windlass runs list.",
    "HeadBucket": "See the project's own one: windlass infra status.",
    "ListModelPackages": "Register one: windlass register RUN --model NAME.",
}
_ENUM = re.compile(r"(Value '(.*?)' at .* enum value set: )\[(.*)\]")


# There was no connection that the request could have gone through.
_BEFORE_SENDING = (
    botocore.exceptions.EndpointConnectionError,
    botocore.exceptions.ConnectTimeoutError,
    botocore.exceptions.ProxyConnectionError,
    botocore.exceptions.SSLError,
)


@contextlib.contextmanager
def errors(where: str) -> Iterator[None]:
    """Turn botocore's errors into Windlass's own, saying where they came up."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        raise translate(error, where) from error
    except botocore.exceptions.ParamValidationError as error:
        raise InvalidInput(str(error).replace("\n", " "), where=where) from error
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        hint = "Run aws configure or aws sso login, or set AWS_PROFILE."
        raise AccessDenied(f"no AWS credentials ({error})", where=where, hint=hint) from error
    except botocore.exceptions.NoRegionError as error:
        raise InvalidInput("no AWS region", where=where, hint="Set AWS_DEFAULT_REGION, as in us-east-1.") from error
    except (
        botocore.exceptions.EndpointConnectionError,
        botocore.exceptions.ConnectionClosedError,
        botocore.exceptions.HTTPClientError,
    ) as error:
        hint = "Check the network and the endpoint URL (is the local cloud running?)."
        unreachable = Unreachable(str(error), where=where, hint=hint)
        unreachable.sent = not isinstance(error, _BEFORE_SENDING)
        raise unreachable from error
    except urllib3.exceptions.HTTPError as error:  # of answers that are read after the call: botocore lets it through
        raise Unreachable(f"the answer broke off: {error}", where=where, hint="Check the network.") from error
    except (botocore.exceptions.BotoCoreError, botocore.eventstream.ParserError) as error:
        raise ServiceError(str(error), where=where) from error
    except boto3.exceptions.Boto3Error as error:
        cause = error.__context__
        if isinstance(cause, botocore.exceptions.ClientError):
            raise translate(cause, where) from error
        raise ServiceError(str(error), where=where) from error


def translate(error: botocore.exceptions.ClientError, where: str) -> ServiceError:
    """The Windlass error for an AWS one. Keeps its code, operation and request id."""
    body, metadata = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    code, message = str(body.get("Code", "")), str(body.get("Message", error))
    kind: type[ServiceError] = next((kind for kind, codes in _KINDS if code in codes), ServiceError)
    if kind is Refused:
        lower = message.lower()
        if any(phrase in lower for phrase in _EXISTING):
            kind = Conflict
        elif any(phrase in lower for phrase in _MISSING):
            kind = NotFound
    if kind is ModelFailed:
        message = str(error.response.get("OriginalMessage") or message)
    elif code == "404":  # the answer to a HEAD has no body to say it in
        message = "it does not exist"
    elif code not in message:
        message = f"{code}: {message}"
    return kind(
        _ENUM.sub(_nearest, message),
        where=where,
        hint=_HINTS.get(kind, _LISTINGS.get(error.operation_name, "") if kind is NotFound else ""),
        code=code,
        operation=error.operation_name,
        request_id=str(metadata.get("RequestId", "")),
        retry_after=str(metadata.get("HTTPHeaders", {}).get("retry-after", "")),
        status=int(
            error.response.get("OriginalStatusCode")
            or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        ),
    )


def _nearest(found: re.Match[str]) -> str:
    """SageMaker answers a wrong instance type with all hundreds that there are: those most like it are enough."""
    valid = found[3].split(", ")
    near = difflib.get_close_matches(found[2], valid, n=5, cutoff=0)
    return f"{found[1]}{', '.join(near)} and {len(valid) - 5} more" if len(valid) > 20 else found[0]


def call(where: str, operation: Callable[..., T], /, **params: Any) -> T:
    """One call with its errors translated: ``aws.call("Reading it", ssm.get_parameter, Name="...")``."""
    with errors(where):
        return operation(**params)


def hang_up(events: Any) -> None:
    """Let the end of an event stream come now for the thread that waits for its next event, and then closes it.

    Closing it from here would wait for that thread; only the socket itself can be told (urllib3 2.3 and later).
    """
    with contextlib.suppress(AttributeError, ValueError, RuntimeError, OSError):  # it has ended meanwhile
        events._raw_stream.shutdown()


def pages(where: str, service: str, operation: str, key: str, **params: Any) -> Iterator[Any]:
    """Every item of a paged listing, by boto3's own paginator."""
    with errors(where):
        for page in client(service).get_paginator(operation).paginate(**params):
            yield from page.get(key, [])


# ------------------------------------------------------------------------------------------------------------------ plans


def execute(plan: Plan, on_progress: Callable[[str], None] | None = None) -> list[Any]:
    """Do what a plan says, in order. If a request fails, the error names what was already made.

    Returns:
        The answer to each request.
    """
    made: list[str] = []
    answers = []
    doing = f"{plan.verb.capitalize()} {plan.name}"
    try:
        for upload in plan.uploads:
            if on_progress:
                on_progress(f"uploading {upload.source.name}")
            put(upload)
        for request in plan.requests:
            answers.append(_send(request, doing))
            made.append(_made(request))
    except WindlassError as error:
        if made:
            error.hint = f"{error.hint} Already made: {', '.join(made)}.".strip()
        raise
    return answers


def _send(request: Request, doing: str) -> Any:
    return call(doing, getattr(client(request.service), request.operation), **request.params)


def _made(request: Request) -> str:
    names = (str(value) for key, value in request.params.items() if key.endswith("Name") and isinstance(value, str))
    return f"{request.operation.split('_', 1)[1].replace('_', ' ')} {next(names, '')}".strip()


# --------------------------------------------------------------------------------------------------------------------- S3


def split(uri: str, where: str = "Reading an S3 URI") -> tuple[str, str]:
    """``s3://bucket/key`` -> ``(bucket, key)``."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc:
        raise InvalidInput(f"{uri!r} is not an S3 URI", where=where, hint="It looks like s3://bucket/prefix.")
    return parts.netloc, uri.split(parts.netloc, 1)[1].lstrip("/")


_TRANSFER = TransferConfig(max_concurrency=max(2, min(8, os.cpu_count() or 2)))


def put(upload: Upload) -> bool:
    """Upload a file or a folder, unless it is there. The URI is content-addressed, so being there is being the same.

    A folder is complete once its marker object is; the marker is written last, so a broken upload is done again.

    Returns:
        Whether any byte was sent.
    """
    where = f"Uploading {upload.source} to {upload.uri}"
    bucket, key = split(upload.uri, where)
    s3 = client("s3")
    if upload.source.is_file():
        if exists(upload.uri):
            return False
        with errors(where):
            s3.upload_file(str(upload.source), bucket, key, Config=_TRANSFER)
        return True
    marker = f"{key.rstrip('/')}.complete"
    if exists(f"s3://{bucket}/{marker}"):
        return False
    with errors(where):
        for path in sorted(p for p in upload.source.rglob("*") if p.is_file()):
            name = f"{key.rstrip('/')}/{path.relative_to(upload.source).as_posix()}"
            s3.upload_file(str(path), bucket, name, Config=_TRANSFER)
        s3.put_object(Bucket=bucket, Key=marker, Body=b"")
    return True


def put_bytes(uri: str, body: bytes, content_type: str = "application/json") -> None:
    where = f"Writing {uri}"
    bucket, key = split(uri, where)
    call(where, client("s3").put_object, Bucket=bucket, Key=key, Body=body, ContentType=content_type)


def get_bytes(uri: str) -> bytes:
    where = f"Reading {uri}"
    bucket, key = split(uri, where)
    body: bytes = call(where, client("s3").get_object, Bucket=bucket, Key=key)["Body"].read()
    return body


def download(uri: str, dest: Path) -> Path:
    where = f"Downloading {uri}"
    bucket, key = split(uri, where)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with errors(where):
        client("s3").download_file(bucket, key, str(dest), Config=_TRANSFER)
    return dest


def exists(uri: str) -> bool:
    """Whether an object is there. A bucket that is missing or forbidden raises: it is not the same as an absent object."""
    where = f"Looking for {uri}"
    bucket, key = split(uri, where)
    try:
        call(where, client("s3").head_object, Bucket=bucket, Key=key)
    except NotFound:
        call(f"Looking for bucket '{bucket}'", client("s3").head_bucket, Bucket=bucket)
        return False
    return True


def keys(prefix_uri: str, *, start_after: str = "") -> Iterator[Mapping[str, Any]]:
    """Objects below a prefix, oldest key first: ``{"Key", "Size", "LastModified", ...}``."""
    bucket, prefix = split(prefix_uri)
    more = {"StartAfter": start_after} if start_after else {}
    return pages(f"Listing {prefix_uri}", "s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix, **more)


# ---------------------------------------------------------------------------------------------------------------- waiting


@dataclass(frozen=True)
class Clock:
    """Time and sleep, so that tests need neither."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


CLOCK = Clock()


def poll(
    where: str,
    look: Callable[[], T],
    done: Callable[[T], bool],
    *,
    timeout_seconds: float = 7200,
    clock: Clock = CLOCK,
    hint: str = "",
) -> T:
    """Look until done: often at first, then each 5 s, so that short work is seen at once and long work costs few calls.

    Raises:
        WaitTimeout: the work itself goes on.
    """
    pause, end = 0.2, clock.now() + timeout_seconds
    while True:
        state = look()
        if done(state):
            return state
        if clock.now() + pause > end:
            raise WaitTimeout(f"not done after {timeout_seconds:g} s; it goes on", where=where, hint=hint)
        clock.sleep(pause)
        pause = min(5.0, pause * 1.3)
