"""The template of text generation behind an endpoint: registered, deployed, asked for a stream, left in the middle of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import windlass as wl
from tests.unit.runtime.test_concurrency import alone, folder

__all__ = ["folder"]


@pytest.fixture(scope="module")
def endpoint(rig: Any, foundation: Any, folder: Path) -> Iterator[wl.Endpoint]:
    version = wl.register(folder, rig.unique("storyteller"), approve=True)
    # One place, so that the next request can only run when the one before has left it.
    yield (deployed := wl.deploy(version, environment={"MAX_CONCURRENCY": "1"}, capture_percent=0))
    deployed.delete()


def asked(prompt: str, count: int, **more: Any) -> dict[str, Any]:
    return {"inputs": prompt, "parameters": {"max_new_tokens": count, **more}, "stream": True}


def test_the_text_streams_as_it_is_made(endpoint: wl.Endpoint, folder: Path) -> None:
    with endpoint.stream(asked("w1 w2", 12), accept="application/jsonlines") as chunks:
        lines = "".join(chunks).splitlines()

    parts = [json.loads(line) for line in lines]
    assert chunks.content_type == "application/jsonlines"
    assert "".join(part["token"]["text"] for part in parts) == parts[-1]["generated_text"] == alone(folder, "w1 w2", 12)


def test_as_events_with_sampling(endpoint: wl.Endpoint) -> None:
    drawn = asked("w1", 9, temperature=1.2, seed=3)

    texts = ["".join(endpoint.stream(drawn)) for _ in range(2)]

    assert texts[0].startswith("data:{")
    assert texts[0] == texts[1]


def test_a_caller_that_leaves_in_the_middle_frees_its_place(endpoint: wl.Endpoint) -> None:
    with endpoint.stream(asked("w1", 1000), accept="application/jsonlines") as chunks:
        assert json.loads(next(chunks).splitlines()[0])["token"]

    answer = endpoint.predict({"inputs": "w5", "parameters": {"max_new_tokens": 3}}, timeout_seconds=20)
    assert answer.output[0]["generated_text"]


def test_what_makes_no_sense_is_an_error_before_the_stream(endpoint: wl.Endpoint) -> None:
    with pytest.raises(wl.errors.ModelFailed, match="temperature is -1, and not a number above 0"):
        endpoint.stream(asked("w1", 3, temperature=-1))
