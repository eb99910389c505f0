"""Data capture: what went into an endpoint and what came out, as JSON Lines on S3.

Objects lie under AWS's layout ``<destination>/<endpoint>/<variant>/yyyy/mm/dd/hh/mm-ss-fff-<uuid>.jsonl``, each line as in
the guide "Data capture" of Model Monitor. A request never waits for S3: records gather in memory until :meth:`Capture.flush`.
"""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from windlass.local.hosting.split import Split


@dataclass(frozen=True)
class Exchange:
    """One answered invocation. ``at`` is in epoch seconds."""

    variant: str
    at: float
    request_type: str
    request: bytes
    response_type: str
    response: bytes
    inference_id: str | None = None
    custom_attributes: str | None = None


class Capture:
    """The captured exchanges of one endpoint on their way to S3.

    Args:
        config: a DataCaptureConfig that fits the service model.
        endpoint: its name, the first folder under the destination.
        write: stores a body under an ``s3://`` address.
    """

    def __init__(self, config: Mapping[str, Any], endpoint: str, write: Callable[[str, bytes], None]) -> None:
        self._write = write
        self._prefix = f"{config['DestinationS3Uri'].rstrip('/')}/{endpoint}"
        self._percentage = config["InitialSamplingPercentage"] if config.get("EnableCapture", True) else 0
        modes = {option["CaptureMode"] for option in config["CaptureOptions"]}
        self._input = bool(modes & {"Input", "InputAndOutput"})
        self._output = bool(modes & {"Output", "InputAndOutput"})
        # Without CaptureContentTypeHeader AWS encodes everything in base64, JSON and CSV too.
        headers = config.get("CaptureContentTypeHeader", {})
        self._csv = frozenset(headers.get("CsvContentTypes", ()))
        self._json = frozenset(headers.get("JsonContentTypes", ()))
        self._lock = threading.Lock()
        self._sampling: Split[bool] = Split()
        self._lines: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._first: dict[tuple[str, str], datetime] = {}

    def record(self, exchange: Exchange) -> None:
        """Keep ``exchange`` if the sampling takes it."""
        with self._lock:
            if not self._sampling.choose({True: self._percentage, False: 100 - self._percentage}):
                return
        line = json.dumps(self._document(exchange), separators=(",", ":"))
        at = datetime.fromtimestamp(exchange.at, UTC)
        group = (exchange.variant, at.strftime("%Y/%m/%d/%H"))
        with self._lock:
            self._first.setdefault(group, at)
            self._lines[group].append(line)

    def flush(self) -> None:
        """Write what has gathered, one object for each variant and hour."""
        with self._lock:
            lines, first = dict(self._lines), dict(self._first)
            self._lines.clear()
            self._first.clear()
        for (variant, hour), group in lines.items():
            at = first[variant, hour]
            stamp = f"{at:%M-%S}-{at.microsecond // 1000:03d}"
            self._write(
                f"{self._prefix}/{variant}/{hour}/{stamp}-{uuid.uuid4()}.jsonl",
                "".join(f"{line}\n" for line in group).encode(),
            )

    def _document(self, exchange: Exchange) -> dict[str, Any]:
        data: dict[str, Any] = {}
        if self._input:
            data["endpointInput"] = self._side("INPUT", exchange.request_type, exchange.request)
        if self._output:
            data["endpointOutput"] = self._side("OUTPUT", exchange.response_type, exchange.response)
        event: dict[str, Any] = {"eventId": str(uuid.uuid4())}
        if exchange.inference_id:
            event["inferenceId"] = exchange.inference_id
        if exchange.custom_attributes:
            event["customAttributes"] = [exchange.custom_attributes]
        event["inferenceTime"] = datetime.fromtimestamp(exchange.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"captureData": data, "eventMetadata": event, "eventVersion": "0"}

    def _side(self, mode: str, content_type: str, body: bytes) -> dict[str, str]:
        kind = content_type.partition(";")[0].strip().lower()
        encoding = "CSV" if kind in self._csv else "JSON" if kind in self._json else "BASE64"
        data = ""
        if encoding != "BASE64":
            try:
                data = body.decode()
            except UnicodeDecodeError:
                encoding = "BASE64"  # the header promised text; the bytes say otherwise
        if encoding == "BASE64":
            data = base64.b64encode(body).decode()
        return {"observedContentType": content_type, "mode": mode, "data": data, "encoding": encoding}
