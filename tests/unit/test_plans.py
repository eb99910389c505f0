from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import botocore.session
import pytest
from botocore.validate import validate_parameters

from windlass import Slo, TrainSpec, metrics, plans
from windlass.errors import InvalidInput
from windlass.specs import ServeSpec


@dataclass(frozen=True)
class Foundation:
    bucket: str = "bucket"
    key_arn: str = "arn:aws:kms:us-east-1:123456789012:key/k"
    role_arn: str = "arn:aws:iam::123456789012:role/r"
    topic_arn: str = "arn:aws:sns:us-east-1:123456789012:t"
    project: str = "windlass"


VERSION = plans.Deployable(
    "digits/2", "image", "s3://bucket/artifacts/d/model.tar.gz", {"SAGEMAKER_PROGRAM": "inference.py"}
)
NOW = 1_800_000_000.123
TOPIC = "arn:aws:sns:us-east-1:123456789012:answers"


def train(**options: object) -> plans.Plan:
    return plans.train(
        TrainSpec.check("Training", script="train.py", **options),
        name="digits-1",
        source=plans.Source("s3://bucket/source/abc/source.tar.gz", Path("/x/source.tar.gz")),
        channels=[plans.Channel("train", "s3://bucket/data/abc/", Path("/x/data"), "abc")],
        foundation=Foundation(),
        region="eu-west-1",
        git_commit="c0ffee",
    )


def deploy(live: plans.Live | None = None, **options: object) -> plans.Plan:
    slos = [Slo.accuracy(0.9, period_seconds=10), Slo.p99_latency(ms=200), Slo.error_rate(0.01)]
    spec = ServeSpec.check("Deploying", **options)
    return plans.deploy(spec, VERSION, endpoint="digits", now=NOW, slos=slos, live=live, foundation=Foundation())


LIVE = plans.Live("arn:aws:sagemaker:us-east-1:123456789012:endpoint/digits", "digits-v1-x", ("digits-v0-x",))
SHADOWED = replace(
    LIVE,
    version="digits/1",
    variant={
        "VariantName": "primary",
        "ModelName": "digits-v1-x",
        "InitialInstanceCount": 3,
        "InstanceType": "ml.m5.large",
        "InitialVariantWeight": 2.0,
    },
)


def requests(plan: plans.Plan, operation: str) -> list[dict]:
    return [dict(r.params) for r in plan.requests if r.operation == operation]


@pytest.mark.parametrize(
    "plan",
    [
        train(),
        train(hyperparameters={"a": 1, "text": 'it\'s "quoted"\n$(x)'}, metrics={"loss": "loss=(.*)"}),
        deploy(),
        deploy(LIVE),
        deploy(LIVE, canary_percent=10),
        deploy(LIVE, linear_percent=25, step_seconds=60),
        deploy(LIVE, rolling_percent=50),
        deploy(SHADOWED, shadow_percent=50),
        deploy(serverless_memory_mb=2048, provisioned_concurrency=2),
        deploy(LIVE, async_output="s3://bucket/async", async_concurrency=2, error_topic=TOPIC),
        plans.rollback(ServeSpec(), endpoint="digits", live=LIVE),
    ],
    ids=[
        "train",
        "train-text",
        "create",
        "update",
        "canary",
        "linear",
        "rolling",
        "shadow",
        "serverless",
        "async",
        "rollback",
    ],
)
def test_every_request_is_one_that_botocore_accepts(plan: plans.Plan) -> None:
    session = botocore.session.get_session()
    for request in plan.requests:
        model = session.get_service_model(request.service)
        operation = "".join(part.title() for part in request.operation.split("_"))
        validate_parameters(dict(request.params), model.operation_model(operation).input_shape)


def test_a_plan_is_a_value() -> None:
    assert train() == train()
    assert train() != train(instance_type="ml.c5.xlarge")


def test_a_plan_prints_requests_cost_and_permissions() -> None:
    text = str(train())
    assert "sagemaker:CreateTrainingJob" in text
    assert "$0.230/hour" in text
    assert "iam:PassRole" in text
    assert "s3:PutObject" in text
    assert "unknown" in str(train(instance_type="ml.trn1.32xlarge"))


