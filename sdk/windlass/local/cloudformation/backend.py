"""The stacks and change sets of one account and Region, and the operations on them."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import flask
from moto.cloudformation import models as moto_models
from moto.cloudformation.utils import generate_changeset_id

from windlass.local import roles
from windlass.local.cloudformation.resources import ADMINISTRATOR, Services
from windlass.local.cloudformation.stacks import Desired, Stack
from windlass.local.cloudformation.templates import Template, invalid
from windlass.local.faults import Fault
from windlass.local.iam import authorizer, principals

_SETTLED = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")


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

        from windlass.local.cloudformation.api import Response

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
        desired.values(self.services())
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
        if not stack.differs(desired, self.services()):
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
            desired.values(self.services())
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
                stack.plan(desired, self.services()),
            )
            if kind == "UPDATE" and not stack.differs(desired, self.services()):
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
