"""Condition operators and patterns, each case worked out from the IAM user guide."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.local.iam import conditions
from windlass.local.iam.conditions import Invalid, hold, matches

CONTEXT: dict[str, str | tuple[str, ...]] = {
    "aws:username": "ann",
    "aws:securetransport": "true",
    "aws:sourceip": "203.0.113.7",
    "aws:currenttime": "2026-03-01T12:00:00Z",
    "aws:epochtime": "1772366400",
    "aws:sourcearn": "arn:aws:events:us-east-1:123456789012:rule/nightly",
    "aws:tagkeys": ("team", "stage"),
    "s3:prefix": "home/ann/data",
    "s3:max-keys": "10",
    "aws:principaltag/path": "a*b",
}

CASES = [
    # operator, key, policy's value, does it hold?
    ("StringEquals", "aws:username", "ann", True),
    ("StringEquals", "AWS:UserName", ["bob", "ann"], True),
    ("StringEquals", "aws:username", "Ann", False),
    ("StringEquals", "aws:username", "a*", False),
    ("StringEquals", "aws:absent", "x", False),
    ("StringEqualsIfExists", "aws:absent", "x", True),
    ("StringEqualsIfExists", "aws:username", "bob", False),
    ("StringNotEquals", "aws:username", ["bob", "eve"], True),
    ("StringNotEquals", "aws:username", ["bob", "ann"], False),
    ("StringNotEquals", "aws:absent", "x", True),
    ("StringEqualsIgnoreCase", "aws:username", "ANN", True),
    ("StringNotEqualsIgnoreCase", "aws:username", "ANN", False),
    ("StringLike", "s3:prefix", "home/*", True),
    ("StringLike", "s3:prefix", "home/${aws:username}/*", True),
    ("StringLike", "s3:prefix", "home/?nn/*", True),
    ("StringLike", "s3:prefix", "home/bob/*", False),
    ("StringLike", "s3:prefix", "home/${aws:absent}/*", False),
    ("StringLike", "s3:prefix", "home/${aws:absent, 'ann'}/*", True),
    ("StringNotLike", "s3:prefix", "tmp/*", True),
    ("StringNotLike", "s3:prefix", "home/*", False),
    ("ArnLike", "aws:sourcearn", "arn:aws:events:*:123456789012:rule/*", True),
    ("ArnLike", "aws:sourcearn", "arn:aws:events:*", False),  # a wildcard stays in its part
    ("ArnEquals", "aws:sourcearn", "arn:aws:events:us-east-1:123456789012:rule/night*", True),
    ("ArnNotLike", "aws:sourcearn", "arn:aws:events:*:123456789012:rule/nightly", False),
    ("ArnNotEquals", "aws:sourcearn", "arn:aws:sns:*:*:*", True),
    ("ArnLike", "aws:username", "*", False),  # no ARN
    ("NumericLessThanEquals", "s3:max-keys", "10", True),
    ("NumericLessThan", "s3:max-keys", 10, False),
    ("NumericGreaterThan", "s3:max-keys", "9.5", True),
    ("NumericEquals", "s3:max-keys", "10.0", True),
    ("NumericNotEquals", "s3:max-keys", "10", False),
    ("NumericLessThan", "aws:username", "10", False),
    ("NumericLessThan", "aws:absent", "10", False),
    ("NumericLessThanIfExists", "aws:absent", "10", True),
    ("DateGreaterThan", "aws:currenttime", "2026-03-01T11:59:59Z", True),
    ("DateLessThan", "aws:currenttime", "2026-03-01", False),
    ("DateGreaterThanEquals", "aws:currenttime", "1772366400", True),
    ("DateEquals", "aws:epochtime", "2026-03-01T12:00:00Z", True),
    ("DateNotEquals", "aws:epochtime", "2026-03-01T12:00:00Z", False),
    ("Bool", "aws:securetransport", "true", True),
    ("Bool", "aws:securetransport", False, False),
    ("BoolIfExists", "aws:multifactorauthpresent", "true", True),
    ("Bool", "aws:multifactorauthpresent", "false", False),
    ("IpAddress", "aws:sourceip", ["198.51.100.0/24", "203.0.113.0/24"], True),
    ("IpAddress", "aws:sourceip", "203.0.113.7", True),
    ("IpAddress", "aws:sourceip", "2001:db8::/32", False),
    ("NotIpAddress", "aws:sourceip", "203.0.113.0/24", False),
    ("NotIpAddress", "aws:sourceip", "198.51.100.0/24", True),
    ("Null", "aws:absent", "true", True),
    ("Null", "aws:username", "true", False),
    ("Null", "aws:username", False, True),
    ("ForAllValues:StringEquals", "aws:tagkeys", ["team", "stage", "cost"], True),
    ("ForAllValues:StringEquals", "aws:tagkeys", ["team"], False),
    ("ForAllValues:StringEquals", "aws:absent", ["team"], True),
    ("ForAnyValue:StringEquals", "aws:tagkeys", ["cost", "team"], True),
    ("ForAnyValue:StringEquals", "aws:tagkeys", ["cost"], False),
    ("ForAnyValue:StringEquals", "aws:absent", ["team"], False),
    ("ForAnyValue:StringLike", "aws:tagkeys", ["st*"], True),
    ("ForAllValues:StringNotEquals", "aws:tagkeys", ["secret"], True),
    ("ForAllValues:StringNotEquals", "aws:tagkeys", ["team"], False),
    ("ForAnyValue:StringNotEquals", "aws:tagkeys", ["team"], True),
    ("ForAllValues:StringLikeIfExists", "aws:absent", ["x"], True),
    ("BinaryEquals", "aws:username", "QmluYXJ5", False),
]


@pytest.mark.parametrize(("operator", "key", "value", "expected"), CASES)
def test_operators(operator: str, key: str, value: Any, expected: bool) -> None:
    assert hold({operator: {key: value}}, CONTEXT) is expected


def test_every_operator_and_every_key_must_hold() -> None:
    both = {"StringEquals": {"aws:username": "ann"}, "Bool": {"aws:securetransport": "true"}}
    assert hold(both, CONTEXT)
    assert not hold({**both, "IpAddress": {"aws:sourceip": "10.0.0.0/8"}}, CONTEXT)
    assert not hold({"StringEquals": {"aws:username": "ann", "s3:prefix": "x"}}, CONTEXT)


@pytest.mark.parametrize(
    "operator", ["StringEqual", "NullIfExists", "ForSomeValues:StringEquals", "ForAnyValue:Null", ""]
)
def test_an_unknown_operator_is_named(operator: str) -> None:
    with pytest.raises(Invalid, match=r"Invalid Condition type : "):
        conditions.check({operator: {"aws:username": "ann"}})


def test_the_value_of_a_variable_is_no_pattern() -> None:
    assert matches("x/${aws:PrincipalTag/path}", "x/a*b", CONTEXT)
    assert not matches("x/${aws:PrincipalTag/path}", "x/azzb", CONTEXT)


@pytest.mark.parametrize(("pattern", "text"), [("a${*}c", "a*c"), ("a${?}c", "a?c"), ("a${$}c", "a$c")])
def test_wildcards_can_be_written_as_themselves(pattern: str, text: str) -> None:
    assert matches(pattern, text, {})
    assert not matches(pattern, "abc", {})


TEXT = st.text(alphabet="ab:/*?[]{}.", max_size=12)


@given(TEXT, TEXT)
def test_wildcards_agree_with_the_shell(pattern: str, text: str) -> None:
    # fnmatch knows the same two wildcards once its brackets are escaped
    shell = pattern.replace("[", "[[]")
    assert matches(pattern, text, {}) == fnmatch.fnmatchcase(text, shell)


@given(st.lists(TEXT.map(lambda part: part.replace(":", "").replace("*", "").replace("?", "")), min_size=6, max_size=6))
def test_a_wildcard_in_a_part_of_an_arn_stays_in_it(parts: list[str]) -> None:
    arn = ":".join(parts)
    for number in range(6):
        starred = ":".join("*" if index == number else part for index, part in enumerate(parts))
        assert matches(starred, arn, {}, arn=True)
    assert matches("*", arn, {}, arn=True)
    assert not matches("*:*", arn, {}, arn=True)
