"""CreateProcessingJob runs a program for real, as seen through boto3."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.cloud.conftest import Rig
from windlass.local.processes import Keeper

IN, OUT = "/opt/ml/processing/input", "/opt/ml/processing/output"


def request(rig: Rig, script: str, *arguments: str, **changes: Any) -> dict[str, Any]:
    """A CreateProcessingJob request that runs the script, as ScriptProcessor sends it."""
    name = rig.unique("process")
    code = rig.upload(f"{name}/code/script.py", script.encode())
    inputs = [source("code", code, f"{IN}/code"), *changes.pop("inputs", [])]
    return {
        "ProcessingJobName": name,
        "RoleArn": rig.role,
        "ProcessingInputs": inputs,
        "ProcessingOutputConfig": {"Outputs": changes.pop("outputs", [])},
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": changes.pop("instances", 1),
                "InstanceType": "ml.m5.large",
                "VolumeSizeInGB": 1,
            }
        },
        "AppSpecification": {
            "ImageUri": "sklearn",
            "ContainerEntrypoint": ["python3", f"{IN}/code/script.py"],
            **({"ContainerArguments": list(arguments)} if arguments else {}),
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **changes,
    }


def source(name: str, uri: str, path: str, **changes: Any) -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {"S3Uri": uri, "LocalPath": path, "S3DataType": "S3Prefix", "S3InputMode": "File", **changes},
    }


def target(name: str, uri: str, path: str, mode: str = "EndOfJob") -> dict[str, Any]:
    return {"OutputName": name, "S3Output": {"S3Uri": uri, "LocalPath": path, "S3UploadMode": mode}}


def start(rig: Rig, script: str, *arguments: str, **changes: Any) -> str:
    asked = request(rig, script, *arguments, **changes)
    rig.client("sagemaker").create_processing_job(**asked)
    return str(asked["ProcessingJobName"])


def finish(rig: Rig, job: str) -> dict[str, Any]:
    waiter = rig.client("sagemaker").get_waiter("processing_job_completed_or_stopped")
    try:
        waiter.wait(ProcessingJobName=job, WaiterConfig={"Delay": 0.05, "MaxAttempts": 1200})
    except Exception as error:
        if "terminal failure" not in str(error):
            raise
    described: dict[str, Any] = rig.client("sagemaker").describe_processing_job(ProcessingJobName=job)
    return described


def run(rig: Rig, script: str, *arguments: str, **changes: Any) -> dict[str, Any]:
    return finish(rig, start(rig, script, *arguments, **changes))


def logged(rig: Rig, job: str) -> list[str]:
    logs, group = rig.client("logs"), "/aws/sagemaker/ProcessingJobs"
    try:
        found = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")["logStreams"]
    except logs.exceptions.ResourceNotFoundException:
        return []
    names = [stream["logStreamName"] for stream in found]
    pages = (logs.get_log_events(logGroupName=group, logStreamName=name, startFromHead=True) for name in names)
    return [event["message"] for page in pages for event in page["events"]]


def keys(rig: Rig, prefix: str) -> list[str]:
    found = rig.client("s3").list_objects_v2(Bucket=rig.bucket, Prefix=prefix).get("Contents", [])
    return [item["Key"].removeprefix(prefix) for item in found]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


SCRIPT = """
import json, os, pathlib, sys
source, target, word = sys.argv[1:]
files = {str(p.relative_to(source)): p.read_text() for p in pathlib.Path(source).rglob("*") if p.is_file()}
base = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
config = {p.stem: json.loads(p.read_text()) for p in (base / "config").iterdir()}
seen = {"files": files, "word": word, "setting": os.environ["SETTING"], "config": config}
out = pathlib.Path(target)
(out / "deep").mkdir()
(out / "deep" / "seen.json").write_text(json.dumps(seen))
(base / "output" / "message").write_text("all clean")
print("done", word)
"""
NASTY = 'it\'s "quoted"\nnext $(touch /tmp/x) `id` ${HOME} \\ ünïcødé 漢'


@pytest.fixture(scope="module")
def job(rig: Rig) -> dict[str, Any]:
    prefix = rig.unique("data")
    rig.upload(f"{prefix}/in/a.csv", b"1,2")
    rig.upload(f"{prefix}/in/deep/b.csv", b"3,4")
    return run(
        rig,
        SCRIPT,
        f"{IN}/data",
        f"{OUT}/clean",
        NASTY,
        inputs=[source("data", f"s3://{rig.bucket}/{prefix}/in", f"{IN}/data")],
        outputs=[target("clean", f"s3://{rig.bucket}/{prefix}/out", f"{OUT}/clean")],
        Environment={"SETTING": "from the request"},
        Tags=[{"Key": "team", "Value": "vision"}],
    )


class TestAJobThatCompletes:
    def test_tells_when_and_how_it_ended(self, job: dict[str, Any]) -> None:
        assert job["ProcessingJobStatus"] == "Completed"
        assert job["ExitMessage"] == "all clean"
        assert "FailureReason" not in job
        times = [job[name] for name in ("CreationTime", "ProcessingStartTime", "ProcessingEndTime", "LastModifiedTime")]
        assert times == sorted(times)

    def test_echoes_the_request_with_its_defaults(self, rig: Rig, job: dict[str, Any]) -> None:
        assert job["RoleArn"] == rig.role
        assert job["Environment"] == {"SETTING": "from the request"}
        assert [given["InputName"] for given in job["ProcessingInputs"]] == ["code", "data"]
        assert job["ProcessingInputs"][1]["S3Input"]["S3DataDistributionType"] == "FullyReplicated"
        assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 60}

    def test_gets_its_inputs_arguments_environment_and_config(self, rig: Rig, job: dict[str, Any]) -> None:
        [output] = job["ProcessingOutputConfig"]["Outputs"]
        seen = json.loads(rig.download(f"{output['S3Output']['S3Uri']}/deep/seen.json"))

        assert seen["files"] == {"a.csv": "1,2", "deep/b.csv": "3,4"}
        assert seen["word"] == NASTY
        assert seen["setting"] == "from the request"
        assert seen["config"]["resourceconfig"] == {"current_host": "algo-1", "hosts": ["algo-1"]}
        assert seen["config"]["processingjobconfig"]["ProcessingJobArn"] == job["ProcessingJobArn"]
        assert seen["config"]["processingjobconfig"]["AppSpecification"] == job["AppSpecification"]

    def test_logs_in_its_group(self, rig: Rig, job: dict[str, Any]) -> None:
        assert logged(rig, job["ProcessingJobName"])[0].startswith("done it's")

    def test_is_listed_and_tagged(self, rig: Rig, job: dict[str, Any]) -> None:
        sagemaker = rig.client("sagemaker")
        listed = sagemaker.list_processing_jobs(NameContains=job["ProcessingJobName"], StatusEquals="Completed")

        [summary] = listed["ProcessingJobSummaries"]
        assert summary["ProcessingJobArn"] == job["ProcessingJobArn"]
        assert summary["ExitMessage"] == "all clean"
        assert sagemaker.list_tags(ResourceArn=job["ProcessingJobArn"])["Tags"] == [{"Key": "team", "Value": "vision"}]


def test_a_job_that_fails_says_why_and_uploads_nothing_at_its_end(rig: Rig) -> None:
    prefix = rig.unique("failed")
    script = "import sys; open(sys.argv[1] + '/half.txt', 'w').write('half'); raise ValueError('no good')"

    job = run(rig, script, f"{OUT}/x", outputs=[target("x", f"s3://{rig.bucket}/{prefix}/", f"{OUT}/x")])

    assert job["ProcessingJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("AlgorithmError: ValueError: no good\n\nTraceback")
    assert job["FailureReason"].endswith(", exit code: 1")
    assert keys(rig, prefix) == []


def test_continuous_outputs_arrive_while_the_job_runs_and_what_a_failed_job_left(rig: Rig) -> None:
    prefix = rig.unique("continuous")
    script = (
        "import pathlib, sys, time\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "(out / 'first.txt').write_text('1')\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.02)\n"
        "(out / 'first.txt').write_text('changed'); (out / 'last.txt').write_text('2')\n"
        "sys.exit(3)\n"
    )
    marker = str(rig.cloud.state / prefix) if rig.cloud else ""
    name = start(
        rig,
        script,
        f"{OUT}/x",
        marker,
        outputs=[target("x", f"s3://{rig.bucket}/{prefix}/", f"{OUT}/x", "Continuous")],
    )

    until(lambda: keys(rig, prefix) == ["/first.txt"])
    with open(marker, "w"):  # noqa: PTH123 - the job waits for it
        pass
    job = finish(rig, name)

    assert job["ProcessingJobStatus"] == "Failed"
    assert keys(rig, prefix) == ["/first.txt", "/last.txt"]
    assert rig.download(f"s3://{rig.bucket}/{prefix}/first.txt") == b"changed"


def test_each_host_gets_its_share_of_a_sharded_input(rig: Rig) -> None:
    prefix = rig.unique("shards")
    for name in "abc":
        rig.upload(f"{prefix}/in/{name}.csv", name.encode())
    script = (
        "import json, os, pathlib, sys\n"
        "me = json.load(open(os.environ['SAGEMAKER_BASE_DIR'] + '/config/resourceconfig.json'))\n"
        "whole = sorted(p.name for p in pathlib.Path(sys.argv[1]).iterdir())\n"
        "part = sorted(p.name for p in pathlib.Path(sys.argv[2]).iterdir())\n"
        "pathlib.Path(sys.argv[3], me['current_host']).write_text(json.dumps([me['hosts'], whole, part]))\n"
    )
    uri = f"s3://{rig.bucket}/{prefix}/in/"

    job = run(
        rig,
        script,
        f"{IN}/whole",
        f"{IN}/part",
        f"{OUT}/x",
        instances=2,
        inputs=[
            source("whole", uri, f"{IN}/whole"),
            source("part", uri, f"{IN}/part", S3DataDistributionType="ShardedByS3Key"),
        ],
        outputs=[target("x", f"s3://{rig.bucket}/{prefix}/out", f"{OUT}/x")],
    )

    assert job["ProcessingJobStatus"] == "Completed"
    shares = {name: json.loads(rig.download(f"s3://{rig.bucket}/{prefix}/out/{name}")) for name in ("algo-1", "algo-2")}
    everything = ["a.csv", "b.csv", "c.csv"]
    assert [share[:2] for share in shares.values()] == [[["algo-1", "algo-2"], everything]] * 2
    assert sorted(shares["algo-1"][2] + shares["algo-2"][2]) == everything
    assert all(share[2] for share in shares.values())


def test_a_host_that_dies_fails_the_job_and_ends_the_others(rig: Rig) -> None:
    script = (
        "import json, os, sys, time\n"
        "me = json.load(open(os.environ['SAGEMAKER_BASE_DIR'] + '/config/resourceconfig.json'))['current_host']\n"
        "sys.exit(7) if me == 'algo-2' else time.sleep(600)\n"
    )

    job = run(rig, script, instances=2)

    assert job["ProcessingJobStatus"] == "Failed"
    assert job["FailureReason"].endswith("exit code: 7")


def test_a_manifest_names_the_objects_and_gzip_is_unpacked(rig: Rig) -> None:
    prefix = rig.unique("manifest")
    rig.upload(f"{prefix}/data/a.csv.gz", gzip.compress(b"1,2"))
    rig.upload(f"{prefix}/data/deep/b.csv.gz", gzip.compress(b"3,4"))
    rig.upload(f"{prefix}/data/other.csv", b"no")
    listed = [{"prefix": f"s3://{rig.bucket}/{prefix}/data/"}, "a.csv.gz", "deep/b.csv.gz"]
    manifest = rig.upload(f"{prefix}/my.manifest", json.dumps(listed).encode())
    script = (
        "import pathlib, sys\n"
        "for p in sorted(pathlib.Path(sys.argv[1]).rglob('*.*')): print(p.relative_to(sys.argv[1]), p.read_text())"
    )

    job = run(
        rig,
        script,
        f"{IN}/x",
        inputs=[source("x", manifest, f"{IN}/x", S3DataType="ManifestFile", S3CompressionType="Gzip")],
    )

    assert job["ProcessingJobStatus"] == "Completed"
    assert logged(rig, job["ProcessingJobName"]) == ["a.csv 1,2", "deep/b.csv 3,4"]


def test_inputs_that_are_missing_fail_the_job(rig: Rig) -> None:
    job = run(rig, "print('never')", inputs=[source("data", f"s3://{rig.bucket}/nothing/here", f"{IN}/data")])

    assert job["ProcessingJobStatus"] == "Failed"
    assert job["FailureReason"] == (
        "ClientError: Failed to download data. Input data: No S3 objects found under S3 URL"
        f' "s3://{rig.bucket}/nothing/here" given in input data source.'
    )


def test_stop_sends_sigterm_to_the_program_itself(rig: Rig) -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0)))\n"
        "print('ready'); time.sleep(600)\n"
    )
    name = start(rig, script)
    until(lambda: "ready" in logged(rig, name))

    rig.client("sagemaker").stop_processing_job(ProcessingJobName=name)

    assert finish(rig, name)["ProcessingJobStatus"] == "Stopped"
    assert logged(rig, name) == ["ready", "saved"]
    with pytest.raises(ClientError, match="processing job is in status Stopped"):
        rig.client("sagemaker").stop_processing_job(ProcessingJobName=name)


def test_a_job_that_takes_too_long_is_stopped(rig: Rig) -> None:
    job = run(rig, "import time; time.sleep(600)", StoppingCondition={"MaxRuntimeInSeconds": 1})

    assert job["ProcessingJobStatus"] == "Stopped"
    assert "MaxRuntimeInSeconds" in job["FailureReason"]


def test_a_job_that_is_over_can_be_deleted_and_its_name_used_again(rig: Rig) -> None:
    sagemaker = rig.client("sagemaker")
    asked = request(rig, "print('hi')")
    sagemaker.create_processing_job(**asked)
    name = asked["ProcessingJobName"]
    with pytest.raises(ClientError) as refused:
        sagemaker.create_processing_job(**asked)
    assert refused.value.response["Error"]["Code"] == "ResourceInUse"
    finish(rig, name)

    sagemaker.delete_processing_job(ProcessingJobName=name)

    with pytest.raises(ClientError, match="Could not find requested job with name"):
        sagemaker.describe_processing_job(ProcessingJobName=name)
    sagemaker.create_processing_job(**asked)
    assert finish(rig, name)["ProcessingJobStatus"] == "Completed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ProcessingJobName": "x" * 64}, "processingJobName"),
        ({"AppSpecification": {"ImageUri": "x"}}, "ContainerEntrypoint"),
        ({"RoleArn": "arn:aws:iam::123456789012:role/none"}, "Could not assume role"),
        ({"outputs": [target("x", "s3://no-such-bucket-anywhere/x", f"{OUT}/x")]}, "does not exist"),
        ({"inputs": [source("x", "s3://no-such-bucket-anywhere/x", f"{IN}/x")]}, "S3Input.S3Uri .* does not exist"),
        ({"outputs": [target("x", "s3://BUCKET/x", "/opt/ml/elsewhere")]}, "below /opt/ml/processing"),
        ({"inputs": [source("x", "s3://BUCKET/x", f"{IN}/../../../etc")]}, "below /opt/ml/processing"),
        ({"inputs": [source("code", "s3://BUCKET/x", f"{IN}/x")]}, "must be unique"),
        ({"inputs": [source("x", "s3://BUCKET/x", f"{IN}/x", S3InputMode="Pipe")]}, "S3InputMode Pipe"),
        ({"inputs": [source("x", "s3://BUCKET/x", f"{IN}/x", S3DataType="Wrong")]}, "enum value set"),
        ({"NetworkConfig": {"EnableNetworkIsolation": True}}, "EnableNetworkIsolation"),
    ],
)
def test_what_aws_refuses_is_refused_with_the_field(rig: Rig, changes: dict[str, Any], message: str) -> None:
    changes = json.loads(json.dumps(changes).replace("BUCKET", rig.bucket))

    with pytest.raises(ClientError, match=message) as refused:
        rig.client("sagemaker").create_processing_job(**request(rig, "print('never')", **changes))

    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_programs_find_opt_ml_and_each_other_where_the_machine_allows_it(rig: Rig) -> None:
    keeper = Keeper()
    isolated = keeper.isolation
    keeper.close()
    if not isolated:
        pytest.skip("this machine allows no namespaces")
    prefix = rig.unique("names")
    script = (
        "import json, pathlib, socket\n"
        "me = json.load(open('/opt/ml/config/resourceconfig.json'))\n"
        "found = {name: socket.gethostbyname(name) for name in me['hosts']}\n"
        "pathlib.Path('/opt/ml/processing/output/x', me['current_host']).write_text(json.dumps(found))\n"
    )

    job = run(rig, script, instances=2, outputs=[target("x", f"s3://{rig.bucket}/{prefix}", f"{OUT}/x")])

    assert job["ProcessingJobStatus"] == "Completed", job["FailureReason"]
    first, second = (json.loads(rig.download(f"s3://{rig.bucket}/{prefix}/{name}")) for name in ("algo-1", "algo-2"))
    assert first == second
    assert len(set(first.values())) == 2


def test_a_file_larger_than_the_volume_fails_the_job_alone(rig: Rig) -> None:
    job = run(rig, "import sys; open(sys.argv[1], 'wb').truncate(2 << 30)", f"{OUT}.bin")

    assert job["ProcessingJobStatus"] == "Failed"
    assert "File too large" in job["FailureReason"]
