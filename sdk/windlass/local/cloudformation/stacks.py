"""CloudFormation stacks that are true: what is CREATE_COMPLETE exists, and what failed is rolled back.

moto's own engine skips the types that it lacks under a CREATE_COMPLETE, drops properties, loses the outputs of change sets and
knows no rollback.

One operation on a stack goes: parse -> parameters -> order by dependency -> for each resource resolve, compare, and create,
update or replace it (`resources`) -> remove what the template no longer has -> outputs. A failure undoes it all, backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from moto.cloudformation import models as moto_models
from moto.cloudformation import parsing as moto_parsing
from moto.cloudformation.utils import generate_stack_id

from windlass.local.cloudformation.resource_types import kind_of
from windlass.local.cloudformation.resources import Made, Refusal, ResourceType, Services
from windlass.local.cloudformation.templates import Scope, Template, invalid
from windlass.local.faults import Fault


@dataclass(frozen=True)
class Desired:
    """What a request wants a stack to be."""

    template: Template
    parameters: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)

    def values(self, services: Services) -> dict[str, Any]:
        """Its parameters, those that name one of the parameter store fetched."""

        def stored(name: str) -> str:
            try:
                return str(services.ssm.get_parameter(Name=name)["Parameter"]["Value"])
            except services.ssm.exceptions.ParameterNotFound as error:
                told = f"Unable to fetch parameters [{name}] from parameter store for this account."
                raise invalid(told) from error

        return self.template.values(self.parameters, stored)


@dataclass(frozen=True)
class Resource:
    """One resource of a stack, as it was made."""

    logical_id: str
    kind: ResourceType
    body: Mapping[str, Any]
    properties: Mapping[str, Any]
    made: Made
    status: str
    at: datetime

    # What moto's own code reads of a resource.
    @property
    def logical_resource_id(self) -> str:
        return self.logical_id

    @property
    def physical_resource_id(self) -> str:
        return self.made.physical_id

    @property
    def cf_resource_type(self) -> str:
        return self.kind.type


class Stack:
    """One stack. Its public attributes are named as moto's responses read them."""

    def __init__(
        self, name: str, backend: moto_models.CloudFormationBackend, notify: list[str], role_arn: str | None
    ) -> None:
        self.name, self._backend = name, backend
        self.stack_id = generate_stack_id(name, backend.region_name, backend.account_id)
        self.desired: Desired | None = None
        self.values: dict[str, Any] = {}
        self.resources: dict[str, Resource] = {}
        self.outputs: list[dict[str, str]] = []
        self.events: list[moto_models.Event] = []
        self.status, self.reason = "REVIEW_IN_PROGRESS", ""
        self.creation_time = datetime.now(UTC)
        self.updated: datetime | None = None
        self.notification_arns, self.role_arn = notify, role_arn
        self.enable_termination_protection = False
        self.timeout_in_minutes: int | None = None
        self.policy = ""

    @property
    def template(self) -> str:
        return self.desired.template.text if self.desired else ""

    @property
    def parameters(self) -> Mapping[str, str]:
        return self.desired.parameters if self.desired else {}

    @property
    def tags(self) -> Mapping[str, str]:
        return self.desired.tags if self.desired else {}

    @property
    def stack_resources(self) -> list[Resource]:
        return list(self.resources.values())

    @property
    def exports(self) -> list[moto_parsing.Export]:
        named = (output for output in self.outputs if "ExportName" in output)
        return [moto_parsing.Export(self.stack_id, output["ExportName"], output["OutputValue"]) for output in named]

    def describe(self) -> dict[str, Any]:
        """A member of DescribeStacks' answer."""
        return {
            "StackId": self.stack_id,
            "StackName": self.name,
            "Description": self.desired.template.body.get("Description") if self.desired else None,
            "Parameters": [
                {"ParameterKey": key, "ParameterValue": self._shown(key, value)} for key, value in self.values.items()
            ],
            "CreationTime": self.creation_time,
            "LastUpdatedTime": self.updated,
            "DeletionTime": self.updated if self.status == "DELETE_COMPLETE" else None,
            "StackStatus": self.status,
            "StackStatusReason": self.reason or None,
            "DisableRollback": False,
            "NotificationARNs": self.notification_arns,
            "TimeoutInMinutes": self.timeout_in_minutes,
            "Capabilities": sorted(self.desired.template.capabilities()) if self.desired else [],
            "Outputs": self.outputs,
            "RoleARN": self.role_arn,
            "Tags": [{"Key": key, "Value": value} for key, value in self.tags.items()],
            "EnableTerminationProtection": self.enable_termination_protection,
        }

    def _shown(self, key: str, value: Any) -> str:
        assert self.desired is not None
        if str(self.desired.template.section("Parameters")[key].get("NoEcho", "false")).lower() == "true":
            return "****"
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    # ------------------------------------------------------------------------------------------------------------- deciding

    def plan(self, desired: Desired, services: Services) -> list[dict[str, Any]]:
        """The ResourceChange of each resource that would change, in the order of doing it."""
        values = desired.values(services)
        unknown: set[str] = set()

        def find(name: str) -> Made | None:
            resource = self.resources.get(name)
            return None if resource is None or name in unknown else resource.made

        scope = self._scope(desired, values, find)
        wanted = self._wanted(desired, scope)
        changes = []
        for name in desired.template.order(wanted):
            body, present = desired.template.resources[name], self.resources.get(name)
            kind = kind_of(body["Type"])
            if present is None:
                unknown.add(name)
                changes.append(_change("Add", name, body["Type"]))
                continue
            new = scope.resolve(body.get("Properties", {}))
            differs = sorted(key for key in {*present.properties, *new} if present.properties.get(key) != new.get(key))
            retyped = kind is None or kind.type != present.kind.type
            if not differs and not retyped:
                continue
            replaces = retyped or bool(kind and kind.replaces & set(differs))
            if replaces:
                unknown.add(name)
            changes.append(_change("Modify", name, body["Type"], present.made.physical_id, replaces, differs, kind))
        for name in reversed([name for name in self.resources if name not in wanted]):
            present = self.resources[name]
            changes.append(_change("Remove", name, present.kind.type, present.made.physical_id))
        return changes

    def differs(self, desired: Desired, services: Services) -> bool:
        """Whether there is anything to do. Outputs count; a new description does not."""
        if self.desired is None or self.plan(desired, services) or dict(self.tags) != dict(desired.tags):
            return True
        scope = self._scope(desired, desired.values(services), self._made)
        return self._outputs(desired, scope) != self.outputs

    def _made(self, name: str) -> Made | None:
        resource = self.resources.get(name)
        return resource.made if resource else None

    def _scope(self, desired: Desired, values: Mapping[str, Any], find: Callable[[str], Made | None]) -> Scope:
        pseudo = {
            "AWS::AccountId": self._backend.account_id,
            "AWS::NotificationARNs": self.notification_arns,
            "AWS::Partition": self._backend.partition,
            "AWS::Region": self._backend.region_name,
            "AWS::StackId": self.stack_id,
            "AWS::StackName": self.name,
            "AWS::URLSuffix": "amazonaws.com",
        }
        exports = {name: export.value for name, export in self._backend.exports.items()}
        return Scope(desired.template, {**pseudo, **values}, find, exports)

    def _wanted(self, desired: Desired, scope: Scope) -> set[str]:
        return {
            name
            for name, body in desired.template.resources.items()
            if "Condition" not in body or scope.condition(body["Condition"])
        }

    def _outputs(self, desired: Desired, scope: Scope) -> list[dict[str, str]]:
        outputs = []
        for key, body in desired.template.section("Outputs").items():
            if "Condition" in body and not scope.condition(body["Condition"]):
                continue
            output = {"OutputKey": key, "OutputValue": str(scope.resolve(body["Value"]))}
            if "Description" in body:
                output["Description"] = body["Description"]
            if "Export" in body:
                output["ExportName"] = str(scope.resolve(body["Export"]["Name"]))
            outputs.append(output)
        return outputs

    # ---------------------------------------------------------------------------------------------------------------- doing

    def apply(self, desired: Desired, services: Services) -> None:
        """Make the stack so. A failure leaves it as it was, and says why in the events; nothing is raised."""
        creating = self.desired is None
        word = "CREATE" if creating else "UPDATE"
        before, undo = dict(self.resources), list[Callable[[], None]]()
        self._enter(f"{word}_IN_PROGRESS", "User Initiated")
        try:
            values = desired.values(services)
            scope = self._scope(desired, values, self._made)
            wanted = self._wanted(desired, scope)
            for name in desired.template.order(wanted):
                self._bring(name, desired.template.resources[name], scope, services, undo)
            outputs = self._outputs(desired, scope)
        except _Failed as failure:
            self._roll_back(creating, failure, undo, before)
            return
        except (Fault, Refusal) as error:
            self._roll_back(creating, _Failed("", str(error)), undo, before)
            return
        self._clean_up(before, wanted, services)
        self.desired, self.values, self.outputs = desired, values, outputs
        self._enter(f"{word}_COMPLETE")

    def _bring(
        self,
        name: str,
        body: Mapping[str, Any],
        scope: Scope,
        services: Services,
        undo: list[Callable[[], None]],
    ) -> None:
        """Create, update, replace, or leave one resource."""
        present = self.resources.get(name)
        word = "UPDATE" if present else "CREATE"
        kind = kind_of(body["Type"])
        try:
            if kind is None:
                raise Refusal(f"The local cloud does not implement the resource type {body['Type']}")
            new = scope.resolve(body.get("Properties", {}))
            if present and present.kind.type == kind.type and present.properties == new:
                self.resources[name] = replace(present, body=body)  # its DeletionPolicy may be another
                return
            kind.check(new)
            self._event(f"{word}_IN_PROGRESS", name, kind.type, present.made.physical_id if present else "")
            fresh = _physical_name(kind, self.name, name)
            if present is None or present.kind.type != kind.type or _replaced(kind, present.properties, new):
                made = kind.create(services, fresh, new)
                undo.append(lambda: self._uncreate(name, kind, made, new, body, services))
            else:
                made = kind.update(services, present.made, present.properties, new)
                undo.append(lambda: self._restore(present, made, new, services))
        except (Refusal, Fault) as error:
            raise self._failed(word, name, body["Type"], str(error)) from error
        except KeyError as error:
            raise self._failed(word, name, body["Type"], f"The property {error} is required") from error
        except (ClientError, BotoCoreError) as error:
            raise self._failed(word, name, body["Type"], _reason(error)) from error
        self.resources[name] = Resource(name, kind, body, new, made, f"{word}_COMPLETE", datetime.now(UTC))
        self._event(f"{word}_COMPLETE", name, kind.type, made.physical_id)

    def _failed(self, word: str, name: str, kind: str, reason: str) -> _Failed:
        self._event(f"{word}_FAILED", name, kind, "", reason)
        return _Failed(name, reason)

    def _roll_back(
        self, creating: bool, failure: _Failed, undo: list[Callable[[], None]], before: dict[str, Resource]
    ) -> None:
        word = "ROLLBACK" if creating else "UPDATE_ROLLBACK"
        verb = "create" if creating else "update"
        told = f"The following resource(s) failed to {verb}: [{failure.name}]. " if failure.name else failure.reason
        self._enter(f"{word}_IN_PROGRESS", f"{told}Rollback requested by user." if failure.name else told)
        stuck = []
        for step in reversed(undo):
            try:
                step()
            except _Failed as error:
                stuck.append(error.name)
        self.resources = {name: resource for name, resource in self.resources.items() if name in stuck} | before
        if stuck:
            self._enter(f"{word}_FAILED", f"The following resource(s) failed to delete: [{', '.join(stuck)}]. ")
        else:
            self._enter(f"{word}_COMPLETE", "" if creating else told)

    def _uncreate(
        self,
        name: str,
        kind: ResourceType,
        made: Made,
        properties: Mapping[str, Any],
        body: Mapping[str, Any],
        services: Services,
    ) -> None:
        """Take back a creation. ``Retain`` holds here too; that it does not is the point of ``RetainExceptOnCreate``."""
        if body.get("DeletionPolicy") == "Retain":
            self._event("DELETE_SKIPPED", name, kind.type, made.physical_id)
        else:
            self._delete(name, kind, made, properties, services)

    def _restore(self, old: Resource, made: Made, new: Mapping[str, Any], services: Services) -> None:
        self._event("UPDATE_IN_PROGRESS", old.logical_id, old.kind.type, made.physical_id)
        try:
            old.kind.update(services, made, new, old.properties)
        except (Refusal, ClientError, BotoCoreError) as error:
            raise self._failed("UPDATE", old.logical_id, old.kind.type, _reason(error)) from error
        self._event("UPDATE_COMPLETE", old.logical_id, old.kind.type, old.made.physical_id)

    def _clean_up(self, before: Mapping[str, Resource], wanted: set[str], services: Services) -> None:
        """Delete what was replaced or is no longer wanted. AWS, too, lets a failure here pass: the update has succeeded."""
        for name, old in reversed(list(before.items())):
            now = self.resources.get(name)
            removed = name not in wanted
            if not removed and now is not None and now.made.physical_id == old.made.physical_id:
                continue
            if removed:
                self.resources.pop(name, None)
            policy = old.body.get("DeletionPolicy" if removed else "UpdateReplacePolicy", "Delete")
            if policy.startswith("Retain"):
                self._event("DELETE_SKIPPED", name, old.kind.type, old.made.physical_id)
                continue
            try:
                self._delete(name, old.kind, old.made, old.properties, services)
            except _Failed:
                continue  # its event says so

    def delete(self, services: Services, retain: set[str]) -> None:
        """Delete the stack, and all in it but what is retained."""
        self._enter("DELETE_IN_PROGRESS", "User Initiated")
        stuck = []
        # A stack whose creation failed has resources only if they could not be deleted, and no order for them.
        names = self.desired.template.order(set(self.resources)) if self.desired else list(self.resources)
        for name in reversed(names):
            resource = self.resources[name]
            policy = resource.body.get("DeletionPolicy", "Delete")
            if policy.startswith("Retain") or name in retain:
                self._event("DELETE_SKIPPED", name, resource.kind.type, resource.made.physical_id)
            else:
                try:
                    self._delete(name, resource.kind, resource.made, resource.properties, services)
                except _Failed:
                    stuck.append(name)
                    self.resources[name] = replace(resource, status="DELETE_FAILED", at=datetime.now(UTC))
                    continue
            del self.resources[name]
        if stuck:
            self._enter("DELETE_FAILED", f"The following resource(s) failed to delete: [{', '.join(stuck)}]. ")
        else:
            self._enter("DELETE_COMPLETE")

    def _delete(
        self, name: str, kind: ResourceType, made: Made, properties: Mapping[str, Any], services: Services
    ) -> None:
        self._event("DELETE_IN_PROGRESS", name, kind.type, made.physical_id)
        try:
            kind.delete(services, made, properties)
        except (Refusal, ClientError, BotoCoreError) as error:
            raise self._failed("DELETE", name, kind.type, _reason(error)) from error
        self._event("DELETE_COMPLETE", name, kind.type, made.physical_id)

    def review(self) -> None:
        """The state of a stack that only has a change set so far."""
        self._enter("REVIEW_IN_PROGRESS", "User Initiated")

    def _enter(self, status: str, reason: str = "") -> None:
        # The event first: who sees the end of an operation finds all of its events.
        self._event(status, self.name, "AWS::CloudFormation::Stack", self.stack_id, reason)
        self.updated = datetime.now(UTC)
        self.status, self.reason = status, reason

    def _event(self, status: str, logical_id: str, kind: str, physical_id: str, reason: str = "") -> None:
        event = moto_models.Event(
            stack_id=self.stack_id,
            stack_name=self.name,
            logical_resource_id=logical_id,
            physical_resource_id=physical_id,
            resource_type=kind,
            resource_status=status,
            resource_status_reason=reason or None,
            resource_properties=None,
        )
        self.events.append(event)
        event.sendToSns(self._backend.account_id, self._backend.region_name, self.notification_arns)


