"""What every kind of job has in common, under conditions that a client cannot bring about."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.local.manual_clock import ManualClock
from tests.unit.local.remembered_events import RememberedEvents
from windlass.local.database import Database
from windlass.local.faults import Fault
from windlass.local.jobs.lifecycle import Failed, Job, Jobs, Stopped, algorithm_error, when

REGION = "us-east-1"


class SmallCloud:
    """As much of a cloud as a job needs that starts no process."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.clock = ManualClock()
        self.events = RememberedEvents()
        self.tags: dict[str, dict[str, str]] = {}
        self.database = Database(state / "state.sqlite")


class Errands(Jobs[Job]):
    """Jobs that wait until they are let go, and end as their request says."""

    kind = "Errand"
    noun = "errand"

    def __init__(self, cloud: SmallCloud, **settings: Any) -> None:
        super().__init__(cloud, **settings)  # type: ignore[arg-type]
        self.let_go = threading.Event()
        self.raised: Exception | None = None

    def check(self, region: str, request: Mapping[str, Any]) -> None:
        if "Bad" in request:
            raise Fault("ValidationException", "Bad is bad.")

    def work(self, job: Job) -> None:
        job.folder.mkdir(parents=True)
        while not self.let_go.wait(0.01):
            if job.stopping.is_set():
                raise Stopped
        if self.raised:
            raise self.raised

    def describe(self, region: str, name: str) -> dict[str, Any]:
        job = self.find(region, name)
        return {
            "ErrandName": job.name,
            "ErrandStatus": job.status,
            "FailureReason": job.failure,
            "CreationTime": when(job.created),
        }

    def summary(self, job: Job) -> dict[str, Any]:
        return self.describe(job.region, job.name)

    def started(self, name: str) -> bool:
        with self.change:
            return self.change.wait_for(lambda: self.find(REGION, name).started is not None, 0.3)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[SmallCloud]:
    cloud = SmallCloud(tmp_path)
    yield cloud
    cloud.database.close()


@pytest.fixture
def errands(cloud: SmallCloud) -> Iterator[Errands]:
    errands = Errands(cloud, slots=1)
    yield errands
    errands.close()


def test_jobs_beyond_the_slots_wait_and_can_be_stopped_there(errands: Errands) -> None:
    for name in ("first", "second", "third"):
        errands.create(REGION, {"ErrandName": name})

    errands.stop(REGION, "second")

    assert errands.wait(REGION, "second", 10) == "Stopped"
    assert not errands.started("third")
    errands.let_go.set()
    assert errands.wait(REGION, "first", 10) == "Completed"
    assert errands.wait(REGION, "third", 10) == "Completed"


@pytest.mark.parametrize(
    ("raised", "status", "reason"),
    [
        (Failed("no good"), "Failed", "no good"),
        (Stopped("too long"), "Stopped", "too long"),
        (
            RuntimeError("a fault of ours"),
            "Failed",
            "InternalServerError: We encountered an internal error. RuntimeError",
        ),
    ],
)
def test_every_end_is_a_state_with_a_reason(errands: Errands, raised: Exception, status: str, reason: str) -> None:
    errands.let_go.set()
    errands.raised = raised

    errands.create(REGION, {"ErrandName": "one"})

    assert errands.wait(REGION, "one", 10) == status
    assert errands.describe(REGION, "one")["FailureReason"].startswith(reason)


def test_nothing_of_a_job_stays_on_the_disk(errands: Errands, cloud: SmallCloud) -> None:
    errands.let_go.set()

    errands.create(REGION, {"ErrandName": "tidy"})

    errands.wait(REGION, "tidy", 10)
    assert not (cloud.state / "errands" / REGION / "tidy").exists()


