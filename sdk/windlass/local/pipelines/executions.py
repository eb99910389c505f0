"""Pipelines: CreatePipeline keeps a definition, StartPipelineExecution runs it, step by step, with the cloud's own operations.

    pipelines = Pipelines(cloud)
    pipelines.create("us-east-1", request)                        # checks the definition as AWS does
    pipelines.start(arn, {"Epochs": "3"}, token)                  # what EventBridge does; returns the execution's ARN

Steps that do not need each other run at once. What a definition means is in `pipeline_definition.py`.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import string
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from moto.core.responses import ActionResult

from windlass.local import cloud as clouds
from windlass.local import storage
from windlass.local.faults import Fault, not_here
from windlass.local.iam.authorizer import as_role
from windlass.local.jobs.containers import s3_uri
from windlass.local.jobs.lifecycle import when
from windlass.local.listing import select
from windlass.local.pipelines import definition as definitions
from windlass.local.pipelines.definition import JOBS, BadDefinition, Definition, Step, Unresolved

if TYPE_CHECKING:
    from windlass.local.cloud import Cloud

log = logging.getLogger(__name__)

Call = Callable[[str, str, Mapping[str, Any]], dict[str, Any]]

DEFAULT_PARALLEL_STEPS = 50
"""As many as SageMaker runs at once in one execution."""

REASON_CHARACTERS = 1024
_ALPHABET = string.ascii_lowercase + string.digits
_METADATA = {
    "Tuning": "TuningJob",
    "Training": "TrainingJob",
    "Processing": "ProcessingJob",
    "Transform": "TransformJob",
}
_ARN = re.compile(r"arn:aws:sagemaker:([^:]+):[^:]+:pipeline/([^/]+)(/execution/[^/]+)?")


class _StepFailed(Exception):
    """A step ends as Failed, with this FailureReason."""


@dataclass(eq=False)
class Pipeline:
    """One pipeline. ``text`` is its definition as it was given, ``tokens`` are those of the requests that started it."""

    region: str
    name: str
    arn: str
    request: dict[str, Any]
    text: str
    definition: Definition
    created: float
    modified: float
    last_run: float | None = None
    tokens: dict[str, str] = field(default_factory=dict)


_SAVED_OF_PIPELINE = ("region", "name", "arn", "request", "text", "created", "modified", "last_run", "tokens")
_SAVED_OF_EXECUTION = ("id", "request", "text", "parameters", "created", "modified", "status", "failure")
_SAVED_OF_RUN = (
    "started",
    "status",
    "ended",
    "failure",
    "made",
    "arn",
    "properties",
    "outcome",
    "message",
    "attempts",
)


@dataclass(eq=False)
class StepRun:
    """One step of an execution, since it has started.

    Attributes:
        made: the name of what it created, as the Describe and Stop operations want it.
        properties: what other steps can refer to.
        outcome: of a condition.
    """

    step: Step
    started: float
    status: str = "Starting"
    ended: float | None = None
    failure: str | None = None
    made: str = ""
    arn: str = ""
    properties: dict[str, Any] = field(default_factory=dict)
    outcome: bool | None = None
    message: str = ""
    attempts: int = 1

    @property
    def over(self) -> bool:
        return self.status in ("Stopped", "Failed", "Succeeded")


@dataclass(eq=False)
class Execution:
    """One run of a pipeline, with the definition as it was when it started."""

    pipeline: Pipeline
    id: str
    request: Mapping[str, Any]
    text: str
    definition: Definition
    parameters: dict[str, Any]
    created: float
    modified: float
    status: str = "Executing"
    failure: str | None = None
    runs: dict[str, StepRun] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def arn(self) -> str:
        return f"{self.pipeline.arn}/execution/{self.id}"

    @property
    def parallel(self) -> int:
        config = self.request.get("ParallelismConfiguration") or self.pipeline.request.get("ParallelismConfiguration")
        return int((config or {}).get("MaxParallelExecutionSteps") or DEFAULT_PARALLEL_STEPS)


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
            "StartDateTime": _iso(execution.created),
            "CurrentDateTime": _iso(self._cloud.clock.now()),
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


class Pipelines:
    """Every pipeline of one local cloud, and its executions.

    Args:
        call: runs one operation of the SageMaker API; the cloud's own by default.
    """

    def __init__(self, cloud: Cloud, call: Call | None = None) -> None:
        self._cloud = cloud
        self._call = call or _call
        self._change = threading.Condition(threading.RLock())
        self._pipelines: dict[tuple[str, str], Pipeline] = {}
        self._executions: dict[str, Execution] = {}
        self._kept_pipelines = cloud.database.table("pipelines")
        self._kept_executions = cloud.database.table("pipeline-executions")
        self._closing = False

    def restore(self) -> None:
        """Put back the pipelines of an earlier server, and their executions. What it did not finish has failed."""
        for record in self._kept_pipelines.values():
            pipeline = Pipeline(definition=definitions.parse(record["text"]), **record)
            self._pipelines[pipeline.region, pipeline.name.lower()] = pipeline
        for record in self._kept_executions.values():
            pipeline = self._pipelines[record.pop("region"), record.pop("pipeline")]
            runs, tokens = record.pop("runs"), set(record.pop("tokens"))
            definition = definitions.parse(record["text"])
            execution = Execution(pipeline, definition=definition, tokens=tokens, **record)
            execution.runs = {name: StepRun(definition.steps[name], **run) for name, run in runs.items()}
            execution.done.set()
            self._executions[execution.arn] = execution
            if execution.status in ("Executing", "Stopping"):
                self._fail_interrupted(execution)

    def _fail_interrupted(self, execution: Execution) -> None:
        before = execution.status
        with self._change:
            for run in execution.runs.values():
                if not run.over:
                    run.status, run.ended = "Failed", self._now()
                    run.failure = "InternalServerError: The local cloud ended while the step was running."
            execution.failure = (
                "The local cloud ended while the pipeline was running. Go on with RetryPipelineExecution."
            )
            self._become(execution, "Failed")
        self._announce(execution, before)

    def _save_pipeline(self, pipeline: Pipeline) -> None:
        key = f"{pipeline.region}/{pipeline.name.lower()}"
        self._kept_pipelines.save(key, {name: getattr(pipeline, name) for name in _SAVED_OF_PIPELINE})

    def _save(self, execution: Execution) -> None:
        """Keep what a later server is to know. Called with every change that a client can see."""
        if self._closing or self._executions.get(execution.arn) is not execution:
            return  # what happens to it after that is not its own doing
        record = {name: getattr(execution, name) for name in _SAVED_OF_EXECUTION}
        record |= {"region": execution.pipeline.region, "pipeline": execution.pipeline.name.lower()}
        record["tokens"] = sorted(execution.tokens)
        record["runs"] = {
            name: {member: getattr(run, member) for member in _SAVED_OF_RUN} for name, run in execution.runs.items()
        }
        self._kept_executions.save(execution.arn, record)

    # -- pipelines ----------------------------------------------------------------------------------------------------

    def create(self, region: str, request: Mapping[str, Any]) -> str:
        """CreatePipeline. Returns the ARN."""
        name = str(request["PipelineName"])
        if request.get("PipelineVersionAliases"):
            raise not_here("PipelineVersionAliases")
        text, definition = _read_definition(request)
        now = self._now()
        arn = f"arn:aws:sagemaker:{region}:{clouds.ACCOUNT}:pipeline/{name.lower()}"
        with self._change:
            existing = self._pipelines.get((region, name.lower()))
            if existing:
                if existing.request["ClientRequestToken"] == request["ClientRequestToken"]:
                    return existing.arn  # the same request, sent again
                raise Fault(
                    "ValidationException",
                    f"Pipeline names must be unique within an AWS account and region. Pipeline with name ({name}) already"
                    " exists.",
                )
            pipeline = Pipeline(region, name, arn, dict(request), text, definition, now, now)
            self._pipelines[region, name.lower()] = pipeline
            self._save_pipeline(pipeline)
        return arn

    def update(self, region: str, request: Mapping[str, Any]) -> str:
        """UpdatePipeline. Executions that run go on with the definition that they started with."""
        if request.get("PipelineVersionAliases"):
            raise not_here("PipelineVersionAliases")
        with self._change:
            pipeline = self._find(region, request["PipelineName"])
            if request.get("PipelineDefinition") or request.get("PipelineDefinitionS3Location"):
                pipeline.text, pipeline.definition = _read_definition(request)
            pipeline.request |= {name: value for name, value in request.items() if name != "PipelineName"}
            pipeline.modified = self._now()
            self._save_pipeline(pipeline)
            return pipeline.arn

    def describe(self, region: str, name: str) -> dict[str, Any]:
        """DescribePipeline's answer."""
        with self._change:
            pipeline = self._find(region, name)
            return {
                "PipelineArn": pipeline.arn,
                "PipelineName": pipeline.name,
                "PipelineDisplayName": pipeline.request.get("PipelineDisplayName", pipeline.name),
                "PipelineDefinition": pipeline.text,
                "PipelineDescription": pipeline.request.get("PipelineDescription"),
                "RoleArn": pipeline.request["RoleArn"],
                "PipelineStatus": "Active",
                "CreationTime": when(pipeline.created),
                "LastModifiedTime": when(pipeline.modified),
                "LastRunTime": when(pipeline.last_run),
                "ParallelismConfiguration": pipeline.request.get("ParallelismConfiguration"),
            }

    def list(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListPipelines' answer."""
        prefix = params.get("PipelineNamePrefix", "")
        with self._change:
            summaries = [
                {
                    "PipelineArn": each.arn,
                    "PipelineName": each.name,
                    "PipelineDisplayName": each.request.get("PipelineDisplayName", each.name),
                    "PipelineDescription": each.request.get("PipelineDescription"),
                    "RoleArn": each.request["RoleArn"],
                    "CreationTime": when(each.created),
                    "LastModifiedTime": when(each.modified),
                    "LastExecutionTime": when(each.last_run),
                }
                for each in self._pipelines.values()
                if each.region == region and each.name.startswith(prefix)
            ]
        page, token = select(summaries, _asked(params), name="PipelineName")
        return {"PipelineSummaries": page, "NextToken": token}

    def delete(self, region: str, name: str) -> str:
        """DeletePipeline: with its executions, none of which may be running."""
        with self._change:
            pipeline = self._find(region, name)
            mine = [each for each in self._executions.values() if each.pipeline is pipeline]
            if any(each.status in ("Executing", "Stopping") for each in mine):
                raise Fault(
                    "ConflictException",
                    f"Pipeline {pipeline.arn} cannot be deleted while it is being executed. Stop its executions first.",
                )
            for each in mine:
                del self._executions[each.arn]
                self._kept_executions.delete(each.arn)
            del self._pipelines[pipeline.region, pipeline.name.lower()]
            self._kept_pipelines.delete(f"{pipeline.region}/{pipeline.name.lower()}")
            return pipeline.arn

    # -- executions ---------------------------------------------------------------------------------------------------

    def start(self, arn: str, parameters: Mapping[str, str], token: str) -> str:
        """Start a pipeline, as an EventBridge target does. Returns the execution's ARN; raises AWS's errors.

        Args:
            token: the same token starts the same execution only once.
        """
        given = [{"Name": name, "Value": value} for name, value in parameters.items()]
        request = {"PipelineName": arn, "PipelineParameters": given, "ClientRequestToken": token}
        return self.start_execution(arn.split(":")[3], request)

    def start_execution(self, region: str, request: Mapping[str, Any]) -> str:
        """StartPipelineExecution. Returns the ARN."""
        for member in ("SelectiveExecutionConfig", "PipelineVersionId", "PipelineVersionAlias", "MlflowExperimentName"):
            if request.get(member):
                raise not_here(f"{member} of StartPipelineExecution")
        with self._change:
            pipeline = self._find(region, request["PipelineName"])
            token = request["ClientRequestToken"]
            if token in pipeline.tokens:
                return pipeline.tokens[token]
            parameters = _read_parameters(pipeline.definition, request.get("PipelineParameters") or [])
            now = self._now()
            execution = Execution(
                pipeline, _random(12), dict(request), pipeline.text, pipeline.definition, parameters, now, now
            )
            pipeline.last_run = now
            pipeline.tokens[token] = execution.arn
            self._executions[execution.arn] = execution
            self._save_pipeline(pipeline)
            self._save(execution)
        self._launch(execution, "")
        return execution.arn

    def stop_execution(self, request: Mapping[str, Any]) -> str:
        """StopPipelineExecution: no step starts any more, and those that run are stopped."""
        with self._change:
            execution = self._execution(request["PipelineExecutionArn"])
            if request["ClientRequestToken"] in execution.tokens:
                return execution.arn
            if execution.status not in ("Executing", "Stopping"):
                raise Fault(
                    "ValidationException",
                    f"Pipeline execution {execution.arn} cannot be stopped: it is in status {execution.status}.",
                )
            execution.tokens.add(request["ClientRequestToken"])
            changed = execution.status != "Stopping"
            self._become(execution, "Stopping")
            running = [run for run in execution.runs.values() if not run.over]
            for run in running:
                run.status = "Stopping"
        if changed:
            self._announce(execution, "Executing")
        for run in running:
            self._stop_step(execution, run)
        return execution.arn

    def retry_execution(self, request: Mapping[str, Any]) -> str:
        """RetryPipelineExecution: what succeeded stays, the rest runs again."""
        with self._change:
            execution = self._execution(request["PipelineExecutionArn"])
            if request["ClientRequestToken"] in execution.tokens:
                return execution.arn
            if execution.status not in ("Failed", "Stopped"):
                raise Fault(
                    "ValidationException",
                    f"Pipeline execution {execution.arn} cannot be retried: it is in status {execution.status}, not Failed or"
                    " Stopped.",
                )
            execution.done.wait()
            execution.tokens.add(request["ClientRequestToken"])
            if request.get("ParallelismConfiguration"):
                execution.request = {
                    **execution.request,
                    "ParallelismConfiguration": request["ParallelismConfiguration"],
                }
            execution.runs = {name: run for name, run in execution.runs.items() if run.status == "Succeeded"}
            execution.failure = None
            before = execution.status
            self._become(execution, "Executing")
            execution.done.clear()
        self._launch(execution, before)
        return execution.arn

    def update_execution(self, request: Mapping[str, Any]) -> str:
        """UpdatePipelineExecution: its names, and how many steps run at once."""
        with self._change:
            execution = self._execution(request["PipelineExecutionArn"])
            execution.request = {**execution.request, **request}
            self._save(execution)
            self._change.notify_all()
            return execution.arn

    def describe_execution(self, arn: str) -> dict[str, Any]:
        """DescribePipelineExecution's answer."""
        with self._change:
            execution = self._execution(arn)
            return {
                "PipelineArn": execution.pipeline.arn,
                "PipelineExecutionArn": execution.arn,
                "PipelineExecutionDisplayName": _display_name(execution),
                "PipelineExecutionStatus": execution.status,
                "PipelineExecutionDescription": execution.request.get("PipelineExecutionDescription"),
                "FailureReason": execution.failure,
                "CreationTime": when(execution.created),
                "LastModifiedTime": when(execution.modified),
                "ParallelismConfiguration": execution.request.get("ParallelismConfiguration"),
            }

    def describe_definition(self, arn: str) -> dict[str, Any]:
        """DescribePipelineDefinitionForExecution's answer."""
        with self._change:
            execution = self._execution(arn)
            return {"PipelineDefinition": execution.text, "CreationTime": when(execution.created)}

    def list_executions(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListPipelineExecutions' answer."""
        with self._change:
            pipeline = self._find(region, params["PipelineName"])
            summaries = [
                {
                    "PipelineExecutionArn": each.arn,
                    "StartTime": when(each.created),
                    "CreationTime": when(each.created),
                    "PipelineExecutionStatus": each.status,
                    "PipelineExecutionDescription": each.request.get("PipelineExecutionDescription"),
                    "PipelineExecutionDisplayName": _display_name(each),
                    "PipelineExecutionFailureReason": each.failure,
                }
                for each in self._executions.values()
                if each.pipeline is pipeline
            ]
        page, token = select(summaries, _asked(params), name="PipelineExecutionArn")
        return {"PipelineExecutionSummaries": _without_creation(page), "NextToken": token}

    def list_steps(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListPipelineExecutionSteps' answer: the steps that have started, the latest first."""
        with self._change:
            execution = self._execution(params.get("PipelineExecutionArn", ""))
            steps = [
                {
                    "StepName": run.step.name,
                    "StepDisplayName": run.step.display_name,
                    "StepDescription": run.step.description,
                    "StartTime": when(run.started),
                    "CreationTime": when(run.started),
                    "EndTime": when(run.ended),
                    "StepStatus": run.status,
                    "FailureReason": run.failure,
                    "Metadata": _metadata(run),
                    "AttemptCount": run.attempts,
                }
                for run in execution.runs.values()
            ]
        page, token = select(steps, _asked(params), name="StepName")
        return {"PipelineExecutionSteps": _without_creation(page), "NextToken": token}

    def list_parameters(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListPipelineParametersForExecution's answer."""
        with self._change:
            execution = self._execution(params["PipelineExecutionArn"])
            listed = [
                {"Name": name, "Value": value if isinstance(value, str) else json.dumps(value), "CreationTime": 0}
                for name, value in execution.parameters.items()
            ]
        page, token = select(listed, {"SortBy": "Name", **params}, name="Name")
        return {"PipelineParameters": _without_creation(page), "NextToken": token}

    def wait(self, arn: str, timeout: float | None) -> str:
        """The execution's status once it is over, or after that many seconds."""
        execution = self._execution(arn)
        execution.done.wait(timeout)
        return execution.status

    def reset(self) -> None:
        """End every execution, and forget all pipelines."""
        self.close()
        with self._change:
            self._pipelines.clear()
            self._executions.clear()
            self._closing = False

    def close(self) -> None:
        """Start no step any more. The jobs that run are ended by those who hold them."""
        with self._change:
            self._closing = True
            self._change.notify_all()

    # -- one execution, in its own thread -----------------------------------------------------------------------------

    def _launch(self, execution: Execution, before: str) -> None:
        self._announce(execution, before)
        threading.Thread(target=self._run, args=(execution,), name=f"pipeline-{execution.id}", daemon=True).start()

    def _run(self, execution: Execution) -> None:
        with self._change:
            while not self._closing:
                running = sum(not run.over for run in execution.runs.values())
                ready = [step for step in execution.definition.steps.values() if self._may_start(execution, step)]
                for step in ready[: max(0, execution.parallel - running)]:
                    run = execution.runs[step.name] = StepRun(step, self._now())
                    self._save(execution)
                    threading.Thread(
                        target=as_role(execution.pipeline.request["RoleArn"], self._run_step),
                        args=(execution, run),
                        name=f"step-{step.name}",
                        daemon=True,
                    ).start()
                    running += 1
                if not running and not ready:
                    break
                self._change.wait()
            before = execution.status
            failed = any(run.status == "Failed" for run in execution.runs.values())
            if before == "Stopping" or self._closing:
                self._become(execution, "Stopped")
            elif failed:
                execution.failure = "Step failure: One or multiple steps failed."
                self._become(execution, "Failed")
            else:
                self._become(execution, "Succeeded")
        self._announce(execution, before)
        execution.done.set()

    def _may_start(self, execution: Execution, step: Step) -> bool:
        runs = execution.runs
        if step.name in runs or execution.status != "Executing":
            return False
        # What runs when a step fails runs to its end, but nothing new starts.
        if any(run.status == "Failed" for run in runs.values()):
            return False
        if not all(name in runs and runs[name].status == "Succeeded" for name in step.needs):
            return False
        return step.branch is None or runs[step.branch[0]].outcome is step.branch[1]

    def _run_step(self, execution: Execution, run: StepRun) -> None:
        status, failure = "Succeeded", None
        try:
            if run.step.kind == "Fail":
                run.message = str(definitions.evaluate(run.step.arguments["ErrorMessage"], self._scope(execution, run)))
                raise _StepFailed(run.message)
            if run.step.kind == "Condition":
                scope = self._scope(execution, run)
                run.outcome = all(definitions.holds(each, scope) for each in run.step.arguments["Conditions"])
                run.properties = {"Outcome": "True" if run.outcome else "False"}
            else:
                self._do(execution, run)
        except (_StepFailed, Unresolved) as error:
            status, failure = "Failed", str(error)
        except Exception as error:  # a step must end in a state, not in a silent thread
            log.exception("Step %s of %s failed inside the local cloud", run.step.name, execution.arn)
            status, failure = "Failed", f"InternalServerError: {type(error).__name__}: {error}"
        with self._change:
            if run.status == "Stopping" and status == "Failed":
                status, failure = "Stopped", None
            run.status, run.ended = status, self._now()
            run.failure = failure[:REASON_CHARACTERS] if failure else None
            self._save(execution)
            self._change.notify_all()

    def _do(self, execution: Execution, run: StepRun) -> None:
        """Create what the step is for, and wait until it is done."""
        region, step = execution.pipeline.region, run.step
        noun = JOBS[step.kind]
        run.made = _job_name(execution, step)
        scope = self._scope(execution, run)
        request = definitions.request(step, definitions.evaluate(dict(step.arguments), scope))
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
            raise _StepFailed(
                f"ClientError: Failed to invoke sagemaker:Create{noun}. Error Details: {error.message}"
            ) from error
        with self._change:
            run.arn = str(answer[f"{noun}Arn"])
            run.made = run.arn if step.kind == "RegisterModel" else run.made
            stopping = run.status == "Stopping"
            if not stopping:
                run.status = "Executing"
            self._save(execution)
        if stopping:  # the request to stop came while it was being created
            self._stop_step(execution, run)
        if step.kind in _METADATA:
            self._waiters()[step.kind](region, run.made, None)
        try:
            told = self._call(region, f"Describe{noun}", {f"{noun}Name": run.made})
            if step.kind == "Tuning":
                told["TrainingJobSummaries"] = self._ranked(region, run.made, told)
        except Fault as error:
            raise _StepFailed(f"ClientError: {noun} {run.made} is gone: {error.message}") from error
        run.properties = told
        status = told.get(f"{noun}Status", "Completed")
        if status != "Completed":
            reason = told.get("FailureReason") or f"{noun} {run.made} ended in status {status}"
            raise _StepFailed(f"ClientError: {reason}")

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

    def _stop_step(self, execution: Execution, run: StepRun) -> None:
        if run.step.kind not in _METADATA or not run.arn:
            return
        noun = JOBS[run.step.kind]
        try:
            self._call(execution.pipeline.region, f"Stop{noun}", {f"{noun}Name": run.made})
        except Fault as error:
            log.debug("%s", error)  # it has just ended by itself

    def _waiters(self) -> Mapping[str, Callable[[str, str, float | None], str]]:
        cloud = self._cloud
        return {
            "Training": cloud.jobs.wait,
            "Processing": cloud.processing.wait,
            "Transform": cloud.transform.wait,
            "Tuning": cloud.tuning.wait,
        }

    def _scope(self, execution: Execution, run: StepRun) -> _Scope:
        return _Scope(self._cloud, execution, run.made)

    # -- records ------------------------------------------------------------------------------------------------------

    def _find(self, region: str, name: str) -> Pipeline:
        matched = _ARN.fullmatch(name)
        region, short = (matched[1], matched[2]) if matched else (region, name)
        try:
            return self._pipelines[region, short.lower()]
        except KeyError:
            arn = f"arn:aws:sagemaker:{region}:{clouds.ACCOUNT}:pipeline/{short.lower()}"
            raise Fault("ResourceNotFound", f"Pipeline '{arn}' does not exist.") from None

    def _execution(self, arn: str) -> Execution:
        try:
            return self._executions[arn]
        except KeyError:
            raise Fault("ResourceNotFound", f"Pipeline execution '{arn}' does not exist.") from None

    def _become(self, execution: Execution, status: str) -> None:
        execution.status, execution.modified = status, self._now()
        self._save(execution)
        self._change.notify_all()

    def _announce(self, execution: Execution, before: str) -> None:
        over = execution.status not in ("Executing", "Stopping")
        self._cloud.events.put(
            execution.pipeline.region,
            {
                "detail-type": "SageMaker Model Building Pipeline Execution Status Change",
                "source": "aws.sagemaker",
                "resources": [execution.pipeline.arn, execution.arn],
                "detail": {
                    "pipelineArn": execution.pipeline.arn,
                    "pipelineExecutionArn": execution.arn,
                    "pipelineExecutionDescription": execution.request.get("PipelineExecutionDescription", ""),
                    "pipelineExecutionDisplayName": _display_name(execution),
                    "currentPipelineExecutionStatus": execution.status,
                    **({"previousPipelineExecutionStatus": before} if before else {}),
                    "executionStartTime": _iso(execution.created),
                    **({"executionEndTime": _iso(execution.modified)} if over else {}),
                },
            },
        )

    def _now(self) -> float:
        return self._cloud.clock.now()


class PipelineOperations:
    """The pipelines' part of the SageMaker API."""

    params: Any
    region: str

    @property
    def _pipelines(self) -> Pipelines:
        return clouds.current().pipelines

    def create_pipeline(self) -> ActionResult:
        return ActionResult({"PipelineArn": self._pipelines.create(self.region, self.params)})

    def update_pipeline(self) -> ActionResult:
        return ActionResult({"PipelineArn": self._pipelines.update(self.region, self.params)})

    def describe_pipeline(self) -> ActionResult:
        for member in ("PipelineVersionId", "PipelineVersionAlias"):
            if self.params.get(member):
                raise not_here(f"{member} of DescribePipeline")
        return ActionResult(self._pipelines.describe(self.region, self.params["PipelineName"]))

    def list_pipelines(self) -> ActionResult:
        return ActionResult(self._pipelines.list(self.region, self.params))

    def delete_pipeline(self) -> ActionResult:
        return ActionResult({"PipelineArn": self._pipelines.delete(self.region, self.params["PipelineName"])})

    def start_pipeline_execution(self) -> ActionResult:
        return ActionResult({"PipelineExecutionArn": self._pipelines.start_execution(self.region, self.params)})

    def stop_pipeline_execution(self) -> ActionResult:
        return ActionResult({"PipelineExecutionArn": self._pipelines.stop_execution(self.params)})

    def retry_pipeline_execution(self) -> ActionResult:
        return ActionResult({"PipelineExecutionArn": self._pipelines.retry_execution(self.params)})

    def update_pipeline_execution(self) -> ActionResult:
        return ActionResult({"PipelineExecutionArn": self._pipelines.update_execution(self.params)})

    def describe_pipeline_execution(self) -> ActionResult:
        return ActionResult(self._pipelines.describe_execution(self.params["PipelineExecutionArn"]))

    def describe_pipeline_definition_for_execution(self) -> ActionResult:
        return ActionResult(self._pipelines.describe_definition(self.params["PipelineExecutionArn"]))

    def list_pipeline_executions(self) -> ActionResult:
        return ActionResult(self._pipelines.list_executions(self.region, self.params))

    def list_pipeline_execution_steps(self) -> ActionResult:
        return ActionResult(self._pipelines.list_steps(self.params))

    def list_pipeline_parameters_for_execution(self) -> ActionResult:
        return ActionResult(self._pipelines.list_parameters(self.params))


def _call(region: str, action: str, params: Mapping[str, Any]) -> dict[str, Any]:
    from windlass.local import sagemaker  # late: it is made of all these parts

    return sagemaker.call(region, action, params)


def _read_definition(request: Mapping[str, Any]) -> tuple[str, Definition]:
    location, text = request.get("PipelineDefinitionS3Location"), request.get("PipelineDefinition")
    if bool(location) == bool(text):
        raise Fault(
            "ValidationException", "Exactly one of PipelineDefinition and PipelineDefinitionS3Location must be given."
        )
    if location:
        if location.get("VersionId"):
            raise not_here("PipelineDefinitionS3Location.VersionId")
        uri = f"s3://{location['Bucket']}/{location['ObjectKey']}"
        try:
            text = storage.read(uri).decode()
        except storage.Missing as error:
            raise Fault("ValidationException", f"The pipeline definition cannot be read: {error}") from error
    try:
        return str(text), definitions.parse(str(text))
    except BadDefinition as error:
        raise Fault("ValidationException", f"Unable to parse pipeline definition. {error}") from error


def _read_parameters(definition: Definition, given: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Every parameter's value: the one given, or the default."""
    asked = {each["Name"]: each["Value"] for each in given}
    if unknown := sorted(set(asked) - set(definition.parameters)):
        raise Fault(
            "ValidationException",
            f"Unknown parameters {unknown}: the pipeline definition has {sorted(definition.parameters)}.",
        )
    values = {}
    for name, parameter in definition.parameters.items():
        if name in asked:
            try:
                values[name] = parameter.read(asked[name])
            except ValueError as error:
                raise Fault("ValidationException", str(error)) from error
        elif parameter.default is None:
            raise Fault(
                "ValidationException",
                f"Parameter '{name}' has no default value and must be given to start the pipeline.",
            )
        else:
            values[name] = parameter.default
    return values


def _job_name(execution: Execution, step: Step) -> str:
    """As SageMaker names what its pipelines create, within the length that the kind allows."""
    if step.kind == "Tuning":
        return f"{execution.id}-{_slug(step.name, 8)}-{_random(10)}"
    return f"pipelines-{execution.id}-{_slug(step.name, 28)}-{_random(10)}"


def _slug(name: str, length: int) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:length].strip("-")


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _metadata(run: StepRun) -> dict[str, Any] | None:
    if run.step.kind == "Condition":
        return None if run.outcome is None else {"Condition": {"Outcome": "True" if run.outcome else "False"}}
    if run.step.kind == "Fail":
        return {"Fail": {"ErrorMessage": run.message}} if run.message else None
    return {_METADATA.get(run.step.kind, run.step.kind): {"Arn": run.arn}} if run.arn else None


def _display_name(execution: Execution) -> str:
    given = execution.request.get("PipelineExecutionDisplayName")
    return str(given or f"execution-{int(execution.created * 1000)}")


def _asked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a List operation in the words that all others have: the newest first, unless asked otherwise."""
    renamed = {"CreatedAfter": "CreationTimeAfter", "CreatedBefore": "CreationTimeBefore"}
    return {"SortOrder": "Descending", **{renamed.get(name, name): value for name, value in params.items()}}


def _without_creation(page: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What only the order needed is no member of these summaries."""
    return [{name: value for name, value in item.items() if name != "CreationTime"} for item in page]


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
