"""SageMaker hosting: what the API says of endpoints, and what it lets one do to them.

``Hosting`` checks a request, has it carried out by `deployments.py`, and describes what is there; ``HostingOperations`` puts it
behind moto's SageMaker API. Models and endpoint configs are in `endpoint_configs.py`, InvokeEndpoint in `dataplane.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from moto.core.responses import ActionResult, EmptyResult

from windlass.local import cloud as clouds
from windlass.local.faults import Fault
from windlass.local.hosting.configs import EndpointConfigs, arn_of, instances_of, kept, page_of, variants
from windlass.local.hosting.dataplane import DataPlane
from windlass.local.hosting.deployments import Deployments
from windlass.local.hosting.endpoint import IN_PROGRESS, Deployed, Endpoint
from windlass.local.hosting.metering import Meter
from windlass.local.hosting.rollout import Policy, Rollout
from windlass.local.hosting.serverless import ServerlessFleet, Settings


class Hosting:
    """All hosting of one local cloud.

    The methods named as operations take the request as AWS has it and return its answer. What holds for every operation
    (constraints of the service model, roles, tags) is checked in `sagemaker.py` before.
    """

    def __init__(self, cloud: clouds.Cloud) -> None:
        self._cloud = cloud
        self.configs = EndpointConfigs(cloud)
        meter = Meter(cloud.metrics)
        self._deployments = Deployments(cloud, self.configs, meter)
        self._data_plane = DataPlane(
            lambda region, name: self._deployments.endpoints.get((region, name)),
            meter,
            cloud.clock,
            self._deployments.queues,
        )

    def restore(self) -> None:
        """Put back what an earlier server saved, and start its endpoints again."""
        self.configs.restore()
        self._deployments.restore()

    # -- endpoints ----------------------------------------------------------------------------------------------------

    def create_endpoint(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        name, arn = request["EndpointName"], arn_of(region, "endpoint", request["EndpointName"])
        with self._deployments.changed:
            if (region, name) in self._deployments.endpoints:
                raise Fault("ValidationException", f'Cannot create already existing endpoint "{arn}".')
            config = self.configs.config(region, request["EndpointConfigName"])
            if "DeploymentConfig" in request:
                Policy.parse(request["DeploymentConfig"], instances=_smallest(config.request))
            now = self._deployments.now()
            endpoint = Endpoint(
                region, name, arn, "Creating", now, now, deployment=kept(request).get("DeploymentConfig")
            )
            endpoint.pending = self._deployments.prepare(endpoint, config, config.request)
            self._deployments.endpoints[region, name] = endpoint
            self._deployments.save(endpoint)
        self._deployments.announce(endpoint)
        self._deployments.spawn(endpoint, self._deployments.bring_up)
        return {"EndpointArn": arn}

    def describe_endpoint(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._deployments.changed:
            return self._deployments.endpoint(region, request["EndpointName"]).described()

    def list_endpoints(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        summaries = [
            {
                "EndpointName": each.name,
                "EndpointArn": each.arn,
                "CreationTime": each.created,
                "LastModifiedTime": each.modified,
                "EndpointStatus": each.status,
            }
            for each in self._deployments.of(region)
        ]
        return page_of("Endpoint", summaries, request)

    def update_endpoint(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._deployments.changed:
            endpoint = self._deployments.endpoint(region, request["EndpointName"])
            live = self._deployments.settled(endpoint)
            config = self.configs.config(region, request["EndpointConfigName"])
            deployment = kept(request).get("DeploymentConfig")
            if deployment is None and request.get("RetainDeploymentConfig"):
                deployment = endpoint.deployment
            policy = Policy.parse(deployment, instances=_smallest(live.properties))
            before, after = set(live.fleet.production), set(variants(config.request, "ProductionVariants"))
            if deployment and before != after:
                raise Fault(
                    "ValidationException",
                    f"With a DeploymentConfig, the variant names of endpoint configuration {config.name} "
                    f"({', '.join(sorted(after))}) must match those of the endpoint ({', '.join(sorted(before))}).",
                )
            retained = {"DesiredInstanceCount", "DesiredWeight", "DataCaptureConfig"} - {
                each["VariantPropertyType"] for each in request.get("ExcludeRetainedVariantProperties", [])
            }
            properties = _retain(live, config.request, retained if request.get("RetainAllVariantProperties") else set())
            endpoint.pending = self._deployments.prepare(endpoint, config, properties)
            endpoint.deployment = deployment
            endpoint.failure = None
            rollout = endpoint.rollout = Rollout(
                policy,
                clock=self._cloud.clock,
                pace=self._cloud.pace,
                alarm_states=lambda: self._cloud.alarms.states(region, list(policy.alarms)),
                cancelled=lambda: self._deployments.closed() is not None,
                entered=lambda: self._deployments.announce(endpoint, "Endpoint Deployment"),
            )
            self._deployments.become(endpoint, "Updating")
        self._deployments.announce(endpoint)
        self._deployments.spawn(endpoint, lambda each: self._deployments.roll_out(each, rollout))
        return {"EndpointArn": endpoint.arn}

    def update_endpoint_weights_and_capacities(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {each["VariantName"]: each for each in request["DesiredWeightsAndCapacities"]}
        if len(wanted) < len(request["DesiredWeightsAndCapacities"]):
            raise Fault("ValidationException", "DesiredWeightsAndCapacities names a variant more than once.")
        with self._deployments.changed:
            endpoint = self._deployments.endpoint(region, request["EndpointName"])
            live = self._deployments.settled(endpoint)
            if endpoint.left_over:
                message = f'Cannot update endpoint "{endpoint.arn}" in status {endpoint.status}: use UpdateEndpoint.'
                raise Fault("ValidationException", message)
            for name, change in wanted.items():
                if name not in live.fleet.variants:
                    raise Fault("ValidationException", f"Variant {name} not found for Endpoint {endpoint.name}.")
                kind = "ServerlessConfig" if isinstance(live.fleet, ServerlessFleet) else "InitialInstanceCount"
                other = "DesiredInstanceCount" if kind == "ServerlessConfig" else "ServerlessUpdateConfig"
                if other in change:
                    raise Fault(
                        "ValidationException", f"{other} is not supported for variant {name}, which has {kind}."
                    )
                if change.get("DesiredInstanceCount") == 0 and not endpoint.asynchronous:
                    index = list(wanted).index(name) + 1
                    raise Fault(
                        "ValidationException",
                        f"1 validation error detected: Value '0' at 'desiredWeightsAndCapacities.{index}.member."
                        "desiredInstanceCount' failed to satisfy constraint: Member must have value greater than or equal to 1",
                    )
            before, after = live.properties, copy.deepcopy(live.properties)
            for name, variant in variants(after).items():
                change = wanted.get(name, {})
                if "ServerlessConfig" in variant:
                    variant["ServerlessConfig"] |= change.get("ServerlessUpdateConfig", {})
                    Settings.parse(variant["ServerlessConfig"], name)
                else:
                    variant["InitialInstanceCount"] = change.get(
                        "DesiredInstanceCount", variant["InitialInstanceCount"]
                    )
                variant["InitialVariantWeight"] = change.get("DesiredWeight", live.fleet.weights[name])
            endpoint.live = replace(live, properties=after)
            endpoint.failure = None
            self._deployments.become(endpoint, "Updating")
        self._deployments.announce(endpoint)
        self._deployments.spawn(endpoint, lambda each: self._deployments.resize(each, live.fleet, before, after))
        return {"EndpointArn": endpoint.arn}

    def desired_instances(self, region: str, endpoint: str, variant: str) -> int | None:
        """How many instances that variant is to have; None when there is no such variant in service."""
        with self._deployments.changed:
            found = self._deployments.endpoints.get((region, endpoint))
            live = found.live if found else None
            properties = variants(live.properties).get(variant) if live else None
            return instances_of(properties) if properties else None

    def scales_to_zero(self, region: str, endpoint: str) -> bool:
        """Whether its variants may have no instance at all: only a queue can wait for one."""
        found = self._deployments.endpoints.get((region, endpoint))
        return found is not None and found.asynchronous is not None

    def delete_endpoint(self, region: str, request: Mapping[str, Any]) -> None:
        with self._deployments.changed:
            endpoint = self._deployments.endpoint(region, request["EndpointName"])
            if endpoint.status in IN_PROGRESS:
                raise Fault("ValidationException", f'Cannot update in-progress endpoint "{endpoint.arn}".')
            endpoint.router.assign()
            self._deployments.become(endpoint, "Deleting")
        self._deployments.announce(endpoint)
        self._deployments.spawn(endpoint, self._deployments.take_down)

    def wait(self, region: str, name: str, *, timeout: float) -> str | None:
        """The endpoint's status once it no longer changes; None if it does not exist (any more).

        Args:
            timeout: in real seconds.

        Raises:
            TimeoutError: it still changes.
        """

        def status() -> str | None:
            endpoint = self._deployments.endpoints.get((region, name))
            return endpoint.status if endpoint else None

        with self._deployments.changed:
            if not self._deployments.changed.wait_for(lambda: status() not in IN_PROGRESS, timeout):
                raise TimeoutError(f"Endpoint {name} is still {status()} after {timeout:.0f} s")
            return status()

    # -- data plane ---------------------------------------------------------------------------------------------------

    def invoke(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The data plane, as a WSGI application for the paths under ``/endpoints/``."""
        return self._data_plane(environ, start_response)

    # -- the end ------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything, and end every process."""
        self._deployments.reset()
        self._data_plane.close()
        self.configs.reset()

    def close(self) -> None:
        """End every process and thread, and write what is still in memory."""
        self._deployments.close()
        self._data_plane.close()