def test_every_change_of_state_is_an_event_with_times_in_milliseconds(errands: Errands, cloud: SmallCloud) -> None:
    errands.create(REGION, {"ErrandName": "one"})
    errands.stop(REGION, "one")
    errands.wait(REGION, "one", 10)
    errands.close()

    assert [event["detail"]["ErrandStatus"] for event in cloud.events.seen][:2] == ["InProgress", "Stopping"]
    first = cloud.events.seen[0]
    assert first["detail-type"] == "SageMaker Errand State Change"
    assert first["resources"] == [f"arn:aws:sagemaker:{REGION}:123456789012:errand/one"]
    assert first["detail"]["CreationTime"] == int(ManualClock.START * 1000)
    assert "FailureReason" not in first["detail"]


def test_names_are_unique_in_a_region_and_free_after_deletion(errands: Errands) -> None:
    errands.create(REGION, {"ErrandName": "one"})
    errands.create("eu-west-1", {"ErrandName": "one"})
    with pytest.raises(Fault, match="must be unique"):
        errands.create(REGION, {"ErrandName": "ONE"})
    with pytest.raises(Fault, match="can be deleted"):
        errands.delete(REGION, "one")
    with pytest.raises(Fault, match="Bad is bad"):
        errands.create(REGION, {"ErrandName": "two", "Bad": True})

    errands.let_go.set()
    errands.wait(REGION, "one", 10)
    errands.delete(REGION, "one")

    with pytest.raises(Fault, match="Could not find"):
        errands.describe(REGION, "one")
    errands.create(REGION, {"ErrandName": "one"})


def test_reset_ends_and_forgets_every_job(errands: Errands) -> None:
    errands.create(REGION, {"ErrandName": "running"})
    errands.create(REGION, {"ErrandName": "waiting"})

    errands.reset()

    assert errands.list(REGION, {})["ErrandSummaries"] == []


def test_the_next_server_knows_what_has_ended_and_fails_what_has_not(errands: Errands, cloud: SmallCloud) -> None:
    errands.let_go.set()
    errands.create(REGION, {"ErrandName": "ended", "Size": 3})
    errands.create(REGION, {"ErrandName": "deleted"})
    errands.wait(REGION, "deleted", 10)
    errands.delete(REGION, "deleted")
    errands.wait(REGION, "ended", 10)
    errands.let_go.clear()
    errands.create(REGION, {"ErrandName": "running"})
    before = errands.describe(REGION, "ended")
    errands.close()

    later = Errands(cloud)
    later.restore()

    assert later.describe(REGION, "ended") == before
    assert later.find(REGION, "ended").request == {"ErrandName": "ended", "Size": 3}
    assert later.wait(REGION, "running", 0) == "Failed"
    assert "ended while the errand was running" in later.describe(REGION, "running")["FailureReason"]
    assert len(later.list(REGION, {})["ErrandSummaries"]) == 2
    assert cloud.events.seen[-1]["detail"]["ErrandStatus"] == "Failed"


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (
            """start
Traceback (most recent call last):
  File "a.py", line 1
ValueError: first
retry
Traceback (most recent call last):
  File "a.py", line 9
KeyError: 'second'
cleaning up""".splitlines(),
            "KeyError: 'second'\n\nTraceback (most recent call last):\n  File \"a.py\", line 9\nKeyError: 'second'",
        ),
        (["a", "", "b"], "a\nb"),
        ([], ""),
    ],
)
def test_the_last_traceback_stands_with_its_exception_first(lines: list[str], shown: str) -> None:
    assert algorithm_error("", lines, 1) == f"AlgorithmError: {shown}, exit code: 1"


def test_a_failure_says_the_exception_first_and_the_exit_code_last() -> None:
    lines = ["start", "Traceback (most recent call last):", '  File "a.py", line 1', "ValueError: no good"]

    assert algorithm_error("", lines, 1) == (
        "AlgorithmError: ValueError: no good\n\nTraceback (most recent call last):\n"
        '  File "a.py", line 1\nValueError: no good, exit code: 1'
    )
    assert algorithm_error("its own words", lines, -9) == "AlgorithmError: its own words, exit code: 137"
    assert algorithm_error("", ["a", "", "b"], 2) == "AlgorithmError: a\nb, exit code: 2"
    assert len(algorithm_error("x" * 5000, [], 1)) == 1024
