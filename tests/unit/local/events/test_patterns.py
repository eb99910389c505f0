"""Event patterns that PutRule takes and those that it refuses, from EventBridge's "Comparison operators"."""

from __future__ import annotations

import json
from typing import Any

import pytest

from windlass.local.events import patterns as event_patterns
from windlass.local.faults import Fault


@pytest.mark.parametrize(
    "value",
    [
        "text", 1, True, None, "",
        {"prefix": "a"}, {"prefix": {"equals-ignore-case": "A"}}, {"suffix": ".png"},
        {"equals-ignore-case": "A"}, {"wildcard": "a*b*"}, {"exists": False},
        {"cidr": "10.0.0.0/24"}, {"cidr": "2001:db8::/32"},
        {"anything-but": "a"}, {"anything-but": [1, 2]}, {"anything-but": {"prefix": "a"}},
        {"anything-but": {"wildcard": ["a*", "b*"]}}, {"anything-but": {"equals-ignore-case": ["a"]}},
        {"numeric": ["=", 1]}, {"numeric": [">", 0, "<=", 5.5]},
    ],
)  # fmt: skip
def test_good_values(value: Any) -> None:
    event_patterns.check(json.dumps({"detail": {"x": [value, "other"]}}))


@pytest.mark.parametrize(
    "value",
    [
        [], ["a"], {}, {"prefix": 1}, {"suffix": None}, {"odd": 1}, {"exists": "yes"}, {"cidr": "10.0.0.5"}, {"cidr": "abc"},
        {"cidr": 7}, {"wildcard": "a**"}, {"numeric": ["~", 1]}, {"numeric": [">", "1"]}, {"numeric": ["<", 5, ">", 1]},
        {"numeric": ["=", 5, "<", 1]}, {"numeric": [">"]}, {"numeric": 5}, {"anything-but": []}, {"anything-but": True},
        {"anything-but": {"odd": "a"}}, {"anything-but": {"prefix": 1}}, {"prefix": "a", "suffix": "b"},
        {"prefix": {"equals": "a"}},
    ],
)  # fmt: skip
def test_bad_values(value: Any) -> None:
    with pytest.raises(Fault, match=r"Event pattern is not valid\. Reason: ") as caught:
        event_patterns.check(json.dumps({"detail": {"x": [value]}}))
    assert caught.value.code == "InvalidEventPatternException"


@pytest.mark.parametrize("text", ["{", "[]", "1", "{}", '{"source": "s"}', '{"source": []}', '{"detail": {}}'])
def test_bad_patterns(text: str) -> None:
    with pytest.raises(Fault, match=r"Event pattern is not valid\. Reason: "):
        event_patterns.check(text)


def test_alternatives_are_looked_into() -> None:
    event_patterns.check('{"$or": [{"source": ["a"]}, {"detail": {"n": [{"numeric": [">", 1]}]}}]}')
    with pytest.raises(Fault, match="Unrecognized match type odd"):
        event_patterns.check('{"$or": [{"source": ["a"]}, {"detail": {"n": [{"odd": 1}]}}]}')


def test_a_pattern_may_be_so_long_and_no_longer() -> None:
    with pytest.raises(Fault, match="less than or equal to 4096"):
        event_patterns.check(json.dumps({"source": ["x" * 4096]}))
