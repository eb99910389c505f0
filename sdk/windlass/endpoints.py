"""Endpoints: deploy, predict, label, roll back. Each verb gives an :class:`Endpoint`.

endpoint = wl.deploy(version, slos=[wl.Slo.p99_latency(ms=200), wl.Slo.accuracy(0.95)])
result = endpoint.predict({"image": pixels})          # -> Prediction
endpoint.label(result.inference_id, 7)                # late ground truth
endpoint.rollback()                                   # or the SLOs' alarms do it during the bake

Endpoint.from_name("digits")                          # in another process
"""

from __future__ import annotations

import contextlib
import functools
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, overload

from windlass import aws, plans
from windlass.artifact import MANIFEST, Signature
from windlass.errors import (
    AccessDenied,
    Conflict,
    CorruptArtifact,
    DeploymentFailed,
    InvalidInput,
    NotFound,
    RolledBack,
)
from windlass.foundation import Contract
from windlass.gates import Policy
from windlass.plans import Plan
from windlass.predictor import Asking, Pending
from windlass.registry import ModelVersion
from windlass.specs import ServeSpec, Slo, check_name

_CHANGING = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


@dataclass(frozen=True)
class Endpoint(Asking):
    """A live endpoint as it was when it was looked at; :meth:`refresh` looks again.

    How to ask it, `predict` and its kin, is in :class:`windlass.predictor.Asking`.

    Attributes:
        status: ``InService``, ``Creating``, ``Updating``, ``RollingBack``, ``Failed``...
        stage: of the deployment in progress: ``Creating``, ``ActivatingTraffic``, ``Baking``; empty when there is none.
        config: the endpoint config in service.
        model_version: ``digits/1``, of that config.
        wanted_config: the config that the deploy in progress asked for; :meth:`wait` checks that it came to be.
        reason: SageMaker's FailureReason.
    """

    name: str
    arn: str
    status: str
    config: str
    stage: str = ""
    model_version: str = ""
    wanted_config: str = ""
    reason: str = ""
    previous_configs: tuple[str, ...] = ()
    project: str = field(default="windlass", repr=False)

    @classmethod
    def from_name(cls, name: str) -> Endpoint:
        """Any endpoint of the account.

        Raises:
            NotFound: there is none of this name.
        """
        where = f"Looking up endpoint '{name}'"
        answer = aws.call(where, aws.client("sagemaker").describe_endpoint, EndpointName=name)
        # An endpoint that failed before its first config served says so in FailureReason and names none.
        config = answer.get("EndpointConfigName", "")
        tags = _tags(answer["EndpointArn"], where)
        return cls(
            name=name,
            arn=answer["EndpointArn"],
            status=answer["EndpointStatus"],
            config=config,
            stage=_stage(answer),
            model_version=_version_of(config, where) if config else "",
            reason=answer.get("FailureReason", ""),
            previous_configs=tuple(n for n in tags.get(plans.HISTORY_TAG, "").split() if n != config),
            project=tags.get("windlass:project", "windlass"),
        )

    @classmethod
    def list(cls) -> Sequence[str]:
        """Names of the account's endpoints, newest first."""
        found = aws.pages(
            "Listing endpoints",
            "sagemaker",
            "list_endpoints",
            "Endpoints",
            SortBy="CreationTime",
            SortOrder="Descending",
        )
        return [item["EndpointName"] for item in found]

    def refresh(self) -> Endpoint:
        found = Endpoint.from_name(self.name)
        return replace(found, wanted_config=self.wanted_config)

    # ---------------------------------------------------------------------------------------------------- life cycle

    def wait(self, *, timeout_seconds: float = 28_800, clock: aws.Clock = aws.CLOCK) -> Endpoint:
        """Wait until it is in service, on the config that was asked for.

        SageMaker goes back to InService on the *old* config after a rollback, without an error; this raises one.

        Raises:
            RolledBack: it serves the config from before. The message names the reason.
            DeploymentFailed: it does not serve.
            WaitTimeout: the deployment goes on.
        """
        where, hint = f"Deploying endpoint '{self.name}'", f"Look again: windlass status {self.name}"
        found = aws.poll(
            where,
            self.refresh,
            lambda e: e.status not in _CHANGING,
            timeout_seconds=timeout_seconds,
            clock=clock,
            hint=hint,
        )
        if found.status != "InService":
            left = self.wanted_config or found.config
            remedy = f"Mend the model, then windlass delete {self.name} (with {left}, its config and model) and deploy again."
            raise DeploymentFailed(
                f"it is {found.status}\n{found.reason}\n", where=where, hint=remedy, reason=found.reason
            )
        if self.wanted_config and found.config != self.wanted_config:
            raise RolledBack(
                f"rolled back to {found.config} ({found.model_version}): {found.reason or 'an alarm or a health check failed'}",
                where=where,
                hint=f"{self.wanted_config} is not in service; its config, model and alarms are kept under that name.",
                reason=found.reason,
            )
        return found

    def rollback(
        self, *, wait: bool = True, dry_run: bool = False, clock: aws.Clock = aws.CLOCK, **options: Any
    ) -> Endpoint | Plan:
        """Serve the config from before again, at once. The config left behind is not gone back to."""
        where = f"Rolling back endpoint '{self.name}'"
        spec = ServeSpec.check(where, **options)
        now = self.refresh()
        _refuse_changing(now, where)
        if not now.previous_configs:
            raise NotFound(
                f"no config before {now.config} is known", where=where, hint="Deploy an older version: windlass deploy."
            )
        plan = plans.rollback(spec, endpoint=self.name, live=_live(now))
        if dry_run:
            return plan
        aws.execute(plan)
        back = replace(now, wanted_config=now.previous_configs[0], status="Updating")
        return back.wait(clock=clock) if wait else back

    def delete(self) -> None:
        """Delete the endpoint with the configs, models and alarms that deploys of it made. Captured data stays."""
        where = f"Deleting endpoint '{self.name}'"
        sagemaker, cloudwatch = aws.client("sagemaker"), aws.client("cloudwatch")
        aws.call(where, sagemaker.delete_endpoint, EndpointName=self.name)
        for config in _made(self.name, "EndpointConfig", where):
            with contextlib.suppress(NotFound):  # deleted by hand just now
                aws.call(where, sagemaker.delete_endpoint_config, EndpointConfigName=config)
        for model in _made(self.name, "Model", where):
            with contextlib.suppress(NotFound):
                aws.call(where, sagemaker.delete_model, ModelName=model)
        names = self.alarm_names()
        for start in range(0, len(names), 100):  # DeleteAlarms takes 100
            aws.call(where, cloudwatch.delete_alarms, AlarmNames=names[start : start + 100])

    def versions(self) -> Mapping[str, str]:
        """Every config that deploys of this endpoint made and that is still there, newest first, with its model version."""
        made = _made(self.name, "EndpointConfig", f"Listing configs of endpoint '{self.name}'")
        return {config: tags.get("windlass:model-version", config) for config, tags in made.items()}

    def alarm_names(self, config: str = "") -> Sequence[str]:
        """The alarms that deploys of this endpoint made; with ``config``, those scoped to it."""
        where = f"Listing alarms of endpoint '{self.name}'"
        found = aws.pages(where, "cloudwatch", "describe_alarms", "MetricAlarms", AlarmNamePrefix=f"{self.name}/")
        return [alarm["AlarmName"] for alarm in found if alarm["AlarmName"].endswith(f"/{config}" if config else "")]

    # ------------------------------------------------------------------------------------------------- predict, label

    @functools.cached_property
    def signature(self) -> Signature | None:
        """What the model takes and gives, from the manifest of the registered version in service; read once.

        ``None`` where it is not known: no signature, not a version of the registry, or one that this caller may not read. Then
        inputs go out unchecked.
        """
        if not self.model_version:
            return None
        try:
            return ModelVersion.from_name(self.model_version).manifest.signature
        except (NotFound, AccessDenied, CorruptArtifact):
            return None  # a caller who may only invoke can still do that

    def predict_async(self, data: Any, *, bucket: str | None = None, **options: Any) -> Pending:
        """As of :class:`windlass.predictor.Asking`, with the project's own bucket for the input unless you name another."""
        return super().predict_async(data, bucket=bucket or Contract.load(self.project).bucket, **options)

    def openapi(self) -> dict[str, Any]:
        """The endpoint's API as OpenAPI 3.1, from the signature: generators for other languages make a typed client of it.

        json.dump(endpoint.openapi(), open("digits.json", "w"))      # or: windlass openapi digits/2 --endpoint digits
        """
        from windlass.runtime.openapi import document

        _, _, version = self.model_version.partition("/")
        signature, name = self.signature, self.name
        return document(signature, title=name, version=version or "1", endpoint=name, region=aws.region())

    def label(self, inference_id: str, truth: Any, *, clock: aws.Clock = aws.CLOCK) -> None:
        """Say what was right, whenever it becomes known. :func:`windlass.monitor.quality` joins it to the prediction."""
        self.label_many([(inference_id, truth)], clock=clock)

    def label_many(self, labels: Iterable[tuple[str, Any]], *, clock: aws.Clock = aws.CLOCK) -> str:
        """Many labels as one object: one request, whatever their number.

        The records are those that SageMaker's ground truth merge reads (JSON Lines), with the label's own time.

        Returns:
            The URI written.
        """
        moment = datetime.fromtimestamp(clock.now(), UTC)
        records = [
            {
                "groundTruthData": {"data": json.dumps(_plain(truth)), "encoding": "JSON"},
                "eventMetadata": {"eventId": identity, "labelTime": moment.isoformat()},
                "eventVersion": "0",
            }
            for identity, truth in labels
        ]
        where = f"Labelling predictions of '{self.name}'"
        if not records:
            raise InvalidInput("no labels were given", where=where)
        bucket = Contract.load(self.project).bucket
        uri = f"s3://{bucket}/labels/{self.name}/{moment:%Y/%m/%d/%H/%M-%S-%f}-{uuid.uuid4().hex[:8]}.jsonl"
        aws.put_bytes(uri, "".join(json.dumps(r) + "\n" for r in records).encode(), "application/jsonlines")
        return uri


