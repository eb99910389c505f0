"""What the server asks of every request, and what the cloud asks before it acts on a role's behalf.

    caller = authorizer.admit(environ)                          # raises Denied
    with acting_as("arn:aws:iam::...:role/train"):              # the thread of a job, an endpoint, a pipeline
        authorizer.require("s3:GetObject", "arn:aws:s3:::data/a.csv")

Nothing is checked unless the cloud enforces, and nothing is written down unless a mark was set. A caller that is the cloud
itself (no role, no request) may do everything.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, ParamSpec, TypeVar

from windlass.local.cloud import ACCOUNT
from windlass.local.iam import actions, principals, requests, resources, signature
from windlass.local.iam.actions import Need
from windlass.local.iam.policy import Decision, Request, decide
from windlass.local.iam.principals import Caller
from windlass.local.iam.requests import Call

_P = ParamSpec("_P")
_T = TypeVar("_T")

Reason = Literal["denied", "unknown key", "expired", "no signature", "bad signature"]

_acting: ContextVar[Caller | None] = ContextVar("acting", default=None)
_requester: ContextVar[Caller | None] = ContextVar("requester", default=None)


class Denied(Exception):
    """The caller may not do that; str() is AWS's message.

    Attributes:
        reason: of what kind the denial is: each protocol has codes of its own for it.
    """

    def __init__(self, message: str, reason: Reason = "denied") -> None:
        self.reason = reason
        super().__init__(message)


@dataclass(frozen=True)
class Seen:
    """One action that somebody needed since the mark."""

    principal: str
    need: Need
    of_service: bool


def requester() -> Caller | None:
    """Who sent the request that this thread serves; None if it serves none, or it does not matter who did."""
    return _requester.get()


@contextlib.contextmanager
def requested_by(caller: Caller) -> Iterator[None]:
    """Meanwhile this thread serves that caller's request."""
    token = _requester.set(caller)
    try:
        yield
    finally:
        _requester.reset(token)


def acting() -> Caller | None:
    """On whose behalf this thread acts; None: the cloud itself."""
    return _acting.get()


@contextlib.contextmanager
def on_behalf_of(caller: Caller | None) -> Iterator[None]:
    """Meanwhile this thread acts for that caller."""
    token = _acting.set(caller)
    try:
        yield
    finally:
        _acting.reset(token)


def as_role(role_arn: str | None, function: Callable[_P, _T], session_name: str = "SageMaker") -> Callable[_P, _T]:
    """That function, for any thread to call, done as that role."""

    def done(*args: _P.args, **named: _P.kwargs) -> _T:
        with acting_as(role_arn, session_name):
            return function(*args, **named)

    return done


def as_service(name: str, source_arn: str) -> contextlib.AbstractContextManager[None]:
    """Meanwhile this thread does what an AWS service does in its own name: ``events.amazonaws.com``, because of that rule."""
    return on_behalf_of(principals.service(name, source_arn))


def acting_as(role_arn: str | None, session_name: str = "SageMaker") -> contextlib.AbstractContextManager[None]:
    """Meanwhile this thread does what AWS does as that role; None: as the cloud itself."""
    return on_behalf_of(principals.acting(role_arn, session_name) if role_arn else None)


class Authorizer:
    """Decides over the calls of one cloud, and remembers them. Safe to use from many threads.

    Args:
        enforce: refuse what policies do not allow. Otherwise everything is allowed, and can be remembered all the same.
    """

    def __init__(self, enforce: bool) -> None:
        self.enforce = enforce
        self._lock = threading.Lock()
        self._seen: dict[Seen, None] | None = None

    @property
    def watching(self) -> bool:
        """Whether it matters who calls what."""
        return self.enforce or self._seen is not None

    # --- what was seen ---

    def mark(self) -> None:
        """Begin anew to remember calls."""
        with self._lock:
            self._seen = {}

    def seen(self) -> list[Seen] | None:
        """What was needed since the mark, each once, in order; None if there is no mark."""
        with self._lock:
            return None if self._seen is None else list(self._seen)

    def _remember(self, caller: Caller, needs: list[Need]) -> None:
        with self._lock:
            if self._seen is not None:
                of_service = not caller.access_key or principals.is_minted(caller.access_key)
                principal = caller.principal.role_arn or caller.principal.arn
                for need in needs:
                    known = {key: value for key, value in need.context.items() if key in REMEMBERED}
                    self._seen.setdefault(Seen(principal, replace(need, context=_frozen(known)), of_service))

    # --- requests ---

    def admit(self, environ: dict[str, Any]) -> Caller:
        """Who sent this request, which may go on.

        Raises:
            Denied: with AWS's message.
        """
        call = requests.read(environ)
        caller = self._authenticated(call, environ)
        needs = self._with_keys(actions.needs(call), call.region)
        if self.enforce:
            context = {**_of_request(call), **caller.context}
            for need in needs:
                self._decide(caller, need, context)
        self._remember(caller, needs)
        return caller

    def _authenticated(self, call: Call, environ: dict[str, Any]) -> Caller:
        if not call.access_key:
            if self.enforce and call.service != "s3":
                raise Denied("Request is missing Authentication Token", "no signature")
            return principals.NOBODY
        try:
            caller = principals.find(call.access_key, call.token)
        except principals.Expired:
            if self.enforce:
                raise Denied("The security token included in the request is expired", "expired") from None
            return principals.ADMINISTRATOR
        except principals.Unknown:
            if self.enforce:
                raise Denied("The security token included in the request is invalid.", "unknown key") from None
            return principals.ADMINISTRATOR  # without enforcement any key will do
        if self.enforce and not signature.is_right(environ, call, caller.secret):
            raise Denied(
                "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access "
                "Key and signing method. Consult the service documentation for details.",
                "bad signature",
            )
        return caller

    # --- what the cloud does on somebody's behalf ---

    def require(
        self,
        action: str,
        resource: str,
        context: Mapping[str, str | tuple[str, ...]] | None = None,
        *,
        caller: Caller | None = None,
        region: str = "us-east-1",
    ) -> None:
        """Raise Denied unless whoever this thread acts for, or the given caller, may do that."""
        self._require([Need(action, resource, context or {})], caller or _acting.get(), region)

    def require_call(self, service: str, operation: str, params: Mapping[str, Any], region: str) -> None:
        """See the function of that name."""
        call = Call(service, service, operation, params, region=region)
        if _acting.get() is not None and self.watching:
            self._require(actions.needs(call), _acting.get(), region)

    def _require(self, needs: list[Need], caller: Caller | None, region: str) -> None:
        if caller is None or not self.watching:
            return
        needs = self._with_keys(needs, region)
        if self.enforce:
            for need in needs:
                self._decide(caller, need, {**_of_time(), **caller.context, "aws:viaawsservice": "true"})
        self._remember(caller, needs)

    def _decide(self, caller: Caller, need: Need, context: Mapping[str, str | tuple[str, ...]]) -> None:
        request = Request(need.action, need.resource, caller.principal, {**context, **need.context})
        decision = decide(request, caller.policies(), resources.of(need.action, need.resource))
        if not decision.allowed and not _is_way_out(caller, need):
            raise Denied(_message(caller, need, decision))

    def _with_keys(self, needs: list[Need], region: str) -> list[Need]:
        """Also what it takes of a KMS key: S3 and SNS use it in the caller's name."""
        whole = []
        for need in needs:
            whole.append(need)
            whole += _of_key(need, region)
        return whole


