"""Deployment guardrails: how traffic moves to a new fleet, and why it goes back.

``Policy.parse(request["DeploymentConfig"], instances=4)`` reads the request, ``policy.steps(old, new)`` is the way to the new
fleet and ``policy.steps_back(...)`` the way home; ``Rollout(policy, ...).run(steps)`` takes them, bakes after each, watches the
alarms all the while, and returns why the traffic must go back, or None.

The rules are those of the UpdateEndpoint reference and of the guide "Deployment guardrails for updating models in production".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from windlass.local.clock import Clock
from windlass.local.faults import Fault

WATCH_INTERVAL_SECONDS = 0.2
"""How often the alarms are looked at while a deployment bakes."""

LONGEST_DEPLOYMENT_SECONDS = 28_800
"""The largest MaximumExecutionTimeoutInSeconds that AWS takes, and what holds when none is given."""


Counts = Mapping[str, int]
"""How many instances a fleet has of each variant."""


@dataclass(frozen=True)
class Size:
    """A CapacitySize: a number of instances, or a part of them all."""

    kind: str
    value: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Size:
        return cls(given["Type"], given["Value"])

    def share(self, instances: int) -> float:
        """What part of so many instances this is; more than 1 if it is more than there are."""
        return self.value / (100 if self.kind == "CAPACITY_PERCENT" else max(1, instances))

    def count(self, instances: int) -> int:
        """The most instances, out of so many, that this allows at a time; at least one, or nothing would ever move."""
        return max(1, math.floor(self.share(instances) * instances + 1e-9))


@dataclass(frozen=True)
class Step:
    """One step of a deployment: capacity first, then its traffic, a bake, and the capacity that is no longer needed goes.

    Attributes:
        shares: of the traffic of each variant, on the new fleet after this step, from 0 to 1.
        grow: what the fleet that gains traffic must have before.
        shrink: what the fleet that loses it keeps afterwards; None: all it has, for its end is not the step's business.
        bake_seconds: the wait in between.
    """

    shares: Mapping[str, float]
    grow: Counts
    shrink: Counts | None = None
    bake_seconds: float = 0


@dataclass(frozen=True)
class Policy:
    """A DeploymentConfig, checked.

    Attributes:
        shares: blue/green: the part of the traffic on the new fleet after each step, in (0, 1]; the last is 1.
        batch: rolling: how much is replaced at a time; None: blue/green, a whole second fleet.
        rollback_batch: rolling: how much comes back at a time; None: all at once.
        wait_seconds: the bake after each step; blue/green: after each but the last.
        termination_wait_seconds: blue/green: the bake after the last, before the old fleet ends.
        limit_seconds: a deployment that takes longer rolls back.
        alarms: any of these in ALARM rolls back.
    """

    shares: tuple[float, ...] = (1.0,)
    batch: Size | None = None
    rollback_batch: Size | None = None
    wait_seconds: float = 0
    termination_wait_seconds: float = 0
    limit_seconds: float = LONGEST_DEPLOYMENT_SECONDS
    alarms: tuple[str, ...] = ()

    @classmethod
    def parse(cls, config: Mapping[str, Any] | None, *, instances: int) -> Policy:
        """The policy that ``config`` (a DeploymentConfig that fits the service model) asks for.

        Args:
            instances: of the smallest variant; what INSTANCE_COUNT is a part of.
        """
        if not config:
            return cls()
        alarms = tuple(each["AlarmName"] for each in config.get("AutoRollbackConfiguration", {}).get("Alarms", []))
        if rolling := config.get("RollingUpdatePolicy"):
            if "BlueGreenUpdatePolicy" in config:
                raise Fault(
                    "ValidationException", "Only one of BlueGreenUpdatePolicy and RollingUpdatePolicy can be specified."
                )
            return cls._rolling(rolling, alarms, instances)
        blue_green = config.get("BlueGreenUpdatePolicy", {})
        routing = blue_green.get("TrafficRoutingConfiguration", {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0})
        shares = _shares(routing, instances)
        policy = cls(
            shares=shares,
            wait_seconds=routing.get("WaitIntervalInSeconds", 0),
            termination_wait_seconds=blue_green.get("TerminationWaitInSeconds", 0),
            limit_seconds=blue_green.get("MaximumExecutionTimeoutInSeconds", LONGEST_DEPLOYMENT_SECONDS),
            alarms=alarms,
        )
        baking = policy.wait_seconds * (len(shares) - 1) + policy.termination_wait_seconds
        _check_limit(policy, baking, "WaitIntervalInSeconds and TerminationWaitInSeconds")
        return policy

    @classmethod
    def _rolling(cls, rolling: Mapping[str, Any], alarms: tuple[str, ...], instances: int) -> Policy:
        batch = Size.of(rolling["MaximumBatchSize"])
        _check_size("MaximumBatchSize", batch, instances, least=0.05)
        back = rolling.get("RollbackMaximumBatchSize")
        policy = cls(
            batch=batch,
            rollback_batch=Size.of(back) if back else None,
            wait_seconds=rolling["WaitIntervalInSeconds"],
            limit_seconds=rolling.get("MaximumExecutionTimeoutInSeconds", LONGEST_DEPLOYMENT_SECONDS),
            alarms=alarms,
        )
        if (
            policy.rollback_batch
            and policy.rollback_batch.kind == "CAPACITY_PERCENT"
            and policy.rollback_batch.value > 100
        ):
            raise Fault(
                "ValidationException", "RollbackMaximumBatchSize must be at most 100% of the variant's instances."
            )
        batches = math.ceil(instances / batch.count(instances))
        _check_limit(policy, policy.wait_seconds * batches, "WaitIntervalInSeconds")
        return policy

    def steps(self, old: Counts, new: Counts) -> list[Step]:
        """The way from a fleet of so many instances to one of so many. The old fleet ends after the last step."""
        if self.batch is None:
            waits = [self.wait_seconds] * (len(self.shares) - 1) + [self.termination_wait_seconds]
            return [
                Step(dict.fromkeys(new, share), new, bake_seconds=wait)
                for share, wait in zip(self.shares, waits, strict=True)
            ]
        steps = []
        # A fleet that was scaled to zero has nothing to bring up, and its traffic moves all the same.
        for grown in _batches(dict.fromkeys(new, 0), new, self.batch) or [dict(new)]:
            shares = {name: grown[name] / new[name] if new[name] else 1.0 for name in new}
            kept = {name: math.ceil(count * (1 - shares.get(name, 1.0)) - 1e-9) for name, count in old.items()}
            steps.append(Step(shares, grown, kept, self.wait_seconds))
        return [*steps[:-1], Step(steps[-1].shares, steps[-1].grow, bake_seconds=self.wait_seconds)]

    def steps_back(self, *, left: Counts, old: Counts, new: Counts) -> list[Step]:
        """The way back to an old fleet of which so many instances are left. The new fleet ends after the last step.

        Args:
            left: what the old fleet still has.
            old: what it had.
            new: what the new one has.
        """
        size = self.rollback_batch or Size("CAPACITY_PERCENT", 100)
        if self.batch is None or dict(left) == dict(old):
            return [Step(dict.fromkeys(new, 0.0), old)]
        steps = []
        for grown in _batches(left, old, size):
            shares = {name: 1 - grown[name] / old[name] if old[name] else 0.0 for name in old}
            kept = {name: math.ceil(count * shares.get(name, 0.0) - 1e-9) for name, count in new.items()}
            steps.append(Step(shares, grown, kept))
        return steps


def _batches(begin: Counts, end: Counts, size: Size) -> list[dict[str, int]]:
    """The instances after each batch, from ``begin`` (exclusive) to ``end``. Variants with fewer batches are ready earlier."""
    counts, batches = dict(begin), []
    while counts != dict(end):
        counts = {name: min(end[name], counts[name] + size.count(end[name])) for name in end}
        batches.append(counts)
    return batches


def _check_limit(policy: Policy, baking: float, of: str) -> None:
    if baking >= policy.limit_seconds:
        raise Fault(
            "ValidationException",
            f"MaximumExecutionTimeoutInSeconds ({policy.limit_seconds}) must be larger than the total waiting time of "
            f"{of} ({baking}).",
        )


def _check_size(field: str, size: Size, instances: int, *, least: float) -> None:
    if not least <= size.share(instances) <= 0.5:
        bounds = f"between {least:.0%} and 50%" if least else "at most 50%"
        raise Fault(
            "ValidationException",
            f"{field} {size.value} ({size.kind}) must be {bounds} of the variant's instances ({instances}).",
        )


def _shares(routing: Mapping[str, Any], instances: int) -> tuple[float, ...]:
    kind = routing["Type"]
    sizes = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}
    for owner, field in sizes.items():
        if (field in routing) != (kind == owner):
            verb = "must be specified" if kind == owner else "cannot be specified"
            raise Fault("ValidationException", f"{field} {verb} when the traffic routing type is {kind}.")
    if kind == "ALL_AT_ONCE":
        return (1.0,)
    size = Size.of(routing[sizes[kind]])
    _check_size(sizes[kind], size, instances, least=0.1 if kind == "LINEAR" else 0.0)
    share = size.share(instances)
    if kind == "CANARY":
        return (share, 1.0)
    steps = [share * step for step in range(1, int(1 / share + 1e-9) + 1)]
    return (*[step for step in steps if step < 1 - 1e-9], 1.0)


class Moves(Protocol):
    """What a rollout does to the fleets."""

    def grow(self, counts: Counts) -> None:
        """Bring the fleet that gains traffic up to that; return when all of it is healthy."""

    def shift(self, shares: Mapping[str, float]) -> None:
        """Send these shares of each variant's traffic to the new fleet, from the next request on."""

    def shrink(self, counts: Counts) -> None:
        """Bring the fleet that loses traffic down to that, when what it has been asked is answered."""


