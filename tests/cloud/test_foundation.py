"""The foundation, deployed: every logical id is a thing that its own service describes as the template wants it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest

from tests.cloud.conftest import Rig
from windlass import foundation
from windlass.errors import DeploymentFailed, InvalidInput, NotFound
from windlass.foundation import Change, Contract, Event


@dataclass
class Deployed:
    project: str
    contract: Contract
    told: list[Change | Event]
    ids: dict[str, str]
    client: Callable[[str], Any]


@pytest.fixture(scope="module")
def environment(rig: Rig) -> Iterator[Rig]:
    """The SDK reads where it goes from the environment, as boto3 does."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rig.env.items():
            patch.setenv(name, value)
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        yield rig


@pytest.fixture(scope="module")
def deployed(environment: Rig) -> Iterator[Deployed]:
    project, told = environment.unique("p"), list[Change | Event]()
    contract = foundation.deploy(project, on_event=told.append)
    ids = {resource.logical_id: resource.physical_id for resource in foundation.status(project).resources}
    yield Deployed(project, contract, told, ids, environment.client)
    foundation.destroy(project)


def test_every_logical_id_of_the_template_has_a_physical_one(deployed: Deployed) -> None:
    assert set(deployed.ids) == set(json.loads(foundation.template())["Resources"])
    assert all(deployed.ids.values())


def test_the_changes_come_first_and_then_the_events(deployed: Deployed) -> None:
    kinds = [type(item) for item in deployed.told]
    assert kinds == sorted(kinds, key=[Change, Event].index)
    assert str(deployed.told[-1]).startswith("CREATE_COMPLETE")
    done = {item.logical_id for item in deployed.told if isinstance(item, Event) and item.status == "CREATE_COMPLETE"}
    assert done == {*deployed.ids, f"{deployed.project}-foundation"}


def test_the_contract_names_what_there_is(deployed: Deployed) -> None:
    contract = deployed.contract
    assert Contract.load(deployed.project) == contract
    assert contract.project == contract.model_package_group == deployed.project
    assert contract.bucket == deployed.ids["ArtifactBucket"]
    assert contract.topic_arn == deployed.ids["AlertTopic"]
    assert contract.key_arn.endswith(f":key/{deployed.ids['Key']}")
    assert contract.role_arn.endswith(f":role/{deployed.ids['ExecutionRole']}")
    assert contract.metric_namespace == "Windlass"


def test_the_outputs_are_the_contract_and_who_may_use_it(deployed: Deployed) -> None:
    stack = deployed.client("cloudformation").describe_stacks(StackName=f"{deployed.project}-foundation")["Stacks"][0]
    assert {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]} == {
        "Bucket": deployed.contract.bucket,
        "DeployerRoleArn": deployed.client("iam").get_role(RoleName=deployed.ids["DeployerRole"])["Role"]["Arn"],
        "KeyArn": deployed.contract.key_arn,
        "ModelPackageGroup": deployed.contract.model_package_group,
        "RoleArn": deployed.contract.role_arn,
        "TopicArn": deployed.contract.topic_arn,
    }


