"""Jobs: train and evaluate. Each gives a :class:`Run`.

run = wl.train("train.py", data={"train": "data/train"}, hyperparameters={"epochs": 3})
run.metrics["validation:accuracy"]
scores = wl.evaluate(run, data={"test": "data/test"})
scores.evaluation["multiclass_classification_metrics"]["accuracy"]["value"]

Run.from_name("train-20260102-030405-678")     # in another process
"""

from __future__ import annotations

import builtins
import functools
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from windlass import artifact, aws, plans
from windlass.errors import InvalidInput, JobFailed, NotFound
from windlass.foundation import Contract
from windlass.plans import Plan
from windlass.specs import TrainSpec

Data = str | Path | Mapping[str, str | Path] | None
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_ENDED = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True)
class Run:
    """One job as it was when it was looked at; :meth:`refresh` looks again.

    Attributes:
        status: ``InProgress``, ``Completed``, ``Failed``, ``Stopping`` or ``Stopped``.
        stage: SageMaker's SecondaryStatus: ``Starting``, ``Downloading``, ``Training``, ``Uploading``...
        metrics: last value of each metric the script printed.
        model_uri: ``model.tar.gz`` on S3, once Completed.
        reason: why it failed: the script's own exception.
    """

    name: str
    arn: str
    status: str
    stage: str = ""
    kind: str = "train"
    metrics: Mapping[str, float] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    model_uri: str = ""
    reason: str = ""
    image: str = ""
    tags: Mapping[str, str] = field(default_factory=dict, repr=False)
    metric_definitions: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_name(cls, name: str) -> Run:
        """Any training job of the account.

        Raises:
            NotFound: there is none of this name.
        """
        sagemaker, where = aws.client("sagemaker"), f"Looking up run '{name}'"
        answer = aws.call(where, sagemaker.describe_training_job, TrainingJobName=name)
        tags = aws.pages(where, "sagemaker", "list_tags", "Tags", ResourceArn=answer["TrainingJobArn"])
        return cls._of(answer, {tag["Key"].removeprefix("windlass:"): tag["Value"] for tag in tags})

    @classmethod
    def _of(cls, answer: Mapping[str, Any], tags: Mapping[str, str]) -> Run:
        return cls(
            name=answer["TrainingJobName"],
            arn=answer["TrainingJobArn"],
            status=answer["TrainingJobStatus"],
            stage=answer.get("SecondaryStatus", ""),
            kind=tags.get("kind", "train"),
            metrics={item["MetricName"]: item["Value"] for item in answer.get("FinalMetricDataList", [])},
            hyperparameters={key: _decoded(value) for key, value in answer.get("HyperParameters", {}).items()},
            model_uri=answer.get("ModelArtifacts", {}).get("S3ModelArtifacts", ""),
            reason=answer.get("FailureReason", ""),
            image=answer.get("AlgorithmSpecification", {}).get("TrainingImage", ""),
            tags=tags,
            metric_definitions={
                item["Name"]: item["Regex"]
                for item in answer.get("AlgorithmSpecification", {}).get("MetricDefinitions", [])
            },
        )

    @classmethod
    def list(cls, *, limit: int = 20) -> Sequence[str]:
        """Names of the newest runs."""
        found = aws.call(
            "Listing runs",
            aws.client("sagemaker").list_training_jobs,
            SortBy="CreationTime",
            SortOrder="Descending",
            MaxResults=limit,
        )
        return [item["TrainingJobName"] for item in found["TrainingJobSummaries"]]

    def refresh(self) -> Run:
        return Run.from_name(self.name)

    @property
    def ended(self) -> bool:
        return self.status in _ENDED

    @property
    def why_no_model(self) -> str:
        """What to do about a run that has none."""
        return f"See why: windlass runs log {self.name}" if self.ended else "Wait for it: run.wait()."

    @property
    def source_uri(self) -> str:
        """The training code on S3."""
        return str(self.hyperparameters.get("sagemaker_submit_directory", ""))

    @functools.cached_property
    def evaluation(self) -> Mapping[str, Any]:
        """``evaluation.json`` that an evaluation wrote, in SageMaker's model quality format.

        Raises:
            NotFound: the job wrote none (it is no evaluation, or has not ended).
        """
        uri = f"{self.model_uri.rsplit('/', 1)[0]}/output.tar.gz"
        where = f"Reading the evaluation of '{self.name}'"
        hint = "evaluate.py writes evaluation.json to SM_OUTPUT_DATA_DIR."
        if not self.model_uri or not aws.exists(uri):
            raise NotFound("it has no output", where=where, hint=hint)
        with tempfile.TemporaryDirectory() as folder:
            archive = aws.download(uri, Path(folder) / "output.tar.gz")
            artifact.extract(archive, Path(folder) / "output")
            found = sorted((Path(folder) / "output").rglob("evaluation.json"))
            if not found:
                raise NotFound("evaluation.json is not in its output", where=where, hint=hint)
            body: Mapping[str, Any] = json.loads(found[0].read_bytes())
            return body

    def log_lines(self, start: Mapping[str, str] | None = None) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Each line of the log that is there now, with the position after it, to go on from."""
        logs, position = aws.client("logs"), dict(start or {})
        where = f"Reading the log of '{self.name}'"
        try:
            streams = list(
                aws.pages(
                    where,
                    "logs",
                    "describe_log_streams",
                    "logStreams",
                    logGroupName=LOG_GROUP,
                    logStreamNamePrefix=f"{self.name}/",
                )
            )
        except NotFound:
            return  # the group appears with the first line that any job writes
        for stream in (item["logStreamName"] for item in streams):
            while True:
                token = {"nextToken": position[stream]} if stream in position else {}
                page = aws.call(
                    where,
                    logs.get_log_events,
                    logGroupName=LOG_GROUP,
                    logStreamName=stream,
                    startFromHead=True,
                    **token,
                )
                after = page["nextForwardToken"]
                last = after == position.get(stream) or not page["events"]
                position[stream] = after
                for event in page["events"]:
                    yield event["message"], position
                if last:
                    break

    def series(self) -> Mapping[str, Sequence[float]]:
        """Each metric's values in the order they were logged: the learning curves."""
        found: dict[str, builtins.list[float]] = {name: [] for name in self.metric_definitions}
        for line, _ in self.log_lines():
            for name, regex in self.metric_definitions.items():
                found[name] += [float(value) for value in re.findall(regex, line)]
        return found

    def wait(
        self,
        *,
        on_log: Callable[[str], None] | None = None,
        timeout_seconds: float = 432_000,
        clock: aws.Clock = aws.CLOCK,
    ) -> Run:
        """Wait for the end, showing the log as it is written.

        Raises:
            JobFailed: it Failed or was Stopped; the message holds the script's own traceback.
            WaitTimeout: it goes on.
        """
        position: Mapping[str, str] = {}

        def look() -> Run:
            nonlocal position
            run = self.refresh()  # before the log, so that nothing written by an ended job is missed
            if on_log:
                for line, after in run.log_lines(position):
                    position = after
                    on_log(line)
            return run

        where = f"{self.kind.capitalize()} '{self.name}'"
        hint = f"Look again: windlass runs show {self.name}"
        run = aws.poll(where, look, lambda r: r.ended, timeout_seconds=timeout_seconds, clock=clock, hint=hint)
        if run.status == "Failed":
            hint = f"The whole log: windlass runs log {run.name}"
            if "exit code: 137" in run.reason:
                hint = f"It was killed, most often for lack of memory: take a larger instance_type=. {hint}"
            raise JobFailed(f"it failed\n{run.reason}\n", where=where, hint=hint, reason=run.reason)
        if run.status == "Stopped":
            raise JobFailed(
                "it was stopped", where=where, hint="What it saved is at " + run.model_uri, reason=run.stage
            )
        return run

    def stop(self) -> Run:
        """Ask it to stop: the script gets SIGTERM, and 120 s to save."""
        aws.call(f"Stopping '{self.name}'", aws.client("sagemaker").stop_training_job, TrainingJobName=self.name)
        return self.refresh()


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value  # a job made by another client, which did not encode


