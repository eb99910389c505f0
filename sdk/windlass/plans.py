"""Decide: specs in, requests out. Pure; sends nothing, reads no clock.

    plan = plans.train(spec, name="digits-20260102", ...)
    print(plan)             # each request, its IAM action, the cost per hour
    plan.actions            # ('s3:PutObject', 'sagemaker:CreateTrainingJob', ...)

Plans are frozen and comparable, so tests hold what would be sent, and ``--dry-run`` is printing one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from windlass import images, metrics
from windlass.errors import InvalidInput
from windlass.specs import ServeSpec, Slo, TrainSpec

VARIANT = "primary"
"""The one production variant's name. Constant: UpdateEndpoint and autoscaling need it to stay the same between configs."""

SHADOW = "shadow"
"""The name of the variant that gets copies of requests."""

KEPT_CONFIGS = 4
"""How many past configs of an endpoint are kept to roll back to: their names, of 63 characters, fill one tag's 256."""

ASYNC_ENVIRONMENT = {"WINDLASS_MAX_PAYLOAD_BYTES": str(1 << 30), "SAGEMAKER_MODEL_SERVER_TIMEOUT": "3600"}
"""What asynchronous endpoints take, a GiB and an hour, where the model server's own limits are those of the others."""

HISTORY_TAG = "windlass:previous-configs"


class Foundation(Protocol):
    """What a plan needs to know of the contract (see foundation.Contract)."""

    @property
    def bucket(self) -> str: ...
    @property
    def key_arn(self) -> str: ...
    @property
    def role_arn(self) -> str: ...
    @property
    def topic_arn(self) -> str: ...
    @property
    def project(self) -> str: ...


@dataclass(frozen=True)
class Request:
    """One AWS call, as boto3 takes it: ``client(service).operation(**params)``."""

    service: str
    operation: str
    params: Mapping[str, Any]

    @property
    def action(self) -> str:
        """The IAM action that allows it."""
        name = "".join(part.title() for part in self.operation.split("_"))
        return f"{self.service}:{name}"


@dataclass(frozen=True)
class Upload:
    """One file or folder to an S3 URI. The URI holds the content's digest, so what is there already is not sent again."""

    source: Path
    uri: str


@dataclass(frozen=True)
class Plan:
    """What a verb is about to do.

    Attributes:
        verb: ``train``, ``deploy``...
        name: of the thing made or changed.
        uploads: files to S3, first.
        requests: then these, in order.
        dollars_per_hour: while it runs, on demand, us-east-1; ``None`` when the price is not in our table.
        also: IAM actions of what is read or signed on the way.
    """

    verb: str
    name: str
    requests: tuple[Request, ...]
    uploads: tuple[Upload, ...] = ()
    dollars_per_hour: float | None = None
    notes: tuple[str, ...] = field(default=())
    also: tuple[str, ...] = ()

    @property
    def actions(self) -> tuple[str, ...]:
        """IAM actions it needs, in order of first use."""
        actions = [*self.also, *(["s3:PutObject"] if self.uploads else [])]
        actions += [request.action for request in self.requests]
        if any(
            _find(request.params, "RoleArn") or _find(request.params, "ExecutionRoleArn") for request in self.requests
        ):
            actions.append("iam:PassRole")
        return tuple(dict.fromkeys(actions))

    def __str__(self) -> str:
        lines = [f"Plan: {self.verb} {self.name}"]
        lines += [f"  upload {upload.source} -> {upload.uri}" for upload in self.uploads]
        for request in self.requests:
            body = json.dumps(request.params, indent=2, sort_keys=True, default=str).replace("\n", "\n    ")
            lines.append(f"  {request.action}\n    {body}")
        cost = (
            "unknown for this instance type" if self.dollars_per_hour is None else f"${self.dollars_per_hour:.3f}/hour"
        )
        lines += [f"  cost while it runs: {cost} (on demand, us-east-1)", f"  IAM actions: {', '.join(self.actions)}"]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _find(params: Any, key: str) -> bool:
    return isinstance(params, Mapping) and key in params


# ------------------------------------------------------------------------------------------------------------------ names


