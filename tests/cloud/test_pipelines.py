"""Pipelines that really run, as seen through boto3."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.cloud.conftest import Rig

Step = dict[str, Any]


def get(path: str) -> dict[str, str]:
    return {"Get": path}


def join(*values: Any, on: str = "/") -> dict[str, Any]:
    return {"Std:Join": {"On": on, "Values": list(values)}}


def definition(*steps: Step, parameters: list[dict[str, Any]] | None = None) -> str:
    return json.dumps({"Version": "2020-12-01", "Metadata": {}, "Parameters": parameters or [], "Steps": list(steps)})


def token() -> str:
    return uuid.uuid4().hex


class Site:
    """Pipelines under names that no other test has, and the steps that they are made of."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.sagemaker = rig, rig.client("sagemaker")
        self.out = f"s3://{rig.bucket}/{rig.unique('pipeline')}"

    def create(self, text: str, **more: Any) -> str:
        name = self.rig.unique("Pipe")
        self.sagemaker.create_pipeline(
            PipelineName=name, PipelineDefinition=text, ClientRequestToken=token(), RoleArn=self.rig.role, **more
        )
        return name

    def start(self, name: str, **parameters: str) -> str:
        given = [{"Name": key, "Value": value} for key, value in parameters.items()]
        answer = self.sagemaker.start_pipeline_execution(
            PipelineName=name, PipelineParameters=given, ClientRequestToken=token()
        )
        return str(answer["PipelineExecutionArn"])

    def describe(self, arn: str) -> dict[str, Any]:
        told: dict[str, Any] = self.sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
        return told

    def finish(self, arn: str) -> dict[str, Any]:
        until(lambda: self.describe(arn)["PipelineExecutionStatus"] not in ("Executing", "Stopping"))
        return self.describe(arn)

    def run(self, text: str, **parameters: str) -> tuple[dict[str, Any], dict[str, Step]]:
        told = self.finish(self.start(self.create(text), **parameters))
        return told, self.steps(told["PipelineExecutionArn"])

    def steps(self, arn: str) -> dict[str, Step]:
        found = self.sagemaker.list_pipeline_execution_steps(PipelineExecutionArn=arn, SortOrder="Ascending")
        return {step["StepName"]: step for step in found["PipelineExecutionSteps"]}

    # The steps

    def process(
        self, name: str, script: str, *arguments: Any, outputs: dict[str, Any] | None = None, **more: Any
    ) -> Step:
        code = self.rig.upload(f"{self.rig.unique('code')}/script.py", script.encode())
        root = "/opt/ml/processing"
        return {
            "Name": name,
            "Type": "Processing",
            "Arguments": {
                "ProcessingResources": {
                    "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
                },
                "AppSpecification": {
                    "ImageUri": "x",
                    "ContainerEntrypoint": ["python3", f"{root}/input/code/script.py"],
                    **({"ContainerArguments": list(arguments)} if arguments else {}),
                },
                "RoleArn": self.rig.role,
                "ProcessingInputs": [
                    {
                        "InputName": "code",
                        "S3Input": {"S3Uri": code, "LocalPath": f"{root}/input/code", "S3DataType": "S3Prefix"},
                    }
                ],
                "ProcessingOutputConfig": {
                    "Outputs": [
                        {
                            "OutputName": key,
                            "S3Output": {"S3Uri": uri, "LocalPath": f"{root}/{key}", "S3UploadMode": "EndOfJob"},
                        }
                        for key, uri in (outputs or {}).items()
                    ]
                },
            },
            **more,
        }

    def train(self, name: str, script: str, data: Any = None, **hyperparameters: Any) -> Step:
        source = self.rig.upload_source({"train.py": script})
        channel = {
            "ChannelName": "training",
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": data}},
        }
        return {
            "Name": name,
            "Type": "Training",
            "Arguments": {
                "AlgorithmSpecification": {
                    "TrainingImage": "x",
                    "TrainingInputMode": "File",
                    "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.]+)"}],
                },
                "OutputDataConfig": {"S3OutputPath": f"{self.out}/models"},
                "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
                "StoppingCondition": {"MaxRuntimeInSeconds": 60},
                "RoleArn": self.rig.role,
                "HyperParameters": {
                    "sagemaker_program": "train.py",
                    "sagemaker_submit_directory": source,
                    **hyperparameters,
                },
                **({"InputDataConfig": [channel]} if data else {}),
            },
        }


