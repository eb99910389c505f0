"""What moto's IAM and STS leave out of their records, and what a policy's evaluation needs there.

Session policies by ARN, permissions boundaries of users, how long a session may last, and who the account's root is.
"""

from __future__ import annotations

import functools
import json
import types
from typing import Any

from moto.core.responses import ActionResult, EmptyResult
from moto.iam import urls as iam_urls
from moto.iam.aws_managed_policies import aws_managed_policies_data
from moto.iam.models import AWSManagedPolicy, IAMBackend, iam_backends
from moto.iam.responses import IamResponse
from moto.sts import urls as sts_urls
from moto.sts.models import STSBackend, sts_backends
from moto.sts.responses import TokenResponse

from windlass.local.cloud import ACCOUNT, ROOT_ACCESS_KEY
from windlass.local.faults import Fault
from windlass.local.iam import principals
from windlass.local.iam.conditions import Invalid
from windlass.local.iam.policy import parse


class Sessions(TokenResponse):  # type: ignore[misc]
    """STS."""

    def _keep_to_this_account(self) -> None:
        """Raise AWS's error for a role that is none, or of another account: there is no other here."""
        arn = self._get_param("RoleArn") or ""
        parts = arn.split(":", 5)
        if len(parts) < 6 or parts[2] != "iam" or not parts[5].startswith("role/"):
            raise Fault("ValidationError", f"{arn} is invalid")
        if parts[4] != ACCOUNT:
            raise Fault(
                "AccessDenied",
                f"Not authorized to perform: sts:AssumeRole on resource: {arn}. The local cloud has one account, {ACCOUNT}: "
                f"give a role of it, or start a second local cloud in the place of account {parts[4]}.",
            )

    def assume_role_with_web_identity(self) -> ActionResult:
        self._keep_to_this_account()
        return super().assume_role_with_web_identity()

    def assume_role(self) -> ActionResult:
        self._keep_to_this_account()
        role = principals.role_of(self._get_param("RoleArn") or "")
        duration = self._get_int_param("DurationSeconds", 3600)
        longest = int(role.max_session_duration or 3600) if role else 43_200
        if not 900 <= duration <= 43_200:
            raise Fault(
                "ValidationError",
                f"1 validation error detected: Value '{duration}' at 'durationSeconds' failed to satisfy constraint: Member "
                f"must have value {'greater' if duration < 900 else 'less'} than or equal to "
                f"{900 if duration < 900 else 43_200}",
            )
        if duration > longest:
            raise Fault(
                "ValidationError",
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
            )
        arns = [item["arn"] for item in self._get_param("PolicyArns") or []]
        if missing := [arn for arn in arns if not principals.managed_policies([arn])]:
            raise Fault("ValidationError", f"The policy {missing[0]} does not exist.")
        if text := self._get_param("Policy"):
            _check(text)
        answer = super().assume_role()
        self.backend.assumed_roles[-1].session_policy_arns = arns
        return answer

    def get_caller_identity(self) -> ActionResult:
        if f"Credential={ROOT_ACCESS_KEY}/" in self.headers.get("Authorization", ""):
            return ActionResult({"UserId": ACCOUNT, "Account": ACCOUNT, "Arn": principals.ROOT.arn})
        return super().get_caller_identity()

    def get_session_token(self) -> ActionResult:
        raise NotImplementedError("GetSessionToken")  # moto's are the same for everybody, and nobody's

    def get_federation_token(self) -> ActionResult:
        raise NotImplementedError("GetFederationToken")


class SessionsBackend(STSBackend):  # type: ignore[misc]
    @property
    def _url_module(self) -> Any:
        paths = dict.fromkeys(sts_urls.url_paths, Sessions.dispatch)
        return types.SimpleNamespace(url_bases=sts_urls.url_bases, url_paths=paths)


class Identities(IamResponse):  # type: ignore[misc]
    """IAM."""

    def create_user(self) -> ActionResult:
        arn = self._get_param("PermissionsBoundary")
        boundary = _boundary(arn) if arn else None
        answer = super().create_user()
        answer.result["User"].permissions_boundary = boundary  # moto describes a user by its attributes
        return answer

    def put_user_permissions_boundary(self) -> ActionResult:
        user = self.backend.get_user(self._get_param("UserName"))
        user.permissions_boundary = _boundary(self._get_param("PermissionsBoundary"))
        return EmptyResult()

    def delete_user_permissions_boundary(self) -> ActionResult:
        self.backend.get_user(self._get_param("UserName")).permissions_boundary = None
        return EmptyResult()


class ManagedPolicies(dict[str, Any]):
    """The account's managed policies by ARN, and AWS's own as soon as somebody names one: all of them are 24 MB."""

    def __missing__(self, arn: str) -> Any:
        name = arn.rpartition("/")[2]
        data = _of_aws().get(name) if arn.startswith("arn:aws:iam::aws:policy/") else None
        if data is None:
            raise KeyError(arn)
        policy = AWSManagedPolicy.from_data(name, ACCOUNT, "us-east-1", data)
        if policy.arn != arn:  # another path
            raise KeyError(arn)
        self[arn] = policy
        return policy

    def get(self, arn: str, default: Any = None) -> Any:
        try:
            return self[arn]
        except KeyError:
            return default

    def __contains__(self, arn: object) -> bool:
        return self.get(str(arn)) is not None


@functools.cache
def _of_aws() -> dict[str, Any]:
    policies: dict[str, Any] = json.loads(aws_managed_policies_data)
    return policies


class IdentitiesBackend(IAMBackend):  # type: ignore[misc]
    def _init_managed_policies(self) -> dict[str, Any]:
        return ManagedPolicies()

    # moto looks through the values of all policies.

    def attach_user_policy(self, policy_arn: str, user_name: str) -> None:
        self.managed_policies.get(policy_arn)
        super().attach_user_policy(policy_arn, user_name)

    def attach_role_policy(self, policy_arn: str, role_name: str) -> None:
        self.managed_policies.get(policy_arn)
        super().attach_role_policy(policy_arn, role_name)

    def attach_group_policy(self, policy_arn: str, group_name: str) -> None:
        self.managed_policies.get(policy_arn)
        super().attach_group_policy(policy_arn, group_name)

    @property
    def _url_module(self) -> Any:
        paths = dict.fromkeys(iam_urls.url_paths, Identities.dispatch)
        return types.SimpleNamespace(url_bases=iam_urls.url_bases, url_paths=paths)


def _boundary(arn: str) -> dict[str, str]:
    if not principals.managed_policies([arn]):
        raise Fault("NoSuchEntity", f"Policy {arn} does not exist or is not attachable.")
    return {"PermissionsBoundaryType": "Policy", "PermissionsBoundaryArn": arn}


def _check(text: str) -> None:
    try:
        parse(text)
    except Invalid as error:
        raise Fault("MalformedPolicyDocument", str(error)) from error


def register() -> None:
    """Put ours in the place of moto's, before its first request."""
    sts_backends.backend, iam_backends.backend = SessionsBackend, IdentitiesBackend
    sts_backends.clear()
    iam_backends.clear()
