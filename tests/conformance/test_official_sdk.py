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


HOOKS = """
import json
def model_fn(model_dir):
    return open(model_dir + "/version").read()
def predict_fn(data, model):
    return {"version": model, "echo": data}
def output_fn(prediction, accept):
    if accept == "text/event-stream":
        return iter(json.dumps(prediction).split(" ")), accept
    return json.dumps(prediction), "application/json"
"""


def versions(rig: Rig) -> list[str]:
    """The model data of two versions of one model."""
    return [rig.upload_source({"code/inference.py": HOOKS, "version": version}) for version in ("v1", "v2")]


def test_the_resources_of_an_endpoint(sdk: Sdk, rig: Rig) -> None:
    """Deploy, invoke, stream, update under guard, change the weights, delete."""
    answer = sdk(
        """
from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.core.shapes import (
    BlueGreenUpdatePolicy, ContainerDefinition, DeploymentConfig, DesiredWeightAndCapacity, ProductionVariant,
    TrafficRoutingConfig)

configs, models = [], []
for name, data in zip(names, sources):
    container = ContainerDefinition(
        image="pytorch", model_data_url=data, environment={"SAGEMAKER_PROGRAM": "inference.py"})
    models.append(Model.create(model_name=name, primary_container=container, execution_role_arn=role))
    variant = ProductionVariant(
        variant_name="all", model_name=name, instance_type="ml.m5.large", initial_instance_count=1)
    configs.append(EndpointConfig.create(endpoint_config_name=name, production_variants=[variant]))

def predict():
    return json.load(endpoint.invoke(body=b'{"a": 1}', content_type="application/json", accept="application/json").body)

endpoint = Endpoint.create(endpoint_name=names[0], endpoint_config_name=names[0])
endpoint.wait_for_status("InService", poll=1)
first = predict()

request = {"body": b'{"a": 1}', "content_type": "application/json", "accept": "text/event-stream"}
try:
    stream = endpoint.invoke_with_response_stream(**request).body
except AttributeError:  # sagemaker-core 2.27 cannot read the stream that boto3 hands to it, whoever sent that
    stream = endpoint._get_client("sagemaker-runtime").invoke_endpoint_with_response_stream(
        EndpointName=names[0], Body=request["body"], ContentType=request["content_type"], Accept=request["accept"])["Body"]
parts = [part["PayloadPart"]["Bytes"].decode() for part in stream]

endpoint.endpoint_config_name = names[1]
endpoint.update(
    retain_all_variant_properties=True,
    deployment_config=DeploymentConfig(blue_green_update_policy=BlueGreenUpdatePolicy(
        traffic_routing_configuration=TrafficRoutingConfig(type="ALL_AT_ONCE", wait_interval_in_seconds=1))),
)
endpoint.wait_for_status("InService", poll=1)
second = predict()
endpoint.update_weights_and_capacities([DesiredWeightAndCapacity(variant_name="all", desired_instance_count=2)])
endpoint.wait_for_status("InService", poll=1)
counts = [variant.current_instance_count for variant in endpoint.refresh().production_variants]

endpoint.delete()
endpoint.wait_for_delete(poll=1)
for each in configs + models:
    each.delete()
answer(first, parts, second, counts)
""",
        names=(name := rig.unique("core"), f"{name}-2"),
        role=rig.role,
        sources=versions(rig),
    )

    first, parts, second, counts = answer
    assert first == {"version": "v1", "echo": {"a": 1}}
    assert "".join(parts) == '{"version":"v1","echo":{"a":1}}'  # of the hook that streams: the other puts spaces
    assert second["version"] == "v2"
    assert counts == [2]


