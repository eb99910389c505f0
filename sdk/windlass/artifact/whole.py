"""Files and folders that are at their place whole, or not at all: a full disk, an error or Ctrl-C leaves nothing half-written.

with whole.file(dest) as out: out.write(...)
with whole.folder(dest, "Unpacking model.tar.gz") as scratch: ...
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from windlass.errors import DiskFull, InvalidInput


@contextlib.contextmanager
def file(dest: Path) -> Iterator[IO[bytes]]:
    """A file that is at its place only once it is complete; until then a sibling that a failure removes."""
    with room(dest.parent):
        dest.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{dest.name[:100]}-", dir=dest.parent)
        scratch = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
            scratch.chmod(0o644)
            scratch.replace(dest)
        finally:
            scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def room(folder: Path) -> Iterator[None]:
    """A full disk as an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = "Free some space, or choose another folder; nothing half-written was left."
            raise DiskFull(f"no room: {error.strerror}", where=f"Writing to {folder}", hint=hint) from error
        raise


@contextlib.contextmanager
def folder(dest: Path, where: str) -> Iterator[Path]:
    """A scratch folder that becomes ``dest`` (absent or empty) if all went well, and goes away if not."""
    if dest.exists() and any(dest.iterdir()):
        raise InvalidInput(f"{dest} is not empty", where=where)
    with room(dest.parent):
        dest.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{dest.name[:100]}-", dir=dest.parent))
        try:
            yield scratch
            scratch.chmod(0o755)
            if dest.exists():
                dest.rmdir()
            scratch.rename(dest)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