class _Failed(Exception):
    """A resource failed, and its event is out."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name, self.reason = name, reason


def _reason(error: Exception) -> str:
    """As CloudFormation words it in an event."""
    if not isinstance(error, ClientError):
        return str(error)
    body, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    return f"{body.get('Message', error)} ({error.operation_name}: {body.get('Code')}, {meta.get('HTTPStatusCode')})"


def _replaced(kind: ResourceType, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(old.get(name) != new.get(name) for name in kind.replaces)


def _physical_name(kind: ResourceType, stack: str, logical_id: str) -> str:
    name: str = moto_parsing.generate_resource_name(kind.type, stack, logical_id)
    return name


def _change(
    action: str,
    logical_id: str,
    kind: str,
    physical_id: str = "",
    replaces: bool = False,
    differs: list[str] | None = None,
    resource_type: ResourceType | None = None,
) -> dict[str, Any]:
    """A ResourceChange of DescribeChangeSet."""
    change: dict[str, Any] = {"Action": action, "LogicalResourceId": logical_id, "ResourceType": kind, "Scope": []}
    if physical_id:
        change["PhysicalResourceId"] = physical_id
    if action == "Modify":
        rules = resource_type.replaces if resource_type else frozenset()
        change["Replacement"] = str(replaces)
        change["Scope"] = ["Tags" if name == "Tags" else "Properties" for name in (differs or [])]
        change["Details"] = [
            {
                "Target": {
                    "Attribute": "Tags" if name == "Tags" else "Properties",
                    "Name": name,
                    "RequiresRecreation": "Always" if name in rules else "Never",
                },
                "Evaluation": "Static",
                "ChangeSource": "DirectModification",
            }
            for name in (differs or [])
        ]
    return change
