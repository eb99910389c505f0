"""Serverless variants: real processes that come with the requests and go when these stay away."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.unit.local.hosting.test_fleet import SERVER, Streams, spec
from tests.unit.local.manual_clock import ManualClock
from windlass.local.faults import Fault
from windlass.local.hosting.instance import FleetFailed, Instance, NotReady, Unanswered, VariantSpec
from windlass.local.hosting.router import Router
from windlass.local.hosting.serverless import IDLE_SECONDS, ServerlessFleet, Settings, Throttled, Values, check
from windlass.local.processes import Keeper

# Also holds on to as many MiB as a body of digits says.
HOARDING = SERVER.replace(
    'if body == b"die":',
    """if body.isdigit():
            held.append(bytearray(b"x") * (int(body) << 20))
        if body == b"die":""",
).replace("class Handler", "held = []\nclass Handler")


PATH = {"PATH": os.environ["PATH"]}


class Variant:
    """One serverless variant behind a router, with the metrics that came out of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.keeper, self.streams = folder, ManualClock(), Keeper(), Streams()
        self.values: dict[str, list[float]] = defaultdict(list)
        self.router = Router()
        self.fleets: list[ServerlessFleet] = []

    def open(self, most: int = 2, provisioned: int = 0, memory_mb: int = 1024, **changes: Any) -> ServerlessFleet:
        given: VariantSpec = spec(code=HOARDING, **changes)
        fleet = ServerlessFleet(
            "config",
            given,
            self.folder / f"{len(self.fleets)}",
            settings=Settings(memory_mb, most, provisioned),
            pace=self.clock,
            put=self.put,
            keeper=self.keeper,
            open_log=self.streams.open,
        )
        self.fleets.append(fleet)
        fleet.start()
        self.router.assign((fleet, 1.0))
        return fleet

    def put(self, namespace: str, values: Values) -> None:
        for name, value, _ in values:
            self.values[name].append(value)

    def ask(self, body: bytes = b"", meanwhile: Callable[[Instance], None] = lambda instance: None) -> str:
        with self.router.route() as (_, instance):
            meanwhile(instance)
            return instance.request("POST", "/invocations", {}, body, 10).body.decode()

    def idle(self, fleet: ServerlessFleet, seconds: float = IDLE_SECONDS) -> None:
        self.clock.advance(seconds)
        fleet.look()

    def close(self) -> None:
        for fleet in self.fleets:
            fleet.stop(drain_seconds=0, grace_seconds=0)
        self.keeper.close()


@pytest.fixture
def variant(tmp_path: Path) -> Iterator[Variant]:
    variant = Variant(tmp_path)
    yield variant
    variant.close()


def count(fleet: ServerlessFleet) -> int:
    return len(fleet.instances("main"))


def test_what_is_idle_ends_and_the_next_request_starts_another(variant: Variant) -> None:
    fleet = variant.open()
    first = variant.ask()
    assert variant.ask() == first
    assert variant.values["ModelSetupTime"] == []

    variant.idle(fleet, IDLE_SECONDS - 1)
    assert count(fleet) == 1
    variant.idle(fleet, 1)
    assert count(fleet) == 0
    assert list(fleet.folder.glob("main/*")) == []

    assert variant.ask() != first
    assert count(fleet) == 1
    assert [seconds > 0 for seconds in variant.values["ModelSetupTime"]] == [True]


def test_each_request_at_once_has_its_own_environment_up_to_the_most(variant: Variant) -> None:
    fleet = variant.open(most=2)
    both, done = threading.Barrier(3), threading.Event()

    def wait(instance: Instance) -> None:
        both.wait(20)
        assert done.wait(20)

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(variant.ask, b"", wait) for _ in range(2)]
        both.wait(20)
        with pytest.raises(Throttled):
            variant.ask()
        done.set()
        answers = {each.result() for each in asked}

    assert len(answers) == 2
    assert count(fleet) == 2
    assert max(variant.values["ServerlessConcurrentExecutionsUtilization"]) == 100
    variant.idle(fleet)
    assert count(fleet) == 0


def test_what_is_provisioned_stays_and_the_rest_spills_over(variant: Variant) -> None:
    fleet = variant.open(most=3, provisioned=2)
    assert count(fleet) == 2
    everyone = threading.Barrier(3)

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(variant.ask, b"", lambda _: everyone.wait(20) and None) for _ in range(3)]
        assert len({each.result() for each in asked}) == 3

    assert sum(variant.values["ServerlessProvisionedConcurrencyInvocations"]) == 2
    assert sum(variant.values["ServerlessProvisionedConcurrencySpilloverInvocations"]) == 1
    assert max(variant.values["ServerlessProvisionedConcurrencyUtilization"]) == 100
    assert len(variant.values["ModelSetupTime"]) == 1
    variant.idle(fleet)
    assert count(fleet) == 2


