"""CreateHyperParameterTuningJob searches with real training jobs, as seen through boto3."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.cloud.conftest import Rig

SCRIPT = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
parser.add_argument("--kind", default="plain")
args = parser.parse_args()
print(f"loss={(args.rate - 3) ** 2 + (args.kind == 'bad')}")
"""
CONTINUOUS = {"ContinuousParameterRanges": [{"Name": "rate", "MinValue": "-10", "MaxValue": "10"}]}


@pytest.fixture(scope="module")
def source(rig: Rig) -> Callable[[str], str]:
    uploaded: dict[str, str] = {}

    def upload(script: str) -> str:
        if script not in uploaded:
            uploaded[script] = rig.upload_source({"train.py": script})
        return uploaded[script]

    return upload


def definition(rig: Rig, source: Callable[[str], str], script: str = SCRIPT, **changes: Any) -> dict[str, Any]:
    return {
        "AlgorithmSpecification": {
            "TrainingImage": "pytorch",
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.e+-]+)"}],
        },
        "StaticHyperParameters": {"sagemaker_program": "train.py", "sagemaker_submit_directory": source(script)},
        "RoleArn": rig.role,
        "OutputDataConfig": {"S3OutputPath": f"s3://{rig.bucket}/tuning"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **changes,
    }


def config(strategy: str = "Random", ranges: Any = CONTINUOUS, *, most: int = 4, **changes: Any) -> dict[str, Any]:
    limits = {"MaxNumberOfTrainingJobs": most, "MaxParallelTrainingJobs": 2}
    return {
        "Strategy": strategy,
        "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"},
        "ResourceLimits": {**limits, **changes.pop("limits", {})},
        "ParameterRanges": ranges,
        **changes,
    }


def start(rig: Rig, **request: Any) -> str:
    name = rig.unique("tune")
    rig.client("sagemaker").create_hyper_parameter_tuning_job(HyperParameterTuningJobName=name, **request)
    return name


