"""The model servers behind an endpoint config: how many there are, and which of them answers the next request.

``Fleet(...).start()`` runs InitialInstanceCount processes for each variant and returns when all of them are healthy;
``acquire(variant)`` hands out the instance with the fewest outstanding requests; ``Fleet.stop()`` lets the outstanding
ones finish before any process ends. What one server does is in `instance.py`.
"""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from windlass.local.hosting.instance import (
    INVOCATION_TIMEOUT_SECONDS,
    PAYLOAD_LIMIT_BYTES,
    STOP_GRACE_SECONDS,
    FleetFailed,
    Instance,
    LogSink,
    Started,
    VariantSpec,
)
from windlass.local.hosting.split import Split
from windlass.local.hosting.utilisation import memory_of
from windlass.local.jobs import quotas
from windlass.local.jobs.containers import FetchFailed
from windlass.local.processes import Keeper

log = logging.getLogger(__name__)

CROWD = 5
"""So many more requests may wait for an instance that has their model loaded than for one that has not."""


class NoCapacity(Exception):
    """No instance of the variant is healthy at this moment."""


class Fleet:
    """All instances of one endpoint config.

    Args:
        config: the endpoint config's name.
        folder: the fleet's own; removed by :meth:`stop`.
        open_log: opens the log stream of that name.
        started: is told of each process: (variant, process, folder).
    """

    payload_limit_bytes = PAYLOAD_LIMIT_BYTES
    memory_source = "its instance type has"
    has_instances = True

    def __init__(
        self,
        config: str,
        variants: Sequence[VariantSpec],
        folder: Path,
        *,
        keeper: Keeper,
        open_log: Callable[[str], LogSink],
        started: Started | None = None,
    ) -> None:
        self.config, self.variants, self.folder = config, {spec.name: spec for spec in variants}, folder
        self.weights = {spec.name: spec.weight for spec in variants}
        self._changed = threading.Condition()
        self._uses, self._numbers = itertools.count(1), itertools.count()
        self._keeper, self._open_log, self._started = keeper, open_log, started
        self._instances: dict[str, list[Instance]] = {spec.name: [] for spec in variants}
        self._starting: list[Instance] = []
        self._sampling: dict[str, Split[bool]] = {spec.name: Split() for spec in variants if spec.shadow}

    def _instance(self, spec: VariantSpec) -> Instance:
        folder = self.folder / spec.name / str(next(self._numbers))
        return Instance(spec, folder, keeper=self._keeper, open_log=self._open_log, started=self._started)

    @property
    def production(self) -> dict[str, float]:
        """The weights of the variants that answer requests."""
        return {name: weight for name, weight in self.weights.items() if not self.variants[name].shadow}

    def shadows(self) -> list[str]:
        """The shadow variants that get a copy of the next request."""
        if not self._sampling:
            return []
        production = sum(self.production.values())
        chosen = []
        with self._changed:
            for name, sampling in self._sampling.items():
                part = min(1.0, self.weights[name] / production) if production else 0.0
                if sampling.choose({True: part, False: 1 - part}):
                    chosen.append(name)
        return chosen

    def instances(self, variant: str) -> list[Instance]:
        """Those of one variant."""
        return list(self._instances[variant])

    def __iter__(self) -> Iterator[Instance]:
        return itertools.chain.from_iterable(self._instances.values())

    def start(self, abort: Callable[[], str | None] = lambda: None) -> None:
        """Fetch the models, start every instance, and return when all are healthy.

        Raises:
            FleetFailed: one of them is not; the others have been ended.
        """
        try:
            self.grow({name: spec.instances for name, spec in self.variants.items()}, abort)
        except BaseException:
            self.stop(drain_seconds=0, grace_seconds=1)
            raise

    @staticmethod
    def _bring_up(instances: Sequence[Instance], abort: Callable[[], str | None], *, restart: bool = True) -> None:
        try:
            for instance in instances:
                model = instance.folder / "model"
                model.mkdir(parents=True)
                instance.spec.fetch(model)
                instance.install(abort)
                instance.launch()
                if reason := abort():
                    raise FleetFailed(reason)
        except FetchFailed as error:
            raise FleetFailed(str(error)) from error
        except OSError as error:
            raise FleetFailed(f"The model server could not be started: {error}") from error
        started = time.monotonic()
        for instance in instances:
            instance.wait_healthy(started + instance.spec.startup_timeout_seconds, abort)
        for instance in instances if restart else ():
            threading.Thread(target=instance.watch, name=f"watch-{instance.id}", daemon=True).start()

    def counts(self) -> dict[str, int]:
        """How many instances each variant has, healthy or not."""
        return {name: len(group) for name, group in self._instances.items()}

    def grow(self, counts: Mapping[str, int], abort: Callable[[], str | None] = lambda: None) -> None:
        """Have at least so many instances of each variant: the new ones take requests once all of them are healthy.

        Raises:
            FleetFailed: a new one is not; they have been ended, and the fleet is what it was before.
        """
        new = {
            name: [self._instance(self.variants[name]) for _ in range(count - len(self._instances[name]))]
            for name, count in counts.items()
        }
        everyone = list(itertools.chain.from_iterable(new.values()))
        with self._changed:
            self._starting = everyone
        try:
            self._bring_up(everyone, abort)
        except BaseException:
            self._end(everyone, grace_seconds=1)
            raise
        finally:
            with self._changed:
                self._starting = []
        with self._changed:
            for name, group in new.items():
                self._instances[name] = self._instances[name] + group

    def shrink(self, counts: Mapping[str, int]) -> None:
        """Have at most so many instances of each variant: those that go finish what they have been asked."""
        gone: list[Instance] = []
        with self._changed:
            for name, count in counts.items():
                group = self._instances[name]
                # Whoever cannot answer goes first.
                ordered = sorted(group, key=lambda instance: not instance.ready)
                gone += ordered[count:]
                self._instances[name] = [instance for instance in group if instance in ordered[:count]]
            self._changed.wait_for(
                lambda: not any(instance.outstanding for instance in gone), INVOCATION_TIMEOUT_SECONDS
            )
        self._end(gone, STOP_GRACE_SECONDS)
        for instance in gone:
            shutil.rmtree(instance.folder, ignore_errors=True)

    @staticmethod
    def _end(instances: Sequence[Instance], grace_seconds: float) -> None:
        """End these processes, all at once: they share the grace."""
        for instance in instances:
            instance.terminate()
        end = time.monotonic() + grace_seconds
        for instance in instances:
            instance.stop(max(0.0, end - time.monotonic()))

    def cap_memory(self) -> None:
        """End each server that holds more memory than it may, as the kernel of an instance would; it is started again."""
        capped = [instance for instance in self if instance.spec.memory_bytes and instance.ready]
        if not capped:
            return
        bounds = memory_of([instance.pid for instance in capped])
        for instance in capped:
            limit = instance.spec.memory_bytes or 0
            # The bound counts what processes share for each of them. It costs little, and suffices for a server that behaves.
            if bounds.get(instance.pid, 0) > limit and (used := quotas.memory_used(instance.pid)) > limit:
                amounts = (
                    f"{used / quotas.GIB:.2f} GiB of memory, and {self.memory_source} {limit / quotas.GIB:.2f} GiB"
                )
                instance.kill(f"The model server was ended: it used {amounts}.")

    def healthy(self) -> dict[str, int]:
        """How many instances of each variant can answer now."""
        return {name: sum(instance.ready for instance in group) for name, group in self._instances.items()}

    def wait_healthy(self, timeout: float) -> bool:
        """Whether each variant that has instances has one that can answer within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not all(ready or not self._instances[name] for name, ready in self.healthy().items()):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            next(instance for instance in self if not instance.ready).wait_ready(min(left, 0.1))
        return True

    def acquire(self, variant: str, limit: float = math.inf, model: str | None = None) -> Instance:
        """The healthy instance of ``variant`` with the fewest outstanding requests, which now has one more.

        Args:
            limit: of outstanding requests on one instance.
            model: of a multi-model variant: those that have it come first, until there is a crowd.

        Raises:
            NoCapacity: none is healthy and below the limit.
        """
        with self._changed:
            ready = [each for each in self._instances[variant] if each.ready and each.outstanding < limit]
            if not ready:
                raise NoCapacity(variant)
            repository = self.variants[variant].repository

            def load(instance: Instance) -> int:
                loaded = not repository or not model or repository.of(instance).has(model)
                return instance.outstanding + (0 if loaded else CROWD)

            chosen = min(ready, key=lambda instance: (load(instance), instance.last_used))
            chosen.outstanding += 1
            chosen.last_used = next(self._uses)
            return chosen

    def prepare(self, instance: Instance) -> None:
        """Do what remains to be done before an acquired instance can be asked. Raises FleetFailed."""

    def release(self, instance: Instance) -> None:
        """The request given to ``instance`` is over."""
        with self._changed:
            instance.outstanding -= 1
            self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """Wait until no request is outstanding. The router must have let go of this fleet before."""
        with self._changed:
            return self._changed.wait_for(lambda: not any(instance.outstanding for instance in self), timeout)

    def terminate(self) -> None:
        """Ask every process to end, and wait for none."""
        for instance in [*self, *self._starting]:
            instance.terminate()

    def stop(
        self, *, drain_seconds: float = INVOCATION_TIMEOUT_SECONDS, grace_seconds: float = STOP_GRACE_SECONDS
    ) -> None:
        """Let the outstanding requests finish, end the processes, remove the folder."""
        if drain_seconds and not self.drain(drain_seconds):
            log.warning("Fleet %s still had requests after %.0f s; ending it", self.config, drain_seconds)
        self._end([*self, *self._starting], grace_seconds)
        shutil.rmtree(self.folder, ignore_errors=True)
