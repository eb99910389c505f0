"""What a pipeline definition means, and which ones mean nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from windlass.local.pipelines.definition import (
    BadDefinition,
    Parameter,
    Unresolved,
    evaluate,
    holds,
    parse,
    request,
)


class Scope:
    """A running pipeline with a few things in it."""

    def parameter(self, name: str) -> Any:
        return {"Count": 3, "Prefix": "s3://bucket", "On": True}[name]

    def execution(self, name: str) -> Any:
        return f"<{name}>"

    def properties(self, step: str) -> Mapping[str, Any]:
        return {
            "Name": step,
            "Outputs": [{"OutputName": "train", "S3Output": {"S3Uri": "s3://bucket/train"}}],
            "Summaries": [{"Best": 1.5}],
            "CreationTime": datetime(2026, 1, 1, tzinfo=UTC),
        }

    def property_file(self, step: str, name: str) -> Any:
        return {"metrics": {"loss": [0.25]}, "file": f"{step}/{name}"}

    def json_at(self, uri: str) -> Any:
        return {"uri": uri}


def get(path: str) -> dict[str, str]:
    return {"Get": path}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (get("Parameters.Count"), 3),
        (get("Execution.PipelineName"), "<PipelineName>"),
        (get("Steps.My-Step.Name"), "My-Step"),
        (get("Steps.A.Outputs['train'].S3Output.S3Uri"), "s3://bucket/train"),
        (get('Steps.A.Outputs["train"].OutputName'), "train"),
        (get("Steps.A.Summaries[0].Best"), 1.5),
        (
            {"Std:Join": {"On": "/", "Values": [get("Parameters.Prefix"), "x", get("Parameters.Count")]}},
            "s3://bucket/x/3",
        ),
        ({"Std:Join": {"Values": [1, True, "a"]}}, "1truea"),
        (
            {"Std:JsonGet": {"PropertyFile": get("Steps.E.PropertyFiles.Report"), "Path": "metrics.loss[0]"}},
            0.25,
        ),
        (
            {"Std:JsonGet": {"S3Uri": {"Std:Join": {"On": "", "Values": ["s3://", "b"]}}, "Path": "$.uri"}},
            "s3://b",
        ),
        ({"deep": [get("Parameters.On"), {"plain": 1}]}, {"deep": [True, {"plain": 1}]}),
    ],
)
def test_what_expressions_stand_for(expression: Any, value: Any) -> None:
    assert evaluate(expression, Scope()) == value


@pytest.mark.parametrize(
    "expression",
    [
        get("Steps.A.Missing"),
        get("Steps.A.Outputs['test'].S3Output"),
        get("Steps.A.Summaries[1].Best"),
        {"Std:JsonGet": {"PropertyFile": get("Steps.E.PropertyFiles.Report"), "Path": "metrics.accuracy"}},
        {"Std:JsonGet": {"Path": "x"}},
    ],
)
def test_what_has_no_value_says_so(expression: Any) -> None:
    with pytest.raises(Unresolved):
        evaluate(expression, Scope())


def condition(kind: str, left: Any, right: Any) -> dict[str, Any]:
    return {"Type": kind, "LeftValue": left, "RightValue": right}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (condition("Equals", get("Parameters.Count"), 3), True),
        (condition("Equals", "3", 3.0), True),
        (condition("Equals", "a", "b"), False),
        (condition("GreaterThan", 3, 3), False),
        (condition("GreaterThanOrEqualTo", 3, "3"), True),
        (condition("LessThan", "2.5", 3), True),
        (condition("LessThanOrEqualTo", 4, 3), False),
        ({"Type": "In", "QueryValue": get("Parameters.Count"), "Values": ["1", "3"]}, True),
        ({"Type": "In", "QueryValue": "x", "Values": ["y"]}, False),
        ({"Type": "Not", "Expression": condition("Equals", 1, 1)}, False),
        ({"Type": "Or", "Conditions": [condition("Equals", 1, 2), condition("Equals", 2, 2)]}, True),
        ({"Type": "Or", "Conditions": [condition("Equals", 1, 2)]}, False),
    ],
)
def test_conditions(given: dict[str, Any], expected: bool) -> None:
    assert holds(given, Scope()) is expected


def test_what_cannot_be_compared_says_so() -> None:
    with pytest.raises(Unresolved, match="Cannot compare"):
        holds(condition("LessThan", "many", 3), Scope())


def text(*steps: dict[str, Any], **more: Any) -> str:
    return json.dumps({"Version": "2020-12-01", "Steps": list(steps), **more})


def model(name: str, role: Any = "role", **more: Any) -> dict[str, Any]:
    return {"Name": name, "Type": "Model", "Arguments": {"ExecutionRoleArn": role}, **more}


def check(name: str, conditions: list[Any], then: list[Any] | None = None, otherwise: list[Any] | None = None) -> Any:
    arguments = {"Conditions": conditions, "IfSteps": then or [], "ElseSteps": otherwise or []}
    return {"Name": name, "Type": "Condition", "Arguments": arguments}


def test_steps_need_what_they_refer_to_and_the_condition_they_are_in() -> None:
    definition = parse(
        text(
            model("A"),
            model("B", get("Steps.A.ModelArn")),
            check(
                "C",
                [condition("Equals", get("Steps.B.ModelArn"), "x")],
                [model("D", DependsOn=["A"]), check("E", [condition("Equals", 1, 1)], [], [model("F")])],
            ),
        )
    )

    assert {name: set(step.needs) for name, step in definition.steps.items()} == {
        "A": set(),
        "B": {"A"},
        "C": {"B"},
        "D": {"A", "C"},
        "E": {"C"},
        "F": {"E"},
    }
    assert definition.steps["D"].branch == ("C", True)
    assert definition.steps["F"].branch == ("E", False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (json.dumps({"Version": "1", "Steps": []}), "Version must be"),
        (text(model("A"), model("A")), "'A' is repeated"),
        (text(model("A b")), "Name must match"),
        (text(model("A", get("Steps.B.ModelArn"))), "step 'B', which does not exist"),
        (text(model("A", DependsOn=["B"]), model("B", DependsOn=["A"])), "cycle"),
        (text(model("A", get("Parameters.X"))), "parameter 'X', which does not exist"),
        (text(model("A", get("Execution.X"))), "execution variable 'X'"),
        (text(model("A", get("Nothing.X"))), "'Nothing.X', which does not exist"),
        (text(check("C", [])), "no Conditions"),
        (text(check("C", [{"Type": "Like"}])), "the Type 'Like'"),
        (text(check("C", [{"Type": "Not", "Expression": {"Type": "In", "Values": []}}])), "no QueryValue"),
        (text(model("A"), Parameters=[{"Name": "P", "Type": "List"}]), "Type of parameter 'P'"),
        (text(model("A"), Parameters=[{"Name": "P", "Type": "Integer", "DefaultValue": "x"}]), "not of type Integer"),
        (text({**model("A"), "Arguments": {"Containers": {}}}), "Expecting start of Json Array."),
        (
            text(model("A"), check("C", [condition("Equals", {"Std:JsonGet": {
                "PropertyFile": get("Steps.A.PropertyFiles.R"), "Path": "x"}}, 1)])),
            "no property file 'R'",
        ),
        (text({"Name": "Q", "Type": "QualityCheck", "Arguments": {}}), "does not run steps of type 'QualityCheck'"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(given: str, said: str) -> None:
    with pytest.raises(BadDefinition, match=said):
        parse(given)


def test_arguments_take_the_types_of_the_operation() -> None:
    step = parse(
        text(
            {
                "Name": "T",
                "Type": "Training",
                "Arguments": {"HyperParameters": {"epochs": 3, "on": True}, "ResourceConfig": {"InstanceCount": "2"}},
            }
        )
    ).steps["T"]

    assert request(step, step.arguments) == {
        "HyperParameters": {"epochs": "3", "on": "true"},
        "ResourceConfig": {"InstanceCount": 2},
    }
    with pytest.raises(Unresolved, match="not of type integer"):
        request(step, {"ResourceConfig": {"InstanceCount": "many"}})


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("Integer", "3", 3),
        ("Float", "0.5", 0.5),
        ("Boolean", "True", True),
        ("Boolean", False, False),
        ("String", 1, "1"),
    ],
)
def test_parameters_are_read_by_their_type(kind: str, given: Any, value: Any) -> None:
    assert Parameter("p", kind).read(given) == value


def test_a_parameter_says_what_it_takes() -> None:
    with pytest.raises(ValueError, match=r"not among its EnumValues: \['a', 'b'\]"):
        Parameter("p", "String", None, ("a", "b")).read("c")
    with pytest.raises(ValueError, match="not of type Boolean"):
        Parameter("p", "Boolean").read("yes")
