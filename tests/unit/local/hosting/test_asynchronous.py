"""Queues of asynchronous requests, before real processes and on a clock that the test moves."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.s3.models import s3_backends

from tests.unit.local.hosting.test_fleet import SERVER, Streams, spec
from tests.unit.local.manual_clock import ManualClock
from windlass.local import storage
from windlass.local.cloud import ACCOUNT
from windlass.local.cloudwatch.metric_store import Metric, MetricStore
from windlass.local.database import Database
from windlass.local.events.bus import Undeliverable
from windlass.local.hosting.asynchronous import Queues, Request
from windlass.local.hosting.fleet import Fleet
from windlass.local.hosting.router import Router
from windlass.local.processes import Keeper

REGION, NAME = "us-east-1", "digits"

# Answers with how many requests it had at once; holds each until `go` lies in its folder, or the body is "quick".
COUNTING = SERVER.replace(
    'if body == b"die":',
    """if body == b"count":
            import pathlib, threading
            with lock:
                running.append(1)
                most = len(running)
                pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"], f"running-{most}").touch()
            while not pathlib.Path(os.environ["GO"]).exists():
                time.sleep(0.01)
            with lock:
                running.pop()
            self.answer(200, str(most).encode())
            return
        if body == b"die":""",
).replace("class Handler", "import threading\nlock, running = threading.Lock(), []\nclass Handler")


class Endpoint:
    def __init__(self) -> None:
        self.router, self.role = Router(), None

    def capture_of(self, fleet: Fleet) -> None:
        return None


class Desk:
    """Queues with what they need, and what came out of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.keeper = folder, ManualClock(), Keeper()
        self.database = Database(folder / "state.sqlite")
        self.metrics = MetricStore(folder / "metrics.sqlite", self.clock)
        self.endpoint: Endpoint | None = Endpoint()
        self.messages: list[dict[str, Any]] = []
        self.came = threading.Condition()
        self.deaf = False
        self.fleets: list[Fleet] = []
        self.queues = self.open()

    def open(self) -> Queues:
        """A server's queues; called again, those of the next server on the same disk."""
        self.queues = Queues(lambda region, name: self.endpoint, self.database, self.metrics, self.clock, self.publish)
        return self.queues

    def publish(self, topic: str, message: str) -> None:
        with self.came:
            self.messages.append(json.loads(message))
            self.came.notify_all()
        if self.deaf:
            raise Undeliverable(f"the topic {topic} does not exist")

    def settled(self, count: int) -> list[dict[str, Any]]:
        """The notifications, when there are so many."""
        with self.came:
            assert self.came.wait_for(lambda: len(self.messages) >= count, 20), self.messages
            return list(self.messages)

    def serve(self, instances: int = 1, **environment: str) -> Fleet:
        """A fleet takes the endpoint's requests."""
        made = spec(code=COUNTING, instances=instances, environment={"PATH": os.defpath, **environment})
        fleet = Fleet(
            "config", [made], self.folder / f"{len(self.fleets)}", keeper=self.keeper, open_log=Streams().open
        )
        self.fleets.append(fleet)
        fleet.start()
        assert self.endpoint
        self.endpoint.router.assign((fleet, 1.0))
        return fleet

    def submit(self, body: str, concurrency: int = 4, **asked: Any) -> Request:
        config = {
            "OutputConfig": {
                "S3OutputPath": "s3://results/out",
                "S3FailurePath": "s3://results/failed",
                "NotificationConfig": {"SuccessTopic": "good", "ErrorTopic": "bad"},
            },
            "ClientConfig": {"MaxConcurrentInvocationsPerInstance": concurrency},
        }
        return self.queues.submit(REGION, NAME, config, {"Body": body.encode(), **asked})

    def metric(self, name: str, **dimensions: str) -> list[float]:
        """Its values, as far as they are written."""
        metric = Metric.of("AWS/SageMaker", name, {"EndpointName": NAME, **dimensions})
        now = self.clock.now()
        return [float(value) for value in self.metrics.read(REGION, metric, now - 3600, now + 60).low]

    def rows(self) -> int:
        return len(self.database.table("async-requests").items())

    def close(self) -> None:
        self.queues.close()
        for fleet in self.fleets:
            fleet.stop(drain_seconds=0, grace_seconds=0)
        self.keeper.close()
        self.database.close()
        self.metrics.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    s3_backends[ACCOUNT]["aws"].create_bucket("results", REGION)
    desk = Desk(tmp_path)
    yield desk
    desk.close()
    s3_backends.reset()


