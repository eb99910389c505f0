"""What each CloudFormation type means, as calls of its service's own API.

    kind = TYPES["AWS::S3::Bucket"]
    made = kind.create(services, "name-for-it", {"VersioningConfiguration": {"Status": "Enabled"}})
    made.physical_id, made.attributes["Arn"]

Real CloudFormation works the same way: it is a client of the services. So a resource made by a stack and one made by hand go
through the same validation, and a part of the local cloud that replaces moto's is reached with no further wiring.

Each type names the properties that it honours. One that it does not know fails the resource: a bucket without its encryption
is worse than no bucket.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import botocore.session
from botocore.config import Config
from moto.cloudformation import parsing as moto_parsing

from windlass.local.cloud import ROOT_ACCESS_KEY, ROOT_SECRET_KEY

Properties = Mapping[str, Any]


class Refusal(Exception):
    """A resource cannot be as the template wants it. The message is the event's ResourceStatusReason."""


@dataclass(frozen=True)
class Made:
    """A resource that exists.

    Attributes:
        physical_id: what ``Ref`` gives.
        attributes: what ``Fn::GetAtt`` gives.
    """

    physical_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)


ADMINISTRATOR = (ROOT_ACCESS_KEY, ROOT_SECRET_KEY, "")

_lock = threading.Lock()
_session: botocore.session.Session | None = None


class Services:
    """Clients of the local cloud's own services, over its own address.

    Args:
        url: where it answers.
        region: of the stack.
        account: of the stack.
        credentials: access key, secret and session token of whom the calls are made for; by default the root's.
    """

    def __init__(self, url: str, region: str, account: str, credentials: tuple[str, str, str] = ADMINISTRATOR) -> None:
        self.region, self.account = region, account
        self.limited = credentials != ADMINISTRATOR
        self._credentials = credentials
        self._url = url
        self._clients: dict[str, Any] = {}

    def __getattr__(self, service: str) -> Any:
        """``services.s3``, ``services.sagemaker``: a botocore client."""
        if service.startswith("_"):
            raise AttributeError(service)
        with _lock:
            if service not in self._clients:
                self._clients[service] = _client(service, self._url, self.region, self._credentials)
            return self._clients[service]


def _client(service: str, url: str, region: str, credentials: tuple[str, str, str]) -> Any:
    """Nothing of the user's AWS configuration reaches it: no profile, no credentials, no proxy."""
    global _session
    if _session is None:
        _session = botocore.session.Session()
        for variable in ("profile", "config_file", "credentials_file"):
            _session.set_config_variable(variable, None)
    config = Config(
        proxies={}, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, parameter_validation=True
    )
    return _session.create_client(
        service,
        region_name=region,
        endpoint_url=url,
        aws_access_key_id=credentials[0],
        aws_secret_access_key=credentials[1],
        aws_session_token=credentials[2] or None,
        config=config,
    )


class ResourceType:
    """One CloudFormation type.

    Attributes:
        type: its name.
        name_property: the property that holds its name, where CloudFormation makes one up if it is absent.
        honours: every property that `create` and `update` act on.
        replaces: those whose change takes a new resource.
    """

    type: ClassVar[str]
    name_property: ClassVar[str] = ""
    honours: ClassVar[frozenset[str]]
    replaces: ClassVar[frozenset[str]] = frozenset()

    def check(self, properties: Properties) -> None:
        """Refuse what would be dropped."""
        unknown = sorted(set(properties) - self.honours)
        if unknown:
            raise Refusal(f"The local cloud does not implement {', '.join(unknown)} of {self.type}")

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        """Make it. ``name`` is a fresh name for it, to be used if the properties hold none."""
        raise NotImplementedError

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        """Change what is not in ``replaces``."""
        raise NotImplementedError

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        raise NotImplementedError


def changed(old: Properties, new: Properties) -> set[str]:
    """The names of the properties that differ."""
    return {name for name in {*old, *new} if old.get(name) != new.get(name)}


def _policy(document: Any) -> str:
    return document if isinstance(document, str) else json.dumps(document)


