"""Serverless variants: an execution environment for each request at once, from none up to MaxConcurrency, and back.

    fleet = ServerlessFleet("config", spec, folder, settings=Settings(2048, most=5), pace=pace, ...)

An environment is a model server that answers one request at a time and may hold MemorySizeInMB. A request that finds none idle
waits for a new one to start: the cold start. One that has been idle for a while is ended, unless it is provisioned.

Rules and metrics: the SageMaker AI developer guide, "Deploy models with Serverless Inference".
"""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from windlass.local.clock import Clock
from windlass.local.faults import Fault
from windlass.local.hosting.fleet import Fleet
from windlass.local.hosting.instance import (
    INVOCATION_TIMEOUT_SECONDS,
    PATIENCE_SECONDS,
    STOP_GRACE_SECONDS,
    Instance,
    LogSink,
    NotReady,
    VariantSpec,
)
from windlass.local.hosting.metering import NAMESPACE
from windlass.local.hosting.utilisation import ENDPOINTS
from windlass.local.jobs import quotas
from windlass.local.processes import Keeper

log = logging.getLogger(__name__)

IDLE_SECONDS = 300
"""How long an environment waits for the next request before it is ended. AWS names no figure; users measure minutes."""

STARTUP_SECONDS = 180
"""What AWS allows a model to take from download to the health check."""

_LOOK_SECONDS, _LOOKS_PER_MEASUREMENT = 0.2, 5
_MIB = 1024 * 1024
_PAYLOAD_LIMIT_BYTES = 4 * _MIB

Values = Sequence[tuple[str, float, str]]
"""Name, value and unit of metrics."""


class Throttled(Exception):
    """As many requests as MaxConcurrency are being answered."""


@dataclass(frozen=True)
class Settings:
    """A ServerlessConfig.

    Attributes:
        memory_mb: of one environment.
        most: requests answered at once.
        provisioned: environments that are kept whether or not anything asks them.
    """

    memory_mb: int
    most: int
    provisioned: int = 0

    @classmethod
    def parse(cls, config: Mapping[str, Any], variant: str) -> Settings:
        """Raises AWS's ValidationException for one that cannot be; the service model's own limits are checked before."""
        memory_mb, most = config["MemorySizeInMB"], config["MaxConcurrency"]
        provisioned = config.get("ProvisionedConcurrency", 0)
        if memory_mb % 1024:
            raise Fault(
                "ValidationException",
                f"MemorySizeInMB {memory_mb} of variant {variant} is not valid. Valid values are in 1 GB increments: "
                "1024 MB, 2048 MB, 3072 MB, 4096 MB, 5120 MB, or 6144 MB.",
            )
        if provisioned > most:
            raise Fault(
                "ValidationException",
                f"ProvisionedConcurrency {provisioned} of variant {variant} must be less than or equal to its "
                f"MaxConcurrency {most}.",
            )
        return cls(memory_mb, most, provisioned)


def check(request: Mapping[str, Any], model: Callable[[str], Mapping[str, Any]]) -> None:
    """Raise AWS's ValidationException for a CreateEndpointConfig whose serverless variants cannot be.

    Args:
        model: the CreateModel request of that name.
    """
    production = request["ProductionVariants"]
    if not any("ServerlessConfig" in variant for variant in production):
        return
    others = ("AsyncInferenceConfig", "DataCaptureConfig", "ShadowProductionVariants")
    unsupported = [name for name in others if request.get(name)]
    if len(production) > 1:
        unsupported.append("multiple production variants")
    [variant, *_] = production
    unsupported += [name for name in ("InstanceType", "InitialInstanceCount") if name in variant]
    made = model(variant["ModelName"])
    container = made.get("PrimaryContainer", {})
    if container.get("ModelDataSource"):
        unsupported.append("ModelDataSource")
    unsupported += [name for name in ("VpcConfig", "EnableNetworkIsolation") if made.get(name)]
    if container.get("Mode") == "MultiModel":
        unsupported.append("multi-model endpoints")
    if unsupported:
        raise Fault("ValidationException", f"ServerlessConfig is not supported with {', '.join(unsupported)}.")
    Settings.parse(variant["ServerlessConfig"], variant["VariantName"])


