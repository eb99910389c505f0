"""Into the registry: a model of any kind as a bundle, where it came from, and its upload and model package.

lineage = entry.lineage(source, code, data)
bundle = entry.bundled(source, code, evaluation, scratch, where, lineage=lineage, ...)
package = entry.enter(bundle, group="digits", ...)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from windlass import artifact, aws, packages, plans, publish, signing
from windlass.errors import CorruptArtifact, InvalidInput
from windlass.foundation import Contract
from windlass.jobs import Run, git_commit
from windlass.plans import Plan

_METADATA_MOST = 256  # characters of a value (SageMaker API reference, CustomerMetadataProperties)


def lineage(source: Run | str | Path | Any, code: str | Path | None, data: str | Path | None) -> dict[str, str]:
    """Where a model came from: what its run says, or the checkout that its code is in, and the data that are named."""
    digest = artifact.digest_folder(data) if data is not None else ""
    if isinstance(source, Run):
        tags = source.tags
        return {
            "run": source.arn,
            "git_commit": tags.get("git-commit", ""),
            "data_digest": digest or tags.get("data-digest", ""),
            "image": source.image,
        }
    folder = Path(code or (source if isinstance(source, str | Path) else Path.cwd()))
    commit = git_commit(folder if folder.is_dir() else folder.parent)
    return {key: value for key, value in (("git_commit", commit), ("data_digest", digest)) if value}


def bundled(
    source: Run | str | Path | Any,
    code: str | Path | None,
    evaluation: Run | None,
    scratch: Path,
    where: str,
    *,
    lineage: Mapping[str, str],
    example: Any,
    optimization: Sequence[Mapping[str, Any]],
    license: str,  # noqa: A002
    foreign: bool,
) -> artifact.Bundle:
    """A run's model, a folder or a model itself, and the code that serves it. What has to be written goes to ``scratch``."""
    if isinstance(source, Run):
        weights, own = scratch / "weights", scratch / "code"
        if code is None and source.source_uri:
            code = own
        for uri, folder in ((source.model_uri, weights), (source.source_uri if code == own else "", own)):
            try:
                if uri:
                    artifact.extract(aws.download(uri, scratch / f"{folder.name}.tar.gz"), folder)
            except CorruptArtifact as error:
                error.where = f"{where}, unpacking {uri}"
                raise
        if code == own and not (own / "inference.py").is_file():
            code = None  # training left its own with the weights, or a model that needs none
    elif isinstance(source, str | Path) and Path(source).is_dir():
        weights = Path(source)
    else:
        from windlass.optimize.export import export

        weights = export(scratch / "exported", source, example)
    if not foreign and not artifact.servable(weights, code):
        hint = "Put one with model_fn beside the training script (templates/image-classifier has one), or export the model."
        raise InvalidInput("no inference.py goes with the model, so nothing could serve it", where=where, hint=hint)
    return artifact.build(
        weights,
        code=code,
        source=lineage,
        evaluation=dict(evaluation.metrics) if evaluation else {},
        optimization=optimization,
        license=license,
        cache=None if isinstance(source, Run) else artifact.DigestCache(),
    )


def enter(
    bundle: artifact.Bundle,
    *,
    group: str,
    base: str,
    metadata: Mapping[str, str],
    image: str,
    evaluation: Path | None,
    evaluation_name: str,
    approve: bool,
    description: str,
    sign_with: str | None,
    archive: bool,
    contract: Contract,
    where: str,
    dry_run: bool,
) -> Mapping[str, Any] | Plan:
    """Upload a bundle and create its model package.

    Args:
        base: where an older bundle lies, of which nothing need be sent again.

    Returns:
        The model package, described.
    """
    if approve:
        metadata = {**metadata, **decided_by_caller(where)}
    prefix = f"s3://{contract.bucket}/artifacts/{bundle.digest}/"
    signature = bundle.manifest.signature
    types = (signature.content_types, signature.accept_types) if signature else None
    if sign_with and not dry_run:
        signed = signing.sign(bundle.digest, sign_with)
        metadata = {**metadata, "signed-by": signed.key_arn, "signed": f"{signed.algorithm}:{signed.value}"}
    too_long = [key for key, value in metadata.items() if len(value) > _METADATA_MOST]
    if "signed" in too_long:
        raise InvalidInput(
            f"a signature of this key is longer than the {_METADATA_MOST} characters that the registry takes",
            where=where,
            hint="Sign with an ECC_NIST_P256 key.",
        )
    plan = plans.register(
        group=group,
        image=image,
        # An archive has a folder of its own, beside which lies its manifest.
        model_uri=f"{prefix[:-1]}-archive/model.tar.gz" if archive else prefix,
        bundle=bundle.path,
        evaluation_uri=f"s3://{contract.bucket}/evaluations/{bundle.digest}/{evaluation_name}.json"
        if evaluation
        else None,
        evaluation=evaluation,
        approved=approve,
        description=description,
        metadata=metadata,
        foundation=contract,
        create_group=not packages.group_exists(group),
        **({"signature_types": types} if types else {}),
    )
    if sign_with:
        plan = dataclasses.replace(plan, also=("kms:DescribeKey", "kms:Sign"))
    if dry_run:
        return plan
    model, *others = plan.uploads
    publish.publish(bundle, model.uri, base=base)
    plan = dataclasses.replace(plan, uploads=tuple(others))
    answers = aws.execute(plan)
    return packages.described(answers[-1]["ModelPackageArn"], where)


def decided_by_caller(where: str) -> dict[str, str]:
    """What an approval keeps of who gave it."""
    arn: str = aws.call(where, aws.client("sts").get_caller_identity)["Arn"]
    return {"decided-by": arn[:_METADATA_MOST]}