def stamped(base: str, now: float) -> str:
    """``base-20260102-030405-678``: unique by time, at most 63 characters, sorted by age."""
    moment = datetime.fromtimestamp(now, UTC)
    return f"{stem(base)}-{moment:%Y%m%d-%H%M%S}-{moment.microsecond // 1000:03d}"


def stem(base: str) -> str:
    """What is left of a base beside its time stamp: the longest ones are cut."""
    clean = re.sub(r"[^a-zA-Z0-9]+", "-", base).strip("-") or "windlass"
    return clean[: 62 - len("20260102-030405-678")].rstrip("-")


def alarm_name(endpoint: str, slo: Slo, scope: str) -> str:
    """One alarm for each SLO of each config: ``digits/accuracy/digits-v2-2026...``."""
    return f"{endpoint}/{slo.metric}/{scope}"


# On demand, us-east-1, USD per instance and hour. Source: SageMaker pricing page, training and real-time inference.
# A missing type prints "unknown": better than a wrong number.
_PRICES = {
    "ml.t2.medium": 0.056,
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.m5.4xlarge": 0.922,
    "ml.c5.xlarge": 0.204,
    "ml.c5.2xlarge": 0.408,
    "ml.c5.4xlarge": 0.816,
    "ml.g4dn.xlarge": 0.736,
    "ml.g4dn.2xlarge": 0.94,
    "ml.g5.xlarge": 1.408,
    "ml.g5.2xlarge": 1.515,
    "ml.p3.2xlarge": 3.825,
}


def dollars_per_hour(instance_type: str, count: int) -> float | None:
    price = _PRICES.get(instance_type)
    return None if price is None else round(price * count, 3)


def tags(project: str, **more: str) -> list[dict[str, str]]:
    """Cost allocation and lineage tags. AWS allows 256 characters a value."""
    pairs = {"project": project, **{key.replace("_", "-"): value for key, value in more.items() if value}}
    return [{"Key": f"windlass:{key}", "Value": value[:256]} for key, value in pairs.items()]


# --------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Source:
    """Training code: a local archive to be uploaded, or one that is on S3 already."""

    uri: str
    archive: Path | None = None


@dataclass(frozen=True)
class Channel:
    """One input channel: a local path to be uploaded, or an S3 URI as it is."""

    name: str
    uri: str
    local: Path | None = None
    digest: str = ""


def train(
    spec: TrainSpec,
    *,
    name: str,
    source: Source,
    channels: Sequence[Channel],
    foundation: Foundation,
    region: str,
    kind: str = "train",
    git_commit: str = "",
) -> Plan:
    """A training job in script mode, which AWS's framework images run as they are."""
    image = spec.image or images.aws_image("training", region, spec.instance_type)
    # Script mode reads each value as JSON, so text is quoted and numbers are not.
    script_mode = {
        "sagemaker_program": spec.script,
        "sagemaker_submit_directory": source.uri,
        "sagemaker_region": region,
        "sagemaker_container_log_level": 20,
    }
    hyperparameters = {key: json.dumps(value) for key, value in {**spec.hyperparameters, **script_mode}.items()}
    data_digest = hashlib.sha256("".join(sorted(c.name + c.digest for c in channels)).encode()).hexdigest()
    params: dict[str, Any] = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": image,
            "TrainingInputMode": "File",
            "MetricDefinitions": _metric_definitions(spec.metrics),
        },
        "RoleArn": spec.role_arn or foundation.role_arn,
        "InputDataConfig": [
            {
                "ChannelName": channel.name,
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": channel.uri,
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            }
            for channel in channels
        ],
        "OutputDataConfig": {"S3OutputPath": f"s3://{foundation.bucket}/runs", "KmsKeyId": foundation.key_arn},
        "ResourceConfig": {
            "InstanceType": spec.instance_type,
            "InstanceCount": spec.instance_count,
            "VolumeSizeInGB": spec.volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": spec.max_runtime_seconds},
        "HyperParameters": hyperparameters,
        "Environment": dict(spec.environment),
        "Tags": tags(foundation.project, kind=kind, git_commit=git_commit, data_digest=data_digest),
    }
    if not channels:
        del params["InputDataConfig"]  # the API refuses an empty list
    uploads = [Upload(source.archive, source.uri)] if source.archive else []
    uploads += [Upload(channel.local, channel.uri) for channel in channels if channel.local]
    return Plan(
        verb=kind,
        name=name,
        requests=(Request("sagemaker", "create_training_job", params),),
        uploads=tuple(uploads),
        dollars_per_hour=dollars_per_hour(spec.instance_type, spec.instance_count),
    )