@overload
def train(
    script: str | Path,
    data: Data = ...,
    *,
    dry_run: Literal[True],
    **options: Any,
) -> Plan: ...
@overload
def train(
    script: str | Path,
    data: Data = ...,
    *,
    source: str | Path | None = ...,
    name: str | None = ...,
    project: str = ...,
    wait: bool = ...,
    on_log: Callable[[str], None] | None = ...,
    dry_run: Literal[False] = ...,
    clock: aws.Clock = ...,
    **options: Any,
) -> Run: ...
def train(
    script: str | Path,
    data: Data = None,
    *,
    source: str | Path | None = None,
    name: str | None = None,
    project: str = "windlass",
    wait: bool = True,
    on_log: Callable[[str], None] | None = None,
    dry_run: bool = False,
    clock: aws.Clock = aws.CLOCK,
    **options: Any,
) -> Run | Plan:
    """Run a training script as a SageMaker training job.

        run = wl.train("train.py", data={"train": "data/train"}, hyperparameters={"epochs": 3}, instance_type="ml.m5.xlarge")

    Args:
        script: the entry point. Its folder goes along, or ``source`` does, without the folders in it that are ``data``.
        data: a path or S3 URI (channel ``training``), or channel -> path or S3 URI. Local data is uploaded once.
        source: folder of the code; ``script`` is then relative to it.
        name: base of the job's name; a time stamp follows.
        wait: until it ends; ``on_log`` gets each line of its log.
        dry_run: return the :class:`Plan` and send nothing.
        options: the fields of :class:`windlass.TrainSpec`: instance_type, hyperparameters, metrics...

    Raises:
        InvalidInput: a wrong argument; nothing was sent.
        JobFailed: the script raised; the message holds its traceback.
    """
    where = "Training"
    folder, entry = _source_folder(script, source, where)
    spec = TrainSpec.check(where, script=entry, **options)
    contract = Contract.load(project)
    channels = _channels(data, contract.bucket, where)
    # What goes to the job as data is no code, and must not end up in the bundle that is served.
    given = [c.local for c in channels if c.local and c.local.is_dir()]
    apart = [path for path in given if path.resolve() not in (folder / entry).resolve().parents]
    with ExitStack() as stack:
        archive = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "source.tar.gz"
        digest = artifact.pack(folder, archive, without=apart)
        code = plans.Source(f"s3://{contract.bucket}/source/{digest}/source.tar.gz", archive)
        plan = plans.train(
            spec,
            name=plans.stamped(name or Path(entry).stem, clock.now()),
            source=code,
            channels=channels,
            foundation=contract,
            region=aws.region(),
            git_commit=git_commit(folder),
        )
        return plan if dry_run else _start(plan, wait, on_log, clock)


