"""No operation of SageMaker pretends: it is in the local cloud's own table, or it is refused by its name."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest

from tests.conformance import coverage
from tests.conformance.coverage import Answer
from windlass.local import LocalCloud

NAMES = boto3.client("sagemaker", region_name="us-east-1").meta.service_model.operation_names


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """Of a fresh cloud to all operations."""
    with LocalCloud.up(tmp_path_factory.mktemp("fresh"), lifeline=True) as cloud:
        return coverage.ask(cloud.url, NAMES)


def test_none_pretends(answers: dict[str, Answer]) -> None:
    assert coverage.pretenders(answers, coverage.implemented()) == {}


def test_nothing_breaks_over_a_bare_request(answers: dict[str, Answer]) -> None:
    assert {name for name, answer in answers.items() if answer.code in ("InternalFailure", "500")} == set()


class Pretender(BaseHTTPRequestHandler):
    """Does whatever it is asked for, and has one of everything."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"TrainingJobSummaries": [{"TrainingJobName": "made-up"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def pretender() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pretender) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_one_that_pretends_is_found_whether_it_is_in_the_table_or_not(pretender: str) -> None:
    asked = ["DescribeTrainingJob", "StopTrainingJob", "CreateTrainingJob", "ListTrainingJobs", "CreateCluster"]

    found = coverage.pretenders(coverage.ask(pretender, asked), coverage.implemented())

    assert found == {
        "DescribeTrainingJob": "succeeds with what is not there",
        "StopTrainingJob": "succeeds with what is not there",
        "CreateTrainingJob": "succeeds with what is not there",
        "ListTrainingJobs": "lists 1 things, where there are none",
        "CreateCluster": "is in no table, and is answered with success",
    }
