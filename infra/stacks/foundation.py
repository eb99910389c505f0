"""The stack that everything else stands on: key, bucket, execution role, registry group, alert topic, contract.

    windlass infra deploy --project windlass      # boto3 alone, from templates/cloudformation/foundation.json
    cd infra && cdk deploy                        # the same stack, by the CDK CLI

The SDK learns the names from one SSM parameter, the contract (`windlass.foundation.Contract`), and from nowhere else.
Logical ids are fixed by hand: they are what users see in a change set, and a renamed id means a replaced bucket.
"""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker
from aws_cdk import aws_sns as sns
from aws_cdk import aws_ssm as ssm
from constructs import Construct, IConstruct

from windlass import images

METRIC_NAMESPACE = "Windlass"
CONTRACT_VERSION = 1

# First segments of the keys that jobs and endpoints read and write. What else the SDK keeps in the bucket (labels,
# quality) is its caller's own affair and closed to them.
INPUTS = ("artifacts", "async", "data", "runs", "source")
OUTPUTS = ("async", "capture", "runs")

# AWS's Deep Learning Containers that a PyTorch or Hugging Face job may name as its image.
DLC_REPOSITORIES = (
    "huggingface-pytorch-inference",
    "huggingface-pytorch-training",
    "pytorch-inference",
    "pytorch-training",
)


