"""Templates: what is wrong is refused before anything is made, and expressions mean what AWS says they mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from windlass.local.cloudformation.resources import Made, Refusal
from windlass.local.cloudformation.templates import UNKNOWN, Scope, Template
from windlass.local.faults import Fault

MADE = {"Bucket": Made("my-bucket", {"Arn": "arn:aws:s3:::my-bucket"})}


def template(**sections: Any) -> Template:
    resources = {"Bucket": {"Type": "AWS::S3::Bucket"}, "New": {"Type": "AWS::SNS::Topic"}}
    return Template.parse(json.dumps({"Resources": resources, **sections}))


def scope(**sections: Any) -> Scope:
    values = {"Project": "digits", "Names": ["a", "b"], "AWS::Region": "eu-west-1"}
    return Scope(template(**sections), values, MADE.get, {"shared": "exported"})


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ({"Ref": "Project"}, "digits"),
        ({"Ref": "Bucket"}, "my-bucket"),
        ({"Ref": "New"}, UNKNOWN),
        ({"Fn::GetAtt": ["Bucket", "Arn"]}, "arn:aws:s3:::my-bucket"),
        ({"Fn::GetAtt": "Bucket.Arn"}, "arn:aws:s3:::my-bucket"),
        ({"Fn::Sub": "${Project}-${Bucket.Arn}-${AWS::Region}"}, "digits-arn:aws:s3:::my-bucket-eu-west-1"),
        ({"Fn::Sub": ["${x}/${!Literal}", {"x": {"Ref": "Bucket"}}]}, "my-bucket/${Literal}"),
        ({"Fn::Join": ["-", ["a", {"Ref": "Project"}]]}, "a-digits"),
        ({"Fn::Join": [",", {"Ref": "Names"}]}, "a,b"),
        ({"Fn::Select": ["1", {"Fn::Split": ["/", "x/y/z"]}]}, "y"),
        ({"Fn::ImportValue": "shared"}, "exported"),
        ({"Fn::Base64": "hi"}, "aGk="),
        ({"a": {"Ref": "AWS::NoValue"}, "b": [{"Ref": "AWS::NoValue"}, 1]}, {"b": [1]}),
        ({"Enabled": True, "Days": 7}, {"Enabled": True, "Days": 7}),
    ],
)
def test_expressions(expression: Any, value: Any) -> None:
    assert scope().resolve(expression) == value


def values(given: dict[str, str], **declared: Any) -> dict[str, Any]:
    return template(Parameters=declared).values(given, {"/image": "newest", "/zones": "a,b"}.__getitem__)


def test_parameters_have_defaults_and_types() -> None:
    declared = {
        "Name": {"Type": "String", "Default": "digits", "MinLength": 1, "MaxLength": "6"},
        "Count": {"Type": "Number", "MinValue": "1", "MaxValue": 4},
        "Zones": {"Type": "CommaDelimitedList", "AllowedValues": ["a", "b", "c"]},
        "Image": {"Type": "AWS::SSM::Parameter::Value<String>", "Default": "/image"},
        "Others": {"Type": "AWS::SSM::Parameter::Value<List<String>>", "Default": "/zones"},
    }
    assert values({"Count": "4", "Zones": "c, a"}, **declared) == {
        "Name": "digits",
        "Count": "4",
        "Zones": ["c", "a"],
        "Image": "newest",
        "Others": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("declared", "value", "wrong"),
    [
        ({"Type": "String", "MinLength": 3}, "ab", "must contain at least 3 characters"),
        ({"Type": "String", "MaxLength": "3"}, "abcd", "must contain at most 3 characters"),
        ({"Type": "String", "AllowedPattern": "[a-z]+"}, "A", r"must match pattern \[a-z\]\+"),
        ({"Type": "String", "AllowedValues": ["a"]}, "b", "must be one of AllowedValues"),
        ({"Type": "Number"}, "many", "must be a number"),
        ({"Type": "Number", "MinValue": 1}, "0", "must be a number not less than 1"),
        ({"Type": "List<Number>", "MaxValue": "2.5"}, "1,3", "must be a number not greater than 2.5"),
        ({"Type": "String", "MinLength": 3, "ConstraintDescription": "three letters"}, "ab", "three letters"),
    ],
)
def test_a_value_outside_its_constraints_is_refused(declared: dict[str, Any], value: str, wrong: str) -> None:
    with pytest.raises(Fault, match=rf"Parameter P failed to satisfy constraint: {wrong}$"):
        values({"P": value}, P=declared)


def test_mappings_and_conditions() -> None:
    one = scope(
        Mappings={"Images": {"eu-west-1": {"account": "42"}}},
        Conditions={
            "Digits": {"Fn::Equals": [{"Ref": "Project"}, "digits"]},
            "Other": {"Fn::Not": [{"Condition": "Digits"}]},
            "Either": {"Fn::Or": [{"Condition": "Digits"}, {"Condition": "Other"}]},
        },
    )
    assert one.resolve({"Fn::FindInMap": ["Images", {"Ref": "AWS::Region"}, "account"]}) == "42"
    assert one.resolve({"Fn::If": ["Other", "yes", "no"]}) == "no"
    assert [one.condition(name) for name in ("Digits", "Other", "Either")] == [True, False, True]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ({"Fn::FindInMap": ["Images", "mars-1", "account"]}, "Unable to get mapping for Images::mars-1::account"),
        ({"Fn::ImportValue": "missing"}, "No export named missing found"),
        ({"Fn::Cidr": ["10.0.0.0/16", 2, 8]}, "does not implement Fn::Cidr"),
    ],
)
def test_what_cannot_be_resolved_is_named(expression: Any, message: str) -> None:
    with pytest.raises(Fault, match=message):
        scope(Mappings={"Images": {}}).resolve(expression)


def test_an_attribute_that_is_not_known_is_refused() -> None:
    with pytest.raises(Refusal, match=r"attribute WebsiteURL of AWS::S3::Bucket"):
        scope().resolve({"Fn::GetAtt": ["Bucket", "WebsiteURL"]})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[]", "unsupported structure"),
        ("{", "Template format error"),
        ("a: [", "Template format error"),
        ({"Resources": {}}, "At least one Resources member"),
        ({"Resources": {"A": {}}}, r"\[/Resources/A\] Every Resources object must contain a Type"),
        (
            {"Resources": {"A": {"Type": "T", "Properties": {"x": {"Ref": "B"}}}}},
            r"dependencies \[B\] in the Resources",
        ),
        (
            {"Resources": {"A": {"Type": "T"}}, "Outputs": {"o": {"Value": {"Fn::Sub": "${B.Arn}"}}}},
            r"\[B\] in the Outputs",
        ),
        ({"Resources": {"A": {"Type": "T"}}, "Transform": "AWS::Serverless-2016-10-31"}, "transform"),
    ],
)
def test_a_bad_template_is_refused(body: Any, message: str) -> None:
    with pytest.raises(Fault, match=message):
        Template.parse(body if isinstance(body, str) else json.dumps(body))


def test_yaml_with_short_tags_and_dates() -> None:
    text = """