@pytest.fixture
def site(rig: Rig) -> Site:
    return Site(rig)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline


FAIL = {"Name": "Fail", "Type": "Fail", "Arguments": {"ErrorMessage": join("loss was", get("Parameters.Most"), on=" ")}}
PREPARE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'rows.csv').write_text(sys.argv[2])"
TRAIN = """
import argparse, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
epochs = parser.parse_args().epochs
rows = pathlib.Path(os.environ["SM_CHANNEL_TRAINING"], "rows.csv").read_text()
print(f"loss={1 / epochs}")
code = pathlib.Path(os.environ["SM_MODEL_DIR"], "code"); code.mkdir()
code.joinpath("inference.py").write_text('''
def model_fn(folder): return 2
def input_fn(body, kind): return body
def predict_fn(text, factor): return str(float(text) * factor)
def output_fn(said, accept): return said, accept
''')
print("rows", rows)
"""
EVALUATE = """
import json, pathlib, sys
pathlib.Path(sys.argv[1], "report.json").write_text(json.dumps({"metrics": {"loss": {"value": float(sys.argv[2])}}}))
"""


def journey(site: Site) -> str:
    """Prepare, train, evaluate; register, make a model and transform when it is good, else fail."""
    root = "/opt/ml/processing"
    image, artifacts = "image", get("Steps.Train.ModelArtifacts.S3ModelArtifacts")
    site.rig.upload(f"{site.out.split('/', 3)[3]}/batch/a.csv", b"4\n5\n")
    report = {"PropertyFileName": "Report", "OutputName": "report", "FilePath": "report.json"}
    loss = {"Std:JsonGet": {"PropertyFile": get("Steps.Evaluate.PropertyFiles.Report"), "Path": "metrics.loss.value"}}
    register = {
        "Name": "Register",
        "Type": "RegisterModel",
        "Arguments": {
            "ModelPackageGroupName": site.rig.unique("group"),
            "ModelApprovalStatus": "Approved",
            "InferenceSpecification": {
                "Containers": [{"Image": image, "ModelDataUrl": artifacts}],
                "SupportedContentTypes": ["text/csv"],
                "SupportedResponseMIMETypes": ["text/csv"],
            },
        },
    }
    model = {
        "Name": "Model",
        "Type": "Model",
        "DependsOn": ["Register"],
        "Arguments": {
            "ExecutionRoleArn": site.rig.role,
            "PrimaryContainer": {"ModelPackageName": get("Steps.Register.ModelPackageArn")},
        },
    }
    transform = {
        "Name": "Transform",
        "Type": "Transform",
        "Arguments": {
            "ModelName": get("Steps.Model.ModelName"),
            "BatchStrategy": "SingleRecord",
            "TransformInput": {
                "ContentType": "text/csv",
                "SplitType": "Line",
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"{site.out}/batch"}},
            },
            "TransformOutput": {
                "S3OutputPath": join(site.out, "predicted", get("Execution.PipelineExecutionId")),
                "AssembleWith": "Line",
                "Accept": "text/csv",
            },
            "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
        },
    }
    good = {"Type": "LessThanOrEqualTo", "LeftValue": loss, "RightValue": get("Parameters.Most")}
    return definition(
        site.process(
            "Prepare",
            PREPARE,
            f"{root}/rows",
            get("Parameters.Rows"),
            outputs={"rows": join(site.out, get("Execution.PipelineExecutionId"), "rows")},
        ),
        site.train(
            "Train",
            TRAIN,
            data=get("Steps.Prepare.ProcessingOutputConfig.Outputs['rows'].S3Output.S3Uri"),
            epochs=get("Parameters.Epochs"),
        ),
        site.process(
            "Evaluate",
            EVALUATE,
            f"{root}/report",
            join(get("Steps.Train.FinalMetricDataList['loss'].Value")),
            outputs={"report": join(site.out, get("Execution.PipelineExecutionId"), "report")},
            PropertyFiles=[report],
        ),
        {
            "Name": "Check",
            "Type": "Condition",
            "DisplayName": "Good enough?",
            "Arguments": {"Conditions": [good], "IfSteps": [register, model, transform], "ElseSteps": [FAIL]},
        },
        parameters=[
            {"Name": "Rows", "Type": "String", "DefaultValue": "1,2"},
            {"Name": "Epochs", "Type": "Integer", "DefaultValue": 4},
            {"Name": "Most", "Type": "Float", "DefaultValue": 0.5},
        ],
    )


