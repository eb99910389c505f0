"""One endpoint: what it runs, what it changes to, and what is said of it, by DescribeEndpoint and in events.

How it gets from one to the other is in `deployments.py`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from windlass.local.hosting.capture import Capture
from windlass.local.hosting.configs import Model, Record, variants
from windlass.local.hosting.fleet import Fleet
from windlass.local.hosting.instance import FAILURE_REASON_LENGTH
from windlass.local.hosting.rollout import Rollout
from windlass.local.hosting.router import Router, Share

IN_PROGRESS = frozenset({"Creating", "Updating", "RollingBack", "Deleting", "SystemUpdating"})


@dataclass(frozen=True)
class Deployed:
    """An endpoint config with the fleet that runs it. ``properties`` is the config as it is in force (see Retain...)."""

    config: Record
    properties: dict[str, Any]
    fleet: Fleet
    capture: Capture | None
    since: datetime
    models: dict[str, Model] = field(default_factory=dict)


@dataclass
class Endpoint:
    """A live endpoint.

    Attributes:
        live: what it runs.
        pending: what it changes to, while it changes.
        left_over: what it should have changed to: it still serves beside ``live``, because going back failed, too.
        before: where the traffic went before the change.
    """

    region: str
    name: str
    arn: str
    status: str
    created: datetime
    modified: datetime
    live: Deployed | None = None
    pending: Deployed | None = None
    left_over: Deployed | None = None
    before: list[tuple[Fleet, Share]] = field(default_factory=list)
    failure: str | None = None
    deployment: dict[str, Any] | None = None
    rollout: Rollout | None = None
    router: Router = field(default_factory=Router)

    @property
    def asynchronous(self) -> Mapping[str, Any] | None:
        """Its AsyncInferenceConfig; None for one that answers at once."""
        shown = self.live or self.pending
        return shown.properties.get("AsyncInferenceConfig") if shown else None

    @property
    def role(self) -> str | None:
        """What SageMaker does for the endpoint itself, it does as the role of the first variant's model."""
        shown = self.live or self.pending
        models = list(shown.models.values()) if shown else []
        return str(models[0].request["ExecutionRoleArn"]) if models else None

    @property
    def accepting(self) -> bool:
        """Whether requests may be queued for it, whether or not an instance could take them now."""
        return self.status == "SystemUpdating" or (self.live is not None and self.status != "Deleting")

    @property
    def guarded(self) -> bool:
        """Whether a deployment with a DeploymentConfig has touched it: its metrics then tell the fleets apart."""
        return self.deployment is not None

    @property
    def deployed(self) -> list[Deployed]:
        """All that runs for it."""
        return [each for each in (self.live, self.pending, self.left_over) if each]

    def capture_of(self, fleet: Fleet) -> Capture | None:
        """Where the traffic of that fleet is captured."""
        return next((each.capture for each in self.deployed if each.fleet is fleet), None)

    def described(self) -> dict[str, Any]:
        """What DescribeEndpoint answers."""
        shown = self.live or self.pending
        assert shown is not None
        answer = {
            "EndpointName": self.name,
            "EndpointArn": self.arn,
            "EndpointConfigName": shown.config.name,
            "EndpointStatus": self.status,
            "CreationTime": self.created,
            "LastModifiedTime": self.modified,
        }
        if self.live:
            answer |= _summaries(self.live)
        if pending := self._pending_summary():
            answer["PendingDeploymentSummary"] = pending
        if capture := shown.properties.get("DataCaptureConfig"):
            on = capture.get("EnableCapture", True)
            answer["DataCaptureConfig"] = {
                "EnableCapture": on,
                "CaptureStatus": "Started" if on and self.status != "Failed" else "Stopped",
                "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
                "DestinationS3Uri": capture["DestinationS3Uri"],
                "KmsKeyId": capture.get("KmsKeyId", ""),
            }
        if self.asynchronous:
            answer["AsyncInferenceConfig"] = copy.deepcopy(dict(self.asynchronous))
        if self.failure:
            answer["FailureReason"] = self.failure[:FAILURE_REASON_LENGTH]
        if self.deployment:
            answer["LastDeploymentConfig"] = copy.deepcopy(self.deployment)
        return answer

    def event(self, kind: str, tags: Mapping[str, str]) -> dict[str, Any]:
        """What EventBridge is told.

        Args:
            kind: ``Endpoint``, or ``Endpoint Deployment`` for one that also says how far the deployment is.
        """
        shown = self.live or self.pending
        detail: dict[str, Any] = {
            "EndpointName": self.name,
            "EndpointArn": self.arn,
            "EndpointConfigName": shown.config.name if shown else "",
            **(_summaries(self.live) if self.live else {}),
            "EndpointStatus": re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.status).upper(),
            "CreationTime": self.created,
            "LastModifiedTime": self.modified,
            "Tags": dict(tags),
            **({"FailureReason": self.failure} if self.failure else {}),
        }
        if kind == "Endpoint Deployment" and (pending := self._pending_summary()):
            detail["PendingDeploymentSummary"] = pending
        return {
            "detail-type": f"SageMaker {kind} State Change",
            "source": "aws.sagemaker",
            "resources": [self.arn],
            "detail": _in_milliseconds(detail),
        }

    def _pending_summary(self) -> dict[str, Any] | None:
        """PendingDeploymentSummary; None when nothing is pending."""
        pending = self.pending
        if pending is None or self.status not in IN_PROGRESS:
            return None
        leaving = self.status == "RollingBack"
        plain = {
            "Status": "Deleting" if leaving else "Creating",
            "StartTime": self.modified if leaving else pending.since,
        }
        rollout = None if leaving else self.rollout
        return {
            "EndpointConfigName": pending.config.name,
            **_summaries(pending, rollout.status if rollout else lambda _: plain),
            "StartTime": pending.since,
        }


