"""What moto answers with results that nobody worked for. The local cloud refuses it by name: nothing here is invented.

refused("athena", environ)      # why not, or nothing

Whatever else is moto's keeps what it is given and gives back no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By the name in a request's signature. Services whose whole point is the work.
SERVICES: Mapping[str, str] = {
    "batch": "runs no jobs of AWS Batch",
    "bedrock": "hosts no foundation models",
    "ce": "costs nothing",
    "comprehend": "has no text analysis",
    "emr-containers": "runs no EMR jobs",
    "emr-serverless": "runs no EMR jobs",
    "forecast": "has no forecasting",
    "lex": "has no chat bots",
    "personalize": "has no recommendations",
    "polly": "has no speech",
    "rds-data": "runs no SQL",
    "redshift-data": "runs no SQL",
    "rekognition": "has no image analysis",
    "textract": "has no text recognition",
    "transcribe": "has no speech recognition",
}
# And single operations of services that are records otherwise.
OPERATIONS: Mapping[str, Mapping[str, str]] = {
    "athena": {"StartQueryExecution": "runs no SQL"},
    "codebuild": dict.fromkeys(("StartBuild", "StartBuildBatch", "RetryBuild"), "builds no images"),
    "ecs": dict.fromkeys(("RunTask", "StartTask", "CreateService"), "runs no containers"),
    "elasticmapreduce": {"RunJobFlow": "runs no EMR jobs"},
    "glue": dict.fromkeys(("StartJobRun", "StartCrawler"), "runs no Glue jobs"),
    "logs": {"StartQuery": "has no Logs Insights: ask FilterLogEvents instead"},
    "states": dict.fromkeys(("StartExecution", "StartSyncExecution"), "runs no state machines"),
    "timestream": {"Query": "runs no SQL"},
}


class Refusal(NotImplementedError):
    """The local cloud does not do this; ``str()`` says why."""


def refused(service: str, environ: Mapping[str, Any]) -> str:
    """Why the local cloud does not do what a request asks for; nothing if it may."""
    if reason := SERVICES.get(service):
        return reason
    target = str(environ.get("HTTP_X_AMZ_TARGET", ""))
    if reason := OPERATIONS.get(service, {}).get(target.rpartition(".")[2]):
        return reason
    # The experiments' metrics, the feature store and the edge manager sign as SageMaker, whose own requests have a target.
    if service == "sagemaker" and not target:
        return "has no metrics of experiments, feature store or devices"
    return ""
