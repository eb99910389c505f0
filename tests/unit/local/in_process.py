"""CloudWatch, EventBridge, SNS and SQS of the local cloud in this process, on a clock that a test moves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from moto.core.base_backend import BackendDict
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.unit.local.manual_clock import ManualClock
from windlass.local.cloudwatch import api as cloudwatch
from windlass.local.cloudwatch.alarms import AlarmEngine
from windlass.local.cloudwatch.metric_store import MetricStore
from windlass.local.events.bus import EventBus

REGION = "us-east-1"


@dataclass
class InProcess:
    """What `register` needs of a cloud, and boto3 clients to it."""

    clock: ManualClock
    metrics: MetricStore
    events: EventBus
    alarms: AlarmEngine
    url: str = ""
    _clients: dict[str, Any] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = boto3.client(
                service,
                endpoint_url=self.url,
                region_name=REGION,
                aws_access_key_id="test",
                aws_secret_access_key="test",
                config=Config(retries={"total_max_attempts": 1}),
            )
        return self._clients[service]

    def tick(self, seconds: float = 0) -> None:
        """Let time pass, evaluate, and deliver what follows."""
        self.alarms.tick(self.clock.advance(seconds))
        assert self.events.drain()

    def queue(self, name: str) -> str:
        """Make an SQS queue; returns its ARN."""
        self.client("sqs").create_queue(QueueName=name)
        return f"arn:aws:sqs:{REGION}:123456789012:{name}"

    def received(self, queue: str) -> list[str]:
        """The bodies of the messages in a queue."""
        sqs = self.client("sqs")
        url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
        return [
            message["Body"] for message in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
        ]


@contextmanager
def in_process(folder: Path) -> Iterator[InProcess]:
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    BackendDict.reset()
    clock = ManualClock()
    metrics, events = MetricStore(folder / "metrics.sqlite", clock), EventBus(clock)
    cloud = InProcess(clock, metrics, events, AlarmEngine(metrics, events, clock))
    cloudwatch.register(cloud)
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    cloud.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cloud
    finally:
        clock.release()
        for client in cloud._clients.values():
            client.close()
        server.shutdown()
        thread.join()
        server.server_close()
        cloud.alarms.close()
        events.close()
        metrics.close()
        BackendDict.reset()
