"""Policy documents, and what AWS decides over all those that apply to a request. Pure.

    request = Request("s3:GetObject", "arn:aws:s3:::data/a.csv", principal, context)
    decision = decide(request, Policies(identity=[document]), resource=Resource(bucket_policy))
    decision.allowed, decision.because

Source: IAM user guide, "Policy evaluation logic", for requests within one account: an explicit deny anywhere wins; else a
resource's policy or an identity's must allow it, and a permissions boundary and a session policy, where there are any, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from windlass.local.iam import conditions
from windlass.local.iam.conditions import Context, Invalid, listed

Document = Mapping[str, Any]
Effect = Literal["Allow", "Deny"]


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        arn: of the user, the role's session, or the account's root; a service's own name; empty for nobody.
        kind: what of these.
        account: theirs; empty for a service and for nobody.
        role_arn: of the role, if this is a session of one.
    """

    arn: str
    kind: Literal["root", "user", "session", "service", "anonymous"]
    account: str = ""
    role_arn: str = ""


ANONYMOUS = Principal("", "anonymous")


@dataclass(frozen=True)
class Request:
    """One action on one resource."""

    action: str
    resource: str
    principal: Principal
    context: Context = field(default_factory=dict)


@dataclass(frozen=True)
class Policies:
    """What applies to a principal.

    Attributes:
        identity: of the user and its groups, or of the role.
        boundary: its permissions boundary.
        session: what AssumeRole was given; None if it was given nothing.
    """

    identity: Sequence[Document] = ()
    boundary: Document | None = None
    session: Sequence[Document] | None = None


@dataclass(frozen=True)
class Resource:
    """What the resource itself says.

    Attributes:
        policy: its policy, if it has one.
        decides: nothing is allowed that it does not allow: KMS keys and the trust of roles. It may leave the decision to the
            identity's policies by naming the account.
    """

    policy: Document | None = None
    decides: bool = False


@dataclass(frozen=True)
class Decision:
    """Attributes: because: how AWS's message goes on after "on resource: ..."."""

    allowed: bool
    because: str = ""


def parse(text: str | Document) -> Document:
    """A policy's JSON, in any of the forms in which records keep it.

    Raises:
        Invalid: it is no policy.
    """
    if isinstance(text, str):
        try:
            document = json.loads(unquote(text) if text.startswith("%7B") else text)
        except ValueError as error:
            raise Invalid(f"Syntax errors in policy: {error}.") from error
    else:
        document = text
    if not isinstance(document, Mapping) or "Statement" not in document:
        raise Invalid("Syntax errors in policy.")
    for statement in statements(document):
        if not isinstance(statement, Mapping) or statement.get("Effect") not in ("Allow", "Deny"):
            raise Invalid("Syntax errors in policy.")
        conditions.check(statement.get("Condition", {}))
    return document


def statements(document: Document) -> list[Mapping[str, Any]]:
    """The statements of a policy."""
    return listed(document["Statement"])


def decide(request: Request, policies: Policies, resource: Resource | None = None) -> Decision:
    """What AWS would answer."""
    resource = resource or Resource()
    named, whole_account = _granted(request, resource.policy)
    if denier := _denier(request, policies, resource):
        return Decision(False, f"with an explicit deny in a{'n' if denier[0] in 'aeiou' else ''} {denier}")
    if request.principal.kind in ("service", "anonymous"):
        return Decision(True) if named else _missing(request, "resource-based policy")
    if resource.decides and not (named or whole_account):
        return _missing(request, "resource-based policy")
    if request.principal.kind == "root":
        return Decision(True)
    if named in ("session", "user"):
        return Decision(True)  # neither a boundary nor a session policy limits what names the very caller
    if policies.boundary is not None and not _allows([policies.boundary], request):
        return _missing(request, "permissions boundary")
    if policies.session is not None and not _allows(policies.session, request):
        return _missing(request, "session policy")
    if named or _allows(policies.identity, request):
        return Decision(True)
    return _missing(request, "identity-based policy")


