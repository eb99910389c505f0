"""Who an access key belongs to, and which policies apply to them: moto's records of IAM and STS, read as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from windlass.local.cloud import ACCOUNT, ROOT_ACCESS_KEY, ROOT_SECRET_KEY
from windlass.local.iam.policy import ANONYMOUS, Document, Policies, Principal, parse

ROOT = Principal(f"arn:aws:iam::{ACCOUNT}:root", "root", ACCOUNT)


class Unknown(LookupError):
    """There is no such access key, or it does not go with that token."""


class Expired(Unknown):
    """The session is over."""


@dataclass(frozen=True)
class Caller:
    """Who signed a request.

    Attributes:
        principal: for the decision.
        context: their condition keys.
        access_key, secret, token: what they sign with.
        source: the user, or the session, in moto's records; None for the root and for nobody.
    """

    principal: Principal
    context: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    access_key: str = ""
    secret: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    source: Any = field(default=None, repr=False)

    def policies(self) -> Policies:
        """What applies to them now."""
        if self.principal.kind == "user":
            return _of_user(self.source)
        if self.principal.kind == "session":
            return of_role(self.principal.role_arn, self.source.policy if self.source else None, self.source)
        return Policies()


NOBODY = Caller(ANONYMOUS)
ADMINISTRATOR = Caller(
    ROOT,
    {
        "aws:principalarn": ROOT.arn,
        "aws:principalaccount": ACCOUNT,
        "aws:principaltype": "Account",
        "aws:userid": ACCOUNT,
        "aws:principalisawsservice": "false",
    },
    ROOT_ACCESS_KEY,
    ROOT_SECRET_KEY,
)
"""Who ``windlass local up`` makes you: the account's root."""


def find(access_key: str, token: str) -> Caller:
    """Whose key that is.

    Raises:
        Unknown: nobody's, or not with that token.
        Expired: the session is over.
    """
    if access_key == ROOT_ACCESS_KEY:
        return ADMINISTRATOR
    for session in reversed(_sts().assumed_roles):
        if session.access_key_id == access_key:
            if token != session.session_token:
                raise Unknown
            if session.expiration.replace(tzinfo=UTC) <= datetime.now(UTC):
                raise Expired
            return of_session(session)
    if token:
        raise Unknown
    for user in list(_iam().users.values()):
        for key in user.access_keys:
            if key.access_key_id == access_key and key.status == "Active":
                context: dict[str, str | tuple[str, ...]] = {
                    "aws:username": user.name,
                    "aws:userid": user.id,
                    "aws:principaltype": "User",
                    **_common(user.arn, _iam().tagger.get_tag_dict_for_resource(user.arn)),
                }
                principal = Principal(user.arn, "user", ACCOUNT)
                return Caller(principal, context, access_key, key.secret_access_key, "", user)
    raise Unknown


def of_session(session: Any) -> Caller:
    """A session of a role, as STS recorded it."""
    role = role_of(session.role_arn)
    tags = _tags(role) if role else {}
    context: dict[str, str | tuple[str, ...]] = {
        "aws:userid": session.user_id,
        "aws:principaltype": "AssumedRole",
        **_common(session.arn, tags),
        "aws:principalarn": session.role_arn,  # the role's own ARN, as AWS documents the key
    }
    principal = Principal(session.arn, "session", ACCOUNT, session.role_arn)
    keys = (session.access_key_id, session.secret_access_key, session.session_token)
    return Caller(principal, context, *keys, session)


def acting(role_arn: str, session_name: str) -> Caller:
    """A service that acts as a role: no access key, but a session's name and the role's permissions."""
    name = role_arn.rpartition("/")[2]
    arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/{name}/{session_name}"
    context: dict[str, str | tuple[str, ...]] = {
        "aws:principaltype": "AssumedRole",
        **_common(arn, {}),
        "aws:principalarn": role_arn,
    }
    return Caller(Principal(arn, "session", ACCOUNT, role_arn), context)


def service(name: str, source_arn: str) -> Caller:
    """An AWS service in its own name, ``cloudwatch.amazonaws.com``, because of one of the account's resources."""
    context: dict[str, str | tuple[str, ...]] = {
        "aws:principalisawsservice": "true",
        "aws:principalservicename": name,
        "aws:principalservicenameslist": (name,),
        "aws:sourceaccount": ACCOUNT,
        "aws:sourceowner": ACCOUNT,
        "aws:sourcearn": source_arn,
    }
    return Caller(Principal(name, "service"), context)


