"""Every List operation of SageMaker filters, sorts and pages alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore import xform_name
from botocore.exceptions import ClientError

from tests.cloud import test_pipelines, test_training, test_tuning
from tests.cloud.conftest import Rig

MODEL = boto3.client("sagemaker", region_name="us-east-1").meta.service_model
# What each needs to be asked for, as the fixture makes it.
LISTS: Mapping[str, str] = {
    "ListEndpointConfigs": "",
    "ListEndpoints": "",
    "ListHyperParameterTuningJobs": "",
    "ListModelPackageGroups": "",
    "ListModelPackages": "ModelPackageGroupName",
    "ListModels": "",
    "ListPipelineExecutionSteps": "PipelineExecutionArn",
    "ListPipelineExecutions": "PipelineName",
    "ListPipelineParametersForExecution": "PipelineExecutionArn",
    "ListPipelines": "",
    "ListProcessingJobs": "",
    "ListTrainingJobs": "",
    "ListTrainingJobsForHyperParameterTuningJob": "HyperParameterTuningJobName",
    "ListTransformJobs": "",
}
EMPTY = ("ListEndpoints", "ListTransformJobs")
"""What the fixture makes none of."""


@pytest.fixture(scope="module")
def named(rig: Rig) -> dict[str, str]:
    """At least two of everything that costs little."""
    client = rig.client("sagemaker")
    variant = {"VariantName": "one", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    group = rig.unique("group")
    for number in range(2):
        name = rig.unique("listed")
        client.create_model(ModelName=name, ExecutionRoleArn=rig.role, PrimaryContainer={"Image": "image"})
        client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[{**variant, "ModelName": name}])
        client.create_model_package_group(ModelPackageGroupName=f"{group}-{number}")
        client.create_model_package(ModelPackageGroupName=f"{group}-0", ModelApprovalStatus="Approved")
        test_training.run(rig, "pass")
    site = test_pipelines.Site(rig)
    fail = {"Name": "Fail", "Type": "Fail", "DependsOn": ["One", "Two"], "Arguments": {"ErrorMessage": "end"}}
    parameters = [{"Name": name, "Type": "String", "DefaultValue": "x"} for name in ("b", "a")]
    steps = [site.process(name, "pass") for name in ("One", "Two")]
    site.create(test_pipelines.definition(fail | {"DependsOn": []}))
    pipeline = site.create(test_pipelines.definition(*steps, fail, parameters=parameters))
    executions = [site.finish(site.start(pipeline))["PipelineExecutionArn"] for _ in range(2)]
    source = rig.upload_source({"train.py": "print('loss=1')"})
    tuned = {
        "HyperParameterTuningJobConfig": test_tuning.config(most=2),
        "TrainingJobDefinition": test_tuning.definition(rig, lambda _: source),
    }
    tuning = [test_tuning.start(rig, **tuned) for _ in range(2)]
    for name in tuning:
        test_tuning.finish(rig, name)
    return {
        "ModelPackageGroupName": f"{group}-0",
        "PipelineName": pipeline,
        "PipelineExecutionArn": executions[0],
        "HyperParameterTuningJobName": tuning[0],
    }


def test_no_list_is_forgotten() -> None:
    from windlass.local.sagemaker import OPERATIONS

    paged = {name for name in MODEL.operation_names if name.startswith("List") and xform_name(name) in OPERATIONS}
    assert paged - {"ListTags"} == set(LISTS)


def orders(operation: str) -> list[dict[str, str]]:
    """Every way in which it can be asked to sort."""
    members = MODEL.operation_model(operation).input_shape.members
    columns = [{"SortBy": name} for name in members["SortBy"].enum] if "SortBy" in members else [{}]
    directions = [{"SortOrder": name} for name in ("Ascending", "Descending")] if "SortOrder" in members else [{}]
    return [column | direction for column in columns for direction in directions]


def listed(rig: Rig, operation: str, asked: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """One page, each item as text, and the token of the next."""
    answer = getattr(rig.client("sagemaker"), xform_name(operation))(**asked)
    [items] = [value for value in answer.values() if isinstance(value, list)]
    return [json.dumps(item, sort_keys=True, default=str) for item in items], answer.get("NextToken")


@pytest.mark.parametrize("operation", LISTS)
def test_pages_add_up_to_the_whole_in_every_order(rig: Rig, named: dict[str, str], operation: str) -> None:
    required = {LISTS[operation]: named[LISTS[operation]]} if LISTS[operation] else {}
    found = {}
    for order in orders(operation):
        whole, _ = listed(rig, operation, {**required, **order, "MaxResults": 100})
        pages: list[str] = []
        asked: dict[str, Any] = {**required, **order, "MaxResults": 1}
        while True:
            page, token = listed(rig, operation, asked)
            assert len(page) <= 1
            pages += page
            if token is None:
                break
            asked["NextToken"] = token
        assert pages == whole, order
        assert len(whole) >= (0 if operation in EMPTY else 2), order
        found[order.get("SortBy", ""), order.get("SortOrder", "")] = whole
    for (column, direction), whole in found.items():
        assert direction != "Ascending" or whole == found[column, "Descending"][::-1]


@pytest.mark.parametrize("operation", LISTS)
def test_a_token_that_is_none_is_refused(rig: Rig, named: dict[str, str], operation: str) -> None:
    required = {LISTS[operation]: named[LISTS[operation]]} if LISTS[operation] else {}

    with pytest.raises(ClientError, match="The token in NextToken is invalid") as refused:
        listed(rig, operation, {**required, "NextToken": "made-up"})

    assert refused.value.response["Error"]["Code"] == "ValidationException"


@pytest.mark.parametrize("operation", LISTS)
def test_filters_by_time_let_through_what_lies_between(rig: Rig, named: dict[str, str], operation: str) -> None:
    required = {LISTS[operation]: named[LISTS[operation]]} if LISTS[operation] else {}
    members = MODEL.operation_model(operation).input_shape.members
    whole, _ = listed(rig, operation, {**required, "MaxResults": 100})

    for member in members:
        for suffix, day in (("After", -1), ("Before", 1)):
            if member.endswith(suffix):
                near, far = (datetime.now(UTC) + timedelta(days=days) for days in (day, -day))
                assert listed(rig, operation, {**required, member: near, "MaxResults": 100})[0] == whole
                assert listed(rig, operation, {**required, member: far})[0] == []


def test_nothing_here_has_a_warm_pool_or_is_of_another_account(rig: Rig, named: dict[str, str]) -> None:
    client = rig.client("sagemaker")

    assert client.list_training_jobs(WarmPoolStatusEquals="Available")["TrainingJobSummaries"] == []
    shared = client.list_model_package_groups(CrossAccountFilterOption="CrossAccount")
    assert shared["ModelPackageGroupSummaryList"] == []