@overload
def evaluate(run: Run, data: Data = ..., *, dry_run: Literal[True], **options: Any) -> Plan: ...
@overload
def evaluate(
    run: Run,
    data: Data = ...,
    *,
    script: str = ...,
    project: str = ...,
    wait: bool = ...,
    on_log: Callable[[str], None] | None = ...,
    dry_run: Literal[False] = ...,
    clock: aws.Clock = ...,
    **options: Any,
) -> Run: ...
def evaluate(
    run: Run,
    data: Data = None,
    *,
    script: str = "evaluate.py",
    project: str = "windlass",
    wait: bool = True,
    on_log: Callable[[str], None] | None = None,
    dry_run: bool = False,
    clock: aws.Clock = aws.CLOCK,
    **options: Any,
) -> Run | Plan:
    """Score a trained model on data it has not seen, with the ``evaluate.py`` beside its training script.

        scores = wl.evaluate(run, data={"test": "data/test"})
        scores.metrics["test:accuracy"]

    The script finds the model in channel ``model`` and the data in the channels given, and writes ``evaluation.json``
    (SageMaker's model quality format) to ``SM_OUTPUT_DATA_DIR``. It comes from the run's own source, as trained.
    """
    where = f"Evaluating '{run.name}'"
    if not run.model_uri:
        raise InvalidInput(f"the run is {run.status} and has no model", where=where, hint=run.why_no_model)
    if not run.source_uri:
        raise InvalidInput(
            "the run was not made in script mode, so it has no source to take evaluate.py from", where=where
        )
    options.setdefault("metrics", ("test:accuracy", "test:precision", "test:recall", "test:f1"))
    spec = TrainSpec.check(where, script=script, **options)
    contract = Contract.load(project)
    channels = _channels(data, contract.bucket, where, default="test")
    plan = plans.train(
        spec,
        name=plans.stamped(f"evaluate-{run.name}"[:40], clock.now()),
        source=plans.Source(run.source_uri),
        channels=[plans.Channel("model", run.model_uri), *channels],
        foundation=contract,
        region=aws.region(),
        kind="evaluate",
        git_commit=run.tags.get("git-commit", ""),
    )
    return plan if dry_run else _start(plan, wait, on_log, clock)


def _start(plan: Plan, wait: bool, on_log: Callable[[str], None] | None, clock: aws.Clock) -> Run:
    aws.execute(plan)
    run = Run.from_name(plan.name)
    return run.wait(on_log=on_log, clock=clock) if wait else run


def _source_folder(script: str | Path, source: str | Path | None, where: str) -> tuple[Path, str]:
    path = Path(script)
    folder = Path(source) if source is not None else path.parent
    if source is not None and not folder.is_dir():
        hint = "source= is the folder that holds the script."
        raise InvalidInput(f"source folder {folder} does not exist", where=where, hint=hint)
    entry = path.as_posix() if source is not None else path.name
    if not (folder / entry).is_file():
        near = sorted(p.name for p in folder.glob("*.py")) if folder.is_dir() else []
        hint = f"In {folder} there is: {', '.join(near)}." if near else ""
        raise InvalidInput(f"script {folder / entry} does not exist", where=where, hint=hint)
    return folder, entry


def _channels(data: Data, bucket: str, where: str, default: str = "training") -> list[plans.Channel]:
    if data is None:
        return []
    named = data if isinstance(data, Mapping) else {default: data}
    channels = []
    for name, place in named.items():
        if not re.fullmatch(r"[A-Za-z0-9.\-_]{1,255}", name):
            raise InvalidInput(f"channel name {name!r} may hold letters, digits, '.', '-' and '_' only", where=where)
        if str(place).startswith("s3://"):
            aws.split(str(place), where)
            channels.append(plans.Channel(name, str(place)))
            continue
        path = Path(place)
        if not path.exists():
            hint = "Give a local path or an s3:// URI."
            raise InvalidInput(f"data of channel '{name}', {path}, does not exist", where=where, hint=hint)
        digest = artifact.digest_folder(path)
        # The slash ends the prefix, so that nothing beside the folder matches it; a file keeps its name.
        uri = f"s3://{bucket}/data/{digest}/{'' if path.is_dir() else path.name}"
        channels.append(plans.Channel(name, uri, path, digest))
    return channels


def git_commit(folder: Path) -> str:
    """The commit that the source is at; ``-dirty`` when it has changed since. Empty outside a checkout."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""  # no git, or no checkout: lineage goes without it
    return commit.stdout.strip()
