"""IAM as the local cloud itself asks it: may SageMaker act as that role?"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from windlass.local.cloud import ACCOUNT
from windlass.local.faults import Fault

SAGEMAKER = "sagemaker.amazonaws.com"


def require_assumable(arn: str) -> None:
    """Raise AWS's ValidationException unless the role exists and trusts SageMaker."""
    account = arn.split(":")[4]
    if account != ACCOUNT:
        raise Fault(
            "ValidationException", f"Cross-account pass role is not allowed: {arn} is not of account {ACCOUNT}."
        )
    role = _find(arn)
    if role is None or not _trusts(role.assume_role_policy_document, SAGEMAKER):
        raise Fault(
            "ValidationException",
            f"Could not assume role {arn}. Please ensure that the role exists and allows principal '{SAGEMAKER}' to assume"
            " the role.",
        )


def assumable(arn: str, service: str) -> bool:
    """Whether the role exists and trusts that service."""
    role = _find(arn)
    return role is not None and _trusts(role.assume_role_policy_document, service)


def _find(arn: str) -> Any:
    from moto.iam.models import iam_backends

    return next((role for role in list(iam_backends[ACCOUNT]["aws"].roles.values()) if role.arn == arn), None)


def _trusts(document: str | dict[str, Any], service: str) -> bool:
    try:
        policy = document if isinstance(document, dict) else json.loads(unquote(document))
    except ValueError:
        return False
    statements = policy.get("Statement", [])
    for statement in statements if isinstance(statements, list) else [statements]:
        principal = statement.get("Principal", {})
        services = principal if isinstance(principal, str) else principal.get("Service", [])
        named = services if isinstance(services, list) else [services]
        if statement.get("Effect") == "Allow" and (service in named or "*" in named):
            return True
    return False