def test_a_whole_journey_from_data_to_predictions(site: Site) -> None:
    name = site.create(journey(site), Tags=[{"Key": "team", "Value": "vision"}])
    told = site.finish(site.start(name, Rows="7,8"))
    steps = site.steps(told["PipelineExecutionArn"])

    assert told["PipelineExecutionStatus"] == "Succeeded", steps
    assert list(steps) == ["Prepare", "Train", "Evaluate", "Check", "Register", "Model", "Transform"]
    assert {step["StepStatus"] for step in steps.values()} == {"Succeeded"}
    assert steps["Check"]["Metadata"] == {"Condition": {"Outcome": "True"}}
    assert steps["Check"]["StepDisplayName"] == "Good enough?"
    execution = told["PipelineExecutionArn"].rpartition("/")[2]
    assert site.rig.download(f"{site.out}/predicted/{execution}/a.csv.out") == b"8.0\n10.0\n"
    job = site.sagemaker.describe_training_job(
        TrainingJobName=steps["Train"]["Metadata"]["TrainingJob"]["Arn"].rpartition("/")[2]
    )
    assert job["HyperParameters"]["epochs"] == "4"
    tags = site.sagemaker.list_tags(ResourceArn=job["TrainingJobArn"])["Tags"]
    assert {"Key": "sagemaker:pipeline-execution-arn", "Value": told["PipelineExecutionArn"]} in tags
    package = site.sagemaker.describe_model_package(
        ModelPackageName=steps["Register"]["Metadata"]["RegisterModel"]["Arn"]
    )
    assert (
        package["InferenceSpecification"]["Containers"][0]["ModelDataUrl"] == job["ModelArtifacts"]["S3ModelArtifacts"]
    )
    listed = site.sagemaker.list_pipeline_parameters_for_execution(PipelineExecutionArn=told["PipelineExecutionArn"])
    assert listed["PipelineParameters"] == [
        {"Name": "Epochs", "Value": "4"},
        {"Name": "Most", "Value": "0.5"},
        {"Name": "Rows", "Value": "7,8"},
    ]
    arn = site.sagemaker.describe_pipeline(PipelineName=name)["PipelineArn"]
    assert site.sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "vision"}]


def test_the_other_branch_fails_with_its_message(site: Site) -> None:
    told, steps = site.run(journey(site), Epochs="1")

    assert told["PipelineExecutionStatus"] == "Failed"
    assert told["FailureReason"] == "Step failure: One or multiple steps failed."
    assert list(steps) == ["Prepare", "Train", "Evaluate", "Check", "Fail"]
    assert steps["Fail"]["Metadata"] == {"Fail": {"ErrorMessage": "loss was 0.5"}}
    assert steps["Fail"]["FailureReason"] == "loss was 0.5"


