"""Data points to states, after the tables and sentences of the CloudWatch User Guide.

A row shows the evaluation range, the most recent period on the right: 0 is within the threshold, X breaches it, - is missing.
Then the state for TreatMissingData missing, ignore, breaching and notBreaching: A(LARM), O(K), I(NSUFFICIENT_DATA), . (stays).
"""

from __future__ import annotations

import pytest

from windlass.local.cloudwatch.alarm_evaluation import EXTRA_PERIODS, Datapoint, Test, Verdict

TREATMENTS = ("missing", "ignore", "breaching", "notBreaching")
NAMES = {"A": "ALARM", "O": "OK", "I": "INSUFFICIENT_DATA", ".": None}

GUIDE_3_OF_3 = [("0-X-X", "OOOO"), ("0----", "OOOO"), ("-----", "I.AO"), ("0XX-X", "AAAA"), ("--X--", "A.AO")]
GUIDE_2_OF_3 = [("0-X-X", "AAAA"), ("00X0X", "AAAA"), ("0-X--", "OOAO"), ("----0", "OOAO"), ("---X-", "A.AO")]

WORKED_3_OF_3 = [
    ("XXXXX", "AAAA"),  # nothing is missing: the last three count
    ("00000", "OOOO"),
    ("00XXX", "AAAA"),
    ("0XXX0", "OOOO"),
    ("XXX00", "OOOO"),
    ("X-X-X", "AAAA"),  # three real ones, however far back
    ("XXX--", "AAAA"),
    ("0XX--", "OOOO"),
    ("----0", "OOOO"),  # one real and good: filling in cannot make three
    ("----X", "O.AO"),  # the next one may be good
    ("---X-", "O.AO"),
    ("---X0", "OOOO"),  # ... and it was
    ("--X-0", "OOOO"),
    ("---XX", "O.AO"),
    ("-XX--", "A.AO"),  # old enough: nothing that may still come can help
    ("XX---", "A.AO"),
    ("X----", "A.AO"),
    ("0---X", "OOOO"),
]
WORKED_2_OF_3 = [
    ("-----", "I.AO"),
    ("---XX", "AAAA"),  # two breaching are enough, whatever the third is
    ("----X", "O.AO"),
    ("-X--0", "OOAO"),
    ("0---X", "OOAO"),
    ("--0X-", "OOAO"),
    ("X0X--", "AAAA"),
    ("X00--", "OOOO"),
    ("XX00-", "OOOO"),  # the last three real ones are X 0 0
    ("XX0X-", "AAAA"),
]
WORKED_1_OF_1 = [("---", "I.AO"), ("X--", "AAAA"), ("--0", "OOOO"), ("0-X", "AAAA"), ("X-0", "OOOO"), ("-X-", "AAAA")]
WORKED_1_OF_3 = [("----X", "AAAA"), ("----0", "OOAO"), ("0X0--", "AAAA"), ("X000-", "OOOO"), ("-----", "I.AO")]
WORKED_4_OF_5 = [
    ("--XXXXX", "AAAA"),
    ("0XXXX0X", "AAAA"),
    ("0XXX00X", "OOOO"),
    ("XX---XX", "AAAA"),
    ("XX----X", "A.AO"),
    ("0X---XX", "OOAO"),
    ("-----XX", "O.AO"),
]

TABLE = [
    (periods, to_alarm, row, treatment, NAMES[state])
    for periods, to_alarm, rows in [
        (3, 3, GUIDE_3_OF_3 + WORKED_3_OF_3),
        (3, 2, GUIDE_2_OF_3 + WORKED_2_OF_3),
        (1, 1, WORKED_1_OF_1),
        (3, 1, WORKED_1_OF_3),
        (5, 4, WORKED_4_OF_5),
    ]
    for row, states in rows
    for treatment, state in zip(TREATMENTS, states, strict=True)
]


def points(row: str) -> list[Datapoint]:
    values = {"0": 0.0, "X": 2.0, "-": None}
    return [Datapoint(60.0 * number, values[sign]) for number, sign in enumerate(row)]


