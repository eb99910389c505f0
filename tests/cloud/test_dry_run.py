"""A plan, and ``--dry-run``, print what would be sent and send nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import boto3
import pytest

import windlass as wl
from tests.cloud.shop import GOOD_SCRIPT, Shop
from windlass import cli
from windlass.plans import HISTORY_TAG


@pytest.fixture(scope="module", autouse=True)
def past(shop: Shop) -> Iterator[None]:
    """The endpoint has a config to go back to."""
    sagemaker = shop.rig.client("sagemaker")
    tag = {"Key": HISTORY_TAG, "Value": "live-v0-20260102-030405-678"}
    sagemaker.add_tags(ResourceArn=shop.endpoint.arn, Tags=[tag])
    shop.endpoint = shop.endpoint.refresh()
    yield
    sagemaker.delete_tags(ResourceArn=shop.endpoint.arn, TagKeys=[HISTORY_TAG])
    shop.endpoint = shop.endpoint.refresh()


@pytest.fixture
def operations(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every operation that this process asks AWS for."""
    asked: list[str] = []
    session = boto3.session.Session()
    session.events.register("before-call", lambda model, **_: asked.append(model.name))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    return asked


def writes(operations: list[str]) -> list[str]:
    return [name for name in operations if not name.startswith(("Describe", "Get", "List", "Head"))]


PLANS: dict[str, Callable[[Shop], wl.Plan | wl.Endpoint]] = {
    "train": lambda shop: wl.train(shop.script(GOOD_SCRIPT), {"train": shop.folder}, dry_run=True),
    "evaluate": lambda shop: wl.evaluate(shop.run, {"test": shop.folder}, dry_run=True),
    "register": lambda shop: wl.register(shop.run, "a-new-model", dry_run=True),
    "deploy": lambda shop: wl.deploy(shop.version, "a-new-endpoint", slos=[wl.Slo.accuracy(0.9)], dry_run=True),
    "queue": lambda shop: wl.deploy(shop.version, "a-new-endpoint", async_output="s3://answers/here", dry_run=True),
    "update": lambda shop: wl.deploy(shop.version, "live", dry_run=True),
    "rollback": lambda shop: shop.endpoint.rollback(dry_run=True),
}


@pytest.mark.parametrize("verb", PLANS)
def test_a_plan_writes_nothing(verb: str, shop: Shop, operations: list[str]) -> None:
    plan = PLANS[verb](shop)

    assert isinstance(plan, wl.Plan)
    assert plan.requests
    assert operations
    assert writes(operations) == []


COMMANDS: dict[str, Callable[[Shop], Sequence[object]]] = {
    "train": lambda shop: ["train", shop.script(GOOD_SCRIPT), "--data", f"train={shop.folder}"],
    "evaluate": lambda shop: ["evaluate", shop.run.name, "--data", f"test={shop.folder}"],
    "register": lambda shop: ["register", shop.run.name, "--model", "a-new-model"],
    "deploy": lambda shop: ["deploy", "good/1", "--endpoint", "a-new-endpoint", "--slo", "accuracy=0.9"],
    "queue": lambda shop: ["deploy", "good/1", "--endpoint", "a-new-endpoint", "--async-output", "s3://answers/here"],
    "rollback": lambda shop: ["rollback", shop.endpoint.name],
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_plan_of_a_command_is_its_dry_run(
    verb: str, shop: Shop, operations: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(word) for word in COMMANDS[verb](shop)]
    del operations[:]

    printed = []
    for arguments in (["plan", *words], [*words, "--dry-run"]):
        capsys.readouterr()
        assert cli.main(arguments) == 0
        out, err = capsys.readouterr()
        assert err == "next: the same command without --dry-run (or without 'plan')\n"
        # Names hold the time, and archives lie in folders of the moment.
        printed.append(re.sub(r"\d{8}-\d{6}-\d{3}|upload \S+", "", out))

    assert printed[0] == printed[1]
    assert printed[0].startswith("Plan: ")
    assert "IAM actions: " in printed[0]
    assert operations
    assert writes(operations) == []


def test_what_is_not_a_plan_does_write(shop: Shop, operations: list[str]) -> None:
    wl.train(shop.script(f"{GOOD_SCRIPT}# which has not been uploaded yet\n"))

    assert writes(operations) == ["PutObject", "CreateTrainingJob"]
