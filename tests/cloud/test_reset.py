"""POST /moto-api/reset, and the end of the cloud, while every kind of job runs."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.cloud import test_pipelines, test_processing, test_transform, test_tuning
from tests.cloud.conftest import TRUST, Rig
from windlass.local import LocalCloud

SLEEP = "import os, sys, time; print('pid', os.getpid(), flush=True); time.sleep(600)"


def prepared(cloud: LocalCloud) -> Rig:
    """A rig in a cloud that holds nothing."""
    rig = Rig(env=cloud.env, cloud=cloud)
    rig.bucket = rig.unique("rig")
    rig.client("s3").create_bucket(Bucket=rig.bucket)
    role = rig.client("iam").create_role(RoleName=rig.unique("rig"), AssumeRolePolicyDocument=json.dumps(TRUST))
    rig.role = role["Role"]["Arn"]
    return rig


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline


def descendants(pid: int) -> set[int]:
    """The processes below a process."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in {pid, *found}} - found:
        found |= more
    return found


def start_everything(rig: Rig) -> None:
    """One running job of each kind."""
    sagemaker = rig.client("sagemaker")
    process = test_processing.start(rig, SLEEP)
    until(lambda: bool(test_processing.logged(rig, process)))

    model = rig.unique("model")
    data = rig.upload_source({"code/inference.py": test_transform.CODE})
    container = {"Image": "image", "ModelDataUrl": data}
    sagemaker.create_model(ModelName=model, ExecutionRoleArn=rig.role, PrimaryContainer=container)
    transform = test_transform.start(rig, model, {"a.csv": b"slow"})
    until(lambda: any("data-log" in stream for stream in test_transform.streams(rig, transform)))

    tune = test_tuning.start(
        rig,
        HyperParameterTuningJobConfig=test_tuning.config(),
        TrainingJobDefinition=test_tuning.definition(rig, lambda text: rig.upload_source({"train.py": text}), SLEEP),
    )
    until(lambda: bool(test_tuning.children(rig, tune)))

    site = test_pipelines.Site(rig)
    arn = site.start(site.create(test_pipelines.definition(site.process("Long", SLEEP))))
    until(lambda: site.steps(arn).get("Long", {}).get("StepStatus") == "Executing")


def test_reset_ends_and_forgets_everything_and_shutdown_is_quick(tmp_path: Path) -> None:
    with LocalCloud.up(tmp_path / "state", lifeline=True) as cloud:
        rig = prepared(cloud)
        start_everything(rig)

        reset = urllib.request.Request(f"{cloud.url}/moto-api/reset", method="POST")
        with urllib.request.urlopen(reset, timeout=60) as answer:
            assert answer.status == 200
        rig.close()

        rig = prepared(cloud)
        sagemaker = rig.client("sagemaker")
        assert sagemaker.list_processing_jobs()["ProcessingJobSummaries"] == []
        assert sagemaker.list_transform_jobs()["TransformJobSummaries"] == []
        assert sagemaker.list_hyper_parameter_tuning_jobs()["HyperParameterTuningJobSummaries"] == []
        assert sagemaker.list_training_jobs()["TrainingJobSummaries"] == []
        assert sagemaker.list_pipelines()["PipelineSummaries"] == []
        start_everything(rig)  # and all of it can be done again
        rig.close()
        running = descendants(cloud.pid)
        began = time.monotonic()
    assert time.monotonic() - began < 60  # without waiting 120 s for each job to end by itself
    assert running
    until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in running))
