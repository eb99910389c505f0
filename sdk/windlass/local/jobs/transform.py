"""Batch transform: CreateTransformJob starts a model's servers and sends them what lies on S3.

    jobs = TransformJobs(cloud)
    jobs.create("us-east-1", request)        # validates as AWS does, returns the ARN, works on in a thread

Each object becomes ``<S3OutputPath>/<its name>.out``. How records are cut, packed, joined and filtered is in `records.py`.
"""

from __future__ import annotations

import functools
import gzip
import json
import logging
import shutil
import threading
import time
import zlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from windlass.local import storage
from windlass.local.cloudwatch.logs import LogStream
from windlass.local.encryption import require_key
from windlass.local.faults import Fault, not_here
from windlass.local.hosting.instance import STOP_GRACE_SECONDS, FleetFailed, Instance, Reply, Unanswered, VariantSpec
from windlass.local.jobs import cluster, containers, s3data, training_request
from windlass.local.jobs.containers import s3_uri
from windlass.local.jobs.environments import Environments
from windlass.local.jobs.lifecycle import Failed, Job, Jobs, Stopped, when
from windlass.local.jobs.quotas import WATCH_SECONDS, Quota
from windlass.local.jobs.records import BadRecord, Processing, TooLarge, batches, kind_of
from windlass.local.jobs.s3data import S3Object

logger = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/TransformJobs"
DEFAULT_MAX_PAYLOAD_MB = 6
LIMIT_MB = 100
"""Of MaxConcurrentTransforms * MaxPayloadInMB: the API reference of CreateTransformJob."""
DEFAULT_TIMEOUT_SECONDS = 600
DEFAULT_RETRIES = 3

ECHOED = (
    "TransformJobName",
    "ModelName",
    "MaxConcurrentTransforms",
    "ModelClientConfig",
    "MaxPayloadInMB",
    "BatchStrategy",
    "Environment",
    "TransformInput",
    "TransformOutput",
    "TransformResources",
    "DataProcessing",
    "ExperimentConfig",
)


@dataclass(eq=False)
class TransformJob(Job):
    """What it has beyond any job.

    Attributes:
        instances: its model servers.
        broken: set when one of them took more than it may, so that there is nobody to ask any more.
    """

    instances: list[Instance] = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class _Settings:
    """How an instance is fed: the request's words, else those of its /execution-parameters, else SageMaker's defaults."""

    concurrent: int
    payload_mb: int
    strategy: str

    @property
    def payload_bytes(self) -> int | None:
        """None for no limit: MaxPayloadInMB 0."""
        return self.payload_mb * 1024 * 1024 or None


class _Refused(Exception):
    """An input object cannot be transformed. ``str()`` is what the log says of it."""


