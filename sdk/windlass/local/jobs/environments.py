"""What a script may import: the packages of its requirements.txt over those of this interpreter, in layers.

    environments = Environments(keeper)
    layer = environments.layer(code / "requirements.txt", say=stream.write)    # cached: the second time it is there at once
    environments.overlay(folder / "env", [layer])                              # the job's own, for what it installs itself
    environment |= variables([folder / "env", layer])

A layer is a virtual environment that also sees the packages of this interpreter, so that only what is missing there gets
installed. It lives in the user's cache under a digest of all it depends on and is never changed again. Nothing is ever
installed into the environment that the local cloud itself runs in, not even by a script that calls pip.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import signal
import site
import sys
import sysconfig
import tempfile
import threading
import venv
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

from windlass.local.cloudwatch.logs import follow
from windlass.local.processes import Keeper

COMPLETE = ".complete"
PROGRAMS = "programs"

# sh and Python at once: a first line cannot name an interpreter whose path is long or has spaces. It is called as
# <environment>/programs/<name>, and programs is a link that all environments share, so the path is cut as text.
_DISPATCHER = """#!/bin/sh
'''exec' "${0%/*/*}/bin/python" "$0" "$@"
'''
import pathlib, sys
from importlib.metadata import entry_points
found = entry_points(group="console_scripts", name=pathlib.Path(sys.argv[0]).name)
sys.exit(next(iter(found)).load()())
"""


class RequirementsFailed(Exception):
    """pip could not install them; ``str()`` is what pip said."""


class Environments:
    """The layers of one cache folder.

    Args:
        cache: by default in the user's own cache, so that every local cloud of this user shares it.
    """

    def __init__(self, keeper: Keeper, cache: Path | None = None) -> None:
        self._keeper = keeper
        self._cache = cache or _user_cache() / "windlass" / "environments"

    def layer(
        self, requirements: Path, *, say: Callable[[str], None], cancelled: Callable[[], bool] = lambda: False
    ) -> Path | None:
        """The environment that fulfils a requirements.txt, installed unless it is there; None if it asks for nothing.

        Args:
            say: gets pip's output, line by line.
            cancelled: asked now and then; pip is ended when it says so.

        Raises:
            RequirementsFailed: pip could not, or was cancelled.
        """
        if not _asks(requirements):
            return None
        folder = self._cache / _digest(requirements)
        if (folder / COMPLETE).exists():
            return folder
        self._cache.mkdir(parents=True, exist_ok=True)
        # One at a time, over all local clouds: environments cannot be moved, so each is made in its place.
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / COMPLETE).exists():
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    self._install(requirements, folder, say, cancelled)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                (folder / COMPLETE).touch()
        return folder

    def _install(
        self, requirements: Path, folder: Path, say: Callable[[str], None], cancelled: Callable[[], bool]
    ) -> None:
        self.overlay(folder, [])
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        command += ["--no-warn-script-location", "--requirement", requirements.name]
        said: deque[str] = deque(maxlen=200)

        def take(line: str) -> None:
            said.append(line)
            say(line)

        reading, writing = os.pipe()
        try:
            pip = self._keeper.start(command, env=_pip_environment(), cwd=requirements.parent, output=writing)
        finally:
            os.close(writing)
        reader = threading.Thread(target=follow, args=(reading, take), name="pip", daemon=True)
        reader.start()
        while (code := pip.wait(0.1)) is None:
            if cancelled():
                pip.signal(signal.SIGTERM)
                pip.kill()
        reader.join(10.0)
        if code != 0:
            errors = [line for line in said if line.startswith("ERROR:")] or list(said)[-5:]
            raise RequirementsFailed("\n".join(errors) or f"pip ended with code {code}")

    def overlay(self, folder: Path, layers: Sequence[Path]) -> None:
        """Make an environment in which the packages of those layers, and below them of this interpreter, are found."""
        _Bare(symlinks=True, with_pip=False).create(folder)
        below = [str(_packages(layer)) for layer in layers] + _own_packages()
        # addsitedir also reads their .pth files: editable installs, this very package's perhaps, are found through those.
        lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in below)
        (_packages(folder) / "layers.pth").write_text(lines, encoding="utf-8")
        (folder / PROGRAMS).symlink_to(self._programs(), target_is_directory=True)

    def _programs(self) -> Path:
        """A folder with the programs of this interpreter's packages, such as torchrun. They run in the environment whose
        ``programs`` they are called by: the installed ones name their own interpreter.

        One for all environments: some hundred files for each job would cost more than the rest of it.
        """
        names = _console_scripts()
        digest = hashlib.sha256("\0".join([_DISPATCHER, *names]).encode()).hexdigest()
        folder = self._cache / f"{PROGRAMS}-{digest[:16]}"
        if not folder.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=self._cache))
            made.chmod(0o755)
            dispatcher = made / ".program"
            dispatcher.write_text(_DISPATCHER, encoding="utf-8")
            dispatcher.chmod(0o755)
            for name in names:
                (made / name).symlink_to(dispatcher.name)
            try:
                made.rename(folder)
            except OSError:
                shutil.rmtree(made)
                if not folder.is_dir():  # otherwise somebody else has made the same one meanwhile
                    raise
        return folder


class _Bare(venv.EnvBuilder):
    """Without the scripts that activate it: its variables are set for the process."""

    def setup_scripts(self, context: SimpleNamespace) -> None:
        pass


def variables(layers: Sequence[Path], environment: Mapping[str, str]) -> dict[str, str]:
    """What makes a process use them: its PATH begins with their programs, ``python`` among them."""
    programs = [str(layer / folder) for layer in layers for folder in ("bin", PROGRAMS)]
    path = [*programs, environment.get("PATH", os.defpath)]
    return {"PATH": os.pathsep.join(path), "VIRTUAL_ENV": str(layers[0])} if layers else {}


def python(layers: Sequence[Path]) -> str:
    """The interpreter of the uppermost layer; this one if there is none."""
    return str(layers[0] / "bin" / "python") if layers else sys.executable


def _packages(environment: Path) -> Path:
    base = str(environment)
    return Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": base, "platbase": base}))


def _own_packages() -> list[str]:
    own = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return [path for path in own if Path(path).is_dir()]


@functools.cache
def _console_scripts() -> list[str]:
    """The console scripts of all packages that this interpreter sees."""
    interpreter = re.compile(r"python[\d.]*")
    names = {entry.name for entry in metadata.entry_points(group="console_scripts")}
    return sorted(name for name in names if "/" not in name and not interpreter.fullmatch(name))


def _asks(requirements: Path) -> bool:
    lines = requirements.read_text(encoding="utf-8", errors="replace").splitlines() if requirements.is_file() else []
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def _digest(requirements: Path) -> str:
    """Of all that the result of an installation depends on, as far as it can be known before."""
    parts = [sys.version, sysconfig.get_platform(), sys.prefix]
    installed = {entry.name for path in map(Path, sys.path) if path.is_dir() for entry in path.glob("*.dist-info")}
    parts += sorted(installed)
    text = requirements.read_text(encoding="utf-8", errors="replace")
    parts.append(text)
    digest = hashlib.sha256("\0".join(parts).encode())
    if re.search(
        r"^\s*(-[rcef]\b|--(requirement|constraint|editable|find-links)\b|\.|file:|[^#]*@ *(\.|file:))",
        text,
        re.MULTILINE,
    ):
        # It points at other files of the source.
        for path in sorted(path for path in requirements.parent.rglob("*") if path.is_file()):
            digest.update(f"\0{path.relative_to(requirements.parent)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def pip_settings() -> dict[str, str]:
    """The user's own settings of pip (its index, say), but for those that would lead it to another environment."""
    kept = re.compile(r"PIP_(?!TARGET|PREFIX|USER|ROOT|PYTHON|REQUIRE)")
    return {name: value for name, value in os.environ.items() if kept.match(name)}


def _pip_environment() -> dict[str, str]:
    kept = re.compile(r".*_proxy$|SSL_CERT|REQUESTS_CA|PATH$|HOME$|LANG$|TMPDIR$|XDG_", re.IGNORECASE)
    return pip_settings() | {name: value for name, value in os.environ.items() if kept.match(name)}


def _user_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else Path.home() / ".cache"
