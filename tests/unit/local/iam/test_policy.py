"""The decision over all policies, each case worked out from "Policy evaluation logic" of the IAM user guide."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.local.iam.conditions import Invalid
from windlass.local.iam.policy import Decision, Policies, Principal, Request, Resource, decide, parse

ACCOUNT = "123456789012"
ROOT = Principal(f"arn:aws:iam::{ACCOUNT}:root", "root", ACCOUNT)
ANN = Principal(f"arn:aws:iam::{ACCOUNT}:user/ann", "user", ACCOUNT)
ROLE = f"arn:aws:iam::{ACCOUNT}:role/train"
SESSION = Principal(f"arn:aws:sts::{ACCOUNT}:assumed-role/train/s", "session", ACCOUNT, ROLE)
CLOUDWATCH = Principal("cloudwatch.amazonaws.com", "service")
NOBODY = Principal("", "anonymous")
OBJECT = "arn:aws:s3:::data/a.csv"


def statement(effect: str, action: Any = "s3:GetObject", resource: Any = OBJECT, **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Action": action, "Resource": resource, **more}


def document(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


ALLOW, DENY = document(statement("Allow")), document(statement("Deny"))
OTHER = document(statement("Allow", "s3:PutObject"))


def asked(principal: Principal = ANN, action: str = "s3:GetObject", resource: str = OBJECT, **context: str) -> Request:
    return Request(action, resource, principal, {name.replace("__", ":"): value for name, value in context.items()})


def granting(who: Any, effect: str = "Allow", **more: Any) -> Resource:
    return Resource(document(statement(effect, Principal=who, **more)))


def no(kind: str) -> Decision:
    return Decision(False, f"because no {kind} allows the s3:GetObject action")


def explicit(kind: str) -> Decision:
    return Decision(False, f"with an explicit deny in {kind}")


YES = Decision(True)
AWS = f"arn:aws:iam::{ACCOUNT}:root"

CASES = [
    # nothing allows it
    (ANN, Policies(), None, no("identity-based policy")),
    (ANN, Policies([ALLOW]), None, YES),
    (ANN, Policies([OTHER, ALLOW]), None, YES),
    # an explicit deny wins, wherever it stands
    (ANN, Policies([ALLOW, DENY]), None, explicit("an identity-based policy")),
    (
        ANN,
        Policies([ALLOW], boundary=document(*ALLOW["Statement"], *DENY["Statement"])),
        None,
        explicit("a permissions boundary"),
    ),
    (SESSION, Policies([ALLOW], session=[DENY]), None, explicit("a session policy")),
    (ANN, Policies([ALLOW]), granting("*", "Deny"), explicit("a resource-based policy")),
    (ROOT, Policies(), granting({"AWS": AWS}, "Deny"), explicit("a resource-based policy")),
    # a boundary and a session policy limit, and allow nothing themselves
    (ANN, Policies([ALLOW], boundary=ALLOW), None, YES),
    (ANN, Policies([ALLOW], boundary=OTHER), None, no("permissions boundary")),
    (ANN, Policies([OTHER], boundary=ALLOW), None, no("identity-based policy")),
    (SESSION, Policies([ALLOW], session=[ALLOW]), None, YES),
    (SESSION, Policies([ALLOW], session=[OTHER]), None, no("session policy")),
    (SESSION, Policies([OTHER], session=[ALLOW]), None, no("identity-based policy")),
    # within an account, a resource's policy is enough by itself...
    (ANN, Policies(), granting({"AWS": ANN.arn}), YES),
    (ANN, Policies(), granting("*"), YES),
    (ANN, Policies(), granting({"AWS": "*"}), YES),
    (SESSION, Policies(), granting({"AWS": ROLE}), YES),
    (SESSION, Policies(), granting({"AWS": SESSION.arn}), YES),
    # ... unless it names the account, which leaves it to the identity's policies
    (ANN, Policies(), granting({"AWS": AWS}), no("identity-based policy")),
    (ANN, Policies([ALLOW]), granting({"AWS": ACCOUNT}), YES),
    (ANN, Policies(), granting({"AWS": f"arn:aws:iam::{ACCOUNT}:user/bob"}), no("identity-based policy")),
    # what names a role is limited by its boundary and its session; what names the user or the session is not
    (SESSION, Policies(boundary=OTHER), granting({"AWS": ROLE}), no("permissions boundary")),
    (SESSION, Policies(session=[OTHER]), granting({"AWS": ROLE}), no("session policy")),
    (SESSION, Policies(boundary=OTHER, session=[OTHER]), granting({"AWS": SESSION.arn}), YES),
    (ANN, Policies(boundary=OTHER), granting({"AWS": ANN.arn}), YES),
    # NotPrincipal
    (ANN, Policies([ALLOW]), Resource(document({**statement("Deny"), "NotPrincipal": {"AWS": ANN.arn}})), YES),
    (
        SESSION,
        Policies([ALLOW]),
        Resource(document({**statement("Deny"), "NotPrincipal": {"AWS": ANN.arn}})),
        explicit("a resource-based policy"),
    ),
    # services and nobody have no policies of their own
    (CLOUDWATCH, Policies(), None, no("resource-based policy")),
    (CLOUDWATCH, Policies(), granting({"Service": "cloudwatch.amazonaws.com"}), YES),
    (CLOUDWATCH, Policies(), granting({"Service": ["sns.amazonaws.com"]}), no("resource-based policy")),
    (CLOUDWATCH, Policies(), granting({"AWS": "*"}), YES),  # the same as "*", as SNS's default policy has it
    (NOBODY, Policies(), granting("*"), YES),
    (NOBODY, Policies(), granting({"AWS": "*"}), YES),
    (NOBODY, Policies(), granting({"AWS": ANN.arn}), no("resource-based policy")),
    # a key's policy, and a role's trust, decide: without them even the root is locked out
    (ANN, Policies([ALLOW]), Resource(None, decides=True), no("resource-based policy")),
    (ROOT, Policies(), Resource(None, decides=True), no("resource-based policy")),
    (ANN, Policies([ALLOW]), Resource(granting({"AWS": AWS}).policy, decides=True), YES),
    (ANN, Policies(), Resource(granting({"AWS": AWS}).policy, decides=True), no("identity-based policy")),
    (ANN, Policies(), Resource(granting({"AWS": ANN.arn}).policy, decides=True), YES),
    (ROOT, Policies(), Resource(granting({"AWS": AWS}).policy, decides=True), YES),
    (ROOT, Policies(), None, YES),
]


@pytest.mark.parametrize(("principal", "policies", "resource", "expected"), CASES)
def test_decisions(principal: Principal, policies: Policies, resource: Resource | None, expected: Decision) -> None:
    assert decide(asked(principal), policies, resource) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"Action": "*", "Resource": "*"}, True),
        ({"Action": "S3:getobject", "Resource": "*"}, True),
        ({"Action": ["s3:Put*", "s3:Get*"], "Resource": "arn:aws:s3:::data/*"}, True),
        ({"Action": "s3:Get?bject", "Resource": OBJECT}, True),
        ({"Action": "s3:*", "Resource": "arn:aws:s3:::data"}, False),
        ({"Action": "s3:*", "Resource": "arn:aws:s3:::Data/*"}, False),
        ({"NotAction": "s3:Put*", "Resource": "*"}, True),
        ({"NotAction": ["s3:Get*"], "Resource": "*"}, False),
        ({"NotAction": "iam:*", "NotResource": "arn:aws:s3:::secret/*"}, True),
        ({"Action": "s3:*", "NotResource": "arn:aws:s3:::data/*"}, False),
        ({"Action": "s3:*", "Resource": "arn:aws:s3:::data/${aws:username}*"}, True),
        ({"Action": "s3:*", "Resource": "arn:aws:s3:::data/${aws:nobody}*"}, False),
        ({"Action": "s3:*", "Resource": "*", "Condition": {"Bool": {"aws:SecureTransport": "true"}}}, False),
    ],
)
def test_what_a_statement_is_about(said: dict[str, Any], expected: bool) -> None:
    policy = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", **said}}
    request = Request("s3:GetObject", OBJECT, ANN, {"aws:username": "a"})
    assert decide(request, Policies([parse(policy)])).allowed is expected


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"Statement": [{"Effect": "allow"}]}', '{"Statement": ["Allow"]}',
     '{"Statement": {"Effect": "Allow", "Condition": {"StringIs": {}}}}'],
)  # fmt: skip
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse(text)


ACTIONS = st.sampled_from(["s3:GetObject", "s3:*", "*", "s3:PutObject", "iam:PassRole"])
RESOURCES = st.sampled_from([OBJECT, "arn:aws:s3:::data/*", "*", "arn:aws:s3:::other"])
STATEMENTS = st.builds(statement, st.sampled_from(["Allow", "Deny"]), ACTIONS, RESOURCES)
DOCUMENTS = st.lists(st.lists(STATEMENTS, max_size=3).map(lambda each: document(*each)), max_size=3)


@given(DOCUMENTS, DOCUMENTS, st.sampled_from([ANN, SESSION]))
def test_laws_of_the_decision(policies: list[Any], more: list[Any], principal: Principal) -> None:
    request = asked(principal)
    allowed = decide(request, Policies(policies)).allowed
    # The order of policies does not matter, nor how statements are spread over them
    assert decide(request, Policies(policies[::-1])).allowed == allowed
    assert (
        decide(request, Policies([document(*(s for each in policies for s in each["Statement"]))])).allowed == allowed
    )
    # A deny that applies wins over whatever else is there
    assert not decide(request, Policies([*policies, DENY])).allowed
    # More allowing statements never take anything away, more denying ones never add
    if allowed:
        assert decide(request, Policies([*policies, document(statement("Allow", "*", "*"))])).allowed
    # A boundary and a session policy only ever narrow
    for narrowed in (Policies(policies, boundary=document(*(s for each in more for s in each["Statement"]))),
                     Policies(policies, session=more)):  # fmt: skip
        assert allowed or not decide(request, narrowed).allowed