class FoundationStack(cdk.Stack):
    """One per project and Region. Takes two parameters, so that one committed template serves every account."""

    def __init__(self, scope: Construct, construct_id: str) -> None:
        super().__init__(
            scope,
            construct_id,
            stack_name="windlass-foundation",  # what `windlass infra deploy` calls it, so that both work on one stack
            description="Windlass foundation: key, bucket, execution role, registry group, alert topic, contract",
            synthesizer=cdk.LegacyStackSynthesizer(),  # as whoever deploys: no bootstrap stack, none of its roles
            analytics_reporting=False,
        )
        self.project = cdk.CfnParameter(
            self,
            "Project",
            type="String",
            default="windlass",
            allowed_pattern="[a-z][a-z0-9-]{0,30}[a-z0-9]",
            constraint_description="lower-case letters, digits and inner hyphens, 2 to 32 characters",
            description="Names the key's alias and the contract; one foundation for each project and Region",
        ).value_as_string
        self.group_name = cdk.CfnParameter(
            self,
            "ModelPackageGroupName",
            type="String",
            default="windlass",
            allowed_pattern="[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}",
            constraint_description="letters, digits and inner hyphens, up to 63 characters",
            description="The SageMaker Model Registry group that holds the model versions",
        ).value_as_string

        key = self._key()
        bucket = self._bucket(key)
        role = self._execution_role(key, bucket)
        deployer = self._deployer_role(key, bucket, role)
        topic = self._alert_topic(key)
        group = sagemaker.CfnModelPackageGroup(
            self,
            "ModelPackageGroup",
            model_package_group_name=self.group_name,
            model_package_group_description=f"Model versions of the Windlass project {self.project}",
        )
        self._contract(
            bucket=bucket.bucket_name,
            key_arn=key.key_arn,
            role_arn=role.role_arn,
            topic_arn=topic.topic_arn,
            model_package_group=group.model_package_group_name,
        )
        cdk.CfnOutput(
            self,
            "DeployerRoleOutput",
            value=deployer.role_arn,
            description="Assume it to train, register, deploy and watch: all that the SDK's verbs need, and no more",
        ).override_logical_id("DeployerRoleArn")
        # The resources alone: a stack's own tags cannot hold a parameter.
        cdk.Tags.of(self).add("windlass:project", self.project, exclude_resource_types=["aws:cdk:stack"])
        self._fix_logical_ids()

    def _key(self) -> kms.Key:
        key = kms.Key(
            self,
            "Key",
            description=f"Windlass {self.project}: artifacts and alerts",
            enable_key_rotation=True,
            # The bucket outlives the stack, and its objects are unreadable without the key.
            removal_policy=cdk.RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
        )
        # An alarm publishes to the encrypted topic as CloudWatch, and SNS forwards to encrypted queues as itself.
        for service in ("cloudwatch", "sns"):
            key.add_to_resource_policy(
                iam.PolicyStatement(
                    sid=f"Alerts{service.capitalize()}",
                    principals=[iam.ServicePrincipal(f"{service}.amazonaws.com")],
                    actions=["kms:Decrypt", "kms:GenerateDataKey"],
                    resources=["*"],  # in a key policy: this key
                    conditions={"StringEquals": {"aws:SourceAccount": cdk.Aws.ACCOUNT_ID}},
                )
            )
        kms.Alias(self, "KeyAlias", alias_name=f"alias/{self.project}", target_key=key)
        return key

    def _bucket(self, key: kms.Key) -> s3.Bucket:
        bucket = s3.Bucket(
            self,
            "ArtifactBucket",
            encryption=s3.BucketEncryption.KMS,
            encryption_key=key,
            bucket_key_enabled=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            enforce_ssl=True,
            versioned=True,
            lifecycle_rules=[
                s3.LifecycleRule(
                    id="ForgetOldVersions",
                    abort_incomplete_multipart_upload_after=cdk.Duration.days(7),
                    noncurrent_version_expiration=cdk.Duration.days(30),
                )
            ],
            removal_policy=cdk.RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
        )
        # A bucket that stays keeps its lock.
        assert bucket.policy is not None
        bucket.policy.apply_removal_policy(cdk.RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE)
        acknowledge(
            bucket,
            {
                "AwsSolutions-S1": "Who read which artifact is a matter of CloudTrail data events, which the account's "
                "owner turns on; a log bucket of our own would need one too."
            },
        )
        return bucket

    def _execution_role(self, key: kms.Key, bucket: s3.Bucket) -> iam.Role:
        """What training jobs and endpoints run as. Statements are spelled out: ``grant_*`` would add wildcards."""
        logs = self.format_arn(
            service="logs",
            resource="log-group",
            resource_name="/aws/sagemaker/*",
            arn_format=cdk.ArnFormat.COLON_RESOURCE_NAME,
        )
        alarms = self.format_arn(
            service="cloudwatch", resource="alarm", resource_name="*", arn_format=cdk.ArnFormat.COLON_RESOURCE_NAME
        )
        dlc_account = cdk.CfnMapping(
            self, "AwsImages", mapping={region: {"account": account} for region, account in images.ACCOUNTS.items()}
        ).find_in_map(cdk.Aws.REGION, "account")
        statements = [
            iam.PolicyStatement(
                sid="Inputs",
                actions=["s3:GetObject"],
                resources=[bucket.arn_for_objects(f"{prefix}/*") for prefix in INPUTS],
            ),
            iam.PolicyStatement(
                sid="Outputs",
                actions=["s3:AbortMultipartUpload", "s3:PutObject"],
                resources=[bucket.arn_for_objects(f"{prefix}/*") for prefix in OUTPUTS],
            ),
            iam.PolicyStatement(
                sid="ArtifactBucket",
                actions=["s3:GetBucketLocation", "s3:ListBucket"],
                resources=[bucket.bucket_arn],
            ),
            iam.PolicyStatement(
                sid="ArtifactKey",
                actions=["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey"],
                resources=[key.key_arn],
            ),
            iam.PolicyStatement(
                sid="Logs",
                actions=[
                    "logs:CreateLogGroup",
                    "logs:CreateLogStream",
                    "logs:DescribeLogStreams",
                    "logs:PutLogEvents",
                ],
                resources=[logs],
            ),
            iam.PolicyStatement(
                sid="Metrics",
                actions=["cloudwatch:PutMetricData"],
                resources=["*"],
                conditions={"StringLike": {"cloudwatch:namespace": [METRIC_NAMESPACE, "/aws/sagemaker/*"]}},
            ),
            # SageMaker reads the alarms of a deployment with the model's own role.
            iam.PolicyStatement(sid="RollbackAlarms", actions=["cloudwatch:DescribeAlarms"], resources=[alarms]),
            iam.PolicyStatement(sid="RegistryLogin", actions=["ecr:GetAuthorizationToken"], resources=["*"]),
            iam.PolicyStatement(
                sid="AwsImages",
                actions=["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                resources=[
                    self.format_arn(service="ecr", account=dlc_account, resource="repository", resource_name=repository)
                    for repository in DLC_REPOSITORIES
                ],
            ),
        ]
        # Inline, so that the role exists with its permissions or not at all: a separate policy resource may land after
        # the first job has started.
        role = iam.Role(
            self,
            "ExecutionRole",
            description=f"What the SageMaker jobs and endpoints of Windlass project {self.project} run as",
            assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"),
            inline_policies={"windlass": iam.PolicyDocument(statements=statements)},
        )
        objects = "Objects have no fixed names; only these prefixes are open."
        acknowledge(
            role,
            {f"AwsSolutions-IAM5[Resource::<ArtifactBucket.Arn>/{prefix}/*]": objects for prefix in (*INPUTS, *OUTPUTS)}
            | {
                "AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:logs:<AWS::Region>:<AWS::AccountId>:log-group:"
                "/aws/sagemaker/*]": "SageMaker names the log groups, one for each endpoint.",
                "AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:cloudwatch:<AWS::Region>:<AWS::AccountId>:alarm:*]": (
                    "Read only, this account and Region; a deployment may name any alarm of the user's."
                ),
                "AwsSolutions-IAM5[Resource::*]": "PutMetricData and GetAuthorizationToken know no resources; the"
                " former is held to two namespaces.",
            },
        )
        return role

    def _deployer_role(self, key: kms.Key, bucket: s3.Bucket, execution_role: iam.Role) -> iam.Role:
        """What people and pipelines assume to use the SDK. It cannot change the foundation, nor any other role."""

        def arns(
            service: str, *resources: str, arn_format: cdk.ArnFormat = cdk.ArnFormat.SLASH_RESOURCE_NAME
        ) -> list[str]:
            return [
                self.format_arn(service=service, resource=resource, resource_name="*", arn_format=arn_format)
                for resource in resources
            ]

        logs = self.format_arn(
            service="logs",
            resource="log-group",
            resource_name="/aws/sagemaker/*",
            arn_format=cdk.ArnFormat.COLON_RESOURCE_NAME,
        )
        contract = self.format_arn(
            service="ssm", resource="parameter", resource_name=f"windlass/{self.project}/contract"
        )
        statements = [
            iam.PolicyStatement(
                sid="Objects",
                actions=["s3:AbortMultipartUpload", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:PutObject"],
                resources=[bucket.arn_for_objects("*")],
            ),
            iam.PolicyStatement(
                sid="ArtifactBucket",
                actions=["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"],
                resources=[bucket.bucket_arn],
            ),
            iam.PolicyStatement(
                sid="ArtifactKey",
                actions=["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey"],
                resources=[key.key_arn],
            ),
            iam.PolicyStatement(sid="Contract", actions=["ssm:GetParameter"], resources=[contract]),
            iam.PolicyStatement(
                sid="Jobs",
                actions=[f"sagemaker:{verb}TrainingJob" for verb in ("Create", "Describe", "Stop")],
                resources=arns("sagemaker", "training-job"),
            ),
            iam.PolicyStatement(
                sid="Registry",
                actions=[
                    "sagemaker:CreateModelPackage",
                    "sagemaker:CreateModelPackageGroup",
                    "sagemaker:DeleteModelPackage",
                    "sagemaker:DescribeModelPackage",
                    "sagemaker:DescribeModelPackageGroup",
                    "sagemaker:UpdateModelPackage",
                ],
                resources=arns("sagemaker", "model-package", "model-package-group"),
            ),
            iam.PolicyStatement(
                sid="Endpoints",
                actions=[
                    *(f"sagemaker:{verb}Model" for verb in ("Create", "Delete", "Describe")),
                    *(f"sagemaker:{verb}EndpointConfig" for verb in ("Create", "Delete", "Describe")),
                    *(f"sagemaker:{verb}Endpoint" for verb in ("Create", "Delete", "Describe", "Invoke", "Update")),
                    "sagemaker:UpdateEndpointWeightsAndCapacities",
                ],
                resources=arns("sagemaker", "model", "endpoint-config", "endpoint"),
            ),
            iam.PolicyStatement(
                sid="Tags",
                actions=["sagemaker:AddTags", "sagemaker:DeleteTags", "sagemaker:ListTags"],
                resources=arns(
                    "sagemaker",
                    "endpoint",
                    "endpoint-config",
                    "model",
                    "model-package",
                    "model-package-group",
                    "training-job",
                ),
            ),
            iam.PolicyStatement(
                sid="Lists",
                actions=[
                    "cloudwatch:GetMetricData",
                    "cloudwatch:GetMetricStatistics",
                    "cloudwatch:ListMetrics",
                    "sagemaker:ListEndpointConfigs",
                    "sagemaker:ListEndpoints",
                    "sagemaker:ListModelPackageGroups",
                    "sagemaker:ListModelPackages",
                    "sagemaker:ListModels",
                    "sagemaker:ListTrainingJobs",
                ],
                resources=["*"],
            ),
            iam.PolicyStatement(
                sid="PassExecutionRole",
                actions=["iam:PassRole"],
                resources=[execution_role.role_arn],
                conditions={"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
            ),
            iam.PolicyStatement(
                sid="Alarms",
                actions=["cloudwatch:DeleteAlarms", "cloudwatch:DescribeAlarms", "cloudwatch:PutMetricAlarm"],
                resources=arns("cloudwatch", "alarm", arn_format=cdk.ArnFormat.COLON_RESOURCE_NAME),
            ),
            iam.PolicyStatement(
                sid="Metrics",
                actions=["cloudwatch:PutMetricData"],
                resources=["*"],
                conditions={"StringEquals": {"cloudwatch:namespace": METRIC_NAMESPACE}},
            ),
            iam.PolicyStatement(
                sid="Logs",
                actions=["logs:DescribeLogStreams", "logs:FilterLogEvents", "logs:GetLogEvents"],
                resources=[logs],
            ),
        ]
        role = iam.Role(
            self,
            "DeployerRole",
            description=f"What those assume who train, register and deploy for the Windlass project {self.project}",
            assumed_by=iam.AccountRootPrincipal(),
            inline_policies={"windlass": iam.PolicyDocument(statements=statements)},
        )
        kinds = ("endpoint", "endpoint-config", "model", "model-package", "model-package-group", "training-job")
        scope = "arn:<AWS::Partition>:{}:<AWS::Region>:<AWS::AccountId>:{}"
        acknowledge(
            role,
            {
                "AwsSolutions-IAM5[Resource::<ArtifactBucket.Arn>/*]": "The SDK's own bucket, whose keys it chooses.",
                "AwsSolutions-IAM5[Resource::*]": "Lists and PutMetricData know no resources; the latter is held to one"
                " namespace.",
                f"AwsSolutions-IAM5[Resource::{scope.format('logs', 'log-group:/aws/sagemaker/*')}]": (
                    "Read only; SageMaker names the log groups, one for each endpoint."
                ),
                f"AwsSolutions-IAM5[Resource::{scope.format('cloudwatch', 'alarm:*')}]": (
                    "An endpoint's alarms are named after it, and endpoints have the names that users give."
                ),
            }
            | {
                f"AwsSolutions-IAM5[Resource::{scope.format('sagemaker', f'{kind}/*')}]": (
                    "Runs, versions and endpoints have the names that users give."
                )
                for kind in kinds
            },
        )
        return role

    def _alert_topic(self, key: kms.Key) -> sns.Topic:
        topic = sns.Topic(self, "AlertTopic", master_key=key, enforce_ssl=True)
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AllowAlarms",
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                actions=["sns:Publish"],
                resources=[topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": cdk.Aws.ACCOUNT_ID}},
            )
        )
        return topic

    def _contract(self, **fields: str) -> None:
        contract = {
            "version": CONTRACT_VERSION,
            "project": self.project,
            "metric_namespace": METRIC_NAMESPACE,
            **fields,
        }
        ssm.CfnParameter(
            self,
            "Contract",
            name=f"/windlass/{self.project}/contract",
            type="String",
            description="What the Windlass SDK knows of this account; written by CloudFormation, read by the SDK",
            value=self.to_json_string(dict(sorted(contract.items()))),
        )
        descriptions = {
            "bucket": "Where data, code and model artifacts go",
            "key_arn": "Encrypts the bucket and the alerts",
            "role_arn": "What SageMaker jobs and endpoints run as",
            "topic_arn": "Subscribe to it to hear of alarms",
            "model_package_group": "Holds the model versions",
        }
        for field, value in fields.items():
            output = "".join(word.capitalize() for word in field.split("_"))
            cdk.CfnOutput(self, f"{output}Output", value=value, description=descriptions[field]).override_logical_id(
                output
            )

    def _fix_logical_ids(self) -> None:
        """``ArtifactBucketPolicyB1A8A3C5`` -> ``ArtifactBucketPolicy``: the path of the construct without its hash."""
        for construct in self.node.find_all():
            if isinstance(construct, cdk.CfnResource):
                path = [part for part in construct.node.path.split("/")[1:] if part not in ("Resource", "Default")]
                construct.override_logical_id("".join(path))


def acknowledge(construct: IConstruct, reasons: dict[str, str]) -> None:
    """Take findings of cdk-nag knowingly, each by its full id, with the reason for it."""
    cdk.Validations.of(construct).acknowledge(
        *(cdk.Acknowledgment(id=rule, reason=why) for rule, why in reasons.items())
    )