def test_script_mode_hyperparameters_are_json_as_the_framework_images_read_them() -> None:
    (job,) = requests(train(hyperparameters={"epochs": 3, "name": "a b", "flag": True}), "create_training_job")
    assert job["HyperParameters"]["epochs"] == "3"
    assert job["HyperParameters"]["name"] == '"a b"'
    assert job["HyperParameters"]["flag"] == "true"
    assert job["HyperParameters"]["sagemaker_program"] == '"train.py"'
    assert "eu-west-1" in job["AlgorithmSpecification"]["TrainingImage"]
    assert "-cpu-" in job["AlgorithmSpecification"]["TrainingImage"]
    (gpu,) = requests(train(instance_type="ml.g5.xlarge"), "create_training_job")
    assert "-gpu-" in gpu["AlgorithmSpecification"]["TrainingImage"]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("epoch=1 train:loss=0.25 x", "0.25"),
        ("train:loss=1e-05", "1e-05"),
        ("train:loss=-3", "-3"),
        ("a train:loss=.5", ".5"),
        ("not_train:loss=7", None),
    ],
)
def test_default_metrics_read_name_equals_number(line: str, value: str | None) -> None:
    (job,) = requests(train(), "create_training_job")
    regex = {m["Name"]: m["Regex"] for m in job["AlgorithmSpecification"]["MetricDefinitions"]}["train:loss"]
    found = re.search(regex, line)
    assert (found[1] if found else None) == value


def test_the_first_deploy_creates_and_the_next_updates_under_guard() -> None:
    (create,) = requests(deploy(), "create_endpoint")
    assert not requests(deploy(), "update_endpoint")
    (update,) = requests(deploy(LIVE), "update_endpoint")
    assert create["EndpointConfigName"] == update["EndpointConfigName"]
    assert update["RetainAllVariantProperties"] is True
    alarms = [params["AlarmName"] for params in requests(deploy(LIVE), "put_metric_alarm")]
    guarded = update["DeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"]
    assert [alarm["AlarmName"] for alarm in guarded] == alarms
    assert len(alarms) == 3


def test_alarms_judge_the_new_config_alone() -> None:
    config = requests(deploy(LIVE), "update_endpoint")[0]["EndpointConfigName"]
    for params in requests(deploy(LIVE), "put_metric_alarm"):
        stats = (
            [params]
            if "Dimensions" in params
            else [m["MetricStat"]["Metric"] for m in params["Metrics"] if "MetricStat" in m]
        )
        for stat in stats:
            values = {d["Name"]: d["Value"] for d in stat["Dimensions"]}
            assert values.get("EndpointConfigName") == config or values.get("ModelVersion") == "digits/2"


def test_an_accuracy_alarm_waits_for_enough_labels_and_ignores_silence() -> None:
    params = next(p for p in requests(deploy(), "put_metric_alarm") if "accuracy" in p["AlarmName"])
    assert params["Metrics"][0]["Expression"] == "IF(samples >= 30, accuracy, 1)"
    assert params["TreatMissingData"] == "ignore"
    assert params["ComparisonOperator"] == "LessThanThreshold"


def test_latency_is_given_in_ms_and_stored_in_us() -> None:
    params = next(p for p in requests(deploy(LIVE), "put_metric_alarm") if "latency" in p["AlarmName"])
    assert params["Threshold"] == 200_000
    assert params["ExtendedStatistic"] == "p99"
    assert params["TreatMissingData"] == "notBreaching"


def test_an_update_without_alarms_does_not_bake() -> None:
    plan = plans.deploy(ServeSpec(), VERSION, endpoint="digits", now=NOW, slos=[], live=LIVE, foundation=Foundation())
    (update,) = requests(plan, "update_endpoint")
    assert update["DeploymentConfig"]["BlueGreenUpdatePolicy"]["TerminationWaitInSeconds"] == 0
    assert "AutoRollbackConfiguration" not in update["DeploymentConfig"]


def test_serverless_has_no_instances_and_captures_nothing() -> None:
    plan = deploy(serverless_memory_mb=2048, serverless_concurrency=8)

    (config,) = requests(plan, "create_endpoint_config")
    assert config["ProductionVariants"] == [
        {
            "VariantName": "primary",
            "ModelName": config["EndpointConfigName"],
            "InitialVariantWeight": 1.0,
            "ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 8},
        }
    ]
    assert "DataCaptureConfig" not in config
    assert plan.dollars_per_hour == 0
    assert plan.actions == deploy().actions


def test_serverless_reads_archives_only() -> None:
    prefix = replace(VERSION, model_uri="s3://bucket/artifacts/d/")
    with pytest.raises(InvalidInput, match="archive=True"):
        plans.deploy(
            ServeSpec(serverless_memory_mb=1024),
            prefix,
            endpoint="digits",
            now=NOW,
            slos=[],
            live=None,
            foundation=Foundation(),
        )


def test_asynchronous_answers_go_where_they_are_told() -> None:
    plan = deploy(async_output="s3://bucket/async/digits/", async_concurrency=2, success_topic=TOPIC)

    (config,) = requests(plan, "create_endpoint_config")
    assert config["AsyncInferenceConfig"] == {
        "OutputConfig": {
            "S3OutputPath": "s3://bucket/async/digits",
            "S3FailurePath": "s3://bucket/async/digits/failures",
            "KmsKeyId": Foundation.key_arn,
            "NotificationConfig": {"SuccessTopic": TOPIC},
        },
        "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 2},
    }
    (model,) = requests(plan, "create_model")
    environment = model["PrimaryContainer"]["Environment"]
    assert environment["SAGEMAKER_MODEL_SERVER_TIMEOUT"] == "3600"
    assert environment["WINDLASS_MAX_PAYLOAD_BYTES"] == str(1 << 30)
    assert f"sns:Publish on {TOPIC}" in str(plan)
    assert plan.actions == deploy().actions


