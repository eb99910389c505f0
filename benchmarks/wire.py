"""A TCP relay that counts what goes through it, and can break off: for tests and benchmarks of uploads.

with Wire("127.0.0.1", 5000) as wire:
    client = boto3.client("s3", endpoint_url=wire.url)
    ...
    wire.sent                        # bytes from clients to the server, headers and all
    wire.cut_after(10 << 20)         # the connections break after that many more, until wire.mend()
    wire.passed(10 << 20).wait()     # that many more have gone through
"""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType


class Wire:
    """Listens on a free port of this machine."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self._left: int | None = None
        self._awaited: list[tuple[int, threading.Event]] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        # A closed listener does not wake accept(); a last connection does.
        socket.create_connection(self._listener.getsockname()).close()
        self._listener.close()
        with self._lock:
            for end in self._open:
                end.shutdown(socket.SHUT_RDWR)

    def cut_after(self, size: int) -> None:
        self._left = size

    def passed(self, size: int) -> threading.Event:
        """Is set once that many more bytes were sent."""
        event = threading.Event()
        with self._lock:
            self._awaited.append((self.sent + size, event))
        return event

    def mend(self) -> None:
        self._left = None

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._closing:
                client.close()
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._upstream) as server, selectors.DefaultSelector() as ready:
            with self._lock:
                self._open |= {client, server}
            try:
                for source, target in ((client, server), (server, client)):
                    ready.register(source, selectors.EVENT_READ, target)
                while True:
                    for key, _ in ready.select():
                        body = key.fileobj.recv(1 << 18)  # type: ignore[union-attr]
                        if not body or (key.fileobj is client and not self._pass(len(body))):
                            return
                        key.data.sendall(body)
            except OSError:
                return  # either side went away, which the other is about to see
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _pass(self, size: int) -> bool:
        with self._lock:
            if self._left is not None:
                self._left -= size
                if self._left < 0:
                    return False
            self.sent += size
            for at, event in self._awaited:
                if self.sent >= at:
                    event.set()
            return True
