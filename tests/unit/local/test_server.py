"""The HTTP side: connections, errors in the client's own protocol, and an end that leaves nothing."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.unit.local.identity import living
from windlass.errors import InvalidInput
from windlass.local import LocalCloud, LocalCloudError
from windlass.local.iam.authorizer import Authorizer
from windlass.local.server import Application, _HttpServer


def echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answers with the path and the body, and as the path asks."""
    path = environ["PATH_INFO"]
    if path == "/unread":
        start_response("200 OK", [])
        return [b"unread"]
    body = environ["wsgi.input"].read()
    if path == "/stream":
        start_response("200 OK", [])
        return iter([b"one,", b"two,", b"three"])
    if path == "/break":
        start_response("200 OK", [])
        return broken()
    start_response("200 OK", [("X-Length", str(len(body)))])
    return [path.encode(), b" ", body[:20]]


def broken() -> Iterator[bytes]:
    yield b"begun"
    raise ValueError("half way")


@pytest.fixture
def port() -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    server = _HttpServer("127.0.0.1", listener, echo)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def connection(port: int) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    yield connection
    connection.close()


def ask(connection: http.client.HTTPConnection, path: str, body: Any = None, **headers: str) -> bytes:
    connection.request("POST", path, body, headers)
    return connection.getresponse().read()


