"""The official SageMaker SDK 3, unchanged, with nothing but the exports of `windlass local up`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.conftest import Rig
from tests.cloud.test_training import SAVE
from tests.conformance.conftest import Foreign
from tests.conformance.test_waiters import INFERENCE

SETTINGS = {"SAGEMAKER_VALIDATE_ROLE": "false", "SAGEMAKER_TELEMETRY_OPT_OUT": "true"}


class Sdk(Foreign):
    def __call__(self, script: str, **given: Any) -> Any:
        """Run a script in which each of the given is a variable. Returns what it calls `answer` with."""
        head = "import json\ndef answer(*values):\n    print('\\nANSWER', json.dumps(values))\n"
        head += "".join(f"{name} = {value!r}\n" for name, value in given.items())
        done = self.run("python", "-c", head + script, env=SETTINGS)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.rpartition("\nANSWER")[2].partition("\n")[0])


@pytest.fixture(scope="module")
def sdk(rig: Rig) -> Sdk:
    return Sdk("sagemaker", rig)


def test_the_resources_of_a_training_job(sdk: Sdk, rig: Rig) -> None:
    answer = sdk(
        """
from sagemaker.core.resources import TrainingJob
from sagemaker.core.shapes import (
    AlgorithmSpecification, OutputDataConfig, ResourceConfig, StoppingCondition)

def start(name, source):
    return TrainingJob.create(
        training_job_name=name,
        role_arn=role,
        algorithm_specification=AlgorithmSpecification(training_image="pytorch", training_input_mode="File"),
        hyper_parameters={"sagemaker_program": "train.py", "sagemaker_submit_directory": source},
        output_data_config=OutputDataConfig(s3_output_path=output),
        resource_config=ResourceConfig(instance_type="ml.m5.large", instance_count=1, volume_size_in_gb=1),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=60),
        tags=[{"key": "team", "value": "vision"}],
    )

first = start(names[0], sources[0])
first.wait(poll=1)
second = start(names[1], sources[1])
second.stop()
second.wait(poll=1)
listed = [job.get_name() for job in TrainingJob.get_all(name_contains=prefix)]
answer(
    first.refresh().training_job_status,
    first.model_artifacts.s3_model_artifacts,
    second.refresh().training_job_status,
    sorted(listed),
)
""",
        role=rig.role,
        output=f"s3://{rig.bucket}/sdk",
        prefix=(prefix := rig.unique("core")),
        names=(names := [f"{prefix}-completes", f"{prefix}-stops"]),
        sources=[
            rig.upload_source({"train.py": SAVE.format("x")}),
            rig.upload_source({"train.py": "import time; time.sleep(600)"}),
        ],
    )

    assert answer == ["Completed", f"s3://{rig.bucket}/sdk/{names[0]}/output/model.tar.gz", "Stopped", names]


def test_the_resources_of_an_endpoint(sdk: Sdk, rig: Rig) -> None:
    answer = sdk(
        """
from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.core.shapes import ContainerDefinition, ProductionVariant

container = ContainerDefinition(image="pytorch", model_data_url=data, environment={"SAGEMAKER_PROGRAM": "inference.py"})
model = Model.create(model_name=name, primary_container=container, execution_role_arn=role)
variant = ProductionVariant(
    variant_name="all", model_name=name, instance_type="ml.m5.large", initial_instance_count=1)
config = EndpointConfig.create(endpoint_config_name=name, production_variants=[variant])
endpoint = Endpoint.create(endpoint_name=name, endpoint_config_name=name)
endpoint.wait_for_status("InService", poll=1)
reply = endpoint.invoke(body=b'{"a": 1}', content_type="application/json", accept="application/json")
found = json.load(reply.body)
endpoint.delete()
endpoint.wait_for_delete(poll=1)
config.delete()
model.delete()
answer(found)
""",
        name=rig.unique("core"),
        role=rig.role,
        data=rig.upload_source({"code/inference.py": INFERENCE}),
    )

    assert answer == [{"a": 1}]


TRAIN = """
import argparse, os, pathlib, time
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
print("rate:", parser.parse_known_args()[0].rate, flush=True)
print("data:", pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "a.txt").read_text(), flush=True)
while "ENDLESS" in os.environ:
    time.sleep(1)
pathlib.Path(os.environ["SM_MODEL_DIR"], "weights.txt").write_text("trained")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("windlass.local.namespaces") is None, reason="jobs have no /opt/ml of their own here"
)
def test_a_model_trainer_trains_logs_and_stops(sdk: Sdk, rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train.py").write_text(TRAIN)
    rig.upload("sdk-data/a.txt", b"content")

    answer = sdk(
        """
from sagemaker.core.helper.session_helper import Session
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, InputData, OutputDataConfig, SourceCode, StoppingCondition

def trainer(**settings):
    return ModelTrainer(
        training_image="pytorch",
        source_code=SourceCode(source_dir=source, entry_script="train.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=1, volume_size_in_gb=1),
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{bucket}/sdk"),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=60),
        hyperparameters={"rate": 0.5},
        sagemaker_session=Session(default_bucket=bucket),
        role=role,
        **settings,
    )

data = [InputData(channel_name="train", data_source=f"s3://{bucket}/sdk-data")]
first = trainer(base_job_name=prefix)
first.train(input_data_config=data, wait=True, logs=True)
second = trainer(base_job_name=prefix, environment={"ENDLESS": "1"})
second.train(input_data_config=data, wait=False)
second._latest_training_job.stop()
second._latest_training_job.wait(poll=1)
jobs = [first._latest_training_job.refresh(), second._latest_training_job.refresh()]
answer(*[[job.training_job_name, job.training_job_status] for job in jobs])
""",
        source=str(tmp_path / "source"),
        bucket=rig.bucket,
        role=rig.role,
        prefix=rig.unique("trainer"),
    )

    [(job, first), (_, second)] = answer
    assert (first, second) == ("Completed", "Stopped")
    events = rig.client("logs").filter_log_events(
        logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix=f"{job}/"
    )["events"]
    messages = [event["message"] for event in events]
    assert "rate: 0.5" in messages
    assert "data: content" in messages
