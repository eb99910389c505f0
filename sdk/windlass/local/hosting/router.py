"""Which fleet, and which variant of it, answers the next request."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping

from windlass.local.hosting.fleet import Fleet
from windlass.local.hosting.instance import PAYLOAD_LIMIT_BYTES, Instance
from windlass.local.hosting.split import Split

Share = float | Mapping[str, float]
"""Of the traffic, from 0 to 1: for a whole fleet, or for each of its variants."""


class Router:
    """The traffic of one endpoint: between fleets by the shares of a deployment, between variants by their weights."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: list[tuple[Fleet, Share]] = []
        self._splits: dict[str | None, Split[tuple[int, str]]] = {}

    def assign(self, *shares: tuple[Fleet, Share]) -> None:
        """Send each fleet this share of the traffic, from the next request on. The shares of a variant add up to 1."""
        with self._lock:
            self._shares = list(shares)
            self._splits.clear()

    @property
    def shares(self) -> list[tuple[Fleet, Share]]:
        """What was assigned last."""
        with self._lock:
            return list(self._shares)

    @property
    def serving(self) -> bool:
        """Whether any fleet takes traffic."""
        return bool(self._shares)

    @property
    def payload_limit_bytes(self) -> int:
        """Of a request's body, and of the answer."""
        return min((fleet.payload_limit_bytes for fleet, _ in self.shares), default=PAYLOAD_LIMIT_BYTES)

    @property
    def multi_model(self) -> bool:
        """Whether a request has to say which model it is for."""
        return any(spec.repository for fleet, _ in self.shares for spec in fleet.variants.values())

    def healthy(self) -> int:
        """How many instances can answer now, of all fleets that take traffic."""
        return sum(count for fleet, share in self.shares if share for count in fleet.healthy().values())

    @contextlib.contextmanager
    def route(
        self, variant: str | None = None, limit: float = math.inf, model: str | None = None
    ) -> Iterator[tuple[Fleet, Instance]]:
        """The instance for one request, held until the block ends.

        Args:
            variant: TargetVariant, which overrides the weights.
            limit: of outstanding requests on one instance.
            model: TargetModel.

        Raises:
            LookupError: no fleet has that variant, or there is no fleet.
            NoCapacity: no instance of the variant is healthy.
            FleetFailed: one would have had to be started, and did not come up.
        """
        # One lock over choosing a fleet and counting the request in it: a fleet that assign() has let go of gets no more.
        with self._lock:
            parts = {
                (number, name): part
                for number, (fleet, share) in enumerate(self._shares)
                for name, part in _parts(fleet, share, variant).items()
            }
            number, name = self._splits.setdefault(variant if parts else None, Split()).choose(parts)
            fleet, _ = self._shares[number]
            instance = fleet.acquire(name, limit, model)
        try:
            fleet.prepare(instance)
            yield fleet, instance
        finally:
            fleet.release(instance)


def _parts(fleet: Fleet, share: Share, target: str | None) -> dict[str, float]:
    """The part of the endpoint's requests that each variant of the fleet takes."""
    weights = fleet.production
    if target:
        weights = {target: 1.0} if target in weights else {}
    total = sum(weights.values()) or 1.0
    return {name: weight / total * share_of(share, name) for name, weight in weights.items()}


def share_of(share: Share, variant: str) -> float:
    """What a share is for one variant; one that is not mentioned goes with the majority."""
    if isinstance(share, Mapping):
        return share[variant] if variant in share else max(share.values(), default=0.0)
    return share
