"""What a local cloud was told and has done is there again when another server takes over its state folder."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from tests.cloud import test_pipelines as pipelines
from tests.cloud import test_processing as processing
from tests.cloud import test_transform as transform
from tests.cloud import test_tuning as tuning
from tests.cloud.conftest import TRUST, Rig
from tests.cloud.test_asynchronous import Office
from tests.cloud.test_training import SAVE, finish, logged, request
from windlass.local import LocalCloud

if os.name != "posix":
    pytest.skip("a local cloud needs POSIX", allow_module_level=True)

pytestmark = pytest.mark.xdist_group("restart")

INFERENCE = """
import json

def model_fn(folder):
    return open(folder + "/weights.txt").read()

def transform_fn(model, body, content_type, accept):
    return json.dumps({"model": model}), "application/json"
"""


class Machine:
    """One state folder, and the servers that use it one after the other."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self.rig = self._up()
        self.rig.bucket = "kept"
        self.rig.client("s3").create_bucket(Bucket=self.rig.bucket)
        role = self.rig.client("iam").create_role(RoleName="kept", AssumeRolePolicyDocument=json.dumps(TRUST))
        self.rig.role = role["Role"]["Arn"]

    def _up(self) -> Rig:
        cloud = LocalCloud.up(self._state, lifeline=True)
        return Rig(env=cloud.env, cloud=cloud)

    def restart(self, signum: int = signal.SIGTERM) -> Rig:
        """End the server that way, and start another. Returns the rig on the new one."""
        before = self.rig
        assert before.cloud is not None
        if signum == signal.SIGKILL:
            os.kill(before.cloud.pid, signal.SIGKILL)
        before.cloud.stop()
        before.close()
        self.rig = self._up()
        self.rig.bucket, self.rig.role = before.bucket, before.role
        return self.rig

    def close(self) -> None:
        self.rig.close()
        assert self.rig.cloud is not None
        self.rig.cloud.stop()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One for all tests, as a folder in use is: each restart finds what the tests before have left."""
    machine = Machine(tmp_path_factory.mktemp("machine") / "state")
    yield machine
    machine.close()


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """What the condition returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never became true"
    return found


def without_answer(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


def test_objects_and_their_buckets_outlive_a_restart(machine: Machine) -> None:
    s3 = machine.rig.client("s3")
    s3.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket="kept", Key="k", Body=b"1", Metadata={"a": "b"}, Tagging="color=blue")["VersionId"]
    s3.put_object(Bucket="kept", Key="k", Body=b"2")
    s3.put_object(Bucket="kept", Key="gone", Body=b"3")
    s3.delete_object(Bucket="kept", Key="gone")
    upload = {"Bucket": "kept", "Key": "parts"}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
    etag = s3.upload_part(**upload, PartNumber=1, Body=b"part")["ETag"]
    listed = s3.list_object_versions(Bucket="kept")

    s3 = machine.restart().client("s3")

    again = s3.list_object_versions(Bucket="kept")
    assert (again["Versions"], again["DeleteMarkers"]) == (listed["Versions"], listed["DeleteMarkers"])
    old = s3.get_object(Bucket="kept", Key="k", VersionId=first)
    assert (old["Body"].read(), old["Metadata"]) == (b"1", {"a": "b"})
    assert s3.get_object(Bucket="kept", Key="k")["Body"].read() == b"2"
    assert s3.get_object_tagging(Bucket="kept", Key="k", VersionId=first)["TagSet"] == [
        {"Key": "color", "Value": "blue"}
    ]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    assert s3.get_object(Bucket="kept", Key="parts")["Body"].read() == b"part"


