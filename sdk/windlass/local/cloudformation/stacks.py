"""CloudFormation, with stacks that are true: what is CREATE_COMPLETE exists, and what failed is rolled back.

moto's own engine skips the types that it lacks under a CREATE_COMPLETE, drops properties, loses the outputs of change sets and
knows no rollback. Its responses and stack sets are kept; stacks, change sets and events are ours. Importing this module before
the first CloudFormation request is enough.

One operation on a stack goes: parse -> parameters -> order by dependency -> for each resource resolve, compare, and create,
update or replace it (`resources`) -> remove what the template no longer has -> outputs. A failure undoes it all, backwards.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import urlsplit

import flask
from botocore.exceptions import BotoCoreError, ClientError
from moto.cloudformation import models as moto_models
from moto.cloudformation import parsing as moto_parsing
from moto.cloudformation.responses import CloudFormationResponse
from moto.cloudformation.utils import generate_changeset_id, generate_stack_id
from moto.core.responses import ActionResult, EmptyResult

from windlass.local import roles
from windlass.local.cloudformation.resource_types import kind_of
from windlass.local.cloudformation.resources import ADMINISTRATOR, Made, Refusal, ResourceType, Services
from windlass.local.cloudformation.templates import Scope, Template, invalid
from windlass.local.faults import Fault
from windlass.local.iam import authorizer, principals

_SETTLED = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")


# ------------------------------------------------------------------------------------------------------------------ stacks


@dataclass(frozen=True)
class Desired:
    """What a request wants a stack to be."""

    template: Template
    parameters: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)


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

    def __init__(self, name: str, backend: Backend, notify: list[str], role_arn: str | None) -> None:
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

    def plan(self, desired: Desired) -> list[dict[str, Any]]:
        """The ResourceChange of each resource that would change, in the order of doing it."""
        values = self._backend.values(desired)
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

    def differs(self, desired: Desired) -> bool:
        """Whether there is anything to do. Outputs count; a new description does not."""
        if self.desired is None or self.plan(desired) or dict(self.tags) != dict(desired.tags):
            return True
        scope = self._scope(desired, self._backend.values(desired), self._made)
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
            values = self._backend.values(desired, services)
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


# ----------------------------------------------------------------------------------------------------------------- backend


@dataclass
class ChangeSet:
    """What one CreateChangeSet asked for, and what came of it."""

    id: str
    name: str
    kind: str
    stack: Stack
    desired: Desired
    description: str
    changes: list[dict[str, Any]]
    status: str = "CREATE_COMPLETE"
    execution: str = "AVAILABLE"
    reason: str = ""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def describe(self) -> dict[str, Any]:
        return {
            **self.summary(),
            "Parameters": [
                {"ParameterKey": key, "ParameterValue": value} for key, value in self.desired.parameters.items()
            ],
            "Tags": [{"Key": key, "Value": value} for key, value in self.desired.tags.items()],
            "Capabilities": sorted(self.desired.template.capabilities()),
            "Changes": [{"Type": "Resource", "ResourceChange": change} for change in self.changes],
        }

    def summary(self) -> dict[str, Any]:
        return {
            "ChangeSetId": self.id,
            "ChangeSetName": self.name,
            "StackId": self.stack.stack_id,
            "StackName": self.stack.name,
            "Description": self.description or None,
            "CreationTime": self.at,
            "Status": self.status,
            "StatusReason": self.reason or None,
            "ExecutionStatus": self.execution,
        }


class Backend(moto_models.CloudFormationBackend):  # type: ignore[misc]
    """moto's backend of one Region, with stacks and change sets of ours."""

    def __init__(self, region_name: str, account_id: str) -> None:
        super().__init__(region_name, account_id)
        self._lock = threading.RLock()
        self.change_sets: dict[str, ChangeSet] = {}

    @property
    def _url_module(self) -> Any:
        from moto.cloudformation import urls

        paths = dict(urls.url_paths) | {"{0}/$": Response.dispatch}
        return SimpleNamespace(url_bases=urls.url_bases, url_paths=paths)

    def services(self, role_arn: str | None = None) -> Services:
        """The services of this local cloud, at the address that the present request came to.

        Args:
            role_arn: whose permissions the calls take; by default the requester's own.
        """
        requester = authorizer.requester()
        credentials = ADMINISTRATOR
        if role_arn and roles.assumable(role_arn, "cloudformation.amazonaws.com"):
            made = principals.credentials(role_arn, "AWSCloudFormation", self.region_name)
            credentials = (made["AWS_ACCESS_KEY_ID"], made["AWS_SECRET_ACCESS_KEY"], made["AWS_SESSION_TOKEN"])
        elif role_arn:
            raise invalid(f"Role {role_arn} is invalid or cannot be assumed")
        elif requester is not None and requester.access_key:
            credentials = (requester.access_key, requester.secret, requester.token)
        return Services(flask.request.host_url, self.region_name, self.account_id, credentials)

    def values(self, desired: Desired, services: Services | None = None) -> dict[str, Any]:
        """The template's parameters with their defaults, held against their constraints."""
        declared = desired.template.section("Parameters")
        if unknown := sorted(set(desired.parameters) - set(declared)):
            raise invalid(f"Parameters: [{', '.join(unknown)}] do not exist in the template")
        given = {name: desired.parameters.get(name, body.get("Default")) for name, body in declared.items()}
        if absent := sorted(name for name, value in given.items() if value is None):
            raise invalid(f"Parameters: [{', '.join(absent)}] must have values")
        return {name: self._value(name, declared[name], str(value), services) for name, value in given.items()}

    def _value(self, name: str, declared: Mapping[str, Any], value: str, services: Services | None) -> Any:
        kind = declared.get("Type", "String")
        told = declared.get("ConstraintDescription")
        wrong = f"Parameter '{name}' must be one of AllowedValues" if "AllowedValues" in declared else ""
        if "AllowedValues" in declared and value not in map(str, declared["AllowedValues"]):
            raise invalid(f"Template error: {told or wrong}")
        pattern = declared.get("AllowedPattern", "")
        if pattern and not re.fullmatch(pattern, value):
            raise invalid(f"Parameter {name} failed to satisfy constraint: {told or f'must match pattern {pattern}'}")
        if kind.startswith("AWS::SSM::Parameter::Value"):
            value = (services or self.services()).ssm.get_parameter(Name=value)["Parameter"]["Value"]
            return value.split(",") if "List" in kind else value
        return [item.strip() for item in value.split(",")] if "List" in kind else value

    # What moto calls create_stack with, stack sets included.
    def create_stack(
        self,
        name: str,
        template: str,
        parameters: Mapping[str, str],
        notification_arns: list[str] | None = None,
        tags: Mapping[str, str] | None = None,
        role_arn: str | None = None,
        enable_termination_protection: bool | None = False,
        timeout_in_mins: int | None = None,
        stack_policy_body: str | None = None,
    ) -> Stack:
        desired = Desired(Template.parse(template), parameters, tags or {})
        self.values(desired)
        with self._lock:
            if self.find(name):
                raise Fault("AlreadyExistsException", f"Stack [{name}] already exists")
            stack = Stack(name, self, notification_arns or [], role_arn)
            stack.enable_termination_protection = bool(enable_termination_protection)
            stack.timeout_in_minutes, stack.policy = timeout_in_mins, stack_policy_body or ""
            self.stacks[stack.stack_id] = stack
        self._apply(stack, desired)
        return stack

    def update_stack(
        self,
        name: str,
        template: str,
        role_arn: str | None,
        parameters: list[dict[str, Any]],
        tags: Mapping[str, str] | None,
    ) -> Stack:
        stack = self.settled(name)
        desired = self.desired(stack, template, parameters, tags)
        if not stack.differs(desired):
            raise invalid("No updates are to be performed.")
        stack.role_arn = role_arn or stack.role_arn
        self._apply(stack, desired)
        return stack

    def desired(
        self, stack: Stack | None, template: str, parameters: list[dict[str, Any]], tags: Mapping[str, str] | None
    ) -> Desired:
        """What a request asks for; what it leaves to the present stack is taken from there."""
        present = stack.parameters if stack else {}
        values = {}
        for item in parameters:
            key = item["ParameterKey"]
            if str(item.get("UsePreviousValue", "false")).lower() == "true":
                if stack is None or key not in stack.values:
                    raise invalid(f"Invalid input for parameter key {key}. There is no previous value")
                if key in present:
                    values[key] = present[key]
            else:
                values[key] = item.get("ParameterValue", "")
        parsed = Template.parse(template) if template else None
        if parsed is None and stack is not None and stack.desired is not None:
            parsed = stack.desired.template
        if parsed is None:
            raise invalid("Either Template URL or Template Body must be specified.")
        return Desired(parsed, values, dict(stack.tags) if tags is None and stack else dict(tags or {}))

    def _apply(self, stack: Stack, desired: Desired) -> None:
        services = self.services(stack.role_arn)
        gone = {export.name for export in stack.exports}
        stack.apply(desired, services)
        with self._lock:
            for name in gone:
                self.exports.pop(name, None)
            self.exports.update({export.name: export for export in stack.exports})

    def find(self, name_or_id: str) -> Stack | None:
        """A stack by name or id; a deleted one by its id alone."""
        for stack in self.stacks.values():
            if name_or_id in (stack.name, stack.stack_id):
                return stack  # type: ignore[no-any-return]
        deleted: Stack | None = self.deleted_stacks.get(name_or_id)
        return deleted

    def get_stack(self, name_or_stack_id: str) -> Stack:
        stack = self.find(name_or_stack_id)
        if stack is None:
            raise invalid(f"Stack with id {name_or_stack_id} does not exist")
        return stack

    def settled(self, name: str) -> Stack:
        """A stack that an update can start from."""
        stack = self.find(name)
        if stack is None:
            raise invalid(f"Stack [{name}] does not exist")
        if stack.status not in _SETTLED:
            raise invalid(f"Stack:{stack.stack_id} is in {stack.status} state and can not be updated.")
        return stack

    def delete_stack(self, name_or_stack_id: str, retain: set[str] | None = None) -> None:
        stack = self.find(name_or_stack_id)
        if stack is None or stack.status == "DELETE_COMPLETE":
            return  # as AWS has it: deleting twice is no error
        if stack.enable_termination_protection:
            raise invalid(f"Stack [{stack.name}] cannot be deleted while TerminationProtection is enabled")
        exports = {export.name for export in stack.exports}
        stack.delete(self.services(stack.role_arn), retain or set())
        if stack.status == "DELETE_COMPLETE":
            with self._lock:
                self.deleted_stacks[stack.stack_id] = self.stacks.pop(stack.stack_id)
                for name in exports:
                    self.exports.pop(name, None)
                self.change_sets = {key: item for key, item in self.change_sets.items() if item.stack is not stack}

    def request_change_set(
        self,
        stack_name: str,
        name: str,
        kind: str,
        template: str,
        parameters: list[dict[str, Any]],
        description: str,
        tags: Mapping[str, str] | None,
        notify: list[str],
        role_arn: str | None,
    ) -> ChangeSet:
        if not re.fullmatch(r"[a-zA-Z][-a-zA-Z0-9]{0,127}", name):
            raise invalid(
                f"1 validation error detected: Value '{name}' at 'changeSetName' failed to satisfy constraint"
            )
        with self._lock:
            stack = self.find(stack_name)
            if kind == "UPDATE":
                stack = self.settled(stack_name)
            elif stack is not None and stack.status != "REVIEW_IN_PROGRESS":
                raise invalid(
                    f"Stack [{stack_name}] already exists and cannot be created again with the changeSet [{name}]."
                )
            if stack is not None and any(c.stack is stack and c.name == name for c in self.change_sets.values()):
                raise Fault(
                    "AlreadyExistsException", f"ChangeSet {name} cannot be created due to a mismatch with existing"
                )
            desired = self.desired(stack if kind == "UPDATE" else None, template, parameters, tags)
            self.values(desired)
            if stack is None:
                stack = Stack(stack_name, self, notify, role_arn)
                self.stacks[stack.stack_id] = stack
                stack.review()
            change_set = ChangeSet(
                generate_changeset_id(name, self.region_name, self.account_id),
                name,
                kind,
                stack,
                desired,
                description,
                stack.plan(desired),
            )
            if kind == "UPDATE" and not stack.differs(desired):
                change_set.status, change_set.execution = "FAILED", "UNAVAILABLE"
                change_set.reason = (
                    "The submitted information didn't contain changes. "
                    "Submit different information to create a change set."
                )
            self.change_sets[change_set.id] = change_set
            return change_set

    def change_set(self, name_or_id: str, stack_name: str | None) -> ChangeSet:
        """By ARN, or by name and stack."""
        for change_set in self.change_sets.values():
            if change_set.id == name_or_id:
                return change_set
            if change_set.name == name_or_id and stack_name in (change_set.stack.name, change_set.stack.stack_id):
                return change_set
        raise Fault("ChangeSetNotFound", f"ChangeSet [{name_or_id}] does not exist")

    def execute(self, change_set: ChangeSet) -> None:
        with self._lock:
            if change_set.execution != "AVAILABLE":
                raise Fault(
                    "InvalidChangeSetStatus",
                    f"ChangeSet [{change_set.id}] cannot be executed in its current execution status of "
                    f"[{change_set.execution}]",
                )
            change_set.execution = "EXECUTE_IN_PROGRESS"
        self._apply(change_set.stack, change_set.desired)
        good = change_set.stack.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE")
        change_set.execution = "EXECUTE_COMPLETE" if good else "EXECUTE_FAILED"
        with self._lock:
            others = [item for item in self.change_sets.values() if item.stack is change_set.stack]
            for item in others:
                if item is not change_set:
                    del self.change_sets[item.id]


