"""Training jobs: CreateTrainingJob runs a script here, under the container contract, with real states over real time.

    jobs.create("us-east-1", request)        # validates as AWS does, returns the ARN, works on in a thread
    jobs.describe("us-east-1", "digits")     # DescribeTrainingJob's answer
    jobs.interrupt("digits")                 # what the loss of spot capacity is on AWS

Each host of a job has a folder that is its ``/opt/ml``: channels are downloaded there, ``runtime/training.py`` (or the given
ContainerEntrypoint) runs in a container around it, and what is left there goes to S3. What AWS refuses stands in
`training_request.py`, the hosts in `cluster.py`, data in `channels.py`, what a script may import in `environments.py`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import signal
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moto.core.responses import ActionResult, EmptyResult

from windlass import artifact
from windlass.errors import CorruptArtifact
from windlass.local import cloud as clouds
from windlass.local import storage
from windlass.local.cloudwatch.logs import LogStream, follow
from windlass.local.faults import Fault
from windlass.local.hosting.utilisation import JOBS, Usage
from windlass.local.iam.authorizer import Denied, acting_as, require
from windlass.local.jobs import channels, cluster, containers, environments, training_request
from windlass.local.jobs.channels import Pipe, Unreadable
from windlass.local.jobs.checkpoints import Checkpoints
from windlass.local.jobs.cluster import Host
from windlass.local.jobs.environments import Environments, RequirementsFailed
from windlass.local.jobs.lifecycle import (
    INTERRUPTED,
    REASON_CHARACTERS,
    STOP_GRACE_SECONDS,
    TERMINAL,
    Failed,
    Stopped,
    algorithm_error,
    in_event,
    when,
)
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
        """Put back the jobs of an earlier server. What it did not finish has failed."""
        for record in self._saved.values():
            region, name = record["region"], record["request"]["TrainingJobName"]
            job = TrainingJob(folder=self._cloud.state / "jobs" / region / name, **record)
            self._jobs[region, name.lower()] = job
            if job.status not in TERMINAL:
                self._finish(job, "Failed", "Failed", INTERRUPTED.format("training job"))
            job.done.set()

    def _save(self, job: TrainingJob) -> None:
        """Keep what a later server is to know. Called with every change that a client can see."""
        if not self._closing:  # what happens to a job after that is not its own doing
            self._saved.save(f"{job.region}/{job.name.lower()}", job.record())

    # The operations

    def create(self, region: str, request: Mapping[str, Any]) -> str:
        """CreateTrainingJob. Returns the ARN; raises AWS's own errors."""
        training_request.check(request)
        name = request["TrainingJobName"]
        job = TrainingJob(request, region, self._cloud.state / "jobs" / region / name, created=self._now())
        with self._change:
            if (region, name.lower()) in self._jobs:
                raise Fault(
                    "ResourceInUse", f"Training job names must be unique within an AWS account and region: {job.arn}"
                )
            self._jobs[region, name.lower()] = job
            self._created += 1
            job.number = self._created
            self._move(job, "Starting")
            self._waiting.append(job)
            self._dispatch()
        if job.wait_limit < math.inf:
            job.patience = _later(job.wait_limit, lambda: self._out_of_patience(job))
        return job.arn

    def describe(self, region: str, name: str) -> dict[str, Any]:
        """DescribeTrainingJob's answer."""
        with self._change:
            return self._find(region, name).description()

    def list(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListTrainingJobs' answer."""
        with self._change:
            summaries = [job.summary() for (home, _), job in self._jobs.items() if home == region]
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
        evicted = False
        try:
            self._prepare_and_train(job)
            evicted = job.evicting.is_set() and not job.stopping.is_set()
            if not evicted:
                self._upload(job)
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
                self._restart(job)
            else:
                job.done.set()
            self._dispatch()

    def _restart(self, job: TrainingJob) -> None:
        """After an interruption: back to Starting, and into the queue when there is capacity."""

        def requeue() -> None:
            with self._change:
                if not job.done.is_set() and job.status == "InProgress":
                    self._waiting.append(job)
                    self._dispatch()

        with self._change:
            if job.status == "Stopping":  # StopTrainingJob came between
                self._give_up(job)
                return
            self._move(job, "Interrupted")
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
        self._lay_out(job)
        stamp = int(self._now())
        streams = {
            host.name: LogStream(job.region, LOG_GROUP, f"{job.name}/{host.name}-{stamp}", self._cloud.clock)
            for host in job.hosts
        }
        pipes = self._fill_channels(job)
        layers = self._require(job, streams[job.hosts[0].name])
        checkpoints = self._follow_checkpoints(job)
        try:
            for pipe in pipes:
                pipe.start()
            self._train(job, streams, layers)
        finally:
            for pipe in pipes:
                pipe.close()
            if checkpoints:
                try:
                    checkpoints.close()
                except (storage.Missing, OSError) as error:
                    raise Failed(f"ClientError: Checkpoint upload failed: {error}") from error

    def _lay_out(self, job: TrainingJob) -> None:
        """Each host's /opt/ml, with all but its data."""
        shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True)
        (job.folder / "hosts").write_text(cluster.etc_hosts(job.hosts, job.number), encoding="utf-8")
        inputs = {channel["ChannelName"]: channels.config(channel, job.algorithm) for channel in job.channels}
        for host in job.hosts:
            for folder in ("input/config", "input/data", "model", "output/data", "checkpoints", "code"):
                (host.folder / folder).mkdir(parents=True)
            config = {
                "hyperparameters": job.hyperparameters,
                "inputdataconfig": {
                    name: told
                    for name, told in inputs.items()
                    if host in _with_channel(job.hosts, _named(job.channels, name))
                },
                "resourceconfig": cluster.resource_config(job.hosts, host),
            }
            for name, content in config.items():
                path = host.folder / "input" / "config" / f"{name}.json"
                path.write_text(json.dumps(content), encoding="utf-8")
        self._fetch_source(job)

    def _fetch_source(self, job: TrainingJob) -> None:
        """Legacy script mode: the hyperparameter sagemaker_submit_directory names a tar.gz on S3."""
        source = _decoded(job.hyperparameters.get("sagemaker_submit_directory", ""))
        if not source.startswith("s3://"):
            if source and not job.algorithm.get("ContainerEntrypoint"):
                raise Failed(
                    f"ClientError: sagemaker_submit_directory must be an s3:// URI of a tar.gz, not '{source}'"
                )
            return
        archive = job.folder / "source.tar.gz"
        try:
            storage.download(source, archive)
            for host in job.hosts:
                artifact.extract(archive, host.folder / "code")
        except storage.Missing as error:
            raise Failed(
                f"ClientError: {error}, given in the hyperparameter sagemaker_submit_directory. Upload the source there."
            ) from error
        except CorruptArtifact as error:
            raise Failed(
                f"ClientError: The source {source} (sagemaker_submit_directory) cannot be unpacked: {error}"
            ) from error
        finally:
            archive.unlink(missing_ok=True)

    def _fill_channels(self, job: TrainingJob) -> Sequence[Pipe]:
        """Download the data. Returns the channels in Pipe mode, not yet flowing."""
        pipes = []
        for channel in job.channels:
            name = channel["ChannelName"]
            receivers = _with_channel(job.hosts, channel)
            try:
                found = channels.members(channel)
                for host in receivers:
                    part = channels.share(found, channel, host.name, [other.name for other in receivers])
                    path = host.folder / "input" / "data" / name
                    if channels.mode(channel, job.algorithm) == "Pipe":
                        pipes.append(Pipe(channel, part, path, job.folder / "pipes" / host.name / name))
                    else:
                        channels.fill(part, path)
                    if job.stopping.is_set():
                        raise Stopped
            except (Unreadable, OSError) as error:
                raise Failed(f"ClientError: Data download failed for channel '{name}': {error}") from error
        return pipes

    def _require(self, job: TrainingJob, stream: LogStream) -> Sequence[Path]:
        """The layer with what requirements.txt of the source asks for, if there is one."""
        own = bool(job.algorithm.get("ContainerEntrypoint"))
        source = job.hosts[0].folder / ("input/data/code" if own else "code")
        try:
            layer = self._layers.layer(
                source / "requirements.txt", say=stream.write, cancelled=lambda: job.stopping.is_set()
            )
        except RequirementsFailed as error:
            if job.stopping.is_set():
                raise Stopped from error
            if own:
                return []  # its own entrypoint installs them, or does without: we only meant to save it the time
            reason = f"AlgorithmError: InstallRequirementsError: requirements.txt cannot be installed:\n{error}"
            raise Failed(reason) from error
        return [layer] if layer else []

    def _follow_checkpoints(self, job: TrainingJob) -> Checkpoints | None:
        config = job.request.get("CheckpointConfig")
        if not config:
            return None
        inside = Path(config.get("LocalPath", "/opt/ml/checkpoints")).relative_to("/opt/ml")
        folders = [host.folder / inside for host in job.hosts]
        checkpoints = Checkpoints(containers.s3_uri(config["S3Uri"]), folders, job.folder)
        try:
            checkpoints.restore()
        except (storage.Missing, OSError) as error:
            raise Failed(f"ClientError: Checkpoint download failed: {error}") from error
        checkpoints.start()
        return checkpoints

    def _train(self, job: TrainingJob, streams: Mapping[str, LogStream], layers: Sequence[Path]) -> None:
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
            self._oversee(job)
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
        environments.overlay(own, layers)
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
        follow(reading, lambda line: self._take(job, host, stream, line))
        assert host.child
        host.child.wait()
        job.news.set()

    def _oversee(self, job: TrainingJob) -> None:
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
            elif verdict := cluster.exceeded(job.hosts):
                self._kill(job)
                break
            elif job.trained + now - began > job.runtime_limit:
                self._stop(job, "MaxRuntimeExceeded")
        for host in job.hosts:
            if host.child:
                host.child.wait()
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
        if not code and not failure.exists():
            return
        text = failure.read_text(encoding="utf-8", errors="replace").strip() if failure.exists() else ""
        if full := host.quota.full():
            text = f"{full} {text}"
        self._upload_output(job)
        raise Failed(algorithm_error(text, list(host.tail), code))

    def _kill(self, job: TrainingJob) -> None:
        for host in job.hosts:
            if host.child:
                host.child.kill()

    def _end_peers(self, job: TrainingJob) -> None:
        with self._change:
            self._terminate(job)
            job.kill_at = time.monotonic() + min(PEER_GRACE_SECONDS, self.stop_grace_seconds)

    def _take(self, job: TrainingJob, host: Host, stream: LogStream, line: str) -> None:
        """One line of output: to the log, and through the metric definitions."""
        host.tail.append(line)
        stream.write(line)
        for definition in job.algorithm.get("MetricDefinitions") or []:
            for found in re.finditer(definition["Regex"], line):
                try:
                    value = float(found[1])
                except (TypeError, ValueError):
                    continue  # the regex matched something else than a number
                if math.isfinite(value):
                    self._measure(job, definition["Name"], value)

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

    def _upload(self, job: TrainingJob) -> None:
        """Send the results to S3. Raises Failed."""
        with self._change:
            self._move(job, "Uploading")
        self._upload_output(job)
        model = _merged([host.folder / "model" for host in job.hosts], job.folder / "model")
        try:
            if job.uncompressed:
                for path in sorted(path for path in model.rglob("*") if path.is_file()):
                    storage.write(f"{job.artifact}{path.relative_to(model).as_posix()}", path)
            else:
                storage.write(job.artifact, _archive(model, job.folder / "model.tar.gz"))
        except (storage.Missing, OSError) as error:
            raise Failed(f"ClientError: Artifact upload failed: {error}") from error

    def _upload_output(self, job: TrainingJob) -> None:
        try:
            data = _merged([host.folder / "output" / "data" for host in job.hosts], job.folder / "output")
            if data.is_dir() and any(data.iterdir()):
                storage.write(f"{job.output}/output.tar.gz", _archive(data, job.folder / "output.tar.gz"))
        except (storage.Missing, OSError) as error:
            raise Failed(f"ClientError: Artifact upload failed: {error}") from error

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


