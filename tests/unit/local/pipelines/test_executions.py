"""How executions go on, with a service that does what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.local.manual_clock import ManualClock
from tests.unit.local.remembered_events import RememberedEvents
from windlass.local.clock import Pace
from windlass.local.database import Database
from windlass.local.faults import Fault
from windlass.local.iam import authorizer
from windlass.local.pipelines.executions import Pipelines

REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/any"


class SmallCloud:
    """As much of a cloud as pipelines need that start no jobs."""

    def __init__(self, state: Path) -> None:
        self.clock = ManualClock()
        self.pace = Pace(self.clock, 1000)  # the pauses between attempts take no time
        self.events = RememberedEvents()
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
    def bad_has_failed() -> bool:
        [execution] = pipelines.list_executions(REGION, {"PipelineName": "Retrain"})["PipelineExecutionSummaries"]
        return statuses(pipelines, execution["PipelineExecutionArn"]).get("Bad") == "Failed"

    def before(params: Mapping[str, Any]) -> None:
        if "-Bad-" in params["ModelName"]:
            raise Fault("ValidationException", "no such image")
        with pipelines._change:
            assert pipelines._change.wait_for(bad_has_failed, 10)

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


def refuse(service: Service, code: str, times: int) -> None:
    """The next requests are refused with that code."""
    left = [None] * times

    def refusal(_: Mapping[str, Any]) -> None:
        if left:
            left.pop()
            raise Fault(code, "not now")

    service.before = refusal


def retry(*kinds: str, **more: Any) -> list[dict[str, Any]]:
    return [{"ExceptionType": list(kinds), "IntervalSeconds": 1, "BackoffRate": 2, "MaxAttempts": 2, **more}]


@pytest.mark.parametrize(
    ("code", "faults", "kind", "attempts", "status"),
    [
        ("ThrottlingException", 2, "Step.THROTTLING", 3, "Succeeded"),
        ("ResourceLimitExceeded", 1, "SageMaker.RESOURCE_LIMIT", 2, "Succeeded"),
        ("InternalFailure", 1, "Step.SERVICE_FAULT", 2, "Succeeded"),
        ("ThrottlingException", 3, "Step.THROTTLING", 3, "Failed"),
        ("ThrottlingException", 1, "Step.SERVICE_FAULT", 1, "Failed"),
        ("ValidationException", 1, "Step.SERVICE_FAULT", 1, "Failed"),
    ],
)
def test_a_step_is_tried_again_as_its_retry_policy_has_it(
    pipelines: Pipelines, service: Service, code: str, faults: int, kind: str, attempts: int, status: str
) -> None:
    refuse(service, code, faults)
    arn = create(pipelines, model("A", RetryPolicies=retry(kind)))

    execution = pipelines.start(arn, {}, "once")

    assert pipelines.wait(execution, 10) == status
    [step] = pipelines.list_steps({"PipelineExecutionArn": execution})["PipelineExecutionSteps"]
    assert (step["StepStatus"], step["AttemptCount"]) == (status, attempts)


def test_a_step_that_waits_for_its_next_attempt_can_be_stopped(
    pipelines: Pipelines, service: Service, cloud: SmallCloud
) -> None:
    cloud.pace = Pace(cloud.clock)
    refuse(service, "ThrottlingException", 9)
    arn = create(pipelines, model("A", RetryPolicies=retry("Step.THROTTLING", IntervalSeconds=3600)))
    execution = pipelines.start(arn, {}, "once")

    pipelines.stop_execution({"PipelineExecutionArn": execution, "ClientRequestToken": "stop"})

    assert pipelines.wait(execution, 10) == "Stopped"


def test_an_execution_has_the_role_that_it_was_started_with(pipelines: Pipelines, service: Service) -> None:
    seen: list[str] = []

    def remember(_: Mapping[str, Any]) -> None:
        caller = authorizer.acting()
        assert caller
        seen.append(caller.principal.role_arn)

    service.before = remember
    create(pipelines, model("A"))

    for role in (None, f"{ROLE}-other"):
        request = {
            "PipelineName": "Retrain",
            "ClientRequestToken": f"with {role}",
            **({"RoleArn": role} if role else {}),
        }
        assert pipelines.wait(pipelines.start_execution(REGION, request), 10) == "Succeeded"

    assert seen == [ROLE, f"{ROLE}-other"]
