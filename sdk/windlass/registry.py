"""The Model Registry: register, approve, compare, name, delete. Each gives a :class:`ModelVersion`.

version = wl.register(run, model="digits", evaluation=scores, approve=True)
version.alias("champion")
ModelVersion.from_name("digits/1")        # in another process; "digits" is the newest approved one; "digits@champion"
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from windlass import (
    aliases,
    artifact,
    aws,
    comparison,
    entry,
    gates,
    images,
    packages,
    plans,
    publish,
    signing,
    transfer,
)
from windlass.artifact import MANIFEST, Manifest
from windlass.comparison import Comparison
from windlass.errors import Conflict, CorruptArtifact, InvalidInput, NotFound
from windlass.foundation import Contract
from windlass.gates import Policy
from windlass.jobs import Run
from windlass.plans import Plan
from windlass.specs import check_name

_COMPARED = ("run", "git-commit", "data-digest", "parent", "license", "signed-by")


@dataclass(frozen=True)
class ModelVersion:
    """An artifact in the registry, with its evaluation, lineage and approval.

    Attributes:
        name: ``model/version``, for example ``digits/1``.
        approval: ``Approved``, ``PendingManualApproval`` or ``Rejected``.
        metadata: lineage: ``run``, ``digest``, ``parent``, ``git-commit``, ``data-digest``, ``decided-by``, ``signed-by``, and
            the evaluation's figures.
        model_uri: the prefix (with a slash at its end) or ``model.tar.gz`` on S3; its key holds its digest.
        approval_note: why it was approved or rejected.
        stage: where it is in its life, as in ``Staging``; SageMaker's ModelLifeCycle.
    """

    model: str
    version: int
    arn: str
    approval: str
    model_uri: str
    image: str
    environment: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    evaluation_uri: str = ""
    description: str = ""
    approval_note: str = ""
    stage: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}/{self.version}"

    @classmethod
    def from_name(cls, name: str, *, project: str = "windlass") -> ModelVersion:
        """``digits/3``, ``digits@champion`` for what an alias names, or ``digits`` for the newest approved version.

        Raises:
            NotFound: no such model, version or alias; the message lists those there are.
        """
        where = f"Looking up model version '{name}'"
        model, slash, number = name.partition("/")
        model, at, alias = model.partition("@")
        if (slash and not number.isdigit()) or (at and (slash or not alias)):
            hint = "It looks like digits/3 or digits@champion."
            raise InvalidInput(f"{name!r} is not a model version", where=where, hint=hint)
        check_name(model, where)
        if alias:
            known = aliases.read(model, bucket=Contract.load(project).bucket)
            if alias not in known:
                hint = f"There are: {', '.join(sorted(known)) or 'none'}."
                raise NotFound(f"no alias '{alias}'", where=where, hint=hint)
            number = str(known[alias])
        summaries = packages.listed(model, where)
        key, value = ("ModelPackageVersion", int(number)) if number else ("ModelApprovalStatus", "Approved")
        wanted = [summary for summary in summaries if summary[key] == value]
        if not wanted:
            there = ", ".join(f"{model}/{s['ModelPackageVersion']} ({s['ModelApprovalStatus']})" for s in summaries)
            raise NotFound(
                f"no {'such' if number else 'approved'} version", where=where, hint=f"There are: {there or 'none'}."
            )
        return cls._from_arn(wanted[0]["ModelPackageArn"], where)

    @classmethod
    def latest(cls, model: str, *, approval: str | None = "Approved") -> ModelVersion:
        """The newest version with an approval: ``Approved``, ``PendingManualApproval``, ``Rejected``; ``None``: of any.

        Raises:
            NotFound: there is none.
        """
        where = f"Looking up the latest version of '{model}'"
        for summary in packages.listed(model, where):
            if approval in (None, summary["ModelApprovalStatus"]):
                return cls._from_arn(summary["ModelPackageArn"], where)
        raise NotFound(f"no version is {approval}" if approval else "it has no versions", where=where)

    @classmethod
    def list(cls, model: str) -> Sequence[str]:
        """Names of a model's versions, newest first."""
        summaries = packages.listed(model, f"Listing versions of '{model}'")
        return [f"{model}/{summary['ModelPackageVersion']}" for summary in summaries]

    @classmethod
    def _from_arn(cls, arn: str, where: str) -> ModelVersion:
        return cls._of(packages.described(arn, where))

    @classmethod
    def _of(cls, package: Mapping[str, Any]) -> ModelVersion:
        container = package["InferenceSpecification"]["Containers"][0]
        quality = package.get("ModelMetrics", {}).get("ModelQuality", {}).get("Statistics", {})
        return cls(
            model=package["ModelPackageGroupName"],
            version=package["ModelPackageVersion"],
            arn=package["ModelPackageArn"],
            approval=package["ModelApprovalStatus"],
            model_uri=packages.model_uri(package),
            image=container["Image"],
            environment=container.get("Environment", {}),
            metadata=package.get("CustomerMetadataProperties", {}),
            evaluation_uri=quality.get("S3Uri", ""),
            description=package.get("ModelPackageDescription", ""),
            approval_note=package.get("ApprovalDescription", ""),
            stage=package.get("ModelLifeCycle", {}).get("Stage", ""),
        )

    def approve(self, why: str = "") -> ModelVersion:
        """Allow it to be deployed."""
        return self._decide("Approved", why)

    def reject(self, why: str = "") -> ModelVersion:
        """Never let it be deployed."""
        return self._decide("Rejected", why)

    def _decide(self, status: str, why: str) -> ModelVersion:
        where = f"Setting {self.name} {status}"
        params: dict[str, Any] = {
            "ModelApprovalStatus": status,
            "CustomerMetadataProperties": entry.decided_by_caller(where),
        }
        if why:
            params["ApprovalDescription"] = why
        return self._update(where, **params)

    def move_to(self, stage: str, why: str = "", *, status: str = "Approved") -> ModelVersion:
        """Say where it is in its life: ``version.move_to("Staging")``. An approval is a thing of its own."""
        cycle = {"Stage": stage, "StageStatus": status, **({"StageDescription": why} if why else {})}
        return self._update(f"Moving {self.name} to {stage}", ModelLifeCycle=cycle)

    def _update(self, where: str, **changes: Any) -> ModelVersion:
        aws.call(where, aws.client("sagemaker").update_model_package, ModelPackageArn=self.arn, **changes)
        return ModelVersion._from_arn(self.arn, where)

    def alias(
        self, name: str, *, expected: int | aliases._Anything | None = aliases.ANYTHING, project: str = "windlass"
    ) -> ModelVersion:
        """Let ``model@name`` be this version.

        Args:
            expected: the version number that it names now; then nobody's move in between is lost. ``None``: it is new.

        Raises:
            Conflict: it names another version, or was moved at the same moment.
        """
        group, bucket = packages.group_arn(self.model), Contract.load(project).bucket
        aliases.move(self.model, name, self.version, bucket=bucket, group_arn=group, expected=expected)
        return self

    def unalias(self, name: str, *, project: str = "windlass") -> None:
        """Take ``model@name`` away.

        Raises:
            Conflict: it names another version, or was moved at the same moment.
        """
        group, bucket = packages.group_arn(self.model), Contract.load(project).bucket
        aliases.move(self.model, name, None, bucket=bucket, group_arn=group, expected=self.version)

    @functools.cached_property
    def manifest(self) -> Manifest:
        """``windlass.json`` as it was registered, read from S3.

        Raises:
            CorruptArtifact: it is not the one that was registered.
            NotFound: the artifact is gone.
        """
        folder = self.model_uri.rpartition("/")[0] + "/"
        manifest = Manifest.from_json(aws.get_bytes(folder + MANIFEST), where=folder + MANIFEST)
        if manifest.digest != self.metadata.get("digest"):
            hint = "Somebody wrote over it; register the run again."
            raise CorruptArtifact(
                "the manifest on S3 is not the registered one", where=f"Reading {self.name}", hint=hint
            )
        return manifest

    @property
    def signature(self) -> signing.ManifestSignature | None:
        """Who signed the manifest, if anybody did. :meth:`verify` checks it."""
        if "signed-by" not in self.metadata:
            return None
        key, value = self.metadata["signed-by"], self.metadata.get("signed", "")
        algorithm, _, value = value.partition(":")
        return signing.ManifestSignature(key, algorithm, value)

    def verify(self, policy: Policy | None = None) -> None:
        """Make sure that the manifest is the registered one, that its signature (if there is one) is right, and that a policy
        lets it pass.

        Raises:
            CorruptArtifact: the manifest or the signature is not right.
            PolicyRefused: lists each gate that is shut.
        """
        signature = self.signature
        if signature:
            signing.verify(self.manifest.digest, signature)
        if policy:
            evaluation = self.evaluation if self.evaluation_uri else {}
            facts = _facts(self.manifest, evaluation, signature.key_arn if signature else "")
            gates.refuse(policy, facts, where=f"Checking {self.name}")

    def compare(self, other: ModelVersion | str) -> Comparison:
        """Whether the other is better, by a paired test on the evaluation set that both were registered with.

        print(wl.ModelVersion.from_name("digits/3").compare("digits/5"))

        Raises:
            InvalidInput: they were evaluated on different data, or do not say which samples were right.
        """
        after = ModelVersion.from_name(other) if isinstance(other, str) else other
        answer = comparison.compare(self.name, self.evaluation, after.name, after.evaluation)
        facts = {name: (self.metadata.get(name, ""), after.metadata.get(name, "")) for name in _COMPARED}
        facts |= {"size, MB": (f"{self.manifest.size / 1e6:.3f}", f"{after.manifest.size / 1e6:.3f}")}
        return dataclasses.replace(answer, facts={name: pair for name, pair in facts.items() if any(pair)})

    def fetch(self, dest: str | Path) -> artifact.Bundle:
        """Download the bundle into a folder, and verify it.

        Raises:
            CorruptArtifact: it is not what was registered; nothing is left then.
        """
        bundle = publish.fetch(self.model_uri, Path(dest))
        if bundle.digest != self.metadata.get("digest", bundle.digest):
            shutil.rmtree(dest)
            raise CorruptArtifact("the bundle on S3 is not the registered one", where=f"Fetching {self.name}")
        return bundle

    def export(self, dest: str | Path) -> Path:
        """Write the version as one file: bundle, evaluation, lineage and signature. :func:`import_version` reads it."""
        transfer.export(self, Path(dest))
        return Path(dest)

    def promote(
        self,
        *,
        role_arn: str = "",
        project: str = "windlass",
        model: str | None = None,
        approve: bool = False,
        policy: Policy | None = None,
        dry_run: bool = False,
    ) -> ModelVersion | Plan:
        """Enter it in another registry, of another account or project: bundle, evaluation, lineage and signature.

            plan = version.promote(role_arn="arn:aws:iam::222222222222:role/windlass-deployer", dry_run=True)

        Args:
            role_arn: of the other account, to be assumed; empty: this account.
            project: whose foundation there takes it.
            model: the model package group there; by default named as here.
            approve: set it ``Approved`` there at once; an approval here is not taken along.
            policy: gates that must open.

        Raises:
            PolicyRefused, CorruptArtifact: as :meth:`verify`; nothing was sent then.
            AccessDenied: the role may not be assumed.
        """
        where = f"Promoting {self.name}"
        self.verify(policy)
        made = transfer.promote(
            self, role_arn=role_arn, project=project, model=model, approve=approve, dry_run=dry_run, where=where
        )
        return made if isinstance(made, Plan) else ModelVersion._of(made)

    def delete(self, *, project: str = "windlass") -> None:
        """Take it out of the registry. What runs made of it stays on S3, where a lifecycle rule may end it.

        Raises:
            Conflict: an endpoint serves it or would roll back to it, or an alias names it.
        """
        where = f"Deleting {self.name}"
        known = aliases.read(self.model, bucket=Contract.load(project).bucket)
        named = sorted(alias for alias, version in known.items() if version == self.version)
        if named:
            raise Conflict(f"alias {', '.join(named)} names it", where=where, hint="Move the alias first.")
        served = _served_by(self.name, where)
        if served:
            raise Conflict(
                f"endpoint config {', '.join(served)} uses it", where=where, hint="Deploy another version first."
            )
        aws.call(where, aws.client("sagemaker").delete_model_package, ModelPackageName=self.arn)

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """The evaluation it was registered with, read from S3."""
        if not self.evaluation_uri:
            hint = "Register with evaluation=wl.evaluate(...)."
            raise NotFound("it was registered without one", where=f"Reading the evaluation of {self.name}", hint=hint)
        body: Mapping[str, Any] = json.loads(aws.get_bytes(self.evaluation_uri))
        return body