Resources:
  Bucket:
    Type: AWS::S3::Bucket
  Policy:
    Type: AWS::S3::BucketPolicy
    Properties:
      Bucket: !Ref Bucket
      PolicyDocument:
        Version: 2012-10-17
        Resource: !Sub "${Bucket.Arn}/*"
        Other: !GetAtt Bucket.Arn
"""
    properties = Template.parse(text).resources["Policy"]["Properties"]
    assert scope().resolve(properties) == {
        "Bucket": "my-bucket",
        "PolicyDocument": {
            "Version": "2012-10-17",
            "Resource": "arn:aws:s3:::my-bucket/*",
            "Other": "arn:aws:s3:::my-bucket",
        },
    }


def test_resources_come_after_what_they_use() -> None:
    # Given references of every kind, written backwards
    resources = {
        "A": {"Type": "T", "Properties": {"x": {"Fn::Sub": "${B}"}}},
        "B": {"Type": "T", "Properties": {"x": {"Fn::GetAtt": ["C", "Arn"]}}},
        "C": {"Type": "T", "DependsOn": "D"},
        "D": {"Type": "T"},
    }
    parsed = Template.parse(json.dumps({"Resources": resources}))
    # Then each follows what it uses
    assert parsed.order(set(resources)) == ["D", "C", "B", "A"]


def test_a_circle_is_refused() -> None:
    resources = {name: {"Type": "T", "DependsOn": other} for name, other in (("A", "B"), ("B", "A"))}
    with pytest.raises(Fault, match=r"Circular dependency between resources: \[A, B\]"):
        Template.parse(json.dumps({"Resources": resources})).order({"A", "B"})


@pytest.mark.parametrize(
    ("properties", "needed"), [({}, {"CAPABILITY_IAM"}), ({"RoleName": "mine"}, {"CAPABILITY_NAMED_IAM"})]
)
def test_iam_needs_a_capability(properties: dict[str, str], needed: set[str]) -> None:
    body = {"Resources": {"Role": {"Type": "AWS::IAM::Role", "Properties": properties}}}
    assert Template.parse(json.dumps(body)).capabilities() == needed
