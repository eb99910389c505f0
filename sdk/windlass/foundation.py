"""The foundation of a project: deploy its stack, read its contract.

    from windlass import foundation

    contract = foundation.deploy("windlass", on_event=print)     # a change set, shown, then executed; again: no change
    contract = foundation.Contract.load("windlass")              # what every verb starts from
    foundation.diff("windlass")                                  # what a deploy would change; changes nothing
    foundation.destroy("windlass")                               # says what stays

The template is `templates/cloudformation/foundation.json`, which the CDK app in ``infra/`` writes. Deploying it takes boto3
alone: CloudFormation does the work, in the account and Region of the default session.
"""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from windlass import aws
from windlass.errors import Conflict, DeploymentFailed, InvalidInput, NotFound, choices

CONTRACT_VERSION = 1
"""Raised when a field changes its meaning or goes. New fields do not raise it: an older SDK ignores them."""

DEFAULT_PROJECT = "windlass"

_TIMEOUT_SECONDS = 1800


@dataclass(frozen=True)
class Contract:
    """What infra tells the SDK: one JSON object in the SSM parameter ``/windlass/<project>/contract``.

    Attributes:
        project: the project's name.
        bucket: where data, code and artifacts go; encrypted with the key by default.
        key_arn: the KMS key of the bucket and of the alerts.
        role_arn: what SageMaker's jobs and endpoints run as.
        topic_arn: the SNS topic that alarms notify.
        model_package_group: the Model Registry group of the project's model versions.
        metric_namespace: the CloudWatch namespace of what Windlass measures.
    """

    project: str
    bucket: str
    key_arn: str
    role_arn: str
    topic_arn: str
    model_package_group: str
    metric_namespace: str

    @classmethod
    def load(cls, project: str = DEFAULT_PROJECT) -> Contract:
        """Read it.

        Raises:
            NotFound: the project has no foundation in this account and Region.
            InvalidInput: it is of another version, or somebody wrote over it.
        """
        name, where = f"/windlass/{project}/contract", f"Reading the contract of project '{project}'"
        deploy_hint = f"Deploy it: windlass infra deploy{_project_flag(project)}."
        try:
            answer = aws.call(where, aws.client("ssm").get_parameter, Name=name)
        except NotFound as error:
            raise NotFound(
                f"there is no SSM parameter {name} in this account and Region, so no foundation",
                where=where,
                hint=deploy_hint,
                code=error.code,
                operation=error.operation,
                request_id=error.request_id,
            ) from error
        return cls._parse(answer["Parameter"]["Value"], where, deploy_hint)

    @classmethod
    def _parse(cls, text: str, where: str, deploy_hint: str) -> Contract:
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidInput(f"it is not JSON ({error})", where=where, hint=deploy_hint) from error
        version = fields.get("version") if isinstance(fields, dict) else None
        if version != CONTRACT_VERSION:
            newer = isinstance(version, int) and version > CONTRACT_VERSION
            raise InvalidInput(
                f"it has version {version}, and this SDK reads version {CONTRACT_VERSION}",
                where=where,
                hint="Upgrade the SDK: pip install --upgrade windlass." if newer else deploy_hint,
            )
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if not isinstance(fields.get(name), str)]
        if missing:
            raise InvalidInput(f"it lacks {', '.join(missing)}", where=where, hint=deploy_hint)
        return cls(**{name: fields[name] for name in names})


@dataclass(frozen=True)
class Change:
    """One resource that a deploy adds, modifies or removes.

    Attributes:
        action: ``Add``, ``Modify`` or ``Remove``, as CloudFormation says it.
        logical_id: its name in the template.
        type: for example ``AWS::S3::Bucket``.
        replacement: ``True``, ``False`` or ``Conditional`` when modified: whether a new one takes its place.
        properties: which properties change, when modified.
    """

    action: str
    logical_id: str
    type: str
    replacement: str = ""
    properties: tuple[str, ...] = ()

    def __str__(self) -> str:
        sign = {"Add": "+", "Remove": "-"}.get(self.action, "~")
        note = f"  {', '.join(self.properties)}" if self.properties else ""
        replaced = {"True": "  (replaced)", "Conditional": "  (may be replaced)"}.get(self.replacement, "")
        return f"{sign} {self.logical_id:<22}{self.type}{note}{replaced}"


