"""The model server as SageMaker sees it: a process, its port, its exit code and its output."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import httpx
import pytest

from tests.unit.runtime.serving import DEADLINE_SECONDS, Server, Start
from windlass.runtime import server
from windlass.runtime.settings import BadSetting, Settings

ECHO = """
    def model_fn(model_dir): return None
    def transform_fn(model, body, content_type, accept): return body
"""
# Answers only when the test has opened the other end of a pipe, so that the test decides how long a prediction takes.
GATED = """
    def model_fn(model_dir): return model_dir + "/gate"
    def transform_fn(model, body, content_type, accept):
        with open(model) as gate:
            return gate.read()
"""


@pytest.fixture(scope="module")
def echo(start: Start) -> Server:
    return start(ECHO, WINDLASS_MAX_PAYLOAD_BYTES="1000").ready()


# --- routes


def test_ping_and_invocations(echo: Server) -> None:
    assert echo.client.get("/ping").status_code == 200
    reply = echo.invoke(b'{"a": 1}')
    assert (reply.status_code, reply.content, reply.headers["content-type"]) == (200, b'{"a": 1}', "application/json")


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("POST", "/ping", 405, "GET"),
        ("GET", "/invocations", 405, "POST"),
        ("DELETE", "/invocations", 405, "POST"),
        ("GET", "/", 404, None),
        ("POST", "/invocations/", 404, None),
        ("GET", "/models", 404, None),
    ],
)
def test_other_methods_and_paths(echo: Server, method: str, path: str, status: int, allow: str | None) -> None:
    reply = echo.client.request(method, path)
    assert (reply.status_code, reply.headers.get("allow")) == (status, allow)
    assert reply.text


def test_payload_limit_by_length_and_by_count(echo: Server) -> None:
    assert echo.invoke(bytes(b"1" * 1000)).status_code == 200
    declared = echo.invoke(b"1" * 1001)
    chunked = echo.invoke(iter([b"1" * 600, b"1" * 600]))
    assert (declared.status_code, chunked.status_code) == (413, 413)
    assert "the limit is 1000" in declared.text
    assert "the limit is 1000" in chunked.text
    large = echo.invoke(bytes(10_000_000))
    assert large.status_code == 413
    assert echo.client.get("/ping").status_code == 200


def test_what_is_not_http_is_a_400(echo: Server) -> None:
    with socket.create_connection(("127.0.0.1", echo.port), DEADLINE_SECONDS) as raw:
        raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def test_a_caller_that_hangs_up_is_only_logged(echo: Server) -> None:
    with socket.create_connection(("127.0.0.1", echo.port), DEADLINE_SECONDS) as raw:
        raw.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
    assert echo.event("request", status=499)["path"] == "/invocations"
    assert echo.invoke().status_code == 200


def test_each_request_is_one_line(echo: Server) -> None:
    echo.invoke(x_amzn_sagemaker_inference_id="abc-1")
    line = echo.event("request", inference_id="abc-1")
    assert (line["method"], line["path"], line["status"]) == ("POST", "/invocations", 200)
    assert line["ms"] >= line["model_ms"] >= 0
    assert line["queue_ms"] >= 0


def test_nothing_heavy_is_imported_for_an_echo(start: Start) -> None:
    running = start("""
        import sys
        def model_fn(model_dir): return None
        def transform_fn(model, body, content_type, accept):
            heavy = ("numpy", "torch", "pydantic", "boto3", "windlass.artifact", "rich")
            return ",".join(name for name in heavy if name in sys.modules)
    """).ready()
    assert running.invoke().text == ""


# --- the hooks, over HTTP


def test_errors_of_callers_and_models(start: Start) -> None:
    running = start("""
        def model_fn(model_dir): return None
        def predict_fn(data, model):
            return {"mean": float(data.mean() / data.any())}
    """).ready()
    assert running.invoke(b"[1, 3]").json() == {"mean": 2.0}
    assert running.invoke(b"[1,").status_code == 400
    assert running.invoke(b"[1]", content_type="audio/ogg").status_code == 415
    assert running.invoke(b"[1]", accept="audio/ogg").status_code == 406
    failed = running.invoke(b'{"a": 1}', x_amzn_sagemaker_inference_id="bad-1")
    assert failed.status_code == 500
    assert failed.text.startswith("AttributeError: 'dict' object has no attribute 'mean'")
    assert 'inference.py", line 4, in predict_fn' in failed.text
    assert running.event("request", inference_id="bad-1")["status"] == 500
    running.process.terminate()
    _, stderr = running.exit()
    fault = json.loads(stderr)
    assert (fault["event"], fault["inference_id"]) == ("invocation failed", "bad-1")
    assert "AttributeError" in fault["error"]


# --- loading


def test_ping_says_no_until_the_model_is_loaded(start: Start) -> None:
    running = start("""
        def model_fn(model_dir):
            with open(model_dir + "/gate") as gate:
                return gate.read()
        def transform_fn(model, body, content_type, accept): return model
    """).listen()
    with running.open_gate() as gate:
        ping, invoked = running.client.get("/ping"), running.invoke()
        assert (ping.status_code, invoked.status_code) == (503, 503)
        assert "the model is loading" in ping.text
        assert int(invoked.headers["retry-after"]) >= 1
        gate.write("weights")
    running.event("ready")
    assert running.client.get("/ping").status_code == 200
    assert running.invoke().text == "weights"


def test_a_model_fn_that_raises_ends_the_process_with_the_users_traceback(start: Start) -> None:
    running = start("""
        def load(path): return open(path + "/weights.bin")
        def model_fn(model_dir): return load(model_dir)
    """)
    code, stderr = running.exit()
    assert code == 1
    assert stderr.startswith("Traceback (most recent call last):\n")
    assert "in model_fn" in stderr
    assert "in load" in stderr
    assert stderr.rstrip().splitlines()[-1].startswith("FileNotFoundError: [Errno 2] No such file")
    assert stderr.count('  File "') == 2


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (None, "no inference.py in "),
        ("import nonsense_that_is_not_there", "ModuleNotFoundError: No module named 'nonsense_that_is_not_there'"),
        ("def model_fn(model_dir): raise SystemExit(0)", "SystemExit: 0"),
        ("x = 1", "inference.py defines no model_fn"),
    ],
)
def test_what_cannot_be_loaded_ends_the_process_with_the_reason(start: Start, source: str | None, says: str) -> None:
    code, stderr = start(source).exit()
    assert code == 1
    assert says in stderr
    assert "windlass" not in stderr


def test_the_program_and_its_folder_come_from_the_environment(start: Start, tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text(dedent(ECHO))
    running = start(None, SAGEMAKER_PROGRAM="serve.py", SAGEMAKER_SUBMIT_DIRECTORY=str(tmp_path)).ready()
    assert running.invoke(b"hello").text == "hello"


# --- overload


def test_ping_answers_and_the_queue_ends_while_the_model_works(start: Start) -> None:
    running = start(GATED, WINDLASS_QUEUE_SIZE="0").ready()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.invoke)
        with running.open_gate() as gate:
            refused = running.invoke()
            assert running.client.get("/ping").status_code == 200
            gate.write("done")
        assert first.result(DEADLINE_SECONDS).text == "done"
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "queue is full" in refused.text


def test_several_workers_predict_at_once(start: Start, tmp_path: Path) -> None:
    here, door = tmp_path / "here", tmp_path / "door"
    os.mkfifo(here)
    running = start(
        f"""
        import fcntl, os
        def model_fn(model_dir): return None
        def transform_fn(model, body, content_type, accept):
            with open("{here}", "w") as here:
                here.write(str(os.getpid()) + " ")
            with open("{door}") as door:
                fcntl.flock(door, fcntl.LOCK_SH)
            return "through"
        """,
        SAGEMAKER_MODEL_SERVER_WORKERS="3",
    ).ready()
    with ThreadPoolExecutor(3) as pool, door.open("w") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        replies = [pool.submit(running.invoke) for _ in range(3)]
        inside: set[str] = set()
        while len(inside) < 3:
            inside.update(here.read_text().split())
        fcntl.flock(locked, fcntl.LOCK_UN)
        assert [reply.result(DEADLINE_SECONDS).text for reply in replies] == ["through"] * 3


def test_a_prediction_has_a_time_limit_and_so_has_a_body(start: Start) -> None:
    running = start(GATED, SAGEMAKER_MODEL_SERVER_TIMEOUT="1").ready()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(running.invoke), pool.submit(running.invoke)
        with running.open_gate():
            texts = sorted(reply.result(DEADLINE_SECONDS).text for reply in (first, second))
            assert {reply.result().status_code for reply in (first, second)} == {504}
        assert texts[0].startswith("no worker was free within 1 s")
        assert texts[1].startswith("the model did not answer within 1 s")
    with socket.create_connection(("127.0.0.1", running.port), DEADLINE_SECONDS) as raw:
        raw.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        assert raw.recv(1000).startswith(b"HTTP/1.1 408")


# --- batches, workers that fail, callers that leave

# Each request is a line of JSON: {"do": ...}. A batch says how many were in it.
MOODY = """
    import json, os, signal
    def model_fn(model_dir): return model_dir + "/gate"
    def input_fn(body, content_type): return json.loads(body)
    def predict_batch_fn(datas, model):
        for data in datas:
            if data == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if data == "wait":
                open(model).read()  # until the test closes the other end
        return [len(datas)] * len(datas)
    def output_fn(prediction, accept): return f"{prediction} {os.getpid()}"
