"""What a multi-model server has loaded, with a container of our own that keeps SageMaker's contract."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from moto.s3.models import s3_backends

from tests.unit.local.hosting.test_fleet import Streams, spec
from windlass.local import storage
from windlass.local.cloud import ACCOUNT
from windlass.local.hosting import multi_model
from windlass.local.hosting.fleet import Fleet
from windlass.local.hosting.instance import Instance, NotReady
from windlass.local.hosting.multi_model import NoModel, NotLoaded, Repository
from windlass.local.processes import Keeper

# Holds two models. A model whose file says "slow" is loaded once the file `go` is there, and one that says "bad" never is.
CONTAINER = """
import http.server, json, os, pathlib, time
loaded = {}
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer(200, b"")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/models":
            asked = json.loads(body)
            text = pathlib.Path(asked["url"], "version").read_text()
            while text == "slow" and not os.path.exists(os.environ["GO"]):
                time.sleep(0.01)
            if text == "bad":
                return self.answer(500, b"weights of another model")
            if len(loaded) == 2 or text == "huge":
                return self.answer(507, b"full")
            loaded[asked["model_name"]] = text
            return self.answer(200, b"{}")
        name = self.path.split("/")[2]
        if body == b"die":
            os._exit(3)
        self.answer(200, loaded[name].encode()) if name in loaded else self.answer(404, b"")
    def do_DELETE(self):
        self.answer(200 if loaded.pop(self.path.split("/")[2], None) else 404, b"{}")
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
"""


class Shelf:
    """A bucket of models, and servers that load them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keeper, self.fleets = folder, Keeper(), list[Fleet]()

    def put(self, *versions: str) -> None:
        for version in versions:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w:gz") as tar:
                member = tarfile.TarInfo("version")
                member.size = len(version.encode())
                tar.addfile(member, io.BytesIO(version.encode()))
            storage.write(f"s3://shelf/models/{version}", packed.getvalue())

    def serve(self, instances: int = 1, *, cached: bool = True) -> Fleet:
        made = spec(
            code=CONTAINER,
            instances=instances,
            environment={"PATH": os.defpath, "GO": str(self.folder / "go")},
            repository=Repository("s3://shelf/models/", cached=cached),
        )
        fleet = Fleet(
            "config", [made], self.folder / f"{len(self.fleets)}", keeper=self.keeper, open_log=Streams().open
        )
        self.fleets.append(fleet)
        fleet.start()
        return fleet

    def close(self) -> None:
        for fleet in self.fleets:
            fleet.stop(drain_seconds=0, grace_seconds=0)
        self.keeper.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    s3_backends[ACCOUNT]["aws"].create_bucket("shelf", "us-east-1")
    shelf = Shelf(tmp_path)
    yield shelf
    shelf.close()
    s3_backends.reset()


def cache(instance: Instance) -> Any:
    assert instance.spec.repository
    return instance.spec.repository.of(instance)


def ask(instance: Instance, target: str) -> tuple[str, dict[str, float]]:
    """The model's answer, and what having it cost."""
    with cache(instance).holding(target) as held:
        reply = instance.request("POST", held.path, {}, b"")
    return reply.body.decode(), {name: value for name, value, _ in held.values}


def test_the_model_that_rested_longest_makes_room(shelf: Shelf) -> None:
    shelf.put("a", "b", "c")
    [instance] = shelf.serve().instances("main")

    hits = {}
    for number, target in enumerate("abacab"):
        answer, cost = ask(instance, target)
        assert answer == target
        hits[number] = cost["ModelCacheHit"]
        assert ("ModelUnloadingTime" in cost) == (number in (3, 5))

    assert list(hits.values()) == [0, 0, 1, 0, 1, 0]
    assert len(cache(instance)) == 2
    assert len(list((instance.folder / "models").iterdir())) == 2


def test_a_model_that_answers_is_not_unloaded(shelf: Shelf) -> None:
    shelf.put("a", "b", "c")
    [instance] = shelf.serve().instances("main")

    with ThreadPoolExecutor(1) as pool:
        with cache(instance).holding("a") as first, cache(instance).holding("b"):
            waiting = pool.submit(ask, instance, "c")
            assert instance.request("POST", first.path, {}, b"").body == b"a"
            assert not waiting.done()
        assert waiting.result(20)[0] == "c"


@pytest.mark.parametrize("cached", [True, False])
def test_a_request_does_not_wait_for_ever_and_the_loading_goes_on(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    shelf.put("slow")
    [instance] = shelf.serve(cached=cached).instances("main")
    with monkeypatch.context() as patch:
        patch.setattr(multi_model, "PATIENCE_SECONDS", 0.05)
        with pytest.raises(NotReady, match="slow is still being"):
            ask(instance, "slow")

    (shelf.folder / "go").touch()

    answer, cost = ask(instance, "slow")
    assert answer == "slow"
    assert "ModelLoadingTime" not in cost  # nor was it loaded again
    assert len(cache(instance)) == int(cached)


def test_failures_are_told_and_forgotten(shelf: Shelf) -> None:
    shelf.put("bad", "huge")
    storage.write("s3://shelf/models/text", b"no archive")
    [instance] = shelf.serve().instances("main")

    with pytest.raises(NoModel, match=r"bucket: shelf, key: models/absent\)"):
        ask(instance, "absent")
    with pytest.raises(NoModel, match="is a valid tar"):
        ask(instance, "text")
    for target, status in (("bad", 500), ("huge", 507)):
        with pytest.raises(NotLoaded) as refused:
            ask(instance, target)
        assert refused.value.reply.status == status
    assert len(cache(instance)) == 0
    assert list((instance.folder / "models").iterdir()) == []


def test_a_server_that_was_restarted_has_nothing_loaded(shelf: Shelf) -> None:
    shelf.put("a")
    fleet = shelf.serve()
    [instance] = fleet.instances("main")
    ask(instance, "a")

    instance.kill("the test says so")
    instance.wait_ended()
    assert fleet.wait_healthy(20)

    assert ask(instance, "a")[1]["ModelCacheHit"] == 0


def test_requests_go_where_their_model_is_until_there_is_a_crowd(shelf: Shelf) -> None:
    shelf.put("a")
    fleet = shelf.serve(instances=2)
    first = fleet.acquire("main", model="a")
    ask(first, "a")
    fleet.release(first)

    held = [fleet.acquire("main", model="a") for _ in range(7)]

    assert held[:5] == [first] * 5
    assert {each is first for each in held[5:]} == {True, False}


def test_many_at_once_load_a_model_once(shelf: Shelf) -> None:
    shelf.put("slow")
    [instance] = shelf.serve().instances("main")
    started = threading.Barrier(9)

    def one() -> dict[str, float]:
        started.wait(20)
        return ask(instance, "slow")[1]

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(one) for _ in range(8)]
        started.wait(20)
        (shelf.folder / "go").touch()
        costs = [each.result(20) for each in asked]

    assert sum("ModelLoadingTime" in cost for cost in costs) == 1