def test_an_asynchronous_endpoint(sdk: Sdk, rig: Rig) -> None:
    answer = sdk(
        """
import time
import boto3
from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.core.shapes import (
    AsyncInferenceConfig, AsyncInferenceOutputConfig, ContainerDefinition, ProductionVariant)

container = ContainerDefinition(image="pytorch", model_data_url=sources[0], environment={})
Model.create(model_name=name, primary_container=container, execution_role_arn=role)
variant = ProductionVariant(
    variant_name="all", model_name=name, instance_type="ml.m5.large", initial_instance_count=1)
EndpointConfig.create(
    endpoint_config_name=name,
    production_variants=[variant],
    async_inference_config=AsyncInferenceConfig(
        output_config=AsyncInferenceOutputConfig(s3_output_path=f"s3://{bucket}/answers")),
)
endpoint = Endpoint.create(endpoint_name=name, endpoint_config_name=name)
endpoint.wait_for_status("InService", poll=1)
reply = endpoint.invoke_async(input_location=source, content_type="application/json", inference_id="id-1")
s3, key = boto3.client("s3"), reply.output_location.removeprefix(f"s3://{bucket}/")
s3.get_waiter("object_exists").wait(Bucket=bucket, Key=key, WaiterConfig={"Delay": 1})
found = json.load(s3.get_object(Bucket=bucket, Key=key)["Body"])
shown = endpoint.refresh().async_inference_config.output_config.s3_output_path
endpoint.delete()
endpoint.wait_for_delete(poll=1)
answer(reply.inference_id, found, shown)
""",
        name=rig.unique("core"),
        role=rig.role,
        bucket=rig.bucket,
        source=rig.upload("sdk-async/in.json", b'{"a": 1}'),
        sources=versions(rig),
    )

    assert answer == ["id-1", {"version": "v1", "echo": {"a": 1}}, f"s3://{rig.bucket}/answers"]


def test_a_model_builder_deploys_to_instances_serverless_and_asynchronously(sdk: Sdk, rig: Rig) -> None:
    answer = sdk(
        """
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.inference_config import AsyncInferenceConfig, ServerlessInferenceConfig
from sagemaker.serve import ModelBuilder

session = Session(default_bucket=bucket)

def deploy(which, version=0, **settings):
    builder = ModelBuilder(
        image_uri="123456789012.dkr.ecr.us-east-1.amazonaws.com/pytorch:latest",
        s3_model_data_url=sources[version],
        role_arn=role,
        sagemaker_session=session,
        env_vars={"SAGEMAKER_PROGRAM": "inference.py"},
    )
    builder.build(model_name=f"{name}-{which}-{version}")
    endpoint = builder.deploy(endpoint_name=f"{name}-{which}", wait=False, **settings)
    endpoint.wait_for_status("InService", poll=1)  # its own wait looks every 30 seconds
    return endpoint

def predict(endpoint):
    return json.load(endpoint.invoke(body=b"1", content_type="application/json").body)["version"]

instances = deploy("instances", instance_type="ml.m5.large", initial_instance_count=1)
serverless = deploy(
    "serverless", inference_config=ServerlessInferenceConfig(memory_size_in_mb=1024, max_concurrency=2))
queued = deploy(
    "async", instance_type="ml.m5.large", initial_instance_count=1,
    inference_config=AsyncInferenceConfig(output_path=f"s3://{bucket}/answers"))
found = [predict(instances), predict(serverless), queued.invoke_async(input_location=source).output_location]
for endpoint in (instances, serverless, queued):
    endpoint.delete()
    endpoint.wait_for_delete(poll=1)
answer(*found)
""",
        name=rig.unique("builder"),
        role=rig.role,
        bucket=rig.bucket,
        source=rig.upload("sdk-async/in.json", b"1"),
        sources=versions(rig),
    )

    instances, serverless, location = answer
    assert (instances, serverless) == ("v1", "v1")
    assert location.startswith(f"s3://{rig.bucket}/answers/")


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