"""


def test_what_waits_while_the_model_works_is_one_batch(start: Start) -> None:
    running = start(MOODY).ready()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(running.invoke, b'"wait"')
        with running.open_gate():
            others = [pool.submit(running.invoke, b"1") for _ in range(8)]
            running.metric("windlass_queue_length 8")
        assert first.result(DEADLINE_SECONDS).text.startswith("1 ")
        sizes = [int(other.result(DEADLINE_SECONDS).text.split()[0]) for other in others]
    # The sizer has seen batches of one only, so it goes on with two; then four.
    assert max(sizes) >= 2
    metrics = running.client.get("/metrics").text
    assert 'windlass_requests_total{status="200"} 9' in metrics
    assert "windlass_batch_size_count 9" in metrics


def test_a_request_that_kills_workers_takes_no_other_with_it(start: Start) -> None:
    running = start(MOODY).ready()
    before = running.invoke(b"1").text.split()[1]
    with ThreadPoolExecutor(9) as pool:
        running.invoke(b"1")
        first = pool.submit(running.invoke, b'"wait"')
        with running.open_gate():
            others = [pool.submit(running.invoke, b'"crash"' if n == 3 else b"1") for n in range(8)]
            running.metric("windlass_queue_length 8")
        replies = [other.result(DEADLINE_SECONDS) for other in others]
        assert first.result(DEADLINE_SECONDS).status_code == 200
    assert sorted(reply.status_code for reply in replies) == [200] * 7 + [500]
    failed = next(reply for reply in replies if reply.status_code == 500)
    assert failed.text == "the model's process ended with signal 11 (SIGSEGV) during this request.\n"
    assert running.invoke(b"1").text.split()[1] != before


def test_a_worker_that_hangs_is_replaced(start: Start) -> None:
    running = start(MOODY, SAGEMAKER_MODEL_SERVER_TIMEOUT="1").ready()
    assert running.invoke(b'"wait"').status_code == 504
    running.event("worker hung")
    running.event("worker ready")
    assert running.invoke(b"1").status_code == 200
    assert running.client.get("/ping").status_code == 200


def test_a_worker_that_does_not_come_back_makes_ping_say_so(start: Start) -> None:
    running = start("""
        import os
        def model_fn(model_dir):
            os.rename(model_dir + "/weights", model_dir + "/used")
        def transform_fn(model, body, content_type, accept): os._exit(3)
    """)
    # model_fn waits for nobody, so the file must be there before the process gets that far.
    (running.base / "model" / "weights").touch()
    running.ready()
    failed = running.invoke()
    assert failed.status_code == 500
    assert "ended with exit code 3" in failed.text
    while "FileNotFoundError" not in running.event("worker died")["error"]:
        pass
    ping = running.client.get("/ping")
    assert ping.status_code == 503
    assert "is being replaced" in ping.text


def test_a_caller_that_hangs_up_is_not_worked_for(start: Start) -> None:
    running = start(MOODY).ready()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.invoke, b'"wait"')
        with running.open_gate():
            with socket.create_connection(("127.0.0.1", running.port), DEADLINE_SECONDS) as raw:
                raw.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n1")
                running.metric("windlass_queue_length 1")
            gone = running.event("request", status=499)
        assert first.result(DEADLINE_SECONDS).status_code == 200
    assert gone["batch"] == 0


@pytest.mark.parametrize(
    "header",
    [{"x_windlass_timeout_ms": "300"}, {"x_amzn_sagemaker_custom_attributes": "trace=1, timeout-ms=300"}],
)
def test_a_caller_may_want_its_answer_sooner(start: Start, header: dict[str, str]) -> None:
    running = start(GATED).ready()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(running.invoke, b"1", **header)
        with running.open_gate():
            reply = late.result(DEADLINE_SECONDS)
    assert (reply.status_code, reply.text) == (504, "the model did not answer within 0.3 s.\n")
    assert running.invoke(x_windlass_timeout_ms="soon").status_code == 400


def test_a_status_that_there_is_not_is_the_fault_of_that_request_alone(start: Start) -> None:
    running = start("""
        def model_fn(model_dir): return None
        def transform_fn(model, body, content_type, accept, context):
            if body == "799":
                context.set_response_status(799)
            return body
    """).ready()
    assert running.invoke(b"799").status_code == 500
    assert running.invoke(b"1").text == "1"


def test_streams_come_as_they_are_made(start: Start) -> None:
    running = start("""
        def model_fn(model_dir): return model_dir + "/gate"
        def transform_fn(model, body, content_type, accept):
            def parts():
                yield "first"
                open(model).close()
                yield {"second": 2}
                if body == "[9]":
                    raise ValueError("half-way")
            return parts(), "text/event-stream"
    """).ready()
    kind = {"content-type": "application/json"}
    with running.client.stream("POST", "/invocations", content=b"[1]", headers=kind) as reply:
        assert reply.headers["content-type"] == "text/event-stream"
        parts = reply.iter_raw()
        assert next(parts) == b"first"
        running.open_gate().close()
        assert b"".join(parts) == b'{"second": 2}\n'
    with running.client.stream("POST", "/invocations", content=b"[9]", headers=kind) as broken:
        parts = broken.iter_raw()
        assert next(parts) == b"first"
        running.open_gate().close()
        with pytest.raises(httpx.RemoteProtocolError):
            list(parts)
    assert running.event("request", status=200)


def test_a_stream_whose_caller_is_gone_is_stopped(start: Start) -> None:
    running = start("""
        import itertools
        def model_fn(model_dir): return None
        def transform_fn(model, body, content_type, accept):
            return (b"x" * 1000 for _ in itertools.count()) if body == "1" else "free"
    """).ready()
    with running.client.stream(
        "POST", "/invocations", content=b"1", headers={"content-type": "application/json"}
    ) as endless:
        assert next(endless.iter_raw())
    assert running.invoke(b"2").text == "free"


def test_a_large_answer_comes_whole(start: Start) -> None:
    running = start(
        """
        def model_fn(model_dir): return None
        def transform_fn(model, body, content_type, accept): return bytes(10_000_000)
        """
    ).ready()
    assert len(running.invoke().content) == 10_000_000


# --- stopping


def test_sigterm_answers_what_runs_and_refuses_what_comes(start: Start) -> None:
    running = start(GATED).ready()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.invoke)
        with running.open_gate() as gate:
            running.process.send_signal(signal.SIGTERM)
            running.event("draining")
            ping, refused = running.client.get("/ping"), running.invoke()
            assert (ping.status_code, refused.status_code) == (503, 503)
            assert "shutting down" in ping.text
            gate.write("finished")
        assert first.result(DEADLINE_SECONDS).text == "finished"
    code, stderr = running.exit()
    assert (code, stderr) == (0, "")


def test_sigterm_under_load_loses_nothing(start: Start) -> None:
    """Each request is answered, or refused in a way that its caller may send it again elsewhere."""
    running = start(MOODY).ready()
    outcomes: list[int] = []

    def call(_: int) -> None:
        with httpx.Client(base_url=running.client.base_url, timeout=DEADLINE_SECONDS) as client:
            while True:
                try:
                    reply = client.post("/invocations", content=b"1", headers={"content-type": "application/json"})
                except httpx.ConnectError:
                    return  # it listens no more
                outcomes.append(reply.status_code)
                if reply.headers.get("connection") == "close":
                    return

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(call, n) for n in range(8)]
        for _ in range(100):
            running.event("request")
        running.process.terminate()
        for caller in callers:
            caller.result(DEADLINE_SECONDS)
    assert running.exit() == (0, "")
    assert set(outcomes) <= {200, 503}
    assert outcomes.count(503) <= 8


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once(start: Start, stop: signal.Signals) -> None:
    running = start(ECHO).ready()
    running.process.send_signal(stop)
    assert running.exit() == (0, "")


def test_a_model_that_is_still_loading_does_not_hold_up_the_end(start: Start) -> None:
    running = start("""
        def model_fn(model_dir):
            with open(model_dir + "/gate") as gate:
                return gate.read()
    """).listen()
    with running.open_gate():
        running.process.terminate()
        assert running.exit() == (0, "")


def test_what_outlasts_the_grace_is_named(start: Start) -> None:
    running = start(GATED, WINDLASS_DRAIN_SECONDS="0").ready()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.invoke)
        with running.open_gate():
            running.process.terminate()
            code, stderr = running.exit()
        assert first.result(DEADLINE_SECONDS).status_code == 503
    assert code == 1
    assert json.loads(stderr.splitlines()[0])["event"] == "abandoned"


# --- settings


def test_the_defaults_are_those_of_a_sagemaker_container() -> None:
    settings = Settings.read({})
    assert (settings.model_dir, settings.code_dir) == (Path("/opt/ml/model"), Path("/opt/ml/model/code"))
    assert (settings.host, settings.port, settings.program) == ("0.0.0.0", 8080, "inference.py")
    assert (settings.workers, settings.timeout_seconds, settings.max_payload_bytes) == (1, 60, 6 * 1024 * 1024)
    assert Settings.read({"SAGEMAKER_SUBMIT_DIRECTORY": "s3://b/sourcedir.tar.gz"}).code_dir == settings.code_dir


@pytest.mark.parametrize("value", ["eighty", "-1", "65536", "8080.0"])
def test_a_bad_setting_is_named(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadSetting, match="SAGEMAKER_BIND_TO_PORT"):
        Settings.read({"SAGEMAKER_BIND_TO_PORT": value})
    assert server.main({"SAGEMAKER_BIND_TO_PORT": value}) == 1
    assert f"SAGEMAKER_BIND_TO_PORT='{value}' is not a whole number from 0 to 65535" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(echo: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert server.main({"SAGEMAKER_BIND_TO_PORT": str(echo.port), "WINDLASS_BIND_HOST": "127.0.0.1"}) == 1
    assert f"Cannot listen on 127.0.0.1:{echo.port}: Address already in use" in capsys.readouterr().err


def test_without_uvicorn_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert server.main({}) == 1
    assert "pip install 'windlass[serve]'" in capsys.readouterr().err


# --- callers that stand still, and large ones


@pytest.fixture(scope="module")
def impatient(start: Start) -> Server:
    return start(
        "def model_fn(d): return None\ndef transform_fn(model, body, content_type, accept): return bytes(30_000_000)",
        WINDLASS_STALLED_SECONDS="1",
    ).ready()


@pytest.mark.parametrize("sent", [b"", b"POST /invocations HTTP/1.1\r\nhost: x\r\n"], ids=["nothing", "half a head"])
def test_a_connection_that_sends_no_whole_head_is_closed(impatient: Server, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port), DEADLINE_SECONDS) as raw:
        raw.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(100) == b""
    impatient.event("stalled", unsent_bytes=0)
    assert impatient.client.get("/ping").status_code == 200


def test_a_caller_that_takes_no_more_of_its_answer_is_cut_off(impatient: Server) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port), DEADLINE_SECONDS) as raw:
        raw.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n1")
        assert impatient.event("stalled")["unsent_bytes"] > 1_000_000


def test_an_idle_connection_is_kept(impatient: Server) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port), DEADLINE_SECONDS) as raw:
        raw.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", impatient.port), DEADLINE_SECONDS) as other:
            other.sendall(b"POST")
            impatient.event("stalled")  # the one beside it is closed, this one is not
        raw.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_payload_of_100_mb_is_refused_at_once_or_served_where_it_is_allowed(start: Start) -> None:
    large = bytes(100 << 20)
    refusing = start(ECHO).ready()
    with socket.create_connection(("127.0.0.1", refusing.port), DEADLINE_SECONDS) as raw:
        raw.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(large))
        assert raw.recv(100).startswith(b"HTTP/1.1 413")  # before any of the body has come
    allowing = start(ECHO, WINDLASS_MAX_PAYLOAD_BYTES=str(200 << 20)).ready()
    reply = allowing.invoke(large, content_type="application/octet-stream")
    assert (reply.status_code, len(reply.content)) == (200, len(large))


def test_ping_says_in_which_line_a_model_fn_hangs(start: Start) -> None:
    running = start("""
        def wait(path):
            with open(path) as gate:
                return gate.read()
        def model_fn(model_dir): return wait(model_dir + "/gate")
    """).listen()
    with running.open_gate():
        deadline = time.monotonic() + DEADLINE_SECONDS
        while "in model_fn, at inference.py line 4" not in (said := running.client.get("/ping").text):
            assert time.monotonic() < deadline, said
    assert said.startswith("the model is loading: in model_fn")


# --- models that give what cannot be answered


@pytest.fixture(scope="module")
def plain(start: Start) -> Server:
    return start("def model_fn(d): return None\ndef predict_fn(data, model): return data").ready()


@pytest.fixture(scope="module")
def misfits(start: Start) -> Server:
    return start("""
        VALUES = [float("nan"), {"a": [object()]}, lambda: 1, [[1], [2, 3]], {1, 2}]
        def model_fn(model_dir): return VALUES
        def input_fn(body, content_type): return int(body)
        def predict_fn(data, model): return model[data]
    """).ready()


@pytest.mark.parametrize(
    ("which", "accept", "status", "says"),
    [
        (0, "application/json", 500, "the prediction is nan, which JSON cannot hold"),
        (1, "application/json", 500, "a value of type object. Write an output_fn"),
        (2, "application/json", 500, "a value of type function"),
        (3, "application/x-npy", 406, "the prediction is no array"),
        (4, "application/json", 500, "a value of type set"),
    ],
)
def test_predictions_that_do_not_serialise(misfits: Server, which: int, accept: str, status: int, says: str) -> None:
    reply = misfits.invoke(str(which).encode(), accept=accept)
    assert reply.status_code == status
    assert says in reply.text
    assert misfits.client.get("/ping").status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n1",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /invocations HTTP/9.9\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nbad header\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
    ],
)
def test_malformed_heads_are_a_400(echo: Server, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", echo.port), DEADLINE_SECONDS) as raw:
        raw.sendall(head)
        assert raw.recv(100).startswith(b"HTTP/1.1 4")
    assert echo.invoke().status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_encoding": "br"}, 415),
        ({"content_encoding": "gzip"}, 400),
        ({"content_type": "application/json; charset=utf-7-or-so"}, 415),
        ({"accept": ";;;q=0.0.0"}, 406),
        ({"accept": "application/" + "x" * 5000}, 406),
        ({"x_windlass_timeout_ms": "soon"}, 400),
    ],
)
def test_headers_that_make_no_sense_are_refused(plain: Server, headers: dict[str, str], status: int) -> None:
    assert plain.invoke(**headers).status_code == status