def _text(value: Any) -> str:
    """CloudFormation's booleans as an attribute of a query API."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _tags(properties: Properties) -> list[dict[str, str]]:
    return [{"Key": tag["Key"], "Value": tag["Value"]} for tag in properties.get("Tags", [])]


def _gone(old: Properties, new: Properties) -> list[str]:
    """Tag keys that an update takes away."""
    return sorted({tag["Key"] for tag in _tags(old)} - {tag["Key"] for tag in _tags(new)})


class Bucket(ResourceType):
    type = "AWS::S3::Bucket"
    name_property = "BucketName"
    replaces = frozenset({"BucketName"})
    honours = frozenset(
        {
            "BucketEncryption",
            "BucketName",
            "LifecycleConfiguration",
            "OwnershipControls",
            "PublicAccessBlockConfiguration",
            "Tags",
            "VersioningConfiguration",
        }
    )

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        bucket = properties.get("BucketName", name)
        place = {"CreateBucketConfiguration": {"LocationConstraint": services.region}}
        services.s3.create_bucket(Bucket=bucket, **({} if services.region == "us-east-1" else place))
        self._configure(services, bucket, {}, properties)
        return Made(
            bucket,
            {
                "Arn": f"arn:aws:s3:::{bucket}",
                "DomainName": f"{bucket}.s3.amazonaws.com",
                "RegionalDomainName": f"{bucket}.s3.{services.region}.amazonaws.com",
            },
        )

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        self._configure(services, made.physical_id, old, new)
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.s3.delete_bucket(Bucket=made.physical_id)

    def _configure(self, services: Services, bucket: str, old: Properties, new: Properties) -> None:
        s3 = services.s3
        puts: dict[str, Callable[[Any], object]] = {
            "BucketEncryption": lambda value: s3.put_bucket_encryption(
                Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": _encryption_rules(value)}
            ),
            "LifecycleConfiguration": lambda value: s3.put_bucket_lifecycle_configuration(
                Bucket=bucket, LifecycleConfiguration={"Rules": [_lifecycle_rule(rule) for rule in value["Rules"]]}
            ),
            "OwnershipControls": lambda value: s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=value),
            "PublicAccessBlockConfiguration": lambda value: s3.put_public_access_block(
                Bucket=bucket, PublicAccessBlockConfiguration=value
            ),
            "Tags": lambda value: s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": value}),
            "VersioningConfiguration": lambda value: s3.put_bucket_versioning(
                Bucket=bucket, VersioningConfiguration=value
            ),
        }
        deletes: dict[str, Callable[[], object]] = {
            "BucketEncryption": lambda: s3.delete_bucket_encryption(Bucket=bucket),
            "LifecycleConfiguration": lambda: s3.delete_bucket_lifecycle(Bucket=bucket),
            "OwnershipControls": lambda: s3.delete_bucket_ownership_controls(Bucket=bucket),
            "PublicAccessBlockConfiguration": lambda: s3.delete_public_access_block(Bucket=bucket),
            "Tags": lambda: s3.delete_bucket_tagging(Bucket=bucket),
            "VersioningConfiguration": lambda: s3.put_bucket_versioning(
                Bucket=bucket, VersioningConfiguration={"Status": "Suspended"}
            ),
        }
        for name in sorted(changed(old, new) & set(puts)):
            if name in new:
                puts[name](new[name])
            else:
                deletes[name]()


def _encryption_rules(value: Properties) -> list[dict[str, Any]]:
    return [
        {
            "ApplyServerSideEncryptionByDefault": rule["ServerSideEncryptionByDefault"],
            "BucketKeyEnabled": rule.get("BucketKeyEnabled", False),
        }
        for rule in value["ServerSideEncryptionConfiguration"]
    ]


def _lifecycle_rule(rule: Properties) -> dict[str, Any]:
    """CloudFormation's names for the members of a rule are not quite S3's."""
    same = ("AbortIncompleteMultipartUpload", "NoncurrentVersionExpiration", "Status")
    known = {*same, "ExpirationInDays", "Id", "Prefix"}
    if unknown := sorted(set(rule) - known):
        raise Refusal(f"The local cloud does not implement {', '.join(unknown)} of a lifecycle rule")
    result: dict[str, Any] = {"Filter": {"Prefix": rule.get("Prefix", "")}}
    result |= {name: rule[name] for name in same if name in rule}
    if "Id" in rule:
        result["ID"] = rule["Id"]
    if "ExpirationInDays" in rule:
        result["Expiration"] = {"Days": int(rule["ExpirationInDays"])}
    return result


class BucketPolicy(ResourceType):
    type = "AWS::S3::BucketPolicy"
    honours = frozenset({"Bucket", "PolicyDocument"})
    replaces = frozenset({"Bucket"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        services.s3.put_bucket_policy(Bucket=properties["Bucket"], Policy=_policy(properties["PolicyDocument"]))
        return Made(properties["Bucket"])

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        return self.create(services, "", new)

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.s3.delete_bucket_policy(Bucket=made.physical_id)


class Key(ResourceType):
    type = "AWS::KMS::Key"
    honours = frozenset(
        {
            "Description",
            "Enabled",
            "EnableKeyRotation",
            "KeyPolicy",
            "KeySpec",
            "KeyUsage",
            "PendingWindowInDays",
            "Tags",
        }
    )
    replaces = frozenset({"KeySpec", "KeyUsage"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        optional = {name: properties[name] for name in ("KeySpec", "KeyUsage") if name in properties}
        if "KeyPolicy" in properties:
            optional["Policy"] = _policy(properties["KeyPolicy"])
        key = services.kms.create_key(
            Description=properties.get("Description", ""), Tags=_key_tags(properties), **optional
        )["KeyMetadata"]
        if properties.get("EnableKeyRotation"):
            services.kms.enable_key_rotation(KeyId=key["KeyId"])
        if not properties.get("Enabled", True):
            services.kms.disable_key(KeyId=key["KeyId"])
        return Made(key["KeyId"], {"Arn": key["Arn"], "KeyId": key["KeyId"]})

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        kms, key, differs = services.kms, made.physical_id, changed(old, new)
        if "KeyPolicy" in differs:
            kms.put_key_policy(KeyId=key, PolicyName="default", Policy=_policy(new["KeyPolicy"]))
        if "Description" in differs:
            kms.update_key_description(KeyId=key, Description=new.get("Description", ""))
        if "EnableKeyRotation" in differs:
            turn = kms.enable_key_rotation if new.get("EnableKeyRotation") else kms.disable_key_rotation
            turn(KeyId=key)
        if "Enabled" in differs:
            turn = kms.enable_key if new.get("Enabled", True) else kms.disable_key
            turn(KeyId=key)
        if "Tags" in differs:
            if gone := _gone(old, new):
                kms.untag_resource(KeyId=key, TagKeys=gone)
            kms.tag_resource(KeyId=key, Tags=_key_tags(new))
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        days = int(properties.get("PendingWindowInDays", 30))
        services.kms.schedule_key_deletion(KeyId=made.physical_id, PendingWindowInDays=days)


def _key_tags(properties: Properties) -> list[dict[str, str]]:
    return [{"TagKey": tag["Key"], "TagValue": tag["Value"]} for tag in _tags(properties)]


class Alias(ResourceType):
    type = "AWS::KMS::Alias"
    honours = frozenset({"AliasName", "TargetKeyId"})
    replaces = frozenset({"AliasName"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        services.kms.create_alias(AliasName=properties["AliasName"], TargetKeyId=properties["TargetKeyId"])
        return Made(properties["AliasName"])

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        services.kms.update_alias(AliasName=made.physical_id, TargetKeyId=new["TargetKeyId"])
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.kms.delete_alias(AliasName=made.physical_id)


class Role(ResourceType):
    type = "AWS::IAM::Role"
    name_property = "RoleName"
    honours = frozenset(
        {
            "AssumeRolePolicyDocument",
            "Description",
            "ManagedPolicyArns",
            "MaxSessionDuration",
            "Path",
            "Policies",
            "RoleName",
            "Tags",
        }
    )
    replaces = frozenset({"Path", "RoleName"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        optional = {name: properties[name] for name in ("Description", "Path") if name in properties}
        role = services.iam.create_role(
            RoleName=properties.get("RoleName", name),
            AssumeRolePolicyDocument=_policy(properties["AssumeRolePolicyDocument"]),
            MaxSessionDuration=int(properties.get("MaxSessionDuration", 3600)),
            Tags=_tags(properties),
            **optional,
        )["Role"]
        self._permit(services, role["RoleName"], {}, properties)
        return Made(role["RoleName"], {"Arn": role["Arn"], "RoleId": role["RoleId"]})

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        iam, role, differs = services.iam, made.physical_id, changed(old, new)
        if "AssumeRolePolicyDocument" in differs:
            iam.update_assume_role_policy(RoleName=role, PolicyDocument=_policy(new["AssumeRolePolicyDocument"]))
        if differs & {"Description", "MaxSessionDuration"}:
            iam.update_role(
                RoleName=role,
                Description=new.get("Description", ""),
                MaxSessionDuration=int(new.get("MaxSessionDuration", 3600)),
            )
        if "Tags" in differs:
            if gone := _gone(old, new):
                iam.untag_role(RoleName=role, TagKeys=gone)
            iam.tag_role(RoleName=role, Tags=_tags(new))
        self._permit(services, role, old, new)
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        self._permit(services, made.physical_id, properties, {})
        services.iam.delete_role(RoleName=made.physical_id)

    def _permit(self, services: Services, role: str, old: Properties, new: Properties) -> None:
        before = {policy["PolicyName"]: policy["PolicyDocument"] for policy in old.get("Policies", [])}
        after = {policy["PolicyName"]: policy["PolicyDocument"] for policy in new.get("Policies", [])}
        for name in sorted(changed(before, after)):
            if name in after:
                services.iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=_policy(after[name]))
            else:
                services.iam.delete_role_policy(RoleName=role, PolicyName=name)
        attached, wanted = set(old.get("ManagedPolicyArns", [])), set(new.get("ManagedPolicyArns", []))
        for arn in sorted(wanted - attached):
            services.iam.attach_role_policy(RoleName=role, PolicyArn=arn)
        for arn in sorted(attached - wanted):
            services.iam.detach_role_policy(RoleName=role, PolicyArn=arn)


class Topic(ResourceType):
    type = "AWS::SNS::Topic"
    name_property = "TopicName"
    honours = frozenset({"DisplayName", "KmsMasterKeyId", "Subscription", "Tags", "TopicName"})
    replaces = frozenset({"TopicName"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        topic = properties.get("TopicName", name)
        arn = services.sns.create_topic(Name=topic, Tags=_tags(properties))["TopicArn"]
        self._configure(services, arn, {}, properties)
        return Made(arn, {"TopicArn": arn, "TopicName": topic})

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        self._configure(services, made.physical_id, old, new)
        if "Tags" in changed(old, new):
            if gone := _gone(old, new):
                services.sns.untag_resource(ResourceArn=made.physical_id, TagKeys=gone)
            services.sns.tag_resource(ResourceArn=made.physical_id, Tags=_tags(new))
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.sns.delete_topic(TopicArn=made.physical_id)

    def _configure(self, services: Services, arn: str, old: Properties, new: Properties) -> None:
        for name in sorted(changed(old, new) & {"DisplayName", "KmsMasterKeyId"}):
            services.sns.set_topic_attributes(TopicArn=arn, AttributeName=name, AttributeValue=new.get(name, ""))
        before, after = old.get("Subscription", []), new.get("Subscription", [])
        for item in (item for item in after if item not in before):
            services.sns.subscribe(TopicArn=arn, Protocol=item["Protocol"], Endpoint=item["Endpoint"])
        removed = [(item["Protocol"], item["Endpoint"]) for item in before if item not in after]
        if removed:
            for subscription in services.sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]:
                if (subscription["Protocol"], subscription["Endpoint"]) in removed:
                    services.sns.unsubscribe(SubscriptionArn=subscription["SubscriptionArn"])


class TopicPolicy(ResourceType):
    type = "AWS::SNS::TopicPolicy"
    honours = frozenset({"PolicyDocument", "Topics"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        self._set(services, properties["Topics"], _policy(properties["PolicyDocument"]))
        return Made(name)

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        dropped = [topic for topic in old["Topics"] if topic not in new["Topics"]]
        self._reset(services, dropped)
        self._set(services, new["Topics"], _policy(new["PolicyDocument"]))
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        self._reset(services, properties["Topics"])

    def _set(self, services: Services, topics: Iterable[str], policy: str) -> None:
        for topic in topics:
            services.sns.set_topic_attributes(TopicArn=topic, AttributeName="Policy", AttributeValue=policy)

    def _reset(self, services: Services, topics: Iterable[str]) -> None:
        """A topic always has a policy: without ours, SNS's default, which lets its account do all."""
        for topic in topics:
            statement = {
                "Sid": "__default_statement_ID",
                "Effect": "Allow",
                "Principal": {"AWS": "*"},
                "Action": ["SNS:GetTopicAttributes", "SNS:SetTopicAttributes", "SNS:Subscribe", "SNS:Publish"],
                "Resource": topic,
                "Condition": {"StringEquals": {"AWS:SourceOwner": services.account}},
            }
            policy = {"Version": "2008-10-17", "Id": "__default_policy_ID", "Statement": [statement]}
            self._set(services, [topic], json.dumps(policy))


