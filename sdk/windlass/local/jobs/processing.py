"""Processing jobs: CreateProcessingJob runs a program here, with its inputs from S3 and its outputs to S3.

    jobs = ProcessingJobs(cloud)
    jobs.create("us-east-1", request)        # validates as AWS does, returns the ARN, works on in a thread
    jobs.describe("us-east-1", "clean")      # DescribeProcessingJob's answer

Each host has a folder that stands for ``/opt/ml``: inputs arrive at their LocalPath below it, outputs leave from theirs.
"""

from __future__ import annotations

import contextvars
import itertools
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from windlass.local import storage
from windlass.local.cloudwatch.logs import LogStream, follow
from windlass.local.encryption import require_key
from windlass.local.faults import Fault, not_here
from windlass.local.jobs import cluster, s3data, training_request
from windlass.local.jobs.cluster import Host
from windlass.local.jobs.containers import s3_uri
from windlass.local.jobs.lifecycle import (
    REASON_CHARACTERS,
    SAVED,
    Failed,
    Job,
    Jobs,
    Stopped,
    algorithm_error,
    own,
    terminate,
    when,
)
from windlass.local.jobs.quotas import GIB, WATCH_SECONDS
from windlass.local.processes import BASE, Container

log = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/ProcessingJobs"
ROOT = "/opt/ml/processing"
FIRST_BLOCK = 25_000
"""Of the addresses of its hosts: far from those of the training jobs."""
DEFAULT_MAX_RUNTIME_SECONDS = 86_400
CONTINUOUS_UPLOAD_SECONDS = 1.0
"""How often the outputs with S3UploadMode Continuous are looked at."""

ECHOED = (
    "ProcessingJobName",
    "ProcessingInputs",
    "ProcessingOutputConfig",
    "ProcessingResources",
    "StoppingCondition",
    "AppSpecification",
    "Environment",
    "NetworkConfig",
    "RoleArn",
    "ExperimentConfig",
)


@dataclass(eq=False)
class ProcessingJob(Job):
    """Attributes: exit_message: what the program left in ``/opt/ml/output/message``."""

    exit_message: str | None = None

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """Those that SageMaker downloads."""
        return [each for each in self.request.get("ProcessingInputs") or [] if not each.get("AppManaged")]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """Those that SageMaker uploads."""
        outputs = (self.request.get("ProcessingOutputConfig") or {}).get("Outputs") or []
        return [each["S3Output"] for each in outputs if not each.get("AppManaged")]

    @property
    def output_key(self) -> str | None:
        """The KMS key that encrypts them."""
        return (self.request.get("ProcessingOutputConfig") or {}).get("KmsKeyId") or None

    @property
    def hosts(self) -> list[str]:
        return [f"algo-{number}" for number in range(1, _cluster(self.request).get("InstanceCount", 1) + 1)]


