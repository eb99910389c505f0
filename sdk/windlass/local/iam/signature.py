"""Whether a request was signed with the secret of its access key: AWS Signature Version 4, in the header or in the query.

Source: IAM user guide, "Create a signed AWS API request". S3's old presigned URLs (version 2) are checked, too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote

from windlass.local.iam.requests import Call

_STREAMED = ("STREAMING-", "UNSIGNED-PAYLOAD")


def is_right(environ: dict[str, Any], call: Call, secret: str) -> bool:
    """Whether that secret made its signature, and a presigned request is not too old."""
    query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    named = dict(query)
    if "AWSAccessKeyId" in named:
        return _version_2(environ, named, secret)
    if "X-Amz-Signature" in named:
        date, given = named.get("X-Amz-Date", ""), named["X-Amz-Signature"]
        scope, signed = named.get("X-Amz-Credential", ""), named.get("X-Amz-SignedHeaders", "")
        query = [(name, value) for name, value in query if name != "X-Amz-Signature"]
        payload = "UNSIGNED-PAYLOAD"
        if _expired(date, named.get("X-Amz-Expires", "0")):
            return False
    else:
        fields = dict(
            part.strip().partition("=")[::2]
            for part in environ.get("HTTP_AUTHORIZATION", "").partition(" ")[2].split(",")
        )
        scope, signed, given = (fields.get(name, "") for name in ("Credential", "SignedHeaders", "Signature"))
        date = call.headers.get("x-amz-date", "")
        payload = call.headers.get("x-amz-content-sha256") or hashlib.sha256(call.body or b"").hexdigest()
        if call.body is not None and not payload.startswith(_STREAMED):
            payload = hashlib.sha256(call.body).hexdigest()
    names = signed.split(";")
    values = {name: " ".join(call.headers.get(name.replace("_", "-"), "").split()) for name in names}
    headers = "".join(f"{name}:{values[name]}\n" for name in names)
    scope = "/".join(scope.split("/")[-4:])
    for path in _paths(environ, call):
        canonical = "\n".join([environ["REQUEST_METHOD"], path, _canonical(query), headers, signed, payload])
        text = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        if hmac.compare_digest(hmac.new(_key(secret, scope), text.encode(), hashlib.sha256).hexdigest(), given):
            return True
    return False


def _paths(environ: dict[str, Any], call: Call) -> list[str]:
    """The path as it was signed: S3's as it was sent, everybody else's encoded once more."""
    raw = str(environ.get("RAW_URI") or environ.get("REQUEST_URI") or quote(environ.get("PATH_INFO", "/")))
    path = raw.partition("?")[0] or "/"
    return [path] if call.service == "s3" else [quote(path, safe="/-_.~"), path]


def _canonical(query: list[tuple[str, str]]) -> str:
    return "&".join(sorted(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query))


def _key(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def _expired(date: str, seconds: str) -> bool:
    try:
        signed = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return datetime.now(UTC) > signed + timedelta(seconds=int(seconds))
    except ValueError:
        return True


def _version_2(environ: dict[str, Any], query: dict[str, str], secret: str) -> bool:
    expires = query.get("Expires", "0")
    if not expires.isdigit() or int(expires) < datetime.now(UTC).timestamp():
        return False
    raw = str(environ.get("RAW_URI") or environ.get("PATH_INFO", "/")).partition("?")[0]
    amz = "".join(f"{name}:{query[name]}\n" for name in sorted(query) if name.startswith("x-amz-"))
    kind, md5 = environ.get("CONTENT_TYPE", ""), environ.get("HTTP_CONTENT_MD5", "")
    text = f"{environ['REQUEST_METHOD']}\n{md5}\n{kind}\n{expires}\n{amz}{raw}"
    made = base64.b64encode(hmac.new(secret.encode(), text.encode(), hashlib.sha1).digest()).decode()
    return hmac.compare_digest(made, query.get("Signature", ""))
