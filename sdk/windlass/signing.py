"""Signatures of manifests, by an asymmetric KMS key that never leaves KMS.

    signature = signing.sign(manifest.digest, "alias/release")
    signing.verify(manifest.digest, signature)              # raises CorruptArtifact when it is not that key's

A manifest holds the digest of every file, so its signature covers the bundle.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from windlass import aws
from windlass.errors import CorruptArtifact, InvalidInput, ServiceError

# The ways in which KMS signs a SHA-256 digest, the shortest signature first (KMS API reference, Sign).
_ALGORITHMS = ("ECDSA_SHA_256", "RSASSA_PSS_SHA_256", "RSASSA_PKCS1_V1_5_SHA_256")


@dataclass(frozen=True)
class ManifestSignature:
    """Who vouches for a manifest.

    Attributes:
        key_arn: of the KMS key.
        algorithm: as KMS calls it.
        value: base64.
    """

    key_arn: str
    algorithm: str
    value: str


def sign(digest: str, key: str) -> ManifestSignature:
    """Sign a digest (hex).

    Args:
        key: id, ARN or alias of a KMS key for SIGN_VERIFY.

    Raises:
        InvalidInput: the key is not for signing.
        AccessDenied: ``kms:Sign`` is not allowed.
    """
    where, kms = f"Signing with {key}", aws.client("kms")
    found = aws.call(where, kms.describe_key, KeyId=key)["KeyMetadata"]
    algorithm = next((name for name in _ALGORITHMS if name in found.get("SigningAlgorithms", [])), None)
    if found.get("KeyUsage") != "SIGN_VERIFY" or algorithm is None:
        hint = "Make one: aws kms create-key --key-usage SIGN_VERIFY --key-spec ECC_NIST_P256."
        raise InvalidInput(
            f"the key is for {found.get('KeyUsage')}, not for signing SHA-256 digests", where=where, hint=hint
        )
    answer = aws.call(
        where,
        kms.sign,
        KeyId=found["Arn"],
        Message=bytes.fromhex(digest),
        MessageType="DIGEST",
        SigningAlgorithm=algorithm,
    )
    return ManifestSignature(found["Arn"], algorithm, base64.b64encode(answer["Signature"]).decode())


def verify(digest: str, signature: ManifestSignature) -> None:
    """Ask KMS whether the signature is the key's, of this digest.

    Raises:
        CorruptArtifact: it is not.
        NotFound, AccessDenied: the key is gone, or ``kms:Verify`` is not allowed.
    """
    where = f"Verifying the signature by {signature.key_arn}"
    hint = "Do not deploy it: the model or the signature was changed after signing."
    try:
        value = base64.b64decode(signature.value, validate=True)
        answer = aws.call(
            where,
            aws.client("kms").verify,
            KeyId=signature.key_arn,
            Message=bytes.fromhex(digest),
            MessageType="DIGEST",
            Signature=value,
            SigningAlgorithm=signature.algorithm,
        )
    except binascii.Error as error:
        raise CorruptArtifact("the signature is not base64", where=where, hint=hint) from error
    except ServiceError as error:
        if error.code != "KMSInvalidSignatureException":
            raise
        raise CorruptArtifact("the signature is not of this manifest", where=where, hint=hint) from error
    if not answer["SignatureValid"]:
        raise CorruptArtifact("the signature is not of this manifest", where=where, hint=hint)
