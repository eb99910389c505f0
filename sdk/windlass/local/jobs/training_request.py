"""What CreateTrainingJob refuses beyond the constraints of the service model, in AWS's words where they are known.

    check("us-east-1", request)      # raises Fault

Whatever changes what a job does and is not done here is refused by name: to accept it would be a false success.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windlass.local import storage
from windlass.local.encryption import require_key
from windlass.local.faults import Fault, not_here
from windlass.local.jobs import channels, cluster, containers, metric_definitions

UNSUPPORTED = (
    "EnableNetworkIsolation",
    "TensorBoardOutputConfig",
    "ServerlessJobConfig",
    "MlflowConfig",
    "ModelPackageConfig",
    "DebugRuleConfigurations",
    "ProfilerRuleConfigurations",
    "RemoteDebugConfig.EnableRemoteDebug",
    "SessionChainingConfig.EnableSessionTagChaining",
    "AlgorithmSpecification.AlgorithmName",
    "ResourceConfig.TrainingPlanArn",
    "ResourceConfig.InstancePreferences",
    "ResourceConfig.InstancePlacementConfig.EnableMultipleJobs",
    "StoppingCondition.MaxPendingTimeInSeconds",
)
LARGEST_VOLUME_GB = 16_384
"""The largest volume that EBS has."""

DEFAULT_RUNTIME_SECONDS = 86_400
"""MaxRuntimeInSeconds when it is not given."""

LONGEST_RUNTIME_SECONDS = 28 * 86_400
"""The API reference of StoppingCondition."""


def check(region: str, request: Mapping[str, Any]) -> None:
    """Raise the Fault that AWS would, or say what the local cloud does not implement."""
    for member in UNSUPPORTED:
        if _member(request, member):
            raise not_here(member)
    check_experiment(request)
    _check_resources(request["ResourceConfig"])
    for member in ("OutputDataConfig.KmsKeyId", "ResourceConfig.VolumeKmsKeyId"):
        require_key(region, _member(request, member), member)
    _check_algorithm(request)
    _check_stopping(request)
    _check_checkpoints(request.get("CheckpointConfig"))
    names = [channel["ChannelName"] for channel in request.get("InputDataConfig") or []]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise Fault("ValidationException", f"Channel names must be unique, but {sorted(repeated)} are repeated.")
    for channel in request.get("InputDataConfig") or []:
        _check_channel(channel, request)
    target = request["OutputDataConfig"]["S3OutputPath"]
    if not storage.bucket_exists(containers.s3_uri(target)):
        raise Fault("ValidationException", f"The S3 bucket of OutputDataConfig.S3OutputPath '{target}' does not exist.")


def _check_resources(resources: Mapping[str, Any]) -> None:
    if resources.get("InstanceGroups"):
        if resources.get("InstanceType") or resources.get("InstanceCount"):
            raise Fault(
                "ValidationException",
                "ResourceConfig.InstanceGroups cannot be given together with InstanceType and InstanceCount.",
            )
        names = [name for name, _, _ in cluster.groups(resources)]
        if len(set(names)) < len(names):
            raise Fault("ValidationException", f"ResourceConfig.InstanceGroups must have unique names, not {names}.")
    elif not resources.get("InstanceType"):
        raise Fault("ValidationException", "ResourceConfig.InstanceType must be given.")
    elif "InstanceCount" not in resources:
        raise Fault("ValidationException", "ResourceConfig.InstanceCount must be given.")
    if cluster.volume_gib(resources) > LARGEST_VOLUME_GB:
        raise Fault(
            "ValidationException",
            f"Invalid ResourceConfig.VolumeSizeInGB {resources['VolumeSizeInGB']}. It cannot exceed {LARGEST_VOLUME_GB}.",
        )
    wanted: dict[str, int] = {}
    for _, kind, count in cluster.groups(resources):
        wanted[kind] = wanted.get(kind, 0) + count
    if sum(wanted.values()) < 1:
        raise Fault("ValidationException", "ResourceConfig must ask for at least one instance.")
    kind = max(wanted, key=lambda kind: wanted[kind])
    cluster.check_limit(sum(wanted.values()), kind, "training job")


def check_experiment(request: Mapping[str, Any]) -> None:
    """Refuse a job of an experiment, which the local cloud does not keep."""
    for member in ("ExperimentName", "TrialName", "RunName"):
        if _member(request, f"ExperimentConfig.{member}"):
            raise not_here(f"experiments, which ExperimentConfig.{member} refers to")


def _member(request: Mapping[str, Any], path: str) -> Any:
    """What stands at ``A.B`` of a request; None when nothing does."""
    found: Any = request
    for name in path.split("."):
        found = (found or {}).get(name)
    return found


def _check_algorithm(request: Mapping[str, Any]) -> None:
    algorithm = request["AlgorithmSpecification"]
    if not algorithm.get("TrainingImage"):
        raise Fault("ValidationException", "Exactly one of TrainingImage and AlgorithmName must be given.")
    program = (request.get("HyperParameters") or {}).get("sagemaker_program")
    if not algorithm.get("ContainerEntrypoint") and not program:
        raise Fault(
            "ValidationException",
            "The local cloud runs scripts, not what an image starts by itself: give the hyperparameters sagemaker_program"
            " and sagemaker_submit_directory, or AlgorithmSpecification.ContainerEntrypoint.",
        )
    metric_definitions.check(algorithm.get("MetricDefinitions") or [])


def _check_stopping(request: Mapping[str, Any]) -> None:
    condition = request.get("StoppingCondition") or {}
    wait, run = condition.get("MaxWaitTimeInSeconds"), condition.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_SECONDS)
    if run > LONGEST_RUNTIME_SECONDS:
        raise Fault(
            "ResourceLimitExceeded",
            f"The account-level service limit 'Longest run time for a training job' is {LONGEST_RUNTIME_SECONDS} Seconds, with"
            f" current utilization of 0 Seconds and a request delta of {run} Seconds"
            " (StoppingCondition.MaxRuntimeInSeconds).",
        )
    if request.get("EnableManagedSpotTraining"):
        if wait is None:
            raise Fault(
                "ValidationException",
                "Invalid MaxWaitTimeInSeconds. It must be present when EnableManagedSpotTraining is true.",
            )
        if wait < run:
            raise Fault(
                "ValidationException",
                f"Invalid MaxWaitTimeInSeconds. It must be greater than or equal to MaxRuntimeInSeconds ({wait} < {run}).",
            )
    elif wait is not None:
        raise Fault(
            "ValidationException",
            "Invalid MaxWaitTimeInSeconds. It must not be present when EnableManagedSpotTraining is false.",
        )


def _check_checkpoints(config: Mapping[str, Any] | None) -> None:
    if not config:
        return
    uri, local = config["S3Uri"], config.get("LocalPath", "/opt/ml/checkpoints")
    if not storage.bucket_exists(containers.s3_uri(uri)):
        raise Fault("ValidationException", f"The S3 bucket of CheckpointConfig.S3Uri '{uri}' does not exist.")
    if not local.startswith("/opt/ml/") or ".." in local.split("/"):
        raise not_here(f"CheckpointConfig.LocalPath outside of /opt/ml, such as '{local}'")


def _check_channel(channel: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    where = f"of channel '{channel['ChannelName']}'"
    source = channel["DataSource"].get("S3DataSource")
    if not source:
        raise not_here(f"the data source {', '.join(channel['DataSource'])} {where}")
    if source["S3DataType"] not in ("S3Prefix", "ManifestFile"):
        raise not_here(f"S3DataType {source['S3DataType']} {where}")
    mode = channels.mode(channel, request["AlgorithmSpecification"])
    if mode == "FastFile" and source["S3DataType"] != "S3Prefix":
        raise Fault("ValidationException", f"FastFile mode supports S3DataType S3Prefix only {where}.")
    if channel.get("RecordWrapperType", "None") != "None":
        raise not_here(f"RecordWrapperType {channel['RecordWrapperType']} {where}")
    if channel.get("CompressionType", "None") != "None" and mode != "Pipe":
        raise Fault(
            "ValidationException",
            f"CompressionType {channel['CompressionType']} {where} is used in Pipe mode only: leave it out in {mode} mode.",
        )
    if source.get("AttributeNames"):
        raise not_here(f"AttributeNames {where}")
    known = [name for name, _, _ in cluster.groups(request["ResourceConfig"])]
    if unknown := [name for name in source.get("InstanceGroupNames") or [] if name not in known]:
        raise Fault("ValidationException", f"Unknown InstanceGroupNames {unknown} {where}. The job has: {known}.")
    uri = source["S3Uri"]
    try:
        found = storage.keys(containers.s3_uri(uri))
    except (storage.NoBucket, storage.Denied):
        found = []
    if not found:
        raise Fault(
            "ValidationException",
            f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket exists in'
            f' the selected region, that objects exist under that S3 prefix, and that the role "{request["RoleArn"]}" has'
            f' "s3:ListBucket" permissions on bucket "{storage.split(containers.s3_uri(uri))[0]}".',
        )
