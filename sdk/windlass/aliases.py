"""Names that move: ``champion``, ``shadow``. SageMaker has none, so they are kept beside the registry.

    aliases.move("digits", "champion", 5, bucket=bucket, expected=3)     # Conflict when it is not 3 any more
    aliases.read("digits", bucket=bucket)                                # {"champion": 5}

One object in S3 holds a group's aliases, because S3 can write on the condition that nobody else did (If-Match) and tags cannot:
of two who move an alias at once, one is told. Tags ``windlass:alias:<name>`` on the group say the same where people look.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from windlass import aws
from windlass.errors import Conflict, InvalidInput, NotFound, ServiceError

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
TAG = "windlass:alias:"


class _Anything:
    """No expectation; ``None`` expects that the alias does not exist."""


ANYTHING = _Anything()


def read(group: str, *, bucket: str) -> Mapping[str, int]:
    """Alias -> version number."""
    return _read(_key(group), bucket, f"Reading the aliases of '{group}'")[0]


def move(
    group: str,
    alias: str,
    version: int | None,
    *,
    bucket: str,
    group_arn: str,
    expected: int | _Anything | None = ANYTHING,
) -> None:
    """Let an alias name a version; ``None`` takes it away.

    Args:
        expected: the version that it names now, as the caller last saw; ``None``: it should not exist.

    Raises:
        Conflict: it names another, or somebody changed the aliases at the same moment.
    """
    where = f"Moving alias '{alias}' of '{group}'"
    if not _NAME.fullmatch(alias):
        hint = "Use lower-case letters, digits and hyphens, as in champion."
        raise InvalidInput(f"{alias!r} is not an alias", where=where, hint=hint)
    aliases, etag = _read(_key(group), bucket, where)
    now = aliases.get(alias)
    if not isinstance(expected, _Anything) and now != expected:
        raise Conflict(
            f"it names {_said(now)}, not {_said(expected)}", where=where, hint="Look again, then decide again."
        )
    after = {name: number for name, number in {**aliases, alias: version}.items() if number is not None}
    condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
    body = json.dumps(after, sort_keys=True).encode()
    try:
        aws.call(
            where,
            aws.client("s3").put_object,
            Bucket=bucket,
            Key=_key(group),
            Body=body,
            ContentType="application/json",
            **condition,
        )
    except ServiceError as error:
        if error.code not in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise
        raise Conflict(
            "somebody else moved an alias just now", where=where, hint="Look again, then decide again."
        ) from error
    sagemaker = aws.client("sagemaker")
    if after:
        tags = [{"Key": f"{TAG}{name}", "Value": str(number)} for name, number in after.items()]
        aws.call(where, sagemaker.add_tags, ResourceArn=group_arn, Tags=tags)
    if version is None:
        aws.call(where, sagemaker.delete_tags, ResourceArn=group_arn, TagKeys=[f"{TAG}{alias}"])


def _said(version: object) -> str:
    return "nothing" if version is None else f"version {version}"


def _key(group: str) -> str:
    return f"registry/{group}/aliases.json"


def _read(key: str, bucket: str, where: str) -> tuple[dict[str, int], str]:
    try:
        answer = aws.call(where, aws.client("s3").get_object, Bucket=bucket, Key=key)
    except NotFound as error:
        if error.code == "NoSuchBucket":
            raise
        return {}, ""
    with aws.errors(where):
        aliases: dict[str, int] = json.loads(answer["Body"].read())
    return aliases, str(answer["ETag"])
