"""What callers get wrong, on the wire of a server that was really started: one clear 4xx each, and the server goes on."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.runtime.serving import DEADLINE_SECONDS, Server, Start

JSON, CSV, NPY, NPZ = "application/json", "text/csv", "application/x-npy", "application/x-npz"
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch"]}],
}
SUM = """
    def model_fn(model_dir): return None
    def predict_fn(x, model): return {"y": x.sum(axis=1)}
"""


@pytest.fixture(scope="module")
def server(start: Start) -> Iterator[Server]:
    def manifest(folder: Path) -> None:
        (folder / "windlass.json").write_text(json.dumps({"format": 1, "files": {}, "signature": SIGNATURE}))

    running = start(SUM, before=manifest, WINDLASS_STALLED_SECONDS="1", SAGEMAKER_MODEL_SERVER_TIMEOUT="4").ready()
    yield running
    running.process.terminate()
    code, stderr = running.exit()
    # Not one of them was a fault of the model's, or killed a worker.
    assert code == 0
    assert {json.loads(line)["event"] for line in stderr.splitlines()} <= {"server"}
    assert "worker died" not in {line.get("event") for line in running.lines()}


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def archive(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return stream.getvalue()


def encrypted(packed: bytes) -> bytes:
    """With the flag set that says so."""
    changed, directory = bytearray(packed), packed.find(b"PK\x01\x02")
    changed[6] |= 1
    changed[directory + 8] |= 1
    return bytes(changed)


ROW = npy(np.zeros((1, 3), np.float32))

BODIES: dict[str, tuple[bytes, str, int, str]] = {
    "empty": (b"", JSON, 400, "malformed JSON: the body is empty"),
    "gzip that nobody spoke of": (gzip.compress(b"[[1, 2, 3]]", mtime=0), JSON, 400, "say Content-Encoding: gzip"),
    "a name twice": (b'{"x": [[1, 2, 3]], "x": [[4, 5, 6]]}', JSON, 400, "'x' comes twice in one object"),
    "a name twice, deeper": (b'[{"a": 1, "a": 2}]', JSON, 400, "'a' comes twice"),
    "boolean among numbers": (b"[[1, true, 3]]", JSON, 400, "input 'x': true came at [0, 1], float32 is expected"),
    "objects in objects": (b'{"a":' * 100_000, JSON, 400, "nested too deeply"),
    "lists in lists": (b"[" * 90_000 + b"]" * 90_000, JSON, 400, "nested too deeply"),
    "five million brackets": (b"[" * 5_000_000, JSON, 400, "nested too deeply"),
    "a number of 100,000 digits": (b"[[" + b"9" * 100_000 + b",1,2]]", JSON, 400, "limit (4300 digits)"),
    "a number of 30 digits": (b"[[" + b"9" * 30 + b",1,2]]", JSON, 400, "other than 64-bit numbers"),
    "too large a number": (b"[[1e999,1,2]]", JSON, 400, "larger than 64-bit"),
    "NaN": (b"[[NaN, 1, 2]]", JSON, 400, "NaN is not a JSON value"),
    "half a surrogate pair": (b'{"\\udfff": 1}', JSON, 400, "unknown input"),
    "UTF-16": ("[[1,2,3]]".encode("utf-16"), JSON, 400, "is not utf-8"),
    "byte order mark": (b"\xef\xbb\xbf[[1,2,3]]", JSON, 400, "BOM"),
    "NUL": (b"\0\0\0", JSON, 400, "malformed JSON"),
    "something after the end": (b"[[1,2,3]] x", JSON, 400, "Extra data"),
    "a charset that is none": (b"[[1,2,3]]", f"{JSON}; charset={'k' * 5000}", 415, "unknown charset"),
    "a charset that is no text": (b"[[1,2,3]]", f"{JSON}; charset=zlib", 415, "unknown charset 'zlib'"),
    "two content types": (b"[[1,2,3]]", f"{JSON}, {CSV}", 415, "is not supported"),
    "a form": (b"x", "multipart/form-data; boundary=x", 415, "is not supported"),
    "ragged rows": (b"1,2,3\n4,5\n", CSV, 400, "the number of columns changed from 3 to 2 at row 2."),
    "NUL in CSV": (b"1,\x00,3", CSV, 400, "could not convert"),
    "a quote that does not end": (b'"1,2,3', CSV, 400, "malformed CSV"),
    "a header": (b"a;b,c,d\n1,2,3", CSV, 400, "could not convert string 'a;b'"),
    "too large a number in CSV": (b"1e999,1,2", CSV, 400, "larger than 64-bit"),
    "no lines": (b"\n\n", "application/jsonlines", 400, "the body is empty"),
    "half a line": (b"[1,2,3]\n{", "application/jsonlines", 400, "in line 2"),
    "a pickle": (pickle.dumps(print), NPY, 400, "malformed NPY"),
    "a pickle in NPY": (npy(np.array([{}], dtype=object)), NPY, 400, "Pickles are never loaded"),
    "a pickle in NPZ": (archive(("x.npy", npy(np.array([{}], dtype=object)))), NPZ, 400, "Pickles are never loaded"),
    "half an array": (ROW[:-2], NPY, 400, "is 12 bytes, 10 came"),
    "another dtype": (npy(np.zeros((1, 3))), NPY, 400, "dtype float64 came, float32 is expected"),
    "no archive": (b"PK\x03\x04", NPZ, 400, "malformed NPZ"),
    "an archive that grows": (archive(("x.npy", bytes(300_000_000))), NPZ, 413, "unpacks to more than"),
    "50,000 members": (archive(*((f"m{n}.npy", b"") for n in range(50_000))), NPZ, 400, "in NPZ member 'm0'"),
    "a path that climbs": (archive(("../../x.npy", ROW)), NPZ, 400, "unknown input '../../x'"),
    "an encrypted archive": (encrypted(archive(("x.npy", ROW))), NPZ, 400, "malformed NPZ"),
    "octets that make no row": (bytes(13), "application/octet-stream", 400, "a multiple of 12 bytes"),
    "no Parquet": (b"PAR1garbagePAR1", PARQUET, 400, "malformed Parquet"),
    "no Arrow": (b"\xff\xff\xff\xff\xf0\xff\xff\x7f", ARROW, 400, "malformed Arrow"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "image/png", 415, "takes no pictures"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_one_clear_refusal(server: Server, name: str) -> None:
    body, content_type, status, says = BODIES[name]

    reply = server.invoke(body, content_type=content_type)

    assert (reply.status_code, says in reply.text) == (status, True), reply.text
    assert len(reply.text) < 1000
    assert server.invoke(b"[[1, 2, 3]]").json() == {"y": [6]}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice_is_refused(server: Server) -> None:
    reply = server.invoke(archive(("x.npy", ROW), ("x.npy", ROW)), content_type=NPZ)

    assert (reply.status_code, reply.text) == (400, "malformed NPZ: 'x' is in it twice.\n")


@pytest.mark.parametrize(
    ("encoding", "body", "status", "says"),
    [
        ("gzip", b"nope", 400, "malformed gzip"),
        ("gzip", gzip.compress(b"[[1,2,3]]")[:-3], 400, "cut off"),
        ("gzip", gzip.compress(b" " * 300_000_000, 1), 413, "unpacks to more than"),
        ("gzip, gzip", gzip.compress(b"[[1,2,3]]"), 415, "not supported"),
        ("br", b"x", 415, "not supported"),
        ("x" * 5000, b"x", 415, "not supported"),
    ],
    ids=["no gzip", "cut off", "bomb", "twice", "brotli", "long"],
)
def test_a_bad_encoding_is_one_clear_refusal(
    server: Server, encoding: str, body: bytes, status: int, says: str
) -> None:
    reply = server.invoke(body, content_encoding=encoding)

    assert (reply.status_code, says in reply.text) == (status, True), reply.text
    assert len(reply.text) < 1000


def test_a_hundred_megabytes_are_refused_in_little_memory(server: Server) -> None:
    large = b"[" + b"1," * 50_000_000 + b"1]"

    declared = server.invoke(large)
    chunked = server.invoke(large[at : at + 65536] for at in range(0, len(large), 65536))

    assert (declared.status_code, chunked.status_code) == (413, 413)
    peak = next(
        line for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    assert int(peak.split()[1]) < 150_000  # KiB


# --- what is no proper HTTP

POST = b"POST /invocations HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
GET = b"GET /ping HTTP/1.1\r\nhost: a\r\n"
BODY = b"content-length: 9\r\n\r\n[[1,2,3]]"

REQUESTS: dict[str, tuple[bytes, int]] = {
    "a length that is no number": (POST + b"content-length: abc\r\n\r\n[]", 400),
    "a negative length": (POST + b"content-length: -5\r\n\r\n[]", 400),
    "a length of 23 digits": (POST + b"content-length: 99999999999999999999999\r\n\r\n", 400),
    "two lengths": (POST + b"content-length: 3\r\n" + BODY, 400),
    "a length and chunks": (POST + b"transfer-encoding: chunked\r\n" + BODY, 400),
    "an unknown transfer encoding": (POST + b"transfer-encoding: xchunked\r\n" + BODY, 400),
    "a chunk of no size": (POST + b"transfer-encoding: chunked\r\n\r\nZZZ\r\n", 400),
    "a chunk of 2^72 bytes": (POST + b"transfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n", 400),
    "another version": (b"GET /ping HTTP/9.9\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "NUL in a header": (GET + b"x: a\0b\r\n\r\n", 400),
    "a space in a header's name": (GET + b"x y: 1\r\n\r\n", 400),
    "a header of two lines": (GET + b"x: 1\r\n  2\r\n\r\n", 400),
    "a path that is not ASCII": (b"GET /p\xc3\xa9 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "a path that is quoted badly": (b"GET /%zz HTTP/1.1\r\nhost: a\r\n\r\n", 404),
    "a method of its own": (b"BREW /ping HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "a content type that is not ASCII": (
        b"POST /invocations HTTP/1.1\r\nhost: a\r\ncontent-type: \xff\r\n" + BODY,
        415,
    ),
    "an Accept that is not ASCII": (POST + b"accept: \xff\xfe\r\n" + BODY, 406),
    "two content types": (POST + b"content-type: text/csv\r\n" + BODY, 400),
    "two inference ids": (
        POST + b"".join(b"x-amzn-sagemaker-inference-id: %d\r\n" % n for n in range(2)) + BODY,
        400,
    ),
    "a transfer encoding before the chunks": (
        POST + b"transfer-encoding: gzip, chunked\r\n\r\n9\r\n[[1,2,3]]\r\n0\r\n\r\n",
        400,
    ),
    "a deadline that is no number": (POST + b"x-windlass-timeout-ms: -1\r\n" + BODY, 400),
    "a head that never ends": (GET + b"x: " + b"a" * 3_000_000, 431),
    "headers that never end": (GET + b"".join(b"x: %s\r\n" % (b"a" * 60_000) for _ in range(50)), 431),
    "a body that stops": (POST + b"content-length: 9\r\n\r\n[[1", 408),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_bad_request_is_refused_and_the_next_served(server: Server, name: str) -> None:
    data, status = REQUESTS[name]

    assert first_line(server, data).startswith(b"HTTP/1.1 %d " % status)
    assert server.client.get("/ping").status_code == 200


def first_line(server: Server, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_SECONDS) as raw:
        answer = b""
        try:
            raw.sendall(data)
        except ConnectionError:  # it hung up in the middle, and what it had said is lost with that
            return b"HTTP/1.1 431 "
        while b"\r\n" not in answer and (part := raw.recv(4096)):
            answer += part
    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"POST /invocations HTTP/1.0\r\ncontent-type: application/json\r\n",
        POST + b"content-type: application/json\r\n",  # twice the same
        POST + b"accept: text/html\r\naccept: application/json\r\n",
        POST + b"x: " + b"a" * 300_000 + b"\r\n",
        POST + b"expect: 100-nothing\r\n",
        b"\r\n" + POST,
    ],
    ids=["HTTP/1.0", "a header twice", "two Accepts", "much of a header", "an unknown Expect", "an empty line before"],
)
def test_what_is_odd_but_right_is_served(server: Server, head: bytes) -> None:
    assert first_line(server, head + BODY).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    bad, ping = POST + b"content-length: 1\r\n\r\n[", GET + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_SECONDS) as raw:
        raw.sendall((POST + BODY) * 2 + bad + ping + POST + b"connection: close\r\n" + BODY)
        answers = b""
        while part := raw.recv(65536):
            answers += part
    statuses = [answer[:3] for answer in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"400", b"200", b"200"]


def test_half_a_head_is_not_waited_for(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_SECONDS) as raw:
        raw.sendall(b"POST /invoc")
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(100) == b""
    server.event("stalled")


def test_ids_of_any_bytes_come_back_in_the_log_as_they_were(server: Server) -> None:
    ids = b'X-Amzn-SageMaker-Inference-Id: \xe9"\\\r\nX-Amzn-RequestId: \xff"}\r\n'

    assert first_line(server, POST + ids + BODY).startswith(b"HTTP/1.1 200 ")
    assert server.event("request", inference_id='é"\\')["request_id"] == 'ÿ"}'


@pytest.mark.parametrize(
    "accept",
    ["text/html", "application/json;q=0", "*/*;q=0", "application/json;q=much", ",,,", "a" * 5000, "image/png"],
)
def test_an_accept_that_nothing_fits_is_a_406(server: Server, accept: str) -> None:
    reply = server.invoke(b"[[1, 2, 3]]", accept=accept)

    assert reply.status_code == 406
    assert len(reply.text) < 1000