def test_a_pipeline_is_created_updated_listed_and_deleted(site: Site) -> None:
    text = definition(site.process("One", "print('hi')"))
    once = token()
    name = site.rig.unique("Pipe")
    request = {"PipelineName": name, "PipelineDefinition": text, "RoleArn": site.rig.role}
    arn = site.sagemaker.create_pipeline(**request, ClientRequestToken=once)["PipelineArn"]
    assert site.sagemaker.create_pipeline(**request, ClientRequestToken=once)["PipelineArn"] == arn
    with pytest.raises(ClientError, match="must be unique within an AWS account and region") as refused:
        site.sagemaker.create_pipeline(**request, ClientRequestToken=token())
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    told = site.sagemaker.describe_pipeline(PipelineName=arn)
    assert (told["PipelineName"], told["PipelineStatus"], told["PipelineDefinition"]) == (name, "Active", text)
    site.rig.upload(f"{name}.json", definition(site.process("Two", "print('hi')")).encode())

    location = {"Bucket": site.rig.bucket, "ObjectKey": f"{name}.json"}
    site.sagemaker.update_pipeline(PipelineName=name, PipelineDefinitionS3Location=location, PipelineDescription="d")

    [summary] = site.sagemaker.list_pipelines(PipelineNamePrefix=name)["PipelineSummaries"]
    assert summary["PipelineDescription"] == "d"
    execution = site.start(name)
    assert list(site.steps(site.finish(execution)["PipelineExecutionArn"])) == ["Two"]
    [run] = site.sagemaker.list_pipeline_executions(PipelineName=name)["PipelineExecutionSummaries"]
    assert (run["PipelineExecutionArn"], run["PipelineExecutionStatus"]) == (execution, "Succeeded")
    assert (
        "Two"
        in site.sagemaker.describe_pipeline_definition_for_execution(PipelineExecutionArn=execution)[
            "PipelineDefinition"
        ]
    )
    site.sagemaker.delete_pipeline(PipelineName=name, ClientRequestToken=token())
    for call in (
        lambda: site.sagemaker.describe_pipeline(PipelineName=name),
        lambda: site.describe(execution),
        lambda: site.start(name),
    ):
        with pytest.raises(site.sagemaker.exceptions.ResourceNotFound):
            call()


def test_a_token_starts_one_execution(site: Site) -> None:
    name, once = site.create(definition(site.process("One", "print('hi')"))), token()

    first = site.sagemaker.start_pipeline_execution(PipelineName=name, ClientRequestToken=once)
    again = site.sagemaker.start_pipeline_execution(PipelineName=name, ClientRequestToken=once)

    assert first["PipelineExecutionArn"] == again["PipelineExecutionArn"]
    site.finish(first["PipelineExecutionArn"])


def test_independent_steps_run_at_once(site: Site) -> None:
    # Each waits for the other's file: one after the other, neither would end.
    script = (
        "import pathlib, sys, time\n"
        "mine, other = map(pathlib.Path, sys.argv[1:])\n"
        "mine.touch()\n"
        "while not other.exists(): time.sleep(0.02)\n"
    )
    assert site.rig.cloud
    left, right = (str(site.rig.cloud.state / site.rig.unique(side)) for side in ("left", "right"))

    told, steps = site.run(
        definition(site.process("Left", script, left, right), site.process("Right", script, right, left))
    )

    assert told["PipelineExecutionStatus"] == "Succeeded", steps


