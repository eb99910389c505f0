"""Hyperparameter tuning: CreateHyperParameterTuningJob runs training jobs, each with hyperparameters that a search chose.

    jobs = TuningJobs(cloud)
    jobs.create("us-east-1", request)        # validates as AWS does, returns the ARN, works on in a thread
    jobs.describe("us-east-1", "sweep")      # DescribeHyperParameterTuningJob's answer

The children are training jobs like any others; the objective is read from their metrics. The search is in `search.py`.
"""

from __future__ import annotations

import copy
import itertools
import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from windlass.local import cloud as clouds
from windlass.local import roles
from windlass.local.faults import Fault, not_here
from windlass.local.jobs import training_request
from windlass.local.jobs.lifecycle import SAVED, TERMINAL, Failed, Job, Jobs, Stopped, when
from windlass.local.jobs.search import HYPERBAND_RESOURCES, Range, Search, Trial, parse_ranges, require_optuna
from windlass.local.listing import select

OBJECTIVE = "_tuning_objective_metric"
"""The hyperparameter that tells every child which metric counts."""

MOST_TRAINING_JOBS, MOST_PARALLEL_JOBS = 750, 100
"""Of one tuning job: "Resource limits" of SageMaker's guide to automatic model tuning."""

HOPELESS = 5
"""So many failures without a success end the tuning job."""

# What of a training job definition a child's CreateTrainingJob takes as it is.
PASSED_ON = (
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "VpcConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
    "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "CheckpointConfig",
    "RetryStrategy",
    "Environment",
)


@dataclass
class Definition:
    """One training job definition, with its search."""

    given: Mapping[str, Any]
    objective: Mapping[str, str]
    ranges: list[Range]
    search: Search | None = None

    @property
    def metric(self) -> str:
        return self.objective["MetricName"]

    @property
    def maximize(self) -> bool:
        return self.objective["Type"] == "Maximize"


# What counts of a training job's description once it is over.
TOLD = (
    "TrainingJobArn",
    "TrainingJobStatus",
    "CreationTime",
    "TrainingStartTime",
    "TrainingEndTime",
    "FinalMetricDataList",
    "FailureReason",
)


@dataclass(eq=False)
class Child:
    """One training job of a tuning job.

    Attributes:
        values: the hyperparameters that were chosen for it.
        trial: the search's own; None for one of an earlier server.
        over: it has ended, and the search knows.
        early: the search had it stopped.
        told: its description at its end.
    """

    name: str
    definition: Definition
    values: Mapping[str, str]
    trial: Trial | None = None
    over: bool = False
    early: bool = False
    told: Mapping[str, Any] | None = None


@dataclass(eq=False)
class TuningJob(Job):
    """Attributes: abandoned: the cloud is closing, so nobody waits for the children."""

    definitions: list[Definition] = field(default_factory=list)
    family: list[Child] = field(default_factory=list)
    not_improving: int = 0
    abandoned: bool = False

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.request["HyperParameterTuningJobConfig"]
        return config

    @property
    def parents(self) -> list[str]:
        warm = self.request.get("WarmStartConfig") or {}
        return [each["HyperParameterTuningJobName"] for each in warm.get("ParentHyperParameterTuningJobs") or []]


