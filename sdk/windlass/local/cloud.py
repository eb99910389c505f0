"""What one local cloud is made of.

moto builds its backends by itself, late, from classes. So the parts that answer requests reach the rest through
``cloud.current()``: there is one local cloud in a process.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from windlass.local.clock import Clock, Pace, SystemClock
from windlass.local.processes import Keeper

if TYPE_CHECKING:
    from windlass.local.events.functions import Functions
    from windlass.local.events.scaling import Scaling

ACCOUNT = "123456789012"
"""The account of everything in a local cloud; moto's own default."""

ROOT_ACCESS_KEY, ROOT_SECRET_KEY = "windlass-local", "windlass-local"
"""Of the account's root: what ``windlass local up`` exports. No secret, as only this machine can use it."""

PASSED_ON = ("HOME", "LANG", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
"""What of the server's own environment its processes see, besides PATH."""


class Cloud:
    """The parts, built in the order in which they need each other.

    Args:
        state: its own folder, with subfolders ``jobs/<name>/``, ``endpoints/<name>/`` and the metrics.
        url: where its own API answers: what the processes in it are told.
        speed: how many times faster alarm periods, bakes and schedules run. Timestamps, jobs and latencies stay real.
        enforce_iam: refuse what no policy allows.
    """

    def __init__(
        self, state: Path, url: str, clock: Clock | None = None, speed: float = 1, enforce_iam: bool = False
    ) -> None:
        # Late, because the parts import this module.
        from windlass.local.cloudwatch.alarms import AlarmEngine
        from windlass.local.cloudwatch.api import MetricStore
        from windlass.local.database import Database
        from windlass.local.events.bus import EventBus, pipeline_target
        from windlass.local.hosting.api import Hosting
        from windlass.local.iam import authorizer
        from windlass.local.jobs.processing import ProcessingJobs
        from windlass.local.jobs.training import TrainingJobs
        from windlass.local.jobs.transform import TransformJobs
        from windlass.local.jobs.tuning import TuningJobs
        from windlass.local.pipelines.executions import Pipelines
        from windlass.local.registry import Registry
        from windlass.local.snapshot import Snapshot
        from windlass.local.storage.bodies import Folder

        state.mkdir(parents=True, exist_ok=True)
        self.state = state
        self.url = url
        self.clock: Clock = clock or SystemClock()
        self.pace = Pace(self.clock, speed)
        self.authorizer = authorizer.Authorizer(enforce_iam)
        self.database = Database(state / "state.sqlite")
        self.snapshot = Snapshot(state / "services.pickle")
        self.tags: dict[str, dict[str, str]] = {}  # of SageMaker's resources, by ARN in lower case
        self.bodies = Folder(state / "s3")
        self.keeper = Keeper()
        # A minute of an alarm may be shorter than a real one.
        self.metrics = MetricStore(state / "metrics.sqlite", self.clock, 60 if speed == 1 else 0.01)
        self.events = EventBus(self.clock, self.pace, self.snapshot.touch)
        self.alarms = AlarmEngine(self.metrics, self.events, self.clock, self.pace, state / "alarms.json")
        self.events.support("lambda", lambda *given: self.functions.target(*given))
        self.alarms.support("autoscaling", lambda *given: self.scaling.act(*given))
        self.alarms.support("lambda", lambda *given: self.functions.act(*given))
        self.registry = Registry(self)
        self.jobs = TrainingJobs(self)
        self.hosting = Hosting(self)
        self.processing = ProcessingJobs(self)
        self.transform = TransformJobs(self)
        self.tuning = TuningJobs(self)
        self.pipelines = Pipelines(self)
        self.events.support("sagemaker", pipeline_target(self.pipelines.start))

    def restore(self, extend: Callable[[str], None]) -> None:
        """Put back what an earlier server left in the state folder, and go on from there. Before the first request.

        Args:
            extend: puts our part of a service, by moto's name, in moto's place.

        Raises:
            StateUnreadable: other versions wrote it.
        """
        from windlass.local.storage import objects

        # Of processes that are no more.
        for leftover in ("jobs", "processing-jobs", "transform-jobs", "hyper-parameter-tuning-jobs", "endpoints"):
            shutil.rmtree(self.state / leftover, ignore_errors=True)
        self.snapshot.load(extend)
        objects.restore(self)
        self.tags |= self.database.table("tags").items()
        self.registry.restore()
        self.events.restore()
        self.jobs.restore()
        self.hosting.restore()
        self.processing.restore()
        self.transform.restore()
        self.tuning.restore()
        self.pipelines.restore()
        self.snapshot.start()
        self.jobs.resume()

    def tag(self, arn: str, tags: dict[str, str] | None) -> None:
        """Replace the tags of a SageMaker resource; None: it is gone."""
        table = self.database.table("tags")
        if tags is None:
            self.tags.pop(arn.lower(), None)
            table.delete(arn.lower())
        else:
            self.tags[arn.lower()] = tags
            table.save(arn.lower(), tags)

    @functools.cached_property
    def functions(self) -> Functions:
        """Lambda functions. Built on first use: most sessions have none, and what they need takes a while to load."""
        from windlass.local.events.functions import Functions

        return Functions(self)

    @functools.cached_property
    def scaling(self) -> Scaling:
        """Application Auto Scaling. Built on first use, as functions are."""
        from windlass.local.events.scaling import Scaling

        return Scaling(self)

    def environment(self, region: str) -> dict[str, str]:
        """What makes any AWS SDK, in any process, talk to this cloud."""
        return client_environment(self.url, region)

    def process_environment(self, region: str, role_arn: str | None = None) -> dict[str, str]:
        """What every process of a job or an endpoint starts from: nothing of the shell that started the cloud but paths.

        Args:
            role_arn: whose credentials it gets, as a container on AWS does.
        """
        from windlass.local.iam import principals

        role = principals.credentials(role_arn, "SageMaker", region) if role_arn else {}
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        return {"LANG": "C.UTF-8", **passed, "PATH": path, "PYTHONUNBUFFERED": "1", **self.environment(region), **role}

    def reset(self) -> None:
        """Forget everything: what POST /moto-api/reset means. Ends every child first."""
        self.pipelines.reset()
        self.tuning.reset()
        self.processing.reset()
        self.transform.reset()
        self.jobs.reset()
        self.hosting.reset()
        if "functions" in vars(self):
            self.functions.reset()
        if "scaling" in vars(self):
            self.scaling.reset()
        self.keeper.kill_all()
        self.tags.clear()
        self.bodies.sweep(set())
        self.registry.reset()
        self.alarms.reset()
        self.events.reset()
        self.metrics.reset()
        self.database.clear()

    def close(self) -> None:
        """End every child and thread."""
        self.pipelines.close()
        self.tuning.close()
        self.processing.close()
        self.transform.close()
        self.jobs.close()
        self.hosting.close()
        if "functions" in vars(self):
            self.functions.close()
        self.keeper.close()
        self.alarms.close()
        self.events.close()
        self.metrics.close()
        self.snapshot.close()
        self.database.close()


def client_environment(url: str, region: str) -> dict[str, str]:
    """What makes any AWS SDK talk to the local cloud at that URL."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ROOT_ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": ROOT_SECRET_KEY,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


_current: Cloud | None = None


def install(cloud: Cloud | None) -> None:
    """Make it the one that this process serves."""
    global _current
    _current = cloud


def current() -> Cloud:
    """The local cloud that this process serves."""
    if _current is None:
        raise RuntimeError("No local cloud is installed in this process: call windlass.local.cloud.install() first")
    return _current
