"""Whether an answer of the server is one that AWS could give: every member known, of its type, required ones there, none empty.

    watch(client, violations.append)      # every answer that this boto3 client gets is checked

The models are botocore's. JSON answers are checked as they came over the wire, those of other protocols as botocore has
parsed them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from botocore.model import ListShape, MapShape, OperationModel, Shape, StringShape, StructureShape

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "character": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "timestamp": (int, float, str, datetime),
    "blob": (str, bytes),
}

# What the local cloud answers itself, where AWS leaves out what is empty. IAM, for one, sends an empty RoleLastUsed; and in
# moto's own services null may stand for what AWS leaves out: every client reads both alike.
# Required by the service model, and yet not in AWS's answer: a version in a group has no name of its own.
_KNOWN = frozenset({"SageMaker.DescribeModelPackage: the answer lacks ModelPackageName, which is required"})

_EMPTY = " is an empty structure; AWS leaves such a member out"
_STRICT = frozenset({"SageMaker", "SageMaker Runtime", "CloudWatch"})


def watch(client: Any, report: Callable[[str], None]) -> None:
    """Report every violation in what this client is answered from now on: ``SageMaker.DescribeModel: VpcConfig is null``."""
    protocol = client.meta.service_model.resolved_protocol

    def raw(operation_model: OperationModel, response_dict: Mapping[str, Any], **_: Any) -> None:
        if response_dict["status_code"] < 300 and operation_model.output_shape is not None:
            strict = operation_model.service_model.service_id in _STRICT
            hook = None if strict else _without_nulls
            check(operation_model, json.loads(response_dict["body"] or b"{}", object_hook=hook))

    def parsed(http_response: Any, parsed: Mapping[str, Any], model: OperationModel, **_: Any) -> None:
        if http_response.status_code < 300 and model.output_shape is not None:
            # botocore keeps the members that it knows, and adds some of its own.
            check(model, {name: value for name, value in parsed.items() if name in model.output_shape.members})

    def check(model: OperationModel, answer: Any) -> None:
        for violation in violations(model.output_shape, answer):
            text = f"{model.service_model.service_id}.{model.name}: {violation}"
            strict = model.service_model.service_id in _STRICT
            if text not in _KNOWN and (strict or not violation.endswith(_EMPTY)):
                report(text)

    if protocol == "json":
        client.meta.events.register("before-parse.*.*", raw)
    else:
        client.meta.events.register("after-call.*.*", parsed)


def _without_nulls(structure: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in structure.items() if value is not None}


def violations(shape: Shape, value: Any, path: str = "") -> Iterator[str]:
    """What is wrong with that value as one of that shape."""
    where = path or "the answer"
    if value is None:
        yield f"{where} is null"
    elif isinstance(shape, StructureShape):
        yield from _of_structure(shape, value, path, where)
    elif isinstance(shape, ListShape):
        if not isinstance(value, list):
            yield f"{where} is not a list but {value!r}"
            return
        for index, item in enumerate(value):
            yield from violations(shape.member, item, f"{path}[{index}]")
    elif isinstance(shape, MapShape):
        if not isinstance(value, Mapping):
            yield f"{where} is not a map but {value!r}"
            return
        for key, item in value.items():
            yield from violations(shape.value, item, f"{path}[{key!r}]")
    elif not isinstance(value, _TYPES[shape.type_name]) or (isinstance(value, bool) and shape.type_name != "boolean"):
        if not hasattr(value, "read"):  # a stream
            yield f"{where} is not a {shape.type_name} but {value!r}"
    elif isinstance(shape, StringShape) and shape.enum and value not in shape.enum:
        yield f"{where} is {value!r}, which is none of {', '.join(shape.enum)}"


def _of_structure(shape: StructureShape, value: Any, path: str, where: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        if not hasattr(value, "close"):  # an event stream
            yield f"{where} is not a structure but {value!r}"
        return
    if path and not value and shape.members:
        yield f"{where}{_EMPTY}"
        return
    for name in shape.required_members:
        if name not in value:
            yield f"{where} lacks {name}, which is required"
    for name, member in value.items():
        if name in shape.members:
            yield from violations(shape.members[name], member, f"{path}.{name}" if path else name)
        else:
            yield f"{where} has {name}, which the service model does not know"