def _missing(request: Request, kind: str) -> Decision:
    return Decision(False, f"because no {kind} allows the {request.action} action")


def _denier(request: Request, policies: Policies, resource: Resource) -> str:
    """The kind of policy that denies it; empty if none does."""
    kinds: list[tuple[str, Sequence[Document]]] = [
        ("identity-based policy", policies.identity),
        ("permissions boundary", [policies.boundary] if policies.boundary else []),
        ("session policy", policies.session or []),
    ]
    for kind, documents in kinds:
        if any(_applies(statement, request) for statement in _with(documents, "Deny")):
            return kind
    if resource.policy is not None:
        for statement in _with([resource.policy], "Deny"):
            if _principal(statement, request.principal) and _applies(statement, request):
                return "resource-based policy"
    return ""


def _granted(request: Request, policy: Document | None) -> tuple[str, bool]:
    """How a resource's policy allows it: by which name of the caller (empty: by none), and whether by the whole account."""
    names: set[str] = set()
    if policy is not None:
        for statement in _with([policy], "Allow"):
            by = _principal(statement, request.principal)
            if by and _applies(statement, request):
                names.add(by)
    named = next((name for name in ("session", "user", "role", "service", "anyone") if name in names), "")
    return named, "account" in names


def _allows(documents: Sequence[Document], request: Request) -> bool:
    return any(_applies(statement, request) for statement in _with(documents, "Allow"))


def _with(documents: Sequence[Document], effect: Effect) -> Iterator[Mapping[str, Any]]:
    for document in documents:
        yield from (statement for statement in statements(document) if statement["Effect"] == effect)


def _applies(statement: Mapping[str, Any], request: Request) -> bool:
    """Whether action, resource and conditions of a statement fit; its principal aside."""
    context = request.context
    if "Action" in statement:
        acts = _names(statement["Action"], request.action)
    else:
        acts = "NotAction" in statement and not _names(statement["NotAction"], request.action)
    if not acts:
        return False
    if "Resource" in statement:
        fits = _covers(statement["Resource"], request.resource, context)
    elif "NotResource" in statement:
        fits = not _covers(statement["NotResource"], request.resource, context)
    else:
        fits = True  # a role's trust policy: it is about the role
    return fits and conditions.hold(statement.get("Condition", {}), context)


def _names(patterns: Any, action: str) -> bool:
    return any(conditions.matches(str(pattern), action, {}, ignore_case=True) for pattern in listed(patterns))


def _covers(patterns: Any, resource: str, context: Context) -> bool:
    return any(conditions.matches(str(pattern), resource, context, arn=True) for pattern in listed(patterns))


def _principal(statement: Mapping[str, Any], principal: Principal) -> str:
    """By which name a statement means this principal: ``session``, ``user``, ``role``, ``account``, ``service``, ``anyone``."""
    if "NotPrincipal" in statement:
        return "" if _meant(statement["NotPrincipal"], principal) else "anyone"
    return _meant(statement.get("Principal", {}), principal)


def _meant(who: Any, principal: Principal) -> str:
    if who == "*":
        return "anyone"
    if not isinstance(who, Mapping):
        return ""
    names = set(map(str, listed(who.get("AWS", []))))
    if principal.kind == "service" and principal.arn in listed(who.get("Service", [])):
        return "service"
    if principal.kind in ("anonymous", "service"):
        return "anyone" if "*" in names else ""
    if principal.arn in names:
        return "session" if principal.kind == "session" else "user"
    if principal.role_arn and principal.role_arn in names:
        return "role"
    if principal.account in names or any(_root_of(name, principal.account) for name in names):
        return "account"
    return "anyone" if "*" in names else ""


def _root_of(name: str, account: str) -> bool:
    return re.fullmatch(rf"arn:aws[a-z-]*:iam::{re.escape(account)}:root", name) is not None
