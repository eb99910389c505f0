"""Pipeline definitions: the JSON that CreatePipeline takes, checked and ready to be run.

    definition = parse(text)                    # raises BadDefinition
    definition.steps["Train"].needs             # the steps that come before it: {"Prepare"}
    evaluate(step.arguments, scope)             # its request, with parameters, properties and functions filled in

The format: "SageMaker Pipelines JSON schema", version 2020-12-01, as the official SDK writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from moto.core.utils import get_service_model

from windlass.local.pipelines import jsonpath
from windlass.local.pipelines.policies import BadPolicy, Cache, Retry

VERSION = "2020-12-01"
JOBS = {
    "Training": "TrainingJob",
    "Processing": "ProcessingJob",
    "Transform": "TransformJob",
    "Tuning": "HyperParameterTuningJob",
    "Model": "Model",
    "RegisterModel": "ModelPackage",
}
"""Step types that create something, and the noun of the operation that does it."""

TYPES = (*JOBS, "Condition", "Fail")
CACHED = ("Training", "Processing", "Transform", "Tuning")
"""Step types whose results can be taken from an earlier run."""

STEP_MEMBERS = (
    "Name",
    "Type",
    "Arguments",
    "DependsOn",
    "DisplayName",
    "Description",
    "PropertyFiles",
    "CacheConfig",
    "RetryPolicies",
)
EXECUTION_VARIABLES = (
    "CurrentDateTime",
    "PipelineArn",
    "PipelineExecutionArn",
    "PipelineExecutionId",
    "PipelineName",
    "ProcessingJobName",
    "StartDateTime",
    "TrainingJobName",
)
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equals": lambda left, right: bool(left == right),
    "GreaterThan": lambda left, right: bool(left > right),
    "GreaterThanOrEqualTo": lambda left, right: bool(left >= right),
    "LessThan": lambda left, right: bool(left < right),
    "LessThanOrEqualTo": lambda left, right: bool(left <= right),
}
CONDITIONS = (*_COMPARISONS, "In", "Not", "Or")
_NAME = re.compile(r"[A-Za-z0-9\-_]{1,64}")
_REFERENCE = re.compile(r"Steps\.([A-Za-z0-9\-_]+)(.*)", re.DOTALL)
_MEMBER = re.compile(r"\.(\w+)|\[['\"]([^'\"]*)['\"]\]|\[(\d+)\]")


class BadDefinition(ValueError):
    """The definition is none; ``str()`` says why, as AWS puts it after "Unable to parse pipeline definition."."""


class Unresolved(Exception):
    """An expression has no value now; ``str()`` is the step's FailureReason."""


@dataclass(frozen=True)
class Parameter:
    """One of the pipeline's parameters. ``default`` is None when it has none."""

    name: str
    kind: str
    default: Any = None
    allowed: tuple[Any, ...] = ()

    def read(self, value: Any) -> Any:
        """A value of its type. Raises ValueError with the reason."""
        try:
            read = _READERS[self.kind](value)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"The value '{value}' of pipeline parameter '{self.name}' is not of type {self.kind}."
            ) from error
        if self.allowed and read not in self.allowed:
            raise ValueError(
                f"The value '{value}' of pipeline parameter '{self.name}' is not among its EnumValues: {list(self.allowed)}."
            )
        return read


@dataclass(frozen=True)
class PropertyFile:
    """A JSON file that a Processing step leaves in one of its outputs."""

    output: str
    path: str


