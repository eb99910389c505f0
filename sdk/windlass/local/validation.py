"""A request checked against AWS's own service model, answered in AWS's own words.

``check("sagemaker", "CreateEndpoint", params)`` raises

``ValidationException: 1 validation error detected: Value 'no good' at 'endpointName' failed to satisfy constraint:
Member must satisfy regular expression pattern: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}``

botocore checks types and required members before it sends, but never patterns, enums or upper bounds: the service does that.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from moto.core.utils import get_service_model

from windlass.local.faults import Fault


def check(service: str, operation: str, params: Mapping[str, Any]) -> None:
    """Raise AWS's ValidationException when ``params`` break a constraint that the service model states."""
    shape = get_service_model(service).operation_model(operation).input_shape
    if shape is None:
        return
    problems = list(_problems(shape, params, ""))
    if problems:
        noun = "error" if len(problems) == 1 else "errors"
        raise Fault("ValidationException", f"{len(problems)} validation {noun} detected: {'; '.join(problems)}")


def _problems(shape: Any, value: Any, path: str) -> Iterator[str]:
    if shape.type_name == "structure" and isinstance(value, Mapping):
        for name, member in shape.members.items():
            # AWS names members in lower camel case whatever the wire says.
            inner = f"{path}.{name[0].lower()}{name[1:]}".lstrip(".")
            if value.get(name) is not None:
                yield from _problems(member, value[name], inner)
            elif name in shape.required_members:
                yield _violation("null", inner, "Member must not be null")
    elif shape.type_name == "list" and isinstance(value, list):
        yield from _bounds(shape, len(value), value, path, "length")
        for index, item in enumerate(value, 1):
            yield from _problems(shape.member, item, f"{path}.{index}.member")
    elif shape.type_name == "map" and isinstance(value, Mapping):
        yield from _bounds(shape, len(value), value, path, "length")
        for key, item in value.items():
            yield from _problems(shape.key, key, f"{path}.{key}.key")
            yield from _problems(shape.value, item, f"{path}.{key}.member")
    elif shape.type_name == "string" and isinstance(value, str):
        yield from _bounds(shape, len(value), value, path, "length")
        if shape.enum and value not in shape.enum:
            allowed = f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"
            yield _violation(f"'{value}'", path, allowed)
        pattern = shape.metadata.get("pattern")
        if pattern and (compiled := _compiled(pattern)) and not compiled.fullmatch(value):
            yield _violation(f"'{value}'", path, f"Member must satisfy regular expression pattern: {pattern}")
    elif shape.type_name in ("integer", "long", "float", "double") and isinstance(value, int | float):
        yield from _bounds(shape, value, value, path, "value")


def _bounds(shape: Any, size: float, value: Any, path: str, noun: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and size < low:
        yield _violation(f"'{value}'", path, f"Member must have {noun} greater than or equal to {low}")
    if high is not None and size > high:
        yield _violation(f"'{value}'", path, f"Member must have {noun} less than or equal to {high}")


def _violation(value: str, path: str, constraint: str) -> str:
    return f"Value {value} at '{path}' failed to satisfy constraint: {constraint}"


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """The model's Java pattern for Python; None for what Python's ``re`` lacks, such as Unicode classes and surrogates."""
    pattern = pattern.replace(r"\p{ASCII}", r"[\x00-\x7f]").replace(r"\z", r"\Z")
    try:
        return None if r"\p{" in pattern else re.compile(pattern, re.DOTALL)
    except re.error:
        return None
