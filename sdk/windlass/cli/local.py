"""Commands for the local cloud: up, down, run, status, interrupt."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from windlass.cli import show
from windlass.errors import InvalidInput, MissingExtra, NotFound

if TYPE_CHECKING:
    from windlass.local import LocalCloud

app = typer.Typer(no_args_is_help=True)
State = Annotated[Path, typer.Option("--state", envvar="WINDLASS_STATE", help="Its folder.")]
Speed = Annotated[
    float, typer.Option("--speed", help="Alarm periods, bakes and schedules run so many times faster; jobs do not.")
]
Enforce = Annotated[
    bool,
    typer.Option("--enforce-iam", help="Refuse what the caller's IAM policies do not allow; the exports are root's."),
]
_STATE = Path(".windlass")


@app.command()
def up(
    state: State = _STATE,
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 0,
    speed: Speed = 1,
    enforce_iam: Enforce = False,
) -> None:
    """Start a local cloud, and print the exports for a shell.

    As in eval "$(windlass local up)".
    """
    cloud = _server().up(state, port, speed=speed, enforce_iam=enforce_iam)
    for name, value in cloud.env.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
    show.say(f"The local cloud runs as process {cloud.pid}; its log is {cloud.state / 'server.log'}.")
    show.hint("windlass infra deploy")


@app.command()
def down(state: State = _STATE) -> None:
    """End the local cloud, with everything it started."""
    cloud = _found(state, "down")
    cloud.stop()
    show.say("The local cloud has ended.")
    show.hint("windlass local up")


@app.command("status")
def status_(state: State = _STATE) -> None:
    """Where the local cloud answers."""
    cloud = _found(state, "status")
    show.noun(cloud)
    show.hint("windlass local down")


@app.command()
def interrupt(
    job: Annotated[str, typer.Argument(help="The training job's name.")],
    state: State = _STATE,
    capacity_after: Annotated[
        float, typer.Option("--capacity-after", help="Seconds until there are spot instances again.")
    ] = 0.0,
) -> None:
    """Take a spot training job's instances away.

    It goes on from its checkpoint.
    """
    cloud = _found(state, "interrupt")
    cloud.interrupt(job, capacity_after_seconds=capacity_after)
    show.say(f"Training job {job} is being interrupted.")
    show.hint("windlass local status")


@app.command()
def policy(
    state: State = _STATE,
    mark: Annotated[
        bool, typer.Option("--mark", help="Begin to write down calls, and forget those until now.")
    ] = False,
    principal: Annotated[
        str | None,
        typer.Option("--principal", help="Whose calls, by the ARN of a user or role; default: all clients'."),
    ] = None,
) -> None:
    """Print the least IAM policy for the calls since a mark."""
    cloud = _found(state, "policy")
    if mark:
        cloud.mark()
        show.say("From now on, calls are written down.")
        show.hint("windlass local policy")
        return
    typer.echo(json.dumps(cloud.least_policy(principal), indent=2))
    show.hint("windlass local policy --mark")


def _found(state: Path, command: str) -> LocalCloud:
    cloud = _server().find(state)
    if cloud is None:
        raise NotFound(
            f"none runs on the state folder {state}", where=f"windlass local {command}", hint="windlass local up"
        )
    return cloud


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(help="After --, the command and its arguments.")],
    state: Annotated[
        Path | None, typer.Option("--state", help="Keep its state here; by default it is thrown away.")
    ] = None,
    foundation: Annotated[bool, typer.Option("--foundation", help="Deploy the foundation first.")] = False,
    speed: Speed = 1,
    enforce_iam: Enforce = False,
) -> None:
    """Run one command inside a fresh local cloud.

    As in windlass local run -- python train.py.
    """
    with (
        tempfile.TemporaryDirectory(prefix="windlass-") as scratch,
        _server().up(state or Path(scratch) / "state", lifeline=True, speed=speed, enforce_iam=enforce_iam) as cloud,
    ):
        environment = {**os.environ, **cloud.env}
        code = 0
        if foundation:
            deploy = [sys.executable, "-m", "windlass.cli", "infra", "deploy"]
            code = subprocess.run(deploy, env=environment, stdout=subprocess.DEVNULL, check=False).returncode
        code = code or _run(command, environment, cloud)
    raise typer.Exit(code)


def _run(command: list[str], environment: dict[str, str], cloud: LocalCloud) -> int:
    interrupted, asked_to_end = threading.Event(), threading.Event()
    # Ctrl-C reaches the command too (it is in our process group); it ends in its own way, and then the cloud ends.
    # A handler, because SIG_IGN would be the command's own from its start.
    at_interrupt = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    at_terminate = signal.signal(signal.SIGTERM, lambda *_: asked_to_end.set())
    try:
        process = subprocess.Popen(command, env=environment, preexec_fn=_end_with(os.getpid()))
        if interrupted.is_set():  # when there was no command yet that could hear it
            process.send_signal(signal.SIGINT)
        while (code := _code(process)) is None:
            if asked_to_end.is_set():
                process.terminate()
                asked_to_end.clear()
            if not cloud.running:
                show.say("The local cloud has ended before the command, which is therefore ended, too.")
                process.terminate()
                return _shell_code(process.wait()) or 1
    except OSError as error:
        raise InvalidInput(f"{command[0]} cannot be run: {error.strerror}", where="windlass local run") from error
    finally:
        signal.signal(signal.SIGINT, at_interrupt)
        signal.signal(signal.SIGTERM, at_terminate)
    return _shell_code(code)


def _code(process: subprocess.Popen[bytes]) -> int | None:
    """How it ended; None when it has not, after a moment."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(0.2)
    return None


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _end_with(parent: int) -> Callable[[], None]:
    """For the child, before it becomes the command: when this process is killed, which can tell nobody, so does the command."""
    from windlass.local.keeper import PR_SET_PDEATHSIG, prctl

    def child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # killed already
            os._exit(1)

    return child


def _server() -> type[LocalCloud]:
    # Looked for, not imported: the server process is what uses it, and its import takes a second.
    missing = [name for name in ("moto", "flask", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(missing[0], "local", "The local cloud")
    from windlass.local import LocalCloud

    return LocalCloud