def test_a_kill_in_the_middle_of_a_body_leaves_nothing_of_it(machine: Machine) -> None:
    s3 = machine.rig.client("s3")
    s3.put_object(Bucket="kept", Key="old", Body=b"old")
    upload = {"Bucket": "kept", "Key": "half parts"}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
    etag = s3.upload_part(**upload, PartNumber=1, Body=b"first")["ETag"]
    before, size = bodies(machine), 1 << 20
    # Given three bodies of which half has come: of a new object, of one that is there, and of a part
    connections = []
    for url in (
        s3.generate_presigned_url("put_object", Params={"Bucket": "kept", "Key": "half"}),
        s3.generate_presigned_url("put_object", Params={"Bucket": "kept", "Key": "old"}),
        s3.generate_presigned_url("upload_part", Params={**upload, "PartNumber": 2}),
    ):
        where = urlsplit(url)
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=30)
        connection.putrequest("PUT", f"{where.path}?{where.query}")
        connection.putheader("Content-Length", str(2 * size))
        connection.endheaders(b"x" * size)
        connections.append(connection)
    until(lambda: sorted(path.stat().st_size for path in bodies(machine) - before) == [size] * 3)

    s3 = machine.restart(signal.SIGKILL).client("s3")
    for connection in connections:
        connection.close()

    assert bodies(machine) == before
    with pytest.raises(ClientError, match="404"):
        s3.head_object(Bucket="kept", Key="half")
    assert s3.get_object(Bucket="kept", Key="old")["Body"].read() == b"old"
    assert [part["PartNumber"] for part in s3.list_parts(**upload)["Parts"]] == [1]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    assert s3.get_object(Bucket="kept", Key="half parts")["Body"].read() == b"first"


def test_a_kill_after_an_upload_was_completed_or_aborted_brings_it_not_back(machine: Machine) -> None:
    s3 = machine.rig.client("s3")
    ended = []
    for key, end in (("made", s3.complete_multipart_upload), ("aborted", s3.abort_multipart_upload)):
        upload = {"Bucket": "kept", "Key": key}
        upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
        etag = s3.upload_part(**upload, PartNumber=1, Body=b"body")["ETag"]
        parts = {"MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": etag}]}}
        end(**upload, **(parts if key == "made" else {}))
        ended.append(upload)

    s3 = machine.restart(signal.SIGKILL).client("s3")

    for upload in ended:
        with pytest.raises(ClientError, match="NoSuchUpload"):
            s3.abort_multipart_upload(**upload)
    assert s3.get_object(Bucket="kept", Key="made")["Body"].read() == b"body"


def bodies(machine: Machine) -> set[Path]:
    """The files of all objects."""
    assert machine.rig.cloud is not None
    return {path for path in (machine.rig.cloud.state / "s3").rglob("*") if path.is_file()}


def test_a_finished_job_outlives_a_restart_with_its_artifact_metrics_and_logs(machine: Machine) -> None:
    rig = machine.rig
    script = SAVE.format("trained") + "print('loss: 0.25', flush=True)\n"
    definitions = [{"Name": "loss", "Regex": "loss: ([0-9.]+)"}]
    algorithm = {"TrainingImage": "pytorch", "TrainingInputMode": "File", "MetricDefinitions": definitions}
    asked = request(rig, script, AlgorithmSpecification=algorithm, Tags=[{"Key": "team", "Value": "vision"}])
    rig.client("sagemaker").create_training_job(**asked)
    name = asked["TrainingJobName"]
    before = finish(rig, name)
    assert before["TrainingJobStatus"] == "Completed", before.get("FailureReason")

    rig = machine.restart()

    sagemaker = rig.client("sagemaker")
    after = sagemaker.describe_training_job(TrainingJobName=name)
    assert without_answer(after) == without_answer(before)
    assert sagemaker.list_tags(ResourceArn=after["TrainingJobArn"])["Tags"] == asked["Tags"]
    assert len(rig.download(after["ModelArtifacts"]["S3ModelArtifacts"])) > 0
    assert "loss: 0.25" in logged(rig, name)
    now = datetime.now(UTC)
    statistics = rig.client("cloudwatch").get_metric_statistics(
        Namespace="/aws/sagemaker/TrainingJobs",
        MetricName="loss",
        Dimensions=[{"Name": "TrainingJobName", "Value": name}],
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(hours=1),
        Period=3600,
        Statistics=["Maximum"],
    )
    assert [point["Maximum"] for point in statistics["Datapoints"]] == [0.25]
    with pytest.raises(ClientError, match="ResourceInUse"):
        sagemaker.create_training_job(**asked)


