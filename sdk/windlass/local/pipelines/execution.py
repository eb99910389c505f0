"""A pipeline, an execution of it and its steps as they are known: what was asked for, and what became of it.

    execution.description()       # DescribePipelineExecution's answer
    execution.record()            # what outlives a restart

What makes them happen is in `executions.py` and `steps.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from windlass.local.jobs.lifecycle import when
from windlass.local.pipelines.definition import Definition, Step

DEFAULT_PARALLEL_STEPS = 50
"""As many as SageMaker runs at once in one execution."""

JOB_STEPS = {
    "Tuning": "TuningJob",
    "Training": "TrainingJob",
    "Processing": "ProcessingJob",
    "Transform": "TransformJob",
}
"""Step types that start a job, and what a step's Metadata calls it."""

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
    "cache_key",
    "source",
)


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

    @property
    def key(self) -> str:
        """Under which it is saved."""
        return f"{self.region}/{self.name.lower()}"

    def record(self) -> dict[str, Any]:
        """What outlives a restart."""
        return {name: getattr(self, name) for name in _SAVED_OF_PIPELINE}

    def description(self) -> dict[str, Any]:
        """DescribePipeline's answer."""
        return {
            **self._described(),
            "PipelineDefinition": self.text,
            "PipelineStatus": "Active",
            "LastRunTime": when(self.last_run),
            "ParallelismConfiguration": self.request.get("ParallelismConfiguration"),
        }

    def summary(self) -> dict[str, Any]:
        """One item of ListPipelines' answer."""
        return {**self._described(), "LastExecutionTime": when(self.last_run)}

    def _described(self) -> dict[str, Any]:
        return {
            "PipelineArn": self.arn,
            "PipelineName": self.name,
            "PipelineDisplayName": self.request.get("PipelineDisplayName", self.name),
            "PipelineDescription": self.request.get("PipelineDescription"),
            "RoleArn": self.request["RoleArn"],
            "CreationTime": when(self.created),
            "LastModifiedTime": when(self.modified),
        }


@dataclass(eq=False)
class StepRun:
    """One step of an execution, since it has started.

    Attributes:
        made: the name of what it created, as the Describe and Stop operations want it.
        properties: what other steps can refer to.
        outcome: of a condition.
        cache_key: the same for two runs of a step that would do the same.
        source: the ARN of the execution whose results were taken instead; empty when it has run itself.
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
    cache_key: str = ""
    source: str = ""

    @property
    def over(self) -> bool:
        return self.status in ("Stopped", "Failed", "Succeeded")

    def record(self) -> dict[str, Any]:
        """What outlives a restart."""
        return {name: getattr(self, name) for name in _SAVED_OF_RUN}

    def summary(self) -> dict[str, Any]:
        """One item of ListPipelineExecutionSteps' answer."""
        return {
            "StepName": self.step.name,
            "StepDisplayName": self.step.display_name,
            "StepDescription": self.step.description,
            "StartTime": when(self.started),
            "EndTime": when(self.ended),
            "StepStatus": self.status,
            "FailureReason": self.failure,
            "Metadata": self._metadata(),
            "AttemptCount": self.attempts,
            "CacheHitResult": {"SourcePipelineExecutionArn": self.source} if self.source else None,
        }

    def _metadata(self) -> dict[str, Any] | None:
        kind = self.step.kind
        if kind == "Condition":
            return None if self.outcome is None else {"Condition": {"Outcome": "True" if self.outcome else "False"}}
        if kind == "Fail":
            return {"Fail": {"ErrorMessage": self.message}} if self.message else None
        return {JOB_STEPS.get(kind, kind): {"Arn": self.arn}} if self.arn else None


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
    def active(self) -> bool:
        return self.status in ("Executing", "Stopping")

    @property
    def role(self) -> str:
        return str(self.request.get("RoleArn") or self.pipeline.request["RoleArn"])

    @property
    def parallel(self) -> int:
        config = self.request.get("ParallelismConfiguration") or self.pipeline.request.get("ParallelismConfiguration")
        return int((config or {}).get("MaxParallelExecutionSteps") or DEFAULT_PARALLEL_STEPS)

    @property
    def display_name(self) -> str:
        given = self.request.get("PipelineExecutionDisplayName")
        return str(given or f"execution-{int(self.created * 1000)}")

    def record(self) -> dict[str, Any]:
        """What outlives a restart."""
        return {
            **{name: getattr(self, name) for name in _SAVED_OF_EXECUTION},
            "region": self.pipeline.region,
            "pipeline": self.pipeline.name.lower(),
            "tokens": sorted(self.tokens),
            "runs": {name: run.record() for name, run in self.runs.items()},
        }

    def description(self) -> dict[str, Any]:
        """DescribePipelineExecution's answer."""
        return {
            "PipelineArn": self.pipeline.arn,
            "PipelineExecutionArn": self.arn,
            "PipelineExecutionDisplayName": self.display_name,
            "PipelineExecutionStatus": self.status,
            "PipelineExecutionDescription": self.request.get("PipelineExecutionDescription"),
            "FailureReason": self.failure,
            "CreationTime": when(self.created),
            "LastModifiedTime": when(self.modified),
            "ParallelismConfiguration": self.request.get("ParallelismConfiguration"),
        }

    def summary(self) -> dict[str, Any]:
        """One item of ListPipelineExecutions' answer."""
        return {
            "PipelineExecutionArn": self.arn,
            "StartTime": when(self.created),
            "PipelineExecutionStatus": self.status,
            "PipelineExecutionDescription": self.request.get("PipelineExecutionDescription"),
            "PipelineExecutionDisplayName": self.display_name,
            "PipelineExecutionFailureReason": self.failure,
        }

    def event(self, before: str) -> dict[str, Any]:
        """What EventBridge is told of its state. ``before`` is the one before, if there was one."""
        return {
            "detail-type": "SageMaker Model Building Pipeline Execution Status Change",
            "source": "aws.sagemaker",
            "resources": [self.pipeline.arn, self.arn],
            "detail": {
                "pipelineArn": self.pipeline.arn,
                "pipelineExecutionArn": self.arn,
                "pipelineExecutionDescription": self.request.get("PipelineExecutionDescription", ""),
                "pipelineExecutionDisplayName": self.display_name,
                "currentPipelineExecutionStatus": self.status,
                **({"previousPipelineExecutionStatus": before} if before else {}),
                "executionStartTime": iso(self.created),
                **({} if self.active else {"executionEndTime": iso(self.modified)}),
            },
        }


def iso(seconds: float) -> str:
    """A time as events and expressions have it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