def _stage(answer: Mapping[str, Any]) -> str:
    variants = answer.get("PendingDeploymentSummary", {}).get("ProductionVariants", [])
    states = [state["Status"] for variant in variants for state in variant.get("VariantStatus", [])]
    return states[-1] if states else ""


def _live(endpoint: Endpoint) -> plans.Live:
    return plans.Live(endpoint.arn, endpoint.config, endpoint.previous_configs, endpoint.model_version)


def _with_variant(live: plans.Live, where: str) -> plans.Live:
    """With the production variant of its config, beside which a shadow is to run."""
    sagemaker = aws.client("sagemaker")
    config = aws.call(where, sagemaker.describe_endpoint_config, EndpointConfigName=live.config)
    if len(config["ProductionVariants"]) != 1:
        hint = "Deploy one version without a shadow first."
        raise InvalidInput("a shadow needs an endpoint of exactly one production variant", where=where, hint=hint)
    return replace(live, variant=config["ProductionVariants"][0])


def _tags(arn: str, where: str) -> Mapping[str, str]:
    return {tag["Key"]: tag["Value"] for tag in aws.pages(where, "sagemaker", "list_tags", "Tags", ResourceArn=arn)}


def _made(endpoint: str, kind: Literal["EndpointConfig", "Model"], where: str) -> Mapping[str, Mapping[str, str]]:
    """Configs or models that deploys of the endpoint made, newest first, with their tags."""
    operation = {"EndpointConfig": "list_endpoint_configs", "Model": "list_models"}[kind]
    stem = plans.stem(f"{endpoint}-v")
    listed = aws.pages(where, "sagemaker", operation, f"{kind}s", NameContains=stem, SortBy="CreationTime")
    tagged = {item[f"{kind}Name"]: _tags(item[f"{kind}Arn"], where) for item in listed}
    return {name: tags for name, tags in tagged.items() if tags.get("windlass:endpoint") == endpoint}


