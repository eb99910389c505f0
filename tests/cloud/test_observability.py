"""What a deployed endpoint tells of its requests: metrics in CloudWatch, lines in its log, spans for a collector."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import windlass as wl
from tests.cloud.test_hosting import until
from tests.unit.runtime.test_telemetry import Collector, collector
from windlass import metrics, plans

__all__ = ["collector"]

INFERENCE = """
import json, logging
def model_fn(model_dir):
    return None
def predict_fn(data, model, context):
    context.metrics.add_metric("Confidence", 0.75)
    context.metrics.add_counter("Rows", len(data))
    logging.warning("seen %d", len(data))
    return data
"""


@pytest.fixture
def endpoint(rig: Any, foundation: Any, tmp_path: Path, collector: ThreadingHTTPServer) -> Iterator[wl.Endpoint]:
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "weights.json").write_text("{}")
    (tmp_path / "model" / "code" / "inference.py").write_text(INFERENCE)
    version = wl.register(tmp_path / "model", rig.unique("observed"), approve=True)
    environment = {
        "WINDLASS_EMF_SECONDS": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    endpoint = wl.deploy(version, environment=environment, capture_percent=0)
    yield endpoint
    endpoint.delete()


def test_a_request_is_found_in_metrics_logs_and_spans(
    endpoint: wl.Endpoint, rig: Any, collector: ThreadingHTTPServer
) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    caller = f"traceparent=00-{trace}-{parent}-01"

    answer = endpoint.predict([1.5, 2, 3], inference_id="mine-1", custom_attributes=caller)

    # The log: by the request id of AWS's answer, and by the caller's own.
    line = until(lambda: lines(rig, endpoint.name, "request", inference_id="mine-1"), bool)[0]
    assert line["request_id"] == answer.request_id
    assert (line["status"], line["batch"]) == (200, 1)
    assert line["ms"] >= line["queue_ms"] + line["model_ms"] > 0
    (said,) = until(lambda: lines(rig, endpoint.name, "log", message="seen 3"), bool)
    assert (said["request_ids"], said["inference_ids"]) == ([answer.request_id], ["mine-1"])
    # CloudWatch, under the endpoint's name and variant; nothing was given but how often.
    for metric, value in {"Requests": 1, "BatchSize": 1, "Confidence": 0.75, "Rows": 3, "ServerErrors": 0}.items():
        assert until(lambda metric=metric: total(rig, endpoint.name, metric), lambda it: it is not None) == value
    for metric in metrics.SERVER:
        assert total(rig, endpoint.name, metric.name) is not None, metric.name
    # OpenTelemetry, below the caller's span.
    spans = {span.name: span for span in (Collector.spans.get(timeout=30) for _ in range(3))}
    assert (spans["invocation"].trace_id.hex(), spans["invocation"].parent_span_id.hex()) == (trace, parent)
    assert set(spans) == {"invocation", "queue", "model"}
    with pytest.raises(queue.Empty):
        Collector.spans.get_nowait()


def lines(rig: Any, endpoint: str, event: str, **fields: object) -> list[dict[str, Any]]:
    """Of the endpoint's log, those of this event with these fields."""
    found = rig.client("logs").filter_log_events(logGroupName=f"/aws/sagemaker/Endpoints/{endpoint}")["events"]
    parsed = [json.loads(each["message"]) for each in found if each["message"].startswith("{")]
    return [line for line in parsed if line.get("event") == event and fields.items() <= line.items()]


def total(rig: Any, endpoint: str, metric: str) -> float | None:
    now = datetime.now(UTC)
    points = rig.client("cloudwatch").get_metric_statistics(
        Namespace="Windlass",
        MetricName=metric,
        Dimensions=[{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": plans.VARIANT}],
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(minutes=2),
        Period=7200,
        Statistics=["Sum"],
    )["Datapoints"]
    return points[0]["Sum"] if points else None
