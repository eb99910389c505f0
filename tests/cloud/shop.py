"""A shop: a project with a trained run, versions of its model, and an endpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import windlass as wl

if TYPE_CHECKING:
    from tests.cloud.conftest import Rig

GOOD_SCRIPT = """
import os, pathlib, sys
pathlib.Path(os.environ["SM_MODEL_DIR"], "weights.txt").write_text(" ".join(sys.argv[1:]))
"""
INFERENCE = """
import json
def model_fn(model_dir):
    return "a model"
def input_fn(body, content_type):
    return json.loads(body)
def predict_fn(data, model):
    if data == "raise":
        raise ValueError("three channels expected")
    return {"label": 7}
def output_fn(prediction, accept):
    if accept == "application/x-npy":
        return b"\\x93NUMPY", accept
    return json.dumps(prediction), "application/json"
"""
EVALUATE = """
import json, os, pathlib
assert list(pathlib.Path(os.environ["SM_CHANNEL_MODEL"]).iterdir())
scores = {"multiclass_classification_metrics": {"accuracy": {"value": 0.5}}}
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "evaluation.json").write_text(json.dumps(scores))
print("test:accuracy=0.5")
"""


@dataclass
class Shop:
    """A project with a trained run, an approved and a pending version, and an endpoint that serves the former."""

    rig: Rig
    folder: Path
    run: wl.Run = field(init=False)
    version: wl.ModelVersion = field(init=False)
    pending: wl.ModelVersion = field(init=False)
    endpoint: wl.Endpoint = field(init=False)

    def script(self, text: str, inference: str = INFERENCE) -> Path:
        """A training script, in a folder of its own with the code that serves its model."""
        folder = self.folder / self.rig.unique("source")
        folder.mkdir()
        for name, body in (("train.py", text), ("inference.py", inference), ("evaluate.py", EVALUATE)):
            (folder / name).write_text(body)
        return folder / "train.py"

    def trained(self, inference: str = INFERENCE, script: str = GOOD_SCRIPT) -> wl.Run:
        return wl.train(self.script(script, inference))

    def approved(self, inference: str = INFERENCE, *, archive: bool = False) -> wl.ModelVersion:
        """A version of a model of its own."""
        return wl.register(self.trained(inference), self.rig.unique("model"), approve=True, archive=archive)

    def spoil(self, uri: str) -> None:
        """Write over an archive."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        self.rig.client("s3").put_object(Bucket=bucket, Key=key, Body=b"this is no archive")

    def remove(self, uri: str) -> None:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        self.rig.client("s3").delete_object(Bucket=bucket, Key=key)

    def inventory(self) -> set[str]:
        """Names of all that can be made half."""
        sagemaker = self.rig.client("sagemaker")
        listings = [
            (sagemaker, "list_endpoints", "Endpoints", "EndpointName"),
            (sagemaker, "list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"),
            (sagemaker, "list_models", "Models", "ModelName"),
            (sagemaker, "list_training_jobs", "TrainingJobSummaries", "TrainingJobName"),
            (sagemaker, "list_model_package_groups", "ModelPackageGroupSummaryList", "ModelPackageGroupName"),
            (self.rig.client("cloudwatch"), "describe_alarms", "MetricAlarms", "AlarmName"),
        ]
        return {
            item[name]
            for client, operation, key, name in listings
            for page in client.get_paginator(operation).paginate()
            for item in page[key]
        }

    def judged(self, **options: Any) -> Any:
        """What :func:`monitor.quality` says once the predictions have been captured."""
        deadline = time.monotonic() + 20
        while not (found := wl.monitor.quality(self.endpoint, **options)):
            assert time.monotonic() < deadline, "nothing was captured"
        return found
