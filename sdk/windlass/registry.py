"""The Model Registry: register and approve. Each gives a :class:`ModelVersion`.

version = wl.register(run, model="digits", evaluation=scores, approve=True)
ModelVersion.from_name("digits/1")        # in another process; "digits" is the newest approved one
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from windlass import artifact, aws, plans
from windlass.errors import CorruptArtifact, InvalidInput, NotFound
from windlass.foundation import Contract
from windlass.jobs import Run
from windlass.plans import Plan
from windlass.specs import check_name


@dataclass(frozen=True)
class ModelVersion:
    """An artifact in the registry, with its evaluation, lineage and approval.

    Attributes:
        name: ``model/version``, for example ``digits/1``.
        approval: ``Approved``, ``PendingManualApproval`` or ``Rejected``.
        metadata: lineage: ``run``, ``digest``, ``git-commit``, ``data-digest``, and the evaluation's figures.
        model_uri: ``model.tar.gz`` on S3; its key is its digest.
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

    @property
    def name(self) -> str:
        return f"{self.model}/{self.version}"

    @classmethod
    def from_name(cls, name: str) -> ModelVersion:
        """``digits/3``, or ``digits`` for the newest approved version.

        Raises:
            NotFound: no such model or version; the message lists those there are.
        """
        where = f"Looking up model version '{name}'"
        model, _, number = name.partition("/")
        if number and not number.isdigit():
            raise InvalidInput(f"{number!r} is not a version number", where=where, hint="It looks like digits/3.")
        check_name(model, where)
        summaries = _summaries(model, where)
        key, value = ("ModelPackageVersion", int(number)) if number else ("ModelApprovalStatus", "Approved")
        wanted = [summary for summary in summaries if summary[key] == value]
        if not wanted:
            there = ", ".join(f"{model}/{s['ModelPackageVersion']} ({s['ModelApprovalStatus']})" for s in summaries)
            raise NotFound(
                f"no {'such' if number else 'approved'} version", where=where, hint=f"There are: {there or 'none'}."
            )
        return cls._from_arn(wanted[0]["ModelPackageArn"], where)

    @classmethod
    def list(cls, model: str) -> Sequence[str]:
        """Names of a model's versions, newest first."""
        summaries = _summaries(model, f"Listing versions of '{model}'")
        return [f"{model}/{summary['ModelPackageVersion']}" for summary in summaries]

    @classmethod
    def _from_arn(cls, arn: str, where: str) -> ModelVersion:
        answer = aws.call(where, aws.client("sagemaker").describe_model_package, ModelPackageName=arn)
        container = answer["InferenceSpecification"]["Containers"][0]
        quality = answer.get("ModelMetrics", {}).get("ModelQuality", {}).get("Statistics", {})
        return cls(
            model=answer["ModelPackageGroupName"],
            version=answer["ModelPackageVersion"],
            arn=answer["ModelPackageArn"],
            approval=answer["ModelApprovalStatus"],
            model_uri=container["ModelDataUrl"],
            image=container["Image"],
            environment=container.get("Environment", {}),
            metadata=answer.get("CustomerMetadataProperties", {}),
            evaluation_uri=quality.get("S3Uri", ""),
            description=answer.get("ModelPackageDescription", ""),
        )

    def approve(self, why: str = "") -> ModelVersion:
        """Allow it to be deployed."""
        return self._decide("Approved", why)

    def reject(self, why: str = "") -> ModelVersion:
        """Never let it be deployed."""
        return self._decide("Rejected", why)

    def _decide(self, status: str, why: str) -> ModelVersion:
        where = f"Setting {self.name} {status}"
        params = {"ModelPackageArn": self.arn, "ModelApprovalStatus": status}
        if why:
            params["ApprovalDescription"] = why
        aws.call(where, aws.client("sagemaker").update_model_package, **params)
        return ModelVersion._from_arn(self.arn, where)

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """The evaluation it was registered with, read from S3."""
        if not self.evaluation_uri:
            hint = "Register with evaluation=wl.evaluate(...)."
            raise NotFound("it was registered without one", where=f"Reading the evaluation of {self.name}", hint=hint)
        body: Mapping[str, Any] = json.loads(aws.get_bytes(self.evaluation_uri))
        return body


def _summaries(model: str, where: str) -> Sequence[Mapping[str, Any]]:
    """Newest first."""
    found = aws.pages(
        where,
        "sagemaker",
        "list_model_packages",
        "ModelPackageSummaryList",
        ModelPackageGroupName=model,
        SortBy="CreationTime",
        SortOrder="Descending",
    )
    return sorted(found, key=lambda summary: -summary["ModelPackageVersion"])