@dataclass(frozen=True)
class Step:
    """One step, also of those within a condition's branches.

    Attributes:
        needs: the names of the steps that must have succeeded before.
        branch: the condition step whose outcome must be so; None for a step that always runs.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]
    needs: frozenset[str] = frozenset()
    branch: tuple[str, bool] | None = None
    files: Mapping[str, PropertyFile] = field(default_factory=dict)
    cache: Cache | None = None
    retries: Sequence[Retry] = ()
    display_name: str | None = None
    description: str | None = None


@dataclass(frozen=True)
class Definition:
    """A pipeline as it can be run."""

    parameters: Mapping[str, Parameter]
    steps: Mapping[str, Step]


class Scope(Protocol):
    """What expressions can ask for while a pipeline runs. Each may raise Unresolved."""

    def parameter(self, name: str) -> Any: ...

    def execution(self, name: str) -> Any: ...

    def properties(self, step: str) -> Mapping[str, Any]: ...

    def property_file(self, step: str, name: str) -> Any: ...

    def json_at(self, uri: str) -> Any: ...


def parse(text: str) -> Definition:
    """Read a definition, and check whatever can be checked before it runs.

    Raises:
        BadDefinition: it is no definition, or it asks for a step type that the local cloud does not run.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadDefinition(f"The definition is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadDefinition("Expecting start of Json Object.")
    if document.get("Version") != VERSION:
        raise BadDefinition(f"Version must be '{VERSION}', not '{document.get('Version')}'.")
    given = [_parameter(each) for each in _list(document, "Parameters", "the definition")]
    parameters = {each.name: each for each in given}
    if len(parameters) < len(given):
        raise BadDefinition(f"Parameter names must be unique, not {[each.name for each in given]}.")
    steps: dict[str, Step] = {}
    for step in _steps(_list(document, "Steps", "the definition"), None):
        if step.name in steps:
            raise BadDefinition(f"Step names must be unique, but '{step.name}' is repeated.")
        steps[step.name] = step
    if not steps:
        raise BadDefinition("Steps must hold at least one step.")
    definition = Definition(parameters, steps)
    for step in steps.values():
        _check_references(step, definition)
    _check_order(definition)
    return definition


def evaluate(value: Any, scope: Scope) -> Any:
    """A value with every expression in it replaced by what it stands for. Raises Unresolved."""
    if isinstance(value, list):
        return [evaluate(each, scope) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"Get"}:
        return _get(str(value["Get"]), scope)
    if set(value) == {"Std:Join"}:
        join = value["Std:Join"]
        words = evaluate(join["Values"], scope)
        return str(join.get("On", "")).join(_text(word) for word in (words if isinstance(words, list) else [words]))
    if set(value) == {"Std:JsonGet"}:
        return _json_get(value["Std:JsonGet"], scope)
    return {name: evaluate(member, scope) for name, member in value.items()}


def holds(condition: Mapping[str, Any], scope: Scope) -> bool:
    """Whether a condition is true. Raises Unresolved."""
    kind = condition["Type"]
    if kind == "Not":
        return not holds(condition["Expression"], scope)
    if kind == "Or":
        return any(holds(each, scope) for each in condition["Conditions"])
    if kind == "In":
        wanted = evaluate(condition["QueryValue"], scope)
        return any(_COMPARISONS["Equals"](*_alike(wanted, each)) for each in evaluate(condition["Values"], scope))
    left, right = evaluate(condition["LeftValue"], scope), evaluate(condition["RightValue"], scope)
    try:
        return _COMPARISONS[kind](*_alike(left, right))
    except TypeError as error:
        raise Unresolved(f"Cannot compare {left!r} with {right!r} ({kind})") from error


def request(step: Step, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluated arguments as the operation takes them: numbers for numbers, strings for strings."""
    shape = get_service_model("sagemaker").operation_model(f"Create{JOBS[step.kind]}").input_shape
    converted = _converted(shape, arguments)
    assert isinstance(converted, dict)
    return converted


# Reading


def _parameter(given: Any) -> Parameter:
    if not isinstance(given, dict) or not given.get("Name"):
        raise BadDefinition("A parameter must have a Name.")
    name, kind = str(given["Name"]), given.get("Type")
    if kind not in _READERS:
        raise BadDefinition(f"Type of parameter '{name}' must be one of {', '.join(_READERS)}, not '{kind}'.")
    parameter = Parameter(name, kind, None, tuple(given.get("EnumValues") or ()))
    if given.get("DefaultValue") is None:
        return parameter
    try:
        return Parameter(name, kind, parameter.read(given["DefaultValue"]), parameter.allowed)
    except ValueError as error:
        raise BadDefinition(str(error)) from error


def _steps(given: Sequence[Any], branch: tuple[str, bool] | None) -> Iterator[Step]:
    for each in given:
        if not isinstance(each, dict):
            raise BadDefinition("Expecting start of Json Object.")
        name, kind = each.get("Name"), each.get("Type")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise BadDefinition(f"A step's Name must match {_NAME.pattern}, which '{name}' does not.")
        if kind not in TYPES:
            raise BadDefinition(
                f"The local cloud does not run steps of type '{kind}' (step '{name}'). It runs: {', '.join(TYPES)}."
            )
        if unknown := sorted(set(each) - set(STEP_MEMBERS)):
            raise BadDefinition(f"Step '{name}' has unknown members {unknown}. It may have: {', '.join(STEP_MEMBERS)}.")
        arguments = each.get("Arguments")
        if not isinstance(arguments, dict):
            raise BadDefinition(f"Step '{name}' has no Arguments.")
        own = {key: value for key, value in arguments.items() if key not in ("IfSteps", "ElseSteps")}
        _check_arguments(name, kind, own)
        needs = {_step_name(ref) for ref in _references(own) if ref.startswith("Steps.")}
        needs |= {str(other) for other in _list(each, "DependsOn", f"step '{name}'")}
        files = {
            file["PropertyFileName"]: PropertyFile(file["OutputName"], file["FilePath"])
            for file in _list(each, "PropertyFiles", f"step '{name}'")
        }
        yield Step(
            name,
            kind,
            own,
            frozenset(needs | ({branch[0]} if branch else set())),
            branch,
            files,
            *_policies(each, name, kind),
            each.get("DisplayName"),
            each.get("Description"),
        )
        if kind == "Condition":
            for member, outcome in (("IfSteps", True), ("ElseSteps", False)):
                yield from _steps(_list(arguments, member, f"step '{name}'"), (name, outcome))


def _policies(given: Mapping[str, Any], name: str, kind: str) -> tuple[Cache | None, tuple[Retry, ...]]:
    try:
        cache = Cache.read(given["CacheConfig"]) if "CacheConfig" in given else None
        retries = tuple(map(Retry.read, _list(given, "RetryPolicies", f"step '{name}'")))
    except BadPolicy as error:
        raise BadDefinition(f"Step '{name}': {error}") from error
    if cache and kind not in CACHED:
        raise BadDefinition(f"Step '{name}': CacheConfig is for steps of type {', '.join(CACHED)}, not {kind}.")
    return cache, retries


def _check_arguments(name: str, kind: str, arguments: Mapping[str, Any]) -> None:
    if kind == "Fail":
        if "ErrorMessage" not in arguments:
            raise BadDefinition(f"Fail step '{name}' has no ErrorMessage.")
    elif kind == "Condition":
        conditions = _list(arguments, "Conditions", f"step '{name}'")
        if not conditions:
            raise BadDefinition(f"Condition step '{name}' has no Conditions.")
        for condition in conditions:
            _check_condition(name, condition)
    else:
        shape = get_service_model("sagemaker").operation_model(f"Create{JOBS[kind]}").input_shape
        _check_members(shape, arguments)


def _check_condition(step: str, condition: Any) -> None:
    kind = condition.get("Type") if isinstance(condition, dict) else None
    if kind not in CONDITIONS:
        raise BadDefinition(f"A condition of step '{step}' has the Type '{kind}', not one of {', '.join(CONDITIONS)}.")
    needed = {"Not": ("Expression",), "Or": ("Conditions",), "In": ("QueryValue", "Values")}
    for member in needed.get(kind, ("LeftValue", "RightValue")):
        if member not in condition:
            raise BadDefinition(f"A condition {kind} of step '{step}' has no {member}.")
    if kind == "Not":
        _check_condition(step, condition["Expression"])
    if kind == "Or":
        for each in condition["Conditions"]:
            _check_condition(step, each)


def _check_members(shape: Any, value: Any) -> None:
    """Refuse members that the operation does not have: AWS does so when the pipeline is created."""
    if _is_expression(value):
        return
    if shape.type_name == "structure":
        if not isinstance(value, dict):
            raise BadDefinition("Expecting start of Json Object.")
        for name, member in value.items():
            if name not in shape.members:
                raise BadDefinition(f"Unknown Argument member '{name}'.")
            _check_members(shape.members[name], member)
    elif shape.type_name == "list":
        if not isinstance(value, list):
            raise BadDefinition("Expecting start of Json Array.")
        for each in value:
            _check_members(shape.member, each)
    elif shape.type_name == "map":
        if not isinstance(value, dict):
            raise BadDefinition("Expecting start of Json Object.")
        for each in value.values():
            _check_members(shape.value, each)


def _check_references(step: Step, definition: Definition) -> None:
    for other in step.needs:
        if other not in definition.steps:
            raise BadDefinition(f"Step '{step.name}' refers to step '{other}', which does not exist.")
    for reference in _references(step.arguments):
        root, _, name = reference.partition(".")
        if root == "Parameters" and name not in definition.parameters:
            raise BadDefinition(f"Step '{step.name}' refers to parameter '{name}', which does not exist.")
        if root == "Execution" and name not in EXECUTION_VARIABLES:
            raise BadDefinition(f"Step '{step.name}' refers to execution variable '{name}', which does not exist.")
        if root not in ("Parameters", "Execution", "Steps"):
            raise BadDefinition(f"Step '{step.name}' refers to '{reference}', which does not exist.")
        matched = _REFERENCE.fullmatch(reference)
        if matched and matched[2].startswith(".PropertyFiles."):
            file = matched[2].removeprefix(".PropertyFiles.")
            if file not in definition.steps[matched[1]].files:
                raise BadDefinition(f"Step '{matched[1]}' has no property file '{file}'.")


def _check_order(definition: Definition) -> None:
    done: set[str] = set()
    left = dict(definition.steps)
    while left:
        ready = [name for name, step in left.items() if step.needs <= done]
        if not ready:
            raise BadDefinition(f"The steps {sorted(left)} depend on each other in a cycle.")
        done.update(ready)
        for name in ready:
            del left[name]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if set(value) == {"Get"}:
            yield str(value["Get"])
        for member in value.values():
            yield from _references(member)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def _is_expression(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("Get", "Std:Join", "Std:JsonGet")


def _step_name(reference: str) -> str:
    matched = _REFERENCE.fullmatch(reference)
    if matched is None:
        raise BadDefinition(f"'{reference}' is not a reference to a step.")
    return matched[1]


def _list(given: Mapping[str, Any], member: str, where: str) -> list[Any]:
    found = given.get(member) or []
    if not isinstance(found, list):
        raise BadDefinition(f"Expecting start of Json Array: {member} of {where}.")
    return found


# Evaluating


def _get(reference: str, scope: Scope) -> Any:
    root, _, name = reference.partition(".")
    if root == "Parameters":
        return scope.parameter(name)
    if root == "Execution":
        return scope.execution(name)
    matched = _REFERENCE.fullmatch(reference)
    assert matched, reference
    value: Any = scope.properties(matched[1])
    at = 0
    while at < len(matched[2]):
        member = _MEMBER.match(matched[2], at)
        if member is None:
            raise Unresolved(f"'{reference}' cannot be read from '{matched[2][at:]}' on")
        value = _member(value, member, reference)
        at = member.end()
    return value


def _member(value: Any, member: re.Match[str], reference: str) -> Any:
    """One step down. A list of things with names, such as Outputs, is entered by the name."""
    if member[3] is not None and isinstance(value, list) and int(member[3]) < len(value):
        return value[int(member[3])]
    name = member[1] or member[2]
    if isinstance(value, Mapping) and name in value:
        return value[name]
    if isinstance(value, list):
        for each in value:
            if isinstance(each, Mapping) and any(k.endswith("Name") and v == name for k, v in each.items()):
                return each
    raise Unresolved(f"'{reference}' does not exist: there is no '{name or member[3]}'")


def _json_get(given: Mapping[str, Any], scope: Scope) -> Any:
    if "S3Uri" in given:
        uri = str(evaluate(given["S3Uri"], scope))
        document, where = scope.json_at(uri), uri
    else:
        reference = str((given.get("PropertyFile") or {}).get("Get", ""))
        matched = re.fullmatch(r"Steps\.([A-Za-z0-9\-_]+)\.PropertyFiles\.(.+)", reference)
        if matched is None:
            raise Unresolved(f"JsonGet needs a PropertyFile or an S3Uri, not '{reference}'")
        document, where = scope.property_file(matched[1], matched[2]), reference
    path = str(evaluate(given["Path"], scope))
    try:
        return jsonpath.parse(path).of(document)
    except (jsonpath.BadPath, jsonpath.NoMatch) as error:
        raise Unresolved(f"JsonGet of {where}: {error}") from error


def _alike(left: Any, right: Any) -> tuple[Any, Any]:
    """A number and a string that is one are compared as numbers."""
    if isinstance(left, str) != isinstance(right, str):
        try:
            return (float(left), right) if isinstance(left, str) else (left, float(right))
        except (TypeError, ValueError):
            return left, right
    return left, right


def _converted(shape: Any, value: Any) -> Any:
    if shape.type_name == "structure" and isinstance(value, Mapping):
        return {k: _converted(shape.members[k], v) for k, v in value.items() if v is not None and k in shape.members}
    if shape.type_name == "list" and isinstance(value, list):
        return [_converted(shape.member, each) for each in value]
    if shape.type_name == "map" and isinstance(value, Mapping):
        return {str(name): _converted(shape.value, each) for name, each in value.items()}
    if shape.type_name == "string":
        return _text(value)
    try:
        if shape.type_name in ("integer", "long"):
            return int(value)
        if shape.type_name in ("float", "double"):
            return float(value)
        if shape.type_name == "boolean":
            return _boolean(value)
    except (TypeError, ValueError, KeyError) as error:
        raise Unresolved(f"The value {value!r} is not of type {shape.type_name}") from error
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}[str(value).lower()]


_READERS: dict[str, Callable[[Any], Any]] = {"String": str, "Integer": int, "Float": float, "Boolean": _boolean}