@pytest.mark.parametrize(("periods", "to_alarm", "row", "treatment", "expected"), TABLE)
def test_states_follow_the_guide(periods: int, to_alarm: int, row: str, treatment: str, expected: str | None) -> None:
    test = Test("GreaterThanThreshold", 1.0, periods, to_alarm, treatment)
    assert len(row) == periods + EXTRA_PERIODS
    assert test.judge(points(row)).state == expected


@pytest.mark.parametrize(
    ("operator", "at_threshold", "above"),
    [
        ("GreaterThanThreshold", "OK", "ALARM"),
        ("GreaterThanOrEqualToThreshold", "ALARM", "ALARM"),
        ("LessThanThreshold", "OK", "OK"),
        ("LessThanOrEqualToThreshold", "ALARM", "OK"),
    ],
)
def test_operators_at_and_above_the_threshold(operator: str, at_threshold: str, above: str) -> None:
    test = Test(operator, 5.0, 1, 1)
    assert test.judge([Datapoint(0, 5.0)]).state == at_threshold
    assert test.judge([Datapoint(0, 5.1)]).state == above


def test_a_percentile_of_too_few_samples_leaves_the_state_when_asked_to() -> None:
    few = [Datapoint(0, 9.0, samples=3, enough=False)]
    assert Test("GreaterThanThreshold", 1.0, 1, 1, ignore_low_samples=True).judge(few).state is None
    assert Test("GreaterThanThreshold", 1.0, 1, 1).judge(few).state == "ALARM"


@pytest.mark.parametrize(
    ("test", "row", "before", "expected"),
    [
        (
            Test("GreaterThanThreshold", 1.0, 1, 1),
            "--X",
            "OK",
            "Threshold Crossed: 1 datapoint [2.0 (01/01/70 00:02:00)] was greater than the threshold (1.0).",
        ),
        (
            Test("GreaterThanThreshold", 1.0, 1, 1),
            "--0",
            "ALARM",
            "Threshold Crossed: 1 datapoint [0.0 (01/01/70 00:02:00)] was not greater than the threshold (1.0).",
        ),
        (
            Test("GreaterThanThreshold", 1.0, 2, 2),
            "--XX",
            "OK",
            "Threshold Crossed: 2 datapoints [2.0 (01/01/70 00:03:00), 2.0 (01/01/70 00:02:00)] were greater than "
            "the threshold (1.0).",
        ),
        (
            Test("GreaterThanThreshold", 1.0, 3, 2, out_of=True),
            "--X0X",
            "OK",
            "Threshold Crossed: 2 out of the last 3 datapoints [2.0 (01/01/70 00:04:00), 2.0 (01/01/70 00:02:00)] were greater "
            "than the threshold (1.0) (minimum 2 datapoints for OK -> ALARM transition).",
        ),
        (
            Test("LessThanThreshold", 1.0, 1, 1, out_of=True),
            "--X",
            "ALARM",
            "Threshold Crossed: 1 out of the last 1 datapoints [2.0 (01/01/70 00:02:00)] was not less than the threshold (1.0) "
            "(minimum 1 datapoint for ALARM -> OK transition).",
        ),
        (
            Test("GreaterThanThreshold", 1.0, 2, 2, "breaching"),
            "----",
            "OK",
            "Threshold Crossed: no datapoints were received for 2 periods and 2 missing datapoints were treated as "
            "[Breaching].",
        ),
        (
            Test("GreaterThanThreshold", 1.0, 1, 1, "notBreaching"),
            "---",
            "ALARM",
            "Threshold Crossed: no datapoints were received for 1 period and 1 missing datapoint was treated as "
            "[NonBreaching].",
        ),
        (Test("GreaterThanThreshold", 1.0, 1, 1), "---", "OK", "Insufficient Data: 1 datapoint was unknown."),
    ],
)
def test_reasons_are_in_the_words_of_aws(test: Test, row: str, before: str, expected: str) -> None:
    verdict = test.judge(points(row))
    assert isinstance(verdict, Verdict)
    assert test.reason(verdict, before) == expected