class ProcessingJobs(Jobs[ProcessingJob]):
    """Every processing job of one local cloud."""

    kind = "ProcessingJob"
    noun = "processing job"
    record = ProcessingJob
    saved = (*SAVED, "exit_message")
    _blocks = itertools.count(FIRST_BLOCK)

    def describe(self, region: str, name: str) -> dict[str, Any]:
        with self.change:
            job = self.find(region, name)
            return {
                **{member: job.request.get(member) for member in ECHOED},
                "ProcessingInputs": [_with_defaults(each) for each in job.request.get("ProcessingInputs") or []]
                or None,
                "StoppingCondition": {"MaxRuntimeInSeconds": _max_runtime(job.request)},
                "ProcessingJobArn": job.arn,
                "ProcessingJobStatus": job.status,
                "ExitMessage": job.exit_message,
                "FailureReason": job.failure,
                "CreationTime": when(job.created),
                "LastModifiedTime": when(job.modified),
                "ProcessingStartTime": when(job.started),
                "ProcessingEndTime": when(job.ended),
            }

    def summary(self, job: ProcessingJob) -> dict[str, Any]:
        return {**super().summary(job), "FailureReason": job.failure, "ExitMessage": job.exit_message}

    # Validation beyond the constraints of the service model

    def check(self, region: str, request: Mapping[str, Any]) -> None:
        if not request["AppSpecification"].get("ContainerEntrypoint"):
            raise Fault(
                "ValidationException",
                "The local cloud runs scripts, not what an image starts by itself: give AppSpecification.ContainerEntrypoint.",
            )
        resources = _cluster(request)
        if resources.get("InstancePreferences"):
            raise not_here("ProcessingResources.ClusterConfig.InstancePreferences")
        for member in ("InstanceType", "InstanceCount"):
            if not resources.get(member):
                raise Fault("ValidationException", f"ProcessingResources.ClusterConfig.{member} must be given.")
        if (request.get("NetworkConfig") or {}).get("EnableNetworkIsolation"):
            raise not_here("NetworkConfig.EnableNetworkIsolation")
        cluster.check_limit(resources["InstanceCount"], resources["InstanceType"], "processing job")
        training_request.check_experiment(request)
        require_key(region, resources.get("VolumeKmsKeyId"), "ProcessingResources.ClusterConfig.VolumeKmsKeyId")
        key = (request.get("ProcessingOutputConfig") or {}).get("KmsKeyId")
        require_key(region, key, "ProcessingOutputConfig.KmsKeyId")
        inputs = request.get("ProcessingInputs") or []
        outputs = (request.get("ProcessingOutputConfig") or {}).get("Outputs") or []
        _check_unique([each["InputName"] for each in inputs], "ProcessingInputs")
        _check_unique([each["OutputName"] for each in outputs], "ProcessingOutputConfig.Outputs")
        for each in inputs:
            _check_input(each)
        for each in outputs:
            _check_output(each)

    # The life of a job

    def work(self, job: ProcessingJob) -> None:
        hosts = cluster.plan(_cluster(job.request), job.folder, most_memory=self.memory_bytes)
        job.folder.mkdir(parents=True)
        (job.folder / "hosts").write_text(cluster.etc_hosts(hosts, next(self._blocks)), encoding="utf-8")
        for number, host in enumerate(hosts):
            self._prepare(job, host, number)
        upload = _ContinuousUpload(job, hosts)
        try:
            self._run_hosts(job, hosts)
        finally:
            with self.change:
                job.exit_message = _exit_message(hosts)
            upload.close()
        for output in job.outputs:
            for host in hosts:
                _upload(output, host.folder, {}, job.output_key)

    def _prepare(self, job: ProcessingJob, host: Host, number: int) -> None:
        """Lay out what stands for /opt/ml on one host."""
        for folder in ("processing", "config", "output"):
            (host.folder / folder).mkdir(parents=True)
        for each in job.inputs:
            source = each["S3Input"]
            try:
                objects = s3data.resolve(source["S3Uri"], source["S3DataType"])
                if source.get("S3DataDistributionType") == "ShardedByS3Key":
                    objects = s3data.share(objects, hosts=len(job.hosts), host=number)
                s3data.download(objects, _local(source, host.folder), gunzip=source.get("S3CompressionType") == "Gzip")
            except (s3data.Unavailable, OSError) as error:
                raise Failed(f"ClientError: Failed to download data. Input {each['InputName']}: {error}") from error
            if job.stopping.is_set():
                raise Stopped
        for output in job.outputs:
            _local(output, host.folder).mkdir(parents=True, exist_ok=True)
        config = {
            "processingjobconfig": {
                "ProcessingJobArn": job.arn,
                **{member: job.request[member] for member in ECHOED if job.request.get(member) is not None},
                "StoppingCondition": {"MaxRuntimeInSeconds": _max_runtime(job.request)},
            },
            "resourceconfig": {"current_host": host.name, "hosts": job.hosts},
        }
        for name, content in config.items():
            (host.folder / "config" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")

    def _run_hosts(self, job: ProcessingJob, hosts: list[Host]) -> None:
        """Run the program on every host to its end. The first that fails ends the others."""
        ended: queue.Queue[tuple[Host, int]] = queue.Queue()
        deadline = time.monotonic() + _max_runtime(job.request)
        overran = False
        try:
            for host in hosts:
                self._start(job, host, ended)
            running = len(hosts)
            while running:
                try:
                    host, code = ended.get(timeout=WATCH_SECONDS)
                except queue.Empty:
                    if reason := cluster.exceeded(hosts):
                        raise Failed(reason) from None
                    if not overran and time.monotonic() >= deadline:
                        overran = True
                        for each in hosts:
                            if each.child:
                                terminate(each.child, self.stop_grace_seconds)
                    continue
                running -= 1
                if code != 0 and not overran and not job.stopping.is_set():
                    raise Failed(_algorithm_error(host, code))
        finally:
            for host in hosts:
                if host.child:
                    host.child.kill()
                    host.child.wait(10.0)
                if host.reader:
                    host.reader.join(10.0)
        if overran:
            raise Stopped("Processing job runtime exceeded MaxRuntimeInSeconds provided")
        if job.stopping.is_set():
            raise Stopped

    def _start(self, job: ProcessingJob, host: Host, ended: queue.Queue[tuple[Host, int]]) -> None:
        stream = LogStream(job.region, LOG_GROUP, f"{job.name}/{host.name}-{int(self.now())}", self.cloud.clock)
        base = self.cloud.keeper.base(host.folder)
        command, environment = _placed(job, base, self.cloud.process_environment(job.region, self.role(job)))
        reading, writing = os.pipe()
        try:
            with self.change:
                if job.stopping.is_set():
                    raise Stopped
                child = self.cloud.keeper.start(
                    command,
                    env=environment,
                    cwd=base,
                    output=writing,
                    container=Container(host.folder, hostname=host.name, hosts=job.folder / "hosts"),
                    file_bytes=cluster.volume_gib(_cluster(job.request)) * GIB,
                )
                host.child = child
                job.children.append(child)
        except (OSError, Stopped) as error:
            os.close(reading)
            if isinstance(error, Stopped):
                raise
            raise Failed(f"AlgorithmError: The container's entrypoint {command} cannot be started: {error}") from error
        finally:
            os.close(writing)

        def take(line: str) -> None:
            host.tail.append(line)
            stream.write(line)

        def report() -> None:
            code = child.wait()
            assert host.reader is not None
            host.reader.join(10.0)  # the traceback may still be in the pipe
            ended.put((host, -9 if code is None else code))

        host.reader = threading.Thread(target=follow, args=(reading, take), name=f"log-{job.name}", daemon=True)
        host.reader.start()
        threading.Thread(target=report, name=f"wait-{job.name}", daemon=True).start()


class _ContinuousUpload:
    """Sends outputs with S3UploadMode Continuous while the job runs, until :meth:`close` sends what is left."""

    def __init__(self, job: ProcessingJob, hosts: list[Host]) -> None:
        self._outputs = [each for each in job.outputs if each["S3UploadMode"] == "Continuous"]
        self._hosts, self._key = hosts, job.output_key
        self._sent: dict[Path, tuple[int, int]] = {}
        self._closed = threading.Event()
        run = contextvars.copy_context().run  # as the job's role, too
        self._thread = threading.Thread(target=run, args=(self._run,), name=f"upload-{job.name}", daemon=True)
        if self._outputs:
            self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(CONTINUOUS_UPLOAD_SECONDS):
            self._send()

    def _send(self) -> None:
        try:
            for output in self._outputs:
                for host in self._hosts:
                    _upload(output, host.folder, self._sent, self._key)
        except Failed as error:
            log.warning("%s", error)  # the upload at the end of the job says so to its owner

    def close(self) -> None:
        self._closed.set()
        if self._outputs:
            self._thread.join()
            self._send()


def _placed(job: ProcessingJob, base: Path, given: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a host's process. Where there is no /opt/ml, what points into it points into its folder."""
    specification = job.request["AppSpecification"]
    command = [*specification["ContainerEntrypoint"], *(specification.get("ContainerArguments") or [])]
    environment = {**given, **(job.request.get("Environment") or {}), "SAGEMAKER_BASE_DIR": str(base)}
    return [_moved(part, base) for part in command], {name: _moved(value, base) for name, value in environment.items()}


def _moved(value: str, base: Path) -> str:
    """A path in ``/opt/ml`` as the same path in what stands for it; any other value as it is."""
    inside = value == str(BASE) or value.startswith(f"{BASE}/")
    return f"{base}{value.removeprefix(str(BASE))}" if inside else value


def _algorithm_error(host: Host, code: int) -> str:
    reason, full = algorithm_error("", list(host.tail), code), host.quota.full()
    return f"AlgorithmError: {full} {reason.removeprefix('AlgorithmError: ')}" if full else reason


def _cluster(request: Mapping[str, Any]) -> Mapping[str, Any]:
    resources: Mapping[str, Any] = request["ProcessingResources"]["ClusterConfig"]
    return resources


def _max_runtime(request: Mapping[str, Any]) -> int:
    limit = (request.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds")
    return int(limit or DEFAULT_MAX_RUNTIME_SECONDS)


def _with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {"S3DataDistributionType": "FullyReplicated", "S3InputMode": "File", "S3CompressionType": "None"}
    source = given.get("S3Input")
    return {"AppManaged": False, **given, **({"S3Input": {**defaults, **source}} if source else {})}


def _local(location: Mapping[str, Any], folder: Path) -> Path:
    return Path(_moved(str(PurePosixPath(location["LocalPath"])), folder))


def _check_unique(names: list[str], member: str) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise Fault("ValidationException", f"The names in {member} must be unique, but {repeated} are repeated.")


def _check_input(given: Mapping[str, Any]) -> None:
    where = f"of processing input '{given['InputName']}'"
    if given.get("DatasetDefinition"):
        raise not_here(f"DatasetDefinition {where}")
    source = given.get("S3Input")
    if not source:
        raise Fault("ValidationException", f"S3Input must be given {where}.")
    if given.get("AppManaged"):
        return  # the program fetches it by itself
    if source.get("S3InputMode", "File") != "File":
        raise not_here(f"S3InputMode {source['S3InputMode']} {where}")
    _check_path(source, where)
    uri = s3_uri(source["S3Uri"])
    if not uri.startswith("s3://"):
        raise Fault("ValidationException", f"S3Input.S3Uri '{source['S3Uri']}' {where} must be an s3:// URI.")
    if not storage.bucket_exists(uri):
        raise Fault(
            "ValidationException", f"The S3 bucket of S3Input.S3Uri '{source['S3Uri']}' {where} does not exist."
        )


def _check_output(given: Mapping[str, Any]) -> None:
    where = f"of processing output '{given['OutputName']}'"
    if given.get("FeatureStoreOutput"):
        raise not_here(f"FeatureStoreOutput {where}")
    target = given.get("S3Output")
    if not target:
        raise Fault("ValidationException", f"S3Output must be given {where}.")
    if given.get("AppManaged"):
        return
    _check_path(target, where)
    uri = target["S3Uri"]
    if not storage.bucket_exists(s3_uri(uri)):
        raise Fault("ValidationException", f"The S3 bucket of S3Output.S3Uri '{uri}' {where} does not exist.")


def _check_path(location: Mapping[str, Any], where: str) -> None:
    path = PurePosixPath(location.get("LocalPath") or "")
    if ".." in path.parts or not path.is_relative_to(ROOT):
        raise Fault(
            "ValidationException", f"LocalPath '{location.get('LocalPath', '')}' {where} must be a path below {ROOT}."
        )


def _exit_message(hosts: list[Host]) -> str | None:
    for host in hosts:
        path = host.folder / "output" / "message"
        if own(path, host.folder):
            return path.read_text(encoding="utf-8", errors="replace")[:REASON_CHARACTERS] or None
    return None


def _upload(output: Mapping[str, Any], folder: Path, sent: dict[Path, tuple[int, int]], key: str | None) -> None:
    """Send the files of one output that are not in ``sent`` as they are now, and note them there."""
    source = _local(output, folder)
    # A LocalPath may name one file: it goes below S3Uri by its own name.
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        if not own(path, folder):
            continue
        try:
            found = path.stat()
            if sent.get(path) == (found.st_mtime_ns, found.st_size):
                continue
            name = path.name if path == source else path.relative_to(source).as_posix()
            storage.write(f"{s3_uri(output['S3Uri']).rstrip('/')}/{name}", path, key)
            sent[path] = (found.st_mtime_ns, found.st_size)
        except FileNotFoundError:
            continue  # a temporary file that is gone meanwhile
        except storage.Missing as error:
            raise Failed(f"ClientError: Failed to upload data to {output['S3Uri']}: {error}") from error