class Rollout:
    """One deployment on its way.

    Args:
        policy: what was asked for.
        clock: the limit of the whole deployment runs on it, because real work is a part of that.
        pace: bakes run on it.
        alarm_states: name -> state of the policy's alarms; one that does not exist is absent.
        cancelled: whether the server is closing.
        entered: is called whenever the next stage begins.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        clock: Clock,
        pace: Clock | None = None,
        alarm_states: Callable[[], Mapping[str, str]],
        cancelled: Callable[[], bool],
        entered: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy, self._clock, self._pace, self._alarm_states = policy, clock, pace or clock, alarm_states
        self._cancelled, self._entered = cancelled, entered
        self._deadline = clock.now() + policy.limit_seconds
        self._stage, self._since = "Creating", clock.now()
        self._step = Step({}, {})
        self._before: Counts = {}

    def objection(self) -> str | None:
        """Why this deployment must not go on, now; None while all is well."""
        if self._cancelled():
            return "The endpoint's deployment was cancelled."
        if self.policy.alarms:
            states = self._alarm_states()
            if ringing := [name for name in self.policy.alarms if states.get(name) == "ALARM"]:
                plural = "s are" if len(ringing) > 1 else " is"
                return f"Rolled back: the following CloudWatch alarm{plural} in ALARM state: {', '.join(ringing)}."
        if self._clock.now() >= self._deadline:
            return f"Rolled back: the deployment took longer than {self.policy.limit_seconds:.0f} seconds."
        return None

    def status(self, variant: str) -> dict[str, Any]:
        """What happens to that variant of the new fleet, as VariantStatus has it."""
        step, count = self._step, self._step.grow.get(variant, 0)
        share = step.shares.get(variant, 0.0)
        canary = "canary" if share < 1 and self.policy.batch is None and len(self.policy.shares) == 2 else "step"
        capacity = f"{'full' if share >= 1 else canary} capacity of {max(1, round(share * count))} instance(s)"
        last = share >= 1 and self.policy.batch is None
        message = {
            "Creating": f"Launching {count - self._before.get(variant, 0)} instance(s).",
            "ActivatingTraffic": f"Activating traffic on {capacity}.",
            "Baking": f"Baking for {step.bake_seconds:.0f} seconds "
            f"({'TerminationWaitInSeconds' if last else 'WaitIntervalInSeconds'}) with traffic enabled on {capacity}.",
            "Deleting": "Terminating the instances that it replaces.",
        }[self._stage]
        return {
            "Status": self._stage,
            "StatusMessage": message,
            "StartTime": datetime.fromtimestamp(self._since, UTC),
        }

    def run(self, steps: Sequence[Step], moves: Moves) -> str | None:
        """Step by step. Returns why the traffic must go back, or None when the new fleet has it all."""
        for step in steps:
            if reason := self.objection():
                return reason
            self._before, self._step = self._step.grow, step
            if step.grow != self._before:
                self._enter("Creating")
                moves.grow(step.grow)
                if reason := self.objection():
                    return reason
            self._enter("ActivatingTraffic")
            moves.shift(step.shares)
            self._enter("Baking")
            if reason := self._bake(step.bake_seconds):
                return reason
            if step.shrink is not None:
                self._enter("Deleting")
                moves.shrink(step.shrink)
        return None

    def _enter(self, stage: str) -> None:
        self._stage, self._since = stage, self._clock.now()
        self._entered()

    def _bake(self, seconds: float) -> str | None:
        until = self._pace.now() + seconds
        while (left := until - self._pace.now()) > 0:
            if reason := self.objection():
                return reason
            self._pace.sleep(min(left, WATCH_INTERVAL_SECONDS))
        return self.objection()