def _metric_definitions(wanted: tuple[str, ...] | Mapping[str, str]) -> list[dict[str, str]]:
    if isinstance(wanted, Mapping):
        return [{"Name": name, "Regex": regex} for name, regex in wanted.items()]
    number = r"([-+]?(?:[0-9]*\.)?[0-9]+(?:[eE][-+]?[0-9]+)?)"
    return [{"Name": name, "Regex": rf"(?:^|\s){re.escape(name)}={number}"} for name in wanted]


# --------------------------------------------------------------------------------------------------------------- registry


def model_data(uri: str) -> dict[str, Any]:
    """How a container definition names a model: a prefix (with a slash at its end) as it lies there, or an archive."""
    if not uri.endswith("/"):
        return {"ModelDataUrl": uri}
    source = {"S3Uri": uri, "S3DataType": "S3Prefix", "CompressionType": "None"}
    return {"ModelDataSource": {"S3DataSource": source}}


# Where AWS's framework images find the hooks.
_OUR_CODE = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code"}


def register(
    *,
    group: str,
    image: str,
    model_uri: str,
    bundle: Path,
    evaluation_uri: str | None,
    evaluation: Path | None,
    approved: bool,
    description: str,
    metadata: Mapping[str, str],
    foundation: Foundation,
    create_group: bool,
    signature_types: tuple[Sequence[str], Sequence[str]] = (("application/json",), ("application/json",)),
) -> Plan:
    """A model package version with its evaluation and lineage.

    Args:
        bundle: what is uploaded to ``model_uri``: an archive, or the folder that a prefix gets.
        signature_types: content types of requests and of answers.
    """
    params: dict[str, Any] = {
        "ModelPackageGroupName": group,
        "ModelPackageDescription": description,
        "InferenceSpecification": {
            "Containers": [
                {
                    "Image": image,
                    **model_data(model_uri),
                    "Environment": {} if images.vendor_server(image) else dict(_OUR_CODE),
                }
            ],
            "SupportedContentTypes": list(signature_types[0]),
            "SupportedResponseMIMETypes": list(signature_types[1]),
        },
        "ModelApprovalStatus": "Approved" if approved else "PendingManualApproval",
        "CustomerMetadataProperties": {key: value[:256] for key, value in metadata.items() if value},
    }
    if evaluation_uri:
        params["ModelMetrics"] = {
            "ModelQuality": {"Statistics": {"ContentType": "application/json", "S3Uri": evaluation_uri}}
        }
    requests = []
    if create_group:
        group_params = {"ModelPackageGroupName": group, "Tags": tags(foundation.project)}
        requests.append(Request("sagemaker", "create_model_package_group", group_params))
    requests.append(Request("sagemaker", "create_model_package", params))
    uploads = [Upload(bundle, model_uri)]
    if evaluation and evaluation_uri:
        uploads.append(Upload(evaluation, evaluation_uri))
    return Plan("register", group, tuple(requests), tuple(uploads))


# ---------------------------------------------------------------------------------------------------------------- serving


@dataclass(frozen=True)
class Deployable:
    """What a deploy needs to know of a model version."""

    label: str  # "digits/2": a dimension value and a tag
    image: str
    model_uri: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Live:
    """What is in service now.

    Attributes:
        config: its name.
        previous: the configs before it, newest first.
        version: ``digits/1``, of that config.
        variant: the config's production variant, as DescribeEndpointConfig has it.
    """

    arn: str
    config: str
    previous: tuple[str, ...] = ()
    version: str = ""
    variant: Mapping[str, Any] = field(default_factory=dict)