@overload
def register(
    run: Run,
    model: str | None = ...,
    *,
    evaluation: Run | None = ...,
    approve: bool = ...,
    description: str = ...,
    image: str | None = ...,
    project: str = ...,
    dry_run: Literal[True],
) -> Plan: ...
@overload
def register(
    run: Run,
    model: str | None = ...,
    *,
    evaluation: Run | None = ...,
    approve: bool = ...,
    description: str = ...,
    image: str | None = ...,
    project: str = ...,
    dry_run: Literal[False] = ...,
) -> ModelVersion: ...
def register(
    run: Run,
    model: str | None = None,
    *,
    evaluation: Run | None = None,
    approve: bool = False,
    description: str = "",
    image: str | None = None,
    project: str = "windlass",
    dry_run: bool = False,
) -> ModelVersion | Plan:
    """Package a run's model with the code that serves it, and enter it in the registry.

        version = wl.register(run, model="digits", evaluation=scores, approve=True)

    The bundle holds the run's weights, its source as ``code/`` (with ``inference.py``), ``signature.json`` and a manifest with
    digests and lineage. It is content-addressed: registering the same run again uploads nothing.

    Args:
        model: the model package group; by default the contract's. It is made if it is not there.
        evaluation: what :func:`windlass.evaluate` returned.
        approve: set it ``Approved`` at once; otherwise :meth:`ModelVersion.approve` does.
        image: inference image; by default AWS's PyTorch image for the region.

    Raises:
        InvalidInput: the run has no model, or no ``inference.py`` goes with it.
        CorruptArtifact: what the run left on S3 cannot be opened.
    """
    where = f"Registering run '{run.name}'"
    if run.status != "Completed" or not run.model_uri:
        raise InvalidInput(f"the run is {run.status}, so it has no model", where=where, hint=run.why_no_model)
    contract = Contract.load(project)
    group = check_name(model or contract.model_package_group, where)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = _bundle(run, evaluation, Path(scratch), where)
        scores = Path(scratch) / "evaluation.json"
        if evaluation:
            scores.write_text(json.dumps(evaluation.evaluation, sort_keys=True))
        base = f"s3://{contract.bucket}/artifacts/{bundle.digest}"
        plan = plans.register(
            group=group,
            image=image or plans.dlc_image("inference", aws.region(), "ml.m5.large"),
            model_uri=f"{base}/model.tar.gz",
            bundle=bundle.path,
            content_type=bundle.manifest.signature.content_type if bundle.manifest.signature else "application/json",
            evaluation_uri=f"{base}/evaluation-{evaluation.name}.json" if evaluation else None,
            evaluation=scores if evaluation else None,
            approved=approve,
            description=description or f"from run {run.name}",
            metadata={
                "run": run.name,
                "evaluation": evaluation.name if evaluation else "",
                "digest": bundle.digest,
                "git-commit": run.tags.get("git-commit", ""),
                "data-digest": run.tags.get("data-digest", ""),
                **{name: f"{value:.6g}" for name, value in (evaluation.metrics if evaluation else {}).items()},
            },
            foundation=contract,
            create_group=not _group_exists(group),
        )
        if dry_run:
            return plan
        answers = aws.execute(plan)
    return ModelVersion._from_arn(answers[-1]["ModelPackageArn"], where)


def _bundle(run: Run, evaluation: Run | None, scratch: Path, where: str) -> artifact.Bundle:
    weights, code = scratch / "weights", scratch / "code"
    for uri, folder in ((run.model_uri, weights), (run.source_uri, code)):
        try:
            if uri:
                artifact.extract(aws.download(uri, scratch / f"{folder.name}.tar.gz"), folder)
        except CorruptArtifact as error:
            error.where = f"{where}, unpacking {uri}"
            raise
    inference = next((f for f in (code / "inference.py", weights / "code" / "inference.py") if f.is_file()), None)
    if inference is None:
        hint = "Put one with model_fn beside the training script (templates/image-classifier has one)."
        raise InvalidInput("no inference.py goes with the model, so nothing could serve it", where=where, hint=hint)
    return artifact.build(
        weights,
        scratch / "model.tar.gz",
        code=code if code.is_dir() else None,
        source={
            "run": run.arn,
            "git_commit": run.tags.get("git-commit", ""),
            "data_digest": run.tags.get("data-digest", ""),
            "image": run.image,
        },
        evaluation=dict(evaluation.metrics) if evaluation else {},
    )


def _group_exists(group: str) -> bool:
    try:
        aws.call(
            f"Looking up model '{group}'",
            aws.client("sagemaker").describe_model_package_group,
            ModelPackageGroupName=group,
        )
    except NotFound:
        return False
    return True
