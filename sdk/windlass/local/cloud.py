"""What one local cloud is made of.

moto builds its backends by itself, late, from classes. So the parts that answer requests reach the rest through
``cloud.current()``: there is one local cloud in a process.
"""

from __future__ import annotations

import os
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
        from windlass.local.events import EventBus
        from windlass.local.hosting import Hosting
        from windlass.local.jobs import TrainingJobs
        from windlass.local.registry import Registry

        state.mkdir(parents=True, exist_ok=True)
        self.state = state
        self.url = url
        self.clock: Clock = clock or SystemClock()
        self.tags: dict[str, dict[str, str]] = {}  # of SageMaker's resources, by ARN in lower case
        self.bodies = Folder(state / "s3")
        self.keeper = Keeper()
        self.metrics = MetricStore(state / "metrics.sqlite", self.clock)
        self.events = EventBus()
        self.alarms = AlarmEngine(self.metrics, self.events, self.clock)
        self.registry = Registry(self)
        self.jobs = TrainingJobs(self)
        self.hosting = Hosting(self)

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

    def close(self) -> None:
        """End every child and thread."""
        self.jobs.close()
        self.hosting.close()
        self.keeper.close()
        self.alarms.close()
        self.events.close()
        self.metrics.close()


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
