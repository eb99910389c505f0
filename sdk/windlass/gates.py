"""What a model version must be before it may be registered or deployed. Pure.

policy = Policy(min_metrics={"accuracy": 0.95}, max_size_mb=500, licenses=("Apache-2.0", "MIT"), signed_by=(key_arn,))
gates.refuse(policy, facts, where="Deploying digits/3")      # raises PolicyRefused that lists each gate that failed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from windlass.errors import PolicyRefused
from windlass.metrics import wilson_lower_bound
from windlass.specs import Spec

Share = Annotated[float, Field(ge=0, le=1)]


class Policy(Spec):
    """Gates. What is not given is not asked for, except that pickles are refused.

    Attributes:
        min_metrics: name -> the least value, a share 0..1. The lower bound of the 95 % confidence interval (Wilson score) over
            the evaluation's samples must reach it: not by luck.
        max_size_mb: of all files, in units of 10^6 bytes.
        max_latency_ms: p99, as the evaluation measured it.
        allow_pickle: let in files that execute code when they are loaded.
        licenses: SPDX expressions that are allowed; empty: any, and none.
        require_signature: inputs and outputs must be described.
        signed_by: KMS key ARNs; one of them must have signed the manifest. Empty: it need not be signed.
    """

    min_metrics: Mapping[str, Share] = Field(default_factory=dict)
    max_size_mb: float | None = Field(None, gt=0)
    max_latency_ms: float | None = Field(None, gt=0)
    allow_pickle: bool = False
    licenses: tuple[str, ...] = ()
    require_signature: bool = False
    signed_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known of a model version.

    Attributes:
        samples: that the metrics are over; 0: not known.
        latency_ms: p99; ``None``: not measured.
        signed_by: the key whose signature was verified; empty: none.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    size: int = 0
    latency_ms: float | None = None
    pickles: tuple[str, ...] = ()
    license: str = ""
    has_signature: bool = False
    signed_by: str = ""


def failures(policy: Policy, facts: Facts) -> tuple[str, ...]:
    """Each gate that does not open, with the value and what it would take."""
    said = [_metric(name, least, facts) for name, least in policy.min_metrics.items()]
    if policy.max_size_mb is not None and facts.size > policy.max_size_mb * 1e6:
        said.append(f"size is {facts.size / 1e6:.1f} MB, above {policy.max_size_mb:g}")
    if policy.max_latency_ms is not None:
        if facts.latency_ms is None:
            said.append(f"p99 latency was not measured; at most {policy.max_latency_ms:g} ms is asked for")
        elif not facts.latency_ms <= policy.max_latency_ms:
            said.append(f"p99 latency is {facts.latency_ms:g} ms, above {policy.max_latency_ms:g}")
    if facts.pickles and not policy.allow_pickle:
        said.append(
            f"pickles execute code when loaded: {', '.join(facts.pickles)}; save safetensors, or allow_pickle=True"
        )
    if policy.licenses and facts.license not in policy.licenses:
        said.append(f"licence is {facts.license or 'not given'}; allowed: {', '.join(policy.licenses)}")
    if policy.require_signature and not facts.has_signature:
        said.append("inputs and outputs are not described; put a signature.json beside inference.py")
    if policy.signed_by and facts.signed_by not in policy.signed_by:
        said.append(f"manifest is signed by {facts.signed_by or 'nobody'}; allowed: {', '.join(policy.signed_by)}")
    return tuple(text for text in said if text)


def _metric(name: str, least: float, facts: Facts) -> str:
    value = facts.metrics.get(name)
    if value is None:
        return f"{name} was not measured; at least {least:g} is asked for"
    if not facts.samples:
        return f"{name} is {value:.4g} over an unknown number of samples, so it has no confidence bound"
    bound = wilson_lower_bound(round(value * facts.samples), facts.samples)
    if bound >= least:
        return ""
    return f"{name} is {value:.4g}, at least {bound:.4g} with 95 % confidence over {facts.samples} samples, below {least:g}"


def refuse(policy: Policy, facts: Facts, *, where: str) -> None:
    """Raises PolicyRefused, unless every gate opens."""
    failed = failures(policy, facts)
    if failed:
        raise PolicyRefused(
            "\n".join(["the policy refuses it", *(f"  - {text}" for text in failed)]), where=where, gates=failed
        )