def test_an_environment_that_holds_too_much_memory_is_ended(variant: Variant) -> None:
    fleet = variant.open()
    [instance] = fleet.instances("main")
    variant.ask(b"100")
    fleet.look()
    fleet.measure()
    assert instance.ready
    assert 10 < max(variant.values["MemoryUtilization"]) < 50

    with suppress(Unanswered):  # it may be ended before it has answered
        variant.ask(b"1024")
    fleet.look()
    instance.wait_ended()

    assert variant.streams.wait_for(
        lambda: any("its MemorySizeInMB is 1.00 GiB" in line for line in variant.streams.all)
    )
    assert variant.ask()


def test_a_crash_fails_one_request_and_the_next_has_a_new_environment(variant: Variant) -> None:
    variant.open()

    with pytest.raises(Unanswered, match="exited"):
        variant.ask(b"die")

    assert variant.ask()


def test_a_model_that_does_not_start_fails_the_deployment_or_the_request(variant: Variant) -> None:
    (variant.folder / "good").touch()
    code = HOARDING.replace(
        "print(", f"assert os.path.exists({str(variant.folder / 'good')!r}), 'weights gone'\nprint(", 1
    )
    fleet = variant.open(command=("python3", "-c", code), environment=PATH)
    variant.idle(fleet)
    (variant.folder / "good").unlink()

    with pytest.raises(FleetFailed, match="weights gone"):
        variant.ask()

    assert count(fleet) == 0
    with pytest.raises(FleetFailed, match="weights gone"):
        variant.open(command=("python3", "-c", code), environment=PATH)


def test_a_request_does_not_wait_for_ever_for_a_slow_start_and_a_later_one_finds_it(variant: Variant) -> None:
    gate = variant.folder / "go"
    gate.touch()
    wait = f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)\nprint("
    fleet = variant.open(command=("python3", "-c", HOARDING.replace("print(", wait, 1)), environment=PATH)
    variant.idle(fleet)
    gate.unlink()
    fleet.patience_seconds = 0.1

    with pytest.raises(NotReady, match="still being provisioned"):
        variant.ask()

    [instance] = fleet.instances("main")
    gate.touch()
    assert instance.wait_ready(20)
    assert variant.ask()
    assert fleet.instances("main") == [instance]


def test_the_limits_change_while_it_serves(variant: Variant) -> None:
    fleet = variant.open(most=1)

    fleet.reconfigure(Settings(1024, most=4, provisioned=3))

    assert count(fleet) == 3
    variant.idle(fleet)
    assert count(fleet) == 3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"MemorySizeInMB": 1500, "MaxConcurrency": 1}, "1 GB increments"),
        (
            {"MemorySizeInMB": 1024, "MaxConcurrency": 1, "ProvisionedConcurrency": 2},
            "less than or equal to its MaxConcurrency",
        ),
    ],
)
def test_settings_that_cannot_be(config: dict[str, int], said: str) -> None:
    with pytest.raises(Fault) as refused:
        Settings.parse(config, "main")
    assert said in refused.value.message


SERVERLESS = {
    "VariantName": "main",
    "ModelName": "m",
    "ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1},
}


@pytest.mark.parametrize(
    ("request_", "model", "named"),
    [
        ({"ProductionVariants": [SERVERLESS], "AsyncInferenceConfig": {"x": 1}}, {}, "AsyncInferenceConfig"),
        ({"ProductionVariants": [SERVERLESS], "DataCaptureConfig": {"x": 1}}, {}, "DataCaptureConfig"),
        ({"ProductionVariants": [SERVERLESS, {**SERVERLESS, "VariantName": "b"}]}, {}, "multiple production variants"),
        ({"ProductionVariants": [{**SERVERLESS, "InitialInstanceCount": 1}]}, {}, "InitialInstanceCount"),
        ({"ProductionVariants": [SERVERLESS]}, {"VpcConfig": {"Subnets": []}}, "VpcConfig"),
        ({"ProductionVariants": [SERVERLESS]}, {"PrimaryContainer": {"Mode": "MultiModel"}}, "multi-model"),
    ],
)
def test_what_serverless_endpoints_do_not_have(request_: dict[str, Any], model: dict[str, Any], named: str) -> None:
    with pytest.raises(Fault) as refused:
        check(request_, lambda name: model)
    assert named in refused.value.message
