"""From a training script to a watched endpoint, and back when it goes bad: the whole journey on scanned digits.

    windlass local run -- python examples/digits/demo.py              # a fresh local cloud, thrown away afterwards
    AWS_ENDPOINT_URL=http://127.0.0.1:5000 python examples/digits/demo.py   # one that you started by hand

Nothing here knows where it runs: the SDK speaks to whatever boto3 is configured for. Each number in the table at the end is
read back from a service, with the operation that gave it beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
from report import Epoch, Event, Journey, Point, Row, Version, render
from rich import box
from rich.console import Console
from rich.table import Table

import windlass as wl
from windlass import foundation

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE.parents[1] / "templates" / "image-classifier"
REPORT = Path(os.environ.get("WINDLASS_REPORT", "report.html"))
MODEL, EPOCHS = "digits", 5
PROMISE = wl.Slo.accuracy(0.90, period_seconds=10, min_samples=100)
LATENCY = wl.Slo.p99_latency(ms=1000)  # generous: a busy laptop is not what this demo is about

console = Console()


@contextmanager
def step(text: str) -> Iterator[None]:
    console.print(f"[bold cyan]▸[/] {text}")
    start = time.monotonic()
    yield
    console.print(f"  [dim]{time.monotonic() - start:.1f} s[/]")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="digits-") as scratch:
        data, shuffled = Path(scratch) / "data", Path(scratch) / "shuffled"
        prepare = [sys.executable, str(TEMPLATE / "prepare.py"), "--out"]
        subprocess.run([*prepare, str(data)], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*prepare, str(shuffled), "--shuffle-labels"], check=True, stdout=subprocess.DEVNULL)

        with step("Deploy the foundation: bucket, key, role, topic, registry group, contract"):
            contract = foundation.deploy(parameters={"ModelPackageGroupName": MODEL})
            console.print(f"  {contract.bucket}")
        with step("Train, evaluate and register version 1"):
            good, first = make_version(data, data)
        with step(f"Deploy {first.name} and watch it"):
            endpoint = wl.deploy(first, MODEL, slos=[PROMISE, LATENCY])
            deployed_first = time.time()
            observe(endpoint, data)
        with step("Train, evaluate and register version 2, on labels that someone shuffled"):
            bad, second = make_version(shuffled, data)
        with step(f"Deploy {second.name}; its accuracy alarm guards the bake"):
            updating = wl.deploy(second, MODEL, slos=[PROMISE, LATENCY], bake_seconds=600, wait=False)
            deployed_second = serving(updating, second)
            observe(updating, data)
            try:
                updating.wait(timeout_seconds=90)
            except wl.errors.RolledBack as rolled_back:
                console.print(f"  [yellow]{rolled_back}[/]", soft_wrap=True)
            else:
                sys.exit("Version 2 was not rolled back")
        with step(f"Back on {first.name}: accuracy recovers"):
            endpoint = wl.Endpoint.from_name(MODEL)
            observe(endpoint, data)

    journey = read_back(good, bad, first, second, deployed_first, deployed_second)
    table = Table("what", "value", "read with", title="Everything above, read back from the services", box=box.SIMPLE)
    table.columns[1].overflow = "fold"  # names are there to be copied
    for row in journey.rows:
        table.add_row(row.what, row.value, row.source)
    console.print(table)
    REPORT.write_text(render(journey), encoding="utf-8")
    console.print(f"The same as a page: [bold]{REPORT.resolve()}[/]", soft_wrap=True)


def make_version(train_data: Path, test_data: Path) -> tuple[wl.Run, wl.ModelVersion]:
    """Train on one folder, evaluate on the held-out part of another, package, register, approve."""
    channels = {"train": train_data / "train", "validation": train_data / "validation"}
    with wl.JobProgress("Training", EPOCHS, console) as progress:
        run = wl.train(TEMPLATE / "train.py", channels, hyperparameters={"epochs": EPOCHS}, on_log=progress.line)
    with wl.JobProgress("Evaluating", console=console) as progress:
        scores = wl.evaluate(run, {"test": test_data / "test"}, on_log=progress.line)
    version = wl.register(run, MODEL, evaluation=scores).approve("it is what the demo is about")
    console.print(f"  {version.name}: {version.approval}, artifact {version.metadata['digest'][:12]}")
    return run, version


def serving(endpoint: wl.Endpoint, version: wl.ModelVersion) -> float:
    """Wait until the new fleet takes the traffic, which the old one stands by to take back."""

    until(lambda: endpoint.refresh().stage == "Baking", f"{version.name} took no traffic")
    return time.time()


def observe(endpoint: wl.Endpoint, data: Path) -> None:
    """Send the held-out images, label them late, publish what was seen, and wait until the accuracy alarm has judged it."""
    images, labels = np.load(data / "test" / "images.npy"), np.load(data / "test" / "labels.npy")
    with wl.JobProgress(f"Sending {len(images)} images", console=console):
        predictions = [endpoint.predict({"image": image}) for image in images]
    wl.monitor.publish(endpoint, predictions)
    endpoint.label_many(zip((p.inference_id for p in predictions), labels, strict=True))

    judged: list[wl.monitor.Quality] = []

    def judge() -> bool:
        # Captured traffic reaches S3 with a delay: one point on many labels says more than several on a few.
        judged.extend(wl.monitor.quality(endpoint, min_samples=len(images) * 9 // 10))
        return bool(judged)

    until(judge, "the predictions were not captured")
    for quality in judged:
        console.print(
            f"  {quality.model_version}: accuracy {quality.accuracy:.3f} on {quality.samples} labelled images"
        )
    config = endpoint.wanted_config or endpoint.config

    def alarm() -> str:
        states = wl.monitor.alarms(endpoint, config)
        return next(state for name, state in states.items() if "/accuracy/" in name)

    until(lambda: alarm() != "INSUFFICIENT_DATA", "the alarm did not judge")
    console.print(f"  accuracy alarm: {alarm()}")


def until(condition: Callable[[], bool], otherwise: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"After {seconds:g} s {otherwise}")
        time.sleep(0.3)


# ------------------------------------------------------------------------------------------------- reading it all back


def read_back(
    good: wl.Run,
    bad: wl.Run,
    first: wl.ModelVersion,
    second: wl.ModelVersion,
    deployed_first: float,
    deployed_second: float,
) -> Journey:
    endpoint = wl.Endpoint.from_name(MODEL)
    stack = foundation.status()
    series, metrics = wl.monitor.series, wl.metrics

    def read(metric: metrics.Metric, version: wl.ModelVersion, statistic: str = "") -> Sequence[tuple[float, float]]:
        return series(endpoint, metric, statistic=statistic, version=version.name, period_seconds=1)

    def whole(metric: metrics.Metric, statistic: str) -> float:
        """Over all of the run, as one datapoint (two, when an hour ends in between: the later one)."""
        return series(endpoint, metric, statistic=statistic, period_seconds=3600)[-1][1]

    accuracy = {v.name: read(metrics.ACCURACY, v) for v in (first, second)}
    p50, p99 = (read(metrics.CLIENT_LATENCY, first, statistic) for statistic in ("p50", "p99"))
    history = wl.monitor.alarm_history(endpoint)
    alarm_time, alarm_name = next((t, n) for t, n, said in history if "/accuracy/" in n and said.endswith("to ALARM"))

    assert endpoint.model_version == first.name, f"the endpoint serves {endpoint.model_version}"
    rows = [
        Row("foundation", f"{stack.state}, {len(stack.resources)} resources", "DescribeStackResources"),
        *(
            Row(
                f"training of {v.name}",
                f"{r.status}, validation accuracy {r.metrics['validation:accuracy']:.3f}",
                "DescribeTrainingJob",
            )
            for r, v in ((wl.Run.from_name(good.name), first), (wl.Run.from_name(bad.name), second))
        ),
    ]
    for version in (first, second):
        found = wl.ModelVersion.from_name(version.name)
        scores = _scores(found)
        rows += [
            Row(f"{version.name} held-out {name.replace('_', ', ')}", f"{scores[name]:.4f}", "DescribeModelPackage, S3")
            for name in ("accuracy", "precision_macro", "recall_macro", "f1_macro")
        ]
        rows.append(Row(f"{version.name} approval", found.approval, "DescribeModelPackage"))
    rows += [
        Row("latency as callers saw it, p50", f"{whole(metrics.CLIENT_LATENCY, 'p50'):.1f} ms", "GetMetricData"),
        Row("latency as callers saw it, p99", f"{whole(metrics.CLIENT_LATENCY, 'p99'):.1f} ms", "GetMetricData"),
        Row(f"accuracy of {first.name} in service", f"{accuracy[first.name][0][1]:.4f}", "GetMetricData"),
        Row(f"accuracy of {second.name} in service", f"{accuracy[second.name][0][1]:.4f}", "GetMetricData"),
        Row(f"accuracy of {first.name} after the rollback", f"{accuracy[first.name][-1][1]:.4f}", "GetMetricData"),
        Row("alarm that fired", alarm_name, "DescribeAlarmHistory"),
        Row("endpoint", f"{endpoint.status} on {endpoint.config}", "DescribeEndpoint"),
        Row("serves", endpoint.model_version, "ListTags of the config"),
        Row("why it went back", endpoint.reason, "DescribeEndpoint"),
    ]
    return Journey(
        title="Digits: trained, deployed, gone bad, rolled back",
        summary="1,797 scanned digits; two model versions; one endpoint with a promise about its accuracy.",
        versions=[_version(good, first, "true labels"), _version(bad, second, "shuffled labels")],
        accuracy=[Point(*point) for point in sorted([*accuracy[first.name], *accuracy[second.name]])],
        p50_latency=[Point(*point) for point in sorted(p50)],
        p99_latency=[Point(*point) for point in sorted(p99)],
        events=[
            Event(deployed_first, "deploy", f"{first.name} in service"),
            Event(deployed_second, "deploy", f"{second.name} takes the traffic"),
            Event(alarm_time, "alarm", "accuracy below the promise"),
            Event(_rolled_back_at(), "rollback", f"back on {first.name}"),
        ],
        rows=rows,
        promised_accuracy=PROMISE.bound,
        promised_p99_latency=LATENCY.bound,
    )


def _scores(version: wl.ModelVersion) -> dict[str, float]:
    found = version.evaluation["multiclass_classification_metrics"]
    return {name: entry["value"] for name, entry in found.items() if "value" in entry}


def _version(run: wl.Run, version: wl.ModelVersion, note: str) -> Version:
    curve = run.series()
    return Version(
        name=version.name,
        note=f"{len(curve['train:loss'])} epochs on {note}",
        curve=[
            Epoch(number, loss, accuracy)
            for number, (loss, accuracy) in enumerate(
                zip(curve["train:loss"], curve["validation:accuracy"], strict=True), 1
            )
        ],
        metrics=_scores(version),
        confusion=version.evaluation["multiclass_classification_metrics"]["confusion_matrix"],
    )


def _rolled_back_at() -> float:
    """When the endpoint last changed: it went back into service then."""
    changed = boto3.client("sagemaker").describe_endpoint(EndpointName=MODEL)["LastModifiedTime"]
    return float(changed.timestamp())


if __name__ == "__main__":
    main()
