"""The pipelines' part of the SageMaker API: each operation is one call of `executions.Pipelines`."""

from __future__ import annotations

from typing import Any

from moto.core.responses import ActionResult

from windlass.local import cloud as clouds
from windlass.local.faults import not_here
from windlass.local.pipelines.executions import Pipelines


class PipelineOperations:
    """The pipelines' part of the SageMaker API."""

    params: Any
    region: str

    @property
    def _pipelines(self) -> Pipelines:
        return clouds.current().pipelines

    def create_pipeline(self) -> ActionResult:
        return ActionResult({"PipelineArn": self._pipelines.create(self.region, self.params)})

    def update_pipeline(self) -> ActionResult:
        return ActionResult({"PipelineArn": self._pipelines.update(self.region, self.params)})

    def describe_pipeline(self) -> ActionResult:
        for member in ("PipelineVersionId", "PipelineVersionAlias"):
            if self.params.get(member):
                raise not_here(f"{member} of DescribePipeline")
        return ActionResult(self._pipelines.describe(self.region, self.params["PipelineName"]))

    def list_pipelines(self) -> ActionResult:
        if self.params.get("ManagedBy"):
            raise not_here("ManagedBy of ListPipelines")
        return ActionResult(self._pipelines.list(self.region, self.params))

    def delete_pipeline(self) -> ActionResult:
        return ActionResult({"PipelineArn": self._pipelines.delete(self.region, self.params["PipelineName"])})

    def start_pipeline_execution(self) -> ActionResult:
        return ActionResult({"PipelineExecutionArn": self._pipelines.start_execution(self.region, self.params)})

    def stop_pipeline_execution(self) -> ActionResult:
        return ActionResult({"PipelineExecutionArn": self._pipelines.stop_execution(self.params)})

    def retry_pipeline_execution(self) -> ActionResult:
        return ActionResult({"PipelineExecutionArn": self._pipelines.retry_execution(self.params)})

    def update_pipeline_execution(self) -> ActionResult:
        return ActionResult({"PipelineExecutionArn": self._pipelines.update_execution(self.params)})

    def describe_pipeline_execution(self) -> ActionResult:
        return ActionResult(self._pipelines.describe_execution(self.params["PipelineExecutionArn"]))

    def describe_pipeline_definition_for_execution(self) -> ActionResult:
        return ActionResult(self._pipelines.describe_definition(self.params["PipelineExecutionArn"]))

    def list_pipeline_executions(self) -> ActionResult:
        if self.params.get("PipelineVersionAlias"):
            raise not_here("PipelineVersionAlias of ListPipelineExecutions")
        return ActionResult(self._pipelines.list_executions(self.region, self.params))

    def list_pipeline_execution_steps(self) -> ActionResult:
        return ActionResult(self._pipelines.list_steps(self.params))

    def list_pipeline_parameters_for_execution(self) -> ActionResult:
        return ActionResult(self._pipelines.list_parameters(self.params))