def _tags(role: Any) -> dict[str, str]:
    """moto keeps them as a list or by key, as it comes."""
    held = role.tags.values() if isinstance(role.tags, Mapping) else role.tags or []
    return {tag["Key"]: tag["Value"] for tag in held}


def _common(arn: str, tags: Mapping[str, str]) -> dict[str, str | tuple[str, ...]]:
    return {
        "aws:principalarn": arn,
        "aws:principalaccount": ACCOUNT,
        "aws:principalisawsservice": "false",
        **{f"aws:principaltag/{key}".lower(): value for key, value in tags.items()},
    }


# --- policies ---


def of_role(role_arn: str, session_policy: str | None, session: Any = None) -> Policies:
    """What applies to a session of that role. A role that is gone allows nothing."""
    role = role_of(role_arn)
    if role is None:
        return Policies()
    identity = [parse(document) for document in role.policies.values()]
    identity += _managed(role)
    passed = [parse(session_policy)] if session_policy else []
    by_arn = getattr(session, "session_policy_arns", [])
    passed += [parse(_document(policy)) for policy in managed_policies(by_arn)]
    if by_arn and not passed:
        passed = [{"Statement": []}]  # all of them have been deleted meanwhile
    return Policies(identity, _boundary(role), passed or None)


def _of_user(user: Any) -> Policies:
    identity = [parse(document) for document in user.policies.values()] + _managed(user)
    for group in list(_iam().groups.values()):
        if user in group.users:
            identity += [parse(document) for document in group.policies.values()] + _managed(group)
    return Policies(identity, _boundary(user))


def _managed(holder: Any) -> list[Document]:
    return [parse(_document(policy)) for policy in holder.managed_policies.values()]


def _boundary(holder: Any) -> Document | None:
    arn = (getattr(holder, "permissions_boundary", None) or {}).get("PermissionsBoundaryArn")
    if not arn:
        return None
    policy = _iam().managed_policies.get(arn)
    # A boundary that is gone allows nothing, as one that says nothing does.
    return parse(_document(policy)) if policy else {"Statement": []}


def _document(policy: Any) -> str:
    current = next(version for version in policy.versions if version.version_id == policy.default_version_id)
    text: str = current.document
    return text


def role_of(arn: str) -> Any:
    """moto's record of the role with that ARN; None if there is none."""
    return next((role for role in list(_iam().roles.values()) if role.arn == arn), None)


def managed_policies(arns: Iterator[str] | list[str]) -> list[Any]:
    """moto's records of those managed policies that there are."""
    return [policy for arn in arns if (policy := _iam().managed_policies.get(arn))]


def _iam() -> Any:
    from moto.iam.models import iam_backends

    return iam_backends[ACCOUNT]["aws"]


def _sts() -> Any:
    from moto.sts.models import sts_backends

    return sts_backends[ACCOUNT]["aws"]


def named(kind: str, name: str) -> str:
    """The ARN of the role, user or group of that name; empty if there is none."""
    backend = _iam()
    if kind == "role":
        return next((role.arn for role in list(backend.roles.values()) if role.name == name), "")
    held = (backend.users if kind == "user" else backend.groups).get(name)
    return str(held.arn) if held else ""


# --- sessions of the cloud's own making ---

_minted: set[str] = set()


def is_minted(access_key: str) -> bool:
    """Whether the cloud made this session for a process of its own."""
    return access_key in _minted


def credentials(role_arn: str, session_name: str, region: str) -> dict[str, str]:
    """Credentials of a session of that role, as a container's or a function's environment has them.

    They hold for as long as a job may run: on AWS a container fetches new ones before they expire.
    """
    session = _sts().assume_role(
        region_name=region,
        role_session_name=session_name[:64],
        role_arn=role_arn,
        policy="",
        duration=10 * 24 * 3600,
        external_id="",
    )
    _minted.add(session.access_key_id)
    return {
        "AWS_ACCESS_KEY_ID": session.access_key_id,
        "AWS_SECRET_ACCESS_KEY": session.secret_access_key,
        "AWS_SESSION_TOKEN": session.session_token,
    }
