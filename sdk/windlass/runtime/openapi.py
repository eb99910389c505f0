"""The model server's API as an OpenAPI 3.1 document, from the model's signature. Pure.

    page = openapi.document(signature, title="digits", version="2")    # -> dict, for json.dumps
    page = openapi.document(signature, title="digits", endpoint="digits", region="eu-west-1")

The server answers it at ``GET /openapi.json``; ``windlass openapi`` writes it to a file, from which generators for other
languages make a typed client: openapi-generator, openapi-typescript, openapi-python-client and so on. With an endpoint's name
the paths are those of the SageMaker runtime, whose requests are signed (Signature Version 4).

JSON Schema says nothing of two dimensions that must be equal, such as the batches of two inputs: the server does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from windlass.runtime import codecs
from windlass.runtime.codecs import fitting

if TYPE_CHECKING:
    from windlass.artifact import Signature, Tensor

Schema = dict[str, Any]

_MAX_FLOAT32, _MAX_FLOAT16 = 3.4028234663852886e38, 65504.0
_BINARY = {kind for kind in (*codecs.IN, *codecs.OUT) if kind not in (codecs.JSON, codecs.JSON_LINES, codecs.CSV)}


def document(
    signature: Signature | None,
    *,
    title: str = "model",
    version: str = "1",
    description: str = "",
    path: str = "/invocations",
    endpoint: str = "",
    region: str = "",
    without: Collection[str] = (),
) -> dict[str, Any]:
    """The page.

    Args:
        signature: of the model; ``None`` where anything goes in and out.
        title: of the page; ``version`` is the model's.
        description: what the model is for, in Markdown.
        path: where the server answers predictions.
        endpoint: describe this endpoint's place in the SageMaker runtime, in place of the server in the container.
        region: of the endpoint.
        without: media types that are not served there, because what reads and writes them is not installed.
    """
    request, response, schemas = _any(), _any(), {}
    if signature:
        schemas = {"Inputs": _object(signature.inputs, given=True), "Outputs": _object(signature.outputs)}
        request = _one_or_named(signature.inputs, "#/components/schemas/Inputs")
        response = _one_or_named(signature.outputs, "#/components/schemas/Outputs", always_one=True)
    takes = fitting.takes(signature.inputs) if signature else codecs.IN
    gives = fitting.gives(signature.outputs) if signature else codecs.OUT
    kinds_in = _usual_first(
        [kind for kind in takes if kind not in without], signature.content_types if signature else ()
    )
    kinds_out = _usual_first(
        [kind for kind in gives if kind not in without], signature.accept_types if signature else ()
    )
    has_example = signature is not None and signature.example is not None
    example = {codecs.JSON: {"example": signature.example}} if signature and has_example else {}
    predict = {
        "operationId": "predict",
        "summary": "A prediction",
        "description": "The media type of the answer is chosen by Accept. A body that does not fit is refused with the input, "
        "what came and what was expected.",
        "parameters": _HEADERS,
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": _body(kind, request), **example.get(kind, {})} for kind in kinds_in},
        },
        "responses": {
            "200": {
                "description": "The prediction.",
                "content": {kind: {"schema": _body(kind, response)} for kind in kinds_out},
            },
            **_ERRORS,
        },
    }
    paths: dict[str, Any] = {f"/endpoints/{endpoint}/invocations" if endpoint else path: {"post": predict}}
    page: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, **({"description": description} if description else {})},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if endpoint:
        page["servers"] = [{"url": f"https://runtime.sagemaker.{region or 'us-east-1'}.amazonaws.com"}]
        page["components"]["securitySchemes"] = {
            "sigv4": {
                "type": "apiKey",
                "name": "Authorization",
                "in": "header",
                "description": "AWS Signature Version 4, service sagemaker",
                "x-amazon-apigateway-authtype": "awsSigv4",
            }
        }
        page["security"] = [{"sigv4": []}]
    else:
        paths["/ping"] = {"get": _PING}
        paths["/metrics"] = {"get": _METRICS}
    return page


def _any() -> Schema:
    return {"description": "Any JSON value that the model's code takes or gives."}


def _usual_first(known: Sequence[str], usual: Sequence[str]) -> list[str]:
    """The signature's types lead; those of the user's own are among them."""
    return list(dict.fromkeys([*usual, *known]))


def _body(kind: str, schema: Schema) -> Schema:
    if kind == codecs.JSON:
        return schema
    # OpenAPI 3.1: binary bodies have no type, and the media type says the rest.
    return {"type": "string", "contentMediaType": kind} if kind in _BINARY else {"type": "string"}


def _one_or_named(tensors: Sequence[Tensor], reference: str, *, always_one: bool = False) -> Schema:
    """An array for a single tensor, or the object of them all."""
    if len(tensors) > 1:
        return {"$ref": reference}
    one = _array(tensors[0], given=not always_one)
    return one if always_one else {"anyOf": [{"$ref": reference}, one]}


def _object(tensors: Sequence[Tensor], *, given: bool = False) -> Schema:
    return {
        "type": "object",
        "properties": {tensor.name: _array(tensor, given=given) for tensor in tensors},
        "required": [tensor.name for tensor in tensors],
        "additionalProperties": False,
    }


def _array(tensor: Tensor, *, given: bool = False) -> Schema:
    schema = _number(tensor.dtype)
    for place, size in enumerate(reversed(tensor.shape)):
        schema = {"type": "array", "items": schema}
        if isinstance(size, int):
            schema |= {"minItems": size, "maxItems": size}
        elif given and place:
            schema |= {"minItems": 1}  # of an empty list nobody can tell the dimensions inside, so it is refused
    shape = ", ".join(map(str, tensor.shape))
    return {**schema, "description": f"{tensor.dtype} of shape ({shape})"}


def _number(dtype: str) -> Schema:
    """One item, with the limits of its width."""
    name = dtype.lstrip("<>=|")
    if name.startswith(("uint", "int")) and name.lstrip("uint").isdigit():
        bits, unsigned = int(name.lstrip("uint")), name.startswith("u")
        low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return {"type": "integer", "minimum": low, "maximum": high}
    if name.startswith("float"):
        limit = {"float16": _MAX_FLOAT16, "float32": _MAX_FLOAT32}.get(name)
        return {"type": "number", **({"minimum": -limit, "maximum": limit} if limit else {})}
    if name == "bool":
        return {"type": "boolean"}
    return {"type": "string"} if name in ("str", "object") or name.startswith("U") else {}


def _header(name: str, description: str, **schema: Any) -> Schema:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string", **schema}}


_HEADERS = [
    _header("X-Amzn-SageMaker-Inference-Id", "Names the prediction in the logs and for late labels.", maxLength=64),
    _header("X-Amzn-SageMaker-Custom-Attributes", "Reaches the model's code.", maxLength=1024),
]


def _text(description: str, headers: Mapping[str, Any] | None = None) -> Schema:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {"description": description, "content": content, **({"headers": headers} if headers else {})}


_RETRY = {"Retry-After": {"description": "Seconds until there should be room.", "schema": {"type": "integer"}}}
_ERRORS = {
    "400": _text("The body is malformed, or does not fit the signature."),
    "406": _text("No accepted media type fits the prediction."),
    "408": _text("The body did not arrive in time."),
    "413": _text("The body is too large."),
    "415": _text("The content type or encoding is not supported."),
    "500": _text("The model failed."),
    "503": _text("Too busy, or not ready.", _RETRY),
    "504": _text("The model did not answer in time."),
}
_PING = {
    "operationId": "ping",
    "summary": "Health",
    "responses": {
        "200": {"description": "The model is loaded."},
        "503": _text("The model is loading or draining: the body says which."),
    },
}
_METRICS = {
    "operationId": "metrics",
    "summary": "Counts and times, in Prometheus' text format",
    "responses": {"200": _text("The metrics.")},
}
