"""Which operations of SageMaker the local cloud does, and which it refuses.

    python -m tests.conformance.coverage

A fresh cloud, in which there is nothing, is asked for each operation with what its service model requires. An operation that
is not in the local cloud's own table must be refused by its name. One that is may not answer with content that nobody put
there: it finds nothing to describe, change, stop or delete, lists nothing, and creates nothing for a role that is not there.
Whatever does otherwise pretends, and fails this command.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.model import ListShape, MapShape, Shape, StringShape, StructureShape

from windlass.local import LocalCloud

REFUSED = "UnknownOperationException"
NEEDS_NOTHING = ("CreateModelPackageGroup",)
"""What AWS, too, does without anything that must be there before."""


def implemented() -> set[str]:
    """SageMaker's operations in the tables of the local cloud."""
    from botocore import xform_name

    from windlass.local.sagemaker import OPERATIONS

    model = boto3.client("sagemaker", region_name="us-east-1").meta.service_model
    return {name for name in model.operation_names if xform_name(name) in OPERATIONS}


class Answer(NamedTuple):
    """The error code, or "" for success; and what was in the answer."""

    code: str
    content: Mapping[str, Any]


def ask(url: str, operations: Iterable[str]) -> dict[str, Answer]:
    """operation -> what a local cloud at that URL answers. What creates things is asked for last."""
    client = boto3.client(
        "sagemaker",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, parameter_validation=False, max_pool_connections=8),
    )
    methods = {client.meta.method_to_api_mapping[method]: method for method in client.meta.method_to_api_mapping}

    def answer(name: str) -> Answer:
        shape = client.meta.service_model.operation_model(name).input_shape
        try:
            content = getattr(client, methods[name])(**(_least(shape) if shape else {}))
        except ClientError as error:
            return Answer(str(error.response["Error"]["Code"]), {})
        return Answer("", {key: value for key, value in content.items() if key != "ResponseMetadata"})

    names = sorted(operations, key=lambda name: (name.startswith("Create"), name))
    creating = [name for name in names if name.startswith("Create")]
    found: dict[str, Answer] = {}
    with ThreadPoolExecutor(8) as pool:
        for part in (names[: len(names) - len(creating)], creating):
            found |= dict(zip(part, pool.map(answer, part), strict=True))
    return found


def pretenders(answers: Mapping[str, Answer], done: Collection[str]) -> dict[str, str]:
    """operation -> what is wrong with its answer, given those that the cloud has in its table."""
    told = {name: _pretends(name, answer, name in done) for name, answer in answers.items()}
    return {name: why for name, why in told.items() if why}


def _pretends(name: str, answer: Answer, done: bool) -> str:
    if not done:
        return "" if answer.code == REFUSED else f"is in no table, and is answered with {answer.code or 'success'}"
    if answer.code == REFUSED:
        return "is in a table, and is refused"
    if answer.code:
        return ""
    if name.startswith(("List", "Search")):
        listed = sum(len(value) for value in answer.content.values() if isinstance(value, list))
        return f"lists {listed} things, where there are none" if listed else ""
    if name in NEEDS_NOTHING:
        return ""
    return "succeeds with what is not there"


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
    for name in names:
        print(f"{'implemented' if name in done else 'refused    '} {name}")
    print(f"\n{len(done)} of {len(names)} implemented, {len(names) - len(done)} refused by name")
    pretending = pretenders(answers, done)
    for name, why in pretending.items():
        print(f"PRETENDS: {name} {why}")
    if not pretending:
        print("None pretends")
    return 1 if pretending else 0


if __name__ == "__main__":
    sys.exit(main())