def test_a_linear_shift_bakes_each_step() -> None:
    (update,) = requests(deploy(LIVE, linear_percent=25, step_seconds=900, bake_seconds=60), "update_endpoint")
    policy = update["DeploymentConfig"]["BlueGreenUpdatePolicy"]
    assert policy["TrafficRoutingConfiguration"] == {
        "Type": "LINEAR",
        "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": 25},
        "WaitIntervalInSeconds": 900,
    }
    assert policy["MaximumExecutionTimeoutInSeconds"] > 4 * 900 + 60


def test_a_rolling_shift_replaces_a_share_of_the_instances_at_a_time() -> None:
    (update,) = requests(deploy(LIVE, rolling_percent=20, step_seconds=120), "update_endpoint")
    deployment = update["DeploymentConfig"]
    assert "BlueGreenUpdatePolicy" not in deployment
    assert deployment["RollingUpdatePolicy"]["MaximumBatchSize"] == {"Type": "CAPACITY_PERCENT", "Value": 20}
    assert deployment["RollingUpdatePolicy"]["WaitIntervalInSeconds"] == 120
    assert len(deployment["AutoRollbackConfiguration"]["Alarms"]) == 3


def test_a_shadow_runs_beside_the_live_variant_and_leaves_its_version_in_place() -> None:
    plan = deploy(SHADOWED, shadow_percent=25)
    (config,) = requests(plan, "create_endpoint_config")
    (model,) = requests(plan, "create_model")
    assert config["ProductionVariants"] == [SHADOWED.variant]
    (shadow,) = config["ShadowProductionVariants"]
    assert shadow["VariantName"] == "shadow"
    assert shadow["ModelName"] == model["ModelName"] != "digits-v1-x"
    assert shadow["InitialVariantWeight"] == 0.5  # a quarter of the live variant's
    assert {"Key": "windlass:model-version", "Value": "digits/1"} in config["Tags"]
    assert "copies of 25 % of the requests" in plan.notes[0]


def test_history_remembers_the_last_configs_within_one_tag() -> None:
    long = tuple(f"{'c' * 60}-{n}" for n in range(9))
    (tagging,) = requests(deploy(plans.Live(LIVE.arn, long[0], long[1:])), "add_tags")
    value = tagging["Tags"][0]["Value"]
    assert value.split() == list(long[: plans.KEPT_CONFIGS])
    assert len(value) <= 256


def test_a_rollback_forgets_the_config_it_leaves() -> None:
    plan = plans.rollback(ServeSpec(), endpoint="digits", live=LIVE)
    assert requests(plan, "update_endpoint")[0]["EndpointConfigName"] == "digits-v0-x"
    assert requests(plan, "add_tags")[0]["Tags"][0]["Value"] == ""


def test_stamped_names_are_valid_sorted_and_short() -> None:
    early, late = plans.stamped("x" * 80, NOW), plans.stamped("x" * 80, NOW + 1)
    assert early < late
    assert len(early) <= 63
    assert plans.stamped("a_b c", NOW).startswith("a-b-c-")


def test_each_catalogued_slo_metric_makes_an_alarm() -> None:
    names = {p["AlarmName"].split("/")[1] for p in requests(deploy(), "put_metric_alarm")}
    assert names == set(metrics.CATALOGUE)


VLLM = "763104351884.dkr.ecr.us-east-1.amazonaws.com/vllm:0.11-gpu-py312"


def test_the_model_server_publishes_its_metrics_unless_the_user_says_otherwise() -> None:
    (model,) = requests(deploy(), "create_model")
    environment = model["PrimaryContainer"]["Environment"]
    assert environment["WINDLASS_EMF_SECONDS"] == "60"
    assert environment["WINDLASS_EMF_DIMENSIONS"] == "EndpointName=digits,VariantName=primary"
    (model,) = requests(deploy(environment={"WINDLASS_EMF_SECONDS": "0"}), "create_model")
    assert model["PrimaryContainer"]["Environment"]["WINDLASS_EMF_SECONDS"] == "0"


def test_a_vendors_container_gets_the_model_and_its_own_environment() -> None:
    plan = deploy(image=VLLM, environment={"SM_VLLM_MODEL": "/opt/ml/model"})
    (model,) = requests(plan, "create_model")
    assert model["PrimaryContainer"]["Image"] == VLLM
    assert model["PrimaryContainer"]["Environment"] == {"SM_VLLM_MODEL": "/opt/ml/model"}
