"""1 GiB up to the local cloud's S3 and down again, against a plain moto server.

    python -m benchmarks.local_s3

The client of the first rows does as little as a client can: requests that were signed beforehand, the kernel's own copy of
a file into a connection, and answers that the kernel drops as they come; what is sent is compared with the source once, before.
So it is the servers that are compared. Memory that was free for a while may belong to the hypervisor again, and costs up to 2 s
per GiB when it is touched next: before each measurement it is taken and given back, so that neither server pays for that.

The rows that stand for "PUT and GET at least 5 times as fast": an object that KMS encrypts, as all in the foundation's bucket
are, in one PUT and in parts; and ranges down. What falls short of it, and why:

- One PUT of the whole without KMS. Its answer has the MD5 of the body as ETag, and MD5 takes one core 1.2 s for a GiB, in any
  order of work, where moto takes 3.5 to 6 s for everything. Here it runs beside receiving and writing. The row of MD5 alone,
  which has no bound to keep, shows the ceiling: no server can make more of one PUT than that.
- The same in parts: the MD5s of the parts are more than half of the work, and two cores share it with the client.
- One GET of the whole. moto sends it from memory in one piece; so does the kernel here, from the file.
- What boto3 makes of the same (the last rows, as a user would call it): on few cores its own hashing and copying are most of
  the time. Only a download in ranges is so slow in moto, which reads the whole object for each, that it shows all the same:
  4.5 to 10 times, by the processor that boto3 runs on.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import socket
import statistics
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

from benchmarks.harness import Row, compare, main, touch_memory
from windlass.local import LocalCloud

PART = 8 << 20
"""The part size of boto3's transfers."""

CONNECTIONS = 4
BUCKET, KMS_BUCKET = "benchmark", "benchmark-kms"
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
        for client in (ours, peer):
            client.check()
        rows = [
            compare(
                f"{name} {what}",
                getattr(ours, method),
                getattr(peer, method),
                peer_name="moto server",
                unit="MiB/s",
                bound=bound,
                rounds=1 if quick or method in ("download", "download_file") else 3,
            )
            for what, method, bound in (
                # moto slows down with size
                ("up, one PUT, KMS", "put_kms", ">= 2" if quick else ">= 5"),
                (f"up, in parts of {PART >> 20} MiB, KMS", "upload_kms", ">= 2" if quick else ">= 5"),
                (f"down, in ranges of {PART >> 20} MiB", "download", ">= 5"),
                ("up, one PUT", "put", ">= 1" if quick else ">= 1.5"),
                (f"up, in parts of {PART >> 20} MiB", "upload", ">= 1.5" if quick else ">= 2"),
                ("down, one GET", "get", ">= 1"),
                ("boto3 upload_file", "upload_file", ">= 1"),
                ("boto3 download_file", "download_file", ">= 1" if quick else ">= 5"),
                ("boto3 put_object", "put_object", ">= 1"),
                ("boto3 get_object", "get_object", ">= 1"),
            )
        ]
        put = next(row for row in rows if row.what == f"{name} up, one PUT")
        digests = statistics.median(ours.md5() for _ in range(1 if quick else 3))
        ceiling = Row(f"{name} hashlib's MD5 of it, one core", digests, put.peer, "moto's one PUT", "MiB/s", "none")
        rows.insert(rows.index(put) + 1, ceiling)
        peak = peak_memory(local.pid)
        return [*rows, Row("server's memory, at most", peak, LIMIT_MIB, "the limit", "MiB", "<= 1")]


class Client:
    """One server's S3, through requests that were signed beforehand, and through boto3. The methods return MiB/s.

    Args:
        sample: of the ranges of a download, every so many-th is fetched: each takes moto as long as the whole object.
    """

    def __init__(self, url: str, source: Path, *, sample: int = 1) -> None:
        self._boto3, self._signer = _client(url), _client(url, Config(request_checksum_calculation="when_required"))
        for bucket in (BUCKET, KMS_BUCKET):
            self._boto3.create_bucket(Bucket=bucket)
        default = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}}
        encryption = {"Rules": [default]}
        self._boto3.put_bucket_encryption(Bucket=KMS_BUCKET, ServerSideEncryptionConfiguration=encryption)
        self._source, self._size, self._sample = source, source.stat().st_size, sample

    def check(self) -> None:
        """Stop the benchmark unless what is sent comes back; it stays for the rows that only read."""
        with self._source.open("rb") as file:
            expected = hashlib.file_digest(file, "sha256").digest()
        self.put()
        self.upload()
        for key in ("whole", "parts"):
            received = hashlib.sha256()
            for chunk in self._boto3.get_object(Bucket=BUCKET, Key=key)["Body"].iter_chunks(1 << 20):
                received.update(chunk)
            if received.digest() != expected:
                sys.exit(f"What came back as '{key}' is not what was sent")

    def put(self, bucket: str = BUCKET) -> float:
        self._boto3.delete_object(Bucket=bucket, Key="whole")
        return self._timed(lambda: self._send(self._sign("put_object", Bucket=bucket, Key="whole"), 0, self._size))

    def md5(self) -> float:
        """What no server that answers with an MD5 as ETag can exceed."""

        def digest() -> None:
            with self._source.open("rb") as file:
                hashlib.file_digest(file, "md5")

        return self._timed(digest)

    def put_kms(self) -> float:
        return self.put(KMS_BUCKET)

    def get(self) -> float:
        return self._timed(lambda: self._receive(self._sign("get_object", Key="whole"), 0, self._size))

    def upload(self, bucket: str = BUCKET) -> float:
        self._boto3.delete_object(Bucket=bucket, Key="parts")
        return self._timed(lambda: self._upload(bucket))

    def upload_kms(self) -> float:
        return self.upload(KMS_BUCKET)

    def download(self) -> float:
        url = self._sign("get_object", Key="parts")

        def fetch() -> None:
            self._in_parallel(lambda start, size: self._receive(url, start, size), self._sample)

        return self._timed(fetch) / self._sample

    def upload_file(self) -> float:
        self._boto3.delete_object(Bucket=BUCKET, Key="boto3")
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
        self._boto3.delete_object(Bucket=BUCKET, Key="whole")
        with self._source.open("rb") as file:
            return self._timed(lambda: self._boto3.put_object(Bucket=BUCKET, Key="whole", Body=file))

    def get_object(self) -> float:
        def read() -> None:
            for _ in self._boto3.get_object(Bucket=BUCKET, Key="whole")["Body"].iter_chunks(1 << 20):
                pass

        return self._timed(read)

    def _upload(self, bucket: str) -> None:
        upload = {"Bucket": bucket, "Key": "parts"}
        upload["UploadId"] = self._boto3.create_multipart_upload(**upload)["UploadId"]

        def send(start: int, size: int) -> dict[str, Any]:
            number = start // PART + 1
            return {
                "PartNumber": number,
                "ETag": self._send(self._sign("upload_part", PartNumber=number, **upload), start, size),
            }

        parts = self._in_parallel(send)
        self._boto3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **upload)

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
            received = len(answer.read1(1 << 16))  # what came with the headers
            buffer = bytearray(4 << 20)  # Linux drops the bytes of a stream with MSG_TRUNC, and says how many they were
            while received < size and (count := connection.recv_into(buffer, 0, socket.MSG_TRUNC)):
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
        touch_memory(4 * self._size)
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
