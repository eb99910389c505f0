"""The JSONPath of filters and of JsonGet."""

from __future__ import annotations

from typing import Any

import pytest

from windlass.local.pipelines import jsonpath

DOCUMENT = {"id": 7, "features": [1, 2, 3, 4], "SageMakerOutput": {"label": "cat", "odd key": [{"v": 1}, {"v": 2}]}}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("$", DOCUMENT),
        ("$.id", 7),
        ("id", 7),
        ("SageMakerOutput.label", "cat"),
        ("$['id','SageMakerOutput']['id']", 7),
        ("$['id', 'features']", {"id": 7, "features": [1, 2, 3, 4]}),
        ("$.SageMakerOutput.['label']", "cat"),
        ('$.SageMakerOutput["odd key"][1].v', 2),
        ("$.SageMakerOutput['odd key'][*].v", [1, 2]),
        ("$.features[0]", 1),
        ("$.features[-1]", 4),
        ("$.features[0,-1]", [1, 4]),
        ("$.features[1:]", [2, 3, 4]),
        ("$.features[:2]", [1, 2]),
        ("$.features[1:3]", [2, 3]),
        ("$.features[:]", [1, 2, 3, 4]),
        ("$.features.*", [1, 2, 3, 4]),
    ],
)
def test_what_a_path_finds(path: str, found: Any) -> None:
    assert jsonpath.parse(path).of(DOCUMENT) == found


@pytest.mark.parametrize("path", ["$..id", "$[?(@.id)]", "$.features[0:4:2]", "$.", "$[", "$['id]", "$.a b"])
def test_what_sagemaker_does_not_support_is_refused(path: str) -> None:
    with pytest.raises(jsonpath.BadPath, match="not a supported JSONPath"):
        jsonpath.parse(path)


@pytest.mark.parametrize("path", ["$.none", "$.id.x", "$.features[4]", "$.features[-5]", "$[0]", "$.id[1:]", "$.id.*"])
def test_what_is_not_there_is_told(path: str) -> None:
    with pytest.raises(jsonpath.NoMatch, match="Nothing is at"):
        jsonpath.parse(path).of(DOCUMENT)