def deploy(
    spec: ServeSpec,
    version: Deployable,
    *,
    endpoint: str,
    now: float,
    slos: Sequence[Slo],
    live: Live | None,
    foundation: Foundation,
) -> Plan:
    """A model, a new immutable endpoint config, the SLOs' alarms, and CreateEndpoint or a guarded UpdateEndpoint.

    With ``shadow_percent`` the config keeps the live variant and mirrors its requests to the new version.
    """
    config = stamped(f"{endpoint}-v{version.label.rsplit('/', 1)[-1]}", now)
    tagged = tags(foundation.project, endpoint=endpoint, model_version=version.label)
    shadowed = live if spec.shadow_percent else None
    topics = sorted({topic for topic in (spec.success_topic, spec.error_topic) if topic})
    image = spec.image or version.image
    inherited = version.environment
    usual = dict(ASYNC_ENVIRONMENT) if spec.async_output else {}
    if images.vendor_server(image):
        inherited = {name: value for name, value in inherited.items() if name not in _OUR_CODE}
    else:
        usual |= own_metrics(endpoint, SHADOW if spec.shadow_percent else VARIANT)
    container = {
        "Image": image,
        **model_data(version.model_uri),
        "Environment": {**usual, **inherited, **spec.environment},
    }
    if spec.serverless_memory_mb and "ModelDataSource" in container:
        # The API reference, ContainerDefinition: no ModelDataSource in conjunction with serverless endpoints.
        raise InvalidInput(
            f"{version.label} lies on S3 as a prefix, which serverless endpoints cannot read",
            where=f"Deploying {version.label}",
            hint="Register it with archive=True.",
        )
    variant = {"VariantName": VARIANT, "ModelName": config, "InitialVariantWeight": 1.0, **_capacity(spec)}
    config_params: dict[str, Any] = {
        "EndpointConfigName": config,
        "ProductionVariants": [variant],
        "Tags": tagged,
    }
    if shadowed and spec.shadow_percent:
        weight = shadowed.variant.get("InitialVariantWeight", 1.0) * spec.shadow_percent / 100
        config_params["ProductionVariants"] = [dict(shadowed.variant)]
        config_params["ShadowProductionVariants"] = [{**variant, "VariantName": SHADOW, "InitialVariantWeight": weight}]
        # The version of a config is the one that answers.
        config_params["Tags"] = tags(foundation.project, endpoint=endpoint, model_version=shadowed.version)
    if spec.async_output:
        config_params["AsyncInferenceConfig"] = _asynchronous(spec, spec.async_output, foundation)
    if spec.capture_percent:
        config_params["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": spec.capture_percent,
            # A prefix of its own for each config: captured records do not say which config answered, and labels need to know.
            "DestinationS3Uri": f"s3://{foundation.bucket}/capture/{config}",
            "KmsKeyId": foundation.key_arn,
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"], "CsvContentTypes": ["text/csv"]},
        }
    model_params = {
        "ModelName": config,
        "PrimaryContainer": container,
        "ExecutionRoleArn": foundation.role_arn,
        "Tags": tagged,
    }
    alarms = [
        alarm(
            slo,
            endpoint=endpoint,
            config=config,
            version=version.label,
            guarded=live is not None,
            foundation=foundation,
        )
        for slo in slos
    ]
    requests = [
        Request("sagemaker", "create_model", model_params),
        Request("sagemaker", "create_endpoint_config", config_params),
        *(Request("cloudwatch", "put_metric_alarm", params) for params in alarms),
    ]
    if live is None:
        create = {"EndpointName": endpoint, "EndpointConfigName": config, "Tags": tags(foundation.project)}
        requests.append(Request("sagemaker", "create_endpoint", create))
    else:
        update = _update(spec, endpoint, config, tuple(params["AlarmName"] for params in alarms))
        requests.append(Request("sagemaker", "update_endpoint", update))
        requests.append(_remember(live.arn, [live.config, *live.previous]))
    return Plan(
        verb="deploy",
        name=endpoint,
        requests=tuple(requests),
        dollars_per_hour=_price(spec),
        notes=(
            f"config {config}; "
            + (f"{version.label} gets copies of {spec.shadow_percent} % of the requests; " if shadowed else "")
            + (f"rolls back to {live.config}" if live else "first deployment"),
            *(f"{foundation.role_arn} must be allowed sns:Publish on {topic}" for topic in topics),
        ),
    )


