"""A cloud on this machine: start it, find it, end it.

    with LocalCloud.up(state=Path(".windlass"), lifeline=True) as cloud:
        subprocess.run(["python", "train_and_deploy.py"], env={**os.environ, **cloud.env})

The server is a process of its own (``python -m windlass.local``); this module imports nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from windlass.errors import InvalidInput, WindlassError

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 15.0


class LocalCloudError(WindlassError, RuntimeError):
    """The local cloud did not start, or did not end."""


@dataclass
class LocalCloud:
    """A running local cloud.

    Attributes:
        url: where its API answers; what goes into AWS_ENDPOINT_URL.
        pid: of its server process.
        state: its folder, with ``server.log``.
    """

    url: str
    pid: int
    state: Path
    region: str = "us-east-1"
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _lifeline: int | None = field(default=None, repr=False)

    @classmethod
    def up(
        cls,
        state: Path,
        port: int = 0,
        *,
        lifeline: bool = False,
        region: str = "us-east-1",
        host: str = "127.0.0.1",
        speed: float = 1,
        enforce_iam: bool = False,
    ) -> Self:
        """Start one, and return when it answers.

        Args:
            state: its folder; one server at a time may use it.
            port: 0 takes a free one.
            lifeline: end it as soon as this process ends, however that comes about.
            speed: how many times faster alarm periods, bakes and schedules run. Timestamps, jobs and latencies stay real.
            enforce_iam: refuse what the caller's policies do not allow. ``env`` is the account's root, which may do everything.

        Raises:
            InvalidInput: another server uses that folder, or the speed is not more than 0.
            LocalCloudError: it died on the way; the message holds what it said.
        """
        if not 0 < speed <= 10_000:
            raise InvalidInput(
                f"The speed is {speed:g}", where="Starting the local cloud", hint="Give more than 0, up to 10000."
            )
        state = state.resolve()
        state.mkdir(parents=True, exist_ok=True)
        if running := cls.find(state):
            raise InvalidInput(
                f"A local cloud runs on the state folder {state} already (pid {running.pid}, {running.url})",
                where="Starting the local cloud",
                hint="Use that one, end it with `windlass local down`, or give another folder.",
            )
        ready, ready_end = os.pipe()
        alive_end, alive = os.pipe() if lifeline else (None, None)
        inherited = [fd for fd in (ready_end, alive_end) if fd is not None]
        command = [sys.executable, "-m", "windlass.local", "--state", str(state), "--port", str(port), "--host", host]
        command += [] if speed == 1 else ["--speed", str(speed)]
        command += ["--enforce-iam"] if enforce_iam else []
        command += ["--ready", str(ready_end)] + (["--lifeline", str(alive_end)] if lifeline else [])
        logfile = state / "server.log"
        try:
            with logfile.open("ab") as output:
                start = output.tell()
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=inherited,
                    start_new_session=True,  # Ctrl-C in the terminal is for the command, which then ends us in order
                )
        except BaseException:
            os.close(ready)
            if alive is not None:
                os.close(alive)
            raise
        finally:
            for fd in inherited:
                os.close(fd)
        cloud = cls("", process.pid, state, region, process, alive)
        try:
            line = _first_line(ready, START_TIMEOUT_SECONDS)
        except BaseException:
            process.kill()
            cloud._forget()
            raise
        finally:
            os.close(ready)
        if not line:
            code = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(1.0)
            process.kill()
            cloud._forget()
            with logfile.open("rb") as said:
                said.seek(start)
                message = said.read().decode(errors="replace").strip()
            silence = (
                f"no answer in {START_TIMEOUT_SECONDS:.0f} s" if code is None else f"its process ended with code {code}"
            )
            hint = "" if message else f"Nothing could be read in {logfile}: is there room on its disk?"
            raise LocalCloudError(message or silence, where="Starting the local cloud", hint=hint)
        cloud.url = json.loads(line)["url"]
        return cloud

    @classmethod
    def find(cls, state: Path, region: str = "us-east-1") -> Self | None:
        """The one that runs on that state folder, or None."""
        import fcntl

        state = state.resolve()
        try:
            with (state / "lock").open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    record = json.loads((state / "cloud.json").read_text())
                    return cls(record["url"], record["pid"], state, region)
        except FileNotFoundError:
            return None  # never used, or on its way up or down
        return None

    @property
    def env(self) -> dict[str, str]:
        """What makes any AWS SDK or CLI talk to it, for ``os.environ`` or a child's ``env=``."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "windlass-local",
            "AWS_SECRET_ACCESS_KEY": "windlass-local",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }

    @property
    def running(self) -> bool:
        """Whether its server process is there."""
        return self._process.poll() is None if self._process else self.find(self.state) is not None

    def stop(self) -> None:
        """End it with every process that it started; returns when they are gone. Harmless when it has ended.

        Raises:
            LocalCloudError: it was still there after SIGKILL.
        """
        self._signal(signal.SIGTERM)
        if not self._gone(STOP_TIMEOUT_SECONDS):
            # Its keeper ends the children when it is killed.
            self._signal(signal.SIGKILL)
            if not self._gone(STOP_TIMEOUT_SECONDS):
                raise LocalCloudError(f"process {self.pid} does not end", where="Ending the local cloud")
        self._forget()

    def interrupt(self, training_job: str, *, capacity_after_seconds: float = 0.0) -> None:
        """Take a training job's spot instances away, as AWS does when it needs them itself.

        Args:
            training_job: the name of a job with EnableManagedSpotTraining, while it is Training.
            capacity_after_seconds: when there are instances again; the job waits as Starting until then.

        Raises:
            InvalidInput: there is no such job, or it cannot be interrupted now.
        """
        query = urllib.parse.urlencode({"capacity_after_seconds": capacity_after_seconds})
        path = f"training-jobs/{urllib.parse.quote(training_job, safe='')}/interrupt?{query}"
        try:
            self._ask("POST", path).close()
        except urllib.error.HTTPError as error:
            with error:
                message = str(json.load(error)["message"])
            raise InvalidInput(message, where=f"Interrupting training job '{training_job}'") from error

    def mark(self) -> None:
        """Begin anew to write down which permissions the calls of this cloud's clients take."""
        self._ask("POST", "policy/mark").close()

    def least_policy(self, principal: str | None = None) -> dict[str, Any]:
        """The least IAM policy that allows exactly what was called since the mark.

        Args:
            principal: whose calls, by the ARN of a user or a role; by default those of all clients, but for what the cloud's
                own jobs, endpoints and functions called as their roles.

        Raises:
            InvalidInput: no mark was set.
        """
        query = f"?{urllib.parse.urlencode({'principal': principal})}" if principal else ""
        try:
            with self._ask("GET", f"policy{query}") as answer:
                document: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                message = str(json.load(error)["message"])
            hint = "Set one, make the calls, and ask again: windlass local policy --mark."
            raise InvalidInput(message, where="Reading the policy", hint=hint) from error
        return document

    def _ask(self, method: str, path: str) -> Any:
        data = b"" if method == "POST" else None
        request = urllib.request.Request(f"{self.url}/_windlass/{path}", method=method, data=data)  # noqa: S310  (its own URL)
        return urllib.request.urlopen(request, timeout=30)  # noqa: S310

    def _signal(self, signum: int) -> None:
        if self._process:
            self._process.send_signal(signum)  # none when it has ended: its pid may be another's by now
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def _gone(self, timeout: float) -> bool:
        if self._process:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                return False
            return True
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            # Not our child, so it cannot be waited for. The lock on the state folder goes with the process.
            if self.find(self.state) is None and not _exists(self.pid):
                return True
            time.sleep(0.02)
        return False

    def _forget(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._process:
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _first_line(fd: int, timeout: float) -> bytes:
    """What is written to a pipe up to the end of line; empty when its writer goes, or the time is up."""
    import select

    deadline, data = time.monotonic() + timeout, b""
    while not data.endswith(b"\n"):
        readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(fd, 4096) if readable else b""
        if not chunk:
            return b""
        data += chunk
    return data
