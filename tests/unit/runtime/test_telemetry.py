"""What the model server tells CloudWatch and OpenTelemetry of its invocations, and the ids in its logs."""

from __future__ import annotations

import importlib.util
import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.unit.runtime.serving import DEADLINE_SECONDS, Start
from windlass.runtime import telemetry
from windlass.runtime.measures import Measures
from windlass.runtime.settings import BadSetting, Settings
from windlass.runtime.telemetry import Invoked, Recorder

LOGS = """
    import logging
    def model_fn(model_dir):
        logging.getLogger("mine").info("loaded %s", "é")
    def transform_fn(model, body, content_type, accept):
        if "raise" in body:
            try: 1 / 0
            except ZeroDivisionError: logging.exception("bad")
        logging.getLogger("mine").warning("seen")
        logging.debug("never")
        return body
"""


def invoked(status: int = 200, seconds: float = 0.010, size: int = 1) -> Invoked:
    return Invoked(status, seconds, 0.002, 0.006, size, "r-1", {})


# --- the embedded metric format


def test_a_line_is_what_cloudwatch_reads() -> None:
    recorder = Recorder({"EndpointName": "digits"})
    assert recorder.lines(0) == []
    for status in (200, 200, 400, 500):
        recorder.add(invoked(status))
    recorder.add(invoked(503, size=0))
    (line,) = map(json.loads, recorder.lines(1_700_000_000.5))
    directive = line["_aws"]["CloudWatchMetrics"][0]
    assert line["_aws"]["Timestamp"] == 1_700_000_000_500
    assert (directive["Namespace"], directive["Dimensions"]) == ("Windlass", [["EndpointName"]])
    assert {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}["QueueTime"] == "Milliseconds"
    assert {metric["Name"] for metric in directive["Metrics"]} < set(line)
    assert (line["EndpointName"], line["Requests"], line["ServerErrors"], line["Refused"]) == ("digits", 5, 1, 1)
    assert (line["TotalTime"], line["QueueTime"], line["BatchSize"]) == ([10.0] * 4, [2.0] * 4, [1] * 4)
    assert recorder.lines(2) == []  # a line says only what is new


def test_a_line_holds_no_more_values_than_the_format_does_and_samples_all_of_its_period() -> None:
    recorder = Recorder({})
    for number in range(1000):
        recorder.add(invoked(seconds=number / 1000))
    (line,) = map(json.loads, recorder.lines(0))
    assert (line["Requests"], len(line["TotalTime"])) == (1000, 100)
    assert 350 < sorted(line["TotalTime"])[50] < 650  # the median of 0 to 999


@pytest.mark.parametrize("text", ["EndpointName", "=x", "a=", ",".join(f"d{n}=1" for n in range(31))])
def test_bad_dimensions_are_named(text: str) -> None:
    with pytest.raises(BadSetting, match="WINDLASS_EMF_DIMENSIONS"):
        Settings.read({"WINDLASS_EMF_DIMENSIONS": text})


def test_the_server_writes_lines_on_stdout_and_the_last_at_its_end(start: Start) -> None:
    running = start(LOGS, WINDLASS_EMF_SECONDS="3600", WINDLASS_EMF_DIMENSIONS="EndpointName=a,VariantName=b").ready()
    running.invoke()
    running.process.terminate()
    running.exit()
    lines = list(running.lines())
    (line,) = [line for line in lines if "_aws" in line]
    assert (line["Requests"], line["VariantName"]) == (1, "b")


# --- what hooks measure

MEASURING = """
    max_concurrency = {concurrency}
    def model_fn(model_dir, context):
        context.metrics.add_time("Load", 2, unit="s")
    def transform_fn(model, body, content_type, accept, context):
        context.metrics.add_metric("Confidence", float(body))
        context.metrics.add_counter("Tokens", 2)
        def parts():
            yield body
            context.metrics.add_counter("Tokens", 3)
        return parts()
"""


@pytest.mark.parametrize("concurrency", [1, 4])
def test_what_hooks_measure_reaches_metrics_and_cloudwatch(start: Start, concurrency: int) -> None:
    running = start(MEASURING.format(concurrency=concurrency), WINDLASS_EMF_SECONDS="3600").ready()
    for body in (b"0.5", b"0.25"):
        assert running.invoke(body).content == body
    running.metric('windlass_custom_sum{name="Tokens",unit="Count"} 10')
    running.metric('windlass_custom_count{name="Confidence",unit="None"} 2')
    running.process.terminate()
    running.exit()
    lines = [line for line in running.lines() if "_aws" in line]
    measured = {name: line[name] for line in lines for name in ("Confidence", "Tokens", "Load") if name in line}
    assert measured["Confidence"] == [0.5, 0.25]
    assert (sum(measured["Tokens"]), measured["Load"]) == (10, [2])


