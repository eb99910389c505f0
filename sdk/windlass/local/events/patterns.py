"""What EventBridge checks of a pattern before it keeps it. Pure; matching itself is moto's.

    event_patterns.check('{"source": [{"prefix": "aws."}]}')      # raises AWS's InvalidEventPatternException

Source: EventBridge user guide, "Comparison operators for use in event patterns".
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping
from typing import Any

from windlass.local.faults import Fault

_ORDERS = ("=", "<", "<=", ">", ">=")
_MOST_BYTES = 4096  # PutRule's limit on EventPattern


def check(text: str) -> None:
    """Raise AWS's fault unless it is a pattern."""
    if len(text.encode()) > _MOST_BYTES:
        raise Fault(
            "ValidationException",
            "1 validation error detected: Value at 'eventPattern' failed to satisfy constraint: Member must have length less "
            f"than or equal to {_MOST_BYTES}",
        )
    try:
        pattern = json.loads(text)
    except ValueError:
        raise _invalid("Invalid JSON") from None
    if not isinstance(pattern, dict):
        raise _invalid("Filter is not an object")
    if not pattern:
        raise _invalid("Empty patterns are not allowed")
    _check_object(pattern)


def _invalid(reason: str) -> Fault:
    return Fault("InvalidEventPatternException", f"Event pattern is not valid. Reason: {reason}")


def _check_object(pattern: Mapping[str, Any]) -> None:
    for name, value in pattern.items():
        if name == "$or" and isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            for each in value:
                _check_object(each)
        elif isinstance(value, dict):
            if not value:
                raise _invalid("Empty objects are not allowed")
            _check_object(value)
        elif isinstance(value, list):
            if not value:
                raise _invalid("Empty arrays are not allowed")
            for each in value:
                _check_value(name, each)
        else:
            raise _invalid(f"'{name}' must be an object or an array")


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, list):
        raise _invalid(f"Match value must be String, number, true, false, or null at '{name}'")
    if not isinstance(value, dict):
        return
    if len(value) != 1:
        raise _invalid(f"Only one key allowed in match expression at '{name}'")
    ((operator, argument),) = value.items()
    if operator not in _OPERATORS:
        raise _invalid(f"Unrecognized match type {operator}")
    if not _OPERATORS[operator](argument):
        raise _invalid(f"{operator} match pattern at '{name}' is not valid: {json.dumps(argument)}")


def _text(argument: Any) -> bool:
    return isinstance(argument, str)


def _affix(argument: Any) -> bool:
    """``"x"`` or ``{"equals-ignore-case": "x"}``."""
    return _text(argument) or (
        isinstance(argument, dict) and [*argument] == ["equals-ignore-case"] and _text(argument["equals-ignore-case"])
    )


def _texts(argument: Any) -> bool:
    return _text(argument) or (isinstance(argument, list) and bool(argument) and all(map(_text, argument)))


def _wildcard(argument: Any) -> bool:
    return _text(argument) and "**" not in argument


def _anything_but(argument: Any) -> bool:
    if isinstance(argument, dict):
        if len(argument) != 1:
            return False
        ((operator, value),) = argument.items()
        return operator in ("prefix", "suffix", "equals-ignore-case", "wildcard") and _texts(value)
    values = argument if isinstance(argument, list) else [argument]
    plain = all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in values)
    return bool(values) and plain


def _numeric(argument: Any) -> bool:
    if not isinstance(argument, list) or len(argument) not in (2, 4):
        return False
    orders, limits = argument[::2], argument[1::2]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in limits):
        return False
    if not all(each in _ORDERS for each in orders):
        return False
    # A range goes from what is greater to what is less.
    return len(orders) == 1 or (
        {"=", *orders[:1]} <= {"=", ">", ">="} and orders[0] != "=" and orders[1] in ("<", "<=")
    )


def _cidr(argument: Any) -> bool:
    try:
        ipaddress.ip_network(argument, strict=False)
    except (ValueError, TypeError):
        return False
    return isinstance(argument, str) and "/" in argument


_OPERATORS: dict[str, Callable[[Any], bool]] = {
    "anything-but": _anything_but,
    "cidr": _cidr,
    "equals-ignore-case": _text,
    "exists": lambda argument: isinstance(argument, bool),
    "numeric": _numeric,
    "prefix": _affix,
    "suffix": _affix,
    "wildcard": _wildcard,
}