def own_metrics(endpoint: str, variant: str) -> dict[str, str]:
    """What makes the model server publish its metrics (`metrics.SERVER`), and those of the user's hooks, once a minute."""
    return {
        "WINDLASS_EMF_SECONDS": "60",
        "WINDLASS_EMF_DIMENSIONS": f"EndpointName={endpoint},VariantName={variant}",
    }


def _capacity(spec: ServeSpec) -> dict[str, Any]:
    """What answers: instances, or servers that come with the requests."""
    if spec.serverless_memory_mb:
        serverless = {"MemorySizeInMB": spec.serverless_memory_mb, "MaxConcurrency": spec.serverless_concurrency}
        if spec.provisioned_concurrency:
            serverless["ProvisionedConcurrency"] = spec.provisioned_concurrency
        return {"ServerlessConfig": serverless}
    return {
        "InitialInstanceCount": spec.instance_count,
        "InstanceType": spec.instance_type,
        "ContainerStartupHealthCheckTimeoutInSeconds": spec.startup_timeout_seconds,
    }


def _asynchronous(spec: ServeSpec, output: str, foundation: Foundation) -> dict[str, Any]:
    topics = {"SuccessTopic": spec.success_topic, "ErrorTopic": spec.error_topic}
    notified = {name: arn for name, arn in topics.items() if arn}
    config: dict[str, Any] = {
        "OutputConfig": {
            "S3OutputPath": output.rstrip("/"),
            "S3FailurePath": f"{output.rstrip('/')}/failures",
            "KmsKeyId": foundation.key_arn,
            **({"NotificationConfig": notified} if notified else {}),
        }
    }
    if spec.async_concurrency:
        config["ClientConfig"] = {"MaxConcurrentInvocationsPerInstance": spec.async_concurrency}
    return config


def _price(spec: ServeSpec) -> float | None:
    """While nothing is asked. What is serverless then costs what is provisioned, which our table does not have."""
    if spec.serverless_memory_mb:
        return None if spec.provisioned_concurrency else 0.0
    return dollars_per_hour(spec.instance_type, spec.instance_count)


def rollback(spec: ServeSpec, *, endpoint: str, live: Live) -> Plan:
    """Back to the config before the live one, which is then forgotten: a rollback never goes twice to one config.

    No alarms guard it: a rollback that waits for an alarm is no rollback.
    """
    return Plan(
        verb="rollback",
        name=endpoint,
        requests=(
            Request("sagemaker", "update_endpoint", _update(spec, endpoint, live.previous[0], ())),
            _remember(live.arn, live.previous[1:]),
        ),
        notes=(f"from {live.config} to {live.previous[0]}",),
    )


def _remember(endpoint_arn: str, configs: Sequence[str]) -> Request:
    kept = list(dict.fromkeys(configs))[:KEPT_CONFIGS]
    return Request(
        "sagemaker", "add_tags", {"ResourceArn": endpoint_arn, "Tags": [{"Key": HISTORY_TAG, "Value": " ".join(kept)}]}
    )


