"""What a training job leaves: ``model.tar.gz`` and ``output.tar.gz`` on S3.

    upload(job)             # both
    upload_output(job)      # of a job that failed

Both raise Failed with the job's FailureReason.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from windlass.local import storage
from windlass.local.jobs.lifecycle import Failed, own
from windlass.local.jobs.training_job import TrainingJob


def upload(job: TrainingJob) -> None:
    """Send the model, and what else the hosts left."""
    upload_output(job)
    try:
        model = _merged([host.folder / "model" for host in job.hosts], job.folder / "model")
        if job.uncompressed:
            for path in sorted(path for path in model.rglob("*") if own(path, model)):
                storage.write(f"{job.artifact}{path.relative_to(model).as_posix()}", path, job.output_key)
        else:
            storage.write(job.artifact, _archive(model, job.folder / "model.tar.gz"), job.output_key)
    except (storage.Missing, OSError) as error:
        raise Failed(f"ClientError: Artifact upload failed: {error}") from error


def upload_output(job: TrainingJob) -> None:
    """Send what the hosts left in ``output/data``. A job that failed has this, too."""
    try:
        data = _merged([host.folder / "output" / "data" for host in job.hosts], job.folder / "output")
        if any(data.iterdir()):
            storage.write(f"{job.output}/output.tar.gz", _archive(data, job.folder / "output.tar.gz"), job.output_key)
    except (storage.Missing, OSError) as error:
        raise Failed(f"ClientError: Artifact upload failed: {error}") from error


def _archive(folder: Path, path: Path) -> Path:
    """A tar.gz of a folder's content. Level 1: weights hardly compress, and the wait is the user's."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for item in sorted(folder.iterdir()):
            tar.add(item, arcname=item.name)
    return path


def _merged(folders: Sequence[Path], into: Path) -> Path:
    """What all hosts left, in one folder. Where several left a file of one name, the first host's stays."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)  # the program may have removed it
    if len(folders) == 1:
        return folders[0]

    def link(source: str, target: str) -> None:
        Path(target).unlink(missing_ok=True)
        os.link(source, target, follow_symlinks=False)

    for folder in reversed(folders):
        shutil.copytree(folder, into, symlinks=True, copy_function=link, dirs_exist_ok=True)
    return into
