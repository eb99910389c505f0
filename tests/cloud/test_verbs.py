"""The SDK's verbs, from a script to a watched endpoint and back, with a model that adds a number: v1 is right, v2 is not."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import windlass as wl
from tests.cloud.conftest import Rig
from windlass import aws
from windlass.cli import main
from windlass.errors import Conflict, InvalidInput, NotFound, RolledBack
from windlass.foundation import Contract

TRAIN = """
import argparse, json, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--shift", type=int, default=0)
args = parser.parse_args()
numbers = json.loads(pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "numbers.json").read_text())
for epoch in range(1, args.epochs + 1):
    print(f"epoch={epoch} train:loss={args.shift + 1 / epoch:.3f} validation:accuracy={float(not args.shift)}")
pathlib.Path(os.environ["SM_MODEL_DIR"], "weights.json").write_text(json.dumps({"shift": args.shift, "of": len(numbers)}))
"""
EVALUATE = """
import json, os, pathlib, tarfile
with tarfile.open(pathlib.Path(os.environ["SM_CHANNEL_MODEL"], "model.tar.gz")) as tar:
    shift = json.load(tar.extractfile("weights.json"))["shift"]
numbers = json.loads(pathlib.Path(os.environ["SM_CHANNEL_TEST"], "numbers.json").read_text())
accuracy = sum((n + shift) % 10 == n % 10 for n in numbers) / len(numbers)
scores = {"multiclass_classification_metrics": {"accuracy": {"value": accuracy}}}
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "evaluation.json").write_text(json.dumps(scores))
print(f"test:accuracy={accuracy}")
"""
INFERENCE = """
import json, pathlib
def model_fn(model_dir):
    return json.loads(pathlib.Path(model_dir, "weights.json").read_text())["shift"]
def input_fn(body, content_type):
    return json.loads(body)["number"]
def predict_fn(number, shift):
    return {"label": (number + shift) % 10}
def output_fn(prediction, accept):
    return json.dumps(prediction), "application/json"
"""


@dataclass(frozen=True)
class Project:
    """Scripts and data on disk, and what was made of them once for all tests here."""

    folder: Path
    run: wl.Run
    evaluation: wl.Run
    good: wl.ModelVersion
    bad: wl.ModelVersion

    @property
    def data(self) -> Path:
        return self.folder / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "source").mkdir()
    for name, text in {"train.py": TRAIN, "evaluate.py": EVALUATE, "inference.py": INFERENCE}.items():
        (folder / "source" / name).write_text(text)
    (folder / "data").mkdir()
    (folder / "data" / "numbers.json").write_text(json.dumps(list(range(20))))
    return folder


@pytest.fixture(scope="module")
def project(foundation: Contract, rig: Rig, folder: Path) -> Project:
    script, data, model = folder / "source" / "train.py", folder / "data", rig.unique("adder")
    run = wl.train(script, {"train": data}, hyperparameters={"epochs": 3})
    evaluation = wl.evaluate(run, data)
    shifted = wl.train(script, {"train": data}, hyperparameters={"shift": 1})
    good = wl.register(run, model, evaluation=evaluation)
    bad = wl.register(shifted, model, approve=True)
    return Project(folder, run, evaluation, good.approve("its evaluation"), bad)


@pytest.fixture
def name(rig: Rig, project: Project) -> Iterator[str]:
    """Of an endpoint that is gone at the end. As long as a config's name with its time stamp leaves no room for."""
    name = rig.unique("an-endpoint-with-a-long-name-indeed-for-one-adder")
    yield name
    if name in wl.Endpoint.list():
        until(lambda: wl.Endpoint.from_name(name).status not in ("Creating", "Updating", "RollingBack"))
        wl.Endpoint.from_name(name).delete()
        until(lambda: name not in wl.Endpoint.list())  # the names of all these endpoints begin alike


def until(done: Callable[[], Any], seconds: float = 60) -> Any:
    return aws.poll("The test", done, bool, timeout_seconds=seconds)


def ask(endpoint: wl.Endpoint, numbers: Sequence[int]) -> list[wl.Prediction]:
    return [endpoint.predict({"number": number}) for number in numbers]


def judged(endpoint: wl.Endpoint, samples: int) -> list[wl.monitor.Quality]:
    """What quality says until it has judged that many: captures come with a delay."""
    found: list[wl.monitor.Quality] = []

    def enough() -> bool:
        found.extend(wl.monitor.quality(endpoint))
        return sum(quality.samples for quality in found) >= samples

    until(enough)
    return found


