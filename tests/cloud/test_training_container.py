"""What a script finds around it: /opt/ml at its real path, its host's name, and both entry contracts to the letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.conftest import Rig
from tests.cloud.test_training import NASTY, channel, finish, logged, request, run, unpacked, until

BEFORE = Path("/opt/ml").exists()
LOOK = """
import json, os, pathlib, socket
files = sorted(str(p) for p in pathlib.Path("/opt/ml").rglob("*") if p.is_file() and "__pycache__" not in str(p))
facts = {name: value for name, value in os.environ.items() if name.startswith(("SM_", "SAGEMAKER_"))}
pathlib.Path("/opt/ml/model/weights.txt").write_text("by its real path")
print(json.dumps({"files": files, "facts": facts, "cwd": os.getcwd(), "host": socket.gethostname(),
                  "address": socket.gethostbyname("algo-1"), "data": open("/opt/ml/input/data/training/a.csv").read()}))
"""


@pytest.fixture(scope="module")
def job(rig: Rig) -> dict[str, Any]:
    rig.upload("container/a.csv", b"1,2")
    return run(rig, LOOK, InputDataConfig=channel(f"s3://{rig.bucket}/container/"))


@pytest.fixture
def seen(rig: Rig, job: dict[str, Any]) -> dict[str, Any]:
    """What that script saw."""
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    seen: dict[str, Any] = json.loads(logged(rig, job["TrainingJobName"])[0])
    return seen


class TestTheContainer:
    def test_everything_is_at_its_real_path(self, rig: Rig, job: dict[str, Any], seen: dict[str, Any]) -> None:
        assert seen["files"] == [
            "/opt/ml/code/train.py",
            "/opt/ml/input/config/hyperparameters.json",
            "/opt/ml/input/config/inputdataconfig.json",
            "/opt/ml/input/config/resourceconfig.json",
            "/opt/ml/input/data/training/a.csv",
        ]
        assert (seen["cwd"], seen["data"]) == ("/opt/ml/code", "1,2")
        assert unpacked(rig, job["ModelArtifacts"]["S3ModelArtifacts"]) == {"weights.txt": "by its real path"}

    def test_variables_are_those_of_sagemaker(self, seen: dict[str, Any]) -> None:
        expected = {
            "SM_MODEL_DIR": "/opt/ml/model",
            "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data",
            "SM_CHANNEL_TRAINING": "/opt/ml/input/data/training",
            "SM_INPUT_CONFIG_DIR": "/opt/ml/input/config",
            "SM_MODULE_DIR": "/opt/ml/code",
            "SM_CURRENT_HOST": "algo-1",
            "SM_HOSTS": '["algo-1"]',
            "SM_MASTER_ADDR": "algo-1",
        }
        assert {name: seen["facts"].get(name) for name in expected} == expected

    def test_the_host_is_called_algo_1_and_finds_itself(self, seen: dict[str, Any]) -> None:
        assert seen["host"] == "algo-1"
        assert seen["address"].startswith("127.")

    def test_nothing_is_left_on_the_machine(self, job: dict[str, Any]) -> None:
        assert job["TrainingJobStatus"] == "Completed"
        assert Path("/opt/ml").exists() is BEFORE


# As the official SDK's ModelTrainer sends a job: its driver and the user's source are channels, and a shell starts the driver.
DRIVER = """#!/bin/bash
set -e
echo "shell: $0"
python3 --version; pip --version
python3 -m pip --version > /dev/null
python3 -c 'import json; print("HPS " + json.dumps(json.load(open("/opt/ml/input/config/hyperparameters.json"))))'
cd /opt/ml/input/data/code
python3 train.py
"""
SCRIPT = """
import signal, sys, time, pathlib
def save(*_):
    pathlib.Path("/opt/ml/model/saved.txt").write_text("saved on SIGTERM")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path("/opt/ml/model/weights.txt").write_text("trained")
print("ready", flush=True)
if pathlib.Path("/opt/ml/input/data/code/wait").exists():
    time.sleep(600)
