"""What a CloudFormation template says: its sections, the order of its resources, the value of its expressions. Pure.

template = Template.parse(text)                      # JSON, or YAML with the short tags
scope = Scope(template, values, find, exports)
for name in template.order(set(template.resources)):
    scope.resolve(template.resources[name]["Properties"])
"""

from __future__ import annotations

import base64
import graphlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from windlass.local.cloudformation.resources import Made, Refusal
from windlass.local.faults import Fault

UNKNOWN = "{{changeSet:KNOWN_AFTER_APPLY}}"
"""Stands in a change set for the id of a resource that does not exist yet; CloudFormation's own wording."""

_NO_VALUE = object()
_IAM_TYPES = ("AWS::IAM::Group", "AWS::IAM::ManagedPolicy", "AWS::IAM::Policy", "AWS::IAM::Role", "AWS::IAM::User")


def invalid(message: str) -> Fault:
    """What CloudFormation answers to nearly every bad request."""
    return Fault("ValidationError", message)


class _Yaml(yaml.SafeLoader):
    """YAML with CloudFormation's short tags, and dates left as text (``Version: 2012-10-17``)."""


def _short_tag(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Yaml.add_multi_constructor("!", _short_tag)
_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class Template:
    """A parsed template: sections that exist, resources that have a type, references that lead somewhere."""

    text: str
    body: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Template:
        try:
            body = json.loads(text) if text.lstrip().startswith("{") else yaml.load(text, Loader=_Yaml)  # noqa: S506
        except (ValueError, yaml.YAMLError) as error:
            raise invalid(f"Template format error: {error}") from error
        if not isinstance(body, dict):
            raise invalid("Template format error: unsupported structure.")
        template = cls(text, body)
        template._check()
        return template

    def section(self, name: str) -> Mapping[str, Any]:
        return self.body.get(name) or {}

    @property
    def resources(self) -> Mapping[str, Mapping[str, Any]]:
        return self.section("Resources")

    def values(self, given: Mapping[str, str], stored: Callable[[str], str]) -> dict[str, Any]:
        """The parameters with their defaults, held against their constraints.

        Args:
            stored: the value of a name in the parameter store, for parameters of such types.
        """
        declared = self.section("Parameters")
        if unknown := sorted(set(given) - set(declared)):
            raise invalid(f"Parameters: [{', '.join(unknown)}] do not exist in the template")
        asked = {name: given.get(name, body.get("Default")) for name, body in declared.items()}
        if absent := sorted(name for name, value in asked.items() if value is None):
            raise invalid(f"Parameters: [{', '.join(absent)}] must have values")
        return {name: _parameter(name, declared[name], str(value), stored) for name, value in asked.items()}

    def _check(self) -> None:
        if not self.resources:
            raise invalid("Template format error: At least one Resources member must be defined.")
        if "Transform" in self.body:
            raise invalid(f"The local cloud does not run the transform {self.body['Transform']}")
        for name, resource in self.resources.items():
            if not isinstance(resource, dict) or "Type" not in resource:
                raise invalid(
                    f"Template format error: [/Resources/{name}] Every Resources object must contain a Type member."
                )
        known = {*self.resources, *self.section("Parameters")}
        for part in ("Resources", "Outputs"):
            lost = {name for name in _references(self.section(part)) if name not in known and "::" not in name}
            if lost:
                raise invalid(
                    f"Template format error: Unresolved resource dependencies [{', '.join(sorted(lost))}] "
                    f"in the {part} block of the template"
                )

    def order(self, names: set[str]) -> list[str]:
        """Those resources, each after what it refers to."""
        sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
        for name in sorted(names):
            body = self.resources[name]
            depends = body.get("DependsOn", [])
            needs = {depends} if isinstance(depends, str) else set(depends)
            needs |= set(_references(body.get("Properties", {})))
            sorter.add(name, *sorted(needs & names))
        try:
            return list(sorter.static_order())
        except graphlib.CycleError as error:
            circle = ", ".join(sorted(set(error.args[1])))
            raise invalid(f"Circular dependency between resources: [{circle}]") from error

    def capabilities(self) -> set[str]:
        """What a caller must acknowledge: IAM resources, and whether they have names of their own."""
        iam = [body for body in self.resources.values() if body["Type"] in _IAM_TYPES]
        names = {f"{kind.rsplit('::', 1)[1]}Name" for kind in _IAM_TYPES}
        named = any(set(body.get("Properties", {})) & names for body in iam if body["Type"] != "AWS::IAM::Policy")
        return {"CAPABILITY_NAMED_IAM"} if named else {"CAPABILITY_IAM"} if iam else set()


def _parameter(name: str, declared: Mapping[str, Any], text: str, stored: Callable[[str], str]) -> Any:
    kind = str(declared.get("Type", "String"))
    listed = "List" in kind
    values = [item.strip() for item in text.split(",")] if listed else [text]
    for value in values:
        if wrong := _broken(declared, kind, value):
            raise invalid(
                f"Parameter {name} failed to satisfy constraint: {declared.get('ConstraintDescription') or wrong}"
            )
    if kind.startswith("AWS::SSM::Parameter::Value"):
        value = stored(text)
        return value.split(",") if listed else value
    return values if listed else text


def _broken(declared: Mapping[str, Any], kind: str, value: str) -> str:
    """What a value must be and is not; empty if it is all that is declared."""
    if "AllowedValues" in declared and value not in map(str, declared["AllowedValues"]):
        return "must be one of AllowedValues"
    pattern = str(declared.get("AllowedPattern", ""))
    if pattern and not re.fullmatch(pattern, value):
        return f"must match pattern {pattern}"
    if len(value) < int(declared.get("MinLength", 0)):
        return f"must contain at least {declared['MinLength']} characters"
    if len(value) > int(declared.get("MaxLength", len(value))):
        return f"must contain at most {declared['MaxLength']} characters"
    if kind not in ("Number", "List<Number>"):
        return ""
    try:
        number = float(value)
    except ValueError:
        return "must be a number"
    if number < float(declared.get("MinValue", number)):
        return f"must be a number not less than {declared['MinValue']}"
    if number > float(declared.get("MaxValue", number)):
        return f"must be a number not greater than {declared['MaxValue']}"
    return ""


def _references(node: Any) -> Iterator[str]:
    """Logical ids that an expression uses."""
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "Ref":
                yield str(value)
            elif key == "Fn::GetAtt":
                yield value[0] if isinstance(value, list) else str(value).split(".")[0]
            elif key == "Fn::Sub":
                text, local = (value[0], value[1]) if isinstance(value, list) else (value, {})
                yield from (name for name, _ in _placeholders(text) if name not in local)
                yield from _references(list(local.values()))
            else:
                yield from _references(value)


_PLACEHOLDER = re.compile(r"\$\{(!?)([^}]*)\}")


def _placeholders(text: str) -> Iterator[tuple[str, str]]:
    """``${Bucket.Arn}`` -> ``("Bucket", "Arn")``; the attribute is empty for a Ref."""
    for literal, name in _PLACEHOLDER.findall(text):
        if not literal:
            yield name.strip().partition(".")[0], name.strip().partition(".")[2]


class Scope:
    """What the expressions of a template mean in one stack.

    Args:
        template: whose mappings and conditions count.
        values: parameters and pseudo parameters.
        find: the resource of a logical id; None while it does not exist.
        exports: of other stacks.
    """

    def __init__(
        self,
        template: Template,
        values: Mapping[str, Any],
        find: Callable[[str], Made | None],
        exports: Mapping[str, str],
    ) -> None:
        self._template, self._values, self._find, self._exports = template, values, find, exports
        self._functions: dict[str, Callable[[Any], Any]] = {
            "Fn::Base64": lambda value: base64.b64encode(str(self.resolve(value)).encode()).decode(),
            "Fn::FindInMap": self._find_in_map,
            "Fn::GetAtt": self._get_att,
            "Fn::GetAZs": lambda value: [
                f"{self.resolve(value) or self._values['AWS::Region']}{zone}" for zone in "abc"
            ],
            "Fn::If": lambda value: self.resolve(value[1] if self.condition(value[0]) else value[2]),
            "Fn::ImportValue": self._import,
            "Fn::Join": lambda value: value[0].join(str(item) for item in self.resolve(value[1])),
            "Fn::Select": lambda value: self.resolve(value[1])[int(self.resolve(value[0]))],
            "Fn::Split": lambda value: str(self.resolve(value[1])).split(value[0]),
            "Fn::Sub": self._sub,
            "Ref": self._ref,
        }

    def resolve(self, node: Any) -> Any:
        """An expression without its functions."""
        if isinstance(node, list):
            return [value for value in map(self.resolve, node) if value is not _NO_VALUE]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            (name, argument), *_ = node.items()
            if name in self._functions:
                return self._functions[name](argument)
            if name.startswith("Fn::"):
                raise invalid(f"Template error: the local cloud does not implement {name}")
        pairs = ((key, self.resolve(value)) for key, value in node.items())
        return {key: value for key, value in pairs if value is not _NO_VALUE}

    def condition(self, name: str) -> bool:
        conditions = self._template.section("Conditions")
        if name not in conditions:
            raise invalid(f"Template format error: Unresolved condition dependency {name}")
        return self._test(conditions[name])

    def _test(self, node: Any) -> bool:
        ((name, argument),) = node.items()
        if name == "Condition":
            return self.condition(argument)
        if name == "Fn::Equals":
            left, right = (self.resolve(item) for item in argument)
            return str(left) == str(right)
        tests: dict[str, Callable[[Any], bool]] = {
            "Fn::And": lambda items: all(map(self._test, items)),
            "Fn::Or": lambda items: any(map(self._test, items)),
            "Fn::Not": lambda items: not self._test(items[0]),
        }
        if name not in tests:
            raise invalid(f"Template error: {name} is no condition function")
        return tests[name](argument)

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return _NO_VALUE
        if name in self._values:
            return self._values[name]
        if name not in self._template.resources:
            raise invalid(f"Template format error: Unresolved resource dependencies [{name}]")
        made = self._find(name)
        return UNKNOWN if made is None else made.physical_id

    def _get_att(self, argument: Any) -> Any:
        name, attribute = argument if isinstance(argument, list) else argument.split(".", 1)
        if name not in self._template.resources:
            raise invalid(f"Template error: instance of Fn::GetAtt references undefined resource {name}")
        made = self._find(name)
        if made is None:
            return UNKNOWN
        try:
            return made.attributes[attribute]
        except KeyError as error:
            kind = self._template.resources[name]["Type"]
            raise Refusal(f"The local cloud does not know the attribute {attribute} of {kind}") from error

    def _find_in_map(self, argument: Any) -> Any:
        keys = [self.resolve(item) for item in argument]
        found: Any = self._template.section("Mappings")
        for key in keys:
            if key not in found:
                raise invalid(f"Template error: Unable to get mapping for {'::'.join(map(str, keys))}")
            found = found[key]
        return found

    def _import(self, argument: Any) -> str:
        name = self.resolve(argument)
        if name not in self._exports:
            raise invalid(f"No export named {name} found.")
        return self._exports[name]

    def _sub(self, argument: Any) -> str:
        text, local = argument if isinstance(argument, list) else (argument, {})

        def value(match: re.Match[str]) -> str:
            literal, name = match[1], match[2].strip()
            if literal:
                return f"${{{name}}}"
            if name in local:
                return str(self.resolve(local[name]))
            return str(self._get_att(name) if "." in name else self._ref(name))

        return _PLACEHOLDER.sub(value, text)