class TestConnections:
    def test_one_connection_carries_many_requests(self, connection: http.client.HTTPConnection) -> None:
        assert ask(connection, "/a", b"1") == b"/a 1"
        first = connection.sock

        assert [ask(connection, "/b", b"2") for _ in range(3)] == [b"/b 2"] * 3
        assert connection.sock is first

    def test_a_body_that_nobody_read_does_not_spoil_the_next_request(
        self, connection: http.client.HTTPConnection
    ) -> None:
        assert ask(connection, "/unread", b"x" * 100_000) == b"unread"

        assert ask(connection, "/next", b"y") == b"/next y"

    def test_an_answer_without_length_streams_and_keeps_the_connection(
        self, connection: http.client.HTTPConnection
    ) -> None:
        assert ask(connection, "/stream", b"") == b"one,two,three"
        assert ask(connection, "/next", b"y") == b"/next y"

    def test_a_chunked_request_arrives_whole(self, connection: http.client.HTTPConnection) -> None:
        assert ask(connection, "/chunked", iter([b"one", b"two"])) == b"/chunked onetwo"

    def test_an_answer_that_breaks_off_is_seen_as_broken(self, connection: http.client.HTTPConnection) -> None:
        with pytest.raises(http.client.IncompleteRead):
            ask(connection, "/break", b"")

    def test_a_client_that_asks_first_is_told_to_go_on(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(b"PUT /big HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"abc")
            assert b"200 OK" in sock.recv(1000)


def answer(cloud: Any, **environ: Any) -> tuple[int, dict[str, str], bytes]:
    """What the application answers to a request."""
    got: list[Any] = []
    application = Application(cloud, lambda: None)
    base = {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "HTTP_HOST": "127.0.0.1:4566"}
    body = b"".join(application({**base, **environ}, lambda *given: got.append(given)))
    return int(got[0][0].split()[0]), {name.lower(): value for name, value in got[0][1]}, body


def scope(service: str) -> str:
    return f"AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/{service}/aws4_request, SignedHeaders=host, Signature=x"


class TestErrors:
    @pytest.fixture
    def failing(self) -> Any:
        def invoke(environ: Any, start_response: Any) -> Any:
            raise RuntimeError("a <bug>")

        return SimpleNamespace(hosting=SimpleNamespace(invoke=invoke), authorizer=Authorizer(enforce=False))

    PATH = "/endpoints/any/invocations"

    def test_a_bug_is_json_to_a_json_client(self, failing: Any) -> None:
        status, headers, body = answer(
            failing, PATH_INFO=self.PATH, HTTP_AUTHORIZATION=scope("sagemaker"), HTTP_X_AMZ_TARGET="SageMaker.Do"
        )

        assert status == 500
        assert headers["x-amzn-errortype"] == json.loads(body)["__type"] == "InternalFailure"
        assert "SageMaker.Do failed inside the local cloud: RuntimeError: a <bug>" in json.loads(body)["message"]

    @pytest.mark.parametrize(
        ("service", "kind"), [("s3", ""), ("sns", "application/x-www-form-urlencoded; charset=utf-8")]
    )
    def test_a_bug_is_xml_to_an_xml_client(self, failing: Any, service: str, kind: str) -> None:
        status, _, body = answer(failing, PATH_INFO=self.PATH, HTTP_AUTHORIZATION=scope(service), CONTENT_TYPE=kind)

        assert status == 500
        assert b"<Code>InternalFailure</Code>" in body
        assert b"a &lt;bug&gt;" in body

    def test_a_bug_is_cbor_to_a_cbor_client(self, failing: Any) -> None:
        _, headers, body = answer(
            failing, PATH_INFO=self.PATH, HTTP_AUTHORIZATION=scope("monitoring"), HTTP_SMITHY_PROTOCOL="rpc-v2-cbor"
        )

        assert headers["content-type"] == "application/cbor"
        assert body.startswith(b"\xa2")
        assert b"InternalFailure" in body

    @pytest.mark.parametrize(
        "headers",
        [
            {"HTTP_HOST": "evil.example:4566"},
            {"HTTP_ORIGIN": "https://evil.example"},
            {"HTTP_ORIGIN": "null"},
        ],
    )
    def test_a_web_page_is_refused(self, failing: Any, headers: dict[str, str]) -> None:
        status, _, body = answer(failing, PATH_INFO=self.PATH, **headers)

        assert status == 403
        assert b"does not answer" in body

    @pytest.mark.parametrize("host", ["127.0.0.1:4566", "localhost", "bucket.localhost:4566", "[::1]:4566", "[::1]"])
    def test_local_names_are_answered(self, failing: Any, host: str) -> None:
        assert answer(failing, PATH_INFO=self.PATH, HTTP_HOST=host)[0] == 500


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    with LocalCloud.up(tmp_path_factory.mktemp("cloud"), lifeline=True) as cloud:
        yield cloud


def client(cloud: LocalCloud, service: str) -> Any:
    return boto3.client(
        service, endpoint_url=cloud.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )


class TestWhatIsNotImplemented:
    @pytest.mark.parametrize(
        ("service", "operation", "arguments"),
        [
            ("sagemaker", "create_cluster", {"ClusterName": "x"}),
            ("sagemaker", "list_auto_ml_jobs", {}),
            ("codebuild", "batch_get_fleets", {"names": ["x"]}),
            ("sns", "create_sms_sandbox_phone_number", {"PhoneNumber": "+1"}),
            ("s3", "get_bucket_analytics_configuration", {"Bucket": "x", "Id": "y"}),
        ],
    )
    def test_is_refused_by_name_and_not_retried(
        self, cloud: LocalCloud, service: str, operation: str, arguments: dict[str, Any]
    ) -> None:
        aws = client(cloud, service)

        with pytest.raises(ClientError) as refused:
            getattr(aws, operation)(**arguments)

        aws.close()
        answer = refused.value.response
        assert 400 <= answer["ResponseMetadata"]["HTTPStatusCode"] < 500
        assert answer["ResponseMetadata"]["RetryAttempts"] == 0
        if service in ("sagemaker", "codebuild", "sns"):
            assert "does not implement" in answer["Error"]["Message"]


class TestRegistry:
    def test_keeps_what_it_is_given(self, cloud: LocalCloud) -> None:
        aws = client(cloud, "sagemaker")
        group = aws.create_model_package_group(
            ModelPackageGroupName="digits", ModelPackageGroupDescription="0 to 9", Tags=[{"Key": "team", "Value": "a"}]
        )["ModelPackageGroupArn"]
        quality = {"ModelQuality": {"Statistics": {"ContentType": "application/json", "S3Uri": "s3://b/e.json"}}}
        container = {"Image": "image", "ModelDataUrl": "s3://b/model.tar.gz", "Environment": {"A": "1"}}
        asked = {
            "ModelPackageGroupName": "digits",
            "InferenceSpecification": {"Containers": [container], "SupportedContentTypes": ["application/json"]},
            "ModelMetrics": quality,
            "CustomerMetadataProperties": {"accuracy": "0.98", "old": "x"},
            "MetadataProperties": {"CommitId": "abc"},
        }

        first = aws.create_model_package(**asked)["ModelPackageArn"]
        second = aws.create_model_package(**asked, ModelApprovalStatus="Approved")["ModelPackageArn"]
        aws.update_model_package(
            ModelPackageArn=first,
            ModelApprovalStatus="Approved",
            ApprovalDescription="good",
            CustomerMetadataProperties={"new": "y"},
            CustomerMetadataPropertiesToRemove=["old"],
        )
        aws.update_model_package(ModelPackageArn=first, CustomerMetadataProperties={"newer": "z"})

        described = aws.describe_model_package(ModelPackageName=first)
        assert (first.rsplit("/", 1)[1], second.rsplit("/", 1)[1]) == ("1", "2")
        assert described["ModelMetrics"] == quality
        assert described["MetadataProperties"] == {"CommitId": "abc"}
        assert described["InferenceSpecification"]["Containers"][0]["Environment"] == {"A": "1"}
        assert (described["ModelApprovalStatus"], described["ApprovalDescription"]) == ("Approved", "good")
        assert described["CustomerMetadataProperties"] == {"accuracy": "0.98", "new": "y", "newer": "z"}
        assert aws.describe_model_package_group(ModelPackageGroupName=group)["ModelPackageGroupName"] == "digits"
        assert aws.list_tags(ResourceArn=group)["Tags"] == [{"Key": "team", "Value": "a"}]
        aws.add_tags(ResourceArn=first, Tags=[{"Key": "k", "Value": "v"}, {"Key": "l", "Value": "w"}])
        aws.delete_tags(ResourceArn=first, TagKeys=["l"])
        assert aws.list_tags(ResourceArn=first)["Tags"] == [{"Key": "k", "Value": "v"}]

        # The newest first, and by approval
        listed = aws.list_model_packages(ModelPackageGroupName="digits", SortBy="CreationTime", SortOrder="Descending")
        assert [each["ModelPackageVersion"] for each in listed["ModelPackageSummaryList"]] == [2, 1]
        pending = aws.list_model_packages(ModelPackageGroupName="digits", ModelApprovalStatus="PendingManualApproval")
        assert pending["ModelPackageSummaryList"] == []

        # A number is never used twice, and a group that holds packages stays
        aws.delete_model_package(ModelPackageName=second)
        assert aws.create_model_package(**asked)["ModelPackageArn"].endswith("/3")
        with pytest.raises(ClientError, match="holds model packages"):
            aws.delete_model_package_group(ModelPackageGroupName="digits")
        for arn in (first, f"{first.rsplit('/', 1)[0]}/3"):
            aws.delete_model_package(ModelPackageName=arn)
        aws.delete_model_package_group(ModelPackageGroupName="digits")
        assert aws.list_model_package_groups()["ModelPackageGroupSummaryList"] == []
        aws.close()

    def test_refuses_what_aws_refuses(self, cloud: LocalCloud) -> None:
        aws = client(cloud, "sagemaker")
        aws.create_model_package_group(ModelPackageGroupName="twice")

        for operation, arguments, message in (
            ("create_model_package_group", {"ModelPackageGroupName": "twice"}, "already exists"),
            ("create_model_package", {"ModelPackageGroupName": "nobody"}, "does not exist"),
            ("create_model_package", {}, "Exactly one of"),
            ("describe_model_package", {"ModelPackageName": "nobody/1"}, "does not exist"),
            ("list_tags", {"ResourceArn": "arn:aws:sagemaker:us-east-1:123456789012:model/none"}, "Could not find"),
        ):
            with pytest.raises(ClientError, match=message):
                getattr(aws, operation)(**arguments)
        aws.close()


def read_line(stream: Any) -> str:
    readable, _, _ = select.select([stream], [], [], 60)
    assert readable
    return str(stream.readline())


def ended(pid: int, timeout: float = 15.0) -> bool:
    """Whether a process that is not our child is gone in time."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        select.select([], [], [], 0.02)
    return False


def start_job(cloud: LocalCloud, command: str, **environment: str) -> None:
    """Train with a shell command."""
    s3, iam, sagemaker = (client(cloud, service) for service in ("s3", "iam", "sagemaker"))
    s3.create_bucket(Bucket="bucket")
    trust = {"Statement": {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}}}
    role = iam.create_role(RoleName="role", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    sagemaker.create_training_job(
        TrainingJobName="job",
        RoleArn=role,
        AlgorithmSpecification={
            "TrainingImage": "x",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["/bin/sh", "-c"],
            "ContainerArguments": [command],
        },
        Environment=environment,
        OutputDataConfig={"S3OutputPath": "s3://bucket/out"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 600},
    )
    for aws in (s3, iam, sagemaker):
        aws.close()


class TestLife:
    def test_a_running_one_is_found_refused_a_second_time_and_ended_by_another(self, tmp_path: Path) -> None:
        with LocalCloud.up(tmp_path, lifeline=True) as cloud:
            found = LocalCloud.find(tmp_path)
            assert found is not None
            assert (found.url, found.pid) == (cloud.url, cloud.pid)
            assert found.env["AWS_ENDPOINT_URL"] == cloud.url

            with pytest.raises(InvalidInput, match="runs on the state folder"):
                LocalCloud.up(tmp_path)

        assert LocalCloud.find(tmp_path) is None
        assert not (tmp_path / "cloud.json").exists()

    def test_two_that_start_at_once_on_one_folder_do_not_both_live(self, tmp_path: Path, cloud: LocalCloud) -> None:
        command = [sys.executable, "-m", "windlass.local", "--state", str(cloud.state)]

        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        assert second.returncode == 1
        assert "Another local cloud uses the state folder" in second.stderr

    def test_a_port_that_is_taken_is_an_error_with_its_number(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            with pytest.raises(LocalCloudError, match=f"cannot listen on 127.0.0.1:{port}"):
                LocalCloud.up(tmp_path, port=port)

    def test_a_state_folder_that_cannot_be_used_is_an_error_with_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.sqlite").mkdir()

        with pytest.raises(LocalCloudError, match=f"cannot keep its state in {tmp_path}: unable to open"):
            LocalCloud.up(tmp_path)

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_at_once_with_code_0(self, tmp_path: Path, signum: int) -> None:
        command = [sys.executable, "-m", "windlass.local", "--state", str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as server:
            facts = json.loads(read_line(server.stdout))
            with urllib.request.urlopen(f"{facts['url']}/_windlass/health", timeout=20) as health:
                assert json.load(health)["pid"] == server.pid

            server.send_signal(signum)

            assert server.wait(20) == 0
            with pytest.raises(urllib.error.URLError):
                urllib.request.urlopen(facts["url"], timeout=5)

    def test_it_ends_when_the_process_that_started_it_is_killed(self, tmp_path: Path) -> None:
        starter = (
            "import sys, time; from pathlib import Path; from windlass.local import LocalCloud\n"
            "cloud = LocalCloud.up(Path(sys.argv[1]), lifeline=True); print(cloud.pid, flush=True); time.sleep(600)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", starter, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as parent:
            pid = int(read_line(parent.stdout))

            parent.kill()
            parent.wait()

            assert ended(pid)

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
    def test_sigkill_leaves_no_process_of_a_running_job(self, tmp_path: Path) -> None:
        # Given a cloud that runs a job which ignores SIGTERM and has a child
        with LocalCloud.up(tmp_path, lifeline=True) as cloud:
            pidfile = tmp_path / "pids"
            start_job(
                cloud,
                "trap '' TERM; sleep 600 & NS=$(readlink /proc/self/ns/pid);"
                " echo $NS/$$ $NS/$! > $PIDS.new; mv $PIDS.new $PIDS; wait",
                PIDS=str(pidfile),
            )
            deadline = time.monotonic() + 20
            while not pidfile.exists():
                assert time.monotonic() < deadline
                select.select([], [], [], 0.02)
            processes = pidfile.read_text().split()
            assert len(processes) == 2
            assert all(map(living, processes))

            # When it is killed
            os.kill(cloud.pid, signal.SIGKILL)

            # Then so is what it ran
            deadline = time.monotonic() + 15
            while any(map(living, processes)):
                assert time.monotonic() < deadline

    def test_reset_forgets_everything(self, tmp_path: Path) -> None:
        with LocalCloud.up(tmp_path, lifeline=True) as cloud:
            s3, sagemaker = client(cloud, "s3"), client(cloud, "sagemaker")
            s3.create_bucket(Bucket="bucket")
            sagemaker.create_model_package_group(ModelPackageGroupName="group")

            urllib.request.urlopen(
                urllib.request.Request(f"{cloud.url}/moto-api/reset", method="POST"), timeout=20
            ).close()

            assert s3.list_buckets()["Buckets"] == []
            assert sagemaker.list_model_package_groups()["ModelPackageGroupSummaryList"] == []
            s3.close()
            sagemaker.close()