def test_a_kill_amid_ten_jobs_loses_none_that_had_finished(machine: Machine) -> None:
    rig = machine.rig
    sagemaker = rig.client("sagemaker")
    source = rig.upload_source(
        {"train.py": SAVE.format("done") + "import time\nif 'hang' in os.environ: time.sleep(600)\n"}
    )
    quick = [_start(rig, source) for _ in range(5)]
    finished = {job: finish(rig, job) for job in quick}
    endless = [_start(rig, source, Environment={"hang": "1"}) for _ in range(5)]
    until(lambda: "Training" in [_secondary(rig, job) for job in endless])
    assert {each["TrainingJobStatus"] for each in finished.values()} == {"Completed"}

    rig = machine.restart(signal.SIGKILL)

    sagemaker = rig.client("sagemaker")
    for job in quick:
        after = sagemaker.describe_training_job(TrainingJobName=job)
        assert without_answer(after) == without_answer(finished[job])
        assert len(rig.download(after["ModelArtifacts"]["S3ModelArtifacts"])) > 0
    for job in endless:
        after = sagemaker.describe_training_job(TrainingJobName=job)
        assert after["TrainingJobStatus"] == after["SecondaryStatus"] == "Failed"
        assert "ended while the training job was running" in after["FailureReason"]
    assert finish(rig, _start(rig, source))["TrainingJobStatus"] == "Completed"


def test_other_jobs_and_pipelines_outlive_a_kill(machine: Machine) -> None:
    rig = machine.rig
    sagemaker = rig.client("sagemaker")
    words = "import sys, time\nprint('words')\n" + "if sys.argv[1:]: time.sleep(600)\n"
    done, cut = processing.start(rig, words), processing.start(rig, words, "hang")
    processing.finish(rig, done)
    data = rig.upload_source({"code/inference.py": transform.CODE})
    sagemaker.create_model(
        ModelName="doubles", ExecutionRoleArn=rig.role, PrimaryContainer={"Image": "image", "ModelDataUrl": data}
    )
    transformed = transform.run(rig, "doubles", {"a.csv": b"1,2"})["TransformJobName"]
    given = tuning.definition(rig, lambda script: rig.upload_source({"train.py": script}))
    search = {"HyperParameterTuningJobConfig": tuning.config(most=2), "TrainingJobDefinition": given}
    tuned = tuning.start(rig, **search, Tags=[{"Key": "a", "Value": "b"}])
    tuning.finish(rig, tuned)
    site = pipelines.Site(rig)
    text = pipelines.definition(site.process("First", words), site.process("Then", words, "hang", DependsOn=["First"]))
    pipeline = site.create(text)
    execution = site.start(pipeline)
    until(lambda: site.steps(execution).get("Then", {}).get("StepStatus") == "Executing")

    def told(rig: Rig) -> list[dict[str, Any]]:
        sagemaker = rig.client("sagemaker")
        answers = [
            sagemaker.describe_processing_job(ProcessingJobName=done),
            sagemaker.describe_transform_job(TransformJobName=transformed),
            sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=tuned),
            sagemaker.list_training_jobs_for_hyper_parameter_tuning_job(HyperParameterTuningJobName=tuned),
            sagemaker.describe_pipeline(PipelineName=pipeline),
        ]
        return [without_answer(answer) for answer in answers]

    before, first = told(rig), site.steps(execution)["First"]

    rig = machine.restart(signal.SIGKILL)
    site = pipelines.Site(rig)

    assert told(rig) == before
    sagemaker = rig.client("sagemaker")
    assert "words" in processing.logged(rig, done)
    for name in (cut, site.steps(execution)["Then"]["Metadata"]["ProcessingJob"]["Arn"].rpartition("/")[2]):
        failed = sagemaker.describe_processing_job(ProcessingJobName=name)
        assert failed["ProcessingJobStatus"] == "Failed"
        assert "ended while the processing job was running" in failed["FailureReason"]
    assert site.describe(execution)["PipelineExecutionStatus"] == "Failed"
    assert site.steps(execution)["First"] == first
    assert site.steps(execution)["Then"]["StepStatus"] == "Failed"
    with pytest.raises(ClientError, match="already exists"):
        sagemaker.create_hyper_parameter_tuning_job(HyperParameterTuningJobName=tuned, **search)
    sagemaker.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=tuned)


