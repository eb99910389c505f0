"""SageMaker hosting: models, endpoint configs, and endpoints that really serve.

``Hosting`` holds the records and runs the deployments, each in a thread; ``HostingOperations`` puts it behind moto's SageMaker
API. The processes are in `fleet.py`, the shifting of traffic in `rollout.py`, InvokeEndpoint in `dataplane.py`.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moto.core.responses import ActionResult, EmptyResult

from windlass.local import cloud as clouds
from windlass.local import containers, listing, storage
from windlass.local.capture import Capture
from windlass.local.dataplane import LOG_GROUP, DataPlane
from windlass.local.environments import Environments
from windlass.local.faults import Fault
from windlass.local.fleet import FAILURE_REASON_LENGTH, Fleet, FleetFailed, Router, VariantSpec
from windlass.local.logs import LogStream
from windlass.local.metering import Meter
from windlass.local.processes import Child
from windlass.local.rollout import Policy, Rollout
from windlass.local.utilisation import ENDPOINTS, Usage

log = logging.getLogger(__name__)

FLUSH_INTERVAL_SECONDS = 1.0
RECOVERY_SECONDS = 60.0
"""How long a rollback waits for the old fleet, which takes all traffic again, to be healthy."""

IN_PROGRESS = frozenset({"Creating", "Updating", "RollingBack", "Deleting", "SystemUpdating"})

# What a request may ask for on AWS and not here, yet. Silence would be a false success.
_REFUSED_IN_CONFIG = (
    "AsyncInferenceConfig",
    "ShadowProductionVariants",
    "ExplainerConfig",
    "CrossRegionTrafficConfig",
)
_REFUSED_IN_VARIANT = ("ServerlessConfig", "ManagedInstanceScaling", "InstancePools", "CapacityReservationConfig")


_SAVED = ("region", "name", "arn", "status", "created", "modified", "failure", "deployment")


@dataclass
class Record:
    """A model or an endpoint config: a name and what was asked for."""

    name: str
    arn: str
    created: datetime
    request: dict[str, Any]


@dataclass
class Model(Record):
    """``container`` is the primary one, with a model package resolved to its image, data and environment."""

    container: dict[str, Any] = field(default_factory=dict)


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
    """A live endpoint. While it changes, ``pending`` is what it changes to."""

    region: str
    name: str
    arn: str
    status: str
    created: datetime
    modified: datetime
    live: Deployed | None = None
    pending: Deployed | None = None
    failure: str | None = None
    deployment: dict[str, Any] | None = None
    rollout: Rollout | None = None
    router: Router = field(default_factory=Router)

    @property
    def guarded(self) -> bool:
        """Whether a deployment with a DeploymentConfig has touched it: its metrics then tell the fleets apart."""
        return self.deployment is not None

    def capture_of(self, fleet: Fleet) -> Capture | None:
        """Where the traffic of that fleet is captured."""
        return next((each.capture for each in (self.live, self.pending) if each and each.fleet is fleet), None)


class Hosting:
    """All hosting of one local cloud.

    The methods named as operations take the request as AWS has it and return its answer. What holds for every operation
    (constraints of the service model, roles, tags) is checked in `sagemaker.py` before.
    """

    def __init__(self, cloud: clouds.Cloud) -> None:
        self._cloud = cloud
        self._meter, self._usage = Meter(cloud.metrics), Usage(cloud.metrics, cloud.clock)
        self._data_plane = DataPlane(lambda region, name: self._endpoints.get((region, name)), self._meter, cloud.clock)
        self._changed = threading.Condition(threading.RLock())
        self._models: dict[tuple[str, str], Model] = {}
        self._configs: dict[tuple[str, str], Record] = {}
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        self._saved_models = cloud.database.table("models")
        self._saved_configs = cloud.database.table("endpoint-configs")
        self._saved_endpoints = cloud.database.table("endpoints")
        self._deployments = itertools.count(1)
        self._threads: set[threading.Thread] = set()
        self._closing = threading.Event()
        self._flusher: threading.Thread | None = None

    # -- what outlives a restart --------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Put back what an earlier server saved, and start its endpoints again.

        That is maintenance as SageMaker does it, so meanwhile they are SystemUpdating.
        """
        for key, record in self._saved_models.items():
            self._models[_split(key)] = Model(**record)
        for key, record in self._saved_configs.items():
            self._configs[_split(key)] = Record(**record)
        for key, record in self._saved_endpoints.items():
            if record["status"] == "Deleting":
                self._saved_endpoints.delete(key)
                continue
            config, properties = Record(**record.pop("config")), record.pop("properties")
            models = {name: Model(**model) for name, model in record.pop("models").items()}
            endpoint = self._endpoints[_split(key)] = Endpoint(**record)
            endpoint.pending = self._prepare(endpoint, config, properties, models)
            if endpoint.status != "Failed":
                endpoint.status = "Creating" if endpoint.status == "Creating" else "SystemUpdating"
                self._spawn(endpoint, self._bring_up)

    def _save(self, endpoint: Endpoint) -> None:
        """Keep what a later server is to know. It goes on with the config that is live, as after a rollback."""
        kept = endpoint.live or endpoint.pending
        if self._closing.is_set() or kept is None:
            return  # what happens to an endpoint now is not its own doing
        record = {name: getattr(endpoint, name) for name in _SAVED}
        models = {name: asdict(model) for name, model in kept.models.items()}
        record |= {"config": asdict(kept.config), "properties": kept.properties, "models": models}
        self._saved_endpoints.save(f"{endpoint.region}/{endpoint.name}", record)

    # -- models -------------------------------------------------------------------------------------------------------

    def create_model(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["ModelName"]
        if "ExecutionRoleArn" not in request:
            raise Fault("ValidationException", "ExecutionRoleArn is required to create a model.")
        if ("PrimaryContainer" in request) == bool(request.get("Containers")):
            raise Fault("ValidationException", "Specify exactly one of PrimaryContainer and Containers.")
        [container, *others] = request.get("Containers") or [request["PrimaryContainer"]]
        if others:
            raise _unsupported("inference pipelines (more than one container in Containers)")
        container = containers.resolve(container, functools.partial(self._cloud.registry.package, region))
        if container.get("Mode") == "MultiModel":
            raise _unsupported("multi-model endpoints (Mode MultiModel)")
        if "Image" not in container:
            raise Fault("ValidationException", "A container definition needs an Image or a ModelPackageName.")
        if not containers.exists(container):
            raise Fault("ValidationException", f"Could not find model data at {containers.model_data(container)}.")
        with self._changed:
            arn = _arn(region, "model", name)
            if (region, name) in self._models:
                raise Fault("ValidationException", f'Cannot create already existing model "{arn}".')
            model = self._models[region, name] = Model(name, arn, self._now(), _kept(request), container)
            self._saved_models.save(f"{region}/{name}", asdict(model))
        return {"ModelArn": arn}

    def describe_model(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        model = self._model(region, request["ModelName"])
        return {
            "EnableNetworkIsolation": False,
            **copy.deepcopy(model.request),
            "ModelArn": model.arn,
            "CreationTime": model.created,
        }

    def list_models(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        summaries = [
            {
                "ModelName": each.name,
                "ModelArn": each.arn,
                "CreationTime": each.created,
            }
            for each in self._of(region, self._models)
        ]
        return _page("Model", summaries, request)

    def delete_model(self, region: str, request: Mapping[str, Any]) -> None:
        with self._changed:
            model = self._model(region, request["ModelName"])
            del self._models[region, model.name]
            self._saved_models.delete(f"{region}/{model.name}")

    def model(self, region: str, name: str) -> Model:
        """The model of that name; raises AWS's error when there is none."""
        return self._model(region, name)

    # -- endpoint configs ---------------------------------------------------------------------------------------------

    def create_endpoint_config(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["EndpointConfigName"]
        for key in _REFUSED_IN_CONFIG:
            if key in request:
                raise _unsupported(key)
        names = [variant["VariantName"] for variant in request["ProductionVariants"]]
        if len(set(names)) < len(names):
            raise Fault(
                "ValidationException", "Each production variant in an endpoint configuration must have a unique name."
            )
        stored = _kept(request)
        for variant in stored["ProductionVariants"]:
            self._check_variant(region, variant)
            variant.setdefault("InitialVariantWeight", 1.0)
        if (capture := request.get("DataCaptureConfig")) and not storage.bucket_exists(
            containers.s3_uri(capture["DestinationS3Uri"])
        ):
            raise Fault(
                "ValidationException", f"Could not access the data capture destination {capture['DestinationS3Uri']}."
            )
        with self._changed:
            arn = _arn(region, "endpoint-config", name)
            if (region, name) in self._configs:
                raise Fault("ValidationException", f'Cannot create already existing endpoint configuration "{arn}".')
            config = self._configs[region, name] = Record(name, arn, self._now(), stored)
            self._saved_configs.save(f"{region}/{name}", asdict(config))
        return {"EndpointConfigArn": arn}

    def describe_endpoint_config(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        config = self._config(region, request["EndpointConfigName"])
        return {
            "EnableNetworkIsolation": False,
            **copy.deepcopy(config.request),
            "EndpointConfigArn": config.arn,
            "CreationTime": config.created,
        }

    def list_endpoint_configs(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        summaries = [
            {
                "EndpointConfigName": each.name,
                "EndpointConfigArn": each.arn,
                "CreationTime": each.created,
            }
            for each in self._of(region, self._configs)
        ]
        return _page("EndpointConfig", summaries, request)

    def delete_endpoint_config(self, region: str, request: Mapping[str, Any]) -> None:
        with self._changed:
            config = self._config(region, request["EndpointConfigName"])
            del self._configs[region, config.name]
            self._saved_configs.delete(f"{region}/{config.name}")

    # -- endpoints ----------------------------------------------------------------------------------------------------

    def create_endpoint(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        name, arn = request["EndpointName"], _arn(region, "endpoint", request["EndpointName"])
        with self._changed:
            if (region, name) in self._endpoints:
                raise Fault("ValidationException", f'Cannot create already existing endpoint "{arn}".')
            config = self._config(region, request["EndpointConfigName"])
            if "DeploymentConfig" in request:
                Policy.parse(request["DeploymentConfig"], instances=_smallest(config.request))
            now = self._now()
            endpoint = Endpoint(
                region, name, arn, "Creating", now, now, deployment=_kept(request).get("DeploymentConfig")
            )
            endpoint.pending = self._prepare(endpoint, config, config.request)
            self._endpoints[region, name] = endpoint
            self._save(endpoint)
        self._announce(endpoint)
        self._spawn(endpoint, self._bring_up)
        return {"EndpointArn": arn}

    def describe_endpoint(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._changed:
            endpoint = self._endpoint(region, request["EndpointName"])
            shown = endpoint.live or endpoint.pending
            assert shown is not None
            answer = {
                "EndpointName": endpoint.name,
                "EndpointArn": endpoint.arn,
                "EndpointConfigName": shown.config.name,
                "EndpointStatus": endpoint.status,
                "CreationTime": endpoint.created,
                "LastModifiedTime": endpoint.modified,
            }
            if endpoint.live:
                answer["ProductionVariants"] = _summaries(endpoint.live, endpoint.live.fleet.healthy(), None)
            if endpoint.pending and endpoint.status in IN_PROGRESS:
                status = endpoint.rollout.stage if endpoint.rollout else "Creating"
                answer["PendingDeploymentSummary"] = {
                    "EndpointConfigName": endpoint.pending.config.name,
                    "ProductionVariants": _summaries(endpoint.pending, endpoint.pending.fleet.healthy(), status),
                    "StartTime": endpoint.pending.since,
                }
            if capture := shown.properties.get("DataCaptureConfig"):
                on = capture.get("EnableCapture", True)
                answer["DataCaptureConfig"] = {
                    "EnableCapture": on,
                    "CaptureStatus": "Started" if on and endpoint.status != "Failed" else "Stopped",
                    "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
                    "DestinationS3Uri": capture["DestinationS3Uri"],
                    "KmsKeyId": capture.get("KmsKeyId", ""),
                }
            if endpoint.failure:
                answer["FailureReason"] = endpoint.failure[:FAILURE_REASON_LENGTH]
            if endpoint.deployment:
                answer["LastDeploymentConfig"] = copy.deepcopy(endpoint.deployment)
        return answer

    def list_endpoints(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        summaries = [
            {
                "EndpointName": each.name,
                "EndpointArn": each.arn,
                "CreationTime": each.created,
                "LastModifiedTime": each.modified,
                "EndpointStatus": each.status,
            }
            for each in self._of(region, self._endpoints)
        ]
        return _page("Endpoint", summaries, request)

    def update_endpoint(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._changed:
            endpoint = self._endpoint(region, request["EndpointName"])
            live = self._settled(endpoint)
            config = self._config(region, request["EndpointConfigName"])
            deployment = _kept(request).get("DeploymentConfig")
            if deployment is None and request.get("RetainDeploymentConfig"):
                deployment = endpoint.deployment
            policy = Policy.parse(deployment, instances=_smallest(live.properties))
            before, after = set(live.fleet.variants), set(_variants(config.request))
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
            endpoint.pending = self._prepare(endpoint, config, properties)
            endpoint.deployment = deployment
            endpoint.failure = None
            rollout = endpoint.rollout = Rollout(
                policy,
                clock=self._cloud.clock,
                pace=self._cloud.pace,
                alarm_states=lambda: self._cloud.alarms.states(region, list(policy.alarms)),
                shift=lambda share: self._shift(endpoint, share),
                cancelled=self._closing.is_set,
            )
            self._become(endpoint, "Updating")
        self._announce(endpoint)
        self._spawn(endpoint, lambda each: self._roll_out(each, rollout))
        return {"EndpointArn": endpoint.arn}

    def update_endpoint_weights_and_capacities(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {each["VariantName"]: each for each in request["DesiredWeightsAndCapacities"]}
        with self._changed:
            endpoint = self._endpoint(region, request["EndpointName"])
            live = self._settled(endpoint)
            for name, change in wanted.items():
                if name not in live.fleet.variants:
                    raise Fault("ValidationException", f"Variant {name} not found for Endpoint {endpoint.name}.")
                if "ServerlessUpdateConfig" in change:
                    raise _unsupported("ServerlessUpdateConfig")
            before, after = live.properties, copy.deepcopy(live.properties)
            for name, variant in _variants(after).items():
                change = wanted.get(name, {})
                variant["InitialInstanceCount"] = change.get("DesiredInstanceCount", variant["InitialInstanceCount"])
                variant["InitialVariantWeight"] = change.get("DesiredWeight", live.fleet.weights[name])
            endpoint.live = replace(live, properties=after)
            endpoint.failure = None
            self._become(endpoint, "Updating")
        self._announce(endpoint)
        self._spawn(endpoint, lambda each: self._resize(each, live.fleet, before, after))
        return {"EndpointArn": endpoint.arn}

    def desired_instances(self, region: str, endpoint: str, variant: str) -> int | None:
        """How many instances that variant is to have; None when there is no such variant in service."""
        with self._changed:
            found = self._endpoints.get((region, endpoint))
            live = found.live if found else None
            properties = _variants(live.properties).get(variant) if live else None
            return int(properties["InitialInstanceCount"]) if properties else None

    def delete_endpoint(self, region: str, request: Mapping[str, Any]) -> None:
        with self._changed:
            endpoint = self._endpoint(region, request["EndpointName"])
            if endpoint.status in IN_PROGRESS:
                raise Fault("ValidationException", f'Cannot update in-progress endpoint "{endpoint.arn}".')
            endpoint.router.assign()
            self._become(endpoint, "Deleting")
        self._announce(endpoint)
        self._spawn(endpoint, self._take_down)

    def wait(self, region: str, name: str, *, timeout: float) -> str | None:
        """The endpoint's status once it no longer changes; None if it does not exist (any more).

        Args:
            timeout: in real seconds.

        Raises:
            TimeoutError: it still changes.
        """

        def status() -> str | None:
            endpoint = self._endpoints.get((region, name))
            return endpoint.status if endpoint else None

        with self._changed:
            if not self._changed.wait_for(lambda: status() not in IN_PROGRESS, timeout):
                raise TimeoutError(f"Endpoint {name} is still {status()} after {timeout:.0f} s")
            return status()

    # -- deployments, each in its own thread -----------------------------------------------------------------------------

    def _bring_up(self, endpoint: Endpoint) -> None:
        new = endpoint.pending
        assert new is not None
        try:
            new.fleet.start(self._closed)
        except FleetFailed as error:
            with self._changed:
                endpoint.failure = str(error)
                self._become(endpoint, "Failed")
        else:
            with self._changed:
                endpoint.router.assign((new.fleet, 1.0))
                endpoint.live, endpoint.pending = new, None
                self._become(endpoint, "InService")
        self._announce(endpoint)

    def _resize(self, endpoint: Endpoint, fleet: Fleet, before: dict[str, Any], after: dict[str, Any]) -> None:
        try:
            for name, variant in _variants(after).items():
                fleet.resize(name, variant["InitialInstanceCount"], self._closed)
            for name, variant in _variants(after).items():
                fleet.weights[name] = variant["InitialVariantWeight"]
        except FleetFailed as error:
            with self._changed:
                endpoint.failure = str(error)
                counts = {name: len(fleet.instances(name)) for name in fleet.variants}
                properties = copy.deepcopy(before)
                for name, variant in _variants(properties).items():
                    variant["InitialInstanceCount"] = counts[name]
                assert endpoint.live is not None
                endpoint.live = replace(endpoint.live, properties=properties)
        with self._changed:
            self._become(endpoint, "InService")
        self._announce(endpoint)

    def _roll_out(self, endpoint: Endpoint, rollout: Rollout) -> None:
        old, new = endpoint.live, endpoint.pending
        assert old is not None
        assert new is not None
        try:
            reason = rollout.objection()
            if reason is None:
                new.fleet.start(rollout.objection)
                reason = rollout.run()
        except FleetFailed as error:
            reason = str(error)
        except Exception as error:  # the old fleet stands by, whatever it was
            log.exception("The deployment of %s to endpoint %s", new.config.name, endpoint.name)
            reason = _internal(error)
        if reason is None:
            self._retire(old)
            with self._changed:
                endpoint.live, endpoint.pending = new, None
                self._become(endpoint, "InService")
        else:
            self._roll_back(endpoint, old, new, reason)
        self._announce(endpoint)

    def _roll_back(self, endpoint: Endpoint, old: Deployed, new: Deployed, reason: str) -> None:
        with self._changed:
            endpoint.router.assign((old.fleet, 1.0))
            endpoint.failure = reason
            self._become(endpoint, "RollingBack")
        self._announce(endpoint)
        self._retire(new)
        recovered = old.fleet.wait_healthy(
            RECOVERY_SECONDS
        )  # if what broke the new one broke it, too, it is being restarted
        with self._changed:
            endpoint.pending = None
            self._become(endpoint, "InService" if recovered else "UpdateRollbackFailed")

    def _take_down(self, endpoint: Endpoint) -> None:
        for deployed in (endpoint.live, endpoint.pending):
            if deployed:
                self._retire(deployed)
        with self._changed:
            self._endpoints.pop((endpoint.region, endpoint.name), None)
            self._become(endpoint, "Deleted")
        self._announce(endpoint)

    def _retire(self, deployed: Deployed) -> None:
        """End a fleet that takes no more traffic. What becomes of the endpoint does not hang on it."""
        try:
            deployed.fleet.stop()
        except Exception:
            log.exception("Fleet %s did not end in order; its processes end with the local cloud", deployed.config.name)
        self._flush_capture(deployed)

    def _shift(self, endpoint: Endpoint, share: float) -> None:
        with self._changed:
            assert endpoint.live is not None
            assert endpoint.pending is not None
            endpoint.router.assign((endpoint.live.fleet, 1.0 - share), (endpoint.pending.fleet, share))
        log.info("Endpoint %s: %.0f %% of the traffic on %s", endpoint.name, share * 100, endpoint.pending.config.name)

    def _spawn(self, endpoint: Endpoint, work: Callable[[Endpoint], None]) -> None:
        def run() -> None:
            try:
                work(endpoint)
            except Exception as error:
                log.exception("Endpoint %s", endpoint.name)
                fail(error)
            finally:
                self._threads.discard(threading.current_thread())

        def fail(error: Exception) -> None:  # a deployment must end in a state, not in a silent thread
            with self._changed:
                endpoint.failure = _internal(error)
                endpoint.pending = endpoint.pending if endpoint.live is None else None
                self._become(endpoint, "Failed" if endpoint.live is None else "UpdateRollbackFailed")
            self._announce(endpoint)

        thread = threading.Thread(target=run, name=f"endpoint-{endpoint.name}", daemon=True)
        self._threads.add(thread)
        try:
            self._start_flusher()
            thread.start()
        except RuntimeError as error:  # this process may start no more threads
            self._threads.discard(thread)
            fail(error)

    def _prepare(
        self,
        endpoint: Endpoint,
        config: Record,
        properties: dict[str, Any],
        known: Mapping[str, Model] | None = None,
    ) -> Deployed:
        """A deployment of that config. `known`: its models, which may have been deleted since."""
        region, name = endpoint.region, endpoint.name
        specs, models = [], {}
        for variant in properties["ProductionVariants"]:
            wanted = variant["ModelName"]
            model = models[wanted] = known[wanted] if known else self._model(region, wanted)
            specs.append(
                VariantSpec(
                    name=variant["VariantName"],
                    model=model.name,
                    image=model.container["Image"],
                    instances=variant["InitialInstanceCount"],
                    weight=variant["InitialVariantWeight"],
                    fetch=functools.partial(containers.fetch, model.container),
                    environment={
                        **self._cloud.process_environment(region),
                        "SAGEMAKER_REGION": region,
                        **model.container.get("Environment", {}),
                    },
                    startup_timeout_seconds=variant.get("ContainerStartupHealthCheckTimeoutInSeconds", 240),
                    layers=Environments(self._cloud.keeper),
                )
            )
        fleet = Fleet(
            config.name,
            specs,
            self._cloud.state / "endpoints" / name / f"{next(self._deployments)}-{config.name}",
            keeper=self._cloud.keeper,
            open_log=lambda stream: LogStream(region, f"{LOG_GROUP}/{name}", stream, self._cloud.clock),
            started=functools.partial(self._watch, endpoint),
        )
        capture = None
        if settings := properties.get("DataCaptureConfig"):
            settings = {**settings, "DestinationS3Uri": containers.s3_uri(settings["DestinationS3Uri"])}
            capture = Capture(settings, name, storage.write)
        return Deployed(config, properties, fleet, capture, self._now(), models)

    def _watch(self, endpoint: Endpoint, variant: str, child: Child, folder: Path) -> None:
        dimensions = {"EndpointName": endpoint.name, "VariantName": variant}
        self._usage.watch(endpoint.region, ENDPOINTS, dimensions, child, folder)

    # -- data plane ---------------------------------------------------------------------------------------------------

    def invoke(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The data plane, as a WSGI application for the paths under ``/endpoints/``."""
        return self._data_plane(environ, start_response)

    # -- the end ------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything, and end every process."""
        self.close()
        with self._changed:
            for table in (self._models, self._configs, self._endpoints):
                table.clear()
            self._changed.notify_all()
        self._closing.clear()

    def close(self) -> None:
        """End every process and thread, and write what is still in memory."""
        self._closing.set()
        patience = time.monotonic() + 5.0
        for thread in list(self._threads):
            thread.join(max(0.0, patience - time.monotonic()))
        with self._changed:
            running = [
                each for endpoint in self._endpoints.values() for each in (endpoint.live, endpoint.pending) if each
            ]
            for endpoint in self._endpoints.values():
                endpoint.router.assign()
        for deployed in running:
            deployed.fleet.terminate()  # all at once, before waiting for any
        for deployed in running:
            deployed.fleet.stop(drain_seconds=0, grace_seconds=1)
            self._flush_capture(deployed)
        self._usage.close()
        if self._flusher:
            self._flusher.join(5.0)
            self._flusher = None
        self._flush()

    def _start_flusher(self) -> None:
        with self._changed:
            if self._flusher is None:
                self._flusher = threading.Thread(target=self._flush_regularly, name="hosting-flush", daemon=True)
                self._flusher.start()

    def _flush_regularly(self) -> None:
        while not self._closing.wait(FLUSH_INTERVAL_SECONDS):
            try:
                self._flush()
            except Exception:  # a full disk may have room again by the next time
                log.exception("The metrics of a moment are lost")

    def _flush(self) -> None:
        self._meter.flush()
        with self._changed:
            deployed = [
                each for endpoint in self._endpoints.values() for each in (endpoint.live, endpoint.pending) if each
            ]
        for each in deployed:
            self._flush_capture(each)

    @staticmethod
    def _flush_capture(deployed: Deployed) -> None:
        if deployed.capture:
            try:
                deployed.capture.flush()
            except (storage.Missing, OSError) as error:
                log.warning("Captured data of %s is lost: %s", deployed.config.name, error)

    def _closed(self) -> str | None:
        return "The local cloud was shut down." if self._closing.is_set() else None

    # -- records ------------------------------------------------------------------------------------------------------

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._cloud.clock.now(), UTC)

    def _model(self, region: str, name: str) -> Model:
        if (region, name) not in self._models:
            raise Fault("ValidationException", f'Could not find model "{_arn(region, "model", name)}".')
        return self._models[region, name]

    def _config(self, region: str, name: str) -> Record:
        if (region, name) not in self._configs:
            arn = _arn(region, "endpoint-config", name)
            raise Fault("ValidationException", f'Could not find endpoint configuration "{arn}".')
        return self._configs[region, name]

    def _endpoint(self, region: str, name: str) -> Endpoint:
        if (region, name) not in self._endpoints:
            raise Fault("ValidationException", f'Could not find endpoint "{_arn(region, "endpoint", name)}".')
        return self._endpoints[region, name]

    def _of(self, region: str, table: Mapping[tuple[str, str], Any]) -> list[Any]:
        with self._changed:
            return [record for (home, _), record in table.items() if home == region]

    def _settled(self, endpoint: Endpoint) -> Deployed:
        if endpoint.status in IN_PROGRESS:
            raise Fault("ValidationException", f'Cannot update in-progress endpoint "{endpoint.arn}".')
        if endpoint.live is None:
            raise Fault(
                "ValidationException",
                f'Cannot update endpoint "{endpoint.arn}" in status {endpoint.status}: it can only be deleted.',
            )
        return endpoint.live

    def _check_variant(self, region: str, variant: Mapping[str, Any]) -> None:
        for key in _REFUSED_IN_VARIANT:
            if key in variant:
                raise _unsupported(f"{key} (variant {variant['VariantName']})")
        if "ModelName" not in variant:
            raise _unsupported(f"inference components (variant {variant['VariantName']} names no model)")
        self._model(region, variant["ModelName"])
        for key in ("InstanceType", "InitialInstanceCount"):
            if key not in variant:
                raise Fault(
                    "ValidationException", f"{key} is required for production variant {variant['VariantName']}."
                )

    def _become(self, endpoint: Endpoint, status: str) -> None:
        endpoint.status, endpoint.modified = status, self._now()
        if status == "Deleted":
            self._saved_endpoints.delete(f"{endpoint.region}/{endpoint.name}")
        else:
            self._save(endpoint)
        self._changed.notify_all()

    def _announce(self, endpoint: Endpoint) -> None:
        shown = endpoint.live or endpoint.pending
        event = {
            "detail-type": "SageMaker Endpoint State Change",
            "source": "aws.sagemaker",
            "resources": [endpoint.arn],
            "detail": {
                "EndpointName": endpoint.name,
                "EndpointArn": endpoint.arn,
                "EndpointConfigName": shown.config.name if shown else "",
                "EndpointStatus": re.sub(r"(?<=[a-z])(?=[A-Z])", "_", endpoint.status).upper(),
                "CreationTime": int(endpoint.created.timestamp() * 1000),
                "LastModifiedTime": int(endpoint.modified.timestamp() * 1000),
                "Tags": self._cloud.tags.get(endpoint.arn.lower(), {}),
                **({"FailureReason": endpoint.failure} if endpoint.failure else {}),
            },
        }
        try:
            self._cloud.events.put(endpoint.region, event)
        except Exception:  # nobody's deployment stops because a rule cannot be matched
            log.exception("The event of endpoint %s is lost", endpoint.name)


class HostingOperations:
    """Hosting's part of the SageMaker API."""

    params: Any
    region: str

    @property
    def _hosting(self) -> Hosting:
        return clouds.current().hosting

    def create_model(self) -> ActionResult:
        return ActionResult(self._hosting.create_model(self.region, self.params))

    def describe_model(self) -> ActionResult:
        return ActionResult(self._hosting.describe_model(self.region, self.params))

    def list_models(self) -> ActionResult:
        return ActionResult(self._hosting.list_models(self.region, self.params))

    def delete_model(self) -> ActionResult:
        self._hosting.delete_model(self.region, self.params)
        return EmptyResult()

    def create_endpoint_config(self) -> ActionResult:
        return ActionResult(self._hosting.create_endpoint_config(self.region, self.params))

    def describe_endpoint_config(self) -> ActionResult:
        return ActionResult(self._hosting.describe_endpoint_config(self.region, self.params))

    def list_endpoint_configs(self) -> ActionResult:
        return ActionResult(self._hosting.list_endpoint_configs(self.region, self.params))

    def delete_endpoint_config(self) -> ActionResult:
        self._hosting.delete_endpoint_config(self.region, self.params)
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


def _internal(error: Exception) -> str:
    return f"Internal failure of the local cloud: {type(error).__name__}: {error}"


def _split(key: str) -> tuple[str, str]:
    region, _, name = key.partition("/")
    return region, name


def _unsupported(what: str) -> Fault:
    return Fault("ValidationException", f"The local cloud does not implement {what} yet.")


def _arn(region: str, kind: str, name: str) -> str:
    return f"arn:aws:sagemaker:{region}:{clouds.ACCOUNT}:{kind}/{name}"


def _kept(request: Mapping[str, Any]) -> dict[str, Any]:
    return copy.deepcopy({key: value for key, value in request.items() if key != "Tags"})


def _variants(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {variant["VariantName"]: variant for variant in config["ProductionVariants"]}


def _smallest(config: Mapping[str, Any]) -> int:
    return min(int(variant["InitialInstanceCount"]) for variant in config["ProductionVariants"])


def _retain(live: Deployed, config: Mapping[str, Any], retained: set[str]) -> dict[str, Any]:
    """The new config with what RetainAllVariantProperties keeps of the running one."""
    properties = copy.deepcopy(dict(config))
    before = _variants(live.properties)
    for name, variant in _variants(properties).items():
        if name in before and "DesiredInstanceCount" in retained:
            variant["InitialInstanceCount"] = before[name]["InitialInstanceCount"]
        if name in before and "DesiredWeight" in retained:
            variant["InitialVariantWeight"] = live.fleet.weights[name]
    if "DataCaptureConfig" in retained and "DataCaptureConfig" in live.properties:
        properties["DataCaptureConfig"] = copy.deepcopy(live.properties["DataCaptureConfig"])
    return properties


def _summaries(deployed: Deployed, healthy: Mapping[str, int], status: str | None) -> list[dict[str, Any]]:
    summaries = []
    for name, variant in _variants(deployed.properties).items():
        image = deployed.fleet.variants[name].image
        summary = {
            "VariantName": name,
            "DeployedImages": [{"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": deployed.since}],
            "CurrentWeight": deployed.fleet.weights[name],
            "DesiredWeight": deployed.fleet.weights[name],
            "CurrentInstanceCount": healthy[name],
            "DesiredInstanceCount": variant["InitialInstanceCount"],
        }
        if status:
            summary["InstanceType"] = variant["InstanceType"]
            summary["VariantStatus"] = [{"Status": status, "StartTime": deployed.since}]
        if "RoutingConfig" in variant:
            summary["RoutingConfig"] = variant["RoutingConfig"]
        summaries.append(summary)
    return summaries


def _page(kind: str, summaries: list[dict[str, Any]], request: Mapping[str, Any]) -> dict[str, Any]:
    """What a List operation answers: its filters, its order (the newest first, unless asked otherwise), its pages."""
    status = "EndpointStatus" if kind == "Endpoint" else None
    asked = {"SortOrder": "Descending", **request}
    page, token = listing.select(summaries, asked, name=f"{kind}Name", status=status)
    return {f"{kind}s": page, "NextToken": token}
