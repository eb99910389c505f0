"""Checkpoints, and spot instances that are taken away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cloud.conftest import Rig
from tests.cloud.test_training import finish, logged, request, run, start, unpacked, until
from windlass.errors import InvalidInput
from windlass.local import LocalCloud

# It counts to `--until`, saves every step, and goes on from what it finds.
COUNT = """
import argparse, pathlib, signal, sys, threading
parser = argparse.ArgumentParser()
parser.add_argument("--hold", type=int)
hold = parser.parse_args().hold
path = pathlib.Path("/opt/ml/checkpoints/deep/step.txt")
path.parent.mkdir(exist_ok=True)
told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
step = int(path.read_text()) if path.exists() else 0
print("from", step, flush=True)
while step < 5:
    step += 1
    path.write_text(str(step))
    print("step", step, flush=True)
    if step == hold:
        told.wait()
        print("told to end", flush=True)
        sys.exit(0)
pathlib.Path("/opt/ml/model/step.txt").write_text(str(step))
"""


def spot(rig: Rig, **changes: Any) -> dict[str, Any]:
    """Members of a request for spot instances with checkpoints."""
    return {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 120},
        "CheckpointConfig": {"S3Uri": f"s3://{rig.bucket}/{rig.unique('checkpoints')}"},
        **changes,
    }


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline


def interrupt(rig: Rig, job: str, **options: float) -> None:
    assert rig.cloud
    rig.cloud.interrupt(job, **options)


def exists(rig: Rig, uri: str) -> bool:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bool(rig.client("s3").list_objects_v2(Bucket=bucket, Prefix=key).get("KeyCount"))


class TestCheckpoints:
    def test_go_up_while_the_job_runs_and_come_down_from_others(self, rig: Rig) -> None:
        script = (
            "import pathlib, time\n"
            "folder = pathlib.Path('/opt/ml/checkpoints')\n"
            "(folder / 'mine.txt').write_text('mine')\n"
            "while not (folder / 'theirs.txt').exists():\n    time.sleep(0.01)\n"
            "print('got', (folder / 'theirs.txt').read_text(), flush=True)\n"
        )
        prefix = rig.unique("checkpoints")
        job = start(rig, script, CheckpointConfig={"S3Uri": f"s3://{rig.bucket}/{prefix}/"})

        eventually(lambda: exists(rig, f"s3://{rig.bucket}/{prefix}/mine.txt"))
        rig.upload(f"{prefix}/theirs.txt", b"theirs")

        described = finish(rig, job)
        assert described["TrainingJobStatus"] == "Completed"
        assert "got theirs" in logged(rig, job)
        assert described["CheckpointConfig"] == {"S3Uri": f"s3://{rig.bucket}/{prefix}/"}

    def test_what_is_written_last_goes_up_too_even_from_a_job_that_fails(self, rig: Rig) -> None:
        prefix = rig.unique("checkpoints")
        script = "open('/opt/ml/elsewhere/last.txt', 'w').write('last')\nraise SystemExit(3)\n"
        config = {"S3Uri": f"s3://{rig.bucket}/{prefix}", "LocalPath": "/opt/ml/elsewhere"}

        described = run(rig, script, CheckpointConfig=config)

        assert described["TrainingJobStatus"] == "Failed"
        assert rig.download(f"s3://{rig.bucket}/{prefix}/last.txt") == b"last"

    def test_hosts_see_each_others(self, rig: Rig) -> None:
        script = (
            "import pathlib, socket, time\n"
            "folder, me = pathlib.Path('/opt/ml/checkpoints'), socket.gethostname()\n"
            "(folder / me).write_text(me)\n"
            "while len(list(folder.iterdir())) < 2:\n    time.sleep(0.01)\n"
        )

        described = run(
            rig,
            script,
            CheckpointConfig={"S3Uri": f"s3://{rig.bucket}/{rig.unique('checkpoints')}"},
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1},
        )

        assert described["TrainingJobStatus"] == "Completed"


class TestAnInterruption:
    def test_sends_sigterm_and_the_job_resumes_from_its_checkpoint(self, rig: Rig) -> None:
        job = start(rig, COUNT, hyperparameters={"hold": "3"}, **spot(rig))
        until(rig, job, "step 3")

        interrupt(rig, job)

        described = finish(rig, job)
        assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
        lines = [line for line in logged(rig, job) if line != ""]
        assert lines == ["from 0", "step 1", "step 2", "step 3", "told to end", "from 3", "step 4", "step 5"]
        assert [step["Status"] for step in described["SecondaryStatusTransitions"]] == [
            "Starting",
            "Downloading",
            "Training",
            "Interrupted",
            "Starting",
            "Downloading",
            "Training",
            "Uploading",
            "Completed",
        ]
        assert unpacked(rig, described["ModelArtifacts"]["S3ModelArtifacts"]) == {"step.txt": "5"}
        assert described["EnableManagedSpotTraining"] is True

    def test_ends_the_job_when_no_capacity_comes_back_within_its_longest_wait(self, rig: Rig) -> None:
        changes = spot(rig, StoppingCondition={"MaxRuntimeInSeconds": 2, "MaxWaitTimeInSeconds": 2})
        job = start(rig, COUNT, hyperparameters={"hold": "1"}, **changes)
        until(rig, job, "step 1")

        interrupt(rig, job, capacity_after_seconds=600)

        described = finish(rig, job)
        assert described["TrainingJobStatus"] == "Stopped"
        assert described["SecondaryStatus"] == "MaxWaitTimeExceeded"

    def test_leaves_a_waiting_job_that_can_be_stopped(self, rig: Rig) -> None:
        job = start(rig, COUNT, hyperparameters={"hold": "1"}, **spot(rig))
        until(rig, job, "step 1")
        interrupt(rig, job, capacity_after_seconds=600)
        describe = rig.client("sagemaker").describe_training_job
        eventually(lambda: describe(TrainingJobName=job)["SecondaryStatus"] == "Starting")

        rig.client("sagemaker").stop_training_job(TrainingJobName=job)

        described = finish(rig, job)
        assert described["TrainingJobStatus"] == "Stopped"
        assert [step["Status"] for step in described["SecondaryStatusTransitions"]][-4:] == [
            "Interrupted",
            "Starting",
            "Stopping",
            "Stopped",
        ]

    def test_needs_a_job_on_spot_instances_that_trains(self, rig: Rig) -> None:
        on_demand = start(rig, COUNT, hyperparameters={"hold": "1"})
        until(rig, on_demand, "step 1")

        with pytest.raises(InvalidInput, match="does not run on spot instances"):
            interrupt(rig, on_demand)
        with pytest.raises(InvalidInput, match="not found: training job 'nobody'"):
            interrupt(rig, "nobody")
        rig.client("sagemaker").stop_training_job(TrainingJobName=on_demand)
        finish(rig, on_demand)
        done = run(rig, "print('done')", **spot(rig))
        with pytest.raises(InvalidInput, match="is Completed: only while it is Training"):
            interrupt(rig, done["TrainingJobName"])

    def test_can_be_had_from_the_command_line(self, rig: Rig) -> None:
        assert isinstance(rig.cloud, LocalCloud)
        asked = request(rig, COUNT, hyperparameters={"hold": "2"}, **spot(rig))
        rig.client("sagemaker").create_training_job(**asked)
        job = asked["TrainingJobName"]
        until(rig, job, "step 2")

        said = subprocess.run(
            [sys.executable, "-m", "windlass.cli", "local", "interrupt", job, "--state", str(rig.cloud.state)],
            capture_output=True,
            text=True,
            env={**os.environ, **rig.env},
            timeout=60,
        )

        assert said.returncode == 0, said.stderr
        assert job in said.stdout + said.stderr
        assert finish(rig, job)["TrainingJobStatus"] == "Completed"
        assert "from 2" in logged(rig, job)