class Subscription(ResourceType):
    type = "AWS::SNS::Subscription"
    honours = frozenset({"Endpoint", "FilterPolicy", "Protocol", "RawMessageDelivery", "TopicArn"})
    replaces = frozenset({"Endpoint", "Protocol", "TopicArn"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        arn = services.sns.subscribe(
            TopicArn=properties["TopicArn"],
            Protocol=properties["Protocol"],
            Endpoint=properties["Endpoint"],
            ReturnSubscriptionArn=True,
        )["SubscriptionArn"]
        self.update(services, Made(arn), {}, properties)
        return Made(arn)

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        empty = {"FilterPolicy": "{}", "RawMessageDelivery": "false"}
        for name in sorted(changed(old, new) & set(empty)):
            value = new.get(name, empty[name])
            text = json.dumps(value) if isinstance(value, dict) else _text(value)
            services.sns.set_subscription_attributes(
                SubscriptionArn=made.physical_id, AttributeName=name, AttributeValue=text
            )
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.sns.unsubscribe(SubscriptionArn=made.physical_id)


class Parameter(ResourceType):
    type = "AWS::SSM::Parameter"
    name_property = "Name"
    honours = frozenset({"AllowedPattern", "DataType", "Description", "Name", "Tags", "Tier", "Type", "Value"})
    replaces = frozenset({"Name"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        name = properties.get("Name", name)
        tags = [{"Key": key, "Value": value} for key, value in properties.get("Tags", {}).items()]
        return self._put(services, name, properties, Tags=tags)

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        before, after = old.get("Tags", {}), new.get("Tags", {})
        target = {"ResourceType": "Parameter", "ResourceId": made.physical_id}
        if gone := sorted(set(before) - set(after)):
            services.ssm.remove_tags_from_resource(**target, TagKeys=gone)
        if after != before and after:
            tags = [{"Key": key, "Value": value} for key, value in after.items()]
            services.ssm.add_tags_to_resource(**target, Tags=tags)
        return self._put(services, made.physical_id, new, Overwrite=True)

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.ssm.delete_parameter(Name=made.physical_id)

    def _put(self, services: Services, name: str, properties: Properties, **more: Any) -> Made:
        same = ("AllowedPattern", "DataType", "Description", "Tier", "Type", "Value")
        services.ssm.put_parameter(Name=name, **{key: properties[key] for key in same if key in properties}, **more)
        return Made(name, {"Type": properties["Type"], "Value": properties["Value"]})


class ModelPackageGroup(ResourceType):
    type = "AWS::SageMaker::ModelPackageGroup"
    honours = frozenset({"ModelPackageGroupDescription", "ModelPackageGroupName", "Tags"})
    replaces = frozenset({"ModelPackageGroupDescription", "ModelPackageGroupName"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        optional = {key: properties[key] for key in ("ModelPackageGroupDescription",) if key in properties}
        group = properties["ModelPackageGroupName"]
        arn = services.sagemaker.create_model_package_group(
            ModelPackageGroupName=group, Tags=_tags(properties), **optional
        )["ModelPackageGroupArn"]
        return Made(arn, {"ModelPackageGroupArn": arn, "ModelPackageGroupStatus": "Completed"})

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        if gone := _gone(old, new):
            services.sagemaker.delete_tags(ResourceArn=made.physical_id, TagKeys=gone)
        services.sagemaker.add_tags(ResourceArn=made.physical_id, Tags=_tags(new))
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.sagemaker.delete_model_package_group(ModelPackageGroupName=properties["ModelPackageGroupName"])


class Alarm(ResourceType):
    """The properties are PutMetricAlarm's own."""

    type = "AWS::CloudWatch::Alarm"
    name_property = "AlarmName"
    honours = frozenset(
        {
            *("ActionsEnabled", "AlarmActions", "AlarmDescription", "AlarmName", "ComparisonOperator"),
            *("DatapointsToAlarm", "Dimensions", "EvaluateLowSampleCountPercentile", "EvaluationPeriods"),
            *("ExtendedStatistic", "InsufficientDataActions", "MetricName", "Metrics", "Namespace", "OKActions"),
            *("Period", "Statistic", "Tags", "Threshold", "ThresholdMetricId", "TreatMissingData", "Unit"),
        }
    )
    replaces = frozenset({"AlarmName"})
    _numbers: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "DatapointsToAlarm": int,
        "EvaluationPeriods": int,
        "Period": int,
        "Threshold": float,
    }

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        alarm = properties.get("AlarmName", name)
        values = {key: self._numbers.get(key, lambda value: value)(value) for key, value in properties.items()}
        services.cloudwatch.put_metric_alarm(**values | {"AlarmName": alarm})
        return Made(alarm, {"Arn": f"arn:aws:cloudwatch:{services.region}:{services.account}:alarm:{alarm}"})

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        return self.create(services, made.physical_id, new)

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.cloudwatch.delete_alarms(AlarmNames=[made.physical_id])


TYPES: dict[str, ResourceType] = {
    kind.type: kind()
    for kind in (
        Alarm,
        Alias,
        Bucket,
        BucketPolicy,
        Key,
        ModelPackageGroup,
        Parameter,
        Role,
        Subscription,
        Topic,
        TopicPolicy,
    )
}


# ------------------------------------------------------------------------------------------------- types that moto has alone


class MotoType(ResourceType):
    """A type that only moto's own model of it can make. Which of its properties moto honours is not known."""

    honours = frozenset()

    def __init__(self, model: Any) -> None:
        self.type = model.cloudformation_type()  # type: ignore[misc]
        self.name_property = model.cloudformation_name_type() or ""  # type: ignore[misc]
        self._model = model

    def check(self, properties: Mapping[str, Any]) -> None:
        """moto keeps no list of the properties that it honours."""

    def create(self, services: Services, name: str, properties: Mapping[str, Any]) -> Made:
        name = properties.get(self.name_property, name)
        return self._call("create_from_cloudformation_json", services, name, properties)

    def update(self, services: Services, made: Made, old: Mapping[str, Any], new: Mapping[str, Any]) -> Made:
        assert isinstance(made, _MotoMade)
        return self._call(
            "update_from_cloudformation_json", services, made.physical_id, new, original_resource=made.model
        )

    def delete(self, services: Services, made: Made, properties: Mapping[str, Any]) -> None:
        assert isinstance(made, _MotoMade)
        if hasattr(made.model, "delete"):
            _shielded(self.type, made.model.delete, services.account, services.region)
        else:
            where = (services.account, services.region)
            body = {"Type": self.type, "Properties": dict(properties)}
            _shielded(self.type, self._model.delete_from_cloudformation_json, made.physical_id, body, *where)

    def _call(self, method: str, services: Services, name: str, properties: Mapping[str, Any], **more: Any) -> Made:
        if services.limited:
            # moto's models go past the APIs, and so past their authorisation.
            raise Refusal(
                f"The local cloud cannot authorise {self.type}: with --enforce-iam only the root can create it"
            )
        body = {"Type": self.type, "Properties": dict(properties)}
        names = {"new_resource_name": name} if more else {"resource_name": name}
        model = _shielded(
            self.type,
            getattr(self._model, method),
            **names,
            cloudformation_json=body,
            account_id=services.account,
            region_name=services.region,
            **more,
        )
        return _MotoMade(str(model.physical_resource_id), _MotoAttributes(model), model)


@dataclass(frozen=True)
class _MotoMade(Made):
    model: Any = None


class _MotoAttributes(Mapping[str, str]):
    def __init__(self, model: Any) -> None:
        self._model = model

    def __getitem__(self, name: str) -> str:
        try:
            return str(self._model.get_cfn_attribute(name))
        except (NotImplementedError, moto_parsing.UnformattedGetAttTemplateException, AttributeError) as error:
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _shielded(kind: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    try:
        return method(*arguments, **named)
    except Exception as error:
        raise Refusal(f"{kind}: {type(error).__name__}: {error}") from error


# Their records are not moto's here, so that moto's models would make what no API of the local cloud sees.
_OURS = ("AWS::CloudWatch::Alarm", "AWS::CloudWatch::CompositeAlarm", "AWS::SageMaker::")


def kind_of(name: str) -> ResourceType | None:
    """The type of that name; None if there is none that keeps its word."""
    if name in TYPES:
        return TYPES[name]
    model = moto_parsing.get_model_map().get(name)
    return None if model is None or name.startswith(_OURS) else MotoType(model)
