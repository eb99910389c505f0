"""Model servers that end with the module that started them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.unit.runtime.serving import Server, Start


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    servers: list[Server] = []

    def run(source: str | None, before: Callable[[Path], object] = lambda model: None, **env: str) -> Server:
        base = tmp_path_factory.mktemp("ml")
        (base / "model" / "code").mkdir(parents=True)
        if source is not None:
            (base / "model" / "code" / "inference.py").write_text(dedent(source))
        before(base / "model")
        os.mkfifo(base / "model" / "gate")
        servers.append(Server(base, env))
        return servers[-1]

    yield run
    for running in servers:
        running.close()
