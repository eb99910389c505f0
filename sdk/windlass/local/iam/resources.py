"""What resources say about who may use them: bucket, key, topic, queue and function policies, and the trust of roles."""

from __future__ import annotations

import json
from typing import Any

from windlass.local.cloud import ACCOUNT
from windlass.local.iam import principals
from windlass.local.iam.policy import Document, Resource, parse


def of(action: str, arn: str) -> Resource:
    """The policy of the resource that an ARN names; none if there is no such resource, or it cannot have one."""
    service = arn.split(":")[2] if arn.startswith("arn:") else ""
    if service == "s3":
        return Resource(_bucket(arn.split(":", 5)[5].partition("/")[0]))
    if service == "kms":
        return _key(arn, action)
    if service == "sns":
        return Resource(_topic(arn))
    if service == "sqs":
        return Resource(_queue(arn))
    if service == "lambda":
        return Resource(_function(arn))
    if action.startswith("sts:AssumeRole"):
        role = principals.role_of(arn)
        return Resource(parse(role.assume_role_policy_document) if role else None, decides=True)
    return Resource()


def key_arn(key: str, region: str) -> str:
    """The ARN of the key that an id, an alias or the ARN of either means; empty if there is none."""
    from moto.kms.models import kms_backends

    if key.startswith("arn:"):
        region = key.split(":")[3]
    backend = kms_backends[ACCOUNT][region]
    try:
        found = backend.keys.get(backend.any_id_to_key_id(key))
    except (KeyError, TypeError, AttributeError):
        return ""
    return str(found.arn) if found else ""


def bucket_key(bucket: str) -> tuple[str, str]:
    """(algorithm, key) of a bucket's default encryption; empty ones if it has none."""
    held = _buckets().get(bucket)
    if held is None or not held.encryption:
        return "", ""
    rules = held.encryption.get("Rule") or held.encryption.get("Rules") or {}
    rule = rules[0] if isinstance(rules, list) else rules
    default = rule.get("ApplyServerSideEncryptionByDefault", {})
    return str(default.get("SSEAlgorithm") or ""), str(default.get("KMSMasterKeyID") or "")


def object_key(bucket: str, key: str) -> str:
    """The KMS key of an object that is encrypted with one; empty if it is not, or is not there."""
    held = _buckets().get(bucket)
    versions = held.keys.getlist(key) if held is not None and key in held.keys else []
    encryption = getattr(versions[-1], "encryption", None) if versions else None
    return str(versions[-1].kms_key_id or "") if encryption == "aws:kms" else ""


def topic_key(arn: str) -> str:
    """The KMS key of a topic; empty if it has none."""
    found = _topic_record(arn)
    return str(found.kms_master_key_id or "") if found else ""


def _buckets() -> Any:
    from moto.s3.models import s3_backends

    return s3_backends[ACCOUNT]["aws"].buckets


def _bucket(name: str) -> Document | None:
    held = _buckets().get(name)
    return parse(_text(held.policy)) if held is not None and held.policy else None


def _key(arn: str, action: str) -> Resource:
    from moto.kms.models import kms_backends

    if ":alias/" in arn:
        return Resource()  # an alias has no policy of its own; its key, which is asked for too, has
    _, _, _, region, _, name = arn.split(":", 5)
    held = kms_backends[ACCOUNT][region].keys.get(name.removeprefix("key/")) if region else None
    return Resource(parse(_text(held.policy)), decides=True) if held else Resource()


def _topic_record(arn: str) -> Any:
    from moto.sns.models import sns_backends

    return sns_backends[ACCOUNT][arn.split(":")[3]].topics.get(arn)


def _topic(arn: str) -> Document | None:
    held = _topic_record(arn)
    return parse(_text(held.policy)) if held else None


def _queue(arn: str) -> Document | None:
    from moto.sqs.models import sqs_backends

    _, _, _, region, _, name = arn.split(":", 5)
    held = sqs_backends[ACCOUNT][region].queues.get(name)
    return parse(_text(held.policy)) if held is not None and held.policy else None


def _function(arn: str) -> Document | None:
    from windlass.local.events import functions

    held = functions.find(arn)
    statements = held.policy.statements if held is not None and held.policy else []
    return {"Version": "2012-10-17", "Statement": list(statements)} if statements else None


def _text(policy: Any) -> str:
    if isinstance(policy, bytes):
        return policy.decode()
    return policy if isinstance(policy, str) else json.dumps(policy)
