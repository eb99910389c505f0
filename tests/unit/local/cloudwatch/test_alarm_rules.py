from __future__ import annotations

import pytest

from windlass.local.cloudwatch.alarm_rules import AlarmRule, RuleError

STATES = {"a": "ALARM", "b": "OK", "c": "INSUFFICIENT_DATA", "d with space": "ALARM"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("TRUE", True),
        ("FALSE", False),
        ("ALARM(a)", True),
        ("ALARM(b)", False),
        ("OK(b)", True),
        ("INSUFFICIENT_DATA(c)", True),
        ('ALARM("d with space")', True),
        ("ALARM('a')", True),
        ("ALARM ( a )", True),
        ("ALARM(arn:aws:cloudwatch:us-east-1:123456789012:alarm:a)", True),
        ("NOT ALARM(a)", False),
        ("NOT NOT ALARM(a)", True),
        ("ALARM(a) AND ALARM(b)", False),
        ("ALARM(a) OR ALARM(b)", True),
        ("ALARM(b) AND ALARM(b) OR ALARM(a)", True),  # AND binds stronger
        ("ALARM(b) AND (ALARM(b) OR ALARM(a))", False),
        ("NOT ALARM(b) AND OK(b)", True),
        ("NOT (ALARM(a) AND OK(b))", False),
        ("((ALARM(a)))", True),
        ("ALARM(gone)", False),
    ],
)
def test_rules(text: str, expected: bool) -> None:
    assert AlarmRule.parse(text).holds(STATES.get) is expected


def test_children_are_named_once_in_their_order() -> None:
    assert AlarmRule.parse("ALARM(b) OR (OK(a) AND ALARM(b))").children == ("b", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends too early"),
        ("ALARM(a) AND", "ends too early"),
        ("ALARM()", "needs the name of an alarm"),
        ("ALARM a", "needs the name of an alarm"),
        ("ALARM(a) ALARM(b)", "Unexpected 'ALARM'"),
        ("(ALARM(a)", "ends too early"),
        ("ALARM(a))", "Unexpected ')'"),
        ("alarm(a)", "Unexpected 'alarm'"),
        (" OR ".join(f"ALARM(a{number})" for number in range(101)), "100 are the most"),
    ],
)
def test_wrong_rules_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(RuleError, match=message.replace("(", r"\(").replace(")", r"\)")):
        AlarmRule.parse(text)


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ("AT_LEAST(2, ALARM, (a, b, c))", True),
        ("AT_LEAST(3, ALARM, (a, b, c))", False),
        ("AT_LEAST(50%, ALARM, (a, b, c))", True),
        ("AT_LEAST(67%, ALARM, (a, b, c))", False),
        ("AT_LEAST(1, OK, (a, 'b', \"c\"))", True),
        ("AT_LEAST(2, NOT OK, (a, b, c)) AND ALARM(a)", True),
        ("NOT AT_LEAST(1, INSUFFICIENT_DATA, (a, b, c))", True),
    ],
)
def test_at_least_so_many(rule: str, holds: bool) -> None:
    parsed = AlarmRule.parse(rule)
    assert parsed.children == ("a", "b", "c")
    assert parsed.holds({"a": "ALARM", "b": "ALARM", "c": "OK"}.get) is holds


@pytest.mark.parametrize(
    "rule",
    [
        "AT_LEAST(2, ALARM)",
        "AT_LEAST(4, ALARM, (a, b, c))",
        "AT_LEAST(0, ALARM, (a))",
        "AT_LEAST(101%, ALARM, (a))",
        "AT_LEAST(1, RINGING, (a))",
        "AT_LEAST(1, ALARM, ())",
    ],
)
def test_at_least_that_makes_no_sense(rule: str) -> None:
    with pytest.raises(RuleError):
        AlarmRule.parse(rule)
