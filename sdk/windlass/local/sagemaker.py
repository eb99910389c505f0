"""Where a SageMaker request goes: to one of our own operations, or to a clear refusal.

Of moto's SageMaker nothing is let through: its jobs and endpoints would be false successes. Whatever AWS knows and we do not is
answered as not implemented, by name.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moto.core.common_types import TYPE_RESPONSE
from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import camelcase_to_underscores
from moto.sagemaker.models import SageMakerModelBackend, sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse as MotoResponse
from moto.sagemaker.urls import url_bases

from windlass.local import cloud as clouds
from windlass.local import roles, validation
from windlass.local.faults import Fault
from windlass.local.hosting.api import HostingOperations
from windlass.local.iam.authorizer import Denied, acting_as, require_call
from windlass.local.jobs.api import ProcessingOperations, TrainingOperations, TransformOperations, TuningOperations
from windlass.local.pipelines.api import PipelineOperations
from windlass.local.registry import RegistryOperations

MOST_TAGS = 50
"""Of one resource: the API reference of AddTags."""


class TagOperations:
    """Tags of everything that was made through this API: they belong to an ARN, whatever it stands for."""

    params: Any
    region: str

    def add_tags(self) -> ActionResult:
        arn = self.params["ResourceArn"]
        _check_tags(self.params["Tags"])
        tags = _tags_of(arn) | {tag["Key"]: tag["Value"] for tag in self.params["Tags"]}
        if len(tags) > MOST_TAGS:
            raise Fault(
                "ValidationException", f"A resource has at most {MOST_TAGS} tags: {arn} would have {len(tags)}."
            )
        clouds.current().tag(arn, tags)
        return ActionResult({"Tags": _as_list(tags)})

    def delete_tags(self) -> ActionResult:
        arn = self.params["ResourceArn"]
        kept = {key: value for key, value in _tags_of(arn).items() if key not in self.params["TagKeys"]}
        clouds.current().tag(arn, kept)
        return EmptyResult()

    def list_tags(self) -> ActionResult:
        return ActionResult({"Tags": _as_list(_tags_of(self.params["ResourceArn"]))})


PARTS = (
    TagOperations,
    TrainingOperations,
    ProcessingOperations,
    TransformOperations,
    TuningOperations,
    PipelineOperations,
    HostingOperations,
    RegistryOperations,
)


class SageMakerResponse(*PARTS, MotoResponse):  # type: ignore[misc]
    """One request to SageMaker's control plane. An operation is a method in snake_case."""

    def call_action(self) -> TYPE_RESPONSE:
        action = self._get_action()
        method = camelcase_to_underscores(action)
        if method not in OPERATIONS:
            raise NotImplementedError(f"SageMaker.{action}")
        return super().call_action()

    def _checked(self, operation: Callable[[Any], ActionResult]) -> ActionResult:
        """What AWS does around every operation: constraints, the role, tags."""
        action = self._get_action()
        validation.check("sagemaker", action, self.params)
        role = None
        if action.startswith("Create"):
            for member in ("RoleArn", "ExecutionRoleArn"):
                if role := self.params.get(member) or role:
                    roles.require_assumable(role)
            _check_tags(self.params.get("Tags") or [])
        with acting_as(role):  # SageMaker looks at what a request names with the role that it is given
            answer = operation(self)
        result = answer.result if isinstance(answer.result, Mapping) else {}
        if action.startswith("Create"):
            for member, arn in result.items():
                if member.endswith("Arn"):
                    clouds.current().tag(arn, {t["Key"]: t["Value"] for t in self.params.get("Tags") or []})
        elif action.startswith("Delete") and action != "DeleteTags":
            clouds.current().tag(self._arn_of_deleted(action), None)
        return ActionResult(_prune(result)) if result else answer

    def _arn_of_deleted(self, action: str) -> str:
        noun = action.removeprefix("Delete")
        name = str(self.params.get(f"{noun}Name", ""))
        if name.startswith("arn:"):
            return name
        kind = re.sub(r"(?<!^)(?=[A-Z])", "-", noun).lower()
        return f"arn:aws:sagemaker:{self.region}:{clouds.ACCOUNT}:{kind}/{name}"


def _operations(*parts: type) -> Iterator[str]:
    for part in parts:
        yield from (name for name in vars(part) if not name.startswith("_") and callable(getattr(part, name)))


OPERATIONS = frozenset(_operations(*PARTS))

for _name in OPERATIONS:
    # Bound late: each operation runs inside _checked.
    setattr(
        SageMakerResponse, _name, functools.partialmethod(SageMakerResponse._checked, getattr(SageMakerResponse, _name))
    )


class _Internal(SageMakerResponse):
    """An operation that a part of the cloud asks for."""

    def __init__(self, region: str, action: str, params: Mapping[str, Any]) -> None:
        super().__init__()
        self.region, self.params, self._action = region, params, action

    def _get_action(self) -> str:
        return self._action


def call(region: str, action: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """One operation as if a client had sent it: what a pipeline's steps do. Raises Fault as the client would get it."""
    try:
        require_call("sagemaker", action, params, region)
    except Denied as denial:
        raise Fault("AccessDeniedException", str(denial)) from denial
    result = getattr(_Internal(region, action, params), camelcase_to_underscores(action))().result
    return dict(result) if isinstance(result, Mapping) else {}


class Backend(SageMakerModelBackend):  # type: ignore[misc]
    """moto's backend, reached through our responses."""

    @property
    def _url_module(self) -> Any:
        return types.SimpleNamespace(url_bases=url_bases, url_paths={"{0}/$": SageMakerResponse.dispatch})


def register(cloud: clouds.Cloud) -> None:
    """Make every importer of moto's SageMaker, CloudFormation too, find ours."""
    sagemaker_backends.backend = Backend
    sagemaker_backends.clear()


def _tags_of(arn: str) -> dict[str, str]:
    tags = clouds.current().tags.get(arn.lower())
    if tags is None:
        raise Fault("ValidationException", f"Could not find a resource with the ARN {arn}.")
    return tags


def _as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _check_tags(tags: list[dict[str, str]]) -> None:
    keys = [tag["Key"] for tag in tags]
    if len(keys) != len(set(keys)):
        raise Fault("ValidationException", "Duplicate tag keys found. Please note that tag keys are case insensitive.")
    if any(key.lower().startswith("aws:") for key in keys):
        raise Fault("ValidationException", "aws: prefixed tag key names are not allowed for external use.")


def _prune(value: Any) -> Any:
    """Without absent members: ``VpcConfig: {}`` or null is not what AWS sends, and breaks strict clients."""
    if isinstance(value, Mapping):
        pruned = {name: _prune(member) for name, member in value.items()}
        return {name: member for name, member in pruned.items() if member is not None and member != {}}
    if isinstance(value, list | tuple):
        return [_prune(member) for member in value]
    return value