class TrainingOperations:
    """The training jobs' part of the SageMaker API."""

    params: Any
    region: str

    def create_training_job(self) -> ActionResult:
        return ActionResult({"TrainingJobArn": clouds.current().jobs.create(self.region, self.params)})

    def describe_training_job(self) -> ActionResult:
        return ActionResult(clouds.current().jobs.describe(self.region, self.params["TrainingJobName"]))

    def list_training_jobs(self) -> ActionResult:
        return ActionResult(clouds.current().jobs.list(self.region, self.params))

    def stop_training_job(self) -> ActionResult:
        clouds.current().jobs.stop(self.region, self.params["TrainingJobName"])
        return EmptyResult()

    def delete_training_job(self) -> ActionResult:
        clouds.current().jobs.delete(self.region, self.params["TrainingJobName"])
        return EmptyResult()


def _command(job: TrainingJob, python: str) -> list[str]:
    if job.algorithm.get("ContainerEntrypoint"):
        return [*job.algorithm["ContainerEntrypoint"], *(job.algorithm.get("ContainerArguments") or [])]
    # -P: a file of the user's source named like one of ours must not take its place.
    return [python, "-P", "-m", "windlass.runtime.training"]


def _named(given: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(channel for channel in given if channel["ChannelName"] == name)


def _with_channel(hosts: Sequence[Host], channel: Mapping[str, Any]) -> list[Host]:
    """The hosts that get a channel: those of its instance groups, or all."""
    wanted = channels.source(channel).get("InstanceGroupNames")
    return [host for host in hosts if not wanted or host.group in wanted]


def _archive(folder: Path, path: Path) -> Path:
    """A tar.gz of a folder's content. Level 1: weights hardly compress, and the wait is the user's."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for item in sorted(folder.iterdir()):
            tar.add(item, arcname=item.name)
    return path


def _merged(folders: Sequence[Path], into: Path) -> Path:
    """What all hosts left, in one folder. Where several left a file of one name, the first host's stays."""
    if len(folders) == 1:
        return folders[0]

    def link(source: str, target: str) -> None:
        Path(target).unlink(missing_ok=True)
        os.link(source, target, follow_symlinks=False)

    for folder in reversed(folders):
        shutil.copytree(folder, into, symlinks=True, copy_function=link, dirs_exist_ok=True)
    return into


def _later(seconds: float, do: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()
    return timer


def _decoded(value: str) -> str:
    """SDKs encode hyperparameters as JSON, people do not."""
    try:
        return str(json.loads(value))
    except ValueError:
        return value
