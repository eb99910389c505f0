"""The Condition element, and the patterns and variables of policies. Pure.

    context = {"aws:securetransport": "true", "aws:tagkeys": ("team", "stage")}
    conditions.hold({"Bool": {"aws:SecureTransport": "true"}}, context)

Context keys are in lower case: AWS compares them without case. A value that is a tuple belongs to a multivalued key.
Source: IAM user guide, "IAM JSON policy elements: Condition operators" and "Variables and tags".
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Context = Mapping[str, str | tuple[str, ...]]

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_DEFAULT = re.compile(r"^([^,]+?)\s*,\s*'(.*)'$", re.DOTALL)


class Invalid(ValueError):
    """A policy says what no policy can say; str() is for whoever wrote it."""


def listed(value: Any) -> list[Any]:
    """One or several, as policies write them."""
    return list(value) if isinstance(value, list | tuple) else [value]


def text_of(value: Any) -> str:
    """JSON's booleans and numbers as a policy compares them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- patterns ---


def matches(pattern: str, text: str, context: Context, *, arn: bool = False, ignore_case: bool = False) -> bool:
    """Whether a pattern with ``*``, ``?`` and ``${variables}`` covers the text.

    Args:
        arn: a wildcard in one of the first five parts of an ARN stays in its part.

    A variable without a value makes the pattern match nothing, as on AWS.
    """
    if pattern == "*":
        return True
    made, colons, at = [], 0, 0

    def literal(piece: str) -> None:
        nonlocal colons
        for character in piece:
            inside = "[^:]" if arn and colons < 5 else "."
            made.append({"*": f"{inside}*", "?": inside}.get(character, re.escape(character)))
            colons += character == ":"

    for found in _VARIABLE.finditer(pattern):
        literal(pattern[at : found.start()])
        value = _value(found[1], context)
        if value is None:
            return False
        made.append(re.escape(value))
        at = found.end()
    literal(pattern[at:])
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    return re.fullmatch("".join(made), text, flags) is not None


def _value(variable: str, context: Context) -> str | None:
    """Of ``aws:username``, of ``aws:PrincipalTag/team, 'none'`` with its default, and of the escapes ``* ? $``."""
    if variable in ("*", "?", "$"):
        return variable
    default = None
    if with_default := _DEFAULT.match(variable):
        variable, default = with_default[1], with_default[2]
    value = context.get(variable.strip().lower())
    return value if isinstance(value, str) else default


def _substituted(text: str, context: Context) -> str | None:
    missing = False

    def put(found: re.Match[str]) -> str:
        nonlocal missing
        value = _value(found[1], context)
        missing = missing or value is None
        return value or ""

    result = _VARIABLE.sub(put, text)
    return None if missing else result


# --- operators ---

Test = Callable[[str, str, Context], bool]
"""(value in the request, value in the policy, context): does it match?"""


def _string(ignore_case: bool = False) -> Test:
    def test(given: str, wanted: str, context: Context) -> bool:
        value = _substituted(wanted, context)
        if value is None:
            return False
        return given.casefold() == value.casefold() if ignore_case else given == value

    return test


def _like(given: str, wanted: str, context: Context) -> bool:
    return matches(wanted, given, context)


def _arn(given: str, wanted: str, context: Context) -> bool:
    return given.startswith("arn:") and matches(wanted, given, context, arn=True)


def _compared(read: Callable[[str], float], compare: Callable[[float, float], bool]) -> Test:
    def test(given: str, wanted: str, context: Context) -> bool:
        try:
            return compare(read(given), read(wanted))
        except ValueError:
            return False  # what is no number compares with none

    return test


def _date(text: str) -> float:
    """ISO 8601, or seconds since 1970."""
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _bool(given: str, wanted: str, context: Context) -> bool:
    return given.lower() == wanted.lower()


def _binary(given: str, wanted: str, context: Context) -> bool:
    try:
        return base64.b64decode(given, validate=True) == base64.b64decode(wanted, validate=True)
    except binascii.Error:
        return False


def _ip(given: str, wanted: str, context: Context) -> bool:
    try:
        return ipaddress.ip_address(given) in ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        return False


_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "Equals": operator.eq,
    "LessThan": operator.lt,
    "LessThanEquals": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanEquals": operator.ge,
}
_TESTS: dict[str, Test] = {
    "stringequals": _string(),
    "stringequalsignorecase": _string(ignore_case=True),
    "stringlike": _like,
    "arnequals": _arn,
    "arnlike": _arn,
    "bool": _bool,
    "binaryequals": _binary,
    "ipaddress": _ip,
    **{f"numeric{name}".lower(): _compared(float, order) for name, order in _ORDERS.items()},
    **{f"date{name}".lower(): _compared(_date, order) for name, order in _ORDERS.items()},
}
_NEGATIONS = {
    "stringnotequals": "stringequals",
    "stringnotequalsignorecase": "stringequalsignorecase",
    "stringnotlike": "stringlike",
    "arnnotequals": "arnequals",
    "arnnotlike": "arnlike",
    "numericnotequals": "numericequals",
    "datenotequals": "dateequals",
    "notipaddress": "ipaddress",
}


def hold(condition: Mapping[str, Mapping[str, Any]], context: Context) -> bool:
    """Whether every operator of a Condition element holds for every one of its keys.

    Raises:
        Invalid: there is no such operator.
    """
    return all(
        _holds(name, key.lower(), listed(value), context)
        for name, keys in condition.items()
        for key, value in keys.items()
    )


def check(condition: Mapping[str, Any]) -> None:
    """Raise Invalid for an operator that there is not."""
    for name in condition:
        _parsed(name)


def _parsed(name: str) -> tuple[str, str, bool]:
    """``ForAnyValue:StringLikeIfExists`` -> (``foranyvalue``, ``stringlike``, True)."""
    over, _, plain = name.rpartition(":")
    kind, over = plain.lower(), over.lower()
    optional = kind.endswith("ifexists")
    kind = kind.removesuffix("ifexists")
    known = kind in _TESTS or kind in _NEGATIONS or (kind == "null" and not optional and not over)
    if not known or over not in ("", "foranyvalue", "forallvalues"):
        raise Invalid(f"Invalid Condition type : {name}.")
    return over, kind, optional


def _holds(name: str, key: str, wanted: Sequence[Any], context: Context) -> bool:
    over, kind, optional = _parsed(name)
    given = context.get(key)
    if kind == "null":
        return any((given is None) == (text_of(value).lower() == "true") for value in wanted)
    if given is None:
        # ForAllValues is true of no values at all; a negated operator is true of a key that is not there.
        return optional or over == "forallvalues" or (over == "" and kind in _NEGATIONS)
    values = given if isinstance(given, tuple) else (given,)
    negated = kind in _NEGATIONS
    test = _TESTS[_NEGATIONS.get(kind, kind)]
    policy = [text_of(value) for value in wanted]

    def fits(value: str) -> bool:
        return any(test(value, each, context) for each in policy) != negated

    results: Iterable[bool] = map(fits, values)
    if over == "forallvalues" or (over == "" and negated):
        return all(results)
    return any(results)
