from __future__ import annotations

from typing import Any

import pytest

from windlass import Slo, TrainSpec
from windlass.errors import InvalidInput
from windlass.specs import ServeSpec, check_name


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"instance_type": "m5.xlarge"}, "ml.m5.xlarge"),
        ({"instance_type": "ml.m5.huge"}, "not an instance type"),
        ({"instance_count": 0}, "greater than or equal to 1"),
        ({"hyperparameters": {"layers": [1, 2]}}, "hyperparameter 'layers' is a list"),
        ({"hyperparameters": {"when": None}}, "hyperparameter 'when' is a NoneType"),
        ({"hyperparameters": {"text": "x" * 3000}}, "2,500 characters"),
        ({"hyperparameters": 3}, "mapping"),
        ({"role_arn": "admin"}, "not a role ARN"),
        ({"image": "a b"}, "no spaces"),
        ({"image": ""}, "1 to 255"),
        ({"metrics": {"loss": "loss=[0-9]+"}}, "exactly one group"),
        ({"metrics": {"loss": "loss=("}}, "no regular expression"),
        ({"metrics": ("two words",)}, "no spaces"),
        ({"max_runtime_seconds": 0}, "greater than or equal"),
        ({"instance_typ": "ml.m5.large"}, "Did you mean 'instance_type'"),
    ],
)
def test_a_wrong_training_argument_is_named(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        TrainSpec.check("Training", script="train.py", **wrong)
    assert str(caught.value).startswith("Training: ")
    assert next(iter(wrong)) in str(caught.value)


def test_all_wrong_fields_are_listed_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        TrainSpec.check("Training", script="train.py", instance_type="x", instance_count=-1)
    assert "instance_type" in str(caught.value)
    assert "instance_count" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Slo.accuracy(95), "between 0 and 1"),
        (lambda: Slo.accuracy(0), "greater than 0"),
        (lambda: Slo.accuracy(float("nan")), "finite"),
        (lambda: Slo.error_rate(2), "between 0 and 1"),
        (lambda: Slo.p99_latency(200, period_seconds=10), "once a minute"),
        (lambda: Slo.accuracy(0.9, period_seconds=45), "10, 20, 30 and multiples of 60"),
        (lambda: Slo.accuracy(0.9, periods=2, datapoints=3), "cannot be more"),
        (lambda: Slo.accuracy(0.9, periods=100, period_seconds=3600), "a day"),
        (lambda: Slo.check("here", metric="speed", bound=1), "accuracy"),
    ],
)
def test_an_impossible_slo_is_refused(make, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        make()


def test_specs_are_frozen() -> None:
    slo = Slo.accuracy(0.9)
    with pytest.raises(ValueError, match="frozen"):
        slo.bound = 0.5


@pytest.mark.parametrize("name", ["", "-a", "a_b", "a" * 64, "ü", "a b"])
def test_names_that_sagemaker_refuses(name: str) -> None:
    with pytest.raises(InvalidInput, match="SageMaker name"):
        check_name(name, "Deploying")


def test_traffic_shifts_in_one_way() -> None:
    with pytest.raises(InvalidInput, match="canary_percent and rolling_percent exclude each other"):
        ServeSpec.check("Deploying", canary_percent=10, rolling_percent=10)
    with pytest.raises(InvalidInput, match="20 steps of step_seconds=3600 bake"):
        ServeSpec.check("Deploying", rolling_percent=5, step_seconds=3600)


def test_serving_limits_are_sagemakers() -> None:
    with pytest.raises(InvalidInput, match="linear_percent=5"):
        ServeSpec.check("Deploying", linear_percent=5)
    with pytest.raises(InvalidInput, match="canary_percent=60"):
        ServeSpec.check("Deploying", canary_percent=60)
    with pytest.raises(InvalidInput, match="bake_seconds=4000"):
        ServeSpec.check("Deploying", bake_seconds=4000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"serverless_memory_mb": 1500}, "serverless_memory_mb=1500"),
        ({"serverless_memory_mb": 8192}, "less than or equal to 6144"),
        ({"serverless_memory_mb": 1024, "serverless_concurrency": 201}, "serverless_concurrency=201"),
        (
            {"serverless_memory_mb": 1024, "serverless_concurrency": 1, "provisioned_concurrency": 2},
            "at most serverless",
        ),
        ({"serverless_memory_mb": 1024, "instance_count": 2}, "instance_count cannot be given with serverless"),
        ({"serverless_memory_mb": 1024, "canary_percent": 10}, "canary_percent cannot be given with serverless"),
        ({"serverless_memory_mb": 1024, "capture_percent": 10}, "capture_percent must be 0"),
        ({"serverless_memory_mb": 1024, "async_output": "s3://bucket/out"}, "async_output cannot be given"),
        ({"provisioned_concurrency": 1}, "provisioned_concurrency needs serverless_memory_mb"),
        ({"async_output": "/tmp/out"}, "not an S3 prefix"),
        ({"async_output": "s3://bucket/out", "error_topic": "topic"}, "not the ARN of a topic"),
        ({"async_output": "s3://bucket/out", "shadow_percent": 10}, "shadow_percent cannot be given"),
        ({"success_topic": "arn:aws:sns:us-east-1:123456789012:t"}, "success_topic needs async_output"),
    ],
)
def test_kinds_of_endpoints_have_their_own_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        ServeSpec.check("Deploying", **options)
