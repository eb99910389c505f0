"""One step of an execution, from its expressions to what they asked for: made by the cloud's own operations, and waited for.

steps.run(execution, run)       # brings the run to Succeeded, Failed or Stopped
steps.stop(execution, run)      # what StopPipelineExecution does to a job that runs
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import string
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from windlass.local import storage
from windlass.local.faults import Fault
from windlass.local.jobs.containers import s3_uri
from windlass.local.jobs.lifecycle import REASON_CHARACTERS
from windlass.local.pipelines import definition as definitions
from windlass.local.pipelines.definition import JOBS, Step, Unresolved
from windlass.local.pipelines.execution import JOB_STEPS, Execution, Pipeline, StepRun, iso
from windlass.local.pipelines.policies import (
    CAPACITY_ERROR,
    INTERNAL_ERROR,
    RESOURCE_LIMIT,
    SERVICE_FAULT,
    THROTTLING,
    Cache,
)

if TYPE_CHECKING:
    from windlass.local.cloud import Cloud

log = logging.getLogger(__name__)

Call = Callable[[str, str, Mapping[str, Any]], dict[str, Any]]

# Which ExceptionType of a RetryPolicy an error of an operation is, or how a job's FailureReason begins.
_REFUSALS = {
    "ThrottlingException": THROTTLING,
    "ResourceLimitExceeded": RESOURCE_LIMIT,
    "InternalFailure": SERVICE_FAULT,
    "InternalServerError": SERVICE_FAULT,
    "ServiceUnavailable": SERVICE_FAULT,
}
_JOB_FAILURES = {"InternalServerError": INTERNAL_ERROR, "CapacityError": CAPACITY_ERROR}
_ALPHABET = string.ascii_lowercase + string.digits


class StepFailed(Exception):
    """A step ends as Failed, with this FailureReason.

    Attributes:
        kind: as ExceptionType of a RetryPolicy names it; empty for what no policy can be for.
    """

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.kind = kind


class _Scope:
    """What the expressions of one step see."""

    def __init__(self, cloud: Cloud, execution: Execution, job_name: str) -> None:
        self._cloud, self._execution, self._job_name = cloud, execution, job_name

    def parameter(self, name: str) -> Any:
        return self._execution.parameters[name]

    def execution(self, name: str) -> Any:
        pipeline, execution = self._execution.pipeline, self._execution
        return {
            "PipelineExecutionId": execution.id,
            "PipelineExecutionArn": execution.arn,
            "PipelineName": pipeline.name,
            "PipelineArn": pipeline.arn,
            "StartDateTime": iso(execution.created),
            "CurrentDateTime": iso(self._cloud.clock.now()),
            "TrainingJobName": self._job_name,
            "ProcessingJobName": self._job_name,
        }[name]

    def properties(self, step: str) -> Mapping[str, Any]:
        return self._execution.runs[step].properties

    def property_file(self, step: str, name: str) -> Any:
        file = self._execution.definition.steps[step].files[name]
        outputs = (self.properties(step).get("ProcessingOutputConfig") or {}).get("Outputs") or []
        for output in outputs:
            if output["OutputName"] == file.output and output.get("S3Output"):
                return self.json_at(f"{output['S3Output']['S3Uri'].rstrip('/')}/{file.path.lstrip('/')}")
        raise Unresolved(f"Step '{step}' has no output '{file.output}', which its property file '{name}' is in")

    def json_at(self, uri: str) -> Any:
        try:
            return json.loads(storage.read(s3_uri(uri)))
        except storage.Missing as error:
            raise Unresolved(f"JsonGet cannot read {uri}: {error}") from error
        except ValueError as error:
            raise Unresolved(f"JsonGet cannot read {uri}, which is not JSON: {error}") from error


class Steps:
    """Who does them.

    Args:
        call: runs one operation of the SageMaker API; the cloud's own by default.
        change: held while what is known of a run changes, and told of it.
        save: keeps what a later server is to know of an execution.
        history: all executions of a pipeline.
    """

    def __init__(
        self,
        cloud: Cloud,
        call: Call | None,
        change: threading.Condition,
        save: Callable[[Execution], None],
        history: Callable[[Pipeline], Sequence[Execution]],
    ) -> None:
        self._cloud, self._call, self._change, self._save = cloud, call or _call, change, save
        self._history = history

    def run(self, execution: Execution, run: StepRun) -> None:
        """Bring it to its end, whatever that is."""
        status, failure = "Succeeded", None
        try:
            if run.step.kind == "Fail":
                run.message = str(definitions.evaluate(run.step.arguments["ErrorMessage"], self._scope(execution, run)))
                raise StepFailed(run.message)
            if run.step.kind == "Condition":
                scope = self._scope(execution, run)
                run.outcome = all(definitions.holds(each, scope) for each in run.step.arguments["Conditions"])
                run.properties = {"Outcome": "True" if run.outcome else "False"}
            else:
                self._do_with_policies(execution, run)
        except (StepFailed, Unresolved) as error:
            status, failure = "Failed", str(error)
        except Exception as error:  # a step must end in a state, not in a silent thread
            log.exception("Step %s of %s failed inside the local cloud", run.step.name, execution.arn)
            status, failure = "Failed", f"InternalServerError: {type(error).__name__}: {error}"
        with self._change:
            if run.status == "Stopping" and status == "Failed":
                status, failure = "Stopped", None
            run.status, run.ended = status, self._cloud.clock.now()
            run.failure = failure[:REASON_CHARACTERS] if failure else None
            self._save(execution)
            self._change.notify_all()

    def _do_with_policies(self, execution: Execution, run: StepRun) -> None:
        """Do it, or take what an earlier run has left; after some failures, do it again."""
        if run.step.cache and self._take_from_cache(execution, run, run.step.cache):
            return
        while True:
            try:
                self._do(execution, run)
            except StepFailed as failed:
                pace, passed = self._cloud.pace, self._cloud.clock.now() - run.started
                policy = next((each for each in run.step.retries if failed.kind in each.exceptions), None)
                delay = policy.delay(run.attempts, passed * pace.speed) if policy else None
                if delay is None:
                    raise
                with self._change:
                    if self._change.wait_for(lambda: run.status == "Stopping", delay / pace.speed):
                        raise
                    run.attempts += 1
                    run.status, run.arn = "Starting", ""
                    self._save(execution)
            else:
                return

    def _take_from_cache(self, execution: Execution, run: StepRun, cache: Cache) -> bool:
        """Whether the step has run before with the same arguments, and not too long ago: then with its results."""
        arguments = self._request(execution, run)
        told = json.dumps([run.step.kind, arguments], sort_keys=True, default=str)
        run.cache_key = hashlib.sha256(told.encode()).hexdigest()
        oldest = self._cloud.clock.now() - cache.seconds
        with self._change:
            for other in sorted(self._history(execution.pipeline), key=lambda each: each.created, reverse=True):
                found = other.runs.get(run.step.name)
                if (
                    found is None
                    or (found.status, found.source, found.cache_key) != ("Succeeded", "", run.cache_key)
                    or (found.ended or 0.0) < oldest
                ):
                    continue
                run.made, run.arn, run.properties, run.source = found.made, found.arn, found.properties, other.arn
                return True
        return False

    def _request(self, execution: Execution, run: StepRun) -> dict[str, Any]:
        """What it asks the operation for, but for the name."""
        arguments = definitions.evaluate(dict(run.step.arguments), self._scope(execution, run))
        return definitions.request(run.step, arguments)

    def _do(self, execution: Execution, run: StepRun) -> None:
        """Create what the step is for, and wait until it is done."""
        region, step = execution.pipeline.region, run.step
        noun = JOBS[step.kind]
        run.made = _job_name(execution, step)
        request = self._request(execution, run)
        if step.kind == "RegisterModel":
            self._ensure_group(region, request.get("ModelPackageGroupName"))
        else:
            request[f"{noun}Name"] = run.made
        request["Tags"] = [
            *(request.get("Tags") or []),
            {"Key": "sagemaker:pipeline-execution-arn", "Value": execution.arn},
            {"Key": "sagemaker:pipeline-step-name", "Value": step.name},
        ]
        try:
            answer = self._call(region, f"Create{noun}", request)
        except Fault as error:
            raise StepFailed(
                f"ClientError: Failed to invoke sagemaker:Create{noun}. Error Details: {error.message}",
                _REFUSALS.get(error.code, ""),
            ) from error
        with self._change:
            run.arn = str(answer[f"{noun}Arn"])
            run.made = run.arn if step.kind == "RegisterModel" else run.made
            stopping = run.status == "Stopping"
            if not stopping:
                run.status = "Executing"
            self._save(execution)
        if stopping:  # the request to stop came while it was being created
            self.stop(execution, run)
        if step.kind in JOB_STEPS:
            self._wait(step.kind, region, run.made)
        try:
            told = self._call(region, f"Describe{noun}", {f"{noun}Name": run.made})
            if step.kind == "Tuning":
                told["TrainingJobSummaries"] = self._ranked(region, run.made, told)
        except Fault as error:
            raise StepFailed(f"ClientError: {noun} {run.made} is gone: {error.message}") from error
        run.properties = told
        status = told.get(f"{noun}Status", "Completed")
        if status != "Completed":
            reason = told.get("FailureReason") or f"{noun} {run.made} ended in status {status}"
            raise StepFailed(f"ClientError: {reason}", _JOB_FAILURES.get(reason.partition(":")[0], ""))

    def _ranked(self, region: str, name: str, told: Mapping[str, Any]) -> Sequence[Any]:
        """The training jobs of a tuning step, the best first: what ``TrainingJobSummaries[0]`` refers to."""
        best = told.get("BestTrainingJob", {}).get("FinalHyperParameterTuningJobObjectiveMetric", {})
        order = "Descending" if best.get("Type") == "Maximize" else "Ascending"
        answer = self._call(
            region,
            "ListTrainingJobsForHyperParameterTuningJob",
            {"HyperParameterTuningJobName": name, "SortBy": "FinalObjectiveMetricValue", "SortOrder": order},
        )
        found: Sequence[Any] = answer["TrainingJobSummaries"]
        return found

    def _ensure_group(self, region: str, name: str | None) -> None:
        """Make the model package group of a RegisterModel step when there is none yet, as pipelines do."""
        if not name or name.startswith("arn:"):
            return
        try:
            self._call(region, "DescribeModelPackageGroup", {"ModelPackageGroupName": name})
        except Fault:
            try:
                self._call(region, "CreateModelPackageGroup", {"ModelPackageGroupName": name})
            except Fault as error:
                log.debug("%s", error)  # another step was faster; if not, CreateModelPackage says why

    def stop(self, execution: Execution, run: StepRun) -> None:
        """Stop what it has started."""
        if run.step.kind not in JOB_STEPS or not run.arn:
            return
        noun = JOBS[run.step.kind]
        try:
            self._call(execution.pipeline.region, f"Stop{noun}", {f"{noun}Name": run.made})
        except Fault as error:
            log.debug("%s", error)  # it has just ended by itself

    def _wait(self, kind: str, region: str, name: str) -> None:
        cloud = self._cloud
        waits: Mapping[str, Callable[[str, str, float | None], str]] = {
            "Training": cloud.jobs.wait,
            "Processing": cloud.processing.wait,
            "Transform": cloud.transform.wait,
            "Tuning": cloud.tuning.wait,
        }
        waits[kind](region, name, None)

    def _scope(self, execution: Execution, run: StepRun) -> _Scope:
        return _Scope(self._cloud, execution, run.made)


def _call(region: str, action: str, params: Mapping[str, Any]) -> dict[str, Any]:
    from windlass.local import sagemaker  # late: it is made of all these parts

    return sagemaker.call(region, action, params)


def _job_name(execution: Execution, step: Step) -> str:
    """As SageMaker names what its pipelines create, within the length that the kind allows."""
    if step.kind == "Tuning":
        return f"{execution.id}-{_slug(step.name, 8)}-{random_id(10)}"
    return f"pipelines-{execution.id}-{_slug(step.name, 28)}-{random_id(10)}"


def _slug(name: str, length: int) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:length].strip("-")


def random_id(length: int) -> str:
    """Letters and digits, as the ids of executions are."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