PROCESS = """
import json, pathlib, sys
import helper
print("arguments:", sys.argv[1:], flush=True)
files = sorted(path.name for path in pathlib.Path("/opt/ml/processing/input/data").iterdir())
out = pathlib.Path("/opt/ml/processing/output")
(out / "seen.json").write_text(json.dumps({"files": files, "word": helper.WORD, "loss": 0.25}))
"""
SEARCHED = """
import argparse, os, pathlib, signal
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
parser.add_argument("--depth", type=int, default=0)
parser.add_argument("--kind", default="")
args = parser.parse_known_args()[0]
if args.rate < 0:
    signal.pause()  # until it is stopped
print("loss:", (args.rate - 3) ** 2 + args.depth + (args.kind == "bad"), flush=True)
pathlib.Path(os.environ["SM_MODEL_DIR"], "weights.txt").write_text("trained")
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scripts, as a user has it."""
    folder = tmp_path_factory.mktemp("sources")
    for name, text in {"process.py": PROCESS, "helper.py": "WORD = 'helped'\n", "train.py": SEARCHED}.items():
        (folder / name).write_text(text)
    (folder / "alone.py").write_text(
        f"import sys, types\nsys.modules['helper'] = types.SimpleNamespace(WORD='')\n{PROCESS}"
    )
    return folder


# What both scripts below begin with: a session that calls nobody else, and where data comes from and goes to.
PARTS = """
from sagemaker.core.processing import FrameworkProcessor, ScriptProcessor
from sagemaker.core.shapes import ProcessingInput, ProcessingOutput, ProcessingS3Input, ProcessingS3Output
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, InputData, OutputDataConfig, SourceCode, StoppingCondition

def processor(kind):
    return kind(
        image_uri="python", command=["python3"], role=role, instance_count=1, instance_type="ml.m5.large",
        volume_size_in_gb=1, max_runtime_in_seconds=60, sagemaker_session=session, base_job_name=prefix)

def read_from(uri):
    source = ProcessingS3Input(
        s3_uri=uri, local_path="/opt/ml/processing/input/data", s3_data_type="S3Prefix", s3_input_mode="File")
    return [ProcessingInput(input_name="data", s3_input=source)]

def write_to(uri):
    target = ProcessingS3Output(s3_uri=uri, local_path="/opt/ml/processing/output", s3_upload_mode="EndOfJob")
    return [ProcessingOutput(output_name="out", s3_output=target)]

def trainer(**hyperparameters):
    return ModelTrainer(
        training_image="pytorch",
        source_code=SourceCode(source_dir=folder, entry_script="train.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=1, volume_size_in_gb=1),
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{bucket}/sdk"),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=60),
        hyperparameters=hyperparameters, sagemaker_session=session, role=role, base_job_name=prefix)
"""


