"""The CloudFormation types that the local cloud knows, each as calls of its service's own API.

Each names the properties that it honours. One that it does not know fails the resource: a bucket without its encryption
is worse than no bucket.
"""

from __future__ import annotations

import abc
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from moto.cloudformation import parsing as moto_parsing

from windlass.local.cloudformation.resources import Made, MotoType, Properties, Refusal, ResourceType, Services


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


def _tag_map(properties: Properties) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in _tags(properties)}


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


class _AnyAlarm(ResourceType):
    """The properties are those of the service's own Put."""

    name_property = "AlarmName"
    replaces = frozenset({"AlarmName"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        alarm = properties.get("AlarmName", name)
        self._put(services, {**properties, "AlarmName": alarm})
        return Made(alarm, {"Arn": f"arn:aws:cloudwatch:{services.region}:{services.account}:alarm:{alarm}"})

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        made = self.create(services, made.physical_id, new)
        if "Tags" in changed(old, new):  # a Put takes those of a new alarm only
            if gone := _gone(old, new):
                services.cloudwatch.untag_resource(ResourceARN=made.attributes["Arn"], TagKeys=gone)
            services.cloudwatch.tag_resource(ResourceARN=made.attributes["Arn"], Tags=_tags(new))
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.cloudwatch.delete_alarms(AlarmNames=[made.physical_id])

    @abc.abstractmethod
    def _put(self, services: Services, alarm: Properties) -> None: ...


class Alarm(_AnyAlarm):
    type = "AWS::CloudWatch::Alarm"
    honours = frozenset(
        {
            *("ActionsEnabled", "AlarmActions", "AlarmDescription", "AlarmName", "ComparisonOperator"),
            *("DatapointsToAlarm", "Dimensions", "EvaluateLowSampleCountPercentile", "EvaluationPeriods"),
            *("ExtendedStatistic", "InsufficientDataActions", "MetricName", "Metrics", "Namespace", "OKActions"),
            *("Period", "Statistic", "Tags", "Threshold", "ThresholdMetricId", "TreatMissingData", "Unit"),
        }
    )
    _numbers: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "DatapointsToAlarm": int,
        "EvaluationPeriods": int,
        "Period": int,
        "Threshold": float,
    }

    def _put(self, services: Services, alarm: Properties) -> None:
        values = {key: self._numbers.get(key, lambda value: value)(value) for key, value in alarm.items()}
        services.cloudwatch.put_metric_alarm(**values)


class CompositeAlarm(_AnyAlarm):
    type = "AWS::CloudWatch::CompositeAlarm"
    honours = frozenset(
        {
            *("ActionsEnabled", "ActionsSuppressor", "ActionsSuppressorExtensionPeriod", "ActionsSuppressorWaitPeriod"),
            *("AlarmActions", "AlarmDescription", "AlarmName", "AlarmRule", "InsufficientDataActions", "OKActions"),
            "Tags",
        }
    )

    def _put(self, services: Services, alarm: Properties) -> None:
        services.cloudwatch.put_composite_alarm(**alarm)


class Dashboard(ResourceType):
    type = "AWS::CloudWatch::Dashboard"
    name_property = "DashboardName"
    honours = frozenset({"DashboardBody", "DashboardName"})
    replaces = frozenset({"DashboardName"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        dashboard = properties.get("DashboardName", name)
        services.cloudwatch.put_dashboard(DashboardName=dashboard, DashboardBody=properties["DashboardBody"])
        return Made(dashboard)

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.cloudwatch.delete_dashboards(DashboardNames=[made.physical_id])


class Queue(ResourceType):
    type = "AWS::SQS::Queue"
    name_property = "QueueName"
    _attributes = frozenset(
        {
            *(
                "ContentBasedDeduplication",
                "DelaySeconds",
                "FifoQueue",
                "KmsDataKeyReusePeriodSeconds",
                "KmsMasterKeyId",
            ),
            *("MaximumMessageSize", "MessageRetentionPeriod", "ReceiveMessageWaitTimeSeconds", "RedrivePolicy"),
            *("SqsManagedSseEnabled", "VisibilityTimeout"),
        }
    )
    honours = _attributes | {"QueueName", "Tags"}
    replaces = frozenset({"FifoQueue", "QueueName"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        queue = properties.get("QueueName") or f"{name}{'.fifo' if properties.get('FifoQueue') else ''}"
        tags = _tag_map(properties)
        url = services.sqs.create_queue(QueueName=queue, Attributes=self._given(properties), tags=tags)["QueueUrl"]
        arn = f"arn:aws:sqs:{services.region}:{services.account}:{queue}"
        return Made(url, {"Arn": arn, "QueueName": queue, "QueueUrl": url})

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        dropped = dict.fromkeys(set(self._given(old)) - set(self._given(new)), "")
        if given := {**dropped, **self._given(new)}:
            given.pop("FifoQueue", None)
            services.sqs.set_queue_attributes(QueueUrl=made.physical_id, Attributes=given)
        if gone := _gone(old, new):
            services.sqs.untag_queue(QueueUrl=made.physical_id, TagKeys=gone)
        if tags := _tag_map(new):
            services.sqs.tag_queue(QueueUrl=made.physical_id, Tags=tags)
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.sqs.delete_queue(QueueUrl=made.physical_id)

    def _given(self, properties: Properties) -> dict[str, str]:
        known = {name: value for name, value in properties.items() if name in self._attributes}
        return {name: json.dumps(value) if isinstance(value, dict) else _text(value) for name, value in known.items()}


class QueuePolicy(ResourceType):
    type = "AWS::SQS::QueuePolicy"
    honours = frozenset({"PolicyDocument", "Queues"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        self._set(services, properties["Queues"], _policy(properties["PolicyDocument"]))
        return Made(name)

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        self._set(services, [queue for queue in old["Queues"] if queue not in new["Queues"]], "")
        self._set(services, new["Queues"], _policy(new["PolicyDocument"]))
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        self._set(services, properties["Queues"], "")

    def _set(self, services: Services, queues: Iterable[str], policy: str) -> None:
        for queue in queues:
            services.sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": policy})


class ScalableTarget(ResourceType):
    type = "AWS::ApplicationAutoScaling::ScalableTarget"
    _names = ("ResourceId", "ScalableDimension", "ServiceNamespace")
    honours = frozenset({*_names, "MaxCapacity", "MinCapacity", "RoleARN", "SuspendedState"})
    replaces = frozenset(_names)

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        given = {key: int(value) if key.endswith("Capacity") else value for key, value in properties.items()}
        services.application_autoscaling.register_scalable_target(**given)
        return Made("|".join(properties[key] for key in self._names))

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.application_autoscaling.deregister_scalable_target(**{key: properties[key] for key in self._names})


class ScalingPolicy(ResourceType):
    type = "AWS::ApplicationAutoScaling::ScalingPolicy"
    name_property = "PolicyName"
    honours = frozenset(
        {
            *("PolicyName", "PolicyType", "ResourceId", "ScalableDimension", "ScalingTargetId", "ServiceNamespace"),
            *("StepScalingPolicyConfiguration", "TargetTrackingScalingPolicyConfiguration"),
        }
    )
    replaces = frozenset({"PolicyName", "ResourceId", "ScalableDimension", "ScalingTargetId", "ServiceNamespace"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        given = {key: value for key, value in properties.items() if key != "ScalingTargetId"} | self._target(properties)
        policy = services.application_autoscaling.put_scaling_policy(**_numbers(given))
        return Made(policy["PolicyARN"], {"Arn": policy["PolicyARN"]})

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        name = {"PolicyName": properties["PolicyName"]}
        services.application_autoscaling.delete_scaling_policy(**name, **self._target(properties))

    def _target(self, properties: Properties) -> dict[str, str]:
        if "ScalingTargetId" in properties:
            return dict(zip(ScalableTarget._names, properties["ScalingTargetId"].split("|"), strict=True))
        return {key: properties[key] for key in ScalableTarget._names}


class Project(ResourceType):
    """A record: CodeBuild builds nothing here."""

    type = "AWS::CodeBuild::Project"
    name_property = "Name"
    honours = frozenset(
        {
            *("Artifacts", "Cache", "Description", "EncryptionKey", "Environment", "LogsConfig", "Name"),
            *("QueuedTimeoutInMinutes", "ServiceRole", "Source", "SourceVersion", "Tags", "TimeoutInMinutes"),
        }
    )
    replaces = frozenset({"Name"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        project = properties.get("Name", name)
        services.codebuild.create_project(**_numbers(_lower(dict(properties) | {"Name": project})))
        return Made(project, {"Arn": f"arn:aws:codebuild:{services.region}:{services.account}:project/{project}"})

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        self.delete(services, made, old)
        return self.create(services, made.physical_id, new)

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.codebuild.delete_project(name=made.physical_id)


class Rule(ResourceType):
    type = "AWS::Events::Rule"
    name_property = "Name"
    _own = ("Description", "EventBusName", "RoleArn", "ScheduleExpression", "State")
    honours = frozenset({*_own, "EventPattern", "Name", "Targets"})
    replaces = frozenset({"EventBusName", "Name"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        rule = properties.get("Name", name)
        given = {key: properties[key] for key in self._own if key in properties}
        if "EventPattern" in properties:
            given["EventPattern"] = _policy(properties["EventPattern"])
        arn = services.events.put_rule(Name=rule, **given)["RuleArn"]
        if targets := properties.get("Targets"):
            services.events.put_targets(**self._where(rule, properties), Targets=_numbers(list(targets)))
        return Made(rule, {"Arn": arn})

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        kept = {target["Id"] for target in new.get("Targets", [])}
        if gone := [target["Id"] for target in old.get("Targets", []) if target["Id"] not in kept]:
            services.events.remove_targets(**self._where(made.physical_id, old), Ids=gone)
        return self.create(services, made.physical_id, new)

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        where = self._where(made.physical_id, properties)
        if ids := [target["Id"] for target in properties.get("Targets", [])]:
            services.events.remove_targets(**where, Ids=ids)
        services.events.delete_rule(**{"Name" if key == "Rule" else key: value for key, value in where.items()})

    def _where(self, rule: str, properties: Properties) -> dict[str, str]:
        return {"Rule": rule} | {key: properties[key] for key in ("EventBusName",) if key in properties}


class Function(ResourceType):
    type = "AWS::Lambda::Function"
    name_property = "FunctionName"
    _own = frozenset(
        {"DeadLetterConfig", "Description", "Environment", "Handler", "MemorySize", "Role", "Runtime", "Timeout"}
    )
    honours = _own | {"Code", "FunctionName", "ReservedConcurrentExecutions", "Tags"}
    replaces = frozenset({"FunctionName"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        function = properties.get("FunctionName", name)
        tags = _tag_map(properties)
        arn = services.functions.create_function(
            FunctionName=function, Code=self._code(properties), Tags=tags, **self._given(properties)
        )["FunctionArn"]
        self._reserve(services, function, {}, properties)
        return Made(function, {"Arn": arn})

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        functions, name, differs = services.functions, made.physical_id, changed(old, new)
        if "Code" in differs:
            functions.update_function_code(FunctionName=name, **self._code(new))
        if differs & self._own:
            functions.update_function_configuration(FunctionName=name, **self._given(new))
        if "Tags" in differs:
            if gone := _gone(old, new):
                functions.untag_resource(Resource=made.attributes["Arn"], TagKeys=gone)
            functions.tag_resource(Resource=made.attributes["Arn"], Tags=_tag_map(new))
        self._reserve(services, name, old, new)
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.functions.delete_function(FunctionName=made.physical_id)

    def _given(self, properties: Properties) -> dict[str, Any]:
        given: dict[str, Any] = _numbers({name: value for name, value in properties.items() if name in self._own})
        return given

    def _code(self, properties: Properties) -> dict[str, Any]:
        code = dict(properties["Code"])
        if "ZipFile" in code:  # in a template it is the source text itself
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr(zipfile.ZipInfo("index.py"), code["ZipFile"])
            code["ZipFile"] = packed.getvalue()
        return code

    def _reserve(self, services: Services, name: str, old: Properties, new: Properties) -> None:
        functions, wanted = services.functions, new.get("ReservedConcurrentExecutions")
        if wanted is not None:
            functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=int(wanted))
        elif "ReservedConcurrentExecutions" in old:
            functions.delete_function_concurrency(FunctionName=name)


class Permission(ResourceType):
    type = "AWS::Lambda::Permission"
    honours = frozenset({"Action", "FunctionName", "Principal", "SourceAccount", "SourceArn"})
    replaces = honours

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        services.functions.add_permission(StatementId=name, **properties)
        return Made(name)

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.functions.remove_permission(FunctionName=properties["FunctionName"], StatementId=made.physical_id)


class LogGroup(ResourceType):
    type = "AWS::Logs::LogGroup"
    name_property = "LogGroupName"
    honours = frozenset({"LogGroupName", "RetentionInDays", "Tags"})
    replaces = frozenset({"LogGroupName"})

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        group = properties.get("LogGroupName", name)
        tags = _tag_map(properties)
        services.logs.create_log_group(logGroupName=group, **({"tags": tags} if tags else {}))
        made = Made(group, {"Arn": f"arn:aws:logs:{services.region}:{services.account}:log-group:{group}:*"})
        return self.update(services, made, {"Tags": properties.get("Tags")}, properties)

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        if "RetentionInDays" in new:
            services.logs.put_retention_policy(
                logGroupName=made.physical_id, retentionInDays=int(new["RetentionInDays"])
            )
        elif "RetentionInDays" in old:
            services.logs.delete_retention_policy(logGroupName=made.physical_id)
        if "Tags" in changed(old, new):
            if gone := _gone(old, new):
                services.logs.untag_log_group(logGroupName=made.physical_id, tags=gone)
            if tags := _tag_map(new):
                services.logs.tag_log_group(logGroupName=made.physical_id, tags=tags)
        return made

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        services.logs.delete_log_group(logGroupName=made.physical_id)


class InlinePolicy(ResourceType):
    type = "AWS::IAM::Policy"
    honours = frozenset({"Groups", "PolicyDocument", "PolicyName", "Roles", "Users"})
    replaces = frozenset({"PolicyName"})
    _holders = (("Groups", "group", "GroupName"), ("Roles", "role", "RoleName"), ("Users", "user", "UserName"))

    def create(self, services: Services, name: str, properties: Properties) -> Made:
        for plural, kind, member in self._holders:
            for holder in properties.get(plural, []):
                put = getattr(services.iam, f"put_{kind}_policy")
                document = _policy(properties["PolicyDocument"])
                put(**{member: holder}, PolicyName=properties["PolicyName"], PolicyDocument=document)
        return Made(name)

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        dropped = {
            plural: [h for h in old.get(plural, []) if h not in new.get(plural, [])] for plural, _, _ in self._holders
        }
        self.delete(services, made, {**old, **dropped})
        return Made(made.physical_id, self.create(services, made.physical_id, new).attributes)

    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        for plural, kind, member in self._holders:
            for holder in properties.get(plural, []):
                getattr(services.iam, f"delete_{kind}_policy")(**{member: holder}, PolicyName=properties["PolicyName"])


def _lower(value: Any) -> Any:
    """CodeBuild's names begin with small letters; CloudFormation's do not."""
    if isinstance(value, Mapping):
        spelled = {name: name[:1].lower() + name[1:] for name in value} | {"BuildSpec": "buildspec"}
        return {spelled[name]: _lower(each) for name, each in value.items()}
    return [_lower(each) for each in value] if isinstance(value, list) else value


_NUMBERS = frozenset(
    {
        *("Cooldown", "MaximumEventAgeInSeconds", "MaximumRetryAttempts", "MemorySize", "MetricIntervalLowerBound"),
        *("MetricIntervalUpperBound", "MinAdjustmentMagnitude", "ScaleInCooldown", "ScaleOutCooldown"),
        *("ScalingAdjustment", "TargetValue", "Timeout", "queuedTimeoutInMinutes", "timeoutInMinutes"),
    }
)


def _numbers(value: Any, name: str = "") -> Any:
    """Numbers that a template wrote as text, as numbers: CloudFormation takes both."""
    if isinstance(value, Mapping):
        return {key: _numbers(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    if name in _NUMBERS and isinstance(value, str):
        return float(value) if "." in value or name in ("TargetValue",) else int(value)
    return value


TYPES: dict[str, ResourceType] = {
    kind.type: kind()
    for kind in (
        Alarm,
        Alias,
        Bucket,
        BucketPolicy,
        CompositeAlarm,
        Dashboard,
        Function,
        InlinePolicy,
        Key,
        LogGroup,
        ModelPackageGroup,
        Parameter,
        Permission,
        Project,
        Queue,
        QueuePolicy,
        Role,
        Rule,
        ScalableTarget,
        ScalingPolicy,
        Subscription,
        Topic,
        TopicPolicy,
    )
}


# Their records are not moto's here, so that moto's models would make what no API of the local cloud sees.
_OURS = ("AWS::CloudWatch::Alarm", "AWS::CloudWatch::CompositeAlarm", "AWS::SageMaker::")


def kind_of(name: str) -> ResourceType | None:
    """The type of that name; None if there is none that keeps its word."""
    if name in TYPES:
        return TYPES[name]
    model = moto_parsing.get_model_map().get(name)
    return None if model is None or name.startswith(_OURS) else MotoType(model)
