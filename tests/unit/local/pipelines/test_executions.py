"""How executions go on, with a service that does what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.local.manual_clock import ManualClock
from windlass.local.database import Database
from windlass.local.faults import Fault
from windlass.local.pipelines.executions import Pipelines

REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/any"


class Events:
    """An event bus that remembers what it is given."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def put(self, region: str, event: dict[str, Any]) -> None:
        self.seen.append(event)


class SmallCloud:
    """As much of a cloud as pipelines need that start no jobs."""

    def __init__(self, state: Path) -> None:
        self.clock = ManualClock()
        self.events = Events()
        self.database = Database(state / "state.sqlite")


class Service:
    """Creates models, and remembers how many at once."""

    def __init__(self) -> None:
        self.models: dict[str, Mapping[str, Any]] = {}
        self.at_once = self.most_at_once = 0
        self.before: Callable[[Mapping[str, Any]], None] = lambda _: None
        self._lock = threading.Lock()

    def __call__(self, region: str, action: str, params: Mapping[str, Any]) -> dict[str, Any]:
        if action == "DescribeModel":
            return {**self.models[params["ModelName"]], "ModelArn": f"arn:model/{params['ModelName']}"}
        assert action == "CreateModel"
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.before(params)
        with self._lock:
            self.at_once -= 1
        self.models[params["ModelName"]] = params
        return {"ModelArn": f"arn:model/{params['ModelName']}"}


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[SmallCloud]:
    cloud = SmallCloud(tmp_path)
    yield cloud
    cloud.database.close()


@pytest.fixture
def pipelines(cloud: SmallCloud, service: Service) -> Pipelines:
    return Pipelines(cloud, service)  # type: ignore[arg-type]


def create(pipelines: Pipelines, *steps: dict[str, Any], **more: Any) -> str:
    parameters = [{"Name": "Role", "Type": "String", "DefaultValue": ROLE}]
    text = json.dumps({"Version": "2020-12-01", "Parameters": parameters, "Steps": list(steps)})
    request = {"PipelineName": "Retrain", "PipelineDefinition": text, "ClientRequestToken": "t", "RoleArn": ROLE}
    return pipelines.create(REGION, {**request, **more})


def model(name: str, **more: Any) -> dict[str, Any]:
    return {"Name": name, "Type": "Model", "Arguments": {"ExecutionRoleArn": {"Get": "Parameters.Role"}}, **more}


def statuses(pipelines: Pipelines, execution: str) -> dict[str, str]:
    steps = pipelines.list_steps({"PipelineExecutionArn": execution, "SortOrder": "Ascending"})
    return {step["StepName"]: step["StepStatus"] for step in steps["PipelineExecutionSteps"]}


def test_an_event_starts_a_pipeline_once_for_each_token(
    pipelines: Pipelines, service: Service, cloud: SmallCloud
) -> None:
    arn = create(pipelines, model("A"))

    execution = pipelines.start(arn, {"Role": "given"}, "token-of-the-event")
    again = pipelines.start(arn, {"Role": "given"}, "token-of-the-event")

    assert execution == again
    assert pipelines.wait(execution, 10) == "Succeeded"
    [made] = service.models.values()
    assert made["ExecutionRoleArn"] == "given"
    assert {"Key": "sagemaker:pipeline-step-name", "Value": "A"} in made["Tags"]
    told = [event["detail"]["currentPipelineExecutionStatus"] for event in cloud.events.seen]
    assert told == ["Executing", "Succeeded"]
    assert cloud.events.seen[1]["detail"]["previousPipelineExecutionStatus"] == "Executing"


def test_as_many_steps_run_at_once_as_allowed(pipelines: Pipelines, service: Service) -> None:
    steps = [model(f"S{number}") for number in range(6)]
    arn = create(pipelines, *steps, ParallelismConfiguration={"MaxParallelExecutionSteps": 2})

    execution = pipelines.start(arn, {}, "token")

    assert pipelines.wait(execution, 10) == "Succeeded"
    assert len(service.models) == 6
    assert service.most_at_once <= 2