@overload
def register(
    source: Run | str | Path | Any,
    model: str | None = ...,
    *,
    code: str | Path | None = ...,
    data: str | Path | None = ...,
    example: Any = ...,
    evaluation: Run | None = ...,
    approve: bool = ...,
    description: str = ...,
    image: str | None = ...,
    optimization: Sequence[Mapping[str, Any]] = ...,
    license: str = ...,
    policy: Policy | None = ...,
    sign_with: str | None = ...,
    archive: bool = ...,
    project: str = ...,
    dry_run: Literal[True],
) -> Plan: ...
@overload
def register(
    source: Run | str | Path | Any,
    model: str | None = ...,
    *,
    code: str | Path | None = ...,
    data: str | Path | None = ...,
    example: Any = ...,
    evaluation: Run | None = ...,
    approve: bool = ...,
    description: str = ...,
    image: str | None = ...,
    optimization: Sequence[Mapping[str, Any]] = ...,
    license: str = ...,
    policy: Policy | None = ...,
    sign_with: str | None = ...,
    archive: bool = ...,
    project: str = ...,
    dry_run: Literal[False] = ...,
) -> ModelVersion: ...
def register(
    source: Run | str | Path | Any,
    model: str | None = None,
    *,
    code: str | Path | None = None,
    data: str | Path | None = None,
    example: Any = None,
    evaluation: Run | None = None,
    approve: bool = False,
    description: str = "",
    image: str | None = None,
    optimization: Sequence[Mapping[str, Any]] = (),
    license: str = "",  # noqa: A002 - the field's name in the manifest
    policy: Policy | None = None,
    sign_with: str | None = None,
    archive: bool = False,
    project: str = "windlass",
    dry_run: bool = False,
) -> ModelVersion | Plan:
    """Package a model with the code that serves it, and enter it in the registry.

        version = wl.register(run, model="digits", evaluation=scores, approve=True)
        version = wl.register("out/model", model="digits", code="src/")
        version = wl.register(estimator, model="digits", example=X[:4])

    The bundle holds the weights, ``code/`` with ``inference.py``, and a manifest with digests, signature and lineage. It is
    content-addressed: registering the same again uploads nothing, and of changed code the code alone.

    Args:
        source: a finished run, whose model and training code are taken; a folder with a model; or a model itself, which
            ``windlass.optimize.export`` writes: a torch module, an estimator, an ONNX graph, a transformers model.
        model: the model package group; by default the contract's. It is made if it is not there.
        code: folder of the serving code; by default the run's own source, or ``code/`` in the folder. A model whose file says
            how to compute needs none (``artifact.loaders``).
        data: folder or file that a model without a run was made from; its digest is recorded.
        example: inputs of a model that is given itself, as ``export`` takes them.
        evaluation: what :func:`windlass.evaluate` returned.
        approve: set it ``Approved`` at once; otherwise :meth:`ModelVersion.approve` does.
        image: inference image; by default AWS's PyTorch image for the region. A vendor's, as vLLM's, needs no
            ``inference.py``.
        optimization: what was done to the weights after training, in order: ``[{"step": "quantize", "dtype": "int8"}]``.
        license: SPDX expression of the weights' licence; by default what the model card says.
        policy: gates that must open.
        sign_with: id, ARN or alias of an asymmetric KMS key that signs the manifest.
        archive: upload one ``model.tar.gz`` for what reads nothing else, in place of a prefix.

    Raises:
        InvalidInput: the run has no model, or no ``inference.py`` goes with it.
        PolicyRefused: lists each gate that is shut; nothing was sent.
        CorruptArtifact: what the run left on S3 cannot be opened.
    """
    name = f"run '{source.name}'" if isinstance(source, Run) else f"a {type(source).__name__}"
    if isinstance(source, str | Path):
        name = f"'{source}'"
    where = f"Registering {name}"
    if isinstance(source, Run) and (source.status != "Completed" or not source.model_uri):
        raise InvalidInput(f"the run is {source.status}, so it has no model", where=where, hint=source.why_no_model)
    contract = Contract.load(project)
    group = check_name(model or contract.model_package_group, where)
    parent = packages.newest(group, where)
    lineage = entry.lineage(source, code, data)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = entry.bundled(
            source,
            code,
            evaluation,
            Path(scratch),
            where,
            lineage=lineage,
            example=example,
            optimization=optimization,
            license=license,
            foreign=bool(image and images.vendor_server(image)),
        )
        if policy:
            facts = _facts(bundle.manifest, evaluation.evaluation if evaluation else {}, _key_arn(sign_with))
            gates.refuse(policy, facts, where=where)
        scores = Path(scratch) / "evaluation.json"
        if evaluation:
            scores.write_text(json.dumps(evaluation.evaluation, sort_keys=True))
        metadata = {
            "run": source.name if isinstance(source, Run) else "",
            "evaluation": evaluation.name if evaluation else "",
            "digest": bundle.digest,
            "parent": f"{group}/{parent['ModelPackageVersion']}" if parent else "",
            "license": bundle.manifest.license,
            "git-commit": lineage.get("git_commit", ""),
            "data-digest": lineage.get("data_digest", ""),
            **{name: f"{value:.6g}" for name, value in (evaluation.metrics if evaluation else {}).items()},
        }
        made = entry.enter(
            bundle,
            group=group,
            base=packages.model_uri(parent),
            metadata=metadata,
            image=image or images.aws_image("inference", aws.region(), "ml.m5.large"),
            evaluation=scores if evaluation else None,
            evaluation_name=evaluation.name if evaluation else "",
            approve=approve,
            description=description or f"from {name}",
            sign_with=sign_with,
            archive=archive,
            contract=contract,
            where=where,
            dry_run=dry_run,
        )
    return made if isinstance(made, Plan) else ModelVersion._of(made)


