"""The jobs' part of the SageMaker API: each operation is one call of the jobs of its kind."""

from __future__ import annotations

from typing import Any

from moto.core.responses import ActionResult, EmptyResult

from windlass.local import cloud as clouds


class TrainingOperations:
    """The training jobs' part of the SageMaker API."""

    params: Any
    region: str

    def create_training_job(self) -> ActionResult:
        return ActionResult({"TrainingJobArn": clouds.current().jobs.create(self.region, self.params)})

    def describe_training_job(self) -> ActionResult:
        return ActionResult(clouds.current().jobs.describe(self.region, self.params["TrainingJobName"]))

    def list_training_jobs(self) -> ActionResult:
        return ActionResult(clouds.current().jobs.list(self.region, self.params))

    def stop_training_job(self) -> ActionResult:
        clouds.current().jobs.stop(self.region, self.params["TrainingJobName"])
        return EmptyResult()

    def delete_training_job(self) -> ActionResult:
        clouds.current().jobs.delete(self.region, self.params["TrainingJobName"])
        return EmptyResult()


class ProcessingOperations:
    """The processing jobs' part of the SageMaker API."""

    params: Any
    region: str

    def create_processing_job(self) -> ActionResult:
        return ActionResult({"ProcessingJobArn": clouds.current().processing.create(self.region, self.params)})

    def describe_processing_job(self) -> ActionResult:
        return ActionResult(clouds.current().processing.describe(self.region, self.params["ProcessingJobName"]))

    def list_processing_jobs(self) -> ActionResult:
        return ActionResult(clouds.current().processing.list(self.region, self.params))

    def stop_processing_job(self) -> ActionResult:
        clouds.current().processing.stop(self.region, self.params["ProcessingJobName"])
        return EmptyResult()

    def delete_processing_job(self) -> ActionResult:
        clouds.current().processing.delete(self.region, self.params["ProcessingJobName"])
        return EmptyResult()


class TransformOperations:
    """The transform jobs' part of the SageMaker API."""

    params: Any
    region: str

    def create_transform_job(self) -> ActionResult:
        return ActionResult({"TransformJobArn": clouds.current().transform.create(self.region, self.params)})

    def describe_transform_job(self) -> ActionResult:
        return ActionResult(clouds.current().transform.describe(self.region, self.params["TransformJobName"]))

    def list_transform_jobs(self) -> ActionResult:
        asked = {"SortOrder": "Descending", **self.params}
        return ActionResult(clouds.current().transform.list(self.region, asked))

    def stop_transform_job(self) -> ActionResult:
        clouds.current().transform.stop(self.region, self.params["TransformJobName"])
        return EmptyResult()


class TuningOperations:
    """The tuning jobs' part of the SageMaker API."""

    params: Any
    region: str

    def create_hyper_parameter_tuning_job(self) -> ActionResult:
        return ActionResult({"HyperParameterTuningJobArn": clouds.current().tuning.create(self.region, self.params)})

    def describe_hyper_parameter_tuning_job(self) -> ActionResult:
        name = self.params["HyperParameterTuningJobName"]
        return ActionResult(clouds.current().tuning.describe(self.region, name))

    def list_hyper_parameter_tuning_jobs(self) -> ActionResult:
        return ActionResult(clouds.current().tuning.list(self.region, {"SortBy": "Name", **self.params}))

    def list_training_jobs_for_hyper_parameter_tuning_job(self) -> ActionResult:
        return ActionResult(clouds.current().tuning.list_children(self.region, self.params))

    def stop_hyper_parameter_tuning_job(self) -> ActionResult:
        clouds.current().tuning.stop(self.region, self.params["HyperParameterTuningJobName"])
        return EmptyResult()

    def delete_hyper_parameter_tuning_job(self) -> ActionResult:
        clouds.current().tuning.delete(self.region, self.params["HyperParameterTuningJobName"])
        return EmptyResult()