# ------------------------------------------------------------------------------------------------- to a model version


def test_a_script_beside_its_data_takes_neither_them_nor_a_local_cloud_along(
    rig: Rig, foundation: Contract, tmp_path: Path
) -> None:
    # Given a project as it comes about by itself: the cloud was started and the data were made where the script is
    for name, text in {
        "train.py": TRAIN,
        "inference.py": INFERENCE,
        "vocabulary/words.txt": "none",
        "data/train/numbers.json": "[1]",
        "data/test/numbers.json": "[2]",
        ".windlass/state.sqlite": "rows",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    # When it trains
    run = wl.train(tmp_path / "train.py", {"train": tmp_path / "data" / "train"})

    # Then what is a channel is not code, nor is the cloud's state
    with tarfile.open(fileobj=io.BytesIO(rig.download(run.source_uri))) as tar:
        assert sorted(tar.getnames()) == ["data/test/numbers.json", "inference.py", "train.py", "vocabulary/words.txt"]


def test_code_in_a_folder_that_is_data_goes_along(rig: Rig, foundation: Contract, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "train.py").write_text(TRAIN)
    (tmp_path / "both" / "numbers.json").write_text("[1]")

    run = wl.train("both/train.py", {"train": tmp_path / "both"}, source=tmp_path)

    with tarfile.open(fileobj=io.BytesIO(rig.download(run.source_uri))) as tar:
        assert sorted(tar.getnames()) == ["both/numbers.json", "both/train.py"]


def test_training_gives_a_run_that_any_process_finds_again(project: Project) -> None:
    run = project.run

    assert (run.status, run.kind, run.ended) == ("Completed", "train", True)
    assert run.metrics == {"train:loss": pytest.approx(0.333), "validation:accuracy": 1.0}
    assert run.hyperparameters["epochs"] == 3
    assert run.series()["train:loss"] == [1.0, 0.5, 0.333]
    assert next(line for line, _ in run.log_lines()).startswith("epoch=1 ")
    assert wl.Run.from_name(run.name) == run
    assert run.name in wl.Run.list(limit=100)


def test_the_same_data_is_uploaded_once(project: Project, rig: Rig, foundation: Contract) -> None:
    def objects() -> set[tuple[str, str]]:
        found = rig.client("s3").list_objects_v2(Bucket=foundation.bucket, Prefix="data/")["Contents"]
        return {(item["Key"], item["LastModified"]) for item in found}

    before = objects()

    wl.train(project.folder / "source" / "train.py", {"train": project.data}, wait=False)

    assert objects() == before


def test_evaluation_scores_held_out_data(project: Project) -> None:
    assert project.evaluation.kind == "evaluate"
    assert project.evaluation.metrics == {"test:accuracy": 1.0}
    assert project.evaluation.evaluation["multiclass_classification_metrics"]["accuracy"] == {"value": 1.0}


def test_a_version_carries_its_evaluation_and_its_lineage(project: Project) -> None:
    good = project.good

    assert (good.version, good.approval) == (1, "Approved")
    assert good.metadata["run"] == project.run.name
    assert float(good.metadata["test:accuracy"]) == 1.0
    assert good.evaluation == project.evaluation.evaluation
    assert good.metadata["digest"] in good.model_uri
    assert wl.ModelVersion.list(good.model) == [project.bad.name, good.name]
    assert wl.ModelVersion.from_name(good.name) == good
    assert wl.ModelVersion.from_name(good.model) == project.bad  # the newest approved one


def test_a_version_that_is_not_approved_is_not_deployed_and_nothing_is_made(project: Project, rig: Rig) -> None:
    pending = wl.register(project.run, rig.unique("pending"))
    name = rig.unique("never")

    with pytest.raises(InvalidInput, match="it is PendingManualApproval, not Approved"):
        wl.deploy(pending, name)
    with pytest.raises(InvalidInput, match="it is Rejected, not Approved"):
        wl.deploy(pending.reject("no"), name)

    assert left_of(rig, name) == []


# ------------------------------------------------------------------------------------------------------- in service


def test_late_labels_are_counted_once_with_their_coverage_and_their_lag(project: Project, name: str) -> None:
    endpoint = wl.deploy(project.good, name)
    assert (endpoint.status, endpoint.model_version) == ("InService", project.good.name)

    # Given twenty predictions, of which five are labelled an hour later, one of them wrongly predicted
    predictions = ask(endpoint, range(20))
    assert [p.output["label"] for p in predictions] == [n % 10 for n in range(20)]
    an_hour_later = aws.Clock(now=lambda: time.time() + 3600)
    truths = [0, 1, 2, 3, 9]
    endpoint.label_many(
        ((p.inference_id, truth) for p, truth in zip(predictions, truths, strict=False)), clock=an_hour_later
    )

    # Then each is judged once, as soon as its prediction has been captured
    found = judged(endpoint, 5)
    assert sum(q.samples for q in found) == 5
    assert sum(q.samples * q.accuracy for q in found) == pytest.approx(4)
    assert {q.model_version for q in found} == {project.good.name}
    assert all(abs(q.lag_seconds - 3600) < 60 for q in found)
    assert wl.monitor.quality(endpoint) == []

    # And when all captures are there, the coverage is the labelled share of all predictions
    endpoint.label_many((p.inference_id, n) for p, n in zip(predictions[5:10], range(5, 10), strict=True))
    found = judged(endpoint, 5)
    assert sum(q.samples for q in found) == 5
    assert found[-1].coverage_percent == pytest.approx(50)
    assert all(q.lag_seconds < 60 for q in found)


def test_a_label_that_comes_before_its_capture_waits_for_it(project: Project, name: str) -> None:
    # Given labels whose predictions nobody has seen yet, beside one that was captured
    endpoint = wl.deploy(project.good, name)
    [early] = ask(endpoint, [3])
    endpoint.label_many([(early.inference_id, 3), ("later", 4), ("never", 5)])
    [first] = judged(endpoint, 1)
    assert (first.samples, first.unmatched) == (1, 2)

    # When one of them is made after all
    endpoint.predict({"number": 4}, inference_id="later")

    # Then its label still counts, once
    [second] = judged(endpoint, 1)
    assert (second.samples, second.accuracy, second.unmatched) == (1, 1.0, 1)
    assert second.coverage_percent == pytest.approx(100)
    assert wl.monitor.quality(endpoint) == []


def test_what_was_published_is_read_back_from_cloudwatch(project: Project, name: str) -> None:
    endpoint = wl.deploy(project.good, name)
    predictions = ask(endpoint, range(10))

    assert wl.monitor.publish(endpoint, predictions) == 10
    endpoint.label_many((p.inference_id, 0) for p in predictions)  # one of ten is right
    found = judged(endpoint, 10)

    [(_, latency)] = wl.monitor.series(endpoint, wl.metrics.CLIENT_LATENCY, statistic="p50", period_seconds=3600)
    assert min(p.latency_ms for p in predictions) <= latency + 0.01
    assert latency - 0.01 <= max(p.latency_ms for p in predictions)
    [(_, samples)] = wl.monitor.series(endpoint, wl.metrics.SAMPLE_COUNT, period_seconds=3600)
    assert samples == sum(q.samples for q in found) == 10
    [(_, accuracy)] = wl.monitor.series(endpoint, wl.metrics.ACCURACY, period_seconds=3600)
    assert accuracy == pytest.approx(sum(q.accuracy for q in found) / len(found))
    assert wl.monitor.alarms(endpoint) == {}


# ------------------------------------------------------------------------------------------------ forth and back again


def test_an_alarm_rolls_a_worse_version_back_and_delete_leaves_nothing(project: Project, name: str, rig: Rig) -> None:
    promise = wl.Slo.accuracy(0.9, period_seconds=10, min_samples=5)
    first = wl.deploy(project.good, name, slos=[promise])
    assert set(wl.monitor.alarms(first)) == {f"{name}/accuracy/{first.config}"}

    # Given a worse version that takes the traffic under guard
    updating = wl.deploy(project.bad, name, slos=[promise], bake_seconds=600, wait=False)
    assert (updating.status, updating.config) == ("Updating", first.config)
    with pytest.raises(Conflict, match="it is Updating"):
        updating.rollback()
    until(lambda: updating.refresh().stage == "Baking")
    predictions = ask(updating, range(10))
    assert [p.output["label"] for p in predictions] == [(n + 1) % 10 for n in range(10)]

    # When the labels come
    updating.label_many((p.inference_id, n) for p, n in zip(predictions, range(10), strict=True))
    assert {q.model_version: q.accuracy for q in judged(updating, 10)} == {project.bad.name: 0.0}

    # Then its alarm brings the first version back by itself
    alarm = f"{name}/accuracy/{updating.wanted_config}"
    with pytest.raises(RolledBack, match=alarm) as rolled_back:
        updating.wait(timeout_seconds=60)
    assert first.config in str(rolled_back.value)
    back = wl.Endpoint.from_name(name)
    assert (back.status, back.config, back.model_version) == ("InService", first.config, project.good.name)
    assert wl.monitor.alarms(back)[alarm] == "ALARM"
    assert any(found == alarm and said.endswith("to ALARM") for _, found, said in wl.monitor.alarm_history(back))
    assert back.predict({"number": 3}).output == {"label": 3}

    # And what a rollback left behind is not gone back to
    assert back.previous_configs == ()
    with pytest.raises(NotFound, match=f"no config before {first.config}"):
        back.rollback()

    # When it is deleted, nothing is left, not even of the version that was rolled back
    back.delete()
    until(lambda: name not in wl.Endpoint.list())
    assert left_of(rig, name) == []


def left_of(rig: Rig, endpoint: str) -> list[str]:
    """Whatever of an endpoint is still there, but for what it captured."""
    sagemaker = rig.client("sagemaker")
    stem = endpoint[:30]
    listed = {
        "Endpoints": sagemaker.list_endpoints(NameContains=stem)["Endpoints"],
        "EndpointConfigs": sagemaker.list_endpoint_configs(NameContains=stem)["EndpointConfigs"],
        "Models": sagemaker.list_models(NameContains=stem)["Models"],
    }
    names = [item[f"{kind[:-1]}Name"] for kind, items in listed.items() for item in items]
    alarms = rig.client("cloudwatch").describe_alarms(AlarmNamePrefix=f"{endpoint}/")["MetricAlarms"]
    return names + [alarm["AlarmName"] for alarm in alarms]


def test_a_shadow_sees_the_traffic_and_changes_no_answer(project: Project, name: str, rig: Rig) -> None:
    with pytest.raises(InvalidInput, match=f"no endpoint '{name}' to shadow"):
        wl.deploy(project.bad, name, shadow_percent=100)
    first = wl.deploy(project.good, name)
    with pytest.raises(InvalidInput, match="a shadow's answers are dropped"):
        wl.deploy(project.bad, name, shadow_percent=100, slos=[wl.Slo.accuracy(0.9)])

    # When a worse version runs in the shadow of a good one
    shadowed = wl.deploy(project.bad, name, shadow_percent=100)
    predictions = ask(shadowed, range(10))

    # Then the good one answers, and is the one that labels judge
    assert [p.output["label"] for p in predictions] == list(range(10))
    assert shadowed.model_version == project.good.name
    shadowed.label_many((p.inference_id, number) for number, p in enumerate(predictions))
    found = judged(shadowed, 10)
    assert sum(q.samples * q.accuracy for q in found) == pytest.approx(10)
    assert {q.model_version for q in found} == {project.good.name}
    [shown] = rig.client("sagemaker").describe_endpoint(EndpointName=name)["ShadowProductionVariants"]
    assert (shown["VariantName"], shown["CurrentInstanceCount"]) == ("shadow", 1)

    # And a rollback takes the shadow away
    back = shadowed.rollback()
    assert isinstance(back, wl.Endpoint)
    assert back.config == first.config


def test_a_rolling_deploy_replaces_the_version(project: Project, name: str) -> None:
    wl.deploy(project.good, name)

    rolled = wl.deploy(project.bad, name, rolling_percent=50)

    assert (rolled.status, rolled.model_version) == ("InService", project.bad.name)


def test_a_version_is_served_without_servers(project: Project, name: str, rig: Rig) -> None:
    with pytest.raises(InvalidInput, match="archive=True"):
        wl.deploy(project.good, name, serverless_memory_mb=1024)
    archived = wl.register(project.run, rig.unique("archived"), approve=True, archive=True)

    endpoint = wl.deploy(archived, name, serverless_memory_mb=1024, serverless_concurrency=2)

    assert endpoint.predict({"number": 4}).output == {"label": 4}
    [variant] = rig.client("sagemaker").describe_endpoint(EndpointName=name)["ProductionVariants"]
    assert variant["CurrentServerlessConfig"] == {"MemorySizeInMB": 1024, "MaxConcurrency": 2}


def test_a_version_answers_from_a_queue(project: Project, name: str, rig: Rig, foundation: Contract) -> None:
    folder = f"s3://{foundation.bucket}/async/{name}"
    with pytest.raises(InvalidInput, match="error_rate"):
        wl.deploy(project.good, name, async_output=folder, slos=[wl.Slo.error_rate(0.01)])
    wl.deploy(project.good, name, async_output=folder)
    s3 = rig.client("s3")
    s3.put_object(Bucket=foundation.bucket, Key=f"async/{name}/in.json", Body=b'{"number": 4}')

    accepted = rig.client("sagemaker-runtime").invoke_endpoint_async(
        EndpointName=name, InputLocation=f"{folder}/in.json", ContentType="application/json"
    )

    key = accepted["OutputLocation"].removeprefix(f"s3://{foundation.bucket}/")
    s3.get_waiter("object_exists").wait(Bucket=foundation.bucket, Key=key, WaiterConfig={"Delay": 1})
    assert json.loads(s3.get_object(Bucket=foundation.bucket, Key=key)["Body"].read()) == {"label": 4}
    assert accepted["FailureLocation"].startswith(f"{folder}/failures/")


def test_a_rollback_by_hand_goes_back_step_by_step_and_never_twice_to_one_config(project: Project, name: str) -> None:
    configs = [wl.deploy(version, name).config for version in (project.good, project.bad, project.good)]
    endpoint = wl.Endpoint.from_name(name)
    assert (endpoint.config, endpoint.previous_configs) == (configs[2], (configs[1], configs[0]))

    plan = endpoint.rollback(dry_run=True)
    assert f"from {configs[2]} to {configs[1]}" in str(plan)
    assert wl.Endpoint.from_name(name).config == configs[2]

    # When it is rolled back twice, first by a noun that is out of date by the second time
    once = endpoint.rollback()
    twice = endpoint.rollback()

    assert isinstance(once, wl.Endpoint)
    assert isinstance(twice, wl.Endpoint)
    assert (once.config, once.model_version, once.previous_configs) == (configs[1], project.bad.name, (configs[0],))
    assert (twice.config, twice.model_version, twice.previous_configs) == (configs[0], project.good.name, ())
    with pytest.raises(NotFound, match="no config before"):
        twice.rollback()

    # And a new deploy remembers only what was in service before it
    assert wl.deploy(project.bad, name).previous_configs == (configs[0],)


def test_another_process_finds_each_noun_by_name(project: Project, name: str) -> None:
    endpoint = wl.deploy(project.good, name)
    code = (
        "import sys, windlass as wl\n"
        "run, version, endpoint = sys.argv[1:]\n"
        "print(wl.Run.from_name(run).metrics['validation:accuracy'])\n"
        "print(wl.ModelVersion.from_name(version).approval)\n"
        "found = wl.Endpoint.from_name(endpoint)\n"
        "print(found.config, found.predict({'number': 7}).output['label'])\n"
    )

    said = subprocess.run(
        [sys.executable, "-c", code, project.run.name, project.good.name, name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert said.split() == ["1.0", "Approved", endpoint.config, "7"]


@pytest.mark.parametrize("there", [False, True], ids=["the first", "an update"])
def test_of_two_deploys_at_once_one_is_told_of_the_conflict(project: Project, name: str, there: bool, rig: Rig) -> None:
    if there:
        wl.deploy(project.good, name)
    outcomes: list[Any] = []
    together = threading.Barrier(2)

    def deploy() -> None:
        together.wait()
        try:
            outcomes.append(wl.deploy(project.bad, name, wait=False))
        except Conflict as error:
            outcomes.append(error)

    threads = [threading.Thread(target=deploy) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    [started] = [outcome for outcome in outcomes if isinstance(outcome, wl.Endpoint)]
    [refused] = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
    live = started.wait(timeout_seconds=60)
    assert (live.config, live.model_version) == (started.wanted_config, project.bad.name)
    made = [left for left in left_of(rig, name) if left not in (name, live.config)]
    made = [left for left in made if left not in live.previous_configs]
    assert all(left in str(refused) for left in made), "what was half made is named"


# ----------------------------------------------------------------------------------------------------- the command line


class Shell:
    """The windlass command, each time in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = ""

    def __call__(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "windlass.cli", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.said = done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    @property
    def hint(self) -> str:
        """The last line: what one would do next."""
        return self.said.splitlines()[-1].removeprefix("next: windlass ")


def test_each_verb_from_the_command_line(project: Project, name: str, rig: Rig) -> None:
    windlass, model = Shell(project.folder), rig.unique("shell")

    # Train: the log on stderr, the run on stdout, the next command at the end
    run = windlass.json("train", "source/train.py", "-d", "train=data", "-p", "epochs=2")
    assert run["metrics"]["validation:accuracy"] == 1.0
    assert "epoch=2 " in windlass.said
    assert windlass.hint == f"evaluate {run['name']} --data test=PATH"

    # Evaluate, register, approve
    scores = windlass.json("evaluate", run["name"], "-d", "test=data")
    assert windlass.hint == f"register {run['name']} --evaluation {scores['name']}"
    version = windlass.json("register", run["name"], "--model", model, "--evaluation", scores["name"])
    assert (version["approval"], windlass.hint) == ("PendingManualApproval", f"approve {model}/1")
    assert windlass.json("approve", f"{model}/1", "--why", "its evaluation")["approval"] == "Approved"

    # Deploy, predict, label, judge
    first = windlass.json("deploy", model, "--endpoint", name, "--slo", "accuracy=0.9", "--slo-period", "10")
    assert (first["status"], first["model_version"]) == ("InService", f"{model}/1")
    answer = json.loads(windlass("predict", name, "--json-body", '{"number": 4}'))
    assert answer["output"] == {"label": 4}
    assert windlass.hint == f"label {name} {answer['inference_id']} TRUTH"
    windlass("label", name, answer["inference_id"], "4")
    [quality] = until(lambda: windlass.json("quality", name))
    assert (quality["model_version"], quality["accuracy"], quality["samples"]) == (f"{model}/1", 1.0, 1)

    # Update, roll back, delete
    second = windlass.json("deploy", project.bad.name, "--endpoint", name, "--bake", "0")
    assert second["previous_configs"] == [first["config"]]
    assert windlass.json("rollback", name)["config"] == first["config"]
    windlass("delete", name, "--yes")
    until(lambda: name not in wl.Endpoint.list())
    assert left_of(rig, name) == []


def test_what_there_is_from_the_command_line(
    project: Project, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    endpoint = wl.deploy(project.good, name, slos=[wl.Slo.accuracy(0.9)])

    def windlass(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(arguments) == code
        return capsys.readouterr().out if code == 0 else capsys.readouterr().err

    # Plans send nothing
    assert "sagemaker:CreateTrainingJob" in windlass("plan", "train", "source/train.py", "-d", "train=data")
    assert "evaluate.py" in windlass("plan", "evaluate", project.run.name, "-d", "test=data")
    assert "CreateModelPackage" in windlass("register", project.run.name, "--model", project.good.model, "--dry-run")
    assert f"rolls back to {endpoint.config}" in windlass("plan", "deploy", project.bad.name, "--endpoint", name)
    assert wl.ModelVersion.list(project.good.model) == [project.bad.name, project.good.name]

    # Runs
    assert project.run.name in windlass("runs", "list", "--limit", "100")
    assert json.loads(windlass("runs", "show", project.run.name, "--json"))["status"] == "Completed"
    assert windlass("runs", "log", project.run.name).splitlines()[0].startswith("epoch=1 ")
    assert windlass("runs", "log", project.run.name, "--follow").count("epoch=") == 3
    assert "training job is in status Completed" in windlass("runs", "stop", project.run.name, code=1)

    # Versions and endpoints
    found = json.loads(windlass("versions", project.good.model, "--json"))
    assert [version["approval"] for version in found] == ["Approved", "Approved"]
    assert json.loads(windlass("reject", project.bad.name, "--why", "it is wrong", "--json"))["approval"] == "Rejected"
    assert json.loads(windlass("approve", project.bad.name, "--json"))["approval"] == "Approved"
    [seen] = json.loads(windlass("status", name, "--json"))
    assert (seen["status"], seen["version"], set(seen["alarms"])) == ("InService", project.good.name, {"accuracy"})
    assert name in windlass("status")
    with monkeypatch.context() as deleted:  # one that went since it was listed
        deleted.setattr(wl.Endpoint, "list", lambda: ["gone", name])
        assert name in windlass("status")
    assert "'gone'" in windlass("status", "gone", code=1)
    assert "no config before" in windlass("rollback", name, code=1)
