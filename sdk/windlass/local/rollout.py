"""Deployment guardrails: how traffic moves to a new fleet, and why it goes back.

``Policy.parse(request["DeploymentConfig"], instances=4)`` turns the request into steps; ``Rollout(policy, ...).run()``
takes them, bakes after each, watches the alarms all the while, and returns why the traffic must go back, or None.

The rules are those of the UpdateEndpoint reference and of the guide "Deployment guardrails for updating models in production".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from windlass.local.clock import Clock
from windlass.local.faults import Fault

WATCH_INTERVAL_SECONDS = 0.2
"""How often the alarms are looked at while a deployment bakes."""

LONGEST_DEPLOYMENT_SECONDS = 28_800
"""The largest MaximumExecutionTimeoutInSeconds that AWS takes, and what holds when none is given."""


@dataclass(frozen=True)
class Policy:
    """A DeploymentConfig as steps.

    Attributes:
        shares: the part of the traffic on the new fleet after each step, in (0, 1]; the last is 1.
        wait_seconds: the bake after each step but the last.
        termination_wait_seconds: the bake after the last, before the old fleet ends.
        limit_seconds: a deployment that takes longer rolls back.
        alarms: any of these in ALARM rolls back.
    """

    shares: tuple[float, ...] = (1.0,)
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
        if "RollingUpdatePolicy" in config:
            if "BlueGreenUpdatePolicy" in config:
                raise Fault(
                    "ValidationException", "Only one of BlueGreenUpdatePolicy and RollingUpdatePolicy can be specified."
                )
            raise Fault(
                "ValidationException",
                "The local cloud does not implement RollingUpdatePolicy. Use BlueGreenUpdatePolicy.",
            )
        blue_green = config.get("BlueGreenUpdatePolicy", {})
        routing = blue_green.get("TrafficRoutingConfiguration", {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0})
        shares = _shares(routing, instances)
        policy = cls(
            shares=shares,
            wait_seconds=routing.get("WaitIntervalInSeconds", 0),
            termination_wait_seconds=blue_green.get("TerminationWaitInSeconds", 0),
            limit_seconds=blue_green.get("MaximumExecutionTimeoutInSeconds", LONGEST_DEPLOYMENT_SECONDS),
            alarms=tuple(alarm["AlarmName"] for alarm in config.get("AutoRollbackConfiguration", {}).get("Alarms", [])),
        )
        baking = policy.wait_seconds * (len(shares) - 1) + policy.termination_wait_seconds
        if baking >= policy.limit_seconds:
            raise Fault(
                "ValidationException",
                f"MaximumExecutionTimeoutInSeconds ({policy.limit_seconds}) must be larger than the total waiting time of "
                f"WaitIntervalInSeconds and TerminationWaitInSeconds ({baking}).",
            )
        return policy


def _shares(routing: Mapping[str, Any], instances: int) -> tuple[float, ...]:
    kind = routing["Type"]
    sizes = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}
    for owner, field in sizes.items():
        if (field in routing) != (kind == owner):
            verb = "must be specified" if kind == owner else "cannot be specified"
            raise Fault("ValidationException", f"{field} {verb} when the traffic routing type is {kind}.")
    if kind == "ALL_AT_ONCE":
        return (1.0,)
    size = routing[sizes[kind]]
    least = 0.1 if kind == "LINEAR" else 0.0
    share = size["Value"] / (100 if size["Type"] == "CAPACITY_PERCENT" else instances)
    if not least <= share <= 0.5:
        bounds = "between 10% and 50%" if least else "at most 50%"
        raise Fault(
            "ValidationException",
            f"{sizes[kind]} {size['Value']} ({size['Type']}) must be {bounds} of the variant's instances ({instances}).",
        )
    if kind == "CANARY":
        return (share, 1.0)
    steps = [share * step for step in range(1, int(1 / share + 1e-9) + 1)]
    return (*[step for step in steps if step < 1 - 1e-9], 1.0)


class Rollout:
    """One deployment on its way.

    Args:
        policy: what was asked for.
        clock: the limit of the whole deployment runs on it, because real work is a part of that.
        pace: bakes run on it.
        alarm_states: name -> state of the policy's alarms; one that does not exist is absent.
        shift: moves this share of the traffic to the new fleet, at once.
        cancelled: whether the server is closing.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        clock: Clock,
        pace: Clock | None = None,
        alarm_states: Callable[[], Mapping[str, str]],
        shift: Callable[[float], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._policy, self._clock, self._pace, self._alarm_states = policy, clock, pace or clock, alarm_states
        self._shift, self._cancelled = shift, cancelled
        self._deadline = clock.now() + policy.limit_seconds
        self.stage = "Creating"
        """Of the new fleet, as VariantStatus has it: Creating, ActivatingTraffic or Baking."""

    def objection(self) -> str | None:
        """Why this deployment must not go on, now; None while all is well."""
        if self._cancelled():
            return "The endpoint's deployment was cancelled."
        if self._policy.alarms:
            states = self._alarm_states()
            if ringing := [name for name in self._policy.alarms if states.get(name) == "ALARM"]:
                plural = "s are" if len(ringing) > 1 else " is"
                return f"Rolled back: the following CloudWatch alarm{plural} in ALARM state: {', '.join(ringing)}."
        if self._clock.now() >= self._deadline:
            return f"Rolled back: the deployment took longer than {self._policy.limit_seconds:.0f} seconds."
        return None

    def run(self) -> str | None:
        """Shift and bake, step by step. Returns why the traffic must go back, or None when the new fleet has it all."""
        *earlier, last = self._policy.shares
        for share in earlier:
            if reason := self.objection():
                return reason
            self._move(share)
            if reason := self._bake(self._policy.wait_seconds):
                return reason
        if reason := self.objection():
            return reason
        self._move(last)
        return self._bake(self._policy.termination_wait_seconds)

    def _move(self, share: float) -> None:
        self.stage = "ActivatingTraffic"
        self._shift(share)

    def _bake(self, seconds: float) -> str | None:
        self.stage = "Baking"
        until = self._pace.now() + seconds
        while (left := until - self._pace.now()) > 0:
            if reason := self.objection():
                return reason
            self._pace.sleep(min(left, WATCH_INTERVAL_SECONDS))
        return self.objection()
