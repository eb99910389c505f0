"""What processing, transform and tuning jobs have in common: a name, states over time, and a thread that does the work.

    class ProcessingJobs(Jobs[ProcessingJob]): ...
    jobs.create("us-east-1", request)        # validates as AWS does, returns the ARN, works on in a thread
    jobs.stop("us-east-1", "clean")          # SIGTERM to its processes, SIGKILL after the grace period
    jobs.wait("us-east-1", "clean", 60)      # its status

A kind of job says in ``check`` what AWS refuses, in ``work`` what happens, and in ``describe`` what is told of it.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from windlass.local import cloud as clouds
from windlass.local.faults import Fault
from windlass.local.hosting.instance import last_traceback
from windlass.local.iam.authorizer import acting_as
from windlass.local.listing import select
from windlass.local.processes import Child

if TYPE_CHECKING:
    from windlass.local.cloud import Cloud

log = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 120.0
"""Between SIGTERM and SIGKILL: what SageMaker documents for the jobs that it stops."""

REASON_CHARACTERS = 1024
TERMINAL = ("Completed", "Failed", "Stopped")
INTERRUPTED = "InternalServerError: The local cloud ended while the {} was running. Create it again under another name."
"""FailureReason of what a server did not live to finish."""


class Failed(Exception):
    """The job ends as Failed, with this FailureReason."""


class Stopped(Exception):
    """The job ends as Stopped; ``str()`` is why, empty when somebody asked for it."""


@dataclass(eq=False)
class Job:
    """One job: what was asked for, and what became of it.

    Attributes:
        folder: its own, removed when it is over.
        stopping: set as soon as it shall end.
        done: set when it is over.
        children: its processes.
    """

    request: Mapping[str, Any]
    region: str
    name: str
    arn: str
    folder: Path
    created: float
    modified: float
    status: str = "InProgress"
    started: float | None = None
    ended: float | None = None
    failure: str | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    children: list[Child] = field(default_factory=list)


SAVED = ("request", "region", "name", "arn", "created", "modified", "status", "started", "ended", "failure")

J = TypeVar("J", bound=Job)


class Jobs(abc.ABC, Generic[J]):
    """All jobs of one kind in one local cloud.

    Attributes:
        kind: as the members of the API have it: ``ProcessingJob`` in ``ProcessingJobName``.
        noun: as AWS's messages have it.
        record: the class of one job.
        saved: what of a job outlives a restart.
        slots: how many run at a time; None for no bound. The others wait.
        memory_bytes: what each host may use, instead of the memory of its instance type.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    record: ClassVar[type[Any]] = Job
    saved: ClassVar[tuple[str, ...]] = SAVED

    def __init__(
        self,
        cloud: Cloud,
        *,
        slots: int | None = os.cpu_count() or 1,
        stop_grace_seconds: float = STOP_GRACE_SECONDS,
        memory_bytes: int | None = None,
    ) -> None:
        self.memory_bytes = memory_bytes
        self.cloud = cloud
        self.slots = slots
        self.stop_grace_seconds = stop_grace_seconds
        self.change = threading.Condition(threading.RLock())
        self._jobs: dict[tuple[str, str], J] = {}
        self._table = cloud.database.table(f"{self._slug}s")
        self._running = 0
        self._closing = False

    def restore(self) -> None:
        """Put back the jobs of an earlier server. What it did not finish has failed."""
        for record in self._table.values():
            job: J = self.record(folder=self._folder(record["region"], record["name"]), **record)
            self._jobs[job.region, job.name.lower()] = job
            job.done.set()
            if job.status not in TERMINAL:
                job.status, job.failure = "Failed", INTERRUPTED.format(self.noun)
                job.ended = job.modified = self.now()
                self.save(job)
                self._announce(job)

    # What a kind of job must say

    @abc.abstractmethod
    def check(self, region: str, request: Mapping[str, Any]) -> None:
        """Raise AWS's own error for a request that its service model allows and the service refuses."""

    @abc.abstractmethod
    def work(self, job: J) -> None:
        """Do it. Raises Failed or Stopped when it does not end well."""

    @abc.abstractmethod
    def describe(self, region: str, name: str) -> dict[str, Any]:
        """The Describe operation's answer."""

    def summary(self, job: J) -> dict[str, Any]:
        """One item of the List operation's answer: what is told of every kind."""
        return {
            f"{self.kind}Name": job.name,
            f"{self.kind}Arn": job.arn,
            f"{self.kind}Status": job.status,
            f"{self.kind.removesuffix('Job')}EndTime": when(job.ended),
            "CreationTime": when(job.created),
            "LastModifiedTime": when(job.modified),
        }

    def interrupt(self, job: J) -> None:
        """Make ``work`` return soon. Called once, when the job is being stopped."""
        with self.change:
            children = list(job.children)
        for child in children:
            terminate(child, self.stop_grace_seconds)

    def abandon(self, job: J) -> None:
        """Make ``work`` return at once: the cloud is being closed."""
        with self.change:
            children = list(job.children)
        for child in children:
            child.kill()

    # The operations

    def create(self, region: str, request: Mapping[str, Any]) -> str:
        """Returns the ARN; raises AWS's own errors."""
        self.check(region, request)
        name = str(request[f"{self.kind}Name"])
        now = self.now()
        arn = f"arn:aws:sagemaker:{region}:{clouds.ACCOUNT}:{self._slug}/{name.lower()}"
        job: J = self.record(request, region, name, arn, self._folder(region, name), created=now, modified=now)
        with self.change:
            if (region, name.lower()) in self._jobs:
                raise Fault(
                    "ResourceInUse",
                    f"{self.noun.capitalize()} names must be unique within an AWS account and region, and a {self.noun} with"
                    f" this name already exists ({arn})",
                )
            self._jobs[region, name.lower()] = job
            self.save(job)
        self._announce(job)
        threading.Thread(target=self._run, args=(job,), name=f"{self._slug}-{name}", daemon=True).start()
        return arn

    def list(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """The List operation's answer."""
        with self.change:
            summaries = [self.summary(job) for job in self.of(region)]
        page, token = select(summaries, params, name=f"{self.kind}Name", status=f"{self.kind}Status")
        return {f"{self.kind}Summaries": page, "NextToken": token}

    def stop(self, region: str, name: str) -> None:
        """The Stop operation: SIGTERM to its processes, SIGKILL after the grace period."""
        with self.change:
            job = self.find(region, name)
            if job.status in TERMINAL:
                raise Fault(
                    "ValidationException",
                    f"The request was rejected because the {self.noun} is in status {job.status}.",
                )
            if job.status == "Stopping":
                return
            job.status, job.modified = "Stopping", self.now()
            job.stopping.set()
            self.save(job)
            self.change.notify_all()
        self._announce(job)
        self.interrupt(job)

    def delete(self, region: str, name: str) -> None:
        """The Delete operation: only what is over can be deleted."""
        with self.change:
            job = self.find(region, name)
            if job.status not in TERMINAL:
                raise Fault(
                    "ResourceInUse",
                    f"The request was rejected because the {self.noun} is in status {job.status}: only a {self.noun} in"
                    f" status {', '.join(TERMINAL)} can be deleted.",
                )
            del self._jobs[region, name.lower()]
            self._table.delete(_key(job))

    def wait(self, region: str, name: str, timeout: float | None) -> str:
        """The job's status once it is over, or after that many seconds."""
        job = self.find(region, name)
        job.done.wait(timeout)
        return job.status

    def reset(self) -> None:
        """End every job at once, and forget all of them."""
        self.close()
        with self.change:
            self._jobs.clear()
            self._closing = False

    def close(self) -> None:
        """End every job at once."""
        with self.change:
            self._closing = True
            unfinished = [job for job in self._jobs.values() if not job.done.is_set()]
            for job in unfinished:
                job.status = "Stopping"
                job.stopping.set()
            self.change.notify_all()
        for job in unfinished:
            self.abandon(job)
        for job in unfinished:
            job.done.wait(5.0)

    # For the kinds of job

    def find(self, region: str, name: str) -> J:
        """The job of that name; raises AWS's error when there is none."""
        try:
            return self._jobs[region, name.lower()]
        except KeyError:
            raise Fault("ValidationException", f"Could not find requested job with name: {name}") from None

    def of(self, region: str) -> Sequence[J]:
        """The jobs of a region."""
        with self.change:
            return [job for (home, _), job in self._jobs.items() if home == region]

    def save(self, job: J) -> None:
        """Keep what a later server is to know. Called with every change that a client can see."""
        known = self._jobs.get((job.region, job.name.lower())) is job
        if known and not self._closing:  # what happens to a job after that is not its own doing
            self._table.save(_key(job), {name: getattr(job, name) for name in self.saved})

    def now(self) -> float:
        return self.cloud.clock.now()

    def _folder(self, region: str, name: str) -> Path:
        return self.cloud.state / f"{self._slug}s" / region / name

    @property
    def _slug(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "-", self.kind).lower()

    # The life of a job, in its own thread

    def _run(self, job: J) -> None:
        with acting_as(self.role(job)):
            self._live(job)

    def role(self, job: J) -> str | None:
        """The ARN of the role whose permissions the job has."""
        arn: str | None = job.request.get("RoleArn")
        return arn

    def _live(self, job: J) -> None:
        status, reason = "Completed", ""
        try:
            with self._slot(job):
                with self.change:
                    job.started = job.modified = self.now()
                    self.save(job)
                self.work(job)
        except Stopped as stopped:
            status, reason = "Stopped", str(stopped)
        except Failed as failed:
            status, reason = "Failed", str(failed)
        except Exception as error:  # a job must end in a state, not in a silent thread
            log.exception("The %s %s failed inside the local cloud", self.noun, job.name)
            status = "Failed"
            reason = f"InternalServerError: We encountered an internal error. {type(error).__name__}: {error}"
        finally:
            shutil.rmtree(job.folder, ignore_errors=True)
            with self.change:
                if job.stopping.is_set() and status != "Stopped":
                    status, reason = "Stopped", ""
                job.ended = job.modified = self.now()
                job.status, job.failure = status, reason[:REASON_CHARACTERS] or None
                self.save(job)
                self.change.notify_all()
            job.done.set()
            self._announce(job)

    @contextlib.contextmanager
    def _slot(self, job: J) -> Iterator[None]:
        with self.change:
            self.change.wait_for(
                lambda: self.slots is None or self._running < self.slots or job.stopping.is_set(),
            )
            if job.stopping.is_set():
                raise Stopped
            self._running += 1
        try:
            yield
        finally:
            with self.change:
                self._running -= 1
                self.change.notify_all()

    def _announce(self, job: J) -> None:
        """Tell EventBridge the state: the Describe answer, with times in milliseconds."""
        try:
            detail = self.describe(job.region, job.name)
        except Fault:
            return  # deleted or reset meanwhile: nobody is left to be told
        self.cloud.events.put(
            job.region,
            {
                "detail-type": f"SageMaker {self.noun.title()} State Change",
                "source": "aws.sagemaker",
                "resources": [job.arn],
                "detail": {**in_event(detail), "Tags": self.cloud.tags.get(job.arn.lower(), {})},
            },
        )


def _key(job: Job) -> str:
    return f"{job.region}/{job.name.lower()}"


def terminate(child: Child, grace_seconds: float) -> None:
    """SIGTERM to the process itself now, SIGKILL to all it started after the grace period."""
    child.signal(signal.SIGTERM)
    killer = threading.Timer(grace_seconds, child.kill)
    killer.daemon = True
    killer.start()


def algorithm_error(said: str, lines: Sequence[str], code: int) -> str:
    """FailureReason of a program that failed: its own words or its last traceback, then its exit code as a shell shows it."""
    end = f", exit code: {code if code >= 0 else 128 - code}"
    text = said.strip()
    if not text:
        block = last_traceback(lines)
        # The exception comes first: only so many characters are kept.
        text = "\n".join([block[-1], "", *block] if block else [line for line in lines if line.strip()][-5:])
    room = REASON_CHARACTERS - len("AlgorithmError: ") - len(end)
    return f"AlgorithmError: {text[:room]}{end}"


def own(path: Path, root: Path) -> bool:
    """Whether that is a file of the job's own folder, and no link to one of the machine's, which no container would have."""
    return path.is_file() and path.resolve().is_relative_to(root.resolve())


def when(seconds: float | None) -> datetime | None:
    """A time as the answers have it."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def in_event(value: Any) -> Any:
    """A Describe answer as an event carries it: without absent members, times in milliseconds."""
    if isinstance(value, Mapping):
        return {name: in_event(member) for name, member in value.items() if member is not None}
    if isinstance(value, list | tuple):
        return [in_event(member) for member in value]
    return int(value.timestamp() * 1000) if isinstance(value, datetime) else value