def finish(rig: Rig, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        told: dict[str, Any] = rig.client("sagemaker").describe_hyper_parameter_tuning_job(
            HyperParameterTuningJobName=name
        )
        if told["HyperParameterTuningJobStatus"] not in ("InProgress", "Stopping"):
            return told
        assert time.monotonic() < deadline, told


def children(rig: Rig, name: str, **asked: Any) -> list[dict[str, Any]]:
    sagemaker = rig.client("sagemaker")
    answer = sagemaker.list_training_jobs_for_hyper_parameter_tuning_job(HyperParameterTuningJobName=name, **asked)
    found: list[dict[str, Any]] = answer["TrainingJobSummaries"]
    return found


def value(child: dict[str, Any]) -> float:
    return float(child["FinalHyperParameterTuningJobObjectiveMetric"]["Value"])


@pytest.fixture(scope="module")
def random_job(rig: Rig, source: Callable[[str], str]) -> dict[str, Any]:
    given = definition(rig, source)
    tags = [{"Key": "team", "Value": "vision"}]
    name = start(rig, HyperParameterTuningJobConfig=config(RandomSeed=5), TrainingJobDefinition=given, Tags=tags)
    return finish(rig, name)


class TestARandomSearch:
    def test_runs_as_many_training_jobs_as_asked(self, rig: Rig, random_job: dict[str, Any]) -> None:
        assert random_job["HyperParameterTuningJobStatus"] == "Completed"
        assert random_job["TrainingJobStatusCounters"] == {
            "Completed": 4,
            "InProgress": 0,
            "RetryableError": 0,
            "NonRetryableError": 0,
            "Stopped": 0,
        }
        assert random_job["ObjectiveStatusCounters"] == {"Succeeded": 4, "Pending": 0, "Failed": 0}

    def test_names_the_best(self, rig: Rig, random_job: dict[str, Any]) -> None:
        name = random_job["HyperParameterTuningJobName"]
        ranked = children(rig, name, SortBy="FinalObjectiveMetricValue", SortOrder="Ascending")

        assert [value(child) for child in ranked] == sorted(value(child) for child in ranked)
        assert random_job["BestTrainingJob"] == ranked[0]
        assert value(ranked[0]) == pytest.approx((float(ranked[0]["TunedHyperParameters"]["rate"]) - 3) ** 2, rel=1e-6)

    def test_its_children_are_training_jobs(self, rig: Rig, random_job: dict[str, Any]) -> None:
        sagemaker = rig.client("sagemaker")
        listed = children(rig, random_job["HyperParameterTuningJobName"])

        assert [child["TrainingJobName"][:-9] for child in listed] == [
            f"{random_job['HyperParameterTuningJobName']}-00{number}" for number in (1, 2, 3, 4)
        ]
        child = sagemaker.describe_training_job(TrainingJobName=listed[0]["TrainingJobName"])
        assert child["TuningJobArn"] == random_job["HyperParameterTuningJobArn"]
        assert child["HyperParameters"]["_tuning_objective_metric"] == "loss"
        assert child["HyperParameters"]["rate"] == listed[0]["TunedHyperParameters"]["rate"]
        assert child["ModelArtifacts"]["S3ModelArtifacts"]
        tags = sagemaker.list_tags(ResourceArn=child["TrainingJobArn"])["Tags"]
        assert tags == [{"Key": "team", "Value": "vision"}]

    def test_echoes_the_request(self, rig: Rig, random_job: dict[str, Any]) -> None:
        asked = random_job["HyperParameterTuningJobConfig"]

        assert asked["Strategy"] == "Random"
        assert asked["TrainingJobEarlyStoppingType"] == "Off"
        assert random_job["TrainingJobDefinition"]["StaticHyperParameters"]["_tuning_objective_metric"] == "loss"
        listed = rig.client("sagemaker").list_hyper_parameter_tuning_jobs(
            NameContains=random_job["HyperParameterTuningJobName"]
        )["HyperParameterTuningJobSummaries"]
        assert [summary["TrainingJobStatusCounters"]["Completed"] for summary in listed] == [4]

    def test_a_seed_repeats_it(self, rig: Rig, source: Callable[[str], str], random_job: dict[str, Any]) -> None:
        again = start(
            rig, HyperParameterTuningJobConfig=config(RandomSeed=5), TrainingJobDefinition=definition(rig, source)
        )
        finish(rig, again)

        first = children(rig, random_job["HyperParameterTuningJobName"])
        assert [c["TunedHyperParameters"] for c in children(rig, again)] == [c["TunedHyperParameters"] for c in first]

    def test_a_warm_start_knows_its_results(
        self, rig: Rig, source: Callable[[str], str], random_job: dict[str, Any]
    ) -> None:
        parent = random_job["HyperParameterTuningJobName"]
        name = start(
            rig,
            HyperParameterTuningJobConfig=config("Bayesian", most=1, limits={"MaxParallelTrainingJobs": 1}),
            TrainingJobDefinition=definition(rig, source),
            WarmStartConfig={
                "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": parent}],
                "WarmStartType": "IdenticalDataAndAlgorithm",
            },
        )

        told = finish(rig, name)

        best = min(value(told["BestTrainingJob"]), value(random_job["BestTrainingJob"]))
        assert value(told["OverallBestTrainingJob"]) == best
        assert told["WarmStartConfig"]["WarmStartType"] == "IdenticalDataAndAlgorithm"

    def test_the_same_data_and_algorithm_must_be_the_same(
        self, rig: Rig, source: Callable[[str], str], random_job: dict[str, Any]
    ) -> None:
        changed = definition(rig, source)
        changed["AlgorithmSpecification"] = {**changed["AlgorithmSpecification"], "TrainingImage": "other"}
        warm = {
            "ParentHyperParameterTuningJobs": [
                {"HyperParameterTuningJobName": random_job["HyperParameterTuningJobName"]}
            ],
            "WarmStartType": "IdenticalDataAndAlgorithm",
        }

        with pytest.raises(ClientError, match="Use TransferLearning to change it"):
            start(rig, HyperParameterTuningJobConfig=config(), TrainingJobDefinition=changed, WarmStartConfig=warm)


def test_a_grid_is_walked_whole_over_several_definitions(rig: Rig, source: Callable[[str], str]) -> None:
    both = [
        definition(
            rig,
            source,
            DefinitionName=name,
            TuningObjective={"Type": "Minimize", "MetricName": "loss"},
            HyperParameterRanges={
                "CategoricalParameterRanges": [
                    {"Name": "rate", "Values": values},
                    {"Name": "kind", "Values": ["good", "bad"]},
                ]
            },
        )
        for name, values in (("near", ["3"]), ("far", ["5"]))
    ]
    asked = {"Strategy": "Grid", "ResourceLimits": {"MaxParallelTrainingJobs": 4}}

    told = finish(rig, start(rig, HyperParameterTuningJobConfig=asked, TrainingJobDefinitions=both))

    found = {
        (c["TrainingJobDefinitionName"], c["TunedHyperParameters"]["kind"]): value(c)
        for c in children(rig, told["HyperParameterTuningJobName"])
    }
    assert found == {("near", "good"): 0.0, ("near", "bad"): 1.0, ("far", "good"): 4.0, ("far", "bad"): 5.0}
    assert told["BestTrainingJob"]["TrainingJobDefinitionName"] == "near"
    assert [each["DefinitionName"] for each in told["TrainingJobDefinitions"]] == ["near", "far"]


STEPS = """
import argparse, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
args = parser.parse_args()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
for epoch in range(1, 28):
    print(f"loss={args.rate + 1 / epoch}", flush=True)
    # Those that fall behind must still run when they are stopped, however busy the machine is.
    time.sleep(0.2 if epoch > 9 and args.rate > 0 else 0.03)
"""


