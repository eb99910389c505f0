"""A model server in a process of its own, for the tests of this folder."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

DEADLINE_SECONDS = 30


class Server:
    """A running model server."""

    def __init__(self, base: Path, env: dict[str, str]) -> None:
        self.base = base
        self._stderr = (base / "stderr").open("w+")
        clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        settings = {"SAGEMAKER_BASE_DIR": str(base), "SAGEMAKER_BIND_TO_PORT": "0", "WINDLASS_BIND_HOST": "127.0.0.1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "windlass.runtime.server"],
            env={**clean, **settings, **env},
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.client = httpx.Client(timeout=DEADLINE_SECONDS)

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def event(self, name: str, **fields: object) -> dict[str, Any]:
        """Wait for a log line."""
        while True:
            line = self._lines.get(timeout=DEADLINE_SECONDS)
            if line.get("event") == name and fields.items() <= line.items():
                return line

    def lines(self) -> Iterator[dict[str, Any]]:
        """The log lines that are left, of a server that has ended."""
        self._reader.join(DEADLINE_SECONDS)
        while not self._lines.empty():
            yield self._lines.get()

    def listen(self) -> Server:
        self.port = self.event("listening")["port"]
        self.client.base_url = f"http://127.0.0.1:{self.port}"
        return self

    def ready(self) -> Server:
        self.listen().event("ready")
        return self

    def invoke(self, content: Any = b"[1]", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/invocations", content=content, headers={"content-type": "application/json", **named})

    def metric(self, line: str) -> None:
        """Wait until /metrics says so."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while line not in self.client.get("/metrics").text.splitlines():
            assert time.monotonic() < deadline, f"never: {line}"

    def exit(self) -> tuple[int, str]:
        code = self.process.wait(DEADLINE_SECONDS)
        return code, self.stderr()

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def open_gate(self) -> Any:
        """Returns when the model has begun to wait; closing what it returns lets the model answer."""
        return (self.base / "model" / "gate").open("w")

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        assert self.process.stdout
        self.process.stdout.close()
        self._stderr.close()


Start = Callable[..., Server]