_installed = Authorizer(enforce=False)


def install(authorizer: Authorizer) -> None:
    """Make it the one that decides in this process: there is one local cloud in it."""
    global _installed
    _installed = authorizer


def require(
    action: str, resource: str, context: Mapping[str, str | tuple[str, ...]] | None = None, region: str = "us-east-1"
) -> None:
    """Raise Denied unless whoever this thread acts for may do that."""
    _installed.require(action, resource, context, region=region)


def require_call(service: str, operation: str, params: Mapping[str, Any], region: str) -> None:
    """Raise Denied unless whoever this thread acts for may make that API call: what a pipeline's steps do."""
    _installed.require_call(service, operation, params, region)


REMEMBERED = frozenset({"iam:passedtoservice", "cloudwatch:namespace", "kms:viaservice"})
"""The condition keys that the least policy names."""


def _frozen(context: Mapping[str, str | tuple[str, ...]]) -> Mapping[str, str | tuple[str, ...]]:
    return _Frozen(context)


class _Frozen(dict[str, Any]):
    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))


def _of_key(need: Need, region: str) -> Iterator[Need]:
    via = {"kms:calleraccount": ACCOUNT}
    if need.action == "s3:PutObject":
        bucket, _, _ = need.resource.removeprefix("arn:aws:s3:::").partition("/")
        algorithm, key = resources.bucket_key(bucket)
        algorithm = str(need.context.get("s3:x-amz-server-side-encryption", algorithm))
        key = str(need.context.get("s3:x-amz-server-side-encryption-aws-kms-key-id", key))
        wanted = ["kms:GenerateDataKey"] if algorithm.startswith("aws:kms") else []
        service = "s3"
    elif need.action in ("s3:GetObject", "s3:GetObjectVersion"):
        bucket, _, name = need.resource.removeprefix("arn:aws:s3:::").partition("/")
        key, wanted, service = resources.object_key(bucket, name), ["kms:Decrypt"], "s3"
    elif need.action == "sns:Publish":
        key, wanted, service = resources.topic_key(need.resource), ["kms:GenerateDataKey", "kms:Decrypt"], "sns"
    else:
        return
    arn = resources.key_arn(key, region) if key and key != "alias/aws/s3" else ""
    if arn:
        for action in wanted:
            yield Need(action, arn, {**via, "kms:viaservice": f"{service}.{region}.amazonaws.com"})


def _is_way_out(caller: Caller, need: Need) -> bool:
    """The root can always mend a bucket's policy, whatever it says; on AWS, too."""
    mends = ("s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy")
    return caller.principal.kind == "root" and need.action in mends


def _message(caller: Caller, need: Need, decision: Decision) -> str:
    service, _, name = need.action.partition(":")
    if caller.principal.kind == "anonymous":
        return "Access Denied"
    # As these services write themselves.
    shown = {"sns": f"SNS:{name}", "sqs": f"sqs:{name.lower()}"}.get(service, need.action)
    resource = f'"{need.resource}"' if service == "s3" and need.resource != "*" else need.resource
    because = decision.because.replace(need.action, shown)
    return f"User: {caller.principal.arn} is not authorized to perform: {shown} on resource: {resource} {because}"


def _of_time() -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "aws:currenttime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "aws:epochtime": str(int(now.timestamp())),
        "aws:securetransport": "true",  # loopback stands in for TLS: nothing on it crosses a network
    }


def _of_request(call: Call) -> dict[str, str | tuple[str, ...]]:
    """The keys of every request."""
    agent = {"aws:useragent": call.headers["user-agent"]} if "user-agent" in call.headers else {}
    referer = {"aws:referer": call.headers["referer"]} if "referer" in call.headers else {}
    return {**_of_time(), **agent, **referer, "aws:sourceip": call.source_ip, "aws:viaawsservice": "false"}
