"""What the local cloud costs: InvokeEndpoint over its model server, and CloudWatch's data plane against plain moto.

    python -m benchmarks.local_cloud

Requests are prepared once, by boto3, and sent again over plain sockets: building and signing them costs a client more than the
server takes to answer, and would hide what is measured.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from benchmarks.harness import Row, compare, main
from windlass.local import LocalCloud

DATA_A_CALL = 500
DATA_TO_READ = 1_000_000
READ_LIMIT_MS = 500
_DAY, _MILLION = 86_400, "Million"
INVOCATIONS_LIMIT = 400
OVERHEAD_LIMIT_MS = 3.0

# The smallest model that can answer: what is left is what the way to it and back costs.
_ECHO = """\
def model_fn(model_dir): return None
def input_fn(body, content_type): return body
def predict_fn(data, model): return data
def output_fn(prediction, accept): return prediction
"""

_PLAIN_MOTO = """\
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def measure(quick: bool) -> list[Row]:
    rounds = 5 if quick else 15
    with tempfile.TemporaryDirectory() as folder, LocalCloud.up(Path(folder) / "state", lifeline=True) as cloud:
        return [*_cloudwatch(cloud, rounds), *_invocations(cloud, 200 if quick else 1000)]


# --- CloudWatch --------------------------------------------------------------------------------------------------------------


def _cloudwatch(cloud: LocalCloud, rounds: int) -> list[Row]:
    now = time.time()
    data = [
        {
            "MetricName": f"Latency{number % 20}",
            "Dimensions": [{"Name": "Host", "Value": f"host-{number % 25}"}, {"Name": "Stage", "Value": "live"}],
            "Value": number * 1.5,
            "Unit": "Milliseconds",
            "Timestamp": now - number,
        }
        for number in range(DATA_A_CALL)
    ]
    with _plain_moto() as moto:
        putters = [
            _time_each(
                url, _prepared(_client("cloudwatch", url), "PutMetricData", Namespace="Bench", MetricData=data), 20
            )
            for url in (cloud.url, moto)
        ]
        put = compare(
            f"PutMetricData of {DATA_A_CALL} datums, p50",
            putters[0],
            putters[1],
            peer_name="plain moto",
            unit="ms",
            bound="<= 0.2",
            rounds=rounds,
        )
    return [put, *_read_a_million(cloud, now, rounds)]