def import_version(
    path: str | Path, model: str | None = None, *, sign_with: str | None = None, project: str = "windlass"
) -> ModelVersion:
    """Enter what :meth:`ModelVersion.export` wrote as a new version, which waits for approval.

    Raises:
        CorruptArtifact: the file is damaged, or the bundle in it is not what its manifest says.
    """
    contract, where = Contract.load(project), f"Importing {path}"
    return ModelVersion._of(
        transfer.import_file(Path(path), model, sign_with=sign_with, contract=contract, where=where)
    )


def _facts(manifest: Manifest, evaluation: Mapping[str, Any], signed_by: str) -> gates.Facts:
    latency = evaluation.get("p99_latency_ms")
    return gates.Facts(
        metrics=comparison.metric_values(evaluation),
        samples=int(evaluation.get("samples", 0)),
        size=manifest.size,
        latency_ms=float(latency) if isinstance(latency, int | float) else None,
        pickles=manifest.pickles,
        license=manifest.license,
        has_signature=manifest.signature is not None,
        signed_by=signed_by,
    )


def _key_arn(key: str | None) -> str:
    """The ARN of the key that is going to sign."""
    if not key:
        return ""
    return str(aws.call(f"Looking up key {key}", aws.client("kms").describe_key, KeyId=key)["KeyMetadata"]["Arn"])


def _served_by(version: str, where: str) -> list[str]:
    """The configs, live or kept to roll back to, that serve a version."""
    sagemaker, found = aws.client("sagemaker"), []
    for endpoint in aws.pages(where, "sagemaker", "list_endpoints", "Endpoints"):
        try:
            answer = aws.call(where, sagemaker.describe_endpoint, EndpointName=endpoint["EndpointName"])
            tags = _tags(answer["EndpointArn"], where)
        except NotFound:
            continue  # deleted since it was listed
        kept = [name for name in tags.get(plans.HISTORY_TAG, "").split() if name]
        for config in dict.fromkeys([answer.get("EndpointConfigName", ""), *kept]):
            try:
                arn = aws.call(where, sagemaker.describe_endpoint_config, EndpointConfigName=config)[
                    "EndpointConfigArn"
                ]
            except NotFound:
                continue  # deleted by hand
            if _tags(arn, where).get("windlass:model-version") == version:
                found.append(config)
    return found


def _tags(arn: str, where: str) -> Mapping[str, str]:
    return {tag["Key"]: tag["Value"] for tag in aws.pages(where, "sagemaker", "list_tags", "Tags", ResourceArn=arn)}
