"""Records of a batch transform: how an object is cut into them, packed into requests, and joined with the answers.

for batch in batches(stream, split=True, single=False, limit=6 << 20): ...
processing = Processing.parse("csv", "$[1:]", "$[0,-1]", join=True)
body = b"\\n".join(processing.inputs(batch)); answer = processing.outputs(batch, model(body))
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from windlass.local.pipelines import jsonpath

INPUT, OUTPUT = "SageMakerInput", "SageMakerOutput"
"""The keys under which JoinSource puts a record that is no object, and the answer."""


class TooLarge(ValueError):
    """A record is larger than one request may be."""


class BadRecord(ValueError):
    """A record, or the answer to it, cannot be read, filtered or joined. ``str()`` says why."""


def batches(stream: Iterable[bytes], *, split: bool, single: bool, limit: int | None) -> Iterator[list[bytes]]:
    """The records of an object, packed as requests.

    Args:
        stream: an open file.
        split: into lines (SplitType Line); else the object is one record.
        single: one record a request (BatchStrategy SingleRecord); else as many as fit.
        limit: bytes in a request; None for any.

    Raises:
        TooLarge: a record alone is larger than the limit.
    """
    records = (line.rstrip(b"\r\n") for line in stream) if split else iter([b"".join(stream)])
    batch: list[bytes] = []
    size = 0
    for record in records:
        if limit is not None and len(record) > limit:
            raise TooLarge(f"A record of {len(record)} bytes is too large for one request")
        if batch and (single or (limit is not None and size + 1 + len(record) > limit)):
            yield batch
            batch, size = [], 0
        size += len(record) + bool(batch)
        batch.append(record)
    if batch:
        yield batch


def kind_of(content_type: str | None) -> str | None:
    """``csv`` or ``json`` for the content types that DataProcessing can read; None for others."""
    plain = (content_type or "").partition(";")[0].strip().lower()
    return {"text/csv": "csv", "application/json": "json", "application/jsonlines": "json"}.get(plain)


@dataclass(frozen=True)
class Processing:
    """InputFilter, JoinSource and OutputFilter of one job."""

    kind: str
    input_filter: jsonpath.Path
    output_filter: jsonpath.Path
    join: bool

    @classmethod
    def parse(cls, kind: str, input_filter: str, output_filter: str, *, join: bool) -> Processing:
        """Raises jsonpath.BadPath, a ValueError, for a filter that is none."""
        return cls(kind, jsonpath.parse(input_filter), jsonpath.parse(output_filter), join)

    def inputs(self, batch: Sequence[bytes]) -> list[bytes]:
        """What the model gets of each record. Raises BadRecord."""
        if not self.input_filter.steps:
            return list(batch)
        return [self._write(_filtered(self.input_filter, self._read(record))) for record in batch]

    def outputs(self, batch: Sequence[bytes], answer: bytes) -> bytes:
        """What the output file gets for a batch and the model's answer. Raises BadRecord."""
        answers = self._answers(answer, len(batch))
        if self.join:
            if len(answers) != len(batch):
                raise BadRecord(f"The model answered {len(answers)} records to {len(batch)}, so they cannot be joined")
            joined = [self._joined(self._read(record), each) for record, each in zip(batch, answers, strict=True)]
        else:
            joined = answers
        return b"\n".join(self._write(_filtered(self.output_filter, each)) for each in joined)

    def _answers(self, answer: bytes, expected: int) -> list[Any]:
        lines = [line for line in answer.splitlines() if line.strip()]
        if self.kind == "csv" or expected > 1 or not self._whole(answer):
            return [self._read(line) for line in lines]
        return [self._read(answer)]

    def _whole(self, answer: bytes) -> bool:
        """Whether the answer is one JSON document, which may stand on several lines."""
        try:
            json.loads(answer)
        except ValueError:
            return False
        return True

    def _joined(self, record: Any, answer: Any) -> Any:
        if self.kind == "csv":
            return [*record, *answer]
        return {**record, OUTPUT: answer} if isinstance(record, dict) else {INPUT: record, OUTPUT: answer}

    def _read(self, record: bytes) -> Any:
        try:
            text = record.decode()
            if self.kind == "csv":
                return next(csv.reader([text], strict=True), [])
            return json.loads(text)
        except (ValueError, csv.Error) as error:
            raise BadRecord(f"A record is not {self.kind.upper()}: {error}") from error

    def _write(self, value: Any) -> bytes:
        if self.kind == "json":
            return json.dumps(value, ensure_ascii=False).encode()
        row = io.StringIO()
        csv.writer(row, lineterminator="").writerow(value if isinstance(value, list) else [value])
        return row.getvalue().encode()


def _filtered(path: jsonpath.Path, value: Any) -> Any:
    try:
        return path.of(value)
    except jsonpath.NoMatch as error:
        raise BadRecord(f"{error} in a record") from error
