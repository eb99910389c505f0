"""Serverless endpoints as boto3 sees them, on a server that was really started."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.cloud.test_hosting import CODE, Workshop, refused, until

# An answer to "wait" comes once a file is there.
WAITING = CODE.replace(
    'if data == "die":',
    """if isinstance(data, dict) and "wait" in data:
        import pathlib, time, uuid
        pathlib.Path(data["wait"], f"waits-{uuid.uuid4()}").touch()
        while not pathlib.Path(data["wait"], "go").exists():
            time.sleep(0.01)
    if data == "die":""",
)


class Serverless(Workshop):
    def open(self, memory_mb: int = 2048, most: int = 2, code: str = WAITING, **more: Any) -> dict[str, Any]:
        return self.create(self.serverless("v1", memory_mb, most, code, **more))

    def serverless(self, version: str, memory_mb: int = 2048, most: int = 2, code: str = WAITING, **more: Any) -> str:
        config = {"MemorySizeInMB": memory_mb, "MaxConcurrency": most, **more}
        name = self.config(version, code)
        self.sagemaker.delete_endpoint_config(EndpointConfigName=name)
        variant = {"VariantName": "main", "ModelName": name, "ServerlessConfig": config}
        self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        return name


@pytest.fixture
def workshop(rig: Any) -> Iterator[Serverless]:
    workshop = Serverless(rig)
    yield workshop
    workshop.close()


def test_a_serverless_endpoint_answers_throttles_and_changes_its_limits(workshop: Serverless, tmp_path: Path) -> None:
    described = workshop.open(most=1)
    assert described["EndpointStatus"] == "InService"
    [summary] = described["ProductionVariants"]
    assert summary["CurrentServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 1}
    assert "CurrentInstanceCount" not in summary
    assert workshop.invoke([1])["Prediction"] == {"version": "v1", "echo": [1]}

    once = client(workshop.rig, retries={"total_max_attempts": 1})
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(workshop.invoke, {"wait": str(tmp_path)})
        until(lambda: list(tmp_path.iterdir()), bool)
        with pytest.raises(ClientError) as throttled:
            once.invoke_endpoint(EndpointName=workshop.endpoint, Body=b"1", ContentType="application/json")
        assert throttled.value.response["Error"]["Code"] == "ThrottlingException"
        assert throttled.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400

        # as many as the new limit says, the second in a new environment
        (tmp_path / "go").touch()
        first.result()
        (tmp_path / "go").unlink()
        change = {"VariantName": "main", "ServerlessUpdateConfig": {"MaxConcurrency": 2}}
        workshop.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=workshop.endpoint, DesiredWeightsAndCapacities=[change]
        )
        [summary] = workshop.settled()["ProductionVariants"]
        assert summary["DesiredServerlessConfig"]["MaxConcurrency"] == 2
        both = [pool.submit(workshop.invoke, {"wait": str(tmp_path)}) for _ in range(2)]
        until(lambda: list(tmp_path.glob("waits-*")), lambda it: len(it) == 3)
        (tmp_path / "go").touch()
        assert [each.result()["Prediction"]["version"] for each in both] == ["v1", "v1"]

    once.close()
    until(lambda: workshop.metric("ModelSetupTime", "Maximum"), lambda it: it is not None and it > 0)
    until(lambda: workshop.metric("MemoryUtilization", "Maximum", namespace="/aws/sagemaker/Endpoints"), bool)
    assert workshop.metric("ServerlessConcurrentExecutionsUtilization", "Maximum") == 100
    until(lambda: workshop.metric("Invocations", "Sum"), lambda it: it == 4)
    setup, overhead = workshop.metric("ModelSetupTime", "Maximum"), workshop.metric("OverheadLatency", "Maximum")
    assert setup is not None
    assert overhead is not None
    assert overhead >= setup  # the cold start is what the service adds


def client(rig: Any, **config: Any) -> Any:
    names = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    names |= {"endpoint_url": "AWS_ENDPOINT_URL", "region_name": "AWS_REGION"}
    given = {name: rig.env[variable] for name, variable in names.items()}
    return boto3.client("sagemaker-runtime", config=Config(**config), **given)


HOARD = """
def model_fn(model_dir):
    return []
