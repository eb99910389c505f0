"""Container definitions: which model data they name, and how it gets into ``/opt/ml/model``.

``fetch(resolve(request["PrimaryContainer"], registry.package), folder)``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from windlass.errors import CorruptArtifact
from windlass.local import storage
from windlass.local.faults import Fault
from windlass.local.jobs import archives


class FetchFailed(Exception):
    """The model data did not arrive; ``str()`` is what SageMaker gives as FailureReason."""


def resolve(container: Mapping[str, Any], find_package: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
    """The definition with its ModelPackageName replaced by that package's image, data and environment.

    Args:
        find_package: the description of a model package by its name or ARN; raises AWS's error when there is none.

    Raises:
        Fault: there is no such package, or it is not approved.
    """
    if "ModelPackageName" not in container:
        return dict(container)
    package = find_package(container["ModelPackageName"])
    arn, approval = package["ModelPackageArn"], package.get("ModelApprovalStatus", "Approved")
    if approval != "Approved":
        raise Fault(
            "ValidationException",
            f"Cannot create a model from ModelPackage {arn}: its ModelApprovalStatus is {approval}.",
        )
    [inner, *rest] = package.get("InferenceSpecification", {}).get("Containers") or [{}]
    if rest:
        raise Fault("ValidationException", f"The local cloud does not implement inference pipelines, as in {arn}, yet.")
    own = {key: value for key, value in container.items() if key != "ModelPackageName"}
    return {**inner, **own, "Environment": {**inner.get("Environment", {}), **own.get("Environment", {})}}


def model_data(container: Mapping[str, Any]) -> str | None:
    """The address of the model data, as the definition has it."""
    uri: str | None = _source(container).get("S3Uri") or container.get("ModelDataUrl")
    return uri


def exists(container: Mapping[str, Any]) -> bool:
    """Whether the model data that the definition names is there; true when it names none."""
    uri = model_data(container)
    if uri is None:
        return True
    try:
        return bool(storage.keys(s3_uri(uri))) if _is_prefix(container) else storage.exists(s3_uri(uri))
    except storage.Missing:
        return False


def fetch(container: Mapping[str, Any], folder: Path) -> None:
    """Put the model data into ``folder``, laid out as the container finds it in ``/opt/ml/model``.

    Raises:
        FetchFailed: it is not there, or no archive.
    """
    uri = model_data(container)
    if uri is None:
        return
    archive = folder.parent / "model.tar.gz"
    try:
        if _source(container).get("CompressionType", "Gzip") == "Gzip":
            storage.download(s3_uri(uri), archive)
            archives.extract(archive, folder)
        elif _is_prefix(container):
            storage.download_prefix(s3_uri(uri), folder)
        else:
            storage.download(s3_uri(uri), folder / uri.rpartition("/")[2])
    except CorruptArtifact as error:
        raise FetchFailed(
            f'Failed to extract model data archive for container "primary" from URL "{uri}". Please ensure that the object '
            f"located at the URL is a valid tar.gz archive. {error}"
        ) from error
    except (storage.Missing, ValueError) as error:
        raise FetchFailed(
            f'Failed to download model data for container "primary" from URL: "{uri}". Please ensure that there is an object '
            f"located at the URL and that the role passed to CreateModel has permissions to download the object. {error}"
        ) from error
    finally:
        archive.unlink(missing_ok=True)


def s3_uri(address: str) -> str:
    """``s3://`` for an address of either kind that SageMaker takes."""
    if address.startswith("s3://"):
        return address
    parts = urlsplit(address)
    host = parts.hostname or ""
    if host.startswith(("s3.", "s3-")):
        return f"s3:/{parts.path}"  # https://s3.region.amazonaws.com/bucket/key
    return f"s3://{host.partition('.')[0]}{parts.path}"  # https://bucket.s3.region.amazonaws.com/key


def _source(container: Mapping[str, Any]) -> Mapping[str, Any]:
    source: Mapping[str, Any] = container.get("ModelDataSource", {}).get("S3DataSource", {})
    return source


def _is_prefix(container: Mapping[str, Any]) -> bool:
    return bool(_source(container).get("S3DataType") == "S3Prefix")
