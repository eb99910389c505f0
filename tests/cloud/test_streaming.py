"""Answers that come piece by piece, as boto3 reads them, from a server that was really started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EventStreamError

from tests.cloud.test_hosting import Workshop, refused, until

# Goes on after the first part once a file is there.
CODE = """
import json, os, pathlib, time
def model_fn(model_dir):
    return None
def input_fn(body, content_type):
    return json.loads(body)
def predict_fn(data, model):
    if data == "raise":
        raise ValueError("three channels expected")
    return data
def output_fn(data, accept):
    def parts():
        yield b"first;"
        while not os.path.exists(data["go"]):
            time.sleep(0.01)
        if data.get("then") == "die":
            os._exit(7)
        yield b"second"
    return parts(), "text/event-stream"
"""


@pytest.fixture(scope="module")
def workshop(rig: Any) -> Iterator[Workshop]:
    workshop = Workshop(rig)
    workshop.create(workshop.config("v1", CODE))
    yield workshop
    workshop.close()


def ask(workshop: Workshop, data: Any, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = workshop.runtime.invoke_endpoint_with_response_stream(
        EndpointName=workshop.endpoint, Body=json.dumps(data).encode(), ContentType="application/json", **more
    )
    return answer


def test_parts_arrive_while_the_model_still_works(workshop: Workshop, tmp_path: Path) -> None:
    answer = ask(workshop, {"go": str(tmp_path / "go")}, Accept="text/event-stream")

    assert answer["ContentType"] == "text/event-stream"
    assert answer["InvokedProductionVariant"] == "main"
    parts = iter(answer["Body"])
    assert next(parts)["PayloadPart"]["Bytes"] == b"first;"
    (tmp_path / "go").touch()  # so the first part was here before the model had the second
    assert b"".join(part["PayloadPart"]["Bytes"] for part in parts) == b"second"


def test_a_stream_that_breaks_off_ends_in_an_error(workshop: Workshop, tmp_path: Path) -> None:
    answer = ask(workshop, {"go": str(tmp_path / "go"), "then": "die"})
    parts = iter(answer["Body"])
    assert next(parts)["PayloadPart"]["Bytes"] == b"first;"
    (tmp_path / "go").touch()

    with pytest.raises(EventStreamError, match="ModelStreamError"):
        list(parts)

    until(lambda: workshop.metric("MidStreamErrors"), lambda it: it == 1)
    assert (workshop.metric("FirstChunkLatency") or 0) > 0
    until(workshop.describe, lambda it: it["ProductionVariants"][0]["CurrentInstanceCount"] == 1)


def test_a_caller_that_hangs_up_gives_its_instance_back(workshop: Workshop, tmp_path: Path) -> None:
    before = workshop.metric("Invocations") or 0
    answer = ask(workshop, {"go": str(tmp_path / "go")})
    assert next(iter(answer["Body"]))

    answer["Body"].close()
    (tmp_path / "go").touch()

    until(lambda: workshop.metric("Invocations") or 0, lambda it: it > before)


def test_errors_of_the_model_arrive_before_the_stream(workshop: Workshop) -> None:
    with pytest.raises(workshop.runtime.exceptions.ModelError, match="three channels expected"):
        ask(workshop, "raise")


def test_an_endpoint_that_is_not_there(workshop: Workshop) -> None:
    code, message = refused(
        lambda: workshop.runtime.invoke_endpoint_with_response_stream(EndpointName="absent", Body=b"{}")
    )

    assert (code, message.split()[:2]) == ("ValidationError", ["Endpoint", "absent"])
