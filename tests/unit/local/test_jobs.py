"""What a training job does under conditions that a client cannot bring about: few slots, short grace, a reset."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from moto.core.base_backend import BackendDict
from moto.logs.models import logs_backends
from moto.s3.models import s3_backends

from windlass.local import jobs, storage
from windlass.local.clock import SystemClock
from windlass.local.cloud import ACCOUNT
from windlass.local.database import Database
from windlass.local.faults import Fault
from windlass.local.jobs import TrainingJobs
from windlass.local.processes import Keeper

REGION = "us-east-1"


class Metrics:
    """A metric store that remembers what it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[str, str, dict[str, str], float]] = []

    def put(
        self, region: str, namespace: str, name: str, dimensions: Mapping[str, str], value: float, **_: Any
    ) -> None:
        self.points.append((namespace, name, dict(dimensions), value))


class SmallCloud:
    """As much of a cloud as training needs."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.clock = SystemClock()
        self.keeper = Keeper()
        self.database = Database(state / "state.sqlite")
        self.metrics = Metrics()

    def process_environment(self, region: str) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[SmallCloud]:
    s3_backends[ACCOUNT]["aws"].create_bucket("bucket", REGION)
    cloud = SmallCloud(tmp_path)
    yield cloud
    cloud.keeper.close()
    cloud.database.close()
    BackendDict.reset()


@pytest.fixture
def training(cloud: SmallCloud) -> Iterator[TrainingJobs]:
    training = TrainingJobs(cloud, slots=1, stop_grace_seconds=0.2)  # type: ignore[arg-type]
    yield training
    training.close()


def request(name: str, script: str, **changes: Any) -> dict[str, Any]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("train.py")
        member.size = len(script.encode())
        tar.addfile(member, io.BytesIO(script.encode()))
    storage.write(f"s3://bucket/{name}.tar.gz", packed.getvalue())
    return {
        "TrainingJobName": name,
        "RoleArn": "arn:aws:iam::123456789012:role/any",
        "AlgorithmSpecification": {"TrainingImage": "x", "TrainingInputMode": "File", **changes.pop("algorithm", {})},
        "HyperParameters": {
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": f"s3://bucket/{name}.tar.gz",
        },
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/output"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        **changes,
    }


def logged(name: str) -> list[str]:
    group = logs_backends[ACCOUNT][REGION].groups.get("/aws/sagemaker/TrainingJobs")
    streams = list(group.streams.items()) if group else []
    return [event.message for stream, found in streams if stream.startswith(f"{name}/") for event in found.events]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_a_script_that_ignores_sigterm_is_killed_after_the_grace_period(training: TrainingJobs) -> None:
    script = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready')\ntime.sleep(600)"
    training.create(REGION, request("deaf", script))
    until(lambda: "ready" in logged("deaf"))

    training.stop(REGION, "deaf")
    training.stop(REGION, "deaf")  # twice is as good as once

    assert training.wait(REGION, "deaf", 20) == "Stopped"


def test_jobs_beyond_the_slots_wait_as_starting_and_can_be_stopped_there(training: TrainingJobs) -> None:
    training.create(REGION, request("first", "import time; print('ready'); time.sleep(600)"))
    until(lambda: "ready" in logged("first"))
    training.create(REGION, request("second", "print('second')"))
    training.create(REGION, request("third", "print('third')"))
    assert training.describe(REGION, "second")["SecondaryStatus"] == "Starting"

    training.stop(REGION, "second")

    assert training.wait(REGION, "second", 20) == "Stopped"
    assert "TrainingStartTime" not in {k: v for k, v in training.describe(REGION, "second").items() if v is not None}
    assert training.describe(REGION, "third")["SecondaryStatus"] == "Starting"
    training.stop(REGION, "first")
    assert training.wait(REGION, "third", 20) == "Completed"


def test_reset_ends_every_child_and_forgets_the_jobs(training: TrainingJobs) -> None:
    training.create(REGION, request("running", "import os, time; print('pid', os.getpid()); time.sleep(600)"))
    until(lambda: bool(logged("running")))
    pid = int(logged("running")[0].split()[1])

    training.reset()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(Fault, match="not found"):
        training.describe(REGION, "running")
    training.create(REGION, request("running", "print('again')"))
    assert training.wait(REGION, "running", 20) == "Completed"


def test_metrics_are_the_last_finite_number_that_the_regex_captures(training: TrainingJobs, cloud: SmallCloud) -> None:
    script = "print('loss=3 loss=2'); print('loss=nan'); print('loss=none'); print('acc=0.5')"
    definitions = [{"Name": "loss", "Regex": r"loss=(\w+)"}, {"Name": "acc", "Regex": "acc=(.*)"}]

    training.create(REGION, request("metrics", script, algorithm={"MetricDefinitions": definitions}))
    training.wait(REGION, "metrics", 20)

    final = training.describe(REGION, "metrics")["FinalMetricDataList"]
    assert {metric["MetricName"]: metric["Value"] for metric in final} == {"loss": 2.0, "acc": 0.5}
    dimensions = {"TrainingJobName": "metrics"}
    assert cloud.metrics.points == [
        ("/aws/sagemaker/TrainingJobs", "loss", dimensions, 3.0),
        ("/aws/sagemaker/TrainingJobs", "loss", dimensions, 2.0),
        ("/aws/sagemaker/TrainingJobs", "acc", dimensions, 0.5),
    ]


def test_data_that_vanishes_before_the_download_fails_the_job(training: TrainingJobs) -> None:
    storage.write("s3://bucket/data/a.csv", b"1")
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/data"}
    channel = {"ChannelName": "training", "DataSource": {"S3DataSource": source}}
    training.create(REGION, request("first", "import time; print('ready'); time.sleep(600)"))
    training.create(REGION, request("late", "print('never')", InputDataConfig=[channel]))
    s3_backends[ACCOUNT]["aws"].delete_object("bucket", "data/a.csv")

    training.stop(REGION, "first")

    assert training.wait(REGION, "late", 20) == "Failed"
    assert "Data download failed for channel 'training'" in training.describe(REGION, "late")["FailureReason"]


def test_nothing_of_a_job_stays_on_the_disk(training: TrainingJobs, cloud: SmallCloud) -> None:
    training.create(REGION, request("tidy", "print('done')"))

    training.wait(REGION, "tidy", 20)

    assert not (cloud.state / "jobs" / REGION / "tidy").exists()


def test_the_configuration_files_are_those_of_the_contract(training: TrainingJobs) -> None:
    script = (
        "import json, os, pathlib\n"
        "config = pathlib.Path(os.environ['SM_INPUT_CONFIG_DIR'])\n"
        "print(json.dumps({p.name: json.loads(p.read_text()) for p in config.iterdir()}))\n"
    )
    asked = request("config", script)
    asked["HyperParameters"]["lr"] = "0.1"

    training.create(REGION, asked)
    training.wait(REGION, "config", 20)

    files = json.loads(logged("config")[0])
    assert files["hyperparameters.json"]["lr"] == "0.1"
    assert files["inputdataconfig.json"] == {}
    assert files["resourceconfig.json"]["hosts"] == ["algo-1"]
    assert files["resourceconfig.json"]["current_instance_type"] == "ml.m5.large"


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (
            """start
Traceback (most recent call last):
  File "a.py", line 1
ValueError: first
retry
Traceback (most recent call last):
  File "a.py", line 9
KeyError: 'second'
cleaning up""".splitlines(),
            "KeyError: 'second'\n\nTraceback (most recent call last):\n  File \"a.py\", line 9\nKeyError: 'second'",
        ),
        (["a", "", "b"], "a\nb"),
        ([], ""),
    ],
)
def test_the_last_traceback_stands_with_its_exception_first(lines: list[str], shown: str) -> None:
    assert jobs._last_traceback(deque(lines)) == shown


def test_a_long_failure_keeps_its_exit_code() -> None:
    reason = jobs._algorithm_error("x" * 5000, -9)

    assert len(reason) == 1024
    assert reason.endswith("x, exit code: 137")