def _write_a_million(cloud: LocalCloud, now: float) -> None:
    """Of one metric, over a day, a thousand a call: as many as a call takes."""
    client, start, step = _client("cloudwatch", cloud.url), now - _DAY, _DAY / DATA_TO_READ
    data = [{"MetricName": _MILLION, "Value": float(number), "Timestamp": start} for number in range(1000)]
    put = _prepared(client, "PutMetricData", Namespace="Bench", MetricData=data[:1])
    connection = http.client.HTTPConnection(urlsplit(cloud.url).netloc, timeout=60)
    headers = {name: value for name, value in put.headers.items() if name.lower() != "content-length"}
    for call in range(DATA_TO_READ // len(data)):
        for number, datum in enumerate(data):
            datum["Timestamp"] = start + (call * len(data) + number) * step
        _send(
            connection,
            replace(put, headers=headers, body=json.dumps({"Namespace": "Bench", "MetricData": data}).encode()),
        )
    connection.close()


def _read_a_million(cloud: LocalCloud, now: float, rounds: int) -> list[Row]:
    """The slowest of all reads each, so the first after the last write too."""
    client = _client("cloudwatch", cloud.url)
    window = {"StartTime": now - _DAY - 60, "EndTime": now + 60}
    asked = {
        statistic: [
            {
                "Id": "m",
                "MetricStat": {
                    "Metric": {"Namespace": "Bench", "MetricName": _MILLION},
                    "Period": 60,
                    "Stat": statistic,
                },
            }
        ]
        for statistic in ("p99", "Average", "SampleCount")
    }
    # Before there is anything to read: what boto3 itself needs for a first call is not the server's.
    reads = {
        name: _prepared(client, "GetMetricData", MetricDataQueries=query, **window) for name, query in asked.items()
    }
    _write_a_million(cloud, now)
    rows = []
    for name in ("p99", "Average"):
        once = _time_each(cloud.url, reads[name], 1)
        slowest = max(once() for _ in range(rounds))
        rows.append(
            Row(f"GetMetricData, {name} over 1,000,000 datums", slowest, READ_LIMIT_MS, "allowed", "ms", "<= 1.0")
        )
    counts = client.get_metric_data(MetricDataQueries=asked["SampleCount"], **window)["MetricDataResults"][0]["Values"]
    # One more than the million: the call that was prepared.
    if sum(counts) != DATA_TO_READ + 1:
        sys.exit(f"The cloud holds {sum(counts):.0f} of the {DATA_TO_READ} datums that were put")
    return rows


@contextlib.contextmanager
def _plain_moto() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", _PLAIN_MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert server.stdout is not None
            lines = iter(server.stdout.readline, b"")
            port = next((int(line) for line in lines if line.strip().isdigit()), None)
            if port is None:
                sys.exit("Plain moto did not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


# --- InvokeEndpoint ----------------------------------------------------------------------------------------------------------


def _invocations(cloud: LocalCloud, number: int) -> list[Row]:
    body = json.dumps({"image": [[0] * 28] * 28}).encode()
    invoke = {"EndpointName": "echo", "ContentType": "application/json", "Body": body}
    _deploy(cloud)
    runtime = _client("sagemaker-runtime", cloud.url)
    answer = runtime.invoke_endpoint(**invoke)["Body"].read()
    if answer != body:
        sys.exit(f"The echo model answered {answer[:200]!r}")
    prepared = _prepared(runtime, "InvokeEndpoint", **invoke)
    through = _time_each(cloud.url, prepared, 1)
    itself = _time_each(
        _model_server(cloud), _Prepared("POST", "/invocations", {"Content-Type": "application/json"}, body), 1
    )
    pairs = [(through(), itself()) for _ in range(number)]
    overhead = statistics.median(way for way, _ in pairs) - statistics.median(model for _, model in pairs)
    rate = _rate(cloud.url, prepared, number)
    return [
        Row("InvokeEndpoint, p50 on top of the model server's", overhead, OVERHEAD_LIMIT_MS, "allowed", "ms", "<= 1.0"),
        Row("InvokeEndpoint, 2 clients at once", rate, INVOCATIONS_LIMIT, "asked for", "per s", ">= 1.0"),
    ]


def _rate(url: str, request: _Prepared, number: int) -> float:
    """Invocations a second of two clients."""
    clients = [threading.Thread(target=_time_each(url, request, number)) for _ in range(2)]
    began = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return 2 * number / (time.perf_counter() - began)


def _deploy(cloud: LocalCloud) -> None:
    iam, s3, sagemaker = (_client(name, cloud.url) for name in ("iam", "s3", "sagemaker"))
    trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName="bench", AssumeRolePolicyDocument=document)["Role"]["Arn"]
    s3.create_bucket(Bucket="bench")
    s3.put_object(Bucket="bench", Key="model.tar.gz", Body=_archive({"code/inference.py": _ECHO}))
    container = {"Image": "pytorch-inference", "ModelDataUrl": "s3://bench/model.tar.gz"}
    sagemaker.create_model(ModelName="echo", ExecutionRoleArn=role, PrimaryContainer=container)
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": "echo",
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    sagemaker.create_endpoint_config(EndpointConfigName="echo", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="echo", EndpointConfigName="echo")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="echo", WaiterConfig={"Delay": 1, "MaxAttempts": 120})


def _archive(files: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


def _model_server(cloud: LocalCloud) -> str:
    """Where the endpoint's only model server listens, from its own environment."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines = (process / "environ").read_bytes().split(b"\0")
            environment = dict(os.fsdecode(line).partition("=")[::2] for line in lines)
            if "SAGEMAKER_BIND_TO_PORT" in environment and environment.get("AWS_ENDPOINT_URL") == cloud.url:
                return f"http://127.0.0.1:{environment['SAGEMAKER_BIND_TO_PORT']}"
    sys.exit("The echo model's server is not among the processes of this machine")


# --- requests ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prepared:
    """A request as it goes over the wire."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


def _client(service: str, url: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="benchmark",
        aws_secret_access_key="benchmark",
        config=Config(retries={"total_max_attempts": 1}, max_pool_connections=4),
    )


def _prepared(client: Any, operation: str, **params: Any) -> _Prepared:
    """What boto3 sends for that call, signed; the call is made once."""
    sent: list[_Prepared] = []

    def keep(request: Any, **_: Any) -> None:
        headers = {
            name: value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()
        }
        sent.append(_Prepared(request.method, urlsplit(request.url).path or "/", headers, request.body))

    name = f"before-send.*.{operation}"
    client.meta.events.register(name, keep)
    try:
        getattr(client, _method(client, operation))(**params)
    finally:
        client.meta.events.unregister(name, keep)
    return sent[0]


def _method(client: Any, operation: str) -> str:
    mapping: Mapping[str, str] = client.meta.method_to_api_mapping
    return next(method for method, name in mapping.items() if name == operation)


def _time_each(url: str, request: _Prepared, number: int) -> Callable[[], float]:
    """Milliseconds of one such request, the median of that many over one kept connection."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)

    def once() -> float:
        taken = []
        for _ in range(number):
            began = time.perf_counter()
            _send(connection, request)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken) * 1000

    return once


def _send(connection: http.client.HTTPConnection, request: _Prepared) -> None:
    connection.request(request.method, request.path, body=request.body, headers=dict(request.headers))
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        sys.exit(f"{request.method} {request.path} was answered {response.status}: {answer[:500]!r}")


if __name__ == "__main__":
    sys.exit(main("local_cloud", measure, packages=["windlass", "moto", "boto3", "numpy"]))
