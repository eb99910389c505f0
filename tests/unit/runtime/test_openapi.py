"""The OpenAPI page: valid, true of the server that answers it, and taken by those who read such pages."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.unit.runtime.serving import Server, Start
from windlass import cli
from windlass.artifact import Signature
from windlass.runtime import openapi

PAIR = {
    "inputs": [
        {"name": "image", "dtype": "uint8", "shape": ["batch", 2, 2]},
        {"name": "weight", "dtype": "float32", "shape": ["batch"]},
    ],
    "outputs": [
        {"name": "label", "dtype": "int64", "shape": ["batch"]},
        {"name": "scores", "dtype": "float64", "shape": ["batch", 2]},
    ],
    "example": {"image": [[[1, 2], [3, 4]]], "weight": [0.5]},
}
ONE = {
    "inputs": [{"name": "text", "dtype": "str", "shape": ["batch"]}],
    "outputs": [{"name": "length", "dtype": "int64", "shape": ["batch"]}],
}
MODELS = {
    "pair": (
        PAIR,
        """
        import numpy as np
        def model_fn(model_dir): return None
        def predict_fn(data, model):
            sums = data["image"].sum(axis=(1, 2), dtype=np.int64)
            return {"label": sums, "scores": np.stack([sums / 2, sums / 3], axis=1)}
        """,
    ),
    "one": (
        ONE,
        """
        def model_fn(model_dir): return None
        def predict_fn(data, model): return [len(text) for text in data]
        """,
    ),
    "none": (
        None,
        """
        def model_fn(model_dir): return None
        def predict_fn(data, model): return {"kind": type(data).__name__}
        """,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def server(start: Start, request: pytest.FixtureRequest) -> Server:
    signature, source = MODELS[request.param]
    running = start(source, before=lambda model: manifest(model, signature))
    return running.ready()


def manifest(folder: Path, signature: dict[str, Any] | None) -> None:
    (folder / "windlass.json").write_text(json.dumps({"format": 1, "files": {}, "signature": signature}))


def test_the_page_is_valid(server: Server) -> None:
    page = server.client.get("/openapi.json").json()
    OpenAPIV31SpecValidator(page).validate()
    assert set(page["paths"]) == {"/invocations", "/ping", "/metrics"}


def test_no_request_that_the_page_allows_or_forbids_breaks_the_server(server: Server) -> None:
    every_request(server)
    assert server.client.get("/ping").status_code == 200


@pytest.mark.parametrize(
    "planted",
    [
        'if len(data["weight"]) > 0: raise KeyError("planted")',
        "sums = [str(number) for number in sums]",
    ],
    ids=["raises", "answers otherwise than it says"],
)
def test_a_planted_fault_is_found(start: Start, planted: str) -> None:
    signature, source = MODELS["pair"]
    changed = source.replace("            return {", f"            {planted}\n            return {{")
    changed = changed.replace("sums / 2, sums / 3", "data['weight'], data['weight']")
    running = start(changed, before=lambda model: manifest(model, signature)).ready()
    with pytest.raises(FailureGroup):
        every_request(running)


def every_request(server: Server) -> None:
    """Asks for what the page allows, and for what it forbids. Raises for an answer that the page does not have."""
    page = server.client.get("/openapi.json").json()
    as_json = copy.deepcopy(page)
    content = as_json["paths"]["/invocations"]["post"]["requestBody"]["content"]
    as_json["paths"]["/invocations"]["post"]["requestBody"]["content"] = {
        "application/json": content["application/json"]
    }
    positive, negative = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    statuses: Counter[int] = Counter()
    for described, mode, most in ((as_json, positive, 120), (page, positive, 30), (page, negative, 40)):
        schema = schemathesis.openapi.from_dict(described)
        schema.config.update(base_url=str(server.client.base_url))
        operation = schema["/invocations"]["POST"]

        @hypothesis.seed(1)
        @hypothesis.settings(
            max_examples=most, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def requests(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and all(isinstance(each, list) for each in case.body.values()):
                # JSON Schema has no way to say that two inputs are of one length.
                shortest = min(map(len, case.body.values()), default=0)
                case.body = {name: each[:shortest] for name, each in case.body.items()}
            reply = case.call()
            statuses[reply.status_code] += 1
            case.validate_response(reply, checks=checks)

        requests()
    # Of requests that are all refused, the checks of answers would learn nothing.
    assert statuses[200] >= 10
    assert statuses[400] >= 10


def test_dtypes_and_shapes_are_those_of_the_signature() -> None:
    schemas = openapi.document(Signature.parse(PAIR))["components"]["schemas"]
    image = schemas["Inputs"]["properties"]["image"]
    assert (image["type"], image["description"]) == ("array", "uint8 of shape (batch, 2, 2)")
    row = image["items"]["items"]
    assert (row["minItems"], row["maxItems"]) == (2, 2)
    assert row["items"] == {"type": "integer", "minimum": 0, "maximum": 255}
    weight = schemas["Inputs"]["properties"]["weight"]["items"]
    assert weight == {"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38}
    assert schemas["Inputs"]["required"] == ["image", "weight"]


@pytest.mark.parametrize(
    ("dtype", "schema"),
    [
        ("int8", {"type": "integer", "minimum": -128, "maximum": 127}),
        ("bool", {"type": "boolean"}),
        ("str", {"type": "string"}),
        ("float64", {"type": "number"}),
        ("float16", {"type": "number", "minimum": -65504.0, "maximum": 65504.0}),
        ("complex64", {}),
    ],
)
def test_each_dtype_has_its_schema(dtype: str, schema: dict[str, Any]) -> None:
    signature = {**ONE, "inputs": [{"name": "x", "dtype": dtype, "shape": [2]}]}
    items = openapi.document(Signature.parse(signature))["components"]["schemas"]["Inputs"]["properties"]["x"]["items"]
    assert items == schema


def test_the_page_of_an_endpoint_is_that_of_the_sagemaker_runtime() -> None:
    page = openapi.document(Signature.parse(PAIR), title="digits", endpoint="digits", region="eu-west-1")
    OpenAPIV31SpecValidator(page).validate()
    assert list(page["paths"]) == ["/endpoints/digits/invocations"]
    assert page["servers"] == [{"url": "https://runtime.sagemaker.eu-west-1.amazonaws.com"}]


def test_the_command_writes_the_page_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "digits").mkdir()
    manifest(tmp_path / "digits", PAIR)
    assert cli.main(["openapi", str(tmp_path / "digits"), "--out", str(tmp_path / "page.json")]) == 0
    page = json.loads((tmp_path / "page.json").read_text())
    OpenAPIV31SpecValidator(page).validate()
    assert page["info"]["title"] == "digits"
    assert cli.main(["openapi", str(tmp_path / "digits")]) == 0
    assert json.loads(capsys.readouterr().out)["openapi"] == "3.1.0"
    assert cli.main(["openapi", str(tmp_path)]) == 1
    assert "there is no windlass.json" in capsys.readouterr().err