@dataclass(frozen=True)
class Event:
    """One step of a stack operation.

    Attributes:
        logical_id: the resource in the template; the stack's own name for the stack itself.
        type: for example ``AWS::S3::Bucket``.
        status: for example ``CREATE_COMPLETE``.
        reason: why it failed, if it did.
    """

    logical_id: str
    type: str
    status: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.status:<20}{self.logical_id:<22}{self.type}" + (f"  {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Resource:
    """One resource of the deployed stack."""

    logical_id: str
    type: str
    physical_id: str
    status: str = ""

    def __str__(self) -> str:
        return f"{self.logical_id:<22}{self.type:<36}{self.physical_id}"


@dataclass(frozen=True)
class Status:
    """How the foundation stands.

    Attributes:
        stack: the stack's name.
        state: CloudFormation's stack status; ``NOT_DEPLOYED`` when there is none.
        reason: why it is so, if CloudFormation says.
        resources: what it holds.
    """

    stack: str
    state: str
    reason: str = ""
    resources: tuple[Resource, ...] = ()

    @property
    def deployed(self) -> bool:
        """Whether verbs can work on it. True also after an update that was rolled back: the old stack serves."""
        return self.state in _SOUND


# States from which an update can start.
_SOUND = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE"}
_NO_CHANGE = ("didn't contain changes", "No updates are to be performed")


def stack_name(project: str = DEFAULT_PROJECT) -> str:
    return f"{project}-foundation"


def template() -> str:
    """The CloudFormation template, from the wheel or, in a checkout, from ``templates/``."""
    packaged = resources.files("windlass") / "_templates" / "cloudformation" / "foundation.json"
    if packaged.is_file():
        return packaged.read_text()
    checkout = Path(__file__).resolve().parents[2] / "templates" / "cloudformation" / "foundation.json"
    if checkout.is_file():
        return checkout.read_text()
    raise InvalidInput(
        f"neither the package nor {checkout} holds it",
        where="Reading the foundation template",
        hint="Reinstall windlass; in a checkout: make templates.",
    )


def diff(project: str = DEFAULT_PROJECT, parameters: Mapping[str, str] | None = None) -> list[Change]:
    """What `deploy` would change. Makes a change set and deletes it again; for a new stack, not even that.

    Args:
        project: names the stack and what is in it.
        parameters: of the template, besides ``Project``; those not given keep their present value.
    """
    operation = _Operation("Comparing", project)
    values = operation.parameters(parameters)
    stack = operation.describe()
    if stack is None or stack["StackStatus"] in ("ROLLBACK_COMPLETE", "REVIEW_IN_PROGRESS"):
        return [Change("Add", name, body["Type"]) for name, body in json.loads(template())["Resources"].items()]
    operation.require_sound(stack)
    change_set = operation.create_change_set("UPDATE", values, stack)
    try:
        return operation.changes(change_set) if change_set else []
    finally:
        if change_set:
            operation.delete_change_set(change_set)


def deploy(
    project: str = DEFAULT_PROJECT,
    parameters: Mapping[str, str] | None = None,
    *,
    on_event: Callable[[Change | Event], None] | None = None,
    clock: aws.Clock = aws.CLOCK,
) -> Contract:
    """Create the foundation, or bring it up to this version of Windlass. No change is no error.

    Args:
        project: names the stack and what is in it: 2 to 32 lower-case letters, digits and inner hyphens.
        parameters: of the template, besides ``Project``; those not given keep their present value.
        on_event: hears each `Change` first, then each `Event` as it happens.

    Raises:
        DeploymentFailed: CloudFormation failed and rolled back; the error has each resource's reason.
        Conflict: another operation runs on the stack, or it is stuck in a state that needs a hand.
    """
    operation = _Operation("Deploying", project, on_event=on_event, clock=clock)
    values = operation.parameters(parameters)
    stack = operation.describe()
    if stack is not None and stack["StackStatus"] == "ROLLBACK_COMPLETE":
        operation.delete(stack["StackId"])  # the shell of a creation that failed; CloudFormation can only delete it
        stack = None
    if stack is not None and stack["StackStatus"] != "REVIEW_IN_PROGRESS":
        operation.require_sound(stack)
        kind = "UPDATE"
    else:
        kind = "CREATE"
    change_set = operation.create_change_set(kind, values, stack if kind == "UPDATE" else None)
    if change_set:
        for change in operation.changes(change_set):
            operation.tell(change)
        operation.execute(change_set)
    operation.verify()
    return Contract.load(project)


def status(project: str = DEFAULT_PROJECT) -> Status:
    """How the stack stands, and what is in it."""
    operation = _Operation("Describing", project)
    stack = operation.describe()
    if stack is None:
        return Status(operation.stack, "NOT_DEPLOYED")
    return Status(
        operation.stack,
        stack["StackStatus"],
        stack.get("StackStatusReason", ""),
        tuple(operation.resources()),
    )


def destroy(
    project: str = DEFAULT_PROJECT,
    *,
    on_event: Callable[[Event], None] | None = None,
    clock: aws.Clock = aws.CLOCK,
) -> list[Resource]:
    """Delete the stack.

    Returns:
        What stays: the bucket, and the key without which it is unreadable. Empty and delete them yourself.

    Raises:
        NotFound: there is no such stack.
        DeploymentFailed: CloudFormation could not delete something, for example a registry group that holds versions.
    """
    operation = _Operation("Destroying", project, on_event=on_event, clock=clock)
    stack = operation.describe()
    if stack is None:
        raise NotFound(
            f"there is no stack {operation.stack} in this account and Region",
            where=operation.where,
            hint="Name the project: windlass infra destroy --project NAME.",
        )
    body = operation.call("get_template", StackName=stack["StackId"]).get("TemplateBody") or {"Resources": {}}
    declared = (json.loads(body) if isinstance(body, str) else body).get("Resources", {})
    kept = {name for name, resource in declared.items() if resource.get("DeletionPolicy", "").startswith("Retain")}
    retained = [resource for resource in operation.resources() if resource.logical_id in kept]
    operation.delete(stack["StackId"])
    return retained


class _Operation:
    """One verb on one stack: the calls to CloudFormation, and the waiting."""

    def __init__(
        self,
        doing: str,
        project: str,
        on_event: Callable[[Any], None] | None = None,
        clock: aws.Clock = aws.CLOCK,
    ) -> None:
        self.project, self.stack = project, stack_name(project)
        self.where = f"{doing} foundation '{project}'"
        self.tell: Callable[[Change | Event], None] = on_event or (lambda _: None)
        self._clock = clock
        self._cloudformation = aws.client("cloudformation")

    def call(self, operation: str, **params: Any) -> dict[str, Any]:
        answer: dict[str, Any] = aws.call(self.where, getattr(self._cloudformation, operation), **params)
        return answer

    def parameters(self, given: Mapping[str, str] | None) -> dict[str, str]:
        """All that were given, held against the template, so that a bad one costs no rollback."""
        declared = json.loads(template())["Parameters"]
        values = {"Project": self.project, **(given or {})}
        for name, value in values.items():
            if name not in declared:
                raise InvalidInput(f"parameter '{name}' is unknown", where=self.where, hint=choices(name, declared))
            pattern = declared[name].get("AllowedPattern", ".*")
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                rule = declared[name].get("ConstraintDescription", pattern)
                raise InvalidInput(f"{name} is {value!r}", where=self.where, hint=f"It takes {rule}.")
        if values["Project"] != self.project:
            raise InvalidInput(
                f"parameter Project is '{values['Project']}', but the project is '{self.project}'",
                where=self.where,
                hint="Name the project once, as project=.",
            )
        return values

    def describe(self, stack: str = "") -> dict[str, Any] | None:
        """The stack; None when there is none."""
        try:
            found: dict[str, Any] = self.call("describe_stacks", StackName=stack or self.stack)["Stacks"][0]
        except NotFound:
            return None
        return None if found["StackStatus"] == "DELETE_COMPLETE" and not stack else found

    def require_sound(self, stack: Mapping[str, Any]) -> None:
        """Refuse what an update cannot start from, saying what can be done about it."""
        state = stack["StackStatus"]
        if state in _SOUND:
            return
        if state.endswith("_IN_PROGRESS"):
            hint = "Wait until it has ended: windlass infra status."
        elif state == "UPDATE_ROLLBACK_FAILED":
            hint = f"Run: aws cloudformation continue-update-rollback --stack-name {self.stack}; then deploy again."
        else:
            hint = f"Remove it: windlass infra destroy{_project_flag(self.project)}; then deploy again."
        reason = stack.get("StackStatusReason", "")
        raise Conflict(
            f"stack {self.stack} is in state {state}{f' ({reason})' if reason else ''}", where=self.where, hint=hint
        )

    def create_change_set(self, kind: str, values: Mapping[str, str], stack: Mapping[str, Any] | None) -> str:
        """Its ARN; empty when there is nothing to change."""
        body = template()
        kept = {p["ParameterKey"] for p in (stack or {}).get("Parameters", [])} & set(json.loads(body)["Parameters"])
        if stack is None:
            # One registry group for each project, unless the user shares one on purpose.
            values = {"ModelPackageGroupName": self.project, **values}
        parameters: list[dict[str, Any]] = [
            {"ParameterKey": name, "ParameterValue": value} for name, value in sorted(values.items())
        ]
        parameters += [{"ParameterKey": name, "UsePreviousValue": True} for name in sorted(kept - set(values))]
        change_set: str = self.call(
            "create_change_set",
            StackName=self.stack,
            ChangeSetName=f"windlass-{uuid.uuid4().hex}",
            ChangeSetType=kind,
            TemplateBody=body,
            Parameters=parameters,
            Capabilities=["CAPABILITY_IAM"],
            Description="windlass infra deploy",
        )["Id"]

        def ready(answer: Mapping[str, Any]) -> bool:
            return answer["Status"] in ("CREATE_COMPLETE", "FAILED")

        answer = aws.poll(
            self.where,
            lambda: self.call("describe_change_set", ChangeSetName=change_set),
            ready,
            timeout_seconds=_TIMEOUT_SECONDS,
            clock=self._clock,
        )
        if answer["Status"] == "CREATE_COMPLETE":
            return change_set
        self.delete_change_set(change_set)
        reason = answer.get("StatusReason", "CloudFormation gave no reason")
        if any(phrase in reason for phrase in _NO_CHANGE):
            return ""
        raise DeploymentFailed(f"the change set failed: {reason}", where=self.where, reason=reason)

    def delete_change_set(self, change_set: str) -> None:
        self.call("delete_change_set", ChangeSetName=change_set)

    def changes(self, change_set: str) -> list[Change]:
        found: list[Change] = []
        more: dict[str, str] = {}
        while True:
            page = self.call("describe_change_set", ChangeSetName=change_set, **more)
            found += [_change(item["ResourceChange"]) for item in page.get("Changes", []) if "ResourceChange" in item]
            if not page.get("NextToken"):
                return found
            more = {"NextToken": page["NextToken"]}

    def execute(self, change_set: str) -> None:
        stack = self.call("describe_change_set", ChangeSetName=change_set)["StackId"]
        seen = {event["EventId"] for event in self._events(stack)}
        self.call("execute_change_set", ChangeSetName=change_set)
        self._follow(stack, seen, {"CREATE_COMPLETE", "UPDATE_COMPLETE"})

    def delete(self, stack: str) -> None:
        seen = {event["EventId"] for event in self._events(stack)}
        self.call("delete_stack", StackName=stack)
        self._follow(stack, seen, {"DELETE_COMPLETE"})

    def _follow(self, stack: str, seen: set[str], good: set[str]) -> None:
        """Wait for the end of what runs on the stack, telling its events.

        Raises:
            DeploymentFailed: it ended in another state than a good one.
        """
        failures: list[Event] = []

        def look() -> str:
            state = (self.describe(stack) or {"StackStatus": "DELETE_COMPLETE"})["StackStatus"]
            for raw in reversed([event for event in self._events(stack) if event["EventId"] not in seen]):
                seen.add(raw["EventId"])
                event = Event(
                    raw["LogicalResourceId"],
                    raw["ResourceType"],
                    raw["ResourceStatus"],
                    raw.get("ResourceStatusReason", ""),
                )
                # Those cancelled only follow from the first failure.
                if event.status.endswith("_FAILED") and "cancelled" not in event.reason:
                    failures.append(event)
                self.tell(event)
            return str(state)

        state = aws.poll(
            self.where,
            look,
            lambda state: not state.endswith("_IN_PROGRESS"),
            timeout_seconds=_TIMEOUT_SECONDS,
            clock=self._clock,
            hint=f"CloudFormation works on stack {self.stack}: windlass infra status{_project_flag(self.project)}.",
        )
        if state in good:
            return
        reasons = "; ".join(f"{event.logical_id} ({event.type}): {event.reason}" for event in failures)
        reason = reasons or f"the stack ended in state {state}"
        raise DeploymentFailed(
            reason, where=self.where, hint=_AFTERMATH.get(state, f"The stack is in state {state}."), reason=reason
        )

    def _events(self, stack: str) -> Sequence[Mapping[str, Any]]:
        """Newest first, as CloudFormation has them; the first page holds 100, far more than the stack can cause."""
        events: list[Mapping[str, Any]] = self.call("describe_stack_events", StackName=stack)["StackEvents"]
        return events

    def resources(self) -> Iterator[Resource]:
        for item in self.call("describe_stack_resources", StackName=self.stack)["StackResources"]:
            if item["ResourceStatus"] != "DELETE_COMPLETE":
                yield Resource(
                    item["LogicalResourceId"],
                    item["ResourceType"],
                    item.get("PhysicalResourceId", ""),
                    item["ResourceStatus"],
                )

    def verify(self) -> None:
        """Every logical id of the template has a physical one. CREATE_COMPLETE alone is taken from no one."""
        physical = {resource.logical_id: resource.physical_id for resource in self.resources()}
        missing = [name for name in json.loads(template())["Resources"] if not physical.get(name)]
        if missing:
            raise DeploymentFailed(
                f"stack {self.stack} is complete, but these resources do not exist: {', '.join(missing)}",
                where=self.where,
                hint="The server that answered for CloudFormation skips types it does not know.",
            )


_AFTERMATH = {
    "ROLLBACK_COMPLETE": "Nothing is left of it; mend the cause and deploy again.",
    "UPDATE_ROLLBACK_COMPLETE": "The stack is as it was before.",
    "ROLLBACK_FAILED": "Not everything could be removed: see windlass infra status.",
    "DELETE_FAILED": "The rest is deleted. Mend the cause (a registry group must hold no versions) and destroy again.",
}


def _change(raw: Mapping[str, Any]) -> Change:
    names = {detail.get("Target", {}).get("Name", "") for detail in raw.get("Details", [])}
    return Change(
        raw["Action"],
        raw["LogicalResourceId"],
        raw["ResourceType"],
        raw.get("Replacement", ""),
        tuple(sorted(names - {""})),
    )


def _project_flag(project: str) -> str:
    return "" if project == DEFAULT_PROJECT else f" --project {project}"