class TransformJobs(Jobs[TransformJob]):
    """Every transform job of one local cloud."""

    kind = "TransformJob"
    noun = "transform job"
    record = TransformJob

    def describe(self, region: str, name: str) -> dict[str, Any]:
        with self.change:
            job = self.find(region, name)
            given = job.request
            processing = given.get("DataProcessing") or {}
            return {
                **{member: given.get(member) for member in ECHOED},
                "TransformInput": {"CompressionType": "None", "SplitType": "None", **given["TransformInput"]},
                "TransformOutput": {"AssembleWith": "None", **given["TransformOutput"]},
                "DataProcessing": {"InputFilter": "$", "OutputFilter": "$", "JoinSource": "None", **processing},
                "TransformJobArn": job.arn,
                "TransformJobStatus": job.status,
                "FailureReason": job.failure,
                "CreationTime": when(job.created),
                "TransformStartTime": when(job.started),
                "TransformEndTime": when(job.ended),
            }

    def summary(self, job: TransformJob) -> dict[str, Any]:
        return {**super().summary(job), "FailureReason": job.failure}

    # Validation beyond the constraints of the service model

    def check(self, region: str, request: Mapping[str, Any]) -> None:
        self.cloud.hosting.configs.model(region, request["ModelName"])
        given, target = request["TransformInput"], request["TransformOutput"]
        source = given["DataSource"]["S3DataSource"]
        if source["S3DataType"] not in ("S3Prefix", "ManifestFile"):
            raise not_here(f"TransformInput.DataSource.S3DataSource.S3DataType {source['S3DataType']}")
        if given.get("SplitType", "None") not in ("None", "Line"):
            raise not_here(f"TransformInput.SplitType {given['SplitType']}")
        training_request.check_experiment(request)
        resources = request["TransformResources"]
        cluster.check_limit(resources["InstanceCount"], resources["InstanceType"], "transform job")
        require_key(region, resources.get("VolumeKmsKeyId"), "TransformResources.VolumeKmsKeyId")
        require_key(region, target.get("KmsKeyId"), "TransformOutput.KmsKeyId")
        if request.get("DataCaptureConfig"):
            raise not_here("DataCaptureConfig of a transform job")
        payload = request.get("MaxPayloadInMB")
        size, concurrent = (
            DEFAULT_MAX_PAYLOAD_MB if payload is None else payload,
            request.get("MaxConcurrentTransforms") or 1,
        )
        if size * concurrent > LIMIT_MB:
            raise Fault(
                "ValidationException",
                f"MaxConcurrentTransforms ({concurrent}) * MaxPayloadInMB ({size}) cannot exceed {LIMIT_MB} MB.",
            )
        if not storage.bucket_exists(s3_uri(source["S3Uri"])):
            raise Fault(
                "ValidationException",
                f"The S3 bucket of TransformInput.DataSource.S3DataSource.S3Uri '{source['S3Uri']}' does not exist.",
            )
        if not storage.bucket_exists(s3_uri(target["S3OutputPath"])):
            raise Fault(
                "ValidationException",
                f"The S3 bucket of TransformOutput.S3OutputPath '{target['S3OutputPath']}' does not exist.",
            )
        _processing(request)

    # The life of a job

    def interrupt(self, job: TransformJob) -> None:
        with self.change:
            instances = list(job.instances)
        for instance in instances:
            threading.Thread(target=instance.stop, args=(STOP_GRACE_SECONDS,), daemon=True).start()

    def abandon(self, job: TransformJob) -> None:
        with self.change:
            instances = list(job.instances)
        for instance in instances:
            instance.stop(0)

    def work(self, job: TransformJob) -> None:
        source = job.request["TransformInput"]["DataSource"]["S3DataSource"]
        try:
            objects = s3data.resolve(source["S3Uri"], source["S3DataType"])
        except s3data.Unavailable as error:
            raise Failed(f"ClientError: {error}") from error
        try:
            instances = self._launch(job, min(job.request["TransformResources"]["InstanceCount"], len(objects)))
            problems: list[str] = []
            threads = [
                threading.Thread(
                    target=self._feed,
                    args=(job, instance, s3data.share(objects, hosts=len(instances), host=number), problems),
                    name=f"transform-{job.name}-{number}",
                )
                for number, instance in enumerate(instances)
            ]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(WATCH_SECONDS)
                self._cap_memory(job, problems)
        finally:
            for instance in job.instances:
                instance.stop(STOP_GRACE_SECONDS)
        if job.stopping.is_set():
            raise Stopped
        if problems:
            raise Failed(problems[0])

    def role(self, job: TransformJob) -> str | None:
        """Its model's."""
        arn: str | None = self.cloud.hosting.configs.model(job.region, job.request["ModelName"]).request[
            "ExecutionRoleArn"
        ]
        return arn

    def _cap_memory(self, job: TransformJob, problems: list[str]) -> None:
        """End the job when an instance of it holds more memory than it may."""
        kind = job.request["TransformResources"]["InstanceType"]
        for number, instance in enumerate(job.instances, 1):
            quota = Quota(f"algo-{number}", kind, instance.folder, 0, self.memory_bytes)
            if reason := quota.short_of_memory(instance.pid):
                job.broken.set()
                with self.change:
                    problems.insert(0, reason)
                instance.kill(reason)

    def _launch(self, job: TransformJob, count: int) -> list[Instance]:
        """That many healthy instances of the model's server."""
        model = self.cloud.hosting.configs.model(job.region, job.request["ModelName"])
        timeout, _ = _client_config(job)
        payload = job.request.get("MaxPayloadInMB", DEFAULT_MAX_PAYLOAD_MB)
        spec = VariantSpec(
            name=job.name,
            model=model.name,
            image=model.container["Image"],
            instances=count,
            weight=1.0,
            fetch=functools.partial(containers.fetch, model.container),
            layers=Environments(self.cloud.keeper),
            environment={
                **self.cloud.process_environment(job.region, self.role(job)),
                "SAGEMAKER_REGION": job.region,
                "SAGEMAKER_MODEL_SERVER_TIMEOUT": str(timeout),
                "WINDLASS_MAX_PAYLOAD_BYTES": str(payload * 1024 * 1024 or 2**31),
                **model.container.get("Environment", {}),
                **(job.request.get("Environment") or {}),
                "SAGEMAKER_BATCH": "true",
                "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(payload),
                "SAGEMAKER_BATCH_STRATEGY": _screaming(job.request.get("BatchStrategy", "MultiRecord")),
                "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(job.request.get("MaxConcurrentTransforms", 0)),
            },
        )
        open_log = functools.partial(self._log, job)

        def abort() -> str | None:
            return "stopping" if job.stopping.is_set() else None

        try:
            for number in range(count):
                instance = Instance(spec, job.folder / str(number), keeper=self.cloud.keeper, open_log=open_log)
                (instance.folder / "model").mkdir(parents=True)
                spec.fetch(instance.folder / "model")
                instance.install(abort)
                with self.change:
                    if job.stopping.is_set():
                        raise Stopped
                    job.instances.append(instance)
                    instance.launch()
            deadline = time.monotonic() + spec.startup_timeout_seconds
            for instance in job.instances:
                instance.wait_healthy(deadline, abort)
        except containers.FetchFailed as error:
            raise Failed(f"ClientError: {error}") from error
        except OSError as error:
            raise Failed(f"AlgorithmError: The model server could not be started: {error}") from error
        except FleetFailed as error:
            if job.stopping.is_set():
                raise Stopped from error
            reason = str(error).replace(f" for production variant {job.name}", "").replace("endpoint", "transform job")
            raise Failed(f"AlgorithmError: {reason}") from error
        return list(job.instances)

    def _log(self, job: TransformJob, stream: str) -> LogStream:
        return LogStream(job.region, LOG_GROUP, stream, self.cloud.clock)

    def _feed(self, job: TransformJob, instance: Instance, objects: list[S3Object], problems: list[str]) -> None:
        """Transform an instance's share of the objects. One that fails does not keep the others from being done."""
        settings = _settings(job, instance)
        log = self._log(job, f"{instance.stream}/data-log")
        log.write(
            f"{_stamp()}:[sagemaker logs]: MaxConcurrentTransforms={settings.concurrent},"
            f" MaxPayloadInMB={settings.payload_mb}, BatchStrategy={_screaming(settings.strategy)}"
        )

        def transform(number: int, each: S3Object) -> None:
            if job.stopping.is_set() or job.broken.is_set():
                return
            folder = instance.folder / "data" / str(number)
            folder.mkdir(parents=True)
            try:
                self._transform(job, instance, each, settings, requests, folder)
            except (_Refused, s3data.Unavailable) as error:
                place = each.uri.removeprefix("s3://")
                for line in str(error).splitlines():
                    log.write(f"{_stamp()}:[sagemaker logs]: {place}: {line}")
                fault = (
                    str(error) if str(error).startswith(("ClientError", "AlgorithmError")) else f"ClientError: {error}"
                )
                kind, _, said = fault.partition(": ")
                with self.change:
                    problems.append(f"{kind}: See job logs for more information. {place}: {said}")
            except Exception as error:  # it must fail the job, not only a thread of it
                logger.exception("The transform job %s failed inside the local cloud", job.name)
                with self.change:
                    problems.append(f"InternalServerError: {type(error).__name__}: {error}")
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        # Objects and requests have threads of their own, so that small objects keep the instance as busy as big ones do.
        with (
            ThreadPoolExecutor(settings.concurrent, f"request-{job.name}") as requests,
            ThreadPoolExecutor(settings.concurrent, f"object-{job.name}") as running,
        ):
            for number, each in enumerate(objects):
                running.submit(transform, number, each)

    def _transform(
        self,
        job: TransformJob,
        instance: Instance,
        each: S3Object,
        settings: _Settings,
        requests: ThreadPoolExecutor,
        folder: Path,
    ) -> None:
        """One object, from S3 to S3. Its records keep their order."""
        given, target = job.request["TransformInput"], job.request["TransformOutput"]
        source, result = folder / "in", folder / "out"
        s3data.download([S3Object(each.uri, "in")], folder)
        processing = _processing(job.request)
        lines = target.get("AssembleWith") == "Line"
        window: deque[Future[bytes]] = deque()
        with _opened(source, given.get("CompressionType") == "Gzip") as stream, result.open("wb") as output:

            def collect() -> None:
                answer = window.popleft().result()
                output.write(answer)
                if lines and not answer.endswith(b"\n"):
                    output.write(b"\n")

            try:
                split = given.get("SplitType") == "Line"
                single = settings.strategy == "SingleRecord"
                for batch in batches(stream, split=split, single=single, limit=settings.payload_bytes):
                    if len(window) >= settings.concurrent:
                        collect()
                    window.append(requests.submit(self._ask, job, instance, processing, batch))
                while window:
                    collect()
            except TooLarge as error:
                raise _Refused(f"ClientError: {error}, MaxPayloadInMB is {settings.payload_mb}") from error
            except BadRecord as error:
                raise _Refused(f"ClientError: {error}") from error
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise _Refused(f"ClientError: The object is not compressed with gzip: {error}") from error
            finally:
                for future in window:
                    future.cancel()
        if job.stopping.is_set():
            return
        try:
            uri = f"{s3_uri(target['S3OutputPath']).rstrip('/')}/{each.name}.out"
            storage.write(uri, result, target.get("KmsKeyId") or None)
        except storage.Missing as error:
            raise _Refused(f"ClientError: Failed to upload the output: {error}") from error

    def _ask(self, job: TransformJob, instance: Instance, processing: Processing | None, batch: list[bytes]) -> bytes:
        """The model's answer to one batch, joined and filtered. Tries again when the server fails."""
        given, target = job.request["TransformInput"], job.request["TransformOutput"]
        headers = {"Content-Type": given.get("ContentType") or "application/octet-stream"}
        if target.get("Accept"):
            headers["Accept"] = target["Accept"]
        body = b"\n".join(processing.inputs(batch) if processing else batch)
        timeout, retries = _client_config(job)
        problem = ""
        for attempt in range(retries + 1):
            if job.stopping.wait(min(0.1 * 2**attempt, 5.0) if attempt else 0) or job.broken.is_set():
                raise _Refused("ClientError: The transform job was stopped")
            try:
                reply = instance.request("POST", "/invocations", headers, body, timeout)
            except Unanswered as error:
                problem = f"AlgorithmError: Unable to get response from algorithm: {error}"
                continue
            if 200 <= reply.status < 300:
                return processing.outputs(batch, reply.body) if processing else reply.body
            problem = _complaint(reply)
            if reply.status < 500:
                break  # it would say the same again
        raise _Refused(problem)