def test_the_key(deployed: Deployed) -> None:
    kms, key = deployed.client("kms"), deployed.ids["Key"]
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["Enabled"]
    assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"]
    policy = json.loads(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"])
    account = deployed.contract.key_arn.split(":")[4]
    assert policy["Statement"][0]["Principal"] == {"AWS": f"arn:aws:iam::{account}:root"}
    assert policy["Statement"][1]["Condition"] == {"StringEquals": {"aws:SourceAccount": account}}
    assert kms.list_resource_tags(KeyId=key)["Tags"] == [{"TagKey": "windlass:project", "TagValue": deployed.project}]


def test_the_alias(deployed: Deployed) -> None:
    alias = deployed.client("kms").describe_key(KeyId=f"alias/{deployed.project}")
    assert alias["KeyMetadata"]["Arn"] == deployed.contract.key_arn
    assert deployed.ids["KeyAlias"] == f"alias/{deployed.project}"


def test_the_bucket(deployed: Deployed) -> None:
    s3, bucket = deployed.client("s3"), deployed.contract.bucket
    (rule,) = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {
        "SSEAlgorithm": "aws:kms",
        "KMSMasterKeyID": deployed.contract.key_arn,
    }
    assert rule["BucketKeyEnabled"] is True
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    closed = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert set(closed.values()) == {True}
    (lifecycle,) = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert lifecycle["Status"] == "Enabled"
    assert lifecycle["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert lifecycle["NoncurrentVersionExpiration"]["NoncurrentDays"] == 30
    owner = s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"]
    assert owner == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == [{"Key": "windlass:project", "Value": deployed.project}]


def test_the_bucket_policy(deployed: Deployed) -> None:
    policy = json.loads(deployed.client("s3").get_bucket_policy(Bucket=deployed.contract.bucket)["Policy"])
    (statement,) = policy["Statement"]
    arn = f"arn:aws:s3:::{deployed.contract.bucket}"
    assert (statement["Effect"], statement["Resource"]) == ("Deny", [arn, f"{arn}/*"])
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_execution_role(deployed: Deployed) -> None:
    iam, name = deployed.client("iam"), deployed.ids["ExecutionRole"]
    role = iam.get_role(RoleName=name)["Role"]
    assert role["Arn"] == deployed.contract.role_arn
    (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    document = iam.get_role_policy(RoleName=name, PolicyName="windlass")["PolicyDocument"]
    statements = {statement["Sid"]: statement for statement in document["Statement"]}
    assert statements["ArtifactKey"]["Resource"] == deployed.contract.key_arn
    assert f"arn:aws:s3:::{deployed.contract.bucket}/runs/*" in statements["Outputs"]["Resource"]
    images = "arn:aws:ecr:us-east-1:763104351884:repository/"  # AWS's own account for its containers there
    assert all(resource.startswith(images) for resource in statements["AwsImages"]["Resource"])
    assert role["Tags"] == [{"Key": "windlass:project", "Value": deployed.project}]


def test_the_deployer_role(deployed: Deployed) -> None:
    iam, name = deployed.client("iam"), deployed.ids["DeployerRole"]
    (trust,) = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]["Statement"]
    account = deployed.contract.key_arn.split(":")[4]
    assert trust["Principal"] == {"AWS": f"arn:aws:iam::{account}:root"}
    document = iam.get_role_policy(RoleName=name, PolicyName="windlass")["PolicyDocument"]
    statements = {statement["Sid"]: statement for statement in document["Statement"]}
    assert statements["PassExecutionRole"]["Resource"] == deployed.contract.role_arn
    assert statements["PassExecutionRole"]["Condition"] == {
        "StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}
    }
    assert statements["Contract"]["Resource"].endswith(f":parameter/windlass/{deployed.project}/contract")
    assert [sid for sid, each in statements.items() if each["Resource"] == "*"] == ["Lists", "Metrics"]


def test_the_topic_and_its_policy(deployed: Deployed) -> None:
    found = deployed.client("sns").get_topic_attributes(TopicArn=deployed.contract.topic_arn)["Attributes"]
    assert found["KmsMasterKeyId"] == deployed.contract.key_arn
    statements = {statement["Sid"]: statement for statement in json.loads(found["Policy"])["Statement"]}
    assert statements["AllowPublishThroughSSLOnly"]["Effect"] == "Deny"
    assert statements["AllowAlarms"]["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    assert statements["AllowAlarms"]["Resource"] == deployed.contract.topic_arn


def test_the_registry_group(deployed: Deployed) -> None:
    group = deployed.client("sagemaker").describe_model_package_group(ModelPackageGroupName=deployed.project)
    assert group["ModelPackageGroupArn"] == deployed.ids["ModelPackageGroup"]


def test_the_contract_parameter(deployed: Deployed) -> None:
    found = deployed.client("ssm").get_parameter(Name=f"/windlass/{deployed.project}/contract")["Parameter"]
    assert found["Type"] == "String"
    assert json.loads(found["Value"])["version"] == foundation.CONTRACT_VERSION


def test_deploying_again_changes_nothing(deployed: Deployed) -> None:
    told: list[Change | Event] = []
    assert foundation.deploy(deployed.project, on_event=told.append) == deployed.contract
    assert told == []
    assert foundation.diff(deployed.project) == []


def test_a_parameter_change_is_shown_then_made_and_kept(environment: Rig) -> None:
    # Given a foundation
    project, other = environment.unique("p"), environment.unique("group")
    before = foundation.deploy(project)
    # When its registry group is to be another
    changes = {
        change.logical_id: (change.action, change.replacement, change.properties)
        for change in foundation.diff(project, {"ModelPackageGroupName": other})
    }
    # Then the diff says what is replaced, and nothing has changed yet
    assert changes == {
        "ModelPackageGroup": ("Modify", "True", ("ModelPackageGroupName",)),
        "Contract": ("Modify", "False", ("Value",)),
    }
    assert Contract.load(project) == before
    # When it is deployed, twice, the second time without the parameter
    after = foundation.deploy(project, {"ModelPackageGroupName": other})
    assert after.model_package_group == other
    assert foundation.deploy(project) == after
    assert after.bucket == before.bucket
    foundation.destroy(project)


def test_a_failed_creation_names_the_cause_and_can_be_repeated(environment: Rig) -> None:
    # Given a registry group of the name that the foundation wants
    project = environment.unique("p")
    sagemaker, s3 = environment.client("sagemaker"), environment.client("s3")
    sagemaker.create_model_package_group(ModelPackageGroupName=project)
    buckets = len(s3.list_buckets()["Buckets"])
    # When it is deployed
    with pytest.raises(DeploymentFailed, match=r"ModelPackageGroup \(AWS::SageMaker::ModelPackageGroup\): ") as caught:
        foundation.deploy(project)
    # Then the error says why, and nothing is left
    assert "already exists" in str(caught.value)
    assert "Nothing is left of it" in str(caught.value)
    assert foundation.status(project).state == "ROLLBACK_COMPLETE"
    assert len(s3.list_buckets()["Buckets"]) == buckets
    # When the cause is gone, deploying works, over the shell of the failed stack
    sagemaker.delete_model_package_group(ModelPackageGroupName=project)
    assert foundation.deploy(project).model_package_group == project
    foundation.destroy(project)


def test_destroying_says_what_stays(environment: Rig) -> None:
    project = environment.unique("p")
    contract = foundation.deploy(project)
    # When it is destroyed
    kept = {resource.logical_id: resource.physical_id for resource in foundation.destroy(project)}
    # Then bucket and key are told and there, and the bucket is as closed as before
    assert set(kept) == {"ArtifactBucket", "ArtifactBucketPolicy", "Key"}
    assert environment.client("s3").get_bucket_policy(Bucket=contract.bucket)["Policy"]
    assert environment.client("kms").describe_key(KeyId=contract.key_arn)["KeyMetadata"]["Enabled"]
    # And the contract is gone, with the way back
    with pytest.raises(NotFound, match=rf"windlass infra deploy --project {project}"):
        Contract.load(project)
    with pytest.raises(NotFound, match=f"there is no stack {project}-foundation"):
        foundation.destroy(project)


def test_a_registry_with_versions_is_not_destroyed_silently(environment: Rig) -> None:
    project, sagemaker = environment.unique("p"), environment.client("sagemaker")
    foundation.deploy(project)
    version = sagemaker.create_model_package(ModelPackageGroupName=project)["ModelPackageArn"]
    # When it is destroyed with a version in the registry
    with pytest.raises(DeploymentFailed, match="ModelPackageGroup") as caught:
        foundation.destroy(project)
    assert "a registry group must hold no versions" in str(caught.value)
    # Then the version is still there; without it, destroying again ends the job
    sagemaker.delete_model_package(ModelPackageName=version)
    foundation.destroy(project)
    assert foundation.status(project).state == "NOT_DEPLOYED"


def test_a_contract_that_somebody_wrote_over_is_told(environment: Rig) -> None:
    project = environment.unique("p")
    name = f"/windlass/{project}/contract"
    environment.client("ssm").put_parameter(Name=name, Type="String", Value='{"version": 99}')
    with pytest.raises(InvalidInput, match="it has version 99, and this SDK reads version 1"):
        Contract.load(project)
    environment.client("ssm").delete_parameter(Name=name)
