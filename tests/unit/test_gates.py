from __future__ import annotations

import pytest

from windlass import gates
from windlass.errors import InvalidInput, PolicyRefused
from windlass.gates import Facts, Policy

GOOD = Facts(
    metrics={"accuracy": 0.99},
    samples=1000,
    size=10_000_000,
    latency_ms=20,
    license="Apache-2.0",
    has_signature=True,
    signed_by="key",
)


@pytest.mark.parametrize(
    ("policy", "facts", "says"),
    [
        (Policy(), GOOD, None),
        (Policy(), Facts(), None),
        (Policy(min_metrics={"accuracy": 0.98}), GOOD, None),
        # 0.99 of 1000 is at least 0.9817 with 95 % confidence, so 0.985 is not shown.
        (Policy(min_metrics={"accuracy": 0.985}), GOOD, "at least 0.9817 with 95 % confidence over 1000 samples"),
        (Policy(min_metrics={"f1": 0.5}), GOOD, "f1 was not measured"),
        (Policy(min_metrics={"accuracy": 0.5}), Facts(metrics={"accuracy": 1.0}), "unknown number of samples"),
        (Policy(min_metrics={"accuracy": 0.5}), Facts(metrics={"accuracy": 1.0}, samples=3), "below 0.5"),
        (Policy(max_size_mb=10), GOOD, None),
        (Policy(max_size_mb=9.9), GOOD, "size is 10.0 MB, above 9.9"),
        (Policy(max_latency_ms=20), GOOD, None),
        (Policy(max_latency_ms=19), GOOD, "20 ms, above 19"),
        (Policy(max_latency_ms=19), Facts(), "was not measured"),
        (Policy(max_latency_ms=19), Facts(latency_ms=float("nan")), "nan ms"),
        (Policy(), Facts(pickles=("a.pkl", "b.pt")), "a.pkl, b.pt"),
        (Policy(allow_pickle=True), Facts(pickles=("a.pkl",)), None),
        (Policy(licenses=("MIT", "Apache-2.0")), GOOD, None),
        (Policy(licenses=("MIT",)), GOOD, "licence is Apache-2.0; allowed: MIT"),
        (Policy(licenses=("MIT",)), Facts(), "licence is not given"),
        (Policy(require_signature=True), Facts(), "not described"),
        (Policy(signed_by=("key", "other")), GOOD, None),
        (Policy(signed_by=("other",)), GOOD, "signed by key; allowed: other"),
        (Policy(signed_by=("other",)), Facts(), "signed by nobody"),
    ],
)
def test_each_gate(policy: Policy, facts: Facts, says: str | None) -> None:
    failed = gates.failures(policy, facts)

    assert len(failed) == (says is not None)
    assert says is None or says in failed[0]


def test_a_refusal_lists_every_gate_that_is_shut() -> None:
    policy = Policy(min_metrics={"accuracy": 0.9}, licenses=("MIT",), require_signature=True)

    with pytest.raises(PolicyRefused, match="Deploying x") as caught:
        gates.refuse(policy, Facts(pickles=("w.bin",)), where="Deploying x")

    assert len(caught.value.gates) == 4
    assert all(gate in str(caught.value) for gate in caught.value.gates)


@pytest.mark.parametrize("field", [{"min_metrics": {"accuracy": 95}}, {"max_size_mb": 0}, {"maximum_size": 3}])
def test_a_wrong_policy_is_said(field: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(field))):
        Policy.check("Reading policy.yaml", **field)