def transform_fn(model, body, content_type, accept):
    model.append(bytearray(b"x") * (int(body) << 20))
    return "kept", "text/plain"
"""


def test_memory_is_capped_and_large_bodies_are_refused(workshop: Serverless) -> None:
    workshop.open(memory_mb=1024, code=HOARD)
    assert workshop.runtime.invoke_endpoint(EndpointName=workshop.endpoint, Body=b"10")["Body"].read() == b"kept"

    def hoard() -> str:
        try:
            workshop.runtime.invoke_endpoint(EndpointName=workshop.endpoint, Body=b"1100")
        except workshop.runtime.exceptions.ModelError as error:
            return str(error)
        return ""

    hoard()  # whether this one is answered before it is noticed, or ended

    group = f"/aws/sagemaker/Endpoints/{workshop.endpoint}"
    until(
        lambda: [event["message"] for event in workshop.logs.filter_log_events(logGroupName=group)["events"]],
        lambda lines: any("its MemorySizeInMB is 1.00 GiB" in line for line in lines),
    )
    assert workshop.runtime.invoke_endpoint(EndpointName=workshop.endpoint, Body=b"10")["Body"].read() == b"kept"
    with pytest.raises(ClientError) as large:
        workshop.runtime.invoke_endpoint(EndpointName=workshop.endpoint, Body=b"0" * (4 * 1024 * 1024 + 1))
    assert large.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413


def test_a_serverless_endpoint_is_updated_without_a_lost_request(workshop: Serverless) -> None:
    workshop.open(code=CODE)
    new = workshop.serverless("v2", code=CODE)
    seen: list[str] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            seen.append(workshop.invoke()["Prediction"]["version"])

    caller = threading.Thread(target=load)
    caller.start()
    workshop.update(new)
    described = workshop.settled()
    done.set()
    caller.join()

    assert described["EndpointConfigName"] == new
    assert seen == sorted(seen)
    assert workshop.invoke()["Prediction"]["version"] == "v2"

    # to instances and back
    for version, config in (("v3", workshop.config("v3")), ("v4", workshop.serverless("v4", code=CODE))):
        workshop.update(config)
        [summary] = workshop.settled()["ProductionVariants"]
        assert workshop.invoke()["Prediction"]["version"] == version
        assert ("CurrentInstanceCount" in summary) == (version == "v3")


def test_a_model_that_does_not_load_fails_the_endpoint(workshop: Serverless) -> None:
    described = workshop.open(code="raise RuntimeError('weights of another model')")

    assert described["EndpointStatus"] == "Failed"
    assert "weights of another model" in described["FailureReason"]


@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        ({"MemorySizeInMB": 1536, "MaxConcurrency": 1}, "ValidationException", "1 GB increments"),
        ({"MemorySizeInMB": 8192, "MaxConcurrency": 1}, "ValidationException", "less than or equal to 6144"),
        ({"MemorySizeInMB": 1024, "MaxConcurrency": 201}, "ValidationException", "less than or equal to 200"),
        (
            {"MemorySizeInMB": 1024, "MaxConcurrency": 1, "ProvisionedConcurrency": 2},
            "ValidationException",
            "less than or equal to its MaxConcurrency",
        ),
    ],
)
def test_bad_settings_are_refused(workshop: Serverless, config: dict[str, int], code: str, said: str) -> None:
    name = workshop.config("v1")
    variant = {"VariantName": "main", "ModelName": name, "ServerlessConfig": config}

    got, message = refused(
        lambda: workshop.sagemaker.create_endpoint_config(EndpointConfigName=f"{name}-s", ProductionVariants=[variant])
    )

    assert got == code
    assert said in message


def test_an_instance_count_is_not_for_serverless_and_the_reverse(workshop: Serverless) -> None:
    workshop.open(code=CODE)
    change = [{"VariantName": "main", "DesiredInstanceCount": 2}]

    code, message = refused(
        lambda: workshop.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=workshop.endpoint, DesiredWeightsAndCapacities=change
        )
    )

    assert code == "ValidationException"
    assert "DesiredInstanceCount is not supported" in message
    assert json.dumps(workshop.describe()["ProductionVariants"][0]["DesiredServerlessConfig"])
