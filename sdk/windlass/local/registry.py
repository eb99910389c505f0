"""The Model Registry: groups of model packages, their versions, approvals and evaluations.

moto's own records lose what an update does not name, count versions by how many are left, and cannot delete.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from moto.core.responses import ActionResult, EmptyResult

from windlass.local import cloud as clouds
from windlass.local.faults import Fault
from windlass.local.listing import select

_KEPT = (
    "ModelPackageDescription",
    "ModelPackageRegistrationType",
    "InferenceSpecification",
    "ValidationSpecification",
    "SourceAlgorithmSpecification",
    "CertifyForMarketplace",
    "ModelApprovalStatus",
    "MetadataProperties",
    "ModelMetrics",
    "Domain",
    "Task",
    "SamplePayloadUrl",
    "CustomerMetadataProperties",
    "DriftCheckBaselines",
    "AdditionalInferenceSpecifications",
    "SkipModelValidation",
    "SourceUri",
    "SecurityConfig",
    "ModelCard",
    "ModelLifeCycle",
)
_UPDATED = (
    "ModelApprovalStatus",
    "ModelPackageRegistrationType",
    "ApprovalDescription",
    "InferenceSpecification",
    "SourceUri",
    "ModelCard",
    "ModelLifeCycle",
)
_SUMMARY = (
    "ModelPackageName",
    "ModelPackageGroupName",
    "ModelPackageVersion",
    "ModelPackageArn",
    "ModelPackageDescription",
    "CreationTime",
    "ModelPackageStatus",
    "ModelApprovalStatus",
    "ModelLifeCycle",
    "ModelPackageRegistrationType",
)
_GROUP_SUMMARY = (
    "ModelPackageGroupName",
    "ModelPackageGroupArn",
    "ModelPackageGroupDescription",
    "CreationTime",
    "ModelPackageGroupStatus",
)


class Registry:
    """Every group and package of one local cloud, by ARN in lower case."""

    def __init__(self, cloud: clouds.Cloud) -> None:
        self._cloud = cloud
        self._lock = threading.RLock()
        self._groups: dict[str, dict[str, Any]] = {}
        self._packages: dict[str, dict[str, Any]] = {}
        self._newest: dict[str, int] = {}  # group -> its highest version ever: numbers are never used twice
        self._saved_groups = cloud.database.table("model-package-groups")
        self._saved_packages = cloud.database.table("model-packages")
        self._saved_newest = cloud.database.table("model-package-versions")

    def restore(self) -> None:
        """Put back what an earlier server saved."""
        self._groups |= self._saved_groups.items()
        self._packages |= self._saved_packages.items()
        self._newest |= {key: record["newest"] for key, record in self._saved_newest.items()}

    def create_group(self, region: str, params: Mapping[str, Any]) -> str:
        name = params["ModelPackageGroupName"]
        arn = _arn(region, "model-package-group", name)
        with self._lock:
            if arn.lower() in self._groups:
                raise Fault("ValidationException", f"Model Package Group already exists: {arn}")
            self._groups[arn.lower()] = {
                "ModelPackageGroupName": name,
                "ModelPackageGroupArn": arn,
                "ModelPackageGroupDescription": params.get("ModelPackageGroupDescription"),
                "CreationTime": self._now(),
                "CreatedBy": {"UserProfileName": "local"},
                "ModelPackageGroupStatus": "Completed",
            }
            self._saved_groups.save(arn.lower(), self._groups[arn.lower()])
        return arn

    def group(self, region: str, name: str) -> dict[str, Any]:
        arn = name if name.startswith("arn:") else _arn(region, "model-package-group", name)
        try:
            return self._groups[arn.lower()]
        except KeyError:
            raise Fault("ValidationException", f"ModelPackageGroup {arn} does not exist.") from None

    def groups(self, region: str) -> list[dict[str, Any]]:
        return [group for group in list(self._groups.values()) if _region_of(group["ModelPackageGroupArn"]) == region]

    def delete_group(self, region: str, name: str) -> None:
        with self._lock:
            group = self.group(region, name)
            if self.packages(region, group["ModelPackageGroupName"]):
                arn = group["ModelPackageGroupArn"]
                raise Fault(
                    "ConflictException", f"Model Package Group {arn} cannot be deleted: it holds model packages."
                )
            del self._groups[group["ModelPackageGroupArn"].lower()]
            self._saved_groups.delete(group["ModelPackageGroupArn"].lower())

    def create(self, region: str, params: Mapping[str, Any]) -> str:
        name, group_name = params.get("ModelPackageName"), params.get("ModelPackageGroupName")
        if bool(name) == bool(group_name):
            raise Fault(
                "ValidationException", "Exactly one of ModelPackageName and ModelPackageGroupName must be given."
            )
        with self._lock:
            record: dict[str, Any] = {}
            if group_name:
                group = self.group(region, group_name)
                key = group["ModelPackageGroupArn"].lower()
                version = self._newest[key] = self._newest.get(key, 0) + 1
                self._saved_newest.save(key, {"newest": version})
                record |= {"ModelPackageGroupName": group["ModelPackageGroupName"], "ModelPackageVersion": version}
                record |= {"ModelApprovalStatus": "PendingManualApproval"}
                arn = _arn(region, "model-package", f"{group['ModelPackageGroupName']}/{version}")
            else:
                record["ModelPackageName"] = name
                arn = _arn(region, "model-package", str(name))
                if arn.lower() in self._packages:
                    raise Fault("ConflictException", f"Model Package already exists: {arn}")
            record |= {
                "ModelPackageArn": arn,
                "CreationTime": self._now(),
                "CreatedBy": {"UserProfileName": "local"},
                "ModelPackageStatus": "Completed",
                "ModelPackageStatusDetails": {"ValidationStatuses": [], "ImageScanStatuses": []},
            }
            record |= {member: copy.deepcopy(params[member]) for member in _KEPT if params.get(member) is not None}
            self._packages[arn.lower()] = record
            self._saved_packages.save(arn.lower(), record)
        return arn

    def package(self, region: str, name: str) -> dict[str, Any]:
        arn = name if name.startswith("arn:") else _arn(region, "model-package", name)
        try:
            return self._packages[arn.lower()]
        except KeyError:
            raise Fault("ValidationException", f"ModelPackage {arn} does not exist.") from None

    def packages(self, region: str, group: str | None = None) -> list[dict[str, Any]]:
        found = [record for record in list(self._packages.values()) if _region_of(record["ModelPackageArn"]) == region]
        return [record for record in found if group is None or record.get("ModelPackageGroupName") == group]

    def update(self, region: str, params: Mapping[str, Any]) -> str:
        with self._lock:
            record = self.package(region, params["ModelPackageArn"])
            record |= {member: copy.deepcopy(params[member]) for member in _UPDATED if params.get(member) is not None}
            properties = {
                **record.get("CustomerMetadataProperties", {}),
                **(params.get("CustomerMetadataProperties") or {}),
            }
            for key in params.get("CustomerMetadataPropertiesToRemove") or []:
                properties.pop(key, None)
            record["CustomerMetadataProperties"] = properties
            added = params.get("AdditionalInferenceSpecificationsToAdd") or []
            if added:
                record["AdditionalInferenceSpecifications"] = [
                    *record.get("AdditionalInferenceSpecifications", []),
                    *added,
                ]
            record["LastModifiedTime"] = self._now()
            record["LastModifiedBy"] = {"UserProfileName": "local"}
            self._saved_packages.save(str(record["ModelPackageArn"]).lower(), record)
            return str(record["ModelPackageArn"])

    def delete(self, region: str, name: str) -> str:
        with self._lock:
            arn = str(self.package(region, name)["ModelPackageArn"])
            del self._packages[arn.lower()]
            self._saved_packages.delete(arn.lower())
        return arn

    def reset(self) -> None:
        with self._lock:
            self._groups.clear()
            self._packages.clear()
            self._newest.clear()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._cloud.clock.now(), UTC)


class RegistryOperations:
    """The registry's part of the SageMaker API."""

    params: Any
    region: str

    def create_model_package_group(self) -> ActionResult:
        return ActionResult({"ModelPackageGroupArn": _registry().create_group(self.region, self.params)})

    def describe_model_package_group(self) -> ActionResult:
        return ActionResult(_registry().group(self.region, self.params["ModelPackageGroupName"]))

    def list_model_package_groups(self) -> ActionResult:
        groups = [{name: group.get(name) for name in _GROUP_SUMMARY} for group in _registry().groups(self.region)]
        if self.params.get("CrossAccountFilterOption") == "CrossAccount":
            groups = []  # nobody shares any with the one account that there is
        page, token = select(groups, self.params, name="ModelPackageGroupName")
        return ActionResult({"ModelPackageGroupSummaryList": page, "NextToken": token})

    def delete_model_package_group(self) -> ActionResult:
        _registry().delete_group(self.region, self.params["ModelPackageGroupName"])
        return EmptyResult()

    def create_model_package(self) -> ActionResult:
        return ActionResult({"ModelPackageArn": _registry().create(self.region, self.params)})

    def describe_model_package(self) -> ActionResult:
        return ActionResult(copy.deepcopy(_registry().package(self.region, self.params["ModelPackageName"])))

    def list_model_packages(self) -> ActionResult:
        group = self.params.get("ModelPackageGroupName")
        if group:
            group = _registry().group(self.region, group)["ModelPackageGroupName"]
        kind = self.params.get("ModelPackageType") or ("Versioned" if group else "Unversioned")
        approval = self.params.get("ModelApprovalStatus")
        summaries = [
            {name: record.get(name) for name in _SUMMARY}
            for record in _registry().packages(self.region, group)
            if kind in ("Both", "Versioned" if "ModelPackageVersion" in record else "Unversioned")
            and (approval is None or record.get("ModelApprovalStatus") == approval)
        ]
        page, token = select(
            summaries, self.params, name="ModelPackageGroupName" if kind == "Versioned" else "ModelPackageName"
        )
        return ActionResult({"ModelPackageSummaryList": page, "NextToken": token})

    def update_model_package(self) -> ActionResult:
        return ActionResult({"ModelPackageArn": _registry().update(self.region, self.params)})

    def delete_model_package(self) -> ActionResult:
        _registry().delete(self.region, self.params["ModelPackageName"])
        return EmptyResult()


def _registry() -> Registry:
    return clouds.current().registry


def _arn(region: str, kind: str, name: str) -> str:
    return f"arn:aws:sagemaker:{region}:{clouds.ACCOUNT}:{kind}/{name}"


def _region_of(arn: str) -> str:
    return arn.split(":")[3]