def test_a_failing_step_keeps_what_needs_it_from_starting_and_can_be_retried(site: Site) -> None:
    assert site.rig.cloud
    marker = str(site.rig.cloud.state / site.rig.unique("marker"))
    script = "import pathlib, sys; assert pathlib.Path(sys.argv[1]).exists(), 'no marker'"
    text = definition(
        site.process("First", "print('hi')"),
        site.process("Second", script, marker, DependsOn=["First"]),
        site.process("Third", "print('hi')", DependsOn=["Second"]),
    )

    told, steps = site.run(text)

    assert told["PipelineExecutionStatus"] == "Failed"
    assert {name: step["StepStatus"] for name, step in steps.items()} == {"First": "Succeeded", "Second": "Failed"}
    assert steps["Second"]["FailureReason"].startswith("ClientError: AlgorithmError: AssertionError: no marker")
    with open(marker, "w"):  # noqa: PTH123
        pass
    arn = told["PipelineExecutionArn"]
    site.sagemaker.retry_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=token())
    assert site.finish(arn)["PipelineExecutionStatus"] == "Succeeded"
    again = site.steps(arn)
    assert {name: step["StepStatus"] for name, step in again.items()} == dict.fromkeys(
        ["First", "Second", "Third"], "Succeeded"
    )
    assert again["First"]["Metadata"] == steps["First"]["Metadata"]
    with pytest.raises(ClientError, match="cannot be retried"):
        site.sagemaker.retry_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=token())


def test_stop_stops_the_running_step(site: Site) -> None:
    script = "import time; print('ready', flush=True); time.sleep(600)"
    name = site.create(definition(site.process("Long", script), site.process("Never", "", DependsOn=["Long"])))
    arn = site.start(name)
    until(lambda: site.steps(arn).get("Long", {}).get("StepStatus") == "Executing")
    with pytest.raises(ClientError, match="cannot be deleted while"):
        site.sagemaker.delete_pipeline(PipelineName=name, ClientRequestToken=token())

    site.sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=token())

    assert site.finish(arn)["PipelineExecutionStatus"] == "Stopped"
    steps = site.steps(arn)
    assert {each: step["StepStatus"] for each, step in steps.items()} == {"Long": "Stopped"}
    job = steps["Long"]["Metadata"]["ProcessingJob"]["Arn"].rpartition("/")[2]
    assert site.sagemaker.describe_processing_job(ProcessingJobName=job)["ProcessingJobStatus"] == "Stopped"


def test_a_tuning_step_gives_its_best_job(site: Site) -> None:
    train = site.train("Unused", "import sys; print('loss=' + sys.argv[-1])")["Arguments"]
    static = train.pop("HyperParameters")
    tune = {
        "Name": "Tune",
        "Type": "Tuning",
        "Arguments": {
            "HyperParameterTuningJobConfig": {
                "Strategy": "Grid",
                "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"},
                "ResourceLimits": {"MaxParallelTrainingJobs": 2},
                "ParameterRanges": {"CategoricalParameterRanges": [{"Name": "rate", "Values": ["3", "1"]}]},
            },
            "TrainingJobDefinition": {**train, "StaticHyperParameters": static},
        },
    }
    best, first = (
        get("Steps.Tune.BestTrainingJob.TrainingJobName"),
        get("Steps.Tune.TrainingJobSummaries[0].TrainingJobName"),
    )
    same = {"Type": "Equals", "LeftValue": best, "RightValue": first}
    wrong = {"Name": "Wrong", "Type": "Fail", "Arguments": {"ErrorMessage": join(best, first)}}
    check = {
        "Name": "Check",
        "Type": "Condition",
        "Arguments": {"Conditions": [same], "IfSteps": [], "ElseSteps": [wrong]},
    }

    told, steps = site.run(definition(tune, check))

    assert told["PipelineExecutionStatus"] == "Succeeded", steps
    assert steps["Tune"]["Metadata"]["TuningJob"]["Arn"]


