"""Pipelines: CreatePipeline keeps a definition, StartPipelineExecution runs it, step by step, with the cloud's own operations.

    pipelines = Pipelines(cloud)
    pipelines.create("us-east-1", request)                        # checks the definition as AWS does
    pipelines.start(arn, {"Epochs": "3"}, token)                  # what EventBridge does; returns the execution's ARN

Steps that do not need each other run at once. What a definition means is in `definition.py`, what a step does in `steps.py`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from windlass.local import cloud as clouds
from windlass.local import storage
from windlass.local.faults import Fault, not_here
from windlass.local.iam.authorizer import as_role
from windlass.local.jobs.lifecycle import when
from windlass.local.listing import select
from windlass.local.pipelines import definition as definitions
from windlass.local.pipelines.definition import BadDefinition, Definition, Step
from windlass.local.pipelines.execution import Execution, Pipeline, StepRun
from windlass.local.pipelines.steps import Call, Steps, random_id

if TYPE_CHECKING:
    from windlass.local.cloud import Cloud

_ARN = re.compile(r"arn:aws:sagemaker:([^:]+):[^:]+:pipeline/([^/]+)(/execution/[^/]+)?")


class Pipelines:
    """Every pipeline of one local cloud, and its executions.

    Args:
        call: runs one operation of the SageMaker API; the cloud's own by default.
    """

    def __init__(self, cloud: Cloud, call: Call | None = None) -> None:
        self._cloud = cloud
        self._change = threading.Condition(threading.RLock())
        self._steps = Steps(cloud, call, self._change, self._save, self._executions_of)
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
            if execution.active:
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
        self._kept_pipelines.save(pipeline.key, pipeline.record())

    def _save(self, execution: Execution) -> None:
        """Keep what a later server is to know. Called with every change that a client can see."""
        if self._closing or self._executions.get(execution.arn) is not execution:
            return  # what happens to it after that is not its own doing
        self._kept_executions.save(execution.arn, execution.record())

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
            return self._find(region, name).description()

    def list(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListPipelines' answer."""
        prefix = params.get("PipelineNamePrefix", "")
        with self._change:
            summaries = [
                each.summary()
                for each in self._pipelines.values()
                if each.region == region and each.name.startswith(prefix)
            ]
        page, token = select(summaries, _asked(params), name="PipelineName")
        return {"PipelineSummaries": page, "NextToken": token}

    def delete(self, region: str, name: str) -> str:
        """DeletePipeline: with its executions, none of which may be running."""
        with self._change:
            pipeline = self._find(region, name)
            mine = self._executions_of(pipeline)
            if any(each.active for each in mine):
                raise Fault(
                    "ConflictException",
                    f"Pipeline {pipeline.arn} cannot be deleted while it is being executed. Stop its executions first.",
                )
            for each in mine:
                del self._executions[each.arn]
                self._kept_executions.delete(each.arn)
            del self._pipelines[pipeline.region, pipeline.name.lower()]
            self._kept_pipelines.delete(pipeline.key)
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
                pipeline, random_id(12), dict(request), pipeline.text, pipeline.definition, parameters, now, now
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
            if not execution.active:
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
            self._steps.stop(execution, run)
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
            return self._execution(arn).description()

    def describe_definition(self, arn: str) -> dict[str, Any]:
        """DescribePipelineDefinitionForExecution's answer."""
        with self._change:
            execution = self._execution(arn)
            return {"PipelineDefinition": execution.text, "CreationTime": when(execution.created)}

    def list_executions(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListPipelineExecutions' answer."""
        with self._change:
            pipeline = self._find(region, params["PipelineName"])
            found = self._executions_of(pipeline)
            summaries = [{**each.summary(), "CreationTime": when(each.created)} for each in found]
        page, token = select(summaries, _asked(params), name="PipelineExecutionArn")
        return {"PipelineExecutionSummaries": _without_creation(page), "NextToken": token}

    def list_steps(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListPipelineExecutionSteps' answer: the steps that have started, the latest first."""
        with self._change:
            execution = self._execution(params.get("PipelineExecutionArn", ""))
            steps = [{**run.summary(), "CreationTime": when(run.started)} for run in execution.runs.values()]
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
                        target=as_role(execution.role, self._steps.run),
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

    # -- records ------------------------------------------------------------------------------------------------------

    def _find(self, region: str, name: str) -> Pipeline:
        matched = _ARN.fullmatch(name)
        region, short = (matched[1], matched[2]) if matched else (region, name)
        try:
            return self._pipelines[region, short.lower()]
        except KeyError:
            arn = f"arn:aws:sagemaker:{region}:{clouds.ACCOUNT}:pipeline/{short.lower()}"
            raise Fault("ResourceNotFound", f"Pipeline '{arn}' does not exist.") from None

    def _executions_of(self, pipeline: Pipeline) -> Sequence[Execution]:
        return [each for each in self._executions.values() if each.pipeline is pipeline]

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
        self._cloud.events.put(execution.pipeline.region, execution.event(before))

    def _now(self) -> float:
        return self._cloud.clock.now()


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


def _asked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a List operation in the words that all others have: the newest first, unless asked otherwise."""
    renamed = {"CreatedAfter": "CreationTimeAfter", "CreatedBefore": "CreationTimeBefore"}
    return {"SortOrder": "Descending", **{renamed.get(name, name): value for name, value in params.items()}}


def _without_creation(page: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What only the order needed is no member of these summaries."""
    return [{name: value for name, value in item.items() if name != "CreationTime"} for item in page]