def test_what_runs_when_a_step_fails_runs_to_its_end_and_nothing_else_starts(
    pipelines: Pipelines, service: Service
) -> None:
    failed = threading.Event()

    def before(params: Mapping[str, Any]) -> None:
        if "-Bad-" in params["ModelName"]:
            failed.set()
            raise Fault("ValidationException", "no such image")
        assert failed.wait(10)

    service.before = before
    arn = create(pipelines, model("Slow"), model("Bad"), model("After", DependsOn=["Slow"]))

    execution = pipelines.start(arn, {}, "token")

    assert pipelines.wait(execution, 10) == "Failed"
    assert statuses(pipelines, execution) == {"Bad": "Failed", "Slow": "Succeeded"}
    steps = pipelines.list_steps({"PipelineExecutionArn": execution})["PipelineExecutionSteps"]
    [reason] = [step["FailureReason"] for step in steps if step["FailureReason"]]
    assert reason == "ClientError: Failed to invoke sagemaker:CreateModel. Error Details: no such image"


def test_a_fault_of_ours_fails_the_step_and_not_the_thread(pipelines: Pipelines, service: Service) -> None:
    def before(params: Mapping[str, Any]) -> None:
        raise RuntimeError("a fault of ours")

    service.before = before
    execution = pipelines.start(create(pipelines, model("A")), {}, "token")

    assert pipelines.wait(execution, 10) == "Failed"
    [step] = pipelines.list_steps({"PipelineExecutionArn": execution})["PipelineExecutionSteps"]
    assert step["FailureReason"] == "InternalServerError: RuntimeError: a fault of ours"


def test_a_stopped_execution_starts_nothing_more(pipelines: Pipelines, service: Service) -> None:
    running, go_on = threading.Event(), threading.Event()

    def before(params: Mapping[str, Any]) -> None:
        running.set()
        assert go_on.wait(10)

    service.before = before
    execution = pipelines.start(create(pipelines, model("A"), model("B", DependsOn=["A"])), {}, "token")
    assert running.wait(10)

    pipelines.stop_execution({"PipelineExecutionArn": execution, "ClientRequestToken": "stop"})
    pipelines.stop_execution({"PipelineExecutionArn": execution, "ClientRequestToken": "stop"})
    go_on.set()

    assert pipelines.wait(execution, 10) == "Stopped"
    assert list(statuses(pipelines, execution)) == ["A"]
    with pytest.raises(Fault, match="cannot be stopped"):
        pipelines.stop_execution({"PipelineExecutionArn": execution, "ClientRequestToken": "other"})


def test_an_execution_keeps_the_definition_that_it_started_with(pipelines: Pipelines, service: Service) -> None:
    running, go_on = threading.Event(), threading.Event()

    def before(params: Mapping[str, Any]) -> None:
        running.set()
        assert go_on.wait(10)

    service.before = before
    execution = pipelines.start(create(pipelines, model("A")), {}, "token")
    assert running.wait(10)
    text = json.dumps(
        {"Version": "2020-12-01", "Steps": [{"Name": "F", "Type": "Fail", "Arguments": {"ErrorMessage": "x"}}]}
    )

    pipelines.update(REGION, {"PipelineName": "Retrain", "PipelineDefinition": text})
    go_on.set()

    assert pipelines.wait(execution, 10) == "Succeeded"
    assert '"A"' in pipelines.describe_definition(execution)["PipelineDefinition"]
    assert pipelines.describe(REGION, "Retrain")["PipelineDefinition"] == text


def test_the_next_server_goes_on_where_a_retry_asks_it_to(
    pipelines: Pipelines, service: Service, cloud: SmallCloud
) -> None:
    running, go_on = threading.Event(), threading.Event()

    def before(params: Mapping[str, Any]) -> None:
        if "-B-" in params["ModelName"]:
            running.set()
            assert go_on.wait(10)

    service.before = before
    arn = create(pipelines, model("A"), model("B", DependsOn=["A"]), model("C", DependsOn=["B"]))
    execution = pipelines.start(arn, {"Role": "given"}, "token")
    assert running.wait(10)
    pipelines.close()

    later = Pipelines(cloud, service)  # type: ignore[arg-type]
    later.restore()
    go_on.set()

    assert later.describe(REGION, "Retrain") == pipelines.describe(REGION, "Retrain")
    assert "local cloud ended" in later.describe_execution(execution)["FailureReason"]
    assert statuses(later, execution) == {"A": "Succeeded", "B": "Failed"}
    assert later.start(arn, {"Role": "given"}, "token") == execution
    later.retry_execution({"PipelineExecutionArn": execution, "ClientRequestToken": "retry"})
    assert later.wait(execution, 10) == "Succeeded"
    assert [name.split("-")[2] for name in service.models].count("A") == 1
    assert all(made["ExecutionRoleArn"] == "given" for made in service.models.values())
