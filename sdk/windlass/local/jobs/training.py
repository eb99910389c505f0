"""Training jobs: CreateTrainingJob runs a script here, under the container contract, with real states over real time.

    jobs.create("us-east-1", request)        # validates as AWS does, returns the ARN, works on in a thread
    jobs.describe("us-east-1", "digits")     # DescribeTrainingJob's answer
    jobs.interrupt("digits")                 # what the loss of spot capacity is on AWS

Each host of a job has a folder that is its ``/opt/ml``: channels are downloaded there, ``runtime/training.py`` (or the given
ContainerEntrypoint) runs in a container around it, and what is left there goes to S3. What AWS refuses stands in
`training_request.py`, what a job finds in `training_inputs.py`, what it leaves in `training_outputs.py`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windlass.local import storage
from windlass.local.cloudwatch.logs import LogStream, follow
from windlass.local.faults import Fault
from windlass.local.hosting.utilisation import JOBS, Usage
from windlass.local.iam.authorizer import Denied, acting_as, require
from windlass.local.jobs import cluster, environments, training_inputs, training_outputs, training_request
from windlass.local.jobs.channels import UNREADABLE, Pipe
from windlass.local.jobs.cluster import Host
from windlass.local.jobs.environments import Environments
from windlass.local.jobs.lifecycle import (
    INTERRUPTED,
    REASON_CHARACTERS,
    STOP_GRACE_SECONDS,
    TERMINAL,
    Failed,
    Stopped,
    algorithm_error,
    in_event,
    own,
    when,
)
from windlass.local.jobs.metric_definitions import MetricDefinitions
from windlass.local.jobs.quotas import GIB, WATCH_SECONDS
from windlass.local.jobs.training_job import TrainingJob
from windlass.local.listing import select
from windlass.local.processes import Container

if TYPE_CHECKING:
    from windlass.local.cloud import Cloud

log = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
METRIC_NAMESPACE = "/aws/sagemaker/TrainingJobs"
PEER_GRACE_SECONDS = 5.0
"""The same, for the hosts of a job whose fate is sealed by another host."""

# SageMaker's own words for each secondary status.
MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Interrupted": "The job stopped because the managed spot training instances were interrupted.",
    "Restarting": "Starting the training job again after an internal error",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "The job stopped because it exceeded the maximum allowed wait time.",
}


class TrainingJobs:
    """Every training job of one local cloud.

    Args:
        slots: how many run at a time; the others wait as Starting.
        stop_grace_seconds: between SIGTERM and SIGKILL.
        memory_bytes: what each host may use, instead of the memory of its instance type.
        layers: where requirements are installed.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        slots: int | None = None,
        stop_grace_seconds: float = STOP_GRACE_SECONDS,
        memory_bytes: int | None = None,
        layers: Environments | None = None,
    ) -> None:
        self._cloud = cloud
        self._usage = Usage(cloud.metrics, cloud.clock)
        self.slots = slots or os.cpu_count() or 1
        self.stop_grace_seconds = stop_grace_seconds
        self.on_metric: list[Callable[[str, str, str, float], None]] = []  # region, job, metric, value
        self._memory_bytes = memory_bytes
        self._layers = layers or Environments(cloud.keeper)
        self._jobs: dict[tuple[str, str], TrainingJob] = {}
        self._saved = cloud.database.table("training-jobs")
        self._closing = False
        self._waiting: deque[TrainingJob] = deque()
        self._running: dict[str, TrainingJob] = {}
        self._ports: set[int] = set()
        self._created = 0
        self._change = threading.RLock()
        self._said_bare = False

    def restore(self) -> None:
        """Put back the jobs of an earlier server. What it did not finish has failed, or is started again by resume()."""
        for record in self._saved.values():
            region, name = record["region"], record["request"]["TrainingJobName"]
            job = TrainingJob(folder=self._cloud.state / "jobs" / region / name, **record)
            self._jobs[region, name.lower()] = job
            if job.may_retry and not job.request.get("TuningJobArn"):  # a tuning job does not go on
                continue
            if job.status not in TERMINAL:
                self._finish(job, "Failed", "Failed", INTERRUPTED.format("training job"))
            job.done.set()

    def resume(self) -> None:
        """Start the jobs again whose RetryStrategy lets them outlive an earlier server."""
        with self._change:
            for job in self._jobs.values():
                if not job.done.is_set():
                    job.retried += 1
                    self._move(job, "Restarting")
                    self._queue(job)

    def _save(self, job: TrainingJob) -> None:
        """Keep what a later server is to know. Called with every change that a client can see."""
        if not self._closing:  # what happens to a job after that is not its own doing
            self._saved.save(f"{job.region}/{job.name.lower()}", job.record())

    # The operations

    def create(self, region: str, request: Mapping[str, Any]) -> str:
        """CreateTrainingJob. Returns the ARN; raises AWS's own errors."""
        training_request.check(region, request)
        name = request["TrainingJobName"]
        job = TrainingJob(request, region, self._cloud.state / "jobs" / region / name, created=self._now())
        with self._change:
            if (region, name.lower()) in self._jobs:
                raise Fault(
                    "ResourceInUse", f"Training job names must be unique within an AWS account and region: {job.arn}"
                )
            self._jobs[region, name.lower()] = job
            self._queue(job)
        return job.arn

    def _queue(self, job: TrainingJob) -> None:
        self._created += 1
        job.number = self._created
        self._move(job, "Starting")
        self._waiting.append(job)
        if job.wait_limit < math.inf:
            left = max(0.0, job.created + job.wait_limit - self._now())
            job.patience = _later(left, lambda: self._out_of_patience(job))
        self._dispatch()

    def describe(self, region: str, name: str) -> dict[str, Any]:
        """DescribeTrainingJob's answer."""
        with self._change:
            return self._find(region, name).description()

    def list(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListTrainingJobs' answer."""
        with self._change:
            summaries = [job.summary() for (home, _), job in self._jobs.items() if home == region]
        if params.get("WarmPoolStatusEquals") or params.get("TrainingPlanArnEquals"):
            summaries = []  # no job here has a warm pool or a training plan
        page, token = select(summaries, params, name="TrainingJobName", status="TrainingJobStatus")
        return {"TrainingJobSummaries": page, "NextToken": token}

    def stop(self, region: str, name: str) -> None:
        """StopTrainingJob: SIGTERM to the script, SIGKILL after the grace period."""
        with self._change:
            job = self._find(region, name)
            if job.status in TERMINAL:
                raise Fault(
                    "ValidationException",
                    f"The request was rejected because the training job is in status {job.status}.",
                )
            if job.status != "Stopping":
                self._stop(job)

    def delete(self, region: str, name: str) -> None:
        """DeleteTrainingJob: only what is over can be deleted. Its artifacts and logs stay."""
        job = self._find(region, name)
        if job.status not in TERMINAL:
            raise Fault(
                "ResourceInUse",
                f"The request was rejected because the training job is in status {job.status}: only a training job in"
                f" status {', '.join(TERMINAL)} can be deleted.",
            )
        job.done.wait()  # its folder may be that of the next one of this name
        with self._change:
            self._jobs.pop((region, name.lower()), None)
            self._saved.delete(f"{region}/{name.lower()}")

    def interrupt(self, name: str, *, region: str | None = None, capacity_after_seconds: float = 0.0) -> None:
        """Take a job's spot instances away: SIGTERM, Interrupted, and from Starting on again when there is capacity.

        Args:
            region: needed when jobs in two regions have that name.
            capacity_after_seconds: when there are instances again.

        Raises:
            Fault: no such job, or it does not run on spot instances at this moment.
        """
        with self._change:
            found = [job for (home, _), job in self._jobs.items() if job.name == name and region in (None, home)]
            if len(found) != 1:
                where = f" in {region}" if region else "" if not found else ": give the region, as there are several"
                raise Fault("ValidationException", f"Requested resource not found: training job '{name}'{where}.")
            [job] = found
            if not job.spot:
                raise Fault(
                    "ValidationException",
                    f"The training job '{name}' does not run on spot instances. Create it with EnableManagedSpotTraining and"
                    " StoppingCondition.MaxWaitTimeInSeconds.",
                )
            if job.status != "InProgress" or job.secondary != "Training" or job.evicting.is_set():
                raise Fault(
                    "ValidationException",
                    f"The training job '{name}' is {job.secondary}: only while it is Training can it be interrupted.",
                )
            job.capacity_at = time.monotonic() + capacity_after_seconds
            job.evicting.set()
            self._terminate(job)

    def wait(self, region: str, name: str, timeout: float | None) -> str:
        """The job's status once it is over, or after that many seconds."""
        job = self._find(region, name)
        job.done.wait(timeout)
        return job.status

    def reset(self) -> None:
        """End every job at once, and forget all of them."""
        self.close()
        with self._change:
            self._jobs.clear()
            self._closing = False

    def close(self) -> None:
        """End every job at once."""
        with self._change:
            self._closing = True
            self._waiting.clear()
            unfinished = [job for job in self._jobs.values() if not job.done.is_set()]
            for job in unfinished:
                if job.arn not in self._running:
                    self._give_up(job)
                else:
                    job.status, job.kill_at = "Stopping", 0.0
                    job.stopping.set()
                    job.news.set()
        for job in unfinished:
            job.done.wait(5.0)

    # Who runs when

    def _dispatch(self) -> None:
        """Start those that have waited longest, as many as there are slots."""
        with self._change:
            while len(self._running) < self.slots and (job := self._next()):
                self._waiting.remove(job)
                self._running[job.arn] = job
                threading.Thread(target=self._run, args=(job,), name=f"job-{job.name}", daemon=True).start()

    def _next(self) -> TrainingJob | None:
        """The job whose turn it is. One of several hosts waits for the one before it.

        The official SDK's driver has the hosts of every job meet at port 7777, and here all of them share the ports of one
        machine.
        """
        busy = any(job.clustered for job in self._running.values())
        return next((job for job in self._waiting if not (busy and job.clustered)), None)

    def _stop(self, job: TrainingJob, exceeded: str = "") -> None:
        """On to Stopping. A job that only waits has stopped at once."""
        with self._change:
            job.exceeded = exceeded
            job.status = "Stopping"
            self._move(job, "Stopping")
            if job.arn in self._running:
                job.stopping.set()
                self._terminate(job)
            else:
                with contextlib.suppress(ValueError):  # it waits for spot capacity, not for a slot
                    self._waiting.remove(job)
                self._give_up(job)

    def _give_up(self, job: TrainingJob) -> None:
        job.stopping.set()
        self._finish(job, "Stopped", job.exceeded or "Stopped")
        job.done.set()

    def _out_of_patience(self, job: TrainingJob) -> None:
        with self._change:
            if job.status == "InProgress" and job.secondary != "Uploading":
                self._stop(job, "MaxWaitTimeExceeded")

    def _terminate(self, job: TrainingJob) -> None:
        """SIGTERM now, SIGKILL after the grace period."""
        with self._change:
            job.kill_at = time.monotonic() + self.stop_grace_seconds
            for host in job.hosts:
                if host.child:
                    host.child.signal(signal.SIGTERM)
            job.news.set()

    # The life of a job, in its own thread

    def _run(self, job: TrainingJob) -> None:
        with acting_as(job.request["RoleArn"]):
            self._live(job)

    def _live(self, job: TrainingJob) -> None:
        began = time.monotonic()
        evicted = broken = False
        try:
            self._prepare_and_train(job)
            evicted = job.evicting.is_set() and not job.stopping.is_set()
            if not evicted:
                with self._change:
                    self._move(job, "Uploading")
                training_outputs.upload(job)
                job.trained += time.monotonic() - began
                stopped = job.stopping.is_set()
                self._finish(
                    job, "Stopped" if stopped else "Completed", job.exceeded or ("Stopped" if stopped else "Completed")
                )
        except Stopped:
            job.trained += (time.monotonic() - began) if job.started else 0.0
            self._finish(job, "Stopped", job.exceeded or "Stopped")
        except Failed as error:
            job.trained += time.monotonic() - began
            self._finish(job, "Failed", "Failed", str(error))
        except Exception as error:
            log.exception("The training job %s failed inside the local cloud", job.name)
            self._kill(job)
            job.trained += time.monotonic() - began
            broken = job.may_retry
            if not broken:
                reason = f"InternalServerError: We encountered an internal error. {type(error).__name__}: {error}"
                self._finish(job, "Failed", "Failed", reason)
        finally:
            shutil.rmtree(job.folder, ignore_errors=True)
            with self._change:
                self._running.pop(job.arn, None)
                self._ports.discard(job.port)
                job.hosts = []
            if evicted:
                job.trained += time.monotonic() - began
                self._restart(job, "Interrupted")
            elif broken:
                job.retried += 1
                self._restart(job, "Restarting")
            else:
                job.done.set()
            self._dispatch()

    def _restart(self, job: TrainingJob, after: str) -> None:
        """After that secondary status: back to Starting, and into the queue when there is capacity."""

        def requeue() -> None:
            with self._change:
                if not job.done.is_set() and job.status == "InProgress":
                    self._waiting.append(job)
                    self._dispatch()

        with self._change:
            if job.status == "Stopping":  # StopTrainingJob came between
                self._give_up(job)
                return
            self._move(job, after)
            self._move(job, "Starting")
            job.evicting.clear()
            job.kill_at = math.inf
        delay = job.capacity_at - time.monotonic()
        if delay > 0:
            _later(delay, requeue)
        else:
            requeue()

    def _prepare_and_train(self, job: TrainingJob) -> None:
        """All from Downloading to the end of the last host. Raises Failed, Stopped."""
        with self._change:
            if job.stopping.is_set():
                raise Stopped
            job.started = job.started or self._now()
            job.hosts = cluster.plan(job.request["ResourceConfig"], job.folder, most_memory=self._memory_bytes)
            job.port = cluster.free_port(self._ports)
            self._ports.add(job.port)
            self._move(job, "Downloading")
        training_inputs.lay_out(job)
        stamp = int(self._now())
        streams = {
            host.name: LogStream(job.region, LOG_GROUP, f"{job.name}/{host.name}-{stamp}", self._cloud.clock)
            for host in job.hosts
        }
        pipes = training_inputs.fill_channels(job)
        layers = training_inputs.require(job, self._layers, streams[job.hosts[0].name].write)
        checkpoints = training_inputs.follow_checkpoints(job)
        try:
            for pipe in pipes:
                pipe.start()
            self._train(job, streams, layers, pipes)
        finally:
            for pipe in pipes:
                pipe.close()
            if checkpoints:
                try:
                    checkpoints.close()
                except (storage.Missing, OSError) as error:
                    raise Failed(f"ClientError: Checkpoint upload failed: {error}") from error

    def _train(
        self, job: TrainingJob, streams: Mapping[str, LogStream], layers: Sequence[Path], pipes: Sequence[Pipe]
    ) -> None:
        """Run every host to its end. Raises Failed, Stopped."""
        if not self._cloud.keeper.isolation and not self._said_bare:
            self._said_bare = True
            said = (
                f"This machine allows no namespaces: /opt/ml is {job.hosts[0].folder} here, and hosts find each other at"
                " 127.0.0.1, not by name. Read the SM_* variables."
            )
            log.warning(said)
            streams[job.hosts[0].name].write(said)
        readers: deque[threading.Thread] = deque()
        try:
            with self._change:
                if job.stopping.is_set():
                    raise Stopped
                self._move(job, "Training")
            # One by one: if the second cannot be started, the first one's reader is known.
            readers.extend(self._start(job, host, streams[host.name], layers) for host in job.hosts)
            self._oversee(job, pipes)
        finally:
            for host in job.hosts:
                if host.child and host.child.poll() is None:
                    host.child.kill()
                    host.child.wait()
            for reader in readers:
                reader.join(10.0)  # the keeper has killed whoever else held the pipe, so this is its EOF

    def _start(self, job: TrainingJob, host: Host, stream: LogStream, layers: Sequence[Path]) -> threading.Thread:
        """Start one host's process. Returns the thread that reads its log."""
        keeper = self._cloud.keeper
        base = keeper.base(host.folder)
        own = job.folder / f"env-{host.name}"
        self._layers.overlay(own, layers)
        stack = [own, *layers]
        environment = self._environment(job, base)
        environment |= environments.variables(stack, environment) | dict(job.request.get("Environment") or {})
        command = _command(job, environments.python(stack))
        reading, writing = os.pipe()
        try:
            with self._change:
                if job.stopping.is_set():
                    os.close(reading)
                    raise Stopped
                host.child = keeper.start(
                    command,
                    env=environment,
                    cwd=base / "code",
                    output=writing,
                    container=Container(host.folder, hostname=host.name, hosts=job.folder / "hosts"),
                    file_bytes=cluster.volume_gib(job.request["ResourceConfig"]) * GIB,
                )
                self._usage.watch(job.region, JOBS, {"Host": f"{job.name}/{host.name}"}, host.child, host.folder)
                if job.evicting.is_set():
                    host.child.signal(signal.SIGTERM)
        except OSError as error:
            os.close(reading)
            raise Failed(f"AlgorithmError: The container's entrypoint {command} cannot be started: {error}") from error
        finally:
            os.close(writing)
        reader = threading.Thread(
            target=self._read, args=(job, host, stream, reading), name=f"log-{job.name}-{host.name}", daemon=True
        )
        reader.start()
        return reader

    def _read(self, job: TrainingJob, host: Host, stream: LogStream, reading: int) -> None:
        """One host's output to its end, and the news of it."""
        definitions = MetricDefinitions(job.algorithm.get("MetricDefinitions") or [], stream.write)
        follow(reading, lambda line: self._take(job, host, stream, definitions, line))
        assert host.child
        host.child.wait()
        job.news.set()

    def _oversee(self, job: TrainingJob, pipes: Sequence[Pipe]) -> None:
        """Return when every host has ended. Ends all when one fails or a limit is passed. Raises Failed."""
        began = time.monotonic()
        failed: Host | None = None
        verdict = ""
        while any(host.child and host.child.poll() is None for host in job.hosts):
            job.news.wait(WATCH_SECONDS)
            job.news.clear()
            now = time.monotonic()
            if now >= job.kill_at:
                self._kill(job)
            if job.stopping.is_set() or job.evicting.is_set() or failed:
                continue
            failed = next((host for host in job.hosts if host.child and host.child.poll()), None)
            if failed:
                self._end_peers(job)
            elif verdict := cluster.exceeded(job.hosts) or _broken(pipes):
                self._kill(job)
                break
            elif job.trained + now - began > job.runtime_limit:
                self._stop(job, "MaxRuntimeExceeded")
        for host in job.hosts:
            if host.child:
                host.child.wait()
        if not job.stopping.is_set() and not job.evicting.is_set():
            verdict = verdict or _broken(pipes)
        if verdict:
            raise Failed(verdict)
        if not job.stopping.is_set() and not job.evicting.is_set():
            failed = failed or next((host for host in job.hosts if host.child and host.child.poll()), None)
            for host in [failed] if failed else job.hosts:
                self._check_end(job, host)

    def _check_end(self, job: TrainingJob, host: Host) -> None:
        """Raise Failed if that host failed."""
        code = (host.child.poll() if host.child else None) or 0
        failure = host.folder / "output" / "failure"
        wrote = own(failure, host.folder)
        if not code and not wrote:
            return
        text = failure.read_text(encoding="utf-8", errors="replace").strip() if wrote else ""
        if full := host.quota.full():
            text = f"{full} {text}"
        training_outputs.upload_output(job)
        raise Failed(algorithm_error(text, list(host.tail), code))

    def _kill(self, job: TrainingJob) -> None:
        for host in job.hosts:
            if host.child:
                host.child.kill()

    def _end_peers(self, job: TrainingJob) -> None:
        with self._change:
            self._terminate(job)
            job.kill_at = time.monotonic() + min(PEER_GRACE_SECONDS, self.stop_grace_seconds)

    def _take(self, job: TrainingJob, host: Host, stream: LogStream, definitions: MetricDefinitions, line: str) -> None:
        """One line of output: to the log, and through the metric definitions."""
        host.tail.append(line)
        stream.write(line)
        for name, value in definitions.found(line):
            self._measure(job, name, value)

    def _measure(self, job: TrainingJob, name: str, value: float) -> None:
        now = self._now()
        try:
            with acting_as(job.request["RoleArn"]):
                require("cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": METRIC_NAMESPACE})
        except Denied as denial:
            log.warning("The training job %s publishes no metrics: %s", job.name, denial)
        else:
            self._cloud.metrics.put(job.region, METRIC_NAMESPACE, name, {"TrainingJobName": job.name}, value, at=now)
        with self._change:
            job.metrics[name] = {"MetricName": name, "Value": value, "Timestamp": when(now)}
        for listener in self.on_metric:
            listener(job.region, job.name, name, value)

    def _finish(self, job: TrainingJob, status: str, secondary: str, failure: str | None = None) -> None:
        with self._change:
            job.ended = self._now()
            job.failure = failure[:REASON_CHARACTERS] if failure else None
            job.status = status
            self._move(job, secondary)
            job.transitions[-1]["EndTime"] = job.modified
            if job.patience:
                job.patience.cancel()
            self._save(job)

    def _move(self, job: TrainingJob, secondary: str) -> None:
        now = self._now()
        if job.transitions:
            job.transitions[-1]["EndTime"] = now
        job.secondary, job.modified = secondary, now
        job.transitions.append({"Status": secondary, "StartTime": now, "StatusMessage": MESSAGES[secondary]})
        self._save(job)
        self._cloud.events.put(
            job.region,
            {
                "source": "aws.sagemaker",
                "detail-type": "SageMaker Training Job State Change",
                "resources": [job.arn],
                "detail": in_event(self.describe(job.region, job.name)),
            },
        )

    def _environment(self, job: TrainingJob, base: Path) -> dict[str, str]:
        return {
            **self._cloud.process_environment(job.region, job.request["RoleArn"]),
            **environments.pip_settings(),
            "TRAINING_JOB_NAME": job.name,
            "TRAINING_JOB_ARN": job.arn,
            "SAGEMAKER_BASE_DIR": str(base),
            "SAGEMAKER_SUBMIT_DIRECTORY": str(base / "code"),
            "WINDLASS_MASTER_PORT": str(job.port),
        }

    def _find(self, region: str, name: str) -> TrainingJob:
        try:
            return self._jobs[region, name.lower()]
        except KeyError:
            raise Fault("ValidationException", f"Requested resource not found: training job '{name}'.") from None

    def _now(self) -> float:
        return self._cloud.clock.now()


def _broken(pipes: Sequence[Pipe]) -> str:
    """FailureReason of a job of which a channel does not flow; nothing if all do."""
    return next((f"{UNREADABLE.format(pipe.channel)}: {pipe.problem}" for pipe in pipes if pipe.problem), "")


def _command(job: TrainingJob, python: str) -> list[str]:
    if job.algorithm.get("ContainerEntrypoint"):
        return [*job.algorithm["ContainerEntrypoint"], *(job.algorithm.get("ContainerArguments") or [])]
    # -P: a file of the user's source named like one of ours must not take its place.
    return [python, "-P", "-m", "windlass.runtime.training"]


def _later(seconds: float, do: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()
    return timer
