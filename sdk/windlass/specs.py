"""What users ask for, checked before anything is sent. Pure.

    TrainSpec(script="train.py", instance_type="ml.m5.xlarge", hyperparameters={"epochs": 3})
    Slo.p99_latency(ms=200), Slo.error_rate(0.01), Slo.accuracy(0.95, min_samples=200)

A wrong value raises :class:`windlass.errors.InvalidInput` that names the field, the value and what is valid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from windlass import metrics
from windlass.errors import InvalidInput, choices

NAME = re.compile(r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}$")
"""SageMaker's pattern for the names of jobs, models, configs and endpoints (API reference)."""

_INSTANCE_TYPE = re.compile(r"^ml\.[a-z][a-z0-9-]*\.([0-9]*x?large|medium|metal(-[0-9]+xl)?)$")
_ROLE = re.compile(r"^arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+$")
_IMAGE = re.compile(r"^\S{1,255}$")
_S3_PREFIX = re.compile(r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$")
_TOPIC = re.compile(r"^arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[\w.-]+$")
_METRIC = re.compile(r"^[A-Za-z][\w:/.-]{0,254}$")

Name = Annotated[str, Field(max_length=63)]
Scalar = str | bool | int | float


class Spec(BaseModel):
    """Base of all specs: frozen, unknown fields refused, one readable error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=False, arbitrary_types_allowed=False)

    @classmethod
    def check(cls, where: str, **values: Any) -> Self:
        """Build the spec, or raise one InvalidInput that lists every wrong field."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise InvalidInput(_explain(error, cls), where=where) from error


def _explain(error: ValidationError, spec: type[BaseModel]) -> str:
    parts = []
    for item in error.errors():
        field = ".".join(str(step) for step in item["loc"]) or "value"
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown argument '{field}'. {choices(field, spec.model_fields)}")
        else:
            parts.append(f"{field}={item['input']!r}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)


class TrainSpec(Spec):
    """One training job.

    Attributes:
        script: file name of the entry point within ``source``, for example ``train.py``.
        instance_type: ``ml.*``.
        instance_count: hosts; above 1 the script is started on each, with ``SM_HOSTS``.
        hyperparameters: reach the script as ``--key value``; strings, numbers and booleans.
        metrics: names printed as ``name=number``, or name -> regex with one group.
        max_runtime_seconds: SageMaker stops the job after this time.
        volume_gb: disk of each host, GiB.
        image: training image URI; by default AWS's PyTorch image for the region.
        role_arn: execution role; by default the contract's.
        environment: variables of the container.
    """

    script: str
    instance_type: str = "ml.m5.xlarge"
    instance_count: int = Field(1, ge=1, le=100)
    hyperparameters: Mapping[str, Scalar] = Field(default_factory=dict)
    metrics: tuple[str, ...] | Mapping[str, str] = (
        "train:loss",
        "validation:loss",
        "validation:accuracy",
    )
    max_runtime_seconds: int = Field(86_400, ge=1, le=432_000)
    volume_gb: int = Field(30, ge=1, le=16_384)
    image: str | None = None
    role_arn: str | None = None
    environment: Mapping[str, str] = Field(default_factory=dict)

    @field_validator("instance_type")
    @classmethod
    def _instance_type(cls, value: str) -> str:
        return check_instance_type(value)

    @field_validator("image")
    @classmethod
    def _image(cls, value: str | None) -> str | None:
        return check_image(value)

    @field_validator("role_arn")
    @classmethod
    def _role(cls, value: str | None) -> str | None:
        return check_role(value)

    @field_validator("hyperparameters", mode="before")
    @classmethod
    def _hyperparameters(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("expected a mapping of names to values")
        for key, item in value.items():
            if not isinstance(key, str) or not key or len(key) > 256:
                raise ValueError(f"hyperparameter name {key!r} must be a string of 1 to 256 characters")
            if not isinstance(item, Scalar):
                raise ValueError(
                    f"hyperparameter '{key}' is a {type(item).__name__}; scripts receive text, so pass a str, int, float or "
                    "bool (json.dumps() a structure)"
                )
            if len(json.dumps(item)) > 2500:
                raise ValueError(f"hyperparameter '{key}' is longer than SageMaker's 2,500 characters; pass it as data")
        return value

    @field_validator("metrics")
    @classmethod
    def _metrics(cls, value: tuple[str, ...] | Mapping[str, str]) -> tuple[str, ...] | Mapping[str, str]:
        for name in value:
            if not _METRIC.match(name):
                raise ValueError(f"metric name {name!r} must start with a letter and hold no spaces")
        if isinstance(value, Mapping):
            for name, regex in value.items():
                try:
                    groups = re.compile(regex).groups
                except re.error as error:
                    raise ValueError(f"metric '{name}': {regex!r} is no regular expression ({error})") from error
                if groups != 1:
                    raise ValueError(f"metric '{name}': {regex!r} must have exactly one group, around the number")
        if len(value) > 40:
            raise ValueError(f"{len(value)} metrics; SageMaker takes at most 40")
        return value


class Slo(Spec):
    """A promise about a metric; the alarms of an endpoint, and so its rollback, derive from it.

        Slo.p99_latency(ms=200)
        Slo.error_rate(0.01)
        Slo.accuracy(0.95, min_samples=200)

    Attributes:
        metric: ``accuracy``, ``p99_latency`` or ``error_rate``.
        bound: in the user's unit: a share 0..1, or milliseconds.
        period_seconds: length of one datapoint: 10, 20, 30, or a multiple of 60. Below 60 needs high-resolution metrics,
            which ours are and SageMaker's own are not.
        datapoints: how many of the last ``periods`` must be bad (CloudWatch's M out of N).
        periods: how many datapoints are looked at.
        min_samples: accuracy on fewer labels in a period is not judged.
    """

    metric: Literal["accuracy", "p99_latency", "error_rate"]
    bound: float = Field(gt=0, allow_inf_nan=False)
    period_seconds: int = 60
    datapoints: int = Field(1, ge=1)
    periods: int = Field(1, ge=1, le=100)
    min_samples: int = Field(30, ge=1)

    @classmethod
    def p99_latency(cls, ms: float, **window: Any) -> Slo:
        """99 of 100 invocations take the model at most ``ms`` milliseconds."""
        return cls.check("Slo.p99_latency", metric="p99_latency", bound=ms, **window)

    @classmethod
    def error_rate(cls, share: float, **window: Any) -> Slo:
        """At most this share (0..1) of invocations fails with a 5xx."""
        return cls.check("Slo.error_rate", metric="error_rate", bound=share, **window)

    @classmethod
    def accuracy(cls, share: float, **window: Any) -> Slo:
        """At least this share (0..1) of labelled predictions is right."""
        return cls.check("Slo.accuracy", metric="accuracy", bound=share, **window)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.metric != "p99_latency" and self.bound > 1:
            raise ValueError(f"{self.metric} is a share between 0 and 1, got {self.bound:g}")
        if self.period_seconds not in (10, 20, 30) and (self.period_seconds < 60 or self.period_seconds % 60):
            raise ValueError(f"period_seconds={self.period_seconds}: valid are 10, 20, 30 and multiples of 60")
        if self.period_seconds < 60 and metrics.CATALOGUE[self.metric].namespace != metrics.NAMESPACE:
            raise ValueError(
                f"SageMaker publishes {self.metric} once a minute: period_seconds must be a multiple of 60"
            )
        if self.datapoints > self.periods:
            raise ValueError(f"datapoints={self.datapoints} of periods={self.periods}: cannot be more than there are")
        if self.periods * self.period_seconds > 86_400:
            raise ValueError("periods * period_seconds must be at most a day")
        return self


class ServeSpec(Spec):
    """How a model version is served.

    Attributes:
        instance_type: ``ml.*``.
        instance_count: instances of the variant.
        image: inference image URI; by default the one the version was registered with. A vendor's, as vLLM's, serves the
            model's files by itself: no ``inference.py`` is needed, and ``environment`` is what that server reads.
        environment: variables of the container. ``WINDLASS_EMF_SECONDS`` is how often the model server publishes its metrics:
            60 unless you say otherwise; 0 is never.
        startup_timeout_seconds: how long the model may take to load before the health check fails (60 to 3600).
        canary_percent: share of traffic that meets the new version first; ``None`` shifts all at once.
        canary_seconds: how long the canary bakes before the rest follows.
        linear_percent: share of traffic that each step of a linear shift moves (10 to 50).
        rolling_percent: share of the instances that is replaced at a time, their traffic with them (5 to 50).
        step_seconds: how long each step of a linear or rolling shift bakes (0 to 3600).
        shadow_percent: share of requests of which the new version gets a copy, while the version in service goes on answering.
        bake_seconds: how long the old fleet waits after the shift, ready to take the traffic back (0 to 3600). A rolling shift
            has none left by then.
        capture_percent: share of requests written to S3, where late labels find them; 0 turns it off. SageMaker captures
            nothing of serverless endpoints.
        serverless_memory_mb: memory of a server that comes with the requests and goes when there are none, in place of
            instances: 1024 to 6144, in steps of 1024.
        serverless_concurrency: requests that are answered at once; more are throttled.
        provisioned_concurrency: servers that are kept whether or not anything asks them.
        async_output: S3 prefix to which answers go, of requests that wait in a queue: an asynchronous endpoint. Why there is no
            answer goes to ``failures/`` under it. The foundation lets endpoints read and write ``async/`` in its bucket.
        async_concurrency: requests that an instance processes at once; by default SageMaker chooses.
        success_topic, error_topic: ARNs of the SNS topics that hear of an asynchronous endpoint's answers, and of failures.
    """

    instance_type: str = "ml.m5.large"
    instance_count: int = Field(1, ge=1, le=1000)
    image: str | None = None
    environment: Mapping[str, str] = Field(default_factory=dict)
    startup_timeout_seconds: int = Field(240, ge=60, le=3600)
    canary_percent: int | None = Field(None, ge=1, le=50)
    canary_seconds: int = Field(300, ge=0, le=3600)
    linear_percent: int | None = Field(None, ge=10, le=50)
    rolling_percent: int | None = Field(None, ge=5, le=50)
    step_seconds: int = Field(300, ge=0, le=3600)
    shadow_percent: int | None = Field(None, ge=1, le=100)
    bake_seconds: int = Field(300, ge=0, le=3600)
    capture_percent: int = Field(100, ge=0, le=100)
    serverless_memory_mb: int | None = Field(None, ge=1024, le=6144, multiple_of=1024)
    serverless_concurrency: int = Field(5, ge=1, le=200)
    provisioned_concurrency: int | None = Field(None, ge=1, le=200)
    async_output: str | None = None
    async_concurrency: int | None = Field(None, ge=1, le=1000)
    success_topic: str | None = None
    error_topic: str | None = None

    @field_validator("instance_type")
    @classmethod
    def _instance_type(cls, value: str) -> str:
        return check_instance_type(value)

    @field_validator("image")
    @classmethod
    def _image(cls, value: str | None) -> str | None:
        return check_image(value)

    @field_validator("async_output")
    @classmethod
    def _async_output(cls, value: str | None) -> str | None:
        if value is not None and not _S3_PREFIX.match(value):
            raise ValueError("not an S3 prefix; it looks like s3://bucket/answers")
        return value

    @field_validator("success_topic", "error_topic")
    @classmethod
    def _topic(cls, value: str | None) -> str | None:
        if value is not None and not _TOPIC.match(value):
            raise ValueError("not the ARN of a topic; it looks like arn:aws:sns:us-east-1:123456789012:answers")
        return value

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_capture(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("serverless_memory_mb") is not None:
            return {"capture_percent": 0, **values}
        return values

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = self.model_fields_set
        if self.serverless_memory_mb:
            shifts = ("canary_percent", "linear_percent", "rolling_percent", "shadow_percent")
            others = ("instance_type", "instance_count", "async_output", *shifts)
            if wrong := [name for name in others if name in given and getattr(self, name) is not None]:
                raise ValueError(
                    f"{' and '.join(wrong)} cannot be given with serverless_memory_mb: there are no instances"
                )
            if self.capture_percent:
                raise ValueError("capture_percent must be 0: SageMaker captures nothing of serverless endpoints")
            if (self.provisioned_concurrency or 0) > self.serverless_concurrency:
                raise ValueError("provisioned_concurrency must be at most serverless_concurrency")
        elif wrong := sorted(given & {"serverless_concurrency", "provisioned_concurrency"}):
            raise ValueError(f"{' and '.join(wrong)} needs serverless_memory_mb")
        if not self.async_output and (wrong := sorted(given & {"async_concurrency", "success_topic", "error_topic"})):
            raise ValueError(f"{' and '.join(wrong)} needs async_output")
        if self.async_output and self.shadow_percent:
            raise ValueError("shadow_percent cannot be given with async_output")
        return self

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = ("canary_percent", "linear_percent", "rolling_percent", "shadow_percent")
        if len(given := [way for way in ways if getattr(self, way)]) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one")
        percent = self.linear_percent or self.rolling_percent
        # SageMaker ends a deployment after 28,800 s at the latest; an hour of them is left for the servers to start.
        if percent and (baking := -(-100 // percent) * self.step_seconds + self.bake_seconds) > 25_200:
            raise ValueError(
                f"{-(-100 // percent)} steps of step_seconds={self.step_seconds} bake {baking} s; at most 25200 fit"
            )
        return self


def check_name(value: str, where: str) -> str:
    """A SageMaker name: letters, digits and single hyphens, at most 63."""
    if not NAME.match(value):
        raise InvalidInput(
            f"{value!r} is not a SageMaker name",
            where=where,
            hint="Use up to 63 letters, digits and hyphens, as in fraud-2.",
        )
    return value


def check_instance_type(value: str) -> str:
    if not _INSTANCE_TYPE.match(value):
        raise ValueError("not an instance type; it looks like ml.m5.xlarge")
    return value


def check_image(value: str | None) -> str | None:
    if value is not None and not _IMAGE.match(value):
        raise ValueError("an image URI has 1 to 255 characters and no spaces")
    return value


def check_role(value: str | None) -> str | None:
    if value is not None and not _ROLE.match(value):
        raise ValueError("not a role ARN; it looks like arn:aws:iam::123456789012:role/windlass-execution")
    return value
