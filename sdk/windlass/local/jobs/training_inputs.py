"""What a training job finds when it starts: its source, its channels, what it may import, its checkpoints.

    lay_out(job)                              # each host's /opt/ml, with its configuration and its source
    pipes = fill_channels(job)                # its data
    layers = require(job, layers, say)        # its requirements.txt, installed
    checkpoints = follow_checkpoints(job)     # those of an earlier job, and from now on its own

Each raises Failed with the job's FailureReason, or Stopped when the job is being stopped meanwhile.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from windlass.errors import CorruptArtifact
from windlass.local import storage
from windlass.local.jobs import archives, channels, cluster, containers
from windlass.local.jobs.channels import Pipe, Unreadable
from windlass.local.jobs.checkpoints import Checkpoints
from windlass.local.jobs.cluster import Host
from windlass.local.jobs.environments import Environments, RequirementsFailed
from windlass.local.jobs.lifecycle import Failed, Stopped
from windlass.local.jobs.training_job import TrainingJob


def lay_out(job: TrainingJob) -> None:
    """Each host's /opt/ml, with all but its data."""
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    (job.folder / "hosts").write_text(cluster.etc_hosts(job.hosts, job.number), encoding="utf-8")
    inputs = {channel["ChannelName"]: channels.config(channel, job.algorithm) for channel in job.channels}
    for host in job.hosts:
        for folder in ("input/config", "input/data", "model", "output/data", "checkpoints", "code"):
            (host.folder / folder).mkdir(parents=True)
        config = {
            "hyperparameters": job.hyperparameters,
            "inputdataconfig": {
                name: told
                for name, told in inputs.items()
                if host in _with_channel(job.hosts, _named(job.channels, name))
            },
            "resourceconfig": cluster.resource_config(job.hosts, host),
        }
        for name, content in config.items():
            path = host.folder / "input" / "config" / f"{name}.json"
            path.write_text(json.dumps(content), encoding="utf-8")
    _fetch_source(job)


def _fetch_source(job: TrainingJob) -> None:
    """Legacy script mode: the hyperparameter sagemaker_submit_directory names a tar.gz on S3."""
    source = _decoded(job.hyperparameters.get("sagemaker_submit_directory", ""))
    if not source.startswith("s3://"):
        if source and not job.algorithm.get("ContainerEntrypoint"):
            raise Failed(f"ClientError: sagemaker_submit_directory must be an s3:// URI of a tar.gz, not '{source}'")
        return
    archive = job.folder / "source.tar.gz"
    try:
        storage.download(source, archive)
        for host in job.hosts:
            archives.extract(archive, host.folder / "code")
    except storage.Missing as error:
        raise Failed(
            f"ClientError: {error}, given in the hyperparameter sagemaker_submit_directory. Upload the source there."
        ) from error
    except CorruptArtifact as error:
        raise Failed(
            f"ClientError: The source {source} (sagemaker_submit_directory) cannot be unpacked: {error}"
        ) from error
    finally:
        archive.unlink(missing_ok=True)


def fill_channels(job: TrainingJob) -> Sequence[Pipe]:
    """Download the data. Returns the channels in Pipe mode, not yet flowing."""
    pipes = []
    for channel in job.channels:
        name = channel["ChannelName"]
        receivers = _with_channel(job.hosts, channel)
        try:
            found = channels.members(channel)
            for host in receivers:
                part = channels.share(found, channel, host.name, [other.name for other in receivers])
                path = host.folder / "input" / "data" / name
                if channels.mode(channel, job.algorithm) == "Pipe":
                    pipes.append(Pipe(channel, part, path, job.folder / "pipes" / host.name / name))
                else:
                    channels.fill(part, path)
                if job.stopping.is_set():
                    raise Stopped
        except (Unreadable, OSError) as error:
            raise Failed(f"{channels.UNREADABLE.format(name)}: {error}") from error
    return pipes


def require(job: TrainingJob, layers: Environments, say: Callable[[str], None]) -> Sequence[Path]:
    """The layer with what requirements.txt of the source asks for, if there is one."""
    own = bool(job.algorithm.get("ContainerEntrypoint"))
    source = job.hosts[0].folder / ("input/data/code" if own else "code")
    try:
        layer = layers.layer(source / "requirements.txt", say=say, cancelled=lambda: job.stopping.is_set())
    except RequirementsFailed as error:
        if job.stopping.is_set():
            raise Stopped from error
        if own:
            return []  # its own entrypoint installs them, or does without: we only meant to save it the time
        reason = f"AlgorithmError: InstallRequirementsError: requirements.txt cannot be installed:\n{error}"
        raise Failed(reason) from error
    return [layer] if layer else []


def follow_checkpoints(job: TrainingJob) -> Checkpoints | None:
    config = job.request.get("CheckpointConfig")
    if not config:
        return None
    inside = Path(config.get("LocalPath", "/opt/ml/checkpoints")).relative_to("/opt/ml")
    folders = [host.folder / inside for host in job.hosts]
    checkpoints = Checkpoints(containers.s3_uri(config["S3Uri"]), folders, job.folder)
    try:
        checkpoints.restore()
    except (storage.Missing, OSError) as error:
        raise Failed(f"ClientError: Checkpoint download failed: {error}") from error
    checkpoints.start()
    return checkpoints


def _named(given: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(channel for channel in given if channel["ChannelName"] == name)


def _with_channel(hosts: Sequence[Host], channel: Mapping[str, Any]) -> list[Host]:
    """The hosts that get a channel: those of its instance groups, or all."""
    wanted = channels.source(channel).get("InstanceGroupNames")
    return [host for host in hosts if not wanted or host.group in wanted]


def _decoded(value: str) -> str:
    """SDKs encode hyperparameters as JSON, people do not."""
    try:
        return str(json.loads(value))
    except ValueError:
        return value
