"""How an object is cut into records, packed, joined and filtered."""

from __future__ import annotations

import io

import pytest

from windlass.local.jobs.records import BadRecord, Processing, TooLarge, batches, kind_of


def packed(body: bytes, *, split: bool = True, single: bool = False, limit: int | None = None) -> list[list[bytes]]:
    return list(batches(io.BytesIO(body), split=split, single=single, limit=limit))


def test_records_are_packed_up_to_the_limit() -> None:
    assert packed(b"a\nbb\nccc\n") == [[b"a", b"bb", b"ccc"]]
    assert packed(b"a\nbb\nccc", limit=4) == [[b"a", b"bb"], [b"ccc"]]
    assert packed(b"a\nbb\nccc", limit=3) == [[b"a"], [b"bb"], [b"ccc"]]
    assert packed(b"a\r\nbb\r\n", single=True) == [[b"a"], [b"bb"]]
    assert packed(b"a\nbb\n", split=False) == [[b"a\nbb\n"]]
    assert packed(b"") == []


@pytest.mark.parametrize("split", [True, False])
def test_a_record_larger_than_a_request_is_refused(split: bool) -> None:
    with pytest.raises(TooLarge, match="5 bytes"):
        packed(b"abcde", split=split, limit=4)


def csv(input_filter: str = "$", output_filter: str = "$", *, join: bool = True) -> Processing:
    return Processing.parse("csv", input_filter, output_filter, join=join)


def test_csv_columns_are_filtered_joined_and_filtered_again() -> None:
    processing = csv("$[1:]", "$[0,-1]")
    batch = [b'7,"a, b",1', b"8,c,2"]

    assert processing.inputs(batch) == [b'"a, b",1', b"c,2"]
    assert processing.outputs(batch, b"0.1,cat\n0.2,dog\n") == b"7,cat\n8,dog"
    assert csv().outputs(batch, b"x\ny") == b'7,"a, b",1,x\n8,c,2,y'


def test_json_answers_join_their_records() -> None:
    processing = Processing.parse("json", "$.features", "$['id','SageMakerOutput']", join=True)
    batch = [b'{"id": 1, "features": [1, 2]}', b'{"id": 2, "features": [3]}']

    assert processing.inputs(batch) == [b"[1, 2]", b"[3]"]
    assert processing.outputs(batch, b'{"p": 0.5}\n{"p": 0.6}\n').splitlines() == [
        b'{"id": 1, "SageMakerOutput": {"p": 0.5}}',
        b'{"id": 2, "SageMakerOutput": {"p": 0.6}}',
    ]
    whole = Processing.parse("json", "$", "$", join=True)
    assert whole.outputs([b"[1, 2]"], b'{\n"p": 1}') == b'{"SageMakerInput": [1, 2], "SageMakerOutput": {"p": 1}}'


def test_answers_that_do_not_fit_are_told() -> None:
    with pytest.raises(BadRecord, match="answered 1 records to 2"):
        csv().outputs([b"1", b"2"], b"x")
    with pytest.raises(BadRecord, match=r"Nothing is at '\$\[5\]' in a record"):
        csv("$[5]").inputs([b"1,2"])
    with pytest.raises(BadRecord, match="not JSON"):
        Processing.parse("json", "$.a", "$", join=False).inputs([b"{"])


def test_content_types_that_can_be_read() -> None:
    assert [kind_of(it) for it in ("text/csv; charset=utf-8", "application/JSON", "application/jsonlines")] == [
        "csv",
        "json",
        "json",
    ]
    assert kind_of("image/png") is kind_of(None) is None