class ServerlessFleet(Fleet):
    """The environments of one serverless variant.

    Args:
        pace: the idle time runs on it.
        put: publishes metrics of the variant in a namespace.
    """

    payload_limit_bytes = _PAYLOAD_LIMIT_BYTES
    memory_source = "its MemorySizeInMB is"
    has_instances = False
    patience_seconds = PATIENCE_SECONDS

    def __init__(
        self,
        config: str,
        spec: VariantSpec,
        folder: Path,
        *,
        settings: Settings,
        pace: Clock,
        put: Callable[[str, Values], None],
        keeper: Keeper,
        open_log: Callable[[str], LogSink],
    ) -> None:
        spec = replace(spec, memory_bytes=settings.memory_mb * _MIB)
        super().__init__(config, [spec], folder, keeper=keeper, open_log=open_log)
        self.settings = settings
        self._spec, self._pace, self._put = spec, pace, put
        self._idle_since: dict[str, float] = {}
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None

    # -- what a deployment sees: one "instance" that is always there -----------------------------------------------------

    def counts(self) -> dict[str, int]:
        return {self._spec.name: 1}

    def start(self, abort: Callable[[], str | None] = lambda: None) -> None:
        """Prove that the model can be served, and start what is provisioned."""
        try:
            self._provision(max(1, self.settings.provisioned), abort)
        except BaseException:
            self.stop(drain_seconds=0, grace_seconds=1)
            raise

    def grow(self, counts: Mapping[str, int], abort: Callable[[], str | None] = lambda: None) -> None:
        if any(counts.values()) and self._watcher is None:
            self._provision(max(1, self.settings.provisioned), abort)

    def shrink(self, counts: Mapping[str, int]) -> None:
        """Nothing: idle environments end by themselves."""

    def healthy(self) -> dict[str, int]:
        return {self._spec.name: 0 if self._ended.is_set() else 1}

    def wait_healthy(self, timeout: float) -> bool:
        return not self._ended.is_set()

    def reconfigure(self, settings: Settings, abort: Callable[[], str | None] = lambda: None) -> None:
        """Other limits from now on. Raises FleetFailed when what is to be provisioned does not come up."""
        self._provision(settings.provisioned, abort)
        self.settings = settings

    # -- requests ---------------------------------------------------------------------------------------------------------

    def acquire(self, variant: str, limit: float = math.inf, model: str | None = None) -> Instance:
        """An idle environment, or else a new one, which :meth:`prepare` has to start.

        Raises:
            Throttled: too many requests are being answered.
        """
        with self._changed:
            group = self._instances[variant]
            busy = sum(each.outstanding for each in group)
            chosen = None
            if busy < self.settings.most:
                # The one that was used last, so that the others can be idle for long enough to end.
                idle = [each for each in group if each.ready and not each.outstanding]
                chosen = max(idle, key=lambda each: each.last_used, default=None) or self._instance(self._spec)
                if chosen not in group:
                    self._instances[variant] = [*group, chosen]
                chosen.outstanding += 1
                chosen.last_used = next(self._uses)
        self._publish_use(busy, throttled=chosen is None)
        if chosen is None:
            raise Throttled(variant)
        return chosen

    def prepare(self, instance: Instance) -> None:
        """The cold start, if the environment is new.

        Raises:
            FleetFailed: it did not come up.
            NotReady: it takes longer than a request can wait, and goes on: a later request finds it.
        """
        if instance.launched:
            return
        started: Future[None] = Future()

        def start() -> None:
            began = time.perf_counter()
            try:
                self._launch(instance, lambda: "The endpoint was taken away." if self._ended.is_set() else None)
            except Exception as error:  # noqa: BLE001 - whoever waits for it gets it, whatever it is
                started.set_exception(error)
                return
            self._put(NAMESPACE, [("ModelSetupTime", (time.perf_counter() - began) * 1e6, "Microseconds")])
            started.set_result(None)

        threading.Thread(target=start, name=f"start-{instance.id}", daemon=True).start()
        try:
            started.result(self.patience_seconds)
        except TimeoutError as error:
            raise NotReady("The endpoint's resources are still being provisioned. Try again.") from error

    def release(self, instance: Instance) -> None:
        self._idle_since[instance.id] = self._pace.now()
        super().release(instance)

    def _publish_use(self, before: int, *, throttled: bool) -> None:
        """What a request that finds `before` others under way adds to the metrics."""
        busy = before + (not throttled)
        values = [("ServerlessConcurrentExecutionsUtilization", 100 * busy / self.settings.most, "Percent")]
        if (provisioned := self.settings.provisioned) and not throttled:
            spilt = busy > provisioned
            values += [
                ("ServerlessProvisionedConcurrencyExecutions", min(busy, provisioned), "Count"),
                ("ServerlessProvisionedConcurrencyUtilization", 100 * min(busy, provisioned) / provisioned, "Percent"),
                ("ServerlessProvisionedConcurrencyInvocations", float(not spilt), "Count"),
                ("ServerlessProvisionedConcurrencySpilloverInvocations", float(spilt), "Count"),
            ]
        self._put(NAMESPACE, values)

    # -- environments -----------------------------------------------------------------------------------------------------

    def _provision(self, count: int, abort: Callable[[], str | None]) -> None:
        """Have at least so many environments."""
        with self._changed:
            group = self._instances[self._spec.name]
            new = [self._instance(self._spec) for _ in range(count - len(group))]
            for each in new:
                each.outstanding = 1  # nobody else may start it, or ask it
            self._instances[self._spec.name] = [*group, *new]
        for each in new:
            try:
                self._launch(each, abort)
            finally:
                self.release(each)

    def _launch(self, instance: Instance, abort: Callable[[], str | None]) -> None:
        try:
            self._bring_up([instance], abort, restart=False)
        except BaseException:
            self._remove(instance, grace_seconds=1)
            raise
        threading.Thread(target=self._bury, args=(instance,), name=f"watch-{instance.id}", daemon=True).start()
        with self._changed:
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name=f"serverless-{self.config}", daemon=True)
                self._watcher.start()

    def _bury(self, instance: Instance) -> None:
        """An environment whose process ends is gone: the next request starts another."""
        instance.wait_ended()
        self._remove(instance, grace_seconds=0)

    def _remove(self, instance: Instance, grace_seconds: float) -> None:
        with self._changed:
            self._instances[self._spec.name] = [
                each for each in self._instances[self._spec.name] if each is not instance
            ]
            self._idle_since.pop(instance.id, None)
        instance.stop(grace_seconds)
        shutil.rmtree(instance.folder, ignore_errors=True)

    def _watch(self) -> None:
        for number in itertools.count():
            if self._ended.wait(_LOOK_SECONDS):
                return
            try:
                self.look()
                if number % _LOOKS_PER_MEASUREMENT == 0:
                    self.measure()
            except Exception:
                # What becomes of one environment must not leave the others without their limits.
                log.exception("Looking after the environments of %s failed", self.config)

    def look(self) -> None:
        """End what holds too much memory, and what has been idle for too long."""
        self.cap_memory()
        for each in self._idle():
            self._remove(each, grace_seconds=1)

    def measure(self) -> None:
        """Publish how much of its memory the fullest environment uses, if there is any."""
        used = [quotas.memory_used(each.pid) for each in self.instances(self._spec.name) if each.ready]
        if used:
            share = 100 * max(used) / (self.settings.memory_mb * _MIB)
            self._put(ENDPOINTS, [("MemoryUtilization", share, "Percent")])

    def _idle(self) -> list[Instance]:
        """Those that nothing has asked for a while, taken out of service, but for what is provisioned."""
        now = self._pace.now()
        with self._changed:
            group = self._instances[self._spec.name]
            spare = len(group) - self.settings.provisioned
            late = [
                each
                for each in sorted(group, key=lambda each: each.last_used)
                if each.ready and not each.outstanding and now - self._idle_since.get(each.id, now) >= IDLE_SECONDS
            ][: max(0, spare)]
            for each in late:
                each.ready = False
        return late

    def terminate(self) -> None:
        self._ended.set()
        super().terminate()

    def stop(
        self, *, drain_seconds: float = INVOCATION_TIMEOUT_SECONDS, grace_seconds: float = STOP_GRACE_SECONDS
    ) -> None:
        super().stop(drain_seconds=drain_seconds, grace_seconds=grace_seconds)
        self._ended.set()
