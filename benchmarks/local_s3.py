"""1 GiB up to the local cloud's S3 and down again, against a plain moto server.

    python -m benchmarks.local_s3

The client does as little as a client can: requests that were signed beforehand, and the kernel's own copy of a file into a
connection. boto3's hashing and copying would be most of the time, and it is the servers that are compared. SDKs send and
fetch what is large in parts, several at a time; so do the rows that say so.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from benchmarks.harness import Row, compare, main
from windlass.local import LocalCloud

PART = 8 << 20
"""The part size of boto3's transfers."""

CONNECTIONS = 4
BUCKET = "benchmark"
LIMIT_MIB = 300.0


def measure(quick: bool) -> list[Row]:
    size = (128 if quick else 1024) << 20
    name = f"{size >> 20} MiB"
    with tempfile.TemporaryDirectory() as folder, plain_moto() as plain, local_cloud(Path(folder)) as local:
        source = Path(folder) / "source"
        with source.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        ours, peer = Client(local.url, source), Client(plain, source)
        rows = [
            compare(
                f"{name} {what}",
                getattr(ours, method),
                getattr(peer, method),
                peer_name="moto server",
                unit="MiB/s",
                bound=bound,
                rounds=1,
            )
            for what, method, bound in (
                (f"up, in parts of {PART >> 20} MiB", "upload", ">= 2"),
                (f"down, in ranges of {PART >> 20} MiB", "download", ">= 5"),
                ("up, one PUT", "put", ">= 2"),
                ("down, one GET", "get", ">= 1"),
            )
        ]
        peak = peak_memory(local.pid)
        return [*rows, Row("server's memory, at most", peak, LIMIT_MIB, "the limit", "MiB", "<= 1")]


class Client:
    """One server's S3, through requests that were signed beforehand. The methods return MiB/s."""

    def __init__(self, url: str, source: Path) -> None:
        self._s3 = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="benchmark",
            aws_secret_access_key="benchmark",
            config=Config(request_checksum_calculation="when_required", response_checksum_validation="when_required"),
        )
        self._s3.create_bucket(Bucket=BUCKET)
        self._source, self._size = source, source.stat().st_size

    def put(self) -> float:
        return self._timed(lambda: self._send(self._sign("put_object", Key="whole"), 0, self._size))

    def get(self) -> float:
        return self._timed(lambda: self._receive(self._sign("get_object", Key="whole"), 0, self._size))

    def upload(self) -> float:
        return self._timed(self._upload)

    def download(self) -> float:
        url = self._sign("get_object", Key="parts")
        return self._timed(lambda: self._in_parallel(lambda start, size: self._receive(url, start, size)))

    def _upload(self) -> None:
        upload = {"Key": "parts", "UploadId": self._s3.create_multipart_upload(Bucket=BUCKET, Key="parts")["UploadId"]}

        def send(start: int, size: int) -> dict[str, Any]:
            number = start // PART + 1
            return {
                "PartNumber": number,
                "ETag": self._send(self._sign("upload_part", PartNumber=number, **upload), start, size),
            }

        parts = self._in_parallel(send)
        self._s3.complete_multipart_upload(Bucket=BUCKET, MultipartUpload={"Parts": parts}, **upload)

    def _in_parallel(self, work: Callable[[int, int], Any]) -> list[Any]:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(lambda start: work(start, min(PART, self._size - start)), range(0, self._size, PART)))

    def _sign(self, operation: str, **params: Any) -> str:
        return str(self._s3.generate_presigned_url(operation, Params={"Bucket": BUCKET, **params}))

    def _send(self, url: str, start: int, size: int) -> str:
        """PUT a part of the source. Returns the ETag."""
        with self._request("PUT", url, f"Content-Length: {size}") as connection:
            with self._source.open("rb") as file:
                connection.sendfile(file, start, size)
            return str(_answer(connection, "PUT", 200).headers["ETag"])

    def _receive(self, url: str, start: int, size: int) -> None:
        whole = size == self._size
        ranged = "" if whole else f"Range: bytes={start}-{start + size - 1}"
        with self._request("GET", url, ranged) as connection:
            answer = _answer(connection, "GET", 200 if whole else 206)
            buffer, received = bytearray(1 << 20), 0
            while received < size and (count := answer.readinto(buffer)):
                received += count
            if received != size:
                sys.exit(f"GET {url} ended after {received} of {size} bytes")

    @contextlib.contextmanager
    def _request(self, method: str, url: str, header: str) -> Iterator[socket.socket]:
        at = urlsplit(url)
        with socket.create_connection((str(at.hostname), int(at.port or 80))) as connection:
            lines = [f"{method} {at.path}?{at.query} HTTP/1.1", f"Host: {at.netloc}", "Connection: close", header]
            connection.sendall("\r\n".join([*filter(None, lines), "", ""]).encode())
            yield connection

    def _timed(self, work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        return (self._size >> 20) / (time.perf_counter() - start)


def _answer(connection: socket.socket, method: str, status: int) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(connection, method=method)
    answer.begin()
    if answer.status != status:
        sys.exit(f"{method} was answered with {answer.status}: {answer.read(2000)!r}")
    return answer


@contextlib.contextmanager
def local_cloud(folder: Path) -> Iterator[LocalCloud]:
    with LocalCloud.up(folder / "cloud", lifeline=True) as cloud:
        yield cloud


@contextlib.contextmanager
def plain_moto() -> Iterator[str]:
    """The URL of a moto server as it is."""
    command = [
        sys.executable,
        "-c",
        "import sys; from moto.server import main; main(sys.argv[1:])",
        "-H",
        "127.0.0.1",
        "-p",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", line):
                    # What it logs for each request must go somewhere.
                    with ThreadPoolExecutor(1) as pool:
                        pool.submit(process.stderr.read)
                        try:
                            yield found[1]
                        finally:
                            process.terminate()
                    return
            sys.exit("moto's server did not start")
        finally:
            process.terminate()


def peak_memory(pid: int) -> float:
    """MiB of memory that process has held at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    if found is None:
        sys.exit("This benchmark reads /proc, which only Linux has")
    return int(found[1]) / 1024


if __name__ == "__main__":
    sys.exit(main("local_s3", measure, packages=["windlass", "moto", "werkzeug"]))
