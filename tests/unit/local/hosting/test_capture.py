"""Data capture: what is written, where, and in which encoding."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from windlass.local.hosting.capture import Capture, Exchange

AT = 1_700_000_000.25  # 2023-11-14 22:13:20.250 UTC


class Bucket:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def write(self, uri: str, body: bytes) -> None:
        self.objects[uri] = body

    @property
    def records(self) -> list[Any]:
        return [json.loads(line) for body in self.objects.values() for line in body.splitlines()]


def config(percentage: int = 100, *modes: str, headers: bool = True, **more: Any) -> dict[str, Any]:
    kinds = {"CsvContentTypes": ["text/csv"], "JsonContentTypes": ["application/json"]}
    return {
        "InitialSamplingPercentage": percentage,
        "DestinationS3Uri": "s3://bucket/capture/",
        "CaptureOptions": [{"CaptureMode": mode} for mode in modes or ("InputAndOutput",)],
        **({"CaptureContentTypeHeader": kinds} if headers else {}),
        **more,
    }


def exchange(**changes: Any) -> Exchange:
    given: dict[str, Any] = {
        "variant": "main",
        "at": AT,
        "request_type": "text/csv",
        "request": b"1,2",
        "response_type": "application/json; charset=utf-8",
        "response": b'{"label": 7}',
        **changes,
    }
    return Exchange(**given)


def captured(settings: dict[str, Any], *exchanges: Exchange) -> Bucket:
    bucket = Bucket()
    capture = Capture(settings, "digits", bucket.write)
    for each in exchanges:
        capture.record(each)
    capture.flush()
    return bucket


def test_a_record_is_what_model_monitor_reads() -> None:
    bucket = captured(config(), exchange(inference_id="id-1", custom_attributes="trace=9"))

    [record] = bucket.records
    assert re.fullmatch(r"[0-9a-f-]{36}", record["eventMetadata"].pop("eventId"))
    assert record == {
        "captureData": {
            "endpointInput": {"observedContentType": "text/csv", "mode": "INPUT", "data": "1,2", "encoding": "CSV"},
            "endpointOutput": {
                "observedContentType": "application/json; charset=utf-8",
                "mode": "OUTPUT",
                "data": '{"label": 7}',
                "encoding": "JSON",
            },
        },
        "eventMetadata": {
            "inferenceId": "id-1",
            "customAttributes": ["trace=9"],
            "inferenceTime": "2023-11-14T22:13:20Z",
        },
        "eventVersion": "0",
    }


def test_keys_follow_the_layout_of_aws_by_variant_and_hour() -> None:
    bucket = captured(config(), exchange(), exchange(), exchange(variant="other"), exchange(at=AT + 3600))

    assert len(bucket.objects) == 3
    assert len(bucket.records) == 4
    for key in bucket.objects:
        assert re.fullmatch(
            r"s3://bucket/capture/digits/(main|other)/2023/11/14/2[23]/13-20-250-[0-9a-f-]{36}\.jsonl", key
        )


@pytest.mark.parametrize(("mode", "sides"), [("Input", {"endpointInput"}), ("Output", {"endpointOutput"})])
def test_only_the_side_asked_for_is_kept(mode: str, sides: set[str]) -> None:
    [record] = captured(config(100, mode), exchange()).records

    assert set(record["captureData"]) == sides


@pytest.mark.parametrize(
    ("settings", "body"),
    [(config(headers=False), b"1,2"), (config(), b"\xff\xfe")],
    ids=["no content types given", "bytes under a text type"],
)
def test_what_is_not_known_to_be_text_is_base64(settings: dict[str, Any], body: bytes) -> None:
    [record] = captured(settings, exchange(request=body)).records

    side = record["captureData"]["endpointInput"]
    assert side["encoding"] == "BASE64"
    assert base64.b64decode(side["data"]) == body


@pytest.mark.parametrize(("percentage", "kept"), [(0, 0), (1, 1), (20, 20), (33, 33), (100, 100)])
def test_sampling_holds_its_percentage(percentage: int, kept: int) -> None:
    assert len(captured(config(percentage), *[exchange()] * 100).records) == kept


def test_capture_that_is_off_writes_nothing() -> None:
    assert captured(config(100, EnableCapture=False), exchange()).objects == {}