def _version_of(config: str, where: str) -> str:
    sagemaker = aws.client("sagemaker")
    try:
        arn = aws.call(where, sagemaker.describe_endpoint_config, EndpointConfigName=config)["EndpointConfigArn"]
    except NotFound:
        return ""  # an endpoint outlives its config's record when someone deletes that
    return _tags(arn, where).get("windlass:model-version", "")


def _refuse_changing(endpoint: Endpoint, where: str) -> None:
    if endpoint.status in _CHANGING:
        hint = f"Wait for it: windlass status {endpoint.name}"
        raise Conflict(f"it is {endpoint.status}", where=where, hint=hint)
    if endpoint.status != "InService":
        hint = f"windlass delete {endpoint.name}, then deploy again."
        raise Conflict(f"it is {endpoint.status} ({endpoint.reason})", where=where, hint=hint)


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays inside dicts and lists as Python values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@overload
def deploy(
    version: ModelVersion | str,
    endpoint: str | None = ...,
    *,
    slos: Sequence[Slo] = ...,
    policy: Policy | None = ...,
    project: str = ...,
    dry_run: Literal[True],
    clock: aws.Clock = ...,
    **options: Any,
) -> Plan: ...
@overload
def deploy(
    version: ModelVersion | str,
    endpoint: str | None = ...,
    *,
    slos: Sequence[Slo] = ...,
    policy: Policy | None = ...,
    project: str = ...,
    wait: bool = ...,
    dry_run: Literal[False] = ...,
    clock: aws.Clock = ...,
    **options: Any,
) -> Endpoint: ...
def deploy(
    version: ModelVersion | str,
    endpoint: str | None = None,
    *,
    slos: Sequence[Slo] = (),
    policy: Policy | None = None,
    project: str = "windlass",
    wait: bool = True,
    dry_run: bool = False,
    clock: aws.Clock = aws.CLOCK,
    **options: Any,
) -> Endpoint | Plan:
    """Serve a model version: a new endpoint, or a guarded update of the one that is there.

        endpoint = wl.deploy("digits/2", slos=[wl.Slo.accuracy(0.95)], bake_seconds=600)

    Each deploy writes a new immutable endpoint config. On an update the old fleet stays until the bake is over, and goes back
    into service by itself when an SLO's alarm fires.

    Args:
        endpoint: its name; by default the model's.
        slos: promises; each becomes an alarm scoped to the new version.
        policy: gates that must open. A signature of the manifest, if there is one, is verified in any case.
        wait: until it is in service and baked. An accuracy alarm needs traffic and labels *during* the bake: pass ``False``,
            send them, then :meth:`Endpoint.wait`.
        options: the fields of :class:`windlass.ServeSpec`: instance_type, bake_seconds; how the traffic shifts: canary_percent,
            linear_percent, rolling_percent; or shadow_percent, which shifts none and mirrors that share of it.

    Raises:
        InvalidInput: the version is not approved, or an argument is wrong; nothing was sent.
        PolicyRefused: lists each gate that is shut; nothing was sent.
        CorruptArtifact: the manifest is not the signed one; nothing was sent.
        DeploymentFailed: the model did not come up; :class:`RolledBack` when the old one serves on.
    """
    where = f"Deploying {version if isinstance(version, str) else version.name}"
    spec = ServeSpec.check(where, **options)
    found = ModelVersion.from_name(version) if isinstance(version, str) else version
    name = check_name(endpoint or found.model, where)
    if len(slos) > 10:
        raise InvalidInput(f"{len(slos)} SLOs; a deployment watches at most 10 alarms", where=where)
    if len({slo.metric for slo in slos}) != len(slos):
        raise InvalidInput("two SLOs for one metric", where=where, hint="Give one Slo for each metric.")
    if any(slo.metric == "accuracy" for slo in slos) and not spec.capture_percent:
        raise InvalidInput(
            "an accuracy SLO needs captured predictions", where=where, hint="Leave capture_percent above 0."
        )
    if spec.async_output and any(slo.metric == "error_rate" for slo in slos):
        raise InvalidInput(
            "SageMaker counts no 5xx errors of an asynchronous endpoint, so an error_rate SLO would never fire",
            where=where,
            hint="Give error_topic, which hears of each failure.",
        )
    current = ModelVersion.from_name(found.name)  # approval may have changed since the noun was made
    if current.approval != "Approved":
        hint = f"windlass approve {found.name}, or version.approve()."
        raise InvalidInput(f"it is {current.approval}, not Approved", where=where, hint=hint)
    # A prefix is whole when its manifest, which is written last, is there.
    if not aws.exists(current.model_uri + (MANIFEST if current.model_uri.endswith("/") else "")):
        raise NotFound(f"its artifact {current.model_uri} is gone", where=where, hint="Register the run again.")
    current.verify(policy)
    try:
        existing: Endpoint | None = Endpoint.from_name(name)
    except NotFound:
        existing = None
    live = None
    if existing:
        _refuse_changing(existing, where)
        live = _live(existing)
    if spec.shadow_percent:
        if live is None:
            raise InvalidInput(
                f"there is no endpoint '{name}' to shadow", where=where, hint="Deploy it without a shadow first."
            )
        if slos:
            raise InvalidInput(
                "SLOs judge what answers, and a shadow's answers are dropped",
                where=where,
                hint="Give them when it takes over.",
            )
        live = _with_variant(live, where)
    plan = plans.deploy(
        spec,
        plans.Deployable(current.name, current.image, current.model_uri, current.environment),
        endpoint=name,
        now=clock.now(),
        slos=slos,
        live=live,
        foundation=Contract.load(project),
    )
    if current.signature:
        plan = replace(plan, also=("kms:Verify",))
    if dry_run:
        return plan
    aws.execute(plan)
    config = str(plan.requests[1].params["EndpointConfigName"])
    started = replace(Endpoint.from_name(name), wanted_config=config)
    return started.wait(clock=clock) if wait else started
