"""Nothing that the local cloud answers is invented: what moto would make up is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.cloud.conftest import Rig

NOW = datetime(2026, 1, 1, tzinfo=UTC)

REFUSALS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "text in pictures": (
        "rekognition",
        lambda client: client.detect_text(Image={"Bytes": b"x"}),
        "it has no image analysis",
    ),
    "a language model": (
        "bedrock-runtime",
        lambda client: client.invoke_model(modelId="x", body=b"{}"),
        "it hosts no foundation models",
    ),
    "a query of Logs Insights": (
        "logs",
        lambda client: client.start_query(logGroupName="g", startTime=0, endTime=1, queryString="stats count(*)"),
        "it has no Logs Insights: ask FilterLogEvents instead",
    ),
    "a query of Athena": (
        "athena",
        lambda client: client.start_query_execution(QueryString="select 1"),
        "it runs no SQL",
    ),
    "a build": ("codebuild", lambda client: client.start_build(projectName="image"), "it builds no images"),
    "a state machine": (
        "stepfunctions",
        lambda client: client.start_execution(stateMachineArn="arn:aws:states:us-east-1:123456789012:stateMachine:a"),
        "it runs no state machines",
    ),
    "what was spent": (
        "ce",
        lambda client: client.get_cost_and_usage(
            TimePeriod={"Start": "2026-01-01", "End": "2026-01-02"}, Granularity="DAILY", Metrics=["UnblendedCost"]
        ),
        "it costs nothing",
    ),
    "metrics of an experiment": (
        "sagemaker-metrics",
        lambda client: client.batch_put_metrics(
            TrialComponentName="x", MetricData=[{"MetricName": "loss", "Timestamp": NOW, "Value": 1.0}]
        ),
        "it has no metrics of experiments",
    ),
    "a record of the feature store": (
        "sagemaker-featurestore-runtime",
        lambda client: client.get_record(FeatureGroupName="x", RecordIdentifierValueAsString="1"),
        "it has no metrics of experiments, feature store",
    ),
    "a service that moto does not know": (
        "sagemaker-geospatial",
        lambda client: client.list_earth_observation_jobs(),
        "does not implement sagemaker-geospatial POST /list-earth-observation-jobs",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_would_be_made_up_is_refused_at_once(rig: Rig, case: str) -> None:
    service, ask, reason = REFUSALS[case]

    with pytest.raises(ClientError) as refused:
        ask(rig.client(service))

    assert refused.value.response["Error"]["Code"] == "UnknownOperationException"
    assert reason in refused.value.response["Error"]["Message"]
    assert refused.value.response["ResponseMetadata"]["RetryAttempts"] == 0


@pytest.mark.parametrize(
    ("role", "code", "said"),
    [
        ("arn:aws:iam::999999999999:role/deployer", "AccessDenied", "has one account, 123456789012"),
        ("arn:aws:iam::123456789012:user/somebody", "ValidationError", "is invalid"),
        ("no ARN, but as long as one has to be", "ValidationError", "is invalid"),
    ],
)
@pytest.mark.parametrize("operation", ["assume_role", "assume_role_with_web_identity"])
def test_there_are_no_roles_of_other_accounts(rig: Rig, operation: str, role: str, code: str, said: str) -> None:
    token = {"WebIdentityToken": "t" * 20} if "web" in operation else {}
    with pytest.raises(ClientError, match=f"{code}.*{said}"):
        getattr(rig.client("sts"), operation)(RoleArn=role, RoleSessionName="me", **token)
