"""Deployments: how an endpoint gets from the config it runs to the next, each in a thread of its own.

``Deployments`` owns the live endpoints: their states, the fleets behind them, what is saved of them, and what is said when
they change. ``hosting.py`` decides what is to happen; the processes are in `fleet.py`, the shifting of traffic in `rollout.py`.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from windlass.local import cloud as clouds
from windlass.local import storage
from windlass.local.cloudwatch.logs import LogStream
from windlass.local.cloudwatch.metric_store import Datum, Metric
from windlass.local.faults import Fault
from windlass.local.hosting import multi_model
from windlass.local.hosting.asynchronous import Queues
from windlass.local.hosting.capture import Capture
from windlass.local.hosting.configs import EndpointConfigs, Model, Record, arn_of, instances_of, split, variants
from windlass.local.hosting.dataplane import LOG_GROUP
from windlass.local.hosting.endpoint import IN_PROGRESS, Deployed, Endpoint
from windlass.local.hosting.fleet import Fleet
from windlass.local.hosting.instance import FleetFailed, VariantSpec
from windlass.local.hosting.metering import Meter
from windlass.local.hosting.multi_model import Repository
from windlass.local.hosting.rollout import Counts, Policy, Rollout
from windlass.local.hosting.router import share_of
from windlass.local.hosting.serverless import STARTUP_SECONDS, ServerlessFleet, Settings, Values
from windlass.local.hosting.utilisation import ENDPOINTS, Usage
from windlass.local.iam.authorizer import as_role
from windlass.local.jobs import containers, quotas
from windlass.local.jobs.environments import Environments
from windlass.local.processes import Child

log = logging.getLogger(__name__)

FLUSH_INTERVAL_SECONDS = 1.0
RECOVERY_SECONDS = 60.0
"""How long a rollback waits for the old fleet, which takes all traffic again, to be healthy."""

_SAVED = ("region", "name", "arn", "status", "created", "modified", "failure", "deployment")


class Deployments:
    """The endpoints of one local cloud, and the threads that change them."""

    def __init__(self, cloud: clouds.Cloud, configs: EndpointConfigs, meter: Meter) -> None:
        self._cloud, self._configs, self._meter = cloud, configs, meter
        self._usage = Usage(cloud.metrics, cloud.clock)
        self.changed = threading.Condition(threading.RLock())
        self.endpoints: dict[tuple[str, str], Endpoint] = {}
        self._saved = cloud.database.table("endpoints")
        self._numbers = itertools.count(1)
        self._threads: set[threading.Thread] = set()
        self._closing = threading.Event()
        self._flusher: threading.Thread | None = None
        self.queues = Queues(
            lambda region, name: self.endpoints.get((region, name)),
            cloud.database,
            cloud.metrics,
            cloud.clock,
            lambda topic, message: cloud.events.publish(topic, message),
        )

    # -- what outlives a restart --------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Put back what an earlier server saved, and start its endpoints again.

        That is maintenance as SageMaker does it, so meanwhile they are SystemUpdating.
        """
        for key, record in self._saved.items():
            if record["status"] == "Deleting":
                self._saved.delete(key)
                continue
            config, properties = Record(**record.pop("config")), record.pop("properties")
            models = {name: Model(**model) for name, model in record.pop("models").items()}
            endpoint = self.endpoints[split(key)] = Endpoint(**record)
            endpoint.pending = self.prepare(endpoint, config, properties, models)
            if endpoint.status != "Failed":
                endpoint.status = "Creating" if endpoint.status == "Creating" else "SystemUpdating"
                self.spawn(endpoint, self.bring_up)
        self.queues.restore()

    def save(self, endpoint: Endpoint) -> None:
        """Keep what a later server is to know. It goes on with the config that is live, as after a rollback."""
        kept = endpoint.live or endpoint.pending
        if self._closing.is_set() or kept is None:
            return  # what happens to an endpoint now is not its own doing
        record = {name: getattr(endpoint, name) for name in _SAVED}
        models = {name: asdict(model) for name, model in kept.models.items()}
        record |= {"config": asdict(kept.config), "properties": kept.properties, "models": models}
        self._saved.save(f"{endpoint.region}/{endpoint.name}", record)

    # -- deployments, each in its own thread -----------------------------------------------------------------------------

    def bring_up(self, endpoint: Endpoint) -> None:
        """Start what is pending, for an endpoint that serves nothing yet."""
        new = endpoint.pending
        assert new is not None
        try:
            new.fleet.start(self.closed)
        except FleetFailed as error:
            with self.changed:
                endpoint.failure = str(error)
                self.become(endpoint, "Failed")
        else:
            with self.changed:
                endpoint.router.assign((new.fleet, 1.0))
                endpoint.live, endpoint.pending = new, None
                self.become(endpoint, "InService")
        self.announce(endpoint)

    def resize(self, endpoint: Endpoint, fleet: Fleet, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Give the live fleet the capacities and weights of `after`; those of `before` if it cannot have them."""
        wanted = _counts(after)
        try:
            if isinstance(fleet, ServerlessFleet):
                [variant] = variants(after).values()
                fleet.reconfigure(Settings.parse(variant["ServerlessConfig"], variant["VariantName"]), self.closed)
            fleet.grow(wanted, self.closed)
            for name, variant in variants(after).items():
                fleet.weights[name] = variant["InitialVariantWeight"]
            fleet.shrink(wanted)
        except FleetFailed as error:
            with self.changed:
                endpoint.failure = str(error)
                assert endpoint.live is not None
                endpoint.live = replace(endpoint.live, properties=before)
        with self.changed:
            self.become(endpoint, "InService")
        self.announce(endpoint)

    def roll_out(self, endpoint: Endpoint, rollout: Rollout) -> None:
        """Go over to what is pending, as the rollout's policy says, or back."""
        old, new = endpoint.live, endpoint.pending
        assert old is not None
        assert new is not None
        there = _Moves(endpoint, gains=new.fleet, loses=old.fleet, shift_to=self._shift, abort=rollout.objection)
        begun, endpoint.before = old.fleet.counts(), endpoint.router.shares
        try:
            reason = rollout.run(rollout.policy.steps(begun, _counts(new.properties)), there)
        except FleetFailed as error:
            reason = str(error)
        except Exception as error:  # the old fleet stands by, whatever it was
            log.exception("The deployment of %s to endpoint %s", new.config.name, endpoint.name)
            reason = _internal(error)
        if reason is None:
            with self.changed:
                endpoint.router.assign((new.fleet, 1.0))
            for each in (old, endpoint.left_over):
                if each:
                    self._retire(each)
            with self.changed:
                endpoint.live, endpoint.pending, endpoint.left_over = new, None, None
                self.become(endpoint, "InService")
        else:
            self._roll_back(endpoint, rollout.policy, begun, reason)
        self.announce(endpoint)

    def _roll_back(self, endpoint: Endpoint, policy: Policy, begun: Counts, reason: str) -> None:
        """Back to the live fleet, which had so many instances when the deployment began."""
        old, new = endpoint.live, endpoint.pending
        assert old is not None
        assert new is not None
        with self.changed:
            endpoint.failure = reason
            self.become(endpoint, "RollingBack")
            left = old.fleet.counts()
            # What is left of the old fleet takes what it can bear at once; all of the traffic if all of it is left.
            self._shift(endpoint, {name: 1 - left[name] / count if count else 0.0 for name, count in begun.items()})
            # No alarm stops a rollback, and no limit: it is the way out of both.
            rollback = Rollout(Policy(), clock=self._cloud.clock, alarm_states=dict, cancelled=self._closing.is_set)
        self.announce(endpoint)
        back = _Moves(endpoint, gains=old.fleet, loses=new.fleet, shift_to=self._shift, abort=self.closed)
        steps = policy.steps_back(left=left, old=begun, new=new.fleet.counts())
        try:
            failed = rollback.run(steps, back)
        except FleetFailed as error:
            failed = str(error)
        except Exception as error:  # both fleets stand, whatever it was
            log.exception("The rollback of endpoint %s", endpoint.name)
            failed = _internal(error)
        if failed is not None:
            # As the reference says of UpdateRollbackFailed: both fleets go on serving. The next update replaces them.
            with self.changed:
                endpoint.failure = f"{reason} The rollback failed, too: {failed}"
                stray, endpoint.left_over = endpoint.left_over, new
                endpoint.pending = None
                self.become(endpoint, "UpdateRollbackFailed")
                if stray:
                    kept = [(fleet, share) for fleet, share in endpoint.router.shares if fleet is not stray.fleet]
                    endpoint.router.assign(*kept)
            if stray:
                self._retire(stray)
            return
        with self.changed:
            endpoint.router.assign(*endpoint.before)
        self._retire(new)
        # If what broke the new fleet broke the old one, too, that is being restarted.
        recovered = old.fleet.wait_healthy(RECOVERY_SECONDS)
        with self.changed:
            endpoint.pending = None
            self.become(endpoint, "InService" if recovered and not endpoint.left_over else "UpdateRollbackFailed")

    def take_down(self, endpoint: Endpoint) -> None:
        """End all that runs for the endpoint, once what it has been asked is answered."""
        for deployed in endpoint.deployed:
            self._retire(deployed)
        self.queues.forget(endpoint.region, endpoint.name)
        with self.changed:
            self.endpoints.pop((endpoint.region, endpoint.name), None)
            self.become(endpoint, "Deleted")
        self.announce(endpoint)

    def _retire(self, deployed: Deployed) -> None:
        """End a fleet that takes no more traffic. What becomes of the endpoint does not hang on it."""
        try:
            deployed.fleet.stop()
        except Exception:
            log.exception("Fleet %s did not end in order; its processes end with the local cloud", deployed.config.name)
        self._flush_capture(deployed)

    def _shift(self, endpoint: Endpoint, shares: Mapping[str, float]) -> None:
        """Send these shares of each variant's traffic to the pending fleet; the rest goes where it went before."""
        with self.changed:
            assert endpoint.pending is not None
            rest = [
                (fleet, {name: share_of(share, name) * (1 - share_of(shares, name)) for name in fleet.variants})
                for fleet, share in endpoint.before
            ]
            endpoint.router.assign(*rest, (endpoint.pending.fleet, shares))
        log.info("Endpoint %s: %s of the traffic on %s", endpoint.name, shares, endpoint.pending.config.name)

    def spawn(self, endpoint: Endpoint, work: Callable[[Endpoint], None]) -> None:
        """Do that in a thread of its own. Whatever happens there, the endpoint ends up in a state that says so."""

        def run() -> None:
            try:
                work(endpoint)
            except Exception as error:
                log.exception("Endpoint %s", endpoint.name)
                fail(error)
            finally:
                self._threads.discard(threading.current_thread())

        def fail(error: Exception) -> None:  # a deployment must end in a state, not in a silent thread
            with self.changed:
                endpoint.failure = _internal(error)
                endpoint.pending = endpoint.pending if endpoint.live is None else None
                self.become(endpoint, "Failed" if endpoint.live is None else "UpdateRollbackFailed")
            self.announce(endpoint)

        thread = threading.Thread(target=run, name=f"endpoint-{endpoint.name}", daemon=True)
        self._threads.add(thread)
        try:
            self._start_flusher()
            thread.start()
        except RuntimeError as error:  # this process may start no more threads
            self._threads.discard(thread)
            fail(error)

    def prepare(
        self,
        endpoint: Endpoint,
        config: Record,
        properties: dict[str, Any],
        known: Mapping[str, Model] | None = None,
    ) -> Deployed:
        """A deployment of that config. `known`: its models, which may have been deleted since."""
        region, name = endpoint.region, endpoint.name
        specs, models = [], {}
        shadows = variants(properties, "ShadowProductionVariants")
        for variant in variants(properties).values():
            wanted = variant["ModelName"]
            model = models[wanted] = known[wanted] if known else self._configs.model(region, wanted)
            role, memory = model.request["ExecutionRoleArn"], quotas.memory_bytes(variant.get("InstanceType", ""))
            repository: Repository | None = None
            fetch, setting = functools.partial(containers.fetch, model.container), dict[str, str]()
            if multi_model.is_asked(model.container):
                repository = multi_model.repository_of(model.container, role)
                fetch, setting = functools.partial(containers.fetch, {}), multi_model.environment(memory)
            specs.append(
                VariantSpec(
                    name=variant["VariantName"],
                    model=model.name,
                    image=model.container["Image"],
                    instances=instances_of(variant),
                    weight=variant["InitialVariantWeight"],
                    fetch=as_role(role, fetch),
                    environment={
                        **self._cloud.process_environment(region, role),
                        "SAGEMAKER_REGION": region,
                        **setting,
                        **model.container.get("Environment", {}),
                    },
                    startup_timeout_seconds=variant.get(
                        "ContainerStartupHealthCheckTimeoutInSeconds",
                        STARTUP_SECONDS if "ServerlessConfig" in variant else 240,
                    ),
                    layers=Environments(self._cloud.keeper),
                    shadow=variant["VariantName"] in shadows,
                    memory_bytes=memory,
                    repository=repository,
                )
            )
        fleet = self._fleet(endpoint, config, properties, specs, role)
        capture = None
        if settings := properties.get("DataCaptureConfig"):
            settings = {**settings, "DestinationS3Uri": containers.s3_uri(settings["DestinationS3Uri"])}
            capture = Capture(settings, name, as_role(role, storage.write))
        return Deployed(config, properties, fleet, capture, self.now(), models)

    def _fleet(
        self, endpoint: Endpoint, config: Record, properties: Mapping[str, Any], specs: list[VariantSpec], role: str
    ) -> Fleet:
        region, name = endpoint.region, endpoint.name
        folder = self._cloud.state / "endpoints" / name / f"{next(self._numbers)}-{config.name}"

        open_log = as_role(role, lambda stream: LogStream(region, f"{LOG_GROUP}/{name}", stream, self._cloud.clock))
        [variant, *_] = properties["ProductionVariants"]
        if "ServerlessConfig" not in variant:
            started = functools.partial(self._watch, endpoint)
            return Fleet(config.name, specs, folder, keeper=self._cloud.keeper, open_log=open_log, started=started)
        [spec] = specs
        return ServerlessFleet(
            config.name,
            spec,
            folder,
            settings=Settings.parse(variant["ServerlessConfig"], spec.name),
            pace=self._cloud.pace,
            put=functools.partial(self._publish, region, {"EndpointName": name, "VariantName": spec.name}),
            keeper=self._cloud.keeper,
            open_log=open_log,
        )

    def _publish(self, region: str, dimensions: Mapping[str, str], namespace: str, values: Values) -> None:
        now = self._cloud.clock.now()
        data = [
            Datum(Metric.of(namespace, name, dimensions), now, ((value, 1.0),), unit=unit)
            for name, value, unit in values
        ]
        self._cloud.metrics.put_many(region, data)

    def _watch(self, endpoint: Endpoint, variant: str, child: Child, folder: Path) -> None:
        dimensions = {"EndpointName": endpoint.name, "VariantName": variant}
        self._usage.watch(endpoint.region, ENDPOINTS, dimensions, child, folder)

    # -- states -------------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._cloud.clock.now(), UTC)

    def of(self, region: str) -> list[Endpoint]:
        """All endpoints of a region."""
        with self.changed:
            return [endpoint for (home, _), endpoint in self.endpoints.items() if home == region]

    def endpoint(self, region: str, name: str) -> Endpoint:
        """The endpoint of that name; raises AWS's error when there is none."""
        if (region, name) not in self.endpoints:
            raise Fault("ValidationException", f'Could not find endpoint "{arn_of(region, "endpoint", name)}".')
        return self.endpoints[region, name]

    def settled(self, endpoint: Endpoint) -> Deployed:
        """What it runs; raises AWS's error while it changes, and when it never came up."""
        if endpoint.status in IN_PROGRESS:
            raise Fault("ValidationException", f'Cannot update in-progress endpoint "{endpoint.arn}".')
        if endpoint.live is None:
            raise Fault(
                "ValidationException",
                f'Cannot update endpoint "{endpoint.arn}" in status {endpoint.status}: it can only be deleted.',
            )
        return endpoint.live

    def become(self, endpoint: Endpoint, status: str) -> None:
        """Put it into that state, on disk too, and wake up whoever waits for one."""
        endpoint.status, endpoint.modified = status, self.now()
        if status == "Deleted":
            self._saved.delete(f"{endpoint.region}/{endpoint.name}")
        else:
            self.save(endpoint)
        self.changed.notify_all()

    def announce(self, endpoint: Endpoint, kind: str = "Endpoint") -> None:
        """Tell EventBridge of a state change: of the endpoint, or of its deployment."""
        try:
            with self.changed:
                event = endpoint.event(kind, self._cloud.tags.get(endpoint.arn.lower(), {}))
            self._cloud.events.put(endpoint.region, event)
        except Exception:  # nobody's deployment stops because a rule cannot be matched
            log.exception("The event of endpoint %s is lost", endpoint.name)

    # -- the end ------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything, and end every process."""
        self.close()
        self.queues.reset()
        with self.changed:
            self.endpoints.clear()
            self.changed.notify_all()
        self._closing.clear()

    def close(self) -> None:
        """End every process and thread, and write what is still in memory."""
        self._closing.set()
        self.queues.close()
        patience = time.monotonic() + 5.0
        for thread in list(self._threads):
            thread.join(max(0.0, patience - time.monotonic()))
        with self.changed:
            running = [each for endpoint in self.endpoints.values() for each in endpoint.deployed]
            for endpoint in self.endpoints.values():
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
        with self.changed:
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
        with self.changed:
            deployed = [each for endpoint in self.endpoints.values() for each in endpoint.deployed]
            multi = [
                (endpoint, fleet)
                for endpoint in self.endpoints.values()
                if endpoint.router.multi_model
                for fleet, _ in endpoint.router.shares
            ]
            asynchronous = [
                key for key, endpoint in self.endpoints.items() if endpoint.asynchronous and endpoint.accepting
            ]
        for each in deployed:
            self._flush_capture(each)
            each.fleet.cap_memory()
        for endpoint, fleet in multi:
            for instance in fleet:
                if repository := instance.spec.repository:
                    dimensions = {"EndpointName": endpoint.name, "VariantName": instance.spec.name}
                    count = float(len(repository.of(instance)))
                    self._publish(endpoint.region, dimensions, ENDPOINTS, [("LoadedModelCount", count, "None")])
        for region, name in asynchronous:
            self.queues.measure(region, name)

    @staticmethod
    def _flush_capture(deployed: Deployed) -> None:
        if deployed.capture:
            try:
                deployed.capture.flush()
            except (storage.Missing, OSError) as error:
                log.warning("Captured data of %s is lost: %s", deployed.config.name, error)

    def closed(self) -> str | None:
        """Why nothing may begin any more; None until the cloud closes."""
        return "The local cloud was shut down." if self._closing.is_set() else None


@dataclass(frozen=True)
class _Moves:
    """What a rollout moves, and which way."""

    endpoint: Endpoint
    gains: Fleet
    loses: Fleet
    abort: Callable[[], str | None]
    shift_to: Callable[[Endpoint, Mapping[str, float]], None]

    def grow(self, counts: Counts) -> None:
        self.gains.grow(counts, self.abort)

    def shift(self, shares: Mapping[str, float]) -> None:
        self.shift_to(self.endpoint, shares)

    def shrink(self, counts: Counts) -> None:
        self.loses.shrink(counts)


def _counts(properties: Mapping[str, Any]) -> dict[str, int]:
    return {name: instances_of(variant) for name, variant in variants(properties).items()}


def _internal(error: Exception) -> str:
    return f"Internal failure of the local cloud: {type(error).__name__}: {error}"