def test_processors_a_transformer_and_a_tuner(sdk: Sdk, rig: Rig, sources: Path) -> None:
    prefix = rig.unique("jobs")
    rig.upload(f"{prefix}/in/a.jsonl", b'{"a": 1}\n{"a": 2}\n')

    answer = sdk(
        """
from sagemaker.core.helper.session_helper import Session
session = Session(default_bucket=bucket)
"""
        + PARTS
        + """
from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter, IntegerParameter
from sagemaker.core.resources import Model
from sagemaker.core.shapes import ContainerDefinition
from sagemaker.core.transformer import Transformer
from sagemaker.train.tuner import HyperparameterTuner

home = f"s3://{bucket}/{prefix}"
ended = []
given = dict(inputs=read_from(f"{home}/in"), arguments=["--a", "it's $(here)"], wait=False)
alone, together = {"code": f"{folder}/alone.py"}, {"code": "process.py", "source_dir": folder}
for kind, code in ((ScriptProcessor, alone), (FrameworkProcessor, together)):
    each = processor(kind)
    each.run(**code, **given, outputs=write_to(f"{home}/{kind.__name__}"))
    each.latest_job.wait(poll=1, logs=kind is ScriptProcessor)
    ended.append(each.latest_job.refresh().processing_job_status)

container = ContainerDefinition(image="pytorch", model_data_url=data, environment={"SAGEMAKER_PROGRAM": "inference.py"})
Model.create(model_name=prefix, primary_container=container, execution_role_arn=role)
transformer = Transformer(
    model_name=prefix, instance_count=1, instance_type="ml.m5.large", strategy="SingleRecord", assemble_with="Line",
    accept="application/json", output_path=f"{home}/out", sagemaker_session=session)
transformer.transform(f"{home}/in", content_type="application/json", split_type="Line", wait=False, logs=False)
transformer.latest_transform_job.wait(poll=1)
ended.append(transformer.latest_transform_job.refresh().transform_job_status)

tuner = HyperparameterTuner(
    trainer(),
    "loss",
    {"rate": ContinuousParameter(0.1, 10, "Logarithmic"), "depth": IntegerParameter(1, 5),
     "kind": CategoricalParameter(["good", "bad"])},
    metric_definitions=[{"Name": "loss", "Regex": "loss: ([0-9.]+)"}],
    objective_type="Minimize", strategy="Random", random_seed=3, max_jobs=3, max_parallel_jobs=2)
tuner.tune([InputData(channel_name="train", data_source=f"{home}/in")], job_name=prefix, wait=False)
tuner.latest_tuning_job.wait(poll=1)
found = tuner.describe()
children = [[job.training_job_name, job.tuned_hyper_parameters] for job in found.get_all_training_jobs()]
ended.append(found.hyper_parameter_tuning_job_status)
tuner.max_jobs = 50
tuner.tune([InputData(channel_name="train", data_source=f"{home}/in")], job_name=f"{prefix}-2", wait=False)
tuner.stop_tuning_job()
tuner.latest_tuning_job.wait(poll=1)
ended.append(tuner.describe().hyper_parameter_tuning_job_status)
answer(ended, found.best_training_job.training_job_name, children)
""",
        folder=str(sources),
        prefix=prefix,
        bucket=rig.bucket,
        role=rig.role,
        data=rig.upload_source({"code/inference.py": INFERENCE}),
    )

    ended, best, children = answer
    assert ended == ["Completed", "Completed", "Completed", "Completed", "Stopped"]
    home = f"s3://{rig.bucket}/{prefix}"
    seen = {"files": ["a.jsonl"], "loss": 0.25}
    assert json.loads(rig.download(f"{home}/ScriptProcessor/seen.json")) == {**seen, "word": ""}
    assert json.loads(rig.download(f"{home}/FrameworkProcessor/seen.json")) == {**seen, "word": "helped"}
    assert rig.download(f"{home}/out/a.jsonl.out") == b'{"a": 1}\n{"a": 2}\n'
    loss = {
        name: (float(values["rate"]) - 3) ** 2 + int(values["depth"]) + ("bad" in values["kind"])
        for name, values in children
    }
    assert len(loss) == 3
    assert best == min(loss, key=lambda name: loss[name])