def _secondary(rig: Rig, job: str) -> str:
    return str(rig.client("sagemaker").describe_training_job(TrainingJobName=job)["SecondaryStatus"])


def _start(rig: Rig, source: str, **changes: Any) -> str:
    asked = request(rig, "", hyperparameters={"sagemaker_submit_directory": source}, **changes)
    rig.client("sagemaker").create_training_job(**asked)
    return str(asked["TrainingJobName"])


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_an_endpoint_serves_again(machine: Machine, signum: int) -> None:
    rig = machine.rig
    sagemaker, name = rig.client("sagemaker"), f"e-{signum:d}"
    data = rig.upload_source({"weights.txt": "v1", "code/inference.py": INFERENCE})
    container = {"Image": "pytorch", "ModelDataUrl": data, "Environment": {"SAGEMAKER_PROGRAM": "inference.py"}}
    sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=rig.role)
    variant = {"VariantName": "all", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=[{"Key": "a", "Value": "b"}])
    served(rig, name)
    before = sagemaker.describe_endpoint(EndpointName=name)
    sagemaker.delete_model(ModelName=name)

    rig = machine.restart(signum)

    sagemaker = rig.client("sagemaker")
    assert sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] in ("SystemUpdating", "InService")
    assert served(rig, name) == {"model": "v1"}
    after = sagemaker.describe_endpoint(EndpointName=name)
    for member in ("EndpointArn", "EndpointConfigName", "CreationTime"):
        assert after[member] == before[member]
    assert sagemaker.describe_endpoint_config(EndpointConfigName=name)["ProductionVariants"][0]["ModelName"] == name
    assert sagemaker.list_tags(ResourceArn=after["EndpointArn"])["Tags"] == [{"Key": "a", "Value": "b"}]
    with pytest.raises(ClientError, match="Could not find model"):
        sagemaker.describe_model(ModelName=name)


def served(rig: Rig, name: str) -> Any:
    waiter = rig.client("sagemaker").get_waiter("endpoint_in_service")
    waiter.wait(EndpointName=name, WaiterConfig={"Delay": 0.1, "MaxAttempts": 300})
    answer = rig.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=name, Body=b"{}", ContentType="application/json"
    )
    return json.load(answer["Body"])


def test_the_registry_outlives_a_restart(machine: Machine) -> None:
    rig = machine.rig
    sagemaker = rig.client("sagemaker")
    sagemaker.create_model_package_group(ModelPackageGroupName="g")
    specification = {
        "Containers": [{"Image": "pytorch", "ModelDataUrl": rig.upload("m.tar.gz", b"x")}],
        "SupportedContentTypes": ["application/json"],
        "SupportedResponseMIMETypes": ["application/json"],
    }
    versions = [
        sagemaker.create_model_package(ModelPackageGroupName="g", InferenceSpecification=specification)[
            "ModelPackageArn"
        ]
        for _ in range(2)
    ]
    sagemaker.update_model_package(ModelPackageArn=versions[0], ModelApprovalStatus="Approved")
    sagemaker.delete_model_package(ModelPackageName=versions[1])
    before = sagemaker.describe_model_package(ModelPackageName=versions[0])

    sagemaker = machine.restart().client("sagemaker")

    assert without_answer(sagemaker.describe_model_package(ModelPackageName=versions[0])) == without_answer(before)
    third = sagemaker.create_model_package(ModelPackageGroupName="g", InferenceSpecification=specification)
    assert third["ModelPackageArn"].endswith("/3")


