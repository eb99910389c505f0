"""Calls seen -> the least policy that allows exactly them. Pure.

print(json.dumps(least.policy(authorizer.seen())))

Actions on the same resources under the same conditions share a statement. Resources stay as they were named: a wildcard would
allow more than was seen. Where an action knows no resources, ``*`` is all that AWS takes; the condition keys that hold it to
what was seen (``cloudwatch:namespace``, ``iam:PassedToService``, ``kms:ViaService``) are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from windlass.local.iam import actions
from windlass.local.iam.authorizer import Seen

_SPELLED = {
    "cloudwatch:namespace": "cloudwatch:namespace",
    "iam:passedtoservice": "iam:PassedToService",
    "kms:viaservice": "kms:ViaService",
}


def policy(seen: Iterable[Seen]) -> dict[str, Any]:
    """A policy document, the same for the same calls in any order."""
    needed: dict[tuple[str, tuple[tuple[str, str], ...]], set[str]] = defaultdict(set)
    for each in seen:
        condition = tuple(sorted((_SPELLED[key], str(value)) for key, value in each.need.context.items()))
        needed[actions.spelled(each.need.action), condition].add(each.need.resource)
    # Conditions on one key differ by value only where the same action was seen with several: these may share a statement.
    by_values: dict[tuple[str, frozenset[str], tuple[str, ...]], dict[str, set[str]]] = {}
    for (action, condition), resources in needed.items():
        keys = tuple(key for key, _ in condition)
        shared = by_values.setdefault((action, frozenset(resources), keys), defaultdict(set))
        for key, value in condition:
            shared[key].add(value)
    statements: dict[tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]], set[str]] = defaultdict(set)
    for (action, covered, _), values in by_values.items():
        fixed = tuple((key, tuple(sorted(each))) for key, each in sorted(values.items()))
        statements[tuple(sorted(covered)), fixed].add(action)
    return {
        "Version": "2012-10-17",
        "Statement": sorted(
            (_statement(names, resources, condition) for (resources, condition), names in statements.items()),
            key=lambda statement: (statement["Action"], statement["Resource"], str(statement.get("Condition"))),
        ),
    }


def _statement(
    names: set[str], resources: tuple[str, ...], condition: tuple[tuple[str, tuple[str, ...]], ...]
) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": "Allow", "Action": sorted(names), "Resource": list(resources)}
    if condition:
        statement["Condition"] = {"StringEquals": {key: list(values) for key, values in condition}}
    return statement
