"""A training job as it is known: what was asked for, what became of it, and what the API tells of it.

    job.description()       # DescribeTrainingJob's answer
    job.record()            # what outlives a restart

What runs it is in `training.py`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from windlass.local import cloud as clouds
from windlass.local.jobs import cluster, training_request
from windlass.local.jobs.cluster import Host
from windlass.local.jobs.containers import s3_uri
from windlass.local.jobs.lifecycle import TERMINAL, when

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
    "trained",
    "exceeded",
    "metrics",
    "retried",
)
ECHOED = (
    "TrainingJobName",
    "TuningJobArn",
    "HyperParameters",
    "AlgorithmSpecification",
    "RoleArn",
    "OutputDataConfig",
    "ResourceConfig",
    "VpcConfig",
    "CheckpointConfig",
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


@dataclass
class TrainingJob:
    """One job, as DescribeTrainingJob knows it, and what runs it.

    Attributes:
        folder: holds one folder for each host, which is its ``/opt/ml``.
        trained: seconds that its hosts have been busy, over all interruptions.
        retried: how often it has begun again after an internal error.
        exceeded: which limit stopped it: a secondary status, or nothing.
        stopping: set by StopTrainingJob, and when its time is up.
        evicting: set when its spot instances are taken away.
        capacity_at: when there are spot instances again, in time.monotonic() seconds.
        kill_at: when those that ignore SIGTERM get SIGKILL, in time.monotonic() seconds.
        news: set whenever whoever oversees the hosts should look.
        patience: runs until MaxWaitTimeInSeconds is up.
        number: given to each job in turn: the hosts' addresses derive from it.
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
    trained: float = 0.0
    failure: str | None = None
    exceeded: str = ""
    retried: int = 0
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)
    evicting: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    news: threading.Event = field(default_factory=threading.Event)
    kill_at: float = math.inf
    capacity_at: float = 0.0
    hosts: list[Host] = field(default_factory=list)
    number: int = 0
    port: int = cluster.MASTER_PORT
    patience: threading.Timer | None = None

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
    def algorithm(self) -> Mapping[str, Any]:
        specification: Mapping[str, Any] = self.request["AlgorithmSpecification"]
        return specification

    @property
    def clustered(self) -> bool:
        """Whether it has more than one host."""
        return sum(count for _, _, count in cluster.groups(self.request["ResourceConfig"])) > 1

    @property
    def spot(self) -> bool:
        return bool(self.request.get("EnableManagedSpotTraining"))

    @property
    def may_retry(self) -> bool:
        """Whether its RetryStrategy lets it begin once more after an internal error."""
        strategy = self.request.get("RetryStrategy") or {}
        return self.status == "InProgress" and self.retried < int(strategy.get("MaximumRetryAttempts", 0))

    @property
    def runtime_limit(self) -> float:
        """MaxRuntimeInSeconds."""
        condition = self.request.get("StoppingCondition") or {}
        return float(condition.get("MaxRuntimeInSeconds", training_request.DEFAULT_RUNTIME_SECONDS))

    @property
    def wait_limit(self) -> float:
        """MaxWaitTimeInSeconds; no limit for a job that does not run on spot instances."""
        return float((self.request.get("StoppingCondition") or {}).get("MaxWaitTimeInSeconds", math.inf))

    @property
    def output(self) -> str:
        """Where its results go: ``<S3OutputPath>/<job>/output``."""
        return f"{s3_uri(self.request['OutputDataConfig']['S3OutputPath']).rstrip('/')}/{self.name}/output"

    @property
    def output_key(self) -> str | None:
        """The KMS key that encrypts them."""
        return self.request["OutputDataConfig"].get("KmsKeyId") or None

    @property
    def artifact(self) -> str:
        """What S3ModelArtifacts says."""
        return f"{self.output}/model/" if self.uncompressed else f"{self.output}/model.tar.gz"

    @property
    def uncompressed(self) -> bool:
        return bool(self.request["OutputDataConfig"].get("CompressionType") == "NONE")

    def description(self) -> dict[str, Any]:
        """DescribeTrainingJob's answer."""
        answer = {member: self.request.get(member) for member in ECHOED}
        answer |= {
            "TrainingJobArn": self.arn,
            "TrainingJobStatus": self.status,
            "SecondaryStatus": self.secondary,
            "SecondaryStatusTransitions": [
                {name: when(value) if name.endswith("Time") else value for name, value in step.items()}
                for step in self.transitions
            ],
            "CreationTime": when(self.created),
            "LastModifiedTime": when(self.modified),
            "TrainingStartTime": when(self.started),
            "TrainingEndTime": when(self.ended),
            "FailureReason": self.failure,
            "InputDataConfig": [
                {"CompressionType": "None", "RecordWrapperType": "None", **channel} for channel in self.channels
            ],
            "StoppingCondition": {
                "MaxRuntimeInSeconds": training_request.DEFAULT_RUNTIME_SECONDS,
                **(self.request.get("StoppingCondition") or {}),
            },
            "EnableNetworkIsolation": False,
            "EnableInterContainerTrafficEncryption": bool(self.request.get("EnableInterContainerTrafficEncryption")),
            "EnableManagedSpotTraining": self.spot,
            "ProfilingStatus": "Disabled",
        }
        # Required by the service model, so that strict clients miss it while the job runs.
        done = self.status in TERMINAL and self.status != "Failed"
        answer["ModelArtifacts"] = {"S3ModelArtifacts": self.artifact if done else ""}
        if self.status in TERMINAL:
            answer["TrainingTimeInSeconds"] = answer["BillableTimeInSeconds"] = math.ceil(self.trained) or None
        if self.metrics:
            answer["FinalMetricDataList"] = list(self.metrics.values())
        return answer

    def summary(self) -> dict[str, Any]:
        """One item of ListTrainingJobs' answer."""
        return {
            "TrainingJobName": self.name,
            "TrainingJobArn": self.arn,
            "CreationTime": when(self.created),
            "TrainingEndTime": when(self.ended),
            "LastModifiedTime": when(self.modified),
            "TrainingJobStatus": self.status,
            "SecondaryStatus": self.secondary,
        }

    def record(self) -> dict[str, Any]:
        """What outlives a restart: the arguments that make it again, with its folder."""
        return {name: getattr(self, name) for name in SAVED}
