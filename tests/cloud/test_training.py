"""CreateTrainingJob runs a script for real, as seen through boto3."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.cloud.conftest import Rig

SAVE = "import os, pathlib; pathlib.Path(os.environ['SM_MODEL_DIR'], 'weights.txt').write_text('{0}')\n"


def request(rig: Rig, script: str, *, files: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """A CreateTrainingJob request for that script."""
    hyperparameters = {"sagemaker_program": "train.py", **changes.pop("hyperparameters", {})}
    if "sagemaker_submit_directory" not in hyperparameters:
        hyperparameters["sagemaker_submit_directory"] = rig.upload_source({"train.py": script, **(files or {})})
    return {
        "TrainingJobName": rig.unique("job"),
        "RoleArn": rig.role,
        "AlgorithmSpecification": {"TrainingImage": "pytorch", "TrainingInputMode": "File"},
        "HyperParameters": hyperparameters,
        "OutputDataConfig": {"S3OutputPath": f"s3://{rig.bucket}/output"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **changes,
    }


def start(rig: Rig, script: str, **changes: Any) -> str:
    asked = request(rig, script, **changes)
    rig.client("sagemaker").create_training_job(**asked)
    return str(asked["TrainingJobName"])


def finish(rig: Rig, job: str) -> dict[str, Any]:
    """The job's description once it is over."""
    waiter = rig.client("sagemaker").get_waiter("training_job_completed_or_stopped")
    config = {"Delay": 0.05, "MaxAttempts": 1200}
    try:
        waiter.wait(TrainingJobName=job, WaiterConfig=config)
    except Exception as error:
        if "terminal failure" not in str(error):
            raise
    described: dict[str, Any] = rig.client("sagemaker").describe_training_job(TrainingJobName=job)
    return described


def run(rig: Rig, script: str, **changes: Any) -> dict[str, Any]:
    return finish(rig, start(rig, script, **changes))


def logged(rig: Rig, job: str) -> list[str]:
    logs, group = rig.client("logs"), "/aws/sagemaker/TrainingJobs"
    found = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")["logStreams"]
    names = [stream["logStreamName"] for stream in found]
    pages = (logs.get_log_events(logGroupName=group, logStreamName=name, startFromHead=True) for name in names)
    return [event["message"] for page in pages for event in page["events"]]


def unpacked(rig: Rig, uri: str) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(rig.download(uri))) as tar:
        return {name: tar.extractfile(name).read().decode() for name in tar.getnames() if tar.getmember(name).isfile()}  # type: ignore[union-attr]


def until(rig: Rig, job: str, line: str) -> None:
    """Return once the job has logged that line."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if line in logged(rig, job):
                return
        except rig.client("logs").exceptions.ResourceNotFoundException:
            continue
    raise AssertionError(f"{job} never logged {line!r}, but {logged(rig, job)}")


SCRIPT = """
import argparse, json, os, pathlib, sys
from helper import shout
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--text")
parser.add_argument("--flag")
parser.add_argument("--nothing")
parser.add_argument("--data", default=os.environ["SM_CHANNEL_TRAINING"])
args = parser.parse_args()
for epoch in range(args.epochs):
    print(f"epoch={epoch} loss={1 / (epoch + 1):.3f}")
shout("to stderr")
files = {str(p.relative_to(args.data)): p.read_text() for p in pathlib.Path(args.data).rglob("*") if p.is_file()}
seen = {"text": args.text, "flag": args.flag, "nothing": args.nothing, "files": files, "cwd": os.getcwd(),
        "home": os.environ["SETTING"], "job": os.environ["TRAINING_JOB_NAME"], "hps": json.loads(os.environ["SM_HPS"])}
