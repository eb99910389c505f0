"""Bucket policies whose conditions count.

moto reads none, so "deny what comes without TLS", which every well-kept bucket says, would deny everything here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.s3.exceptions import S3ClientError
from moto.s3.models import FakeBucket

from windlass.local.iam import conditions, policy
from windlass.local.iam.authorizer import Authorizer

# What a request to this cloud is, as a policy sees it. Loopback stands in for TLS: nothing on it crosses a network.
_CONTEXT = {"aws:securetransport": "true"}


def register(authorizer: Authorizer) -> None:
    """Make moto's buckets ask us; nothing, where every request is authorised before it reaches them."""
    FakeBucket.get_permission = _neutral if authorizer.enforce else _permission


def check(text: str) -> None:
    """Raise S3's error for what is no bucket policy: moto keeps it, and fails at every request from then on."""
    try:
        for statement in policy.statements(policy.parse(text)):
            for field in ("Principal", "Action", "Resource"):
                if field not in statement and f"Not{field}" not in statement:
                    raise S3ClientError("MalformedPolicy", f"Missing required field {field}")
    except conditions.Invalid as error:
        raise S3ClientError("MalformedPolicy", f"This policy contains invalid Json: {error}") from error


def _neutral(bucket: FakeBucket, action: str, resource: str) -> PermissionResult:
    return PermissionResult.NEUTRAL


def _permission(bucket: FakeBucket, action: str, resource: str) -> PermissionResult:
    if bucket.policy is None:
        return PermissionResult.NEUTRAL
    document = json.loads(bucket.policy)
    document["Statement"] = [
        statement for statement in policy.statements(document) if _may_apply(statement.get("Condition", {}))
    ]
    return IAMPolicy(json.dumps(document)).is_action_permitted(action, resource)


def _may_apply(condition: Mapping[str, Mapping[str, Any]]) -> bool:
    """False when a Bool condition is known not to hold; a condition that we cannot decide may hold."""
    for operator, keys in condition.items():
        for key, value in keys.items():
            known = _CONTEXT.get(key.lower())
            if operator == "Bool" and known is not None and str(value).lower() != known:
                return False
    return True
