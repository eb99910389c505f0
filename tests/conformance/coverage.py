"""Which operations of SageMaker the local cloud does, and which it refuses.

    python -m tests.conformance.coverage

Each operation is asked for, with what its service model requires. What is implemented is in the local cloud's own table; all
else must be refused by its name. An operation that is in no table and is answered pretends, and fails this command.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.model import ListShape, MapShape, Shape, StringShape, StructureShape

from windlass.local import LocalCloud

REFUSED = "UnknownOperationException"


def implemented() -> set[str]:
    """SageMaker's operations in the tables of the local cloud."""
    from botocore import xform_name

    from windlass.local.sagemaker import OPERATIONS

    model = boto3.client("sagemaker", region_name="us-east-1").meta.service_model
    return {name for name in model.operation_names if xform_name(name) in OPERATIONS}


def ask(url: str, operations: Iterable[str]) -> dict[str, str]:
    """operation -> the error code that a local cloud at that URL answers, or "" for success."""
    client = boto3.client(
        "sagemaker",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, parameter_validation=False, max_pool_connections=8),
    )
    methods = {client.meta.method_to_api_mapping[method]: method for method in client.meta.method_to_api_mapping}

    def code(name: str) -> str:
        shape = client.meta.service_model.operation_model(name).input_shape
        try:
            getattr(client, methods[name])(**(_least(shape) if shape else {}))
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return ""

    names = list(operations)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(code, names), strict=True))


def _least(shape: Shape, seen: tuple[str, ...] = ()) -> Any:
    """The least that the service model accepts as that shape."""
    if isinstance(shape, StructureShape):
        inside = (*seen, shape.name)
        return {
            name: _least(shape.members[name], inside)
            for name in shape.required_members
            if shape.members[name].name not in inside
        }
    if isinstance(shape, ListShape):
        return [_least(shape.member, seen)] if shape.metadata.get("min") else []
    if isinstance(shape, MapShape):
        return {}
    if isinstance(shape, StringShape):
        return shape.enum[0] if shape.enum else "a" * max(1, int(shape.metadata.get("min", 1)))
    return {"boolean": False, "timestamp": 0, "blob": b""}.get(shape.type_name, shape.metadata.get("min", 1))


def main() -> int:
    names = boto3.client("sagemaker", region_name="us-east-1").meta.service_model.operation_names
    done = implemented()
    with tempfile.TemporaryDirectory() as folder, LocalCloud.up(Path(folder), lifeline=True) as cloud:
        answers = ask(cloud.url, names)
    pretending = [name for name in names if name not in done and answers[name] != REFUSED]
    missing = [name for name in done if answers[name] == REFUSED]
    for name in names:
        print(f"{'implemented' if name in done else 'refused    '} {name}")
    print(f"\n{len(done)} of {len(names)} implemented, {len(names) - len(done)} refused by name")
    for name in pretending:
        print(f"PRETENDS: {name} is in no table, and is answered with {answers[name] or 'success'}")
    for name in missing:
        print(f"MISSING: {name} is in a table, and is refused")
    return 1 if pretending or missing else 0


if __name__ == "__main__":
    sys.exit(main())
