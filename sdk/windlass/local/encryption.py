"""KMS keys that jobs name: refused when there are none, so that nothing is said to be encrypted that is not.

require_key("us-east-1", "alias/mine", "OutputDataConfig.KmsKeyId")     # raises AWS's ValidationException
"""

from __future__ import annotations

from windlass.local.cloud import ACCOUNT
from windlass.local.faults import Fault


def require_key(region: str, key: str | None, member: str) -> None:
    """Raise a ValidationException unless the key is one that can encrypt: its id, ARN, alias or alias ARN; None is none.

    Args:
        member: of the request, as the message names it.
    """
    if not key:
        return
    if key.startswith("arn:"):
        region = key.split(":")[3] if key.count(":") >= 5 else ""  # S3 and EBS take keys of their own region only
    state = _state(region, key) if region else "NotFound"
    if state != "Enabled":
        said = "does not exist" if state == "NotFound" else f"is in state {state}"
        raise Fault("ValidationException", f"Invalid KMS key '{key}' in {member}: the key {said}.")


def _state(region: str, key: str) -> str:
    if key == "alias/aws/s3" or key == "alias/aws/ebs":
        return "Enabled"  # AWS's own, which every account has
    from moto.kms.models import kms_backends

    if region not in kms_backends[ACCOUNT]:
        return "NotFound"
    backend = kms_backends[ACCOUNT][region]
    name = backend.get_alias_name(key)
    found = backend.keys.get(
        (backend.get_key_id_from_alias(name) or "") if name.startswith("alias/") else backend.get_key_id(name)
    )
    return str(found.key_state) if found else "NotFound"
