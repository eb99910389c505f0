"""What a training job does under conditions that a client cannot bring about: few slots, short grace, a reset."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from moto.core.base_backend import BackendDict
from moto.logs.models import logs_backends
from moto.s3.models import s3_backends

from tests.unit.local.identity import IDENTITY, living
from tests.unit.local.jobs.test_environments import wheel
from tests.unit.local.remembered_events import RememberedEvents
from windlass.local import storage
from windlass.local.clock import SystemClock
from windlass.local.cloud import ACCOUNT
from windlass.local.database import Database
from windlass.local.faults import Fault
from windlass.local.jobs import quotas
from windlass.local.jobs.environments import Environments
from windlass.local.jobs.training import TrainingJobs
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
        self.tags: dict[str, dict[str, str]] = {}
        self.events = RememberedEvents()

    def process_environment(self, region: str, role_arn: str | None = None) -> dict[str, str]:
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


def request(name: str, script: str, *, files: Mapping[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path, text in {"train.py": script, **(files or {})}.items():
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
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
    training.create(REGION, request("running", f"import time; print({IDENTITY}); time.sleep(600)"))
    until(lambda: bool(logged("running")))
    [identity] = logged("running")
    assert living(identity)

    training.reset()

    assert not living(identity)
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


def test_a_regex_that_would_backtrack_for_ever_is_given_up_and_the_job_says_so(training: TrainingJobs) -> None:
    endless = {"Name": "endless", "Regex": "(a|aa)+$ loss: ([0-9.]+)"}
    definitions = [endless, {"Name": "acc", "Regex": "acc=(.*)"}]
    script = "print('a' * 100 + '!'); print('a' * 200 + '!'); print('acc=0.5')"

    training.create(REGION, request("endless", script, algorithm={"MetricDefinitions": definitions}))
    assert training.wait(REGION, "endless", 20) == "Completed"

    final = training.describe(REGION, "endless")["FinalMetricDataList"]
    assert {metric["MetricName"]: metric["Value"] for metric in final} == {"acc": 0.5}
    said = [line for line in logged("endless") if "given up" in line]
    assert len(said) == 1
    assert endless["Regex"] in said[0]


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


class TestLimits:
    HUNGRY = "import time\nfood = bytearray(300_000_000)\nprint('full', flush=True)\ntime.sleep(600)"

    def test_a_job_that_takes_too_much_memory_fails_alone_and_says_so(self, cloud: SmallCloud) -> None:
        training = TrainingJobs(cloud, slots=2, memory_bytes=200_000_000)  # type: ignore[arg-type]
        training.create(REGION, request("modest", "import time; print('ready', flush=True); time.sleep(600)"))
        until(lambda: "ready" in logged("modest"))

        training.create(REGION, request("hungry", self.HUNGRY))

        assert training.wait(REGION, "hungry", 20) == "Failed"
        reason = training.describe(REGION, "hungry")["FailureReason"]
        assert reason.startswith("ClientError: Please use an instance type with more memory")
        assert "algo-1 used 0." in reason
        assert training.describe(REGION, "modest")["TrainingJobStatus"] == "InProgress"
        training.close()

    def test_memory_that_workers_share_counts_once(self, cloud: SmallCloud) -> None:
        script = (
            "import os, time\nshared = bytearray(b'x') * 100_000_000\n"
            "pids = [os.fork() for _ in range(1)]\nif pids[0]: pids.append(os.fork())\n"
            "if all(pids):\n    time.sleep(1)\n    print('done')\nelse:\n    time.sleep(600)\n"
        )
        training = TrainingJobs(cloud, slots=1, memory_bytes=200_000_000)  # type: ignore[arg-type]

        training.create(REGION, request("family", script))

        assert training.wait(REGION, "family", 20) == "Completed"
        training.close()

    @pytest.mark.parametrize(
        "script",
        [
            # Many files: found by counting them.
            "import os, time\nfor n in range(6):\n    os.posix_fallocate(os.open(f'/opt/ml/model/{n}', 65), 0, 200_000_000)\n"
            "print('written', flush=True)\ntime.sleep(600)",
            # One: the system itself refuses to let it grow.
            "import os\nos.posix_fallocate(os.open('/opt/ml/model/big', 65), 0, 1_060_000_000)\n"
            "with open('/opt/ml/model/big', 'ab') as file:\n    file.write(b'x' * 20_000_000)",
        ],
    )
    def test_a_job_that_fills_its_volume_fails_alone_and_says_so(self, training: TrainingJobs, script: str) -> None:
        training.create(REGION, request("greedy", script))

        assert training.wait(REGION, "greedy", 20) == "Failed"
        reason = training.describe(REGION, "greedy")["FailureReason"]
        assert "The job filled its disk: algo-1 holds 1." in reason
        assert "VolumeSizeInGB is 1. Ask for a larger volume." in reason
        assert list((training._cloud.state / "jobs" / REGION).iterdir()) == []

    @pytest.mark.parametrize(
        ("kind", "gib"),
        [
            ("ml.m5.large", 8),
            ("ml.m5.24xlarge", 384),
            ("ml.c5.xlarge", 8),
            ("ml.r5.2xlarge", 64),
            ("ml.g4dn.xlarge", 16),
            ("ml.g5.12xlarge", 192),
            ("ml.t3.medium", 4),
            ("ml.t3.2xlarge", 32),
            ("ml.p4d.24xlarge", 768),
            ("ml.unknown1.large", None),
            ("local", None),
        ],
    )
    def test_memory_follows_the_instance_type(self, kind: str, gib: int | None) -> None:
        assert quotas.memory_bytes(kind) == (gib * quotas.GIB if gib else None)


def test_a_second_job_with_the_same_requirements_starts_at_once(cloud: SmallCloud, tmp_path: Path) -> None:
    layers = Environments(cloud.keeper, tmp_path / "cache")
    training = TrainingJobs(cloud, slots=2, layers=layers)  # type: ignore[arg-type]
    thing = wheel(tmp_path, "layered_thing", "1.0")
    files = {"requirements.txt": f"--no-index\n--find-links {thing.parent}\nlayered_thing\n"}
    script = "import layered_thing; print('have', layered_thing.version)"

    for name in ("first", "second"):
        training.create(REGION, request(name, script, files=files))
        assert training.wait(REGION, name, 60) == "Completed"

    assert "have 1.0" in logged("first")
    assert any("Successfully installed" in line for line in logged("first"))
    assert logged("second") == ["have 1.0"]
    training.close()


def test_without_namespaces_the_variables_lead_to_the_folders_and_it_is_said_once(
    tmp_path: Path, cloud: SmallCloud
) -> None:
    cloud.keeper.close()
    cloud.keeper = Keeper(isolation="")
    training = TrainingJobs(cloud, slots=1)  # type: ignore[arg-type]
    script = "import os; print(os.environ['SM_MODEL_DIR']); open(os.environ['SM_MODEL_DIR'] + '/w', 'w').write('w')"

    for name in ("bare", "again"):
        training.create(REGION, request(name, script))
        assert training.wait(REGION, name, 20) == "Completed"

    said, where = logged("bare")
    assert said.startswith("This machine allows no namespaces: /opt/ml is ")
    assert where == str(cloud.state / "jobs" / REGION / "bare" / "algo-1" / "model")
    assert len(logged("again")) == 1
    training.close()


def test_without_namespaces_several_hosts_meet_at_the_loopback_address(cloud: SmallCloud) -> None:
    cloud.keeper.close()
    cloud.keeper = Keeper(isolation="")
    training = TrainingJobs(cloud, slots=1)  # type: ignore[arg-type]
    script = "import os; print(os.environ['SM_CURRENT_HOST'], os.environ['SM_MASTER_ADDR'])"
    resources = {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}

    training.create(REGION, request("bare", script, ResourceConfig=resources))

    assert training.wait(REGION, "bare", 20) == "Completed"
    assert {"algo-1 127.0.0.1", "algo-2 127.0.0.1"} <= set(logged("bare"))
    training.close()


def test_jobs_start_in_the_order_in_which_they_came(training: TrainingJobs, cloud: SmallCloud) -> None:
    for number in range(5):
        training.create(REGION, request(f"job-{number}", "pass"))

    for number in range(5):
        assert training.wait(REGION, f"job-{number}", 20) == "Completed"
    started = [training.describe(REGION, f"job-{number}")["TrainingStartTime"] for number in range(5)]
    assert started == sorted(started)


def test_jobs_of_several_hosts_run_one_after_another_and_let_others_pass(cloud: SmallCloud) -> None:
    training = TrainingJobs(cloud, slots=3)  # type: ignore[arg-type]
    two = {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}
    script = "import time; print('ready', flush=True); time.sleep(600)"
    training.create(REGION, request("first", script, ResourceConfig=two))
    until(lambda: "ready" in logged("first"))

    training.create(REGION, request("second", script, ResourceConfig=two))
    training.create(REGION, request("single", "print('passed')"))

    assert training.wait(REGION, "single", 20) == "Completed"
    assert training.describe(REGION, "second")["SecondaryStatus"] == "Starting"
    training.stop(REGION, "first")
    training.wait(REGION, "first", 20)
    until(lambda: "ready" in logged("second"))
    training.close()


def test_each_job_has_a_port_of_its_own_to_meet_at(cloud: SmallCloud) -> None:
    training = TrainingJobs(cloud, slots=2)  # type: ignore[arg-type]
    script = "import os, time; print('port', os.environ['SM_MASTER_PORT'], flush=True); time.sleep(600)"
    for name in ("one", "two"):
        training.create(REGION, request(name, script))
    until(lambda: bool(logged("one")) and bool(logged("two")))

    assert logged("one") != logged("two")
    training.close()


def fail_inside(cloud: SmallCloud, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next starts of a process fail as a fault of the cloud itself would."""
    real, left = cloud.keeper.start, [None] * times

    def start(*args: Any, **named: Any) -> Any:
        if left:
            left.pop()
            raise RuntimeError("the cloud is broken")
        return real(*args, **named)

    monkeypatch.setattr(cloud.keeper, "start", start)