class TuningJobs(Jobs[TuningJob]):
    """Every tuning job of one local cloud."""

    kind = "HyperParameterTuningJob"
    noun = "hyperparameter tuning job"
    record = TuningJob
    saved = (*SAVED, "not_improving")

    def __init__(self, cloud: clouds.Cloud, **settings: Any) -> None:
        super().__init__(cloud, slots=None, **settings)  # it only waits: its children have slots
        self._trials = cloud.database.table("hyper-parameter-tuning-trials")
        self._children: dict[tuple[str, str], tuple[TuningJob, Child]] = {}
        cloud.jobs.on_metric.append(self._measured)

    def restore(self) -> None:
        super().restore()
        for record in self._trials.values():
            job = self._jobs[record["region"], record["job"]]
            job.definitions = job.definitions or _definitions(job.request)
            child = Child(record["name"], job.definitions[record["definition"]], record["values"], over=True)
            child.told = record["told"] or _told(self.cloud.jobs.describe(job.region, child.name))
            job.family.append(child)

    def delete(self, region: str, name: str) -> None:
        job = self.find(region, name)
        super().delete(region, name)
        for child in job.family:
            self._trials.delete(_key(job, child))

    def _save_child(self, job: TuningJob, child: Child) -> None:
        if self._closing:
            return
        record = {
            "region": job.region,
            "job": job.name.lower(),
            "name": child.name,
            "definition": job.definitions.index(child.definition),
            "values": child.values,
            "told": child.told,
        }
        self._trials.save(_key(job, child), record)

    # The answers

    def describe(self, region: str, name: str) -> dict[str, Any]:
        with self.change:
            job = self.find(region, name)
            summaries = self._family(job)
            best = _best(summaries)
            identical = (job.request.get("WarmStartConfig") or {}).get("WarmStartType") == "IdenticalDataAndAlgorithm"
            inherited = [one for parent in job.parents if identical for one in self._family(self.find(region, parent))]
            limit = {"TrainingJobEarlyStoppingType": "Off", **copy.deepcopy(dict(job.config))}
            return {
                "HyperParameterTuningJobName": job.name,
                "HyperParameterTuningJobArn": job.arn,
                "HyperParameterTuningJobConfig": limit,
                "TrainingJobDefinition": _shown(job.request.get("TrainingJobDefinition"), job.config),
                "TrainingJobDefinitions": [
                    _shown(each, job.config) for each in job.request.get("TrainingJobDefinitions") or []
                ]
                or None,
                "HyperParameterTuningJobStatus": job.status,
                "CreationTime": when(job.created),
                "HyperParameterTuningEndTime": when(job.ended),
                "LastModifiedTime": when(job.modified),
                **_counters(summaries),
                "BestTrainingJob": best,
                "OverallBestTrainingJob": _best([*summaries, *inherited]) if identical else None,
                "WarmStartConfig": job.request.get("WarmStartConfig"),
                "FailureReason": job.failure,
                "TuningJobCompletionDetails": {"NumberOfTrainingJobsObjectiveNotImproving": job.not_improving},
                "ConsumedResources": {"RuntimeInSeconds": math.ceil((job.ended or self.now()) - job.created)},
            }

    def summary(self, job: TuningJob) -> dict[str, Any]:
        return {
            **super().summary(job),
            "Strategy": job.config["Strategy"],
            **_counters(self._family(job)),
            "ResourceLimits": dict(job.config["ResourceLimits"]),
        }

    def list_children(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """ListTrainingJobsForHyperParameterTuningJob's answer."""
        with self.change:
            summaries = self._family(self.find(region, params["HyperParameterTuningJobName"]))
        by_value = params.get("SortBy") == "FinalObjectiveMetricValue"
        if by_value:  # those without a value are left out, as on AWS
            summaries = [{**one, params["SortBy"]: _value(one)} for one in summaries if _value(one) is not None]
        page, token = select(
            summaries, {"SortBy": "Name", **params}, name="TrainingJobName", status="TrainingJobStatus"
        )
        for one in page if by_value else ():
            del one["FinalObjectiveMetricValue"]
        return {"TrainingJobSummaries": page, "NextToken": token}

    def find(self, region: str, name: str) -> TuningJob:
        try:
            return super().find(region, name)
        except Fault:
            raise Fault("ResourceNotFound", f"Amazon SageMaker can't find a tuning job with the name {name}.") from None

    def _inherited(self, job: TuningJob) -> list[dict[str, Any]]:
        """The children of the parents that a warm start names, as far as they have not been deleted."""
        with self.change:
            parents = [one for one in self.of(job.region) if one.name in job.parents]
            return [summary for parent in parents for summary in self._family(parent)]

    def _family(self, job: TuningJob) -> list[dict[str, Any]]:
        """The children as HyperParameterTrainingJobSummary, with how they do at this moment."""
        summaries = []
        for child in job.family:
            told = child.told or self.cloud.jobs.describe(job.region, child.name)
            value = _objective(told, child.definition.metric)
            over = told["TrainingJobStatus"] in TERMINAL
            summaries.append(
                {
                    "TrainingJobDefinitionName": child.definition.given.get("DefinitionName"),
                    "TrainingJobName": child.name,
                    "TrainingJobArn": told["TrainingJobArn"],
                    "TuningJobName": job.name,
                    "CreationTime": told["CreationTime"],
                    "TrainingStartTime": told.get("TrainingStartTime"),
                    "TrainingEndTime": told.get("TrainingEndTime"),
                    "TrainingJobStatus": told["TrainingJobStatus"],
                    "TunedHyperParameters": dict(child.values),
                    "FailureReason": told.get("FailureReason"),
                    "FinalHyperParameterTuningJobObjectiveMetric": None
                    if value is None
                    else {
                        "Type": child.definition.objective["Type"],
                        "MetricName": child.definition.metric,
                        "Value": value,
                    },
                    "ObjectiveStatus": "Pending" if not over else "Failed" if value is None else "Succeeded",
                }
            )
        return summaries

    # Validation beyond the constraints of the service model

    def create(self, region: str, request: Mapping[str, Any]) -> str:
        name = request["HyperParameterTuningJobName"]
        with self.change:
            if (region, name.lower()) in self._jobs:
                raise Fault(
                    "ResourceInUse",
                    f"A hyperparameter tuning job with the name, {name}, already exists. Choose a different name.",
                )
            return super().create(region, request)

    def check(self, region: str, request: Mapping[str, Any]) -> None:
        require_optuna()
        config = request["HyperParameterTuningJobConfig"]
        if request.get("Autotune"):
            raise not_here("Autotune")
        criteria = config.get("TuningJobCompletionCriteria") or {}
        if (criteria.get("ConvergenceDetected") or {}).get("CompleteOnConvergence") == "Enabled":
            raise not_here("TuningJobCompletionCriteria.ConvergenceDetected")
        if config["Strategy"] != "Hyperband" and config.get("StrategyConfig"):
            raise Fault("ValidationException", "StrategyConfig can be given with the strategy Hyperband only.")
        if config["Strategy"] == "Hyperband":
            if config.get("TrainingJobEarlyStoppingType") == "Auto":
                raise Fault(
                    "ValidationException",
                    "TrainingJobEarlyStoppingType must be Off with the strategy Hyperband, which stops jobs by itself.",
                )
            low, high = _resources(config)
            if low > high:
                raise Fault("ValidationException", f"MinResource ({low}) cannot be greater than MaxResource ({high}).")
        definitions = _definitions(request)
        for definition in definitions:
            self._check_definition(region, definition, config["Strategy"])
        _check_limits(config, definitions)
        self._check_parents(region, request, definitions)

    def _check_definition(self, region: str, definition: Definition, strategy: str) -> None:
        given = definition.given
        if strategy == "Grid" and not all(each.values for each in definition.ranges):
            raise Fault("ValidationException", "The strategy Grid supports categorical parameter ranges only.")
        static = given.get("StaticHyperParameters") or {}
        if twice := sorted(set(static) & {each.name for each in definition.ranges}):
            raise Fault("ValidationException", f"{twice} are both static hyperparameters and have ranges.")
        roles.require_assumable(given["RoleArn"])
        algorithm = given["AlgorithmSpecification"]
        metrics = [each["Name"] for each in algorithm.get("MetricDefinitions") or []]
        if definition.metric not in metrics:
            raise Fault(
                "ValidationException",
                f"The objective metric '{definition.metric}' is not among the MetricDefinitions of the training job definition:"
                f" {metrics}.",
            )
        values = dict.fromkeys((each.name for each in definition.ranges), "1")
        training_request.check(region, _request(definition, "check", values, ""))

    def _check_parents(self, region: str, request: Mapping[str, Any], definitions: list[Definition]) -> None:
        warm = request.get("WarmStartConfig")
        if not warm:
            return
        for each in warm["ParentHyperParameterTuningJobs"]:
            parent = self.find(region, each.get("HyperParameterTuningJobName", ""))
            if parent.status not in TERMINAL:
                raise Fault(
                    "ValidationException",
                    f"Parent hyperparameter tuning job {parent.name} must be in status {', '.join(TERMINAL)} to start from it,"
                    f" not {parent.status}.",
                )
            if warm["WarmStartType"] == "IdenticalDataAndAlgorithm":
                _check_identical(parent, definitions)

    # The life of a job

    def interrupt(self, job: TuningJob) -> None:
        with self.change:
            running = [child.name for child in job.family if not child.over]
        for name in running:
            self._stop_child(job, name)

    def abandon(self, job: TuningJob) -> None:
        with self.change:
            job.abandoned = True
            self.change.notify_all()

    def reset(self) -> None:
        super().reset()
        self._children.clear()

    def work(self, job: TuningJob) -> None:
        self._begin(job)
        limits = job.config["ResourceLimits"]
        runtime = limits.get("MaxRuntimeInSeconds")
        deadline = time.monotonic() + runtime if runtime else math.inf
        # Each definition in turn, as SageMaker shares the training jobs out among several.
        turns = itertools.cycle(job.definitions)
        spent: set[int] = set()
        problem = ""
        with self.change:
            while (
                not problem and not job.stopping.is_set() and not self._satisfied(job) and time.monotonic() < deadline
            ):
                running = sum(not child.over for child in job.family)
                most = limits.get("MaxNumberOfTrainingJobs") or math.inf
                more = len(job.family) < most and len(spent) < len(job.definitions)
                if not more and not running:
                    break
                if more and running < limits["MaxParallelTrainingJobs"]:
                    definition = next(turns)
                    try:
                        if not self._launch(job, definition):
                            spent.add(id(definition))
                    except Fault as error:
                        problem = f"ClientError: A training job cannot be created: {error}"
                    continue
                self.change.wait(None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
            unfinished = [child.name for child in job.family if not child.over]
        for name in unfinished:
            self._stop_child(job, name)
        with self.change:
            self.change.wait_for(lambda: job.abandoned or all(child.over for child in job.family))
            if job.stopping.is_set():
                raise Stopped
            summaries = self._family(job)
        if problem:
            raise Failed(problem)
        if not any(one["ObjectiveStatus"] == "Succeeded" for one in summaries):
            if len(summaries) >= HOPELESS:
                raise Failed(
                    f"No training job succeeded after {len(summaries)} attempts. Please take a look at the training job"
                    " failures to get more details."
                )
            raise Failed(
                "All training jobs failed. Please take a look at the training job failures to get more details."
            )

    def _begin(self, job: TuningJob) -> None:
        """Make a search for each definition, and teach it what the parents found."""
        config = job.config
        seed = config.get("RandomSeed")
        job.definitions = _definitions(job.request)
        for number, definition in enumerate(job.definitions):
            definition.search = Search(
                definition.ranges,
                strategy=config["Strategy"],
                maximize=definition.maximize,
                seed=None if seed is None else seed + number,
                early_stopping=config.get("TrainingJobEarlyStoppingType") == "Auto",
                resources=_resources(config),
            )
            for one in self._inherited(job):
                if (value := _value(one)) is not None:
                    definition.search.learn(one["TunedHyperParameters"], value)

    def _satisfied(self, job: TuningJob) -> bool:
        """Whether nothing more needs to be tried: hopeless, or TuningJobCompletionCriteria are met."""
        over = [one for one in self._family(job) if one["ObjectiveStatus"] != "Pending"]
        if len(over) >= HOPELESS and not any(one["ObjectiveStatus"] == "Succeeded" for one in over):
            return True
        values = [value for one in over if (value := _value(one)) is not None]
        job.not_improving = _not_improving(values, maximize=job.definitions[0].maximize)
        criteria = job.config.get("TuningJobCompletionCriteria") or {}
        target = criteria.get("TargetObjectiveMetricValue")
        if target is not None and any(v >= target if job.definitions[0].maximize else v <= target for v in values):
            return True
        patience = (criteria.get("BestObjectiveNotImproving") or {}).get("MaxNumberOfTrainingJobsNotImproving")
        return bool(patience and job.not_improving >= patience)

    def _launch(self, job: TuningJob, definition: Definition) -> bool:
        """Start one more training job. False when the search has nothing left."""
        assert definition.search is not None
        trial = definition.search.ask()
        if trial is None:
            return False
        name = f"{job.name}-{len(job.family) + 1:03d}-{uuid.uuid4().hex[:8]}"
        child = Child(name, definition, trial.values, trial)
        self._children[job.region, name] = (job, child)
        arn = self.cloud.jobs.create(job.region, _request(definition, name, trial.values, job.arn))
        self.cloud.tag(arn, dict(self.cloud.tags.get(job.arn.lower(), {})))
        job.family.append(child)
        self._save_child(job, child)
        threading.Thread(target=self._watch, args=(job, child, trial), name=f"watch-{name}", daemon=True).start()
        return True

    def _watch(self, job: TuningJob, child: Child, trial: Trial) -> None:
        """Wait for a child's end, and tell the search."""
        self.cloud.jobs.wait(job.region, child.name, None)
        try:
            child.told = told = _told(self.cloud.jobs.describe(job.region, child.name))
        except Fault:
            told = {"TrainingJobStatus": "Stopped"}  # the cloud was reset meanwhile
        with self.change:
            assert child.definition.search is not None
            value = _objective(told, child.definition.metric) if told["TrainingJobStatus"] != "Failed" else None
            child.definition.search.tell(trial, value, stopped=told["TrainingJobStatus"] == "Stopped")
            child.over = True
            self._save_child(job, child)
            self._children.pop((job.region, child.name), None)
            self.change.notify_all()

    def _measured(self, region: str, name: str, metric: str, value: float) -> None:
        """A training job said a metric. Stop the job when the search has seen enough of it."""
        with self.change:
            job, child = self._children.get((region, name), (None, None))
            if job is None or child is None or child.over or child.early or metric != child.definition.metric:
                return
            assert child.definition.search is not None
            assert child.trial is not None
            child.early = child.definition.search.report(child.trial, value)
        if child.early:
            self._stop_child(job, name)

    def _stop_child(self, job: TuningJob, name: str) -> None:
        try:
            self.cloud.jobs.stop(job.region, name)
        except Fault:
            return  # it has just ended by itself


def _definitions(request: Mapping[str, Any]) -> list[Definition]:
    """What a request wants to be tuned. Raises AWS's ValidationException when it says nothing, or two things."""
    config = request["HyperParameterTuningJobConfig"]
    one, several = request.get("TrainingJobDefinition"), request.get("TrainingJobDefinitions")
    if bool(one) == bool(several):
        raise Fault(
            "ValidationException", "Exactly one of TrainingJobDefinition and TrainingJobDefinitions must be given."
        )
    definitions = []
    for given in several or [one]:
        objective = given.get("TuningObjective") or config.get("HyperParameterTuningJobObjective")
        if not objective:
            raise Fault(
                "ValidationException",
                "HyperParameterTuningJobObjective or TuningObjective must be given for a tuning job.",
            )
        if several and not given.get("DefinitionName"):
            raise Fault("ValidationException", "DefinitionName must be given for each of TrainingJobDefinitions.")
        ranges = parse_ranges(given.get("HyperParameterRanges") or config.get("ParameterRanges") or {})
        if not ranges:
            raise Fault("ValidationException", "At least one hyperparameter range must be given for a tuning job.")
        definitions.append(Definition(given, objective, ranges))
    names = [each.given.get("DefinitionName") for each in definitions]
    if len(set(names)) < len(names):
        raise Fault("ValidationException", f"The names of TrainingJobDefinitions must be unique, not {names}.")
    if len({each.objective["Type"] for each in definitions}) > 1:
        raise Fault("ValidationException", "The objectives of all TrainingJobDefinitions must have the same Type.")
    return definitions


def _check_limits(config: Mapping[str, Any], definitions: list[Definition]) -> None:
    limits = config["ResourceLimits"]
    most, parallel = limits.get("MaxNumberOfTrainingJobs"), limits["MaxParallelTrainingJobs"]
    combinations = sum(math.prod(each.size for each in definition.ranges) for definition in definitions)
    for member, asked, limit in (
        ("MaxNumberOfTrainingJobs", most or 0, MOST_TRAINING_JOBS),
        ("MaxParallelTrainingJobs", parallel, MOST_PARALLEL_JOBS),
    ):
        if asked > limit:
            raise Fault(
                "ResourceLimitExceeded",
                f"The account-level service limit of {member} for a hyperparameter tuning job is {limit}, and the request asks"
                f" for {asked}.",
            )
    if config["Strategy"] == "Grid":
        if most and most != combinations:
            raise Fault(
                "ValidationException",
                f"With the strategy Grid, MaxNumberOfTrainingJobs ({most}) must equal the number of distinct combinations of"
                f" the categorical values ({combinations:.0f}), or be left out.",
            )
        return
    if not most:
        raise Fault("ValidationException", "ResourceLimits.MaxNumberOfTrainingJobs must be given.")
    if parallel > most:
        raise Fault(
            "ValidationException",
            f"MaxParallelTrainingJobs ({parallel}) cannot be greater than MaxNumberOfTrainingJobs ({most}).",
        )
    if combinations < most:
        raise Fault(
            "ValidationException",
            "You don't have enough combinations of hyperparameter ranges. The total number of hyperparameter combinations"
            f" for the provided ranges [{combinations:.1f}] must be equal or greater than the value of MaxNumberOfJobs,"
            f" [{most}]. Provide additional ranges.",
        )


def _check_identical(parent: TuningJob, definitions: list[Definition]) -> None:
    theirs = _definitions(parent.request)
    for mine in definitions:
        for member in ("AlgorithmSpecification", "InputDataConfig"):
            if all(mine.given.get(member) != each.given.get(member) for each in theirs):
                raise Fault(
                    "ValidationException",
                    f"With WarmStartType IdenticalDataAndAlgorithm, {member} must be that of the parent tuning job"
                    f" {parent.name}. Use TransferLearning to change it.",
                )


def _request(definition: Definition, name: str, values: Mapping[str, str], tuning_job: str) -> dict[str, Any]:
    """CreateTrainingJob's request for a child."""
    given = definition.given
    request = {member: copy.deepcopy(given[member]) for member in PASSED_ON if given.get(member) is not None}
    resources = given.get("HyperParameterTuningResourceConfig")
    if resources:
        first = (resources.get("InstanceConfigs") or [resources])[0]
        shared = {k: v for k, v in resources.items() if k in ("VolumeSizeInGB", "VolumeKmsKeyId")}
        request["ResourceConfig"] = {**shared, **{k: first[k] for k in first if k.startswith(("Instance", "Volume"))}}
    elif "ResourceConfig" not in request:
        raise Fault(
            "ValidationException",
            "ResourceConfig or HyperParameterTuningResourceConfig must be given for a tuning job.",
        )
    request["TrainingJobName"] = name
    request["TuningJobArn"] = tuning_job
    request["HyperParameters"] = {
        **(given.get("StaticHyperParameters") or {}),
        **values,
        OBJECTIVE: definition.metric,
    }
    return request


def _shown(given: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A definition as Describe answers it: with the objective among the static hyperparameters."""
    if given is None:
        return None
    objective = given.get("TuningObjective") or config["HyperParameterTuningJobObjective"]
    return {
        **copy.deepcopy(dict(given)),
        "StaticHyperParameters": {**(given.get("StaticHyperParameters") or {}), OBJECTIVE: objective["MetricName"]},
    }


def _resources(config: Mapping[str, Any]) -> tuple[int, int]:
    given = (config.get("StrategyConfig") or {}).get("HyperbandStrategyConfig") or {}
    low = given.get("MinResource", HYPERBAND_RESOURCES[0])
    return low, given.get("MaxResource", max(low, HYPERBAND_RESOURCES[1]))


def _key(job: TuningJob, child: Child) -> str:
    return f"{job.region}/{job.name.lower()}/{child.name}"


def _told(description: Mapping[str, Any]) -> dict[str, Any]:
    return {member: description[member] for member in TOLD if description.get(member) is not None}


def _objective(told: Mapping[str, Any], metric: str) -> float | None:
    for each in told.get("FinalMetricDataList") or []:
        if each["MetricName"] == metric:
            return float(each["Value"])
    return None


def _value(summary: Mapping[str, Any]) -> float | None:
    final = summary["FinalHyperParameterTuningJobObjectiveMetric"]
    return None if final is None or summary["ObjectiveStatus"] != "Succeeded" else float(final["Value"])


def _best(summaries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The finished child with the best objective."""
    done = [one for one in summaries if one["TrainingJobStatus"] == "Completed" and _value(one) is not None]
    if not done:
        return None
    sign = -1 if done[0]["FinalHyperParameterTuningJobObjectiveMetric"]["Type"] == "Maximize" else 1
    return min(done, key=lambda one: sign * (_value(one) or 0.0))


def _not_improving(values: list[float], *, maximize: bool) -> int:
    """How many came after the best one."""
    if not values:
        return 0
    best = max(values) if maximize else min(values)
    return len(values) - 1 - values.index(best)


def _counters(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    jobs = Counter(one["TrainingJobStatus"] for one in summaries)
    objectives = Counter(one["ObjectiveStatus"] for one in summaries)
    return {
        "TrainingJobStatusCounters": {
            "Completed": jobs["Completed"],
            "InProgress": jobs["InProgress"] + jobs["Stopping"],
            "RetryableError": 0,
            "NonRetryableError": jobs["Failed"],
            "Stopped": jobs["Stopped"],
        },
        "ObjectiveStatusCounters": {name: objectives[name] for name in ("Succeeded", "Pending", "Failed")},
    }