class Response(CloudFormationResponse):  # type: ignore[misc]
    """The operations on stacks and change sets. Stack sets and exports are moto's."""

    # Our answers have AWS's own shape already.
    RESPONSE_KEY_PATH_TO_TRANSFORMER: ClassVar[dict[str, Any]] = {
        path: transform
        for path, transform in CloudFormationResponse.RESPONSE_KEY_PATH_TO_TRANSFORMER.items()
        if "StackSet" in path
    }

    @property
    def _backend(self) -> Backend:
        backend: Backend = self.cloudformation_backend
        return backend

    def create_stack(self) -> ActionResult:
        template = self._template()
        self._acknowledged(template)
        stack = self._backend.create_stack(
            self._get_param("StackName"),
            template,
            self._get_params_from_list(self._get_param("Parameters", [])),
            self._get_param("NotificationARNs", []),
            self._given_tags(),
            self._get_param("RoleARN"),
            self._get_param("EnableTerminationProtection"),
            self._get_param("TimeoutInMinutes"),
            self._get_param("StackPolicyBody"),
        )
        return ActionResult({"StackId": stack.stack_id})

    def update_stack(self) -> ActionResult:
        template = self._template()
        self._acknowledged(template)
        stack = self._backend.update_stack(
            self._get_param("StackName"),
            template,
            self._get_param("RoleARN"),
            self._get_param("Parameters", []),
            self._given_tags(),
        )
        return ActionResult({"StackId": stack.stack_id})

    def delete_stack(self) -> ActionResult:
        self._backend.delete_stack(self._get_param("StackName"), set(self._get_param("RetainResources", [])))
        return EmptyResult()

    def describe_stacks(self) -> ActionResult:
        name = self._get_param("StackName")
        stacks = [self._backend.get_stack(name)] if name else list(self._backend.stacks.values())
        return ActionResult({"Stacks": [stack.describe() for stack in stacks]})

    def list_stacks(self) -> ActionResult:
        wanted = self._get_param("StackStatusFilter", [])
        every = [*self._backend.stacks.values(), *self._backend.deleted_stacks.values()]
        stacks = [stack.describe() for stack in every if not wanted or stack.status in wanted]
        for stack in stacks:
            stack["TemplateDescription"] = stack["Description"]
        return ActionResult({"StackSummaries": stacks})

    def describe_stack_resources(self) -> ActionResult:
        name, logical_id = self._get_param("StackName"), self._get_param("LogicalResourceId")
        if not name:
            raise invalid("The local cloud finds resources by StackName only")
        stack = self._backend.get_stack(name)
        found = [_described(stack, item) for item in stack.stack_resources if logical_id in (None, item.logical_id)]
        return ActionResult({"StackResources": found})

    def describe_stack_resource(self) -> ActionResult:
        stack, logical_id = self._backend.get_stack(self._get_param("StackName")), self._get_param("LogicalResourceId")
        if logical_id not in stack.resources:
            raise invalid(f"Resource {logical_id} does not exist for stack {stack.name}")
        return ActionResult({"StackResourceDetail": _described(stack, stack.resources[logical_id])})

    def list_stack_resources(self) -> ActionResult:
        stack = self._backend.get_stack(self._get_param("StackName"))
        return ActionResult({"StackResourceSummaries": [_described(stack, item) for item in stack.stack_resources]})

    def create_change_set(self) -> ActionResult:
        template = self._template()
        self._acknowledged(template)
        change_set = self._backend.request_change_set(
            self._get_param("StackName"),
            self._get_param("ChangeSetName"),
            self._get_param("ChangeSetType", "UPDATE"),
            template,
            self._get_param("Parameters", []),
            self._get_param("Description", ""),
            self._given_tags(),
            self._get_param("NotificationARNs", []),
            self._get_param("RoleARN"),
        )
        return ActionResult({"Id": change_set.id, "StackId": change_set.stack.stack_id})

    def describe_change_set(self) -> ActionResult:
        return ActionResult(self._change_set().describe())

    def list_change_sets(self) -> ActionResult:
        stack = self._backend.get_stack(self._get_param("StackName"))
        found = [item.summary() for item in self._backend.change_sets.values() if item.stack is stack]
        return ActionResult({"Summaries": found})

    def execute_change_set(self) -> ActionResult:
        self._backend.execute(self._change_set())
        return EmptyResult()

    def delete_change_set(self) -> ActionResult:
        try:
            del self._backend.change_sets[self._change_set().id]
        except Fault:
            # No error on AWS if the stack exists; the CDK CLI deletes its change set before it makes one.
            self._backend.get_stack(self._get_param("StackName") or "")
        return EmptyResult()

    def validate_template(self) -> ActionResult:
        template = Template.parse(self._template())
        parameters = [
            {"ParameterKey": name, "DefaultValue": body.get("Default"), "Description": body.get("Description")}
            for name, body in template.section("Parameters").items()
        ]
        return ActionResult(
            {
                "Description": template.body.get("Description"),
                "Parameters": parameters,
                "Capabilities": sorted(template.capabilities()),
            }
        )

    def _change_set(self) -> ChangeSet:
        return self._backend.change_set(self._get_param("ChangeSetName"), self._get_param("StackName"))

    def _given_tags(self) -> dict[str, str] | None:
        tags = self._get_param("Tags")
        return None if tags is None else {tag["Key"]: tag["Value"] for tag in tags}

    def _template(self) -> str:
        """The text of TemplateBody, or of the object that TemplateURL names; empty for the previous one."""
        body, url = self._get_param("TemplateBody"), self._get_param("TemplateURL")
        if not url:
            return body or ""
        parts = urlsplit(url)
        host, path = parts.hostname or "", parts.path.lstrip("/")
        if ".s3" in host and not host.startswith("s3"):  # bucket.s3.region.amazonaws.com/key
            bucket, key = host.split(".s3")[0], path
        else:  # s3.region.amazonaws.com/bucket/key, and any local address
            bucket, _, key = path.partition("/")
        try:
            text: str = self._backend.services().s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()
        except ClientError as error:
            raise invalid(f"S3 error: {error.response['Error'].get('Message', error)}") from error
        return text

    def _acknowledged(self, template: str) -> None:
        missing = Template.parse(template).capabilities() if template else set()
        given = set(self._get_param("Capabilities", []))
        if "CAPABILITY_NAMED_IAM" in given:
            given.add("CAPABILITY_IAM")
        if missing - given:
            raise Fault("InsufficientCapabilitiesException", f"Requires capabilities : [{', '.join(sorted(missing))}]")


def _described(stack: Stack, resource: Resource) -> dict[str, Any]:
    """A resource, as any of the operations that describe one has it."""
    return {
        "StackName": stack.name,
        "StackId": stack.stack_id,
        "LogicalResourceId": resource.logical_id,
        "PhysicalResourceId": resource.made.physical_id,
        "ResourceType": resource.kind.type,
        "Timestamp": resource.at,
        "LastUpdatedTimestamp": resource.at,
        "ResourceStatus": resource.status,
    }


moto_models.cloudformation_backends.backend = Backend