pathlib.Path(os.environ["SM_MODEL_DIR"], "weights.txt").write_text("weights")
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "seen.json").write_text(json.dumps(seen))
"""
NASTY = 'it\'s "quoted"\nnext $(touch /tmp/x) `id` ${HOME} \\ ünïcødé 漢'


@pytest.fixture(scope="module")
def job(rig: Rig) -> dict[str, Any]:
    prefix = rig.unique("data")
    rig.upload(f"{prefix}/train/a.csv", b"1,2")
    rig.upload(f"{prefix}/train/deep/b.csv", b"3,4")
    return run(
        rig,
        SCRIPT,
        files={"helper.py": "import sys\ndef shout(text): print(text, file=sys.stderr)\n"},
        hyperparameters={
            "epochs": "3",
            "text": json.dumps(NASTY),
            "flag": "true",
            "nothing": "null",
            "sagemaker_program": json.dumps("train.py"),
        },
        Environment={"SETTING": "from the request"},
        InputDataConfig=[
            {
                "ChannelName": "training",
                "DataSource": {
                    "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{rig.bucket}/{prefix}/train"}
                },
            }
        ],
        AlgorithmSpecification={
            "TrainingImage": "pytorch",
            "TrainingInputMode": "File",
            "MetricDefinitions": [
                {"Name": "loss", "Regex": r"loss=([0-9.]+)"},
                {"Name": "absent", "Regex": r"absent=([0-9.]+)"},
            ],
        },
        Tags=[{"Key": "team", "Value": "vision"}],
    )


class TestAJobThatCompletes:
    def test_passes_through_every_state_in_order(self, job: dict[str, Any]) -> None:
        steps = job["SecondaryStatusTransitions"]

        assert job["TrainingJobStatus"] == "Completed"
        assert [step["Status"] for step in steps] == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
        times = [time for step in steps for time in (step["StartTime"], step["EndTime"])]
        assert times == sorted(times)
        assert all(step["StatusMessage"] for step in steps)
        assert job["CreationTime"] <= job["TrainingStartTime"] <= job["TrainingEndTime"] <= job["LastModifiedTime"]
        assert job["TrainingTimeInSeconds"] == job["BillableTimeInSeconds"] >= 1

    def test_leaves_its_model_and_its_output_on_s3(self, rig: Rig, job: dict[str, Any]) -> None:
        base = f"s3://{rig.bucket}/output/{job['TrainingJobName']}/output"

        assert job["ModelArtifacts"]["S3ModelArtifacts"] == f"{base}/model.tar.gz"
        assert unpacked(rig, f"{base}/model.tar.gz") == {"weights.txt": "weights"}
        assert set(unpacked(rig, f"{base}/output.tar.gz")) == {"seen.json"}

    def test_gives_the_script_what_was_asked(self, rig: Rig, job: dict[str, Any]) -> None:
        seen = json.loads(
            unpacked(rig, f"s3://{rig.bucket}/output/{job['TrainingJobName']}/output/output.tar.gz")["seen.json"]
        )

        assert seen["text"] == NASTY
        assert seen["hps"] == {"epochs": 3, "text": NASTY, "flag": True, "nothing": None}
        assert (seen["flag"], seen["nothing"]) == ("True", "")  # as the official toolkit passes them
        assert seen["files"] == {"a.csv": "1,2", "deep/b.csv": "3,4"}
        assert seen["home"] == "from the request"
        assert seen["job"] == job["TrainingJobName"]
        assert seen["cwd"].endswith("/code")

    def test_logs_both_streams_and_reads_metrics_off_them(self, rig: Rig, job: dict[str, Any]) -> None:
        lines = logged(rig, job["TrainingJobName"])

        assert [line for line in lines if line.startswith("epoch=")] == [
            "epoch=0 loss=1.000",
            "epoch=1 loss=0.500",
            "epoch=2 loss=0.333",
        ]
        assert "to stderr" in lines
        [metric] = job["FinalMetricDataList"]
        assert (metric["MetricName"], round(metric["Value"], 3)) == ("loss", 0.333)

    def test_sends_its_metrics_to_cloudwatch(self, rig: Rig, job: dict[str, Any]) -> None:
        found = rig.client("cloudwatch").list_metrics(Namespace="/aws/sagemaker/TrainingJobs", MetricName="loss")

        dimensions = [{"Name": "TrainingJobName", "Value": job["TrainingJobName"]}]
        assert dimensions in [metric["Dimensions"] for metric in found["Metrics"]]

    def test_echoes_the_request(self, rig: Rig, job: dict[str, Any]) -> None:
        assert job["RoleArn"] == rig.role
        assert job["Environment"] == {"SETTING": "from the request"}
        assert job["HyperParameters"]["epochs"] == "3"
        assert "VpcConfig" not in job
        tags = rig.client("sagemaker").list_tags(ResourceArn=job["TrainingJobArn"])["Tags"]
        assert tags == [{"Key": "team", "Value": "vision"}]


def test_a_source_may_hold_links_that_stay_inside(rig: Rig) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        script = b"from lib import name; print('ran as', name)"
        for name, body in (("src/main.py", script), ("src/lib-1/__init__.py", b"name = 'linked'")):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
        for name, target in (("train.py", "src/main.py"), ("lib", "src/lib-1")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    source = rig.upload(f"{rig.unique('source')}/source.tar.gz", packed.getvalue())
    job = start(rig, "", hyperparameters={"sagemaker_submit_directory": source})
    assert finish(rig, job)["TrainingJobStatus"] == "Completed"
    assert "ran as linked" in logged(rig, job)


def test_logs_appear_while_the_script_runs(rig: Rig) -> None:
    job = start(rig, "import time\nprint('hello')\ntime.sleep(600)\n")

    until(rig, job, "hello")

    assert rig.client("sagemaker").describe_training_job(TrainingJobName=job)["SecondaryStatus"] == "Training"
    rig.client("sagemaker").stop_training_job(TrainingJobName=job)
    assert finish(rig, job)["TrainingJobStatus"] == "Stopped"


def test_stop_reaches_the_script_itself_which_may_save_its_model(rig: Rig) -> None:
    job = start(
        rig,
        "import signal, sys, time\n"
        f"def save(*_):\n    {SAVE.format('saved').rstrip()}\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('ready')\ntime.sleep(600)\n",
    )
    until(rig, job, "ready")

    rig.client("sagemaker").stop_training_job(TrainingJobName=job)

    described = finish(rig, job)
    assert described["TrainingJobStatus"] == described["SecondaryStatus"] == "Stopped"
    assert "Stopping" in [step["Status"] for step in described["SecondaryStatusTransitions"]]
    assert unpacked(rig, described["ModelArtifacts"]["S3ModelArtifacts"]) == {"weights.txt": "saved"}
    with pytest.raises(ClientError, match="is in status Stopped"):
        rig.client("sagemaker").stop_training_job(TrainingJobName=job)


def test_a_job_that_overruns_its_time_is_stopped(rig: Rig) -> None:
    described = run(rig, "import time; time.sleep(600)", StoppingCondition={"MaxRuntimeInSeconds": 1})

    assert described["TrainingJobStatus"] == "Stopped"
    assert described["SecondaryStatus"] == "MaxRuntimeExceeded"


FAILURES = {
    "an exception": (
        "def inner():\n    raise ValueError('bad learning rate')\ninner()\n",
        ["AlgorithmError: ValueError: bad learning rate", "Traceback", "in inner", "exit code: 1"],
        ["runpy", "windlass", "CalledProcessError"],
    ),
    "a syntax error": ("def broken(:\n", ["SyntaxError", "train.py", "exit code: 1"], ["windlass/"]),
    "an import that is missing": ("import no_such_module_here\n", ["ModuleNotFoundError", "no_such_module_here"], []),
    "an exit code": (
        "import sys\nprint('giving up')\nsys.exit(3)\n",
        ["AlgorithmError", "giving up", "exit code: 3"],
        [],
    ),
    "an exit message": ("import sys\nsys.exit('no data')\n", ["AlgorithmError: no data", "exit code: 1"], []),
    "a signal": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", ["exit code: 137"], []),
    "its own failure file": (
        "import os, sys\nopen(os.environ['SM_OUTPUT_FAILURE'], 'w').write('out of memory at step 7')\nsys.exit(2)\n",
        ["AlgorithmError: out of memory at step 7, exit code: 2"],
        [],
    ),
    "a process of its own": (
        "import subprocess, sys\n"
        "sys.exit(subprocess.run([sys.executable, '-c', 'raise KeyError(\"worker\")']).returncode)\n",
        ["AlgorithmError: KeyError: 'worker'", "Traceback", "exit code: 1"],
        [],
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_says_what_the_script_said(rig: Rig, case: str) -> None:
    script, expected, unwanted = FAILURES[case]

    described = run(rig, SAVE.format("half") + script if "syntax" not in case else script)

    assert described["TrainingJobStatus"] == described["SecondaryStatus"] == "Failed"
    reason = described["FailureReason"]
    assert len(reason) <= 1024
    assert [part for part in expected if part not in reason] == [], reason
    assert [part for part in unwanted if part in reason] == [], reason


@pytest.mark.parametrize(
    ("hyperparameters", "files", "expected"),
    [
        ({"sagemaker_program": "other.py"}, {}, ["'other.py'", "It holds: train.py"]),
        (
            {"sagemaker_submit_directory": "s3://no-such-bucket-here/s.tar.gz"},
            {},
            ["no-such-bucket-here", "does not exist"],
        ),
        ({"sagemaker_submit_directory": "/opt/ml/code"}, {}, ["must be an s3:// URI"]),
        (
            {},
            {"requirements.txt": "# comment\n--no-index\nboto3\nno-such-package-here>=2\n"},
            [
                "AlgorithmError: InstallRequirementsError",
                "ERROR: No matching distribution found for no-such-package-here>=2",
            ],
        ),
    ],
)
def test_a_source_that_cannot_run_is_named(
    rig: Rig, hyperparameters: dict[str, str], files: dict[str, str], expected: list[str]
) -> None:
    described = run(rig, "print('never')", hyperparameters=hyperparameters, files=files)

    assert described["TrainingJobStatus"] == "Failed"
    assert [part for part in expected if part not in described["FailureReason"]] == [], described["FailureReason"]


def test_a_source_that_is_no_archive_is_named(rig: Rig) -> None:
    uri = rig.upload("broken/source.tar.gz", b"this is no archive")

    described = run(rig, "", hyperparameters={"sagemaker_submit_directory": uri})

    assert described["TrainingJobStatus"] == "Failed"
    assert uri in described["FailureReason"]
    assert "cannot be unpacked" in described["FailureReason"]


def test_a_shell_script_becomes_the_process(rig: Rig) -> None:
    files = {"train.sh": 'echo "$SM_HP_NAME" "$@" > "$SM_MODEL_DIR/said.txt"\n'}

    described = run(rig, "", files=files, hyperparameters={"sagemaker_program": "train.sh", "name": "a b"})

    assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
    assert unpacked(rig, described["ModelArtifacts"]["S3ModelArtifacts"]) == {"said.txt": "a b --name a b\n"}


def test_a_container_entrypoint_runs_instead_of_script_mode(rig: Rig) -> None:
    asked = request(rig, "print('from train.py', __name__)")
    asked["AlgorithmSpecification"] |= {
        "ContainerEntrypoint": ["/bin/sh", "-c"],
        "ContainerArguments": ["python train.py"],
    }

    rig.client("sagemaker").create_training_job(**asked)

    assert finish(rig, asked["TrainingJobName"])["TrainingJobStatus"] == "Completed"
    assert logged(rig, asked["TrainingJobName"]) == ["from train.py __main__"]


@pytest.mark.parametrize("kind", ["a link out of the job", "a folder", "a pipe"])
def test_a_failure_file_that_is_none_does_not_count(rig: Rig, kind: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the machine")
    make = {
        "a link out of the job": f"os.symlink({str(secret)!r}, path)",
        "a folder": "os.mkdir(path)",
        "a pipe": "os.mkfifo(path)",
    }[kind]

    described = run(rig, f"import os\npath = '/opt/ml/output/failure'\n{make}\nraise SystemExit(3)")

    assert described["FailureReason"] == "AlgorithmError: , exit code: 3"


def test_a_model_is_what_the_job_itself_has_written(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the machine")
    script = (
        "import os, shutil\n"
        "shutil.rmtree('/opt/ml/output')\n"
        f"os.symlink({str(tmp_path / 'secret')!r}, '/opt/ml/model/out')\n"
        "open('/opt/ml/model/weights', 'w').write('w')\n"
        "os.symlink('weights', '/opt/ml/model/latest')\n"
        "os.mkfifo('/opt/ml/model/pipe')\n"
    )
    target = {"S3OutputPath": f"s3://{rig.bucket}/own", "CompressionType": "NONE"}

    described = run(rig, script, OutputDataConfig=target)

    prefix = f"own/{described['TrainingJobName']}/output/model/"
    found = rig.client("s3").list_objects_v2(Bucket=rig.bucket, Prefix=prefix)["Contents"]
    assert [each["Key"].removeprefix(prefix) for each in found] == ["latest", "weights"]


def test_an_uncompressed_model_is_a_prefix(rig: Rig) -> None:
    output = {"S3OutputPath": f"s3://{rig.bucket}/output", "CompressionType": "NONE"}

    described = run(rig, SAVE.format("plain"), OutputDataConfig=output)

    uri = described["ModelArtifacts"]["S3ModelArtifacts"]
    assert uri.endswith("/output/model/")
    assert rig.download(f"{uri}weights.txt") == b"plain"


def channel(uri: str, **changes: Any) -> list[dict[str, Any]]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, **changes.pop("source", {})}
    return [{"ChannelName": "training", "DataSource": {"S3DataSource": source}, **changes}]


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "a name with a space": (
        {"TrainingJobName": "no good"},
        "'no good' at 'trainingJobName' failed to satisfy constraint",
    ),
    "a name of 64 characters": ({"TrainingJobName": "x" * 64}, "'trainingJobName' failed to satisfy constraint"),
    "no role's ARN": ({"RoleArn": "arn:aws:s3:::not-a-role-at-all"}, "'roleArn' failed to satisfy constraint"),
    "a role that is not there": (
        {"RoleArn": "arn:aws:iam::123456789012:role/nobody"},
        "Could not assume role arn:aws:iam::123456789012:role/nobody",
    ),
    "an unknown instance type": (
        {"ResourceConfig": {"InstanceType": "ml.m5.gigantic", "InstanceCount": 1, "VolumeSizeInGB": 1}},
        "'ml.m5.gigantic' at 'resourceConfig.instanceType' failed to satisfy constraint: Member must satisfy enum value set",
    ),
    "no instance type": (
        {"ResourceConfig": {"InstanceCount": 1, "VolumeSizeInGB": 1}},
        "ResourceConfig.InstanceType must be given",
    ),
    "no instance count": (
        {"ResourceConfig": {"InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}},
        "ResourceConfig.InstanceCount must be given",
    ),
    "no instance at all": (
        {"ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 0, "VolumeSizeInGB": 1}},
        "must ask for at least one instance",
    ),
    "a volume that no disk has": (
        {"ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 16385}},
        "Invalid ResourceConfig.VolumeSizeInGB 16385",
    ),
    "a key that is not there": (
        {"OutputDataConfig": {"S3OutputPath": "s3://any/x", "KmsKeyId": "alias/nobody"}},
        "Invalid KMS key 'alias/nobody' in OutputDataConfig.KmsKeyId: the key does not exist",
    ),
    "a volume's key of another region": (
        {
            "ResourceConfig": {
                "InstanceType": "ml.m5.large",
                "InstanceCount": 1,
                "VolumeSizeInGB": 1,
                "VolumeKmsKeyId": "arn:aws:kms:nowhere-9:123456789012:key/x",
            }
        },
        "in ResourceConfig.VolumeKmsKeyId: the key does not exist",
    ),
    "more retries than there may be": (
        {"RetryStrategy": {"MaximumRetryAttempts": 31}},
        "Value '31' at 'retryStrategy.maximumRetryAttempts' failed to satisfy constraint",
    ),
    "a network of nonsense": (
        {"VpcConfig": {"SecurityGroupIds": ["sg 1"], "Subnets": ["subnet-1"]}},
        "'vpcConfig.securityGroupIds.1.member' failed to satisfy constraint",
    ),
    "an experiment": ({"ExperimentConfig": {"ExperimentName": "e"}}, "does not implement experiments"),
    "a rule of the debugger": (
        {"DebugRuleConfigurations": [{"RuleConfigurationName": "r", "RuleEvaluatorImage": "x"}]},
        "does not implement DebugRuleConfigurations",
    ),
    "a training plan": (
        {
            "ResourceConfig": {
                "InstanceType": "ml.m5.large",
                "InstanceCount": 1,
                "VolumeSizeInGB": 1,
                "TrainingPlanArn": "arn:aws:sagemaker:us-east-1:123456789012:training-plan/mine",
            }
        },
        "does not implement ResourceConfig.TrainingPlanArn",
    ),
    "a tag of AWS's own": (
        {"Tags": [{"Key": "aws:cloudformation:stack-name", "Value": "x"}]},
        "aws: prefixed tag key names are not allowed for external use",
    ),
    "instance groups beside an instance type": (
        {
            "ResourceConfig": {
                "InstanceType": "ml.m5.large",
                "InstanceCount": 1,
                "VolumeSizeInGB": 1,
                "InstanceGroups": [{"InstanceType": "ml.m5.large", "InstanceCount": 1, "InstanceGroupName": "a"}],
            }
        },
        "cannot be given together",
    ),
    "no such bucket": ({"InputDataConfig": channel("s3://no-such-bucket-here/x")}, "No S3 objects found under S3 URL"),
    "no such output bucket": (
        {"OutputDataConfig": {"S3OutputPath": "s3://no-such-bucket-here/x"}},
        "'s3://no-such-bucket-here/x' does not exist",
    ),
    "a hyperparameter that is too long": ({"hyperparameters": {"text": "x" * 2501}}, "failed to satisfy constraint"),
    "a metric regex without a group": (
        {
            "AlgorithmSpecification": {
                "TrainingImage": "x",
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "loss", "Regex": "loss="}],
            }
        },
        "has no group",
    ),
    "a metric regex that is none": (
        {
            "AlgorithmSpecification": {
                "TrainingImage": "x",
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "loss", "Regex": "loss=("}],
            }
        },
        "Invalid regex",
    ),
    "checkpoints without a bucket": (
        {"CheckpointConfig": {"S3Uri": "s3://no-such-bucket-here/y"}},
        "bucket of CheckpointConfig.S3Uri 's3://no-such-bucket-here/y' does not exist",
    ),
    "spot without a longest wait": (
        {"EnableManagedSpotTraining": True},
        "Invalid MaxWaitTimeInSeconds. It must be present",
    ),
    "a wait shorter than the run": (
        {
            "EnableManagedSpotTraining": True,
            "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59},
        },
        "must be greater than or equal to MaxRuntimeInSeconds (59 < 60)",
    ),
    "a wait without spot": (
        {"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}},
        "must not be present when EnableManagedSpotTraining is false",
    ),
    "network isolation": ({"EnableNetworkIsolation": True}, "does not implement EnableNetworkIsolation"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_wrong_request_is_refused_as_aws_does(rig: Rig, case: str) -> None:
    changes, message = REFUSALS[case]
    asked = request(rig, "print('never')", **changes)

    with pytest.raises(ClientError) as refused:
        rig.client("sagemaker").create_training_job(**asked)

    assert refused.value.response["Error"]["Code"] == "ValidationException"
    assert message in refused.value.response["Error"]["Message"]
    assert refused.value.response["ResponseMetadata"]["RetryAttempts"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": {"S3DataType": "AugmentedManifestFile"}},
            "does not implement S3DataType AugmentedManifestFile of channel 'training'",
        ),
        ({"RecordWrapperType": "RecordIO", "InputMode": "Pipe"}, "does not implement RecordWrapperType RecordIO"),
        ({"CompressionType": "Gzip"}, "CompressionType Gzip of channel 'training' is used in Pipe mode only"),
        ({"source": {"InstanceGroupNames": ["gpu"]}}, r"Unknown InstanceGroupNames \['gpu'\]"),
    ],
)
def test_a_channel_that_cannot_be_is_refused_by_name(rig: Rig, changes: dict[str, Any], message: str) -> None:
    uri = rig.upload("refused/data.csv", b"1")

    with pytest.raises(ClientError, match=message):
        start(rig, "", InputDataConfig=channel(uri, **changes))


def test_more_hosts_than_the_limit_are_refused_with_awss_code(rig: Rig) -> None:
    resources = {"InstanceType": "ml.m5.large", "InstanceCount": 65, "VolumeSizeInGB": 1}

    with pytest.raises(ClientError, match=r"'ml\.m5\.large for training job usage' is 64 Instances") as refused:
        start(rig, "", ResourceConfig=resources)

    assert refused.value.response["Error"]["Code"] == "ResourceLimitExceeded"


def test_a_longer_runtime_than_the_limit_is_refused_with_awss_code(rig: Rig) -> None:
    with pytest.raises(ClientError, match=r"2419200 Seconds.*MaxRuntimeInSeconds") as refused:
        start(rig, "", StoppingCondition={"MaxRuntimeInSeconds": 29 * 86_400})

    assert refused.value.response["Error"]["Code"] == "ResourceLimitExceeded"


def test_what_a_job_leaves_is_encrypted_by_the_key_that_was_asked_for(rig: Rig) -> None:
    key = rig.client("kms").create_key()["KeyMetadata"]["Arn"]
    target = {"S3OutputPath": f"https://s3.us-east-1.amazonaws.com/{rig.bucket}/secret", "KmsKeyId": key}

    described = run(rig, SAVE.format("w"), OutputDataConfig=target)

    uri = described["ModelArtifacts"]["S3ModelArtifacts"]
    assert uri == f"s3://{rig.bucket}/secret/{described['TrainingJobName']}/output/model.tar.gz"
    head = rig.client("s3").head_object(Bucket=rig.bucket, Key=uri.split("/", 3)[3])
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key)


def test_what_is_recorded_only_is_told_as_it_was_given(rig: Rig) -> None:
    network = {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}

    described = run(rig, "", VpcConfig=network, RetryStrategy={"MaximumRetryAttempts": 3}, StoppingCondition={})

    assert described["VpcConfig"] == network
    assert described["RetryStrategy"] == {"MaximumRetryAttempts": 3}
    assert described["StoppingCondition"] == {"MaxRuntimeInSeconds": 86_400}


def test_a_name_is_used_once(rig: Rig) -> None:
    asked = request(rig, "print('once')")
    rig.client("sagemaker").create_training_job(**asked)

    with pytest.raises(ClientError) as refused:
        rig.client("sagemaker").create_training_job(**asked)

    assert refused.value.response["Error"]["Code"] == "ResourceInUse"


def test_an_image_alone_is_refused_with_what_to_give(rig: Rig) -> None:
    asked = request(rig, "")
    del asked["HyperParameters"]

    with pytest.raises(ClientError, match="give the hyperparameters sagemaker_program"):
        rig.client("sagemaker").create_training_job(**asked)


def test_jobs_are_listed_in_pages_with_filters(rig: Rig) -> None:
    prefix = rig.unique("listed")
    source = rig.upload_source({"train.py": "print('x')"})
    names = [f"{prefix}-{n}" for n in range(3)]
    for name in names:
        hyperparameters = {"sagemaker_submit_directory": source}
        rig.client("sagemaker").create_training_job(
            **request(rig, "", TrainingJobName=name, hyperparameters=hyperparameters)
        )
        finish(rig, name)
    pages = rig.client("sagemaker").get_paginator("list_training_jobs")

    def listed(**filters: Any) -> list[str]:
        found = pages.paginate(NameContains=prefix, PaginationConfig={"PageSize": 2}, **filters)
        return [job["TrainingJobName"] for page in found for job in page["TrainingJobSummaries"]]

    assert listed() == names
    assert listed(SortOrder="Descending", SortBy="Name") == names[::-1]
    assert listed(StatusEquals="Completed") == names
    assert listed(StatusEquals="Failed") == []
    with pytest.raises(ClientError, match="NextToken"):
        rig.client("sagemaker").list_training_jobs(NextToken="nonsense")


def test_a_job_that_is_over_can_be_deleted_and_its_name_used_again(rig: Rig) -> None:
    sagemaker = rig.client("sagemaker")
    asked = request(rig, "import time; time.sleep(600)")
    name = asked["TrainingJobName"]
    sagemaker.create_training_job(**asked)
    with pytest.raises(ClientError, match=r"ResourceInUse.*can be deleted"):
        sagemaker.delete_training_job(TrainingJobName=name)
    sagemaker.stop_training_job(TrainingJobName=name)
    finish(rig, name)

    sagemaker.delete_training_job(TrainingJobName=name)

    with pytest.raises(ClientError, match="not found"):
        sagemaker.describe_training_job(TrainingJobName=name)
    asked["HyperParameters"] = {**asked["HyperParameters"], "sagemaker_submit_directory": "s3://nowhere/source.tar.gz"}
    sagemaker.create_training_job(**asked)
    assert finish(rig, name)["TrainingJobStatus"] == "Failed"


def test_a_job_that_does_not_exist_is_not_found(rig: Rig) -> None:
    for operation in ("describe_training_job", "stop_training_job"):
        with pytest.raises(ClientError, match="Requested resource not found"):
            getattr(rig.client("sagemaker"), operation)(TrainingJobName="nobody")