def when(test: Callable[[], Any]) -> Any:
    """What ``test`` gives as soon as it is true: what another process does has no event here."""
    pause = threading.Event()
    for _ in range(2000):
        if result := test():
            return result
        pause.wait(0.01)
    raise AssertionError(test)


def test_a_request_that_waits_too_long_fails_and_the_others_go_on_waiting(desk: Desk) -> None:
    desk.serve(instances=0)
    late = desk.submit("late", RequestTTLSeconds=60)
    desk.submit("patient")

    desk.clock.advance(61)

    [message] = desk.settled(1)
    assert message["invocationStatus"] == "Failed"
    assert "more than its RequestTTLSeconds of 60" in message["failureReason"]
    assert late.failure
    assert b"expired" in storage.read(late.failure)
    when(lambda: desk.metric("ExpiredRequests") == [1])
    assert desk.rows() == 1
    desk.queues.measure(REGION, NAME)
    assert (desk.metric("ApproximateBacklogSize"), desk.metric("ApproximateAgeOfOldestRequest")) == ([1], [61])
    assert desk.metric("HasBacklogWithoutCapacity") == [1]
    assert desk.metric("ApproximateBacklogSizePerInstance") == []


def test_the_next_server_goes_on_with_the_queue(desk: Desk) -> None:
    desk.serve(instances=0)
    accepted = [desk.submit(f"{number}") for number in range(3)]
    desk.queues.close()

    desk.open().restore()
    desk.serve()

    done = [message["inferenceId"] for message in desk.settled(3)]
    assert sorted(done) == sorted(each.inference_id for each in accepted)
    assert all(storage.exists(each.output) for each in accepted)
    when(lambda: desk.rows() == 0)


def test_what_an_instance_had_when_it_was_taken_away_is_asked_again(desk: Desk) -> None:
    first = desk.serve(GO=str(desk.folder / "never"))
    accepted = desk.submit("count")
    when(lambda: list(desk.folder.glob("0/*/*/running-1")))

    first.stop(drain_seconds=0, grace_seconds=0)
    (desk.folder / "go").touch()
    desk.serve(GO=str(desk.folder / "go"))

    [message] = desk.settled(1)
    assert (message["invocationStatus"], message["inferenceId"]) == ("Completed", accepted.inference_id)


@pytest.mark.parametrize("most", [1, 3])
def test_an_instance_gets_as_many_at_once_as_it_may(desk: Desk, most: int) -> None:
    desk.serve(GO=str(desk.folder / "go"))
    accepted = [desk.submit("count", concurrency=most) for _ in range(5)]
    when(lambda: list(desk.folder.glob(f"0/*/*/running-{most}")))
    desk.queues.measure(REGION, NAME)
    assert desk.metric("ApproximateBacklogSizePerInstance") == [5 - most]

    (desk.folder / "go").touch()

    desk.settled(5)
    assert max(int(storage.read(each.output)) for each in accepted) == most


def test_a_model_that_hangs_is_given_up_after_its_timeout(desk: Desk) -> None:
    desk.serve()
    desk.submit("hang", InvocationTimeoutSeconds=1)

    [message] = desk.settled(1)

    assert message["invocationStatus"] == "Failed"
    assert "timed out" in message["failureReason"]


def test_an_answer_is_kept_when_its_topic_is_gone(desk: Desk) -> None:
    desk.deaf = True
    desk.serve()
    accepted = desk.submit("hello")

    desk.settled(1)

    when(lambda: desk.metric("NotificationFailures", VariantName="main") == [1])
    assert storage.exists(accepted.output)
    assert desk.rows() == 0


def test_an_output_bucket_that_is_gone_fails_the_request(desk: Desk) -> None:
    desk.serve(instances=0)
    desk.submit("hello")
    s3_backends[ACCOUNT]["aws"].delete_bucket("results")

    desk.serve()

    [message] = desk.settled(1)
    assert message["failureReason"].startswith("ClientError: Unable to upload the response")
    when(lambda: desk.metric("ResponseUploadFailures", VariantName="main"))


def test_the_queue_goes_with_its_endpoint(desk: Desk) -> None:
    desk.serve(instances=0)
    desk.submit("hello")

    desk.queues.forget(REGION, NAME)

    assert desk.rows() == 0


def test_requests_of_an_endpoint_that_is_no_more_are_not_restored(desk: Desk) -> None:
    desk.serve(instances=0)
    desk.submit("hello")
    desk.queues.close()
    desk.endpoint = None

    desk.open().restore()

    assert desk.rows() == 0