def test_a_cached_step_takes_the_results_of_an_earlier_run_with_the_same_arguments(site: Site) -> None:
    assert site.rig.cloud
    ran = site.rig.cloud.state / site.rig.unique("ran")
    script = (
        "import json, pathlib, sys\n"
        f"with open({str(ran)!r}, 'a') as log: log.write(sys.argv[2])\n"
        "pathlib.Path(sys.argv[1], 'report.json').write_text(json.dumps({'word': sys.argv[2]}))\n"
    )
    report = {"PropertyFileName": "Report", "OutputName": "report", "FilePath": "report.json"}
    word = {"Std:JsonGet": {"PropertyFile": get("Steps.Say.PropertyFiles.Report"), "Path": "word"}}
    text = definition(
        site.process(
            "Say",
            script,
            "/opt/ml/processing/report",
            get("Parameters.Word"),
            outputs={"report": join(site.out, get("Parameters.Word"))},
            PropertyFiles=[report],
            CacheConfig={"Enabled": True, "ExpireAfter": "PT1H"},
        ),
        {"Name": "Repeat", "Type": "Fail", "Arguments": {"ErrorMessage": word}},
        parameters=[{"Name": "Word", "Type": "String"}],
    )
    name = site.create(text)

    first, again, third = (site.finish(site.start(name, Word=word)) for word in ("a", "a", "b"))

    assert ran.read_text() == "ab"
    told = [site.steps(each["PipelineExecutionArn"]) for each in (first, again, third)]
    assert [each["Repeat"]["FailureReason"] for each in told] == ["a", "a", "b"]
    assert [each["Say"].get("CacheHitResult") for each in told] == [
        None,
        {"SourcePipelineExecutionArn": first["PipelineExecutionArn"]},
        None,
    ]
    assert told[1]["Say"]["Metadata"] == told[0]["Say"]["Metadata"]


def test_an_operation_that_refuses_fails_the_step(site: Site) -> None:
    step = site.process("One", "print('hi')", outputs={"x": "s3://no-such-bucket-anywhere/x"})

    _, steps = site.run(definition(step))

    assert steps["One"]["FailureReason"].startswith(
        "ClientError: Failed to invoke sagemaker:CreateProcessingJob. Error Details: The S3 bucket of"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Unable to parse pipeline definition. The definition is not JSON"),
        ("[]", "Unable to parse pipeline definition. Expecting start of Json Object."),
        (definition(), "at least one step"),
        (definition({**FAIL, "Type": "Lambda"}), "does not run steps of type 'Lambda'"),
        (definition(FAIL), "parameter 'Most', which does not exist"),
        (definition({**FAIL, "CacheConfig": {"Enabled": True}}), "CacheConfig is for steps of type Training"),
        (definition({**FAIL, "Wrong": 1}), "has unknown members ['Wrong']"),
        (
            definition(FAIL, parameters=[{"Name": "Most", "Type": "Float"} for _ in range(2)]),
            "Parameter names must be unique",
        ),
        (
            definition({"Name": "Train", "Type": "Training", "Arguments": {"Wrong": 1}}),
            "Unknown Argument member 'Wrong'.",
        ),
    ],
)
def test_definitions_that_are_none_are_refused(site: Site, text: str, message: str) -> None:
    with pytest.raises(ClientError) as refused:
        site.create(text)

    assert refused.value.response["Error"]["Code"] == "ValidationException"
    assert message in refused.value.response["Error"]["Message"]


def test_parameters_must_be_known_given_and_of_their_type(site: Site) -> None:
    step = site.process("One", "print('hi')", get("Parameters.Kind"))
    parameters = [
        {"Name": "Count", "Type": "Integer"},
        {"Name": "Kind", "Type": "String", "DefaultValue": "a", "EnumValues": ["a", "b"]},
    ]
    name = site.create(definition(step, parameters=parameters))

    for given, message in (
        ({}, "'Count' has no default value"),
        ({"Count": "1", "Other": "2"}, "Unknown parameters"),
        ({"Count": "many"}, "not of type Integer"),
        ({"Count": "1", "Kind": "c"}, "not among its EnumValues"),
    ):
        with pytest.raises(ClientError, match=message):
            site.start(name, **given)
