"""The CloudFormation API. moto's responses and stack sets are kept; stacks, change sets and events are ours.

Importing this module before the first CloudFormation request is enough.
"""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from moto.cloudformation import models as moto_models
from moto.cloudformation.responses import CloudFormationResponse
from moto.core.responses import ActionResult, EmptyResult

from windlass.local.cloudformation.backend import Backend, ChangeSet
from windlass.local.cloudformation.stacks import Resource, Stack
from windlass.local.cloudformation.templates import Template, invalid
from windlass.local.faults import Fault


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
