"""What one local cloud is made of.

moto builds its backends by itself, late, from classes. So the parts that answer requests reach the rest through
``cloud.current()``: there is one local cloud in a process.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from windlass.local.clock import Clock, SystemClock
from windlass.local.processes import Keeper

ACCOUNT = "123456789012"
"""The account of everything in a local cloud; moto's own default."""

PASSED_ON = ("HOME", "LANG", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
"""What of the server's own environment its processes see, besides PATH."""


class Cloud:
    """The parts, built in the order in which they need each other.

    Args:
        state: its own folder, with subfolders ``jobs/<name>/``, ``endpoints/<name>/`` and the metrics.
        url: where its own API answers: what the processes in it are told.
    """

    def __init__(self, state: Path, url: str, clock: Clock | None = None) -> None:
        # Late, because the parts import this module.
        from windlass.local.alarms import AlarmEngine
        from windlass.local.bodies import Folder
        from windlass.local.cloudwatch import MetricStore
        from windlass.local.database import Database
        from windlass.local.events import EventBus
        from windlass.local.hosting import Hosting
        from windlass.local.jobs import TrainingJobs
        from windlass.local.registry import Registry
        from windlass.local.snapshot import Snapshot

        state.mkdir(parents=True, exist_ok=True)
        self.state = state
        self.url = url
        self.clock: Clock = clock or SystemClock()
        self.database = Database(state / "state.sqlite")
        self.snapshot = Snapshot(state / "services.pickle")
        self.tags: dict[str, dict[str, str]] = {}  # of SageMaker's resources, by ARN in lower case
        self.bodies = Folder(state / "s3")
        self.keeper = Keeper()
        self.metrics = MetricStore(state / "metrics.sqlite", self.clock)
        self.events = EventBus(delivered=self.snapshot.touch)
        self.alarms = AlarmEngine(self.metrics, self.events, self.clock, self.snapshot.touch)
        self.registry = Registry(self)
        self.jobs = TrainingJobs(self)
        self.hosting = Hosting(self)
        self.snapshot.include("alarms", self.alarms.dump, self.alarms.load)

    def restore(self) -> None:
        """Put back what an earlier server left in the state folder, and go on from there. Before the first request.

        Raises:
            StateUnreadable: other versions wrote it.
        """
        from windlass.local import s3

        for leftover in ("jobs", "endpoints"):  # of processes that are no more
            shutil.rmtree(self.state / leftover, ignore_errors=True)
        self.snapshot.load()
        s3.restore(self)
        self.tags |= self.database.table("tags").items()
        self.registry.restore()
        self.jobs.restore()
        self.hosting.restore()
        self.snapshot.start()

    def tag(self, arn: str, tags: dict[str, str] | None) -> None:
        """Replace the tags of a SageMaker resource; None: it is gone."""
        table = self.database.table("tags")
        if tags is None:
            self.tags.pop(arn.lower(), None)
            table.delete(arn.lower())
        else:
            self.tags[arn.lower()] = tags
            table.save(arn.lower(), tags)

    def environment(self, region: str) -> dict[str, str]:
        """What makes any AWS SDK, in any process, talk to this cloud."""
        return client_environment(self.url, region)

    def process_environment(self, region: str) -> dict[str, str]:
        """What every process of a job or an endpoint starts from: nothing of the shell that started the cloud but paths."""
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        return {"LANG": "C.UTF-8", **passed, "PATH": path, "PYTHONUNBUFFERED": "1", **self.environment(region)}

    def reset(self) -> None:
        """Forget everything: what POST /moto-api/reset means. Ends every child first."""
        self.jobs.reset()
        self.hosting.reset()
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
        self.jobs.close()
        self.hosting.close()
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
        "AWS_ACCESS_KEY_ID": "windlass-local",
        "AWS_SECRET_ACCESS_KEY": "windlass-local",
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