def test_a_pipeline_from_upsert_to_stop(sdk: Sdk, rig: Rig, sources: Path) -> None:
    prefix = rig.unique("pipeline")
    rig.upload(f"{prefix}/in/a.csv", b"1,2\n")

    answer = sdk(
        """
from sagemaker.core.workflow.pipeline_context import PipelineSession
session = PipelineSession(default_bucket=bucket)
"""
        + PARTS
        + """
from sagemaker.core.workflow.conditions import ConditionLessThanOrEqualTo
from sagemaker.core.workflow.functions import Join, JsonGet
from sagemaker.core.workflow.parameters import ParameterFloat, ParameterString
from sagemaker.core.workflow.properties import PropertyFile
from sagemaker.mlops.workflow.condition_step import ConditionStep
from sagemaker.mlops.workflow.fail_step import FailStep
from sagemaker.mlops.workflow.model_step import ModelStep
from sagemaker.mlops.workflow.pipeline import Pipeline
from sagemaker.mlops.workflow.steps import ProcessingStep, TrainingStep
from sagemaker.serve.model_builder import ModelBuilder

rate, limit = ParameterFloat(name="Rate", default_value=3.0), ParameterFloat(name="Limit", default_value=0.5)
where = ParameterString(name="Where", default_value="nowhere")
report = PropertyFile(name="Report", output_name="out", path="seen.json")
prepare = ProcessingStep(
    name="Prepare",
    property_files=[report],
    step_args=processor(ScriptProcessor).run(
        code=f"{folder}/alone.py",
        inputs=read_from(Join(on="/", values=[f"s3://{bucket}", where])),
        outputs=write_to(f"s3://{bucket}/{prefix}/out")))
prepared = prepare.properties.ProcessingOutputConfig.Outputs["out"].S3Output.S3Uri
train = TrainingStep(
    name="Train",
    step_args=trainer(rate=rate).train(input_data_config=[InputData(channel_name="train", data_source=prepared)]))
builder = ModelBuilder(
    image_uri="pytorch", s3_model_data_url=train.properties.ModelArtifacts.S3ModelArtifacts, role_arn=role,
    sagemaker_session=session)
register = ModelStep(
    name="Register",
    step_args=builder.register(
        content_types=["application/json"], response_types=["application/json"],
        inference_instances=["ml.m5.large"], transform_instances=["ml.m5.large"],
        model_package_group_name=prefix, approval_status="Approved"))
check = ConditionStep(
    name="Check",
    conditions=[ConditionLessThanOrEqualTo(
        left=JsonGet(step_name="Prepare", property_file=report, json_path="loss"), right=limit)],
    if_steps=[register],
    else_steps=[FailStep(name="TooBad", error_message=Join(on=" ", values=["loss over", limit]))])
pipeline = Pipeline(
    name=prefix, parameters=[rate, limit, where], steps=[prepare, train, check], sagemaker_session=session)
pipeline.upsert(role_arn=role)
pipeline.upsert(role_arn=role, tags=[{"Key": "team", "Value": "vision"}])

def run(**parameters):
    execution = pipeline.start(parameters={"Where": f"{prefix}/in", **parameters})
    try:
        execution.wait(delay=1, max_attempts=60)
    except Exception as error:  # of botocore's waiter, when it fails
        print(error)
    steps = {step["StepName"]: [step["StepStatus"], step.get("FailureReason")] for step in execution.list_steps()}
    given = {each["Name"]: each["Value"] for each in execution.list_parameters()["PipelineParameters"]}
    return execution.describe()["PipelineExecutionStatus"], steps, given["Limit"]

good, bad = run(), run(Limit=0.1)
stopped = pipeline.start(parameters={"Where": f"{prefix}/in", "Rate": -1.0})
stopped.stop()
while stopped.describe()["PipelineExecutionStatus"] == "Stopping":
    try:
        stopped.wait(delay=1, max_attempts=1)  # its waiter does not know Stopped
    except Exception as error:
        print(error)
listed = pipeline.list_executions()["PipelineExecutionSummaries"]
pipeline.delete()
answer(good, bad, [each["PipelineExecutionStatus"] for each in listed])
""",
        folder=str(sources),
        prefix=prefix,
        bucket=rig.bucket,
        role=rig.role,
    )

    good, bad, listed = answer
    succeeded = ["Succeeded", None]
    assert good == ["Succeeded", dict.fromkeys(("Prepare", "Train", "Check", "Register"), succeeded), "0.5"]
    steps = {**dict.fromkeys(("Prepare", "Train", "Check"), succeeded), "TooBad": ["Failed", "loss over 0.1"]}
    assert bad == ["Failed", steps, "0.1"]
    assert listed == ["Stopped", "Failed", "Succeeded"]
    [package] = rig.client("sagemaker").list_model_packages(ModelPackageGroupName=prefix)["ModelPackageSummaryList"]
    assert package["ModelApprovalStatus"] == "Approved"
