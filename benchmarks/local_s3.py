"""1 GiB up to the local cloud's S3 and down again, against a plain moto server.

    python -m benchmarks.local_s3

The client of the first rows does as little as a client can: requests that were signed beforehand, and the kernel's own copy of
a file into a connection. So it is the servers that are compared. SDKs send and fetch what is large in parts, several at a time;
the rows that do so stand for "PUT and GET at least 5 times as fast".

What cannot be 5 times as fast, and why:

- One PUT of the whole. Its answer has the MD5 of the body as ETag, and MD5 takes one core 1.2 s for a GiB, in any order of
  work: about 5 times moto at the very best. Here it runs beside receiving and writing, which takes hardly longer.
- One GET of the whole. moto sends it from memory at the speed of the client's own copying; so do we, from the file.
- What boto3 makes of the same (the last rows, as a user would call it): on few cores its own hashing and copying are most of
  the time. Only a download in ranges is so slow in moto, which reads the whole object for each, that it shows all the same.
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
        ours, peer = Client(local.url, source), Client(plain, source, sample=1 if quick else 8)
        rows = [
            compare(
                f"{name} {what}",
                getattr(ours, method),
                getattr(peer, method),
                peer_name="moto server",
                unit="MiB/s",
                bound=bound,
                rounds=3 if method == "upload" and not quick else 1,  # the disk's own work shows most there
            )
            for what, method, bound in (
                # moto slows down with size
                (f"up, in parts of {PART >> 20} MiB", "upload", ">= 2" if quick else ">= 5"),
                (f"down, in ranges of {PART >> 20} MiB", "download", ">= 5"),
                ("up, one PUT", "put", ">= 1" if quick else ">= 2"),
                ("down, one GET", "get", ">= 1"),
                ("boto3 upload_file", "upload_file", ">= 1"),
                ("boto3 download_file", "download_file", ">= 5"),
                ("boto3 put_object", "put_object", ">= 1"),
                ("boto3 get_object", "get_object", ">= 1"),
            )
        ]
        peak = peak_memory(local.pid)
        return [*rows, Row("server's memory, at most", peak, LIMIT_MIB, "the limit", "MiB", "<= 1")]


class Client:
    """One server's S3, through requests that were signed beforehand, and through boto3. The methods return MiB/s.

    Args:
        sample: of the ranges of a download, every so many-th is fetched: each takes moto as long as the whole object.
    """

    def __init__(self, url: str, source: Path, *, sample: int = 1) -> None:
        self._boto3, self._signer = _client(url), _client(url, Config(request_checksum_calculation="when_required"))
        self._boto3.create_bucket(Bucket=BUCKET)
        self._source, self._size, self._sample = source, source.stat().st_size, sample

    def put(self) -> float:
        return self._timed(lambda: self._send(self._sign("put_object", Key="whole"), 0, self._size))

    def get(self) -> float:
        return self._timed(lambda: self._receive(self._sign("get_object", Key="whole"), 0, self._size))

    def upload(self) -> float:
        return self._timed(self._upload)

    def download(self) -> float:
        url = self._sign("get_object", Key="parts")

        def fetch() -> None:
            self._in_parallel(lambda start, size: self._receive(url, start, size), self._sample)

        return self._timed(fetch) / self._sample

    def upload_file(self) -> float:
        return self._timed(lambda: self._boto3.upload_file(str(self._source), BUCKET, "boto3"))

    def download_file(self) -> float:
        """In a quarter of the size: that is to moto's advantage, and moto would take minutes for the whole."""
        quarter = self._source.with_name("quarter")
        with self._source.open("rb") as file:
            quarter.write_bytes(file.read(self._size // 4))
        self._boto3.upload_file(str(quarter), BUCKET, "quarter")
        try:
            return self._timed(lambda: self._boto3.download_file(BUCKET, "quarter", str(quarter))) / 4
        finally:
            quarter.unlink()

    def put_object(self) -> float:
        with self._source.open("rb") as file:
            return self._timed(lambda: self._boto3.put_object(Bucket=BUCKET, Key="whole", Body=file))

    def get_object(self) -> float:
        def read() -> None:
            for _ in self._boto3.get_object(Bucket=BUCKET, Key="whole")["Body"].iter_chunks(1 << 20):
                pass

        return self._timed(read)

    def _upload(self) -> None:
        upload = {
            "Key": "parts",
            "UploadId": self._boto3.create_multipart_upload(Bucket=BUCKET, Key="parts")["UploadId"],
        }

        def send(start: int, size: int) -> dict[str, Any]:
            number = start // PART + 1
            return {
                "PartNumber": number,
                "ETag": self._send(self._sign("upload_part", PartNumber=number, **upload), start, size),
            }

        parts = self._in_parallel(send)
        self._boto3.complete_multipart_upload(Bucket=BUCKET, MultipartUpload={"Parts": parts}, **upload)

    def _in_parallel(self, work: Callable[[int, int], Any], sample: int = 1) -> list[Any]:
        starts = range(0, self._size, PART * sample)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(lambda start: work(start, min(PART, self._size - start)), starts))

    def _sign(self, operation: str, **params: Any) -> str:
        return str(self._signer.generate_presigned_url(operation, Params={"Bucket": BUCKET, **params}))

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
        os.sync()  # what was written before is not for this to pay
        start = time.perf_counter()
        work()
        return (self._size >> 20) / (time.perf_counter() - start)


def _client(url: str, config: Config | None = None) -> Any:
    keys = {"aws_access_key_id": "benchmark", "aws_secret_access_key": "benchmark"}
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config, **keys)


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