def _summaries(deployed: Deployed, status: Callable[[str], dict[str, Any]] | None = None) -> dict[str, Any]:
    """ProductionVariants and ShadowProductionVariants; with the VariantStatus of each if it is one that comes to be."""
    roles = [role for role in ("ProductionVariants", "ShadowProductionVariants") if role in deployed.properties]
    return {
        role: [
            _summary(deployed, variant, status(name) if status else None)
            for name, variant in variants(deployed.properties, role).items()
        ]
        for role in roles
    }


def _summary(deployed: Deployed, variant: Mapping[str, Any], status: dict[str, Any] | None) -> dict[str, Any]:
    name = variant["VariantName"]
    image = deployed.fleet.variants[name].image
    summary = {
        "VariantName": name,
        "DeployedImages": [{"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": deployed.since}],
        "CurrentWeight": deployed.fleet.weights[name],
        "DesiredWeight": variant["InitialVariantWeight"],
    }
    if "ServerlessConfig" in variant:
        summary["CurrentServerlessConfig"] = summary["DesiredServerlessConfig"] = dict(variant["ServerlessConfig"])
    else:
        summary["CurrentInstanceCount"] = deployed.fleet.healthy()[name]
        summary["DesiredInstanceCount"] = variant["InitialInstanceCount"]
    if status:
        if "InstanceType" in variant:
            summary["InstanceType"] = variant["InstanceType"]
        summary["VariantStatus"] = [status]
    if "RoutingConfig" in variant:
        summary["RoutingConfig"] = variant["RoutingConfig"]
    return summary


def _in_milliseconds(value: Any) -> Any:
    """Times as events have them: in milliseconds since the epoch."""
    if isinstance(value, datetime):
        return int(value.timestamp() * 1000)
    if isinstance(value, dict):
        return {name: _in_milliseconds(member) for name, member in value.items()}
    return [_in_milliseconds(member) for member in value] if isinstance(value, list) else value