"""


def driven(rig: Rig, files: dict[str, str], **hyperparameters: str) -> dict[str, Any]:
    """A request with ContainerEntrypoint and ContainerArguments like that of the official SDK 3."""
    prefix = rig.unique("driven")
    rig.upload(f"{prefix}/sm_drivers/sm_train.sh", DRIVER.encode())
    for name, text in files.items():
        rig.upload(f"{prefix}/code/{name}", text.encode())
    asked = request(rig, "")
    train = "/opt/ml/input/data/sm_drivers/sm_train.sh"
    asked["AlgorithmSpecification"] |= {
        "ContainerEntrypoint": ["/bin/bash"],
        "ContainerArguments": ["-c", f"chmod +x {train} && {train}"],
    }
    asked["HyperParameters"] = hyperparameters
    asked["InputDataConfig"] = [
        {**channel(f"s3://{rig.bucket}/{prefix}/{name}/")[0], "ChannelName": name} for name in ("sm_drivers", "code")
    ]
    return asked


class TestTheEntrypointOfTheOfficialSdk:
    def test_runs_as_it_is(self, rig: Rig) -> None:
        asked = driven(rig, {"train.py": SCRIPT}, text=json.dumps(NASTY), plain=NASTY)

        rig.client("sagemaker").create_training_job(**asked)

        described = finish(rig, asked["TrainingJobName"])
        assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
        lines = logged(rig, asked["TrainingJobName"])
        assert lines[0] == "shell: /opt/ml/input/data/sm_drivers/sm_train.sh"
        told = next(line for line in lines if line.startswith("HPS "))
        assert json.loads(told.removeprefix("HPS ")) == {"text": json.dumps(NASTY), "plain": NASTY}
        assert unpacked(rig, described["ModelArtifacts"]["S3ModelArtifacts"]) == {"weights.txt": "trained"}

    def test_stop_reaches_the_script_behind_the_shells_and_waits_for_it(self, rig: Rig) -> None:
        asked = driven(rig, {"train.py": SCRIPT, "wait": "yes"})
        rig.client("sagemaker").create_training_job(**asked)
        job = asked["TrainingJobName"]
        until(rig, job, "ready")

        rig.client("sagemaker").stop_training_job(TrainingJobName=job)

        described = finish(rig, job)
        assert described["TrainingJobStatus"] == "Stopped"
        assert "saved.txt" in unpacked(rig, described["ModelArtifacts"]["S3ModelArtifacts"])

    def test_pip_in_a_job_leaves_the_users_own_environment_alone(self, rig: Rig, tmp_path: Path) -> None:
        files = {
            "train.py": "import local_only, sys; print('from', local_only.__file__, sys.prefix)",
            "setup.py": "from setuptools import setup; setup(name='local-only', version='1', py_modules=['local_only'])",
            "local_only.py": "",
        }
        asked = driven(rig, files)
        script = "cd /opt/ml/input/data/code && pip install -q --no-index --no-build-isolation . && cd / && python3 "
        asked["AlgorithmSpecification"]["ContainerArguments"] = ["-c", f"{script} /opt/ml/input/data/code/train.py"]

        rig.client("sagemaker").create_training_job(**asked)

        described = finish(rig, asked["TrainingJobName"])
        assert described["TrainingJobStatus"] == "Completed", logged(rig, asked["TrainingJobName"])
        with pytest.raises(ModuleNotFoundError):
            __import__("local_only")


@pytest.mark.parametrize("name", ["text", "a_b"])
def test_a_hyperparameter_arrives_unchanged_and_executes_nothing(rig: Rig, name: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    hostile = f"x'$(touch {mark})'y `touch {mark}` \"; touch {mark}; echo \" ${{HOME}} \\ \n\t ünïcødé 漢 😀 {{}}"
    script = f"import os, sys; print(repr((sys.argv[1:], os.environ['SM_HP_{name.upper()}'])))"

    described = run(rig, script, hyperparameters={name: hostile})

    assert described["TrainingJobStatus"] == "Completed"
    argv, variable = eval(logged(rig, described["TrainingJobName"])[0])
    assert argv == [f"--{name}", hostile]
    assert variable == hostile
    assert described["HyperParameters"][name] == hostile
    assert not mark.exists()


def test_a_shell_script_gets_them_unchanged_too(rig: Rig, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    hostile = f"x'$(touch {mark})'y \"z\""
    files = {"train.sh": 'printf "%s" "$2" > "$SM_MODEL_DIR/said.txt"\n'}

    described = run(rig, "", files=files, hyperparameters={"sagemaker_program": "train.sh", "text": hostile})

    assert unpacked(rig, described["ModelArtifacts"]["S3ModelArtifacts"]) == {"said.txt": hostile}
    assert not mark.exists()


def test_events_tell_of_every_change(rig: Rig) -> None:
    sqs, events = rig.client("sqs"), rig.client("events")
    queue = sqs.create_queue(QueueName=rig.unique("jobs"))["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    rule = rig.unique("rule")
    pattern = {"source": ["aws.sagemaker"], "detail-type": ["SageMaker Training Job State Change"]}
    events.put_rule(Name=rule, EventPattern=json.dumps(pattern))
    events.put_targets(Rule=rule, Targets=[{"Id": "1", "Arn": arn}])

    described = run(rig, "print('hello')")

    seen: list[dict[str, Any]] = []
    while not any(event["detail"]["TrainingJobStatus"] == "Completed" for event in seen):
        got = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=5).get("Messages", [])
        assert got, seen
        for message in got:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            seen.append(json.loads(message["Body"]))
    events.remove_targets(Rule=rule, Ids=["1"])
    events.delete_rule(Name=rule)
    mine = [event for event in seen if event["resources"] == [described["TrainingJobArn"]]]
    assert [event["detail"]["SecondaryStatus"] for event in mine] == [
        "Starting",
        "Downloading",
        "Training",
        "Uploading",
        "Completed",
    ]
    assert mine[-1]["detail"]["ModelArtifacts"] == described["ModelArtifacts"]
    assert isinstance(mine[-1]["detail"]["TrainingEndTime"], int)
    assert mine[-1]["detail"]["TrainingJobName"] == described["TrainingJobName"]
