"""HTTP load from a process of its own: closed loop (so many callers) or open loop (so many requests a second).

    python benchmarks/peers/load.py 8080 --concurrency 32 --seconds 3 < bodies.json
    python benchmarks/peers/load.py 8080 --rate 900 --seconds 3 < bodies.json

It reads {"path": ..., "headers": {...}, "bodies": [...]} and prints one line of JSON: requests a second that were answered
with 200, latencies in ms, counts by status. One thread on epoll and nothing but the standard library: on two cores a slow
client would measure itself.

In the closed loop requests a second are of the time in which all callers ask: neither of the start, when none has been
answered, nor of the end, when fewer and fewer still wait. In the open loop a request is due at its own time whatever became of
the others, and its latency counts from then.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from collections import Counter, deque
from typing import Any

# Beyond this many open connections a request of the open loop is not sent but counted as lost.
MOST_CONNECTIONS = 512
GRACE_SECONDS = 10.0
# Of the closed loop's time, before its requests a second are counted.
START_SHARE = 0.1


class Connection:
    __slots__ = ("begin", "data", "socket", "wanted")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.data = b""
        self.wanted = 0
        self.begin = 0.0

    def send(self, request: bytes, begin: float) -> None:
        self.begin, self.data, self.wanted = begin, b"", 0
        self.socket.sendall(request)

    def receive(self) -> int | None:
        """The status, when the whole answer is there; 0: the connection broke."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError:
            return 0
        if not data:
            return 0
        self.data = self.data + data if self.data else data
        if not self.wanted:
            end = self.data.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = self.data[:end].lower()
            at = head.find(b"content-length:")
            if at < 0:
                sys.exit(f"an answer without content-length: {head!r}")
            stop = head.find(b"\r", at)
            self.wanted = end + 4 + int(head[at + 15 : stop if stop > 0 else None])
        if len(self.data) < self.wanted:
            return None
        return int(self.data[9:12])

    @property
    def closing(self) -> bool:
        return b"connection: close" in self.data[:400].lower()


class Load:
    def __init__(self, port: int, requests: list[bytes]) -> None:
        self.port, self.requests, self.next = port, requests, 0
        self.poll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.statuses: Counter[int] = Counter()
        self.latencies: dict[int, list[float]] = {}

    def connect(self) -> Connection:
        connection = Connection(self.port)
        self.connections[connection.socket.fileno()] = connection
        self.poll.register(connection.socket, select.EPOLLIN)
        return connection

    def drop(self, connection: Connection) -> None:
        del self.connections[connection.socket.fileno()]
        self.poll.unregister(connection.socket)
        connection.socket.close()

    def request(self) -> bytes:
        self.next = (self.next + 1) % len(self.requests)
        return self.requests[self.next]

    def count(self, connection: Connection, status: int) -> None:
        self.statuses[status] += 1
        self.latencies.setdefault(status, []).append(time.perf_counter() - connection.begin)

    def closed(self, concurrency: int, seconds: float) -> float:
        """Returns: requests a second that were answered with 200."""
        start = time.perf_counter()
        counted, end = start + START_SHARE * seconds, start + seconds
        good = 0
        for _ in range(concurrency):
            self.connect().send(self.request(), time.perf_counter())
        busy = concurrency
        while busy and time.perf_counter() < end + GRACE_SECONDS:
            for descriptor, _ in self.poll.poll(0.1):
                connection = self.connections[descriptor]
                status = connection.receive()
                if status is None:
                    continue
                self.count(connection, status)
                now = time.perf_counter()
                good += status == 200 and counted <= now < end
                if now >= end:
                    busy -= 1
                elif status and not connection.closing:
                    connection.send(self.request(), now)
                else:
                    self.drop(connection)
                    try:
                        self.connect().send(self.request(), now)
                    except ConnectionRefusedError:  # it has stopped listening, as it should when it shuts down
                        busy -= 1
        self.statuses[0] += max(0, busy)
        return good / (end - counted)

    def open(self, rate: float, seconds: float) -> float:
        """Returns: requests a second that were answered with 200, until none waited."""
        start = time.perf_counter()
        idle: deque[Connection] = deque()
        due = busy = 0
        total = int(rate * seconds)
        while (due < total or busy) and time.perf_counter() < start + seconds + GRACE_SECONDS:
            now = time.perf_counter()
            while due < total and start + due / rate <= now:
                if not idle and len(self.connections) >= MOST_CONNECTIONS:
                    self.statuses[0] += 1
                else:
                    (idle.popleft() if idle else self.connect()).send(self.request(), start + due / rate)
                    busy += 1
                due += 1
            wait = min(0.05, max(0.0, start + due / rate - time.perf_counter())) if due < total else 0.05
            for descriptor, _ in self.poll.poll(wait):
                connection = self.connections[descriptor]
                status = connection.receive()
                if status is None:
                    continue
                self.count(connection, status)
                busy -= 1
                if status and not connection.closing:
                    idle.append(connection)
                else:
                    self.drop(connection)
        self.statuses[0] += busy
        return self.statuses[200] / (time.perf_counter() - start)

    def report(self, rps: float) -> dict[str, Any]:
        def ms(values: list[float], share: float) -> float:
            return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1e3 if values else 0.0

        good = self.latencies.get(200, [])
        others = [value for status, values in self.latencies.items() if status not in (0, 200) for value in values]
        return {
            "rps": rps,
            "p50_ms": ms(good, 0.5),
            "p99_ms": ms(good, 0.99),
            "refused_p99_ms": ms(others, 0.99),
            "statuses": dict(self.statuses),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    given = json.load(sys.stdin)
    head = f"POST {given['path']} HTTP/1.1\r\nhost: localhost\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in given["headers"].items())
    requests = [
        f"{head}content-length: {len(body.encode())}\r\n\r\n".encode() + body.encode() for body in given["bodies"]
    ]
    load = Load(options.port, requests)
    rps = (
        load.open(options.rate, options.seconds) if options.rate else load.closed(options.concurrency, options.seconds)
    )
    print(json.dumps(load.report(rps)))


if __name__ == "__main__":
    main()
