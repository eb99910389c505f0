"""Training jobs: CreateTrainingJob runs a script here, under the container contract, with real states over real time.

    jobs.create("us-east-1", request)        # validates as AWS does, returns the ARN, works on in a thread
    jobs.describe("us-east-1", "digits")     # DescribeTrainingJob's answer

A job's folder stands for ``/opt/ml``: its channels are downloaded there, ``runtime/training.py`` (or the given
ContainerEntrypoint) runs below it, and what it leaves there goes to S3.
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
import sys
import tarfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moto.core.responses import ActionResult, EmptyResult

from windlass import artifact
from windlass.errors import CorruptArtifact
from windlass.local import cloud as clouds
from windlass.local import storage
from windlass.local.faults import Fault
from windlass.local.listing import select
from windlass.local.logs import LogStream, follow
from windlass.local.processes import Child

if TYPE_CHECKING:
    from windlass.local.cloud import Cloud

log = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
METRIC_NAMESPACE = "/aws/sagemaker/TrainingJobs"
STOP_GRACE_SECONDS = 120.0
"""Between SIGTERM and SIGKILL: what SageMaker documents for StopTrainingJob."""

FAILURE_REASON_CHARACTERS = 1024
TERMINAL = ("Completed", "Failed", "Stopped")

# SageMaker's own words for each secondary status.
MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
}

# Members that change what a job does, and that are not done here. Accepting them would be a false success.
UNSUPPORTED = (
    "CheckpointConfig",
    "EnableManagedSpotTraining",
    "EnableNetworkIsolation",
    "TensorBoardOutputConfig",
    "ServerlessJobConfig",
    "MlflowConfig",
    "ModelPackageConfig",
)
SAVED = (
    "request",
    "region",
    "created",
    "status",
    "secondary",
    "transitions",
    "modified",
    "started",
    "ended",
    "failure",
    "overran",
    "metrics",
)
INTERRUPTED = (
    "InternalServerError: The local cloud ended while the job was running. Create it again under another name."
)
ECHOED = (
    "TrainingJobName",
    "HyperParameters",
    "AlgorithmSpecification",
    "RoleArn",
    "OutputDataConfig",
    "ResourceConfig",
    "VpcConfig",
    "StoppingCondition",
    "DebugHookConfig",
    "DebugRuleConfigurations",
    "ExperimentConfig",
    "ProfilerConfig",
    "ProfilerRuleConfigurations",
    "Environment",
    "RetryStrategy",
    "RemoteDebugConfig",
    "InfraCheckConfig",
)


class _Failed(Exception):
    """The job ends as Failed, with this FailureReason."""


class _Stopped(Exception):
    """The job ends as Stopped before its script ran."""


@dataclass
class TrainingJob:
    """One job, as DescribeTrainingJob knows it, and what runs it.

    Attributes:
        folder: stands for ``/opt/ml``.
        stopping: set by StopTrainingJob, and when its time is up.
    """

    request: Mapping[str, Any]
    region: str
    folder: Path
    created: float
    status: str = "InProgress"
    secondary: str = ""
    transitions: list[dict[str, Any]] = field(default_factory=list)
    modified: float = 0.0
    started: float | None = None
    ended: float | None = None
    failure: str | None = None
    overran: bool = False
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    stopping: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    child: Child | None = None

    @property
    def name(self) -> str:
        return str(self.request["TrainingJobName"])

    @property
    def arn(self) -> str:
        return f"arn:aws:sagemaker:{self.region}:{clouds.ACCOUNT}:training-job/{self.name.lower()}"

    @property
    def hyperparameters(self) -> dict[str, str]:
        return dict(self.request.get("HyperParameters") or {})

    @property
    def channels(self) -> list[dict[str, Any]]:
        return list(self.request.get("InputDataConfig") or [])

    @property
    def output(self) -> str:
        """Where its results go: ``<S3OutputPath>/<job>/output``."""
        return f"{self.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.name}/output"

    @property
    def artifact(self) -> str:
        """What S3ModelArtifacts says."""
        return f"{self.output}/model/" if self.uncompressed else f"{self.output}/model.tar.gz"

    @property
    def uncompressed(self) -> bool:
        return bool(self.request["OutputDataConfig"].get("CompressionType") == "NONE")


class TrainingJobs:
    """Every training job of one local cloud.

    Attributes:
        slots: how many run at a time; the others wait as Starting.
        stop_grace_seconds: between SIGTERM and SIGKILL.
    """

    def __init__(
        self, cloud: Cloud, *, slots: int | None = None, stop_grace_seconds: float = STOP_GRACE_SECONDS
    ) -> None:
        self._cloud = cloud
        self.slots = slots or os.cpu_count() or 1
        self.stop_grace_seconds = stop_grace_seconds
        self._jobs: dict[tuple[str, str], TrainingJob] = {}
        self._saved = cloud.database.table("training-jobs")
        self._running = 0
        self._closing = False
        self._change = threading.Condition(threading.RLock())

    def restore(self) -> None:
        """Put back the jobs of an earlier server. What it did not finish has failed."""
        for record in self._saved.values():
            region, name = record["region"], record["request"]["TrainingJobName"]
            job = TrainingJob(folder=self._cloud.state / "jobs" / region / name, **record)
            self._jobs[region, name.lower()] = job
            if job.status not in TERMINAL:
                self._finish(job, "Failed", "Failed", INTERRUPTED)
            job.done.set()

    def _save(self, job: TrainingJob) -> None:
        """Keep what a later server is to know. Called with every change that a client can see."""
        if not self._closing:  # what happens to a job after that is not its own doing
            self._saved.save(f"{job.region}/{job.name.lower()}", {name: getattr(job, name) for name in SAVED})

    # The operations

    def create(self, region: str, request: Mapping[str, Any]) -> str:
        """CreateTrainingJob. Returns the ARN; raises AWS's own errors."""
        self._check(request)
        name = request["TrainingJobName"]
        job = TrainingJob(request, region, self._cloud.state / "jobs" / region / name, created=self._now())
        with self._change:
            if (region, name.lower()) in self._jobs:
                raise Fault(
                    "ResourceInUse", f"Training job names must be unique within an AWS account and region: {job.arn}"
                )
            self._jobs[region, name.lower()] = job
            self._move(job, "Starting")
        threading.Thread(target=self._run, args=(job,), name=f"job-{name}", daemon=True).start()
        return job.arn

    def describe(self, region: str, name: str) -> dict[str, Any]:
        """DescribeTrainingJob's answer."""
        with self._change:
            job = self._find(region, name)
            answer = {member: job.request.get(member) for member in ECHOED}
            answer |= {
                "TrainingJobArn": job.arn,
                "TrainingJobStatus": job.status,
                "SecondaryStatus": job.secondary,
                "SecondaryStatusTransitions": [
                    {name: _time(value) if name.endswith("Time") else value for name, value in step.items()}
                    for step in job.transitions
                ],
                "CreationTime": _time(job.created),
                "LastModifiedTime": _time(job.modified),
                "TrainingStartTime": _time(job.started),
                "TrainingEndTime": _time(job.ended),
                "FailureReason": job.failure,
                "InputDataConfig": [
                    {"CompressionType": "None", "RecordWrapperType": "None", **channel} for channel in job.channels
                ],
                "EnableNetworkIsolation": False,
                "EnableInterContainerTrafficEncryption": bool(job.request.get("EnableInterContainerTrafficEncryption")),
                "EnableManagedSpotTraining": False,
                "ProfilingStatus": "Disabled",
            }
            # Required by the service model, so that strict clients miss it while the job runs.
            done = job.status in TERMINAL and job.status != "Failed"
            answer["ModelArtifacts"] = {"S3ModelArtifacts": job.artifact if done else ""}
            if job.status in TERMINAL:
                seconds = math.ceil((job.ended or 0.0) - job.started) if job.started else 0
                answer["TrainingTimeInSeconds"] = answer["BillableTimeInSeconds"] = seconds or None
            if job.metrics:
                answer["FinalMetricDataList"] = list(job.metrics.values())
            return answer

    def list(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListTrainingJobs' answer."""
        with self._change:
            summaries = [
                {
                    "TrainingJobName": job.name,
                    "TrainingJobArn": job.arn,
                    "CreationTime": _time(job.created),
                    "TrainingEndTime": _time(job.ended),
                    "LastModifiedTime": _time(job.modified),
                    "TrainingJobStatus": job.status,
                    "SecondaryStatus": job.secondary,
                }
                for (home, _), job in self._jobs.items()
                if home == region
            ]
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
            if job.status == "Stopping":
                return
            job.status = "Stopping"
            self._move(job, "Stopping")
        self._terminate(job)

    def wait(self, region: str, name: str, timeout: float) -> str:
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
            unfinished = [job for job in self._jobs.values() if not job.done.is_set()]
            for job in unfinished:
                job.status = "Stopping"
                job.stopping.set()
            self._change.notify_all()
        for job in unfinished:
            if job.child:
                job.child.kill()
        for job in unfinished:
            job.done.wait(5.0)

    # Validation beyond the constraints of the service model

    def _check(self, request: Mapping[str, Any]) -> None:
        for member in UNSUPPORTED:
            if request.get(member):
                raise _not_here(member)
        resources = request["ResourceConfig"]
        if resources.get("InstanceGroups") or resources.get("InstanceCount", 1) != 1:
            raise _not_here("training on more than one instance (ResourceConfig.InstanceCount > 1)")
        if not resources.get("InstanceType"):
            raise Fault("ValidationException", "ResourceConfig.InstanceType must be given.")
        algorithm = request["AlgorithmSpecification"]
        if bool(algorithm.get("TrainingImage")) == bool(algorithm.get("AlgorithmName")):
            raise Fault("ValidationException", "Exactly one of TrainingImage and AlgorithmName must be given.")
        program = (request.get("HyperParameters") or {}).get("sagemaker_program")
        if not algorithm.get("ContainerEntrypoint") and not program:
            raise Fault(
                "ValidationException",
                "The local cloud runs scripts, not what an image starts by itself: give the hyperparameters sagemaker_program"
                " and sagemaker_submit_directory, or AlgorithmSpecification.ContainerEntrypoint.",
            )
        for definition in algorithm.get("MetricDefinitions") or []:
            try:
                groups = re.compile(definition["Regex"]).groups
            except re.error as error:
                raise Fault(
                    "ValidationException",
                    f"Invalid regex '{definition['Regex']}' of metric '{definition['Name']}': {error}",
                ) from error
            if not groups:
                raise Fault(
                    "ValidationException",
                    f"The regex '{definition['Regex']}' of metric '{definition['Name']}' has no group to capture its value.",
                )
        self._check_data(request)

    def _check_data(self, request: Mapping[str, Any]) -> None:
        names = [channel["ChannelName"] for channel in request.get("InputDataConfig") or []]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise Fault("ValidationException", f"Channel names must be unique, but {sorted(repeated)} are repeated.")
        for channel in request.get("InputDataConfig") or []:
            where = f"of channel '{channel['ChannelName']}'"
            source = channel["DataSource"].get("S3DataSource")
            if not source:
                raise _not_here(f"the data source {', '.join(channel['DataSource'])} {where}")
            if source["S3DataType"] != "S3Prefix":
                raise _not_here(f"S3DataType {source['S3DataType']} {where}")
            if source.get("S3DataDistributionType", "FullyReplicated") != "FullyReplicated":
                raise _not_here(f"S3DataDistributionType {source['S3DataDistributionType']} {where}")
            mode = channel.get("InputMode") or request["AlgorithmSpecification"].get("TrainingInputMode", "File")
            if mode != "File":
                raise _not_here(f"TrainingInputMode {mode} {where}")
            for member in ("CompressionType", "RecordWrapperType"):
                if channel.get(member, "None") != "None":
                    raise _not_here(f"{member} {channel[member]} {where}")
            if channel.get("ShuffleConfig"):
                raise _not_here(f"ShuffleConfig {where}")
            self._check_found(source["S3Uri"], request["RoleArn"])
        target = request["OutputDataConfig"]["S3OutputPath"]
        if not target.startswith("s3://") or not storage.bucket_exists(target):
            raise Fault(
                "ValidationException", f"The S3 bucket of OutputDataConfig.S3OutputPath '{target}' does not exist."
            )

    def _check_found(self, uri: str, role: str) -> None:
        try:
            found = storage.keys(_s3(uri))
        except storage.NoBucket:
            found = []
        if not found:
            raise Fault(
                "ValidationException",
                f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket exists in'
                f' the selected region, that objects exist under that S3 prefix, and that the role "{role}" has "s3:ListBucket"'
                f' permissions on bucket "{storage.split(_s3(uri))[0]}".',
            )

    # The life of a job, in its own thread

    def _run(self, job: TrainingJob) -> None:
        try:
            with self._slot(job):
                self._prepare(job)
                code = self._train(job)
                self._upload(job, code)
            final = "MaxRuntimeExceeded" if job.overran else "Stopped" if job.stopping.is_set() else "Completed"
            self._finish(job, "Completed" if final == "Completed" else "Stopped", final)
        except _Stopped:
            self._finish(job, "Stopped", "Stopped")
        except _Failed as error:
            self._finish(job, "Failed", "Failed", str(error))
        except Exception as error:
            log.exception("The training job %s failed inside the local cloud", job.name)
            reason = f"InternalServerError: We encountered an internal error. {type(error).__name__}: {error}"
            self._finish(job, "Failed", "Failed", reason)
        finally:
            shutil.rmtree(job.folder, ignore_errors=True)
            job.done.set()

    @contextlib.contextmanager
    def _slot(self, job: TrainingJob) -> Iterator[None]:
        with self._change:
            self._change.wait_for(lambda: self._running < self.slots or job.stopping.is_set())
            if job.stopping.is_set():
                raise _Stopped
            self._running += 1
        try:
            yield
        finally:
            with self._change:
                self._running -= 1
                self._change.notify_all()

    def _prepare(self, job: TrainingJob) -> None:
        """Lay out what stands for /opt/ml."""
        with self._change:
            job.started = self._now()
            self._move(job, "Downloading")
        shutil.rmtree(job.folder, ignore_errors=True)
        for folder in ("input/config", "input/data", "model", "output/data", "checkpoints", "code"):
            (job.folder / folder).mkdir(parents=True)
        for channel in job.channels:
            uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
            try:
                storage.download_prefix(_s3(uri), job.folder / "input" / "data" / channel["ChannelName"])
            except (storage.Missing, ValueError, OSError) as error:
                raise _Failed(
                    f"ClientError: Data download failed for channel '{channel['ChannelName']}': {error}"
                ) from error
            if job.stopping.is_set():
                raise _Stopped
        instance = job.request["ResourceConfig"]["InstanceType"]
        group = {"instance_group_name": "homogeneousCluster", "instance_type": instance, "hosts": ["algo-1"]}
        config = {
            "hyperparameters": job.hyperparameters,
            "inputdataconfig": {channel["ChannelName"]: _channel_config(channel) for channel in job.channels},
            "resourceconfig": {
                "current_host": "algo-1",
                "current_instance_type": instance,
                "current_group_name": "homogeneousCluster",
                "hosts": ["algo-1"],
                "instance_groups": [group],
                "network_interface_name": "lo",
            },
        }
        for name, content in config.items():
            (job.folder / "input" / "config" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        self._fetch_source(job)

    def _fetch_source(self, job: TrainingJob) -> None:
        """Legacy script mode: the hyperparameter sagemaker_submit_directory names a tar.gz on S3."""
        source = _decoded(job.hyperparameters.get("sagemaker_submit_directory", ""))
        code = job.folder / "code"
        if source.startswith("s3://"):
            archive = job.folder / "source.tar.gz"
            try:
                storage.download(source, archive)
                artifact.extract(archive, code)
            except storage.Missing as error:
                raise _Failed(
                    f"ClientError: {error}, given in the hyperparameter sagemaker_submit_directory. Upload the source there."
                ) from error
            except CorruptArtifact as error:
                raise _Failed(
                    f"ClientError: The source {source} (sagemaker_submit_directory) cannot be unpacked: {error}"
                ) from error
            finally:
                archive.unlink(missing_ok=True)
        elif source:
            raise _Failed(f"ClientError: sagemaker_submit_directory must be an s3:// URI of a tar.gz, not '{source}'")
        requirements = code / "requirements.txt"
        if requirements.is_file() and (missing := _unmet(requirements.read_text(encoding="utf-8"))):
            raise _Failed(
                f"AlgorithmError: requirements.txt of the source asks for what {sys.executable} lacks: {'; '.join(missing)}."
                " The local cloud runs scripts in its own Python: install them there."
            )

    def _train(self, job: TrainingJob) -> int:
        """Run the script to its end. Returns its exit code."""
        stream = LogStream(job.region, LOG_GROUP, f"{job.name}/algo-1-{int(self._now())}", self._cloud.clock)
        with self._change:
            if not job.stopping.is_set():
                self._move(job, "Training")
        reading, writing = os.pipe()
        try:
            with self._change:
                if job.stopping.is_set():
                    raise _Stopped
                job.child = self._cloud.keeper.start(
                    _command(job), env=self._environment(job), cwd=job.folder / "code", output=writing
                )
        except (OSError, _Stopped) as error:
            os.close(reading)
            if isinstance(error, _Stopped):
                raise
            raise _Failed(
                f"AlgorithmError: The container's entrypoint {_command(job)} cannot be started: {error}"
            ) from error
        finally:
            os.close(writing)
        reader = threading.Thread(
            target=follow,
            args=(reading, lambda line: self._take(job, stream, line)),
            name=f"log-{job.name}",
            daemon=True,
        )
        reader.start()
        limit = (job.request.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds", 86_400)
        code = job.child.wait(limit)
        if code is None:
            with self._change:
                job.overran = True
                job.status = "Stopping"
                self._move(job, "Stopping")
            self._terminate(job)
            code = job.child.wait()
        reader.join(10.0)  # the keeper has killed whoever else held the pipe, so this is its EOF
        assert code is not None
        return code

    def _take(self, job: TrainingJob, stream: LogStream, line: str) -> None:
        """One line of output: to the log, and through the metric definitions."""
        job.tail.append(line)
        stream.write(line)
        for definition in job.request["AlgorithmSpecification"].get("MetricDefinitions") or []:
            for found in re.finditer(definition["Regex"], line):
                try:
                    value = float(found[1])
                except (TypeError, ValueError):
                    continue  # the regex matched something else than a number
                if math.isfinite(value):
                    self._measure(job, definition["Name"], value)

    def _measure(self, job: TrainingJob, name: str, value: float) -> None:
        now = self._now()
        self._cloud.metrics.put(job.region, METRIC_NAMESPACE, name, {"TrainingJobName": job.name}, value, at=now)
        with self._change:
            job.metrics[name] = {"MetricName": name, "Value": value, "Timestamp": _time(now)}

    def _upload(self, job: TrainingJob, code: int) -> None:
        """Send the results to S3. Raises _Failed for a script that failed."""
        stopped = job.stopping.is_set()
        failure = job.folder / "output" / "failure"
        failed = not stopped and (code != 0 or failure.exists())
        if not failed:
            with self._change:
                self._move(job, "Uploading")
        try:
            data = job.folder / "output" / "data"
            if any(data.iterdir()):
                storage.write(f"{job.output}/output.tar.gz", _archive(data, job.folder / "output.tar.gz"))
            if not failed:
                self._upload_model(job)
        except (storage.Missing, OSError) as error:
            raise _Failed(f"ClientError: Artifact upload failed: {error}") from error
        if failed:
            text = failure.read_text(encoding="utf-8", errors="replace").strip() if failure.exists() else ""
            raise _Failed(_algorithm_error(text or _last_traceback(job.tail), code))

    def _upload_model(self, job: TrainingJob) -> None:
        model = job.folder / "model"
        if job.uncompressed:
            for path in sorted(path for path in model.rglob("*") if path.is_file()):
                storage.write(f"{job.artifact}{path.relative_to(model).as_posix()}", path)
        else:
            storage.write(job.artifact, _archive(model, job.folder / "model.tar.gz"))

    def _terminate(self, job: TrainingJob) -> None:
        """SIGTERM now, SIGKILL after the grace period."""
        with self._change:
            job.stopping.set()
            self._change.notify_all()
            child = job.child
        if child:
            child.signal(signal.SIGTERM)
            killer = threading.Timer(self.stop_grace_seconds, child.kill)
            killer.daemon = True
            killer.start()

    def _finish(self, job: TrainingJob, status: str, secondary: str, failure: str | None = None) -> None:
        with self._change:
            job.ended = self._now()
            job.failure = failure[:FAILURE_REASON_CHARACTERS] if failure else None
            self._move(job, secondary)
            job.status = status
            job.transitions[-1]["EndTime"] = job.modified
            self._save(job)
            self._change.notify_all()

    def _move(self, job: TrainingJob, secondary: str) -> None:
        now = self._now()
        if job.transitions:
            job.transitions[-1]["EndTime"] = now
        job.secondary, job.modified = secondary, now
        job.transitions.append({"Status": secondary, "StartTime": now, "StatusMessage": MESSAGES[secondary]})
        self._save(job)

    def _environment(self, job: TrainingJob) -> dict[str, str]:
        return {
            **self._cloud.process_environment(job.region),
            "TRAINING_JOB_NAME": job.name,
            "TRAINING_JOB_ARN": job.arn,
            **(job.request.get("Environment") or {}),
            "SAGEMAKER_BASE_DIR": str(job.folder),
            "SAGEMAKER_SUBMIT_DIRECTORY": str(job.folder / "code"),
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


def _command(job: TrainingJob) -> list[str]:
    algorithm = job.request["AlgorithmSpecification"]
    if algorithm.get("ContainerEntrypoint"):
        return [*algorithm["ContainerEntrypoint"], *(algorithm.get("ContainerArguments") or [])]
    # -P: a file of the user's source named like one of ours must not take its place.
    return [sys.executable, "-P", "-m", "windlass.runtime.training"]


def _channel_config(channel: Mapping[str, Any]) -> dict[str, str]:
    """A channel as inputdataconfig.json has it."""
    config = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    return {**config, **({"ContentType": channel["ContentType"]} if channel.get("ContentType") else {})}


def _algorithm_error(text: str, code: int) -> str:
    """FailureReason of a script that failed: its own words, then its exit code as a shell would show it."""
    end = f", exit code: {code if code >= 0 else 128 - code}"
    room = FAILURE_REASON_CHARACTERS - len("AlgorithmError: ") - len(end)
    return f"AlgorithmError: {text[:room]}{end}"


def _last_traceback(lines: deque[str]) -> str:
    """The exception and the traceback that Python printed last; the last lines when it printed none."""
    said = [line for line in lines if line]
    starts = [index for index, line in enumerate(said) if line.startswith("Traceback (most recent call last):")]
    if not starts:
        return "\n".join(said[-5:])
    block = said[starts[-1] :]
    end = next((index for index, line in enumerate(block[1:], 1) if not line.startswith(" ")), len(block) - 1)
    return "\n".join([block[end], "", *block[: end + 1]])


def _archive(folder: Path, path: Path) -> Path:
    """A tar.gz of a folder's content. Level 1: weights hardly compress, and the wait is the user's."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for item in sorted(folder.iterdir()):
            tar.add(item, arcname=item.name)
    return path


def _unmet(requirements: str) -> list[str]:
    """Those lines of a requirements.txt that this interpreter does not fulfil."""
    from importlib import metadata

    from packaging.requirements import InvalidRequirement, Requirement

    unmet = []
    for line in requirements.splitlines():
        text = line.partition(" #")[0].strip()
        if not text or text.startswith(("#", "--")):
            continue  # options only say where packages come from
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            unmet.append(f"'{text}' (not a requirement that can be checked here)")
            continue
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            unmet.append(f"{requirement} (not installed)")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            unmet.append(f"{requirement} ({installed} is installed)")
    return unmet


def _decoded(value: str) -> str:
    """SDKs encode hyperparameters as JSON, people do not."""
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _s3(uri: str) -> str:
    """An S3 URI from either form that the API takes."""
    matched = re.match(r"https://s3[.-][^/]*amazonaws\.com/(.+)|https://([^./]+)\.s3[.-][^/]*amazonaws\.com/(.*)", uri)
    if not matched:
        return uri
    return f"s3://{matched[1]}" if matched[1] else f"s3://{matched[2]}/{matched[3]}"


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _not_here(what: str) -> Fault:
    return Fault("ValidationException", f"The local cloud does not implement {what}.")