class HostingOperations:
    """Hosting's part of the SageMaker API."""

    params: Any
    region: str

    @property
    def _hosting(self) -> Hosting:
        return clouds.current().hosting

    def create_model(self) -> ActionResult:
        return ActionResult(self._hosting.configs.create_model(self.region, self.params))

    def describe_model(self) -> ActionResult:
        return ActionResult(self._hosting.configs.describe_model(self.region, self.params))

    def list_models(self) -> ActionResult:
        return ActionResult(self._hosting.configs.list_models(self.region, self.params))

    def delete_model(self) -> ActionResult:
        self._hosting.configs.delete_model(self.region, self.params)
        return EmptyResult()

    def create_endpoint_config(self) -> ActionResult:
        return ActionResult(self._hosting.configs.create_endpoint_config(self.region, self.params))

    def describe_endpoint_config(self) -> ActionResult:
        return ActionResult(self._hosting.configs.describe_endpoint_config(self.region, self.params))

    def list_endpoint_configs(self) -> ActionResult:
        return ActionResult(self._hosting.configs.list_endpoint_configs(self.region, self.params))

    def delete_endpoint_config(self) -> ActionResult:
        self._hosting.configs.delete_endpoint_config(self.region, self.params)
        return EmptyResult()

    def create_endpoint(self) -> ActionResult:
        return ActionResult(self._hosting.create_endpoint(self.region, self.params))

    def describe_endpoint(self) -> ActionResult:
        return ActionResult(self._hosting.describe_endpoint(self.region, self.params))

    def list_endpoints(self) -> ActionResult:
        return ActionResult(self._hosting.list_endpoints(self.region, self.params))

    def update_endpoint(self) -> ActionResult:
        return ActionResult(self._hosting.update_endpoint(self.region, self.params))

    def update_endpoint_weights_and_capacities(self) -> ActionResult:
        return ActionResult(self._hosting.update_endpoint_weights_and_capacities(self.region, self.params))

    def delete_endpoint(self) -> ActionResult:
        self._hosting.delete_endpoint(self.region, self.params)
        return EmptyResult()


def _smallest(config: Mapping[str, Any]) -> int:
    return min(instances_of(variant) for variant in variants(config, "ProductionVariants").values())


def _retain(live: Deployed, config: Mapping[str, Any], retained: set[str]) -> dict[str, Any]:
    """The new config with what RetainAllVariantProperties keeps of the running one."""
    properties = copy.deepcopy(dict(config))
    before = variants(live.properties)
    for name, variant in variants(properties).items():
        kept_count = name in before and "InitialInstanceCount" in before[name] and "InitialInstanceCount" in variant
        if kept_count and "DesiredInstanceCount" in retained:
            variant["InitialInstanceCount"] = before[name]["InitialInstanceCount"]
        if name in before and "DesiredWeight" in retained:
            variant["InitialVariantWeight"] = live.fleet.weights[name]
    if "DataCaptureConfig" in retained and "DataCaptureConfig" in live.properties:
        properties["DataCaptureConfig"] = copy.deepcopy(live.properties["DataCaptureConfig"])
    return properties