def test_measures_go_out_whole_in_lines_that_the_format_allows() -> None:
    recorder = Recorder({"EndpointName": "digits"})
    recorder.measured([("Tokens", "Count", float(number)) for number in range(250)])
    lines = [json.loads(line) for line in recorder.lines(0)]
    assert [len(line["Tokens"]) for line in lines] == [100, 100, 50]
    assert sum(sum(line["Tokens"]) for line in lines) == sum(range(250))
    assert lines[0]["_aws"]["CloudWatchMetrics"][0]["Metrics"] == [{"Name": "Tokens", "Unit": "Count"}]
    assert recorder.lines(1) == []


@pytest.mark.parametrize(
    ("measure", "says"),
    [
        (("Requests", 1), "'Requests' is taken"),
        (("_aws", 1), "'_aws' is taken"),
        (("", 1), "no text of 1 to 255"),
        (("é", 1), "no text of 1 to 255"),
        (("a" * 256, 1), "no text of 1 to 255"),
        (("a\nb", 1), "is taken, or cannot be written"),
        (("a", float("nan")), "nan is no finite number"),
        (("a", "many"), "could not convert"),
        (("a", 1, "furlongs"), "unit 'furlongs' is none of CloudWatch's: None, Seconds"),
    ],
)
def test_what_cloudwatch_would_not_take_is_refused_where_it_is_measured(measure: tuple[object, ...], says: str) -> None:
    measures = Measures()
    with pytest.raises(ValueError, match=says):
        measures.add_metric(*measure)  # type: ignore[arg-type]
    assert measures.take() == []


def test_names_are_few_because_each_is_billed() -> None:
    measures = Measures()
    for number in range(50):
        measures.add_counter(f"m{number}", 1)
    with pytest.raises(ValueError, match="one more than 50 names"):
        measures.add_counter("m50", 1)
    measures.add_counter("m0", 1)
    assert len(measures.take()) == 51
    assert measures.take() == []


# --- OpenTelemetry


class Collector(BaseHTTPRequestHandler):
    """An OTLP endpoint."""

    spans: queue.Queue[Span]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put(span)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[ThreadingHTTPServer]:
    Collector.spans = queue.Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_invocation_is_a_span_below_the_callers(start: Start, collector: ThreadingHTTPServer) -> None:
    running = start(LOGS, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}").ready()
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    running.invoke(traceparent=f"00-{trace}-{parent}-01", x_amzn_requestid="r-7")
    running.process.terminate()
    assert running.exit()[0] == 0
    spans = {span.name: span for span in (Collector.spans.get(timeout=DEADLINE_SECONDS) for _ in range(3))}
    whole, model = spans["invocation"], spans["model"]
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (trace, parent)
    assert model.parent_span_id == spans["queue"].parent_span_id == whole.span_id
    assert whole.start_time_unix_nano <= spans["queue"].start_time_unix_nano <= spans["queue"].end_time_unix_nano
    assert spans["queue"].end_time_unix_nano == model.start_time_unix_nano
    assert model.end_time_unix_nano <= whole.end_time_unix_nano
    said = {pair.key: pair.value for pair in whole.attributes}
    assert said["windlass.request_id"].string_value == "r-7"
    assert (said["http.response.status_code"].int_value, said["windlass.batch_size"].int_value) == (200, 1)


def test_the_callers_span_also_comes_in_the_custom_attributes(start: Start, collector: ThreadingHTTPServer) -> None:
    running = start(LOGS, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}").ready()
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    running.invoke(x_amzn_sagemaker_custom_attributes=f"a=1, traceparent=00-{trace}-{parent}-01")
    running.process.terminate()
    assert running.exit()[0] == 0
    spans = {span.name: span for span in (Collector.spans.get(timeout=DEADLINE_SECONDS) for _ in range(3))}
    assert (spans["invocation"].trace_id.hex(), spans["invocation"].parent_span_id.hex()) == (trace, parent)


def test_what_is_configured_but_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert telemetry.Spans.wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"})
    assert not telemetry.Spans.wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"})
    assert not telemetry.Spans.wanted({})
    assert telemetry.Spans.installed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not telemetry.Spans.installed()


# --- ids in the logs


def test_the_request_id_goes_from_the_caller_to_every_line(start: Start) -> None:
    running = start(LOGS).ready()
    running.invoke(b"raise", x_amzn_requestid="r-1", x_amzn_sagemaker_inference_id="i-1")
    assert running.event("request", request_id="r-1")["inference_id"] == "i-1"
    running.invoke()
    given = running.event("request", inference_id=None)["request_id"]
    running.process.terminate()
    _, stderr = running.exit()
    loaded, error, first, second = map(json.loads, stderr.splitlines())
    assert (loaded["message"], loaded["logger"], loaded["request_ids"]) == ("loaded é", "mine", [])
    assert (error["level"], error["request_ids"], error["inference_ids"]) == ("ERROR", ["r-1"], ["i-1"])
    assert "ZeroDivisionError" in error["error"]
    assert (first["message"], first["request_ids"]) == ("seen", ["r-1"])
    assert second["request_ids"] == [given]