def test_hyperband_stops_training_jobs_that_fall_behind(rig: Rig, source: Callable[[str], str]) -> None:
    name = start(
        rig,
        HyperParameterTuningJobConfig=config(
            "Hyperband",
            most=8,
            RandomSeed=1,
            StrategyConfig={"HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": 27}},
        ),
        TrainingJobDefinition=definition(rig, source, STEPS),
    )

    told = finish(rig, name)

    assert told["HyperParameterTuningJobStatus"] == "Completed"
    assert told["TrainingJobStatusCounters"]["Stopped"] >= 1
    assert told["ObjectiveStatusCounters"]["Succeeded"] == 8
    assert told["BestTrainingJob"]["TrainingJobStatus"] == "Completed"


def test_five_failures_without_a_success_end_it(rig: Rig, source: Callable[[str], str]) -> None:
    script = "raise SystemExit(1)"
    name = start(
        rig,
        HyperParameterTuningJobConfig=config(most=20, limits={"MaxParallelTrainingJobs": 1}),
        TrainingJobDefinition=definition(rig, source, script),
    )

    told = finish(rig, name)

    assert told["HyperParameterTuningJobStatus"] == "Failed"
    assert told["FailureReason"].startswith("No training job succeeded after 5 attempts.")
    assert told["TrainingJobStatusCounters"]["NonRetryableError"] == 5
    assert "BestTrainingJob" not in told


def test_a_target_ends_it(rig: Rig, source: Callable[[str], str]) -> None:
    name = start(
        rig,
        HyperParameterTuningJobConfig=config(
            most=20,
            limits={"MaxParallelTrainingJobs": 1},
            TuningJobCompletionCriteria={"TargetObjectiveMetricValue": 1000.0},
        ),
        TrainingJobDefinition=definition(rig, source),
    )

    assert finish(rig, name)["TrainingJobStatusCounters"]["Completed"] == 1


def test_stop_stops_its_training_jobs(rig: Rig, source: Callable[[str], str]) -> None:
    sagemaker = rig.client("sagemaker")
    name = start(
        rig,
        HyperParameterTuningJobConfig=config(),
        TrainingJobDefinition=definition(rig, source, "import time; print('loss=1', flush=True); time.sleep(600)"),
    )
    deadline = time.monotonic() + 30
    while not children(rig, name):
        assert time.monotonic() < deadline

    sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)

    assert finish(rig, name)["HyperParameterTuningJobStatus"] == "Stopped"
    assert {child["TrainingJobStatus"] for child in children(rig, name)} == {"Stopped"}
    sagemaker.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    with pytest.raises(sagemaker.exceptions.ResourceNotFound, match="can't find a tuning job"):
        sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (config(limits={"MaxParallelTrainingJobs": 5}), "cannot be greater than MaxNumberOfTrainingJobs"),
        (config(ranges={}), "At least one hyperparameter range"),
        (config("Grid"), "categorical parameter ranges only"),
        (config("Hyperband", TrainingJobEarlyStoppingType="Auto"), "must be Off"),
        (
            config(ranges={"IntegerParameterRanges": [{"Name": "rate", "MinValue": "1", "MaxValue": "3"}]}),
            "enough combinations",
        ),
        (
            config(HyperParameterTuningJobObjective={"Type": "Minimize", "MetricName": "none"}),
            "not among the MetricDefinitions",
        ),
        (config("Wrong"), "enum value set"),
    ],
)
def test_what_aws_refuses_is_refused(
    rig: Rig, source: Callable[[str], str], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClientError, match=message) as refused:
        start(rig, HyperParameterTuningJobConfig=asked, TrainingJobDefinition=definition(rig, source))

    assert refused.value.response["Error"]["Code"] == "ValidationException"


@pytest.mark.parametrize(
    "limits",
    [
        {"MaxNumberOfTrainingJobs": 751, "MaxParallelTrainingJobs": 1},
        {"MaxNumberOfTrainingJobs": 200, "MaxParallelTrainingJobs": 101},
    ],
)
def test_more_than_the_service_limits_is_refused_with_awss_code(
    rig: Rig, source: Callable[[str], str], limits: dict[str, int]
) -> None:
    with pytest.raises(ClientError, match="account-level service limit") as refused:
        start(
            rig,
            HyperParameterTuningJobConfig=config(limits=limits),
            TrainingJobDefinition=definition(rig, source),
        )

    assert refused.value.response["Error"]["Code"] == "ResourceLimitExceeded"


def test_a_name_can_be_used_once(rig: Rig, source: Callable[[str], str], random_job: dict[str, Any]) -> None:
    with pytest.raises(ClientError, match="already exists") as refused:
        rig.client("sagemaker").create_hyper_parameter_tuning_job(
            HyperParameterTuningJobName=random_job["HyperParameterTuningJobName"],
            HyperParameterTuningJobConfig=config(),
            TrainingJobDefinition=json.loads(json.dumps(definition(rig, source))),
        )
    assert refused.value.response["Error"]["Code"] == "ResourceInUse"