def test_an_alarm_keeps_its_state_and_what_it_tells(machine: Machine) -> None:
    rig = machine.rig
    topic = rig.client("sns").create_topic(Name="t")["TopicArn"]
    queue = rig.client("sqs").create_queue(QueueName="q")["QueueUrl"]
    queue_arn = "arn:aws:sqs:us-east-1:123456789012:q"
    rig.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue_arn)
    rig.client("events").put_rule(Name="r", EventPattern='{"source": ["aws.cloudwatch"]}')
    rig.client("cloudwatch").put_metric_alarm(
        AlarmName="a",
        Namespace="N",
        MetricName="M",
        Statistic="Maximum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1.0,
        ComparisonOperator="GreaterThanThreshold",
        AlarmActions=[topic],
        TreatMissingData="ignore",
    )
    rig.client("cloudwatch").set_alarm_state(AlarmName="a", StateValue="ALARM", StateReason="for a test")
    sqs = rig.client("sqs")
    until(
        lambda: (
            sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"][
                "ApproximateNumberOfMessages"
            ]
            == "1"
        )
    )
    before = rig.client("cloudwatch").describe_alarms(AlarmNames=["a"])["MetricAlarms"]

    rig = machine.restart()

    assert rig.client("cloudwatch").describe_alarms(AlarmNames=["a"])["MetricAlarms"] == before
    history = rig.client("cloudwatch").describe_alarm_history(AlarmName="a", HistoryItemType="StateUpdate")
    assert len(history["AlarmHistoryItems"]) == 1
    assert rig.client("events").describe_rule(Name="r")["State"] == "ENABLED"
    sqs = rig.client("sqs")
    url = sqs.get_queue_url(QueueName="q")["QueueUrl"]
    [message] = sqs.receive_message(QueueUrl=url)["Messages"]
    assert json.loads(json.loads(message["Body"])["Message"])["NewStateReason"] == "for a test"
    rig.client("cloudwatch").set_alarm_state(AlarmName="a", StateValue="OK", StateReason="so that it can ring")
    rig.client("cloudwatch").set_alarm_state(AlarmName="a", StateValue="ALARM", StateReason="again")
    until(lambda: sqs.receive_message(QueueUrl=url).get("Messages"))


def test_other_services_outlive_a_restart(machine: Machine) -> None:
    rig = machine.rig
    rig.client("ssm").put_parameter(Name="/a", Value="b", Type="String", Tags=[{"Key": "k", "Value": "v"}])
    key = rig.client("kms").create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    public = rig.client("kms").get_public_key(KeyId=key)["PublicKey"]
    secret = rig.client("kms").create_key()["KeyMetadata"]["KeyId"]
    sealed = rig.client("kms").encrypt(KeyId=secret, Plaintext=b"text")["CiphertextBlob"]
    rig.client("ecr").create_repository(repositoryName="repository")
    rig.client("logs").create_log_group(logGroupName="group")
    resources = {"Queue": {"Type": "AWS::SQS::Queue"}, "Bucket": {"Type": "AWS::S3::Bucket"}}
    outputs = {"Name": {"Value": {"Ref": "Bucket"}}}
    cloudformation = rig.client("cloudformation")
    cloudformation.create_stack(StackName="s", TemplateBody=json.dumps({"Resources": resources, "Outputs": outputs}))
    cloudformation.get_waiter("stack_create_complete").wait(
        StackName="s", WaiterConfig={"Delay": 0.1, "MaxAttempts": 200}
    )
    stack = cloudformation.describe_stacks(StackName="s")["Stacks"]

    rig = machine.restart()

    assert rig.client("ssm").get_parameter(Name="/a")["Parameter"]["Value"] == "b"
    assert rig.client("ssm").list_tags_for_resource(ResourceType="Parameter", ResourceId="/a")["TagList"]
    rig.client("ssm").put_parameter(Name="/new", Value="b", Type="String", Tags=[{"Key": "k", "Value": "v"}])
    assert rig.client("kms").get_public_key(KeyId=key)["PublicKey"] == public
    assert rig.client("kms").decrypt(CiphertextBlob=sealed)["Plaintext"] == b"text"
    assert rig.client("ecr").describe_repositories()["repositories"][0]["repositoryName"] == "repository"
    groups = rig.client("logs").describe_log_groups()["logGroups"]
    assert "group" in [each["logGroupName"] for each in groups]
    cloudformation = rig.client("cloudformation")
    assert cloudformation.describe_stacks(StackName="s")["Stacks"] == stack
    bucket = stack[0]["Outputs"][0]["OutputValue"]
    assert bucket in [each["Name"] for each in rig.client("s3").list_buckets()["Buckets"]]
    cloudformation.delete_stack(StackName="s")
    cloudformation.get_waiter("stack_delete_complete").wait(
        StackName="s", WaiterConfig={"Delay": 0.1, "MaxAttempts": 200}
    )
    assert bucket not in [each["Name"] for each in rig.client("s3").list_buckets()["Buckets"]]