def _update(spec: ServeSpec, endpoint: str, config: str, alarms: tuple[str, ...]) -> dict[str, Any]:
    # Nothing bakes that no alarm watches.
    step, bake = (spec.step_seconds, spec.bake_seconds) if alarms else (0, 0)
    # Start-up, steps and bakes all count; SageMaker takes 600 to 28,800 and gives up (and rolls back) after it.
    limit = min(28_800, max(600, spec.startup_timeout_seconds + bake + 3600 + _steps(spec) * step))
    deployment: dict[str, Any]
    if spec.rolling_percent:
        batch = {"Type": "CAPACITY_PERCENT", "Value": spec.rolling_percent}
        rolling = {
            "MaximumBatchSize": batch,
            "WaitIntervalInSeconds": step,
            "MaximumExecutionTimeoutInSeconds": limit,
        }
        deployment = {"RollingUpdatePolicy": rolling}
    else:
        routing: dict[str, Any] = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}
        if spec.canary_percent and alarms:
            routing = {
                "Type": "CANARY",
                "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": spec.canary_percent},
                "WaitIntervalInSeconds": spec.canary_seconds,
            }
        if spec.linear_percent and alarms:
            routing = {
                "Type": "LINEAR",
                "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": spec.linear_percent},
                "WaitIntervalInSeconds": step,
            }
        blue_green = {
            "TrafficRoutingConfiguration": routing,
            "TerminationWaitInSeconds": bake,
            "MaximumExecutionTimeoutInSeconds": limit,
        }
        deployment = {"BlueGreenUpdatePolicy": blue_green}
    if alarms:
        deployment["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": name} for name in alarms]}
    return {
        "EndpointName": endpoint,
        "EndpointConfigName": config,
        "RetainAllVariantProperties": True,
        # Retaining would keep the capture prefix of the old config, which tells the old predictions from the new.
        "ExcludeRetainedVariantProperties": [{"VariantPropertyType": "DataCaptureConfig"}],
        "DeploymentConfig": deployment,
    }


def _steps(spec: ServeSpec) -> int:
    """How many steps of ``step_seconds`` a shift has."""
    percent = spec.linear_percent or spec.rolling_percent
    return -(-100 // percent) if percent else 0


def alarm(
    slo: Slo, *, endpoint: str, config: str, version: str, guarded: bool, foundation: Foundation
) -> dict[str, Any]:
    """PutMetricAlarm for one SLO, scoped to one config or model version, so that it judges the new fleet alone."""
    metric = metrics.CATALOGUE[slo.metric]
    values = {"EndpointName": endpoint, "VariantName": VARIANT, "ModelVersion": version, "EndpointConfigName": config}
    # SageMaker adds EndpointConfigName to its metrics on guarded updates only.
    names = [name for name in metric.dimensions if guarded or name != "EndpointConfigName"]
    dimensions = [{"Name": name, "Value": values[name]} for name in names]
    above = metric.bad_when == "above"
    params: dict[str, Any] = {
        "AlarmName": alarm_name(endpoint, slo, config),
        "AlarmDescription": f"{slo.metric} of {endpoint} ({version}) {'above' if above else 'below'} {slo.bound:g}. "
        "Runbook: windlass status, then windlass rollback.",
        "ActionsEnabled": True,
        "AlarmActions": [foundation.topic_arn],
        "EvaluationPeriods": slo.periods,
        "DatapointsToAlarm": slo.datapoints,
        "Threshold": slo.bound * metric.scale,
        "ComparisonOperator": "GreaterThanThreshold" if above else "LessThanThreshold",
        "TreatMissingData": metric.missing,
        "Tags": tags(foundation.project, endpoint=endpoint, config=config),
    }
    if slo.metric != "accuracy":
        statistic = "ExtendedStatistic" if metric.statistic.startswith("p") else "Statistic"
        stat = {"Namespace": metric.namespace, "MetricName": metric.name, "Dimensions": dimensions}
        return {**params, **stat, "Period": slo.period_seconds, statistic: metric.statistic}
    return {**params, "Metrics": _gated_accuracy(slo, dimensions)}


def _gated_accuracy(slo: Slo, dimensions: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Accuracy, judged only where enough labels came in: a handful of labels says nothing, and must not roll back.

    Below the count the expression gives 1, the promise kept: CloudWatch documents IF with all three arguments only.
    """

    def stat(identifier: str, metric: metrics.Metric) -> dict[str, Any]:
        return {
            "Id": identifier,
            "ReturnData": False,
            "MetricStat": {
                "Metric": {"Namespace": metric.namespace, "MetricName": metric.name, "Dimensions": dimensions},
                "Period": slo.period_seconds,
                "Stat": metric.statistic,
            },
        }

    gate = {"Id": "judged", "Expression": f"IF(samples >= {slo.min_samples}, accuracy, 1)", "ReturnData": True}
    return [{**gate, "Label": "accuracy"}, stat("accuracy", metrics.ACCURACY), stat("samples", metrics.SAMPLE_COUNT)]