@pytest.mark.parametrize(("faults", "status"), [(2, "Completed"), (3, "Failed")])
def test_a_job_begins_again_after_internal_errors_as_often_as_its_retry_strategy_allows(
    training: TrainingJobs, cloud: SmallCloud, monkeypatch: pytest.MonkeyPatch, faults: int, status: str
) -> None:
    fail_inside(cloud, monkeypatch, faults)

    training.create(REGION, request("retried", "print('ran')", RetryStrategy={"MaximumRetryAttempts": 2}))

    assert training.wait(REGION, "retried", 20) == status
    told = training.describe(REGION, "retried")
    assert [each["Status"] for each in told["SecondaryStatusTransitions"]].count("Restarting") == 2
    assert logged("retried") == (["ran"] if status == "Completed" else [])
    assert (told["FailureReason"] or "").startswith("InternalServerError" if status == "Failed" else "")


def test_a_script_that_fails_is_not_tried_again(training: TrainingJobs) -> None:
    training.create(REGION, request("once", "print('ran'); 1 / 0", RetryStrategy={"MaximumRetryAttempts": 2}))

    assert training.wait(REGION, "once", 20) == "Failed"
    assert logged("once").count("ran") == 1


def test_a_job_with_a_retry_strategy_outlives_its_server(cloud: SmallCloud, tmp_path: Path) -> None:
    marker = tmp_path / "second-server"
    script = (
        "import pathlib, time\nprint('ready', flush=True)\n"
        f"while not pathlib.Path({str(marker)!r}).exists(): time.sleep(0.01)\n"
    )
    earlier = TrainingJobs(cloud, slots=2)  # type: ignore[arg-type]
    earlier.create(REGION, request("outlives", script, RetryStrategy={"MaximumRetryAttempts": 1}))
    earlier.create(REGION, request("does-not", script))
    until(lambda: "ready" in logged("outlives") and "ready" in logged("does-not"))
    earlier.close()
    marker.touch()

    later = TrainingJobs(cloud, slots=2)  # type: ignore[arg-type]
    later.restore()
    later.resume()

    assert later.wait(REGION, "outlives", 20) == "Completed"
    assert later.wait(REGION, "does-not", 20) == "Failed"
    statuses = [each["Status"] for each in later.describe(REGION, "outlives")["SecondaryStatusTransitions"]]
    assert statuses[statuses.index("Restarting") :] == [
        "Restarting",
        "Starting",
        "Downloading",
        "Training",
        "Uploading",
        "Completed",
    ]
    later.close()
