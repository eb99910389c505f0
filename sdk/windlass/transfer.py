"""From one registry to another: a version as a file and back, or straight into that of another account or project.

transfer.export(version, Path("digits-3.tar.gz"))
package = transfer.import_file(Path("digits-3.tar.gz"), "digits", sign_with=None, contract=contract, where=where)
package = transfer.promote(version, role_arn="arn:aws:iam::222222222222:role/windlass-deployer", ...)

What travels is the bundle, the evaluation, the lineage and the signature. An approval does not: each registry gives its own.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windlass import artifact, aws, entry, packages
from windlass.errors import CorruptArtifact
from windlass.foundation import Contract
from windlass.plans import Plan
from windlass.specs import check_name

if TYPE_CHECKING:
    from windlass.registry import ModelVersion

_RECORD = "version.json"


def export(version: ModelVersion, dest: Path) -> None:
    """The version as one file."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "version"
        folder.mkdir()
        artifact.repack(version.fetch(Path(scratch) / "model"), folder / "model.tar.gz")
        record = {
            "name": version.name,
            "image": version.image,
            "environment": dict(version.environment),
            "description": version.description,
            "metadata": dict(version.metadata),
            "evaluation": version.evaluation if version.evaluation_uri else None,
        }
        (folder / _RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        artifact.pack(folder, dest)


def import_file(
    path: Path, model: str | None, *, sign_with: str | None, contract: Contract, where: str
) -> Mapping[str, Any]:
    """Enter what :func:`export` wrote. Returns the model package, described, which waits for approval.

    Raises:
        CorruptArtifact: the file is damaged, or the bundle in it is not what its manifest says.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "version"
        artifact.extract(path, folder)
        try:
            record = json.loads((folder / _RECORD).read_bytes())
            came_from, image = str(record["name"]), str(record["image"])
            metadata = {str(key): str(value) for key, value in record["metadata"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifact(f"no {_RECORD} of a version ({error})", where=where) from error
        bundle = artifact.open(folder / "model.tar.gz", Path(scratch) / "model")
        scores = Path(scratch) / "evaluation.json"
        if record.get("evaluation"):
            scores.write_text(json.dumps(record["evaluation"], sort_keys=True))
        group = check_name(model or came_from.partition("/")[0], where)
        made = entry.enter(
            bundle,
            group=group,
            base=packages.model_uri(packages.newest(group, where)),
            metadata={**_kept(metadata), "digest": bundle.digest, "imported-from": came_from},
            image=image,
            evaluation=scores if record.get("evaluation") else None,
            evaluation_name="imported",
            approve=False,
            description=str(record.get("description", "")),
            sign_with=sign_with,
            archive=False,
            contract=contract,
            where=where,
            dry_run=False,
        )
    assert not isinstance(made, Plan)
    return made


def promote(
    version: ModelVersion, *, role_arn: str, project: str, model: str | None, approve: bool, dry_run: bool, where: str
) -> Mapping[str, Any] | Plan:
    """Enter a version in another registry, acting as ``role_arn`` there. Returns the model package, described."""
    group = check_name(model or version.model, where)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = artifact.Bundle(Path(version.name), version.manifest, {})
        if not dry_run:
            bundle = version.fetch(Path(scratch) / "model")
        scores = Path(scratch) / "evaluation.json"
        if version.evaluation_uri:
            scores.write_text(json.dumps(version.evaluation, sort_keys=True))
        with aws.acting_as(role_arn):
            made = entry.enter(
                bundle,
                group=group,
                base=packages.model_uri(packages.newest(group, where)),
                metadata={**_kept(version.metadata), "promoted-from": version.arn},
                image=version.image,
                evaluation=scores if version.evaluation_uri else None,
                evaluation_name="promoted",
                approve=approve,
                description=version.description,
                sign_with=None,
                archive=not version.model_uri.endswith("/"),
                contract=Contract.load(project),
                where=where,
                dry_run=dry_run,
            )
    if not isinstance(made, Plan):
        return made
    reads = ("sts:AssumeRole",) * bool(role_arn) + ("s3:GetObject", "kms:Decrypt")
    also = (*reads, *made.also, "kms:GenerateDataKey")
    return dataclasses.replace(made, verb="promote", also=also, notes=(*made.notes, *needs(version, role_arn)))


def needs(version: ModelVersion, role_arn: str) -> tuple[str, ...]:
    """What a promotion does beyond its requests, and what the two accounts must allow for it: no request can see to that."""
    writer = f"as {role_arn}" if role_arn else "as you"
    notes = [
        f"copies {version.manifest.size} bytes through this machine: reads {version.model_uri} as you, writes {writer}; "
        "no bucket policy need name the other account"
    ]
    ours, theirs = version.arn.split(":")[4], role_arn.split(":")[4] if role_arn.count(":") >= 5 else ""
    if not theirs or theirs == ours:
        return tuple(notes)
    signature = version.signature
    if signature:
        notes.append(
            f"the policy of key {signature.key_arn} must let account {theirs} kms:Verify, or it cannot deploy there"
        )
    if version.image.startswith(f"{ours}.dkr.ecr."):
        notes.append(f"the repository policy of {version.image} must let account {theirs} pull it")
    return tuple(notes)


def _kept(metadata: Mapping[str, str]) -> dict[str, str]:
    """What holds in another registry too: not who decided in this one, but whose signature it is, for the digest stays."""
    return {key: value for key, value in metadata.items() if key not in ("decided-by", "parent")}