def _processing(request: Mapping[str, Any]) -> Processing | None:
    """What DataProcessing asks for; None for nothing. Raises AWS's error when it cannot be done."""
    asked = request.get("DataProcessing") or {}
    filters = [asked.get("InputFilter") or "$", asked.get("OutputFilter") or "$"]
    join = asked.get("JoinSource") == "Input"
    if filters == ["$", "$"] and not join:
        return None
    content, accept = request["TransformInput"].get("ContentType"), request["TransformOutput"].get("Accept")
    kind = kind_of(content)
    if kind is None or (accept and kind_of(accept) != kind):
        raise Fault(
            "ValidationException",
            "With DataProcessing, TransformInput.ContentType and TransformOutput.Accept must both be text/csv or both be"
            f" application/json or application/jsonlines, not '{content or ''}' and '{accept or ''}'.",
        )
    try:
        return Processing.parse(kind, *filters, join=join)
    except ValueError as error:
        raise Fault("ValidationException", f"DataProcessing: {error}") from error


def _settings(job: TransformJob, instance: Instance) -> _Settings:
    asked = {name: job.request.get(name) for name in ("MaxConcurrentTransforms", "MaxPayloadInMB", "BatchStrategy")}
    told: Mapping[str, Any] = {}
    if not asked["MaxConcurrentTransforms"] or asked["MaxPayloadInMB"] is None or not asked["BatchStrategy"]:
        told = _execution_parameters(instance)
    strategy = asked["BatchStrategy"] or told.get("BatchStrategy")
    payload = asked["MaxPayloadInMB"] if asked["MaxPayloadInMB"] is not None else told.get("MaxPayloadInMB")
    return _Settings(
        concurrent=int(asked["MaxConcurrentTransforms"] or told.get("MaxConcurrentTransforms") or 1),
        payload_mb=int(DEFAULT_MAX_PAYLOAD_MB if payload is None else payload),
        strategy="SingleRecord" if strategy in ("SingleRecord", "SINGLE_RECORD") else "MultiRecord",
    )


def _execution_parameters(instance: Instance) -> Mapping[str, Any]:
    """What the container itself asks for. It need not answer."""
    try:
        reply = instance.request("GET", "/execution-parameters", {}, b"", 5.0)
        told = json.loads(reply.body) if reply.status == 200 else {}
    except (Unanswered, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _client_config(job: TransformJob) -> tuple[int, int]:
    config = job.request.get("ModelClientConfig") or {}
    return (
        int(config.get("InvocationsTimeoutInSeconds") or DEFAULT_TIMEOUT_SECONDS),
        int(config.get("InvocationsMaxRetries", DEFAULT_RETRIES)),
    )


def _complaint(reply: Reply) -> str:
    kind = "ClientError" if reply.status < 500 else "AlgorithmError"
    return f"{kind}: {reply.status}\n\nMessage:\n{reply.body.decode('utf-8', 'replace')}"


def _opened(path: Path, compressed: bool) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path) if compressed else path.open("rb")


def _screaming(strategy: str) -> str:
    return "SINGLE_RECORD" if strategy == "SingleRecord" else "MULTI_RECORD"


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
