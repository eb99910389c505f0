"""Model packages and their groups, as SageMaker's registry answers: what a :class:`windlass.ModelVersion` is read from.

newest = packages.newest("digits", where)  # DescribeModelPackage's answer, or None
packages.model_uri(newest)                 # where its bundle lies
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from windlass import aws
from windlass.errors import NotFound


def listed(group: str, where: str) -> Sequence[Mapping[str, Any]]:
    """Summaries of a group's packages, newest first.

    Raises:
        NotFound: no such group.
    """
    found = aws.pages(
        where,
        "sagemaker",
        "list_model_packages",
        "ModelPackageSummaryList",
        ModelPackageGroupName=group,
        SortBy="CreationTime",
        SortOrder="Descending",
    )
    return sorted(found, key=lambda summary: -summary["ModelPackageVersion"])


def described(arn: str, where: str) -> Mapping[str, Any]:
    answer: Mapping[str, Any] = aws.call(where, aws.client("sagemaker").describe_model_package, ModelPackageName=arn)
    return answer


def newest(group: str, where: str) -> Mapping[str, Any] | None:
    """The newest package of a group, described; None if there is none, or no such group yet."""
    try:
        summaries = listed(group, where)
    except NotFound:
        return None
    return described(summaries[0]["ModelPackageArn"], where) if summaries else None


def model_uri(package: Mapping[str, Any] | None) -> str:
    """The prefix (with a slash at its end) or archive of a described package; empty if there is no package."""
    if package is None:
        return ""
    container = package["InferenceSpecification"]["Containers"][0]
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    return str(source.get("S3Uri") or container["ModelDataUrl"])


def group_arn(group: str) -> str:
    """Of a model package group.

    Raises:
        NotFound: no such group.
    """
    answer = aws.call(
        f"Looking up model '{group}'",
        aws.client("sagemaker").describe_model_package_group,
        ModelPackageGroupName=group,
    )
    return str(answer["ModelPackageGroupArn"])


def group_exists(group: str) -> bool:
    try:
        group_arn(group)
    except NotFound:
        return False
    return True
