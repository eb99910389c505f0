"""Multi-model mode as the platform sees it: a server without models, and the requests that load and unload them."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import pytest

from tests.unit.runtime.serving import DEADLINE_SECONDS, Server, Start

WHO = """
    import helper
    def model_fn(model_dir, context): return helper.NAME, context.model_name
    def transform_fn(model, body, content_type, accept): return ",".join(model) + ":" + body
"""
GATED = """
    def model_fn(model_dir): return model_dir + "/gate"
    def transform_fn(model, body, content_type, accept):
        with open(model) as gate:
            return gate.read()
"""


def put(folder: Path, source: str, **files: str) -> str:
    """Write a model as the platform unpacks it. Returns its url."""
    code = folder / "model" / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text(dedent(source))
    for name, text in files.items():
        (code / f"{name}.py").write_text(text)
    return str(folder / "model")


class Platform:
    """What SageMaker does with the server."""

    def __init__(self, server: Server) -> None:
        self.server, self.client = server, server.client

    def load(self, name: str, url: str) -> httpx.Response:
        return self.client.post("/models", json={"model_name": name, "url": url})

    def unload(self, name: str) -> httpx.Response:
        return self.client.delete(f"/models/{name}")

    def invoke(self, name: str, content: bytes = b"[1]") -> httpx.Response:
        return self.client.post(f"/models/{name}/invoke", content=content, headers={"content-type": "application/json"})

    def names(self, **query: str) -> tuple[list[str], str | None]:
        page: dict[str, Any] = self.client.get("/models", params=query).json()
        return [model["modelName"] for model in page["models"]], page.get("nextPageToken")


@pytest.fixture(scope="module")
def platform(start: Start) -> Platform:
    return Platform(start(None, SAGEMAKER_MULTI_MODEL="true").ready())


def test_models_come_and_go_each_with_its_own_modules(platform: Platform, tmp_path: Path) -> None:
    one = put(tmp_path / "one", WHO, helper="NAME = 'first'")
    two = put(tmp_path / "two", WHO, helper="NAME = 'second'")
    assert platform.client.get("/ping").status_code == 200
    assert (platform.load("a", one).status_code, platform.load("b", two).status_code) == (200, 200)

    assert platform.invoke("a").text == "first,a:[1]"
    assert platform.invoke("b").text == "second,b:[1]"
    assert platform.client.get("/models/a").json() == {"modelName": "a", "modelUrl": one}
    assert platform.names() == (["a", "b"], None)
    assert "/models/a/invoke" in platform.client.get("/models/a/openapi.json").json()["paths"]
    assert platform.client.get("/models/c/openapi.json").status_code == 404
    assert platform.client.get("/openapi.json").status_code == 404

    assert platform.unload("a").status_code == 200
    assert platform.invoke("a").status_code == 404
    assert platform.names() == (["b"], None)
    assert platform.load("a", two).status_code == 200  # the name is free for another folder
    assert platform.invoke("a").text == "second,a:[1]"
    platform.unload("a")
    platform.unload("b")


def test_a_model_is_loaded_once(platform: Platform, tmp_path: Path) -> None:
    url = put(tmp_path, WHO, helper="NAME = 'x'")
    assert platform.load("twice", url).status_code == 200
    again = platform.load("twice", url)
    assert (again.status_code, again.json()) == (
        409,
        {"code": 409, "type": "ConflictStatusException", "message": "Model twice is already loaded."},
    )
    platform.unload("twice")


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/invoke")])
def test_an_unknown_model_is_a_404(platform: Platform, method: str, path: str) -> None:
    reply = platform.client.request(method, f"/models/nobody{path}")
    assert (reply.status_code, reply.json()["type"]) == (404, "ModelNotFoundException")
    assert reply.json()["message"] == "Model not found: nobody"


def test_the_list_comes_in_pages(platform: Platform, tmp_path: Path) -> None:
    for name in ("p1", "p2", "p3"):
        platform.load(name, put(tmp_path / name, WHO, helper="NAME = 'x'"))
    first, token = platform.names(limit="2")
    assert token is not None
    assert (first, *platform.names(limit="2", next_page_token=token)) == (["p1", "p2"], ["p3"], None)
    for name in ("p1", "p2", "p3"):
        platform.unload(name)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no object"),
        (b'{"url": "/tmp"}', "no 'model_name'"),
        (b'{"model_name": "m"}', "no 'url'"),
        (b'{"model_name": 7, "url": "/tmp"}', "no 'model_name'"),
        (b'{"model_name": "a/b", "url": "/tmp"}', "holds '/'"),
        (b'{"model_name": "a\\nb", "url": "/tmp"}', "cannot be printed"),
        (b'{"model_name": "m", "url": "relative"}', "not the absolute path"),
        (b'{"model_name": "m", "url": "/nowhere/at/all"}', "not the absolute path"),
        (b'{"model_name": "m", "url": "/tmp\\u0000"}', "not the absolute path"),
    ],
)
def test_a_malformed_load_is_a_400(platform: Platform, body: bytes, says: str) -> None:
    reply = platform.client.post("/models", content=body)
    assert (reply.status_code, reply.json()["type"]) == (400, "BadRequestException")
    assert says in reply.json()["message"]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "next_page_token=-1", "limit=²"])
def test_a_malformed_page_is_a_400(platform: Platform, query: str) -> None:
    assert platform.client.get(f"/models?{query}").status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("PUT", "/models", "GET, POST"), ("POST", "/models/m", "GET, DELETE"), ("GET", "/models/m/invoke", "POST")],
)
def test_other_methods_are_a_405(platform: Platform, method: str, path: str, allow: str) -> None:
    reply = platform.client.request(method, path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allow)


def test_there_is_no_model_for_plain_invocations(platform: Platform) -> None:
    reply = platform.client.post("/invocations", content=b"[1]")
    assert reply.status_code == 404
    assert "/models/{name}/invoke" in reply.text


def test_a_model_that_raises_is_not_loaded_and_harms_nobody(platform: Platform, tmp_path: Path) -> None:
    platform.load("good", put(tmp_path / "good", WHO, helper="NAME = 'good'"))
    failed = platform.load("bad", put(tmp_path / "bad", "def model_fn(model_dir): return weights"))
    assert (failed.status_code, failed.json()["type"]) == (500, "InternalServerException")
    assert "NameError: name 'weights' is not defined" in failed.json()["message"]
    assert platform.names() == (["good"], None)
    assert platform.invoke("good").status_code == 200
    platform.unload("good")


@pytest.mark.parametrize(
    "source",
    [
        "def model_fn(model_dir): raise MemoryError('8 GiB')",
        # The kernel kills without a word.
        "import os, signal\ndef model_fn(model_dir): os.kill(os.getpid(), signal.SIGKILL)",
        "import torch\ndef model_fn(model_dir): return torch.empty(1 << 50)",
    ],
)
def test_a_model_that_finds_no_memory_is_a_507(platform: Platform, tmp_path: Path, source: str) -> None:
    reply = platform.load("large", put(tmp_path, source))
    assert (reply.status_code, reply.json()["type"]) == (507, "InsufficientMemoryException")
    assert platform.names() == ([], None)


def test_files_larger_than_the_memory_are_not_even_tried(platform: Platform, tmp_path: Path) -> None:
    url = put(tmp_path, "def model_fn(model_dir): raise AssertionError('it was tried')")
    with (tmp_path / "model" / "weights.bin").open("wb") as weights:
        weights.truncate(1 << 42)
    reply = platform.load("huge", url)
    assert reply.status_code == 507
    assert "bytes of memory are free" in reply.json()["message"]


def test_a_model_over_the_limit_is_let_go_again_and_the_platform_makes_room(start: Start, tmp_path: Path) -> None:
    holds = "def model_fn(model_dir): return bytearray(b'x' * (150 << 20))\n"
    holds += "def transform_fn(model, body, content_type, accept): return str(len(model))"
    limit = str(300 << 20)
    platform = Platform(start(None, SAGEMAKER_MULTI_MODEL="true", WINDLASS_MULTI_MODEL_MEMORY_BYTES=limit).ready())
    first, second = put(tmp_path / "first", holds), put(tmp_path / "second", holds)
    assert platform.load("first", first).status_code == 200
    assert platform.load("second", second).status_code == 507
    assert platform.names() == (["first"], None)

    platform.unload("first")
    assert platform.load("second", second).status_code == 200
    assert platform.invoke("second").text == str(150 << 20)


def test_an_unload_lets_what_runs_end(platform: Platform, tmp_path: Path) -> None:
    url = put(tmp_path, GATED)
    os.mkfifo(tmp_path / "model" / "gate")
    platform.load("busy", url)
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(platform.invoke, "busy")
        with (tmp_path / "model" / "gate").open("w") as gate:
            unloaded = threads.submit(platform.unload, "busy")
            while platform.client.get("/models/busy").status_code == 200:
                pass
            assert platform.invoke("busy").status_code == 404
            assert not unloaded.done()
            gate.write("done")
        assert answer.result(DEADLINE_SECONDS).text == "done"
        assert unloaded.result(DEADLINE_SECONDS).status_code == 200


def test_a_load_that_does_not_end_can_be_given_up(platform: Platform, tmp_path: Path) -> None:
    url = put(tmp_path, "def model_fn(model_dir):\n    with open(model_dir + '/gate') as gate: return gate.read()")
    os.mkfifo(tmp_path / "model" / "gate")
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(platform.load, "stuck", url)
        with (tmp_path / "model" / "gate").open("w"):
            assert platform.load("stuck", url).status_code == 409
            assert platform.client.get("/models/stuck").status_code == 404
            assert platform.unload("stuck").status_code == 200
            gave_up = loading.result(DEADLINE_SECONDS)
    assert gave_up.status_code == 500
    assert "unloaded while it loaded" in gave_up.json()["message"]


def test_two_loads_of_one_name_at_once_are_one(platform: Platform, tmp_path: Path) -> None:
    url = put(tmp_path, WHO, helper="NAME = 'x'")
    together = threading.Barrier(4)

    def load(_: int) -> int:
        together.wait(DEADLINE_SECONDS)
        return platform.load("raced", url).status_code

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(load, range(4))) == [200, 409, 409, 409]
    platform.unload("raced")


def test_a_model_whose_process_dies_is_replaced_and_the_others_never_notice(platform: Platform, tmp_path: Path) -> None:
    dies = "import os\ndef model_fn(model_dir): return None\n"
    dies += "def transform_fn(model, body, content_type, accept): return os._exit(3) if 'die' in body else body"
    platform.load("dies", put(tmp_path / "dies", dies))
    platform.load("lives", put(tmp_path / "lives", WHO, helper="NAME = 'x'"))
    died = platform.invoke("dies", b"die")
    assert died.status_code == 500
    assert "exit code 3" in died.text
    assert platform.invoke("lives").status_code == 200
    platform.server.event("worker ready")
    assert platform.invoke("dies").text == "[1]"
    platform.unload("dies")
    platform.unload("lives")


def test_sigterm_ends_all_models(start: Start, tmp_path: Path) -> None:
    platform = Platform(start(None, SAGEMAKER_MULTI_MODEL="true").ready())
    stuck = put(tmp_path / "stuck", "def model_fn(model_dir):\n    with open(model_dir + '/gate') as gate: pass")
    os.mkfifo(tmp_path / "stuck" / "model" / "gate")
    platform.load("loaded", put(tmp_path / "loaded", WHO, helper="NAME = 'x'"))
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(platform.load, "stuck", stuck)
        with (tmp_path / "stuck" / "model" / "gate").open("w"):
            platform.server.process.send_signal(signal.SIGTERM)
            code, _ = platform.server.exit()
        reply = loading.exception(DEADLINE_SECONDS) or loading.result()
    assert code == 0
    assert isinstance(reply, httpx.HTTPError) or reply.status_code == 500