def test_what_a_request_changed_is_soon_safe_from_a_kill(machine: Machine) -> None:
    machine.rig.client("ssm").put_parameter(Name="/soon", Value="b", Type="String")
    saved = machine.rig.cloud.state / "services.pickle"  # type: ignore[union-attr]
    until(lambda: b"/soon" in saved.read_bytes())

    rig = machine.restart(signal.SIGKILL)

    assert rig.client("ssm").get_parameter(Name="/soon")["Parameter"]["Value"] == "b"


def test_state_that_cannot_be_read_is_left_alone(machine: Machine) -> None:
    assert machine.rig.cloud is not None
    state = machine.rig.cloud.state
    machine.rig.cloud.stop()
    saved = (state / "services.pickle").read_bytes()
    (state / "services.pickle").write_bytes(saved[: len(saved) // 2])

    with pytest.raises(Exception, match=r"was written by moto .* cannot read it"):
        LocalCloud.up(state)

    (state / "services.pickle").write_bytes(saved)
    assert machine.restart().client("s3").list_buckets()["Buckets"]


def test_requests_that_wait_for_an_instance_outlive_a_server_that_is_killed(machine: Machine) -> None:
    office = Office(machine.rig)
    office.open()
    office.scale(0)
    accepted = [office.submit(number) for number in range(3)]

    rig = machine.restart(signal.SIGKILL)

    describe, change = rig.client("sagemaker").describe_endpoint, [{"VariantName": "main", "DesiredInstanceCount": 1}]
    until(lambda: describe(EndpointName=office.endpoint)["EndpointStatus"] == "InService")
    rig.client("sagemaker").update_endpoint_weights_and_capacities(
        EndpointName=office.endpoint, DesiredWeightsAndCapacities=change
    )
    for number, each in enumerate(accepted):
        key = each["OutputLocation"].removeprefix(f"s3://{rig.bucket}/")
        rig.client("s3").get_waiter("object_exists").wait(Bucket=rig.bucket, Key=key, WaiterConfig={"Delay": 1})
        assert json.loads(rig.download(each["OutputLocation"]))["echo"] == number
    until(lambda: describe(EndpointName=office.endpoint)["EndpointStatus"] == "InService")
    rig.client("sagemaker").delete_endpoint(EndpointName=office.endpoint)


# The last one: it takes away what the others share.
def test_a_reset_leaves_nothing_for_the_next_server(machine: Machine) -> None:
    rig = machine.rig
    rig.client("s3").put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    for body in (b"1", b"2"):
        rig.client("s3").put_object(Bucket="kept", Key="k", Body=body)
    job = _start(rig, rig.upload_source({"train.py": SAVE.format("x")}))
    finish(rig, job)

    urllib.request.urlopen(
        urllib.request.Request(f"{rig.env['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
    ).close()

    assert rig.cloud is not None
    assert not [path for path in (rig.cloud.state / "s3").rglob("*") if path.is_file()]
    rig = machine.restart()
    assert rig.client("s3").list_buckets()["Buckets"] == []
    assert rig.client("sagemaker").list_training_jobs()["TrainingJobSummaries"] == []
