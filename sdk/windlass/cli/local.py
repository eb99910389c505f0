"""Commands for the local cloud: up, down, run, status."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import tempfile
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
_STATE = Path(".windlass")


@app.command()
def up(
    state: State = _STATE,
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 0,
    speed: Speed = 1,
) -> None:
    """Start a local cloud and print the exports: eval "$(windlass local up)"."""
    cloud = _server().up(state, port, speed=speed)
    for name, value in cloud.env.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
    show.say(f"The local cloud runs as process {cloud.pid}; its log is {cloud.state / 'server.log'}.")
    show.hint("windlass infra deploy")


@app.command()
def down(state: State = _STATE) -> None:
    """End the local cloud, with everything it started."""
    cloud = _server().find(state)
    if cloud is None:
        raise NotFound(f"none runs on the state folder {state}", where="windlass local down", hint="windlass local up")
    cloud.stop()
    show.say("The local cloud has ended.")
    show.hint("windlass local up")


@app.command("status")
def status_(state: State = _STATE) -> None:
    """Where the local cloud answers."""
    cloud = _server().find(state)
    if cloud is None:
        raise NotFound(
            f"none runs on the state folder {state}", where="windlass local status", hint="windlass local up"
        )
    show.noun(cloud)
    show.hint("windlass local down")


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(help="After --, the command and its arguments.")],
    state: Annotated[
        Path | None, typer.Option("--state", help="Keep its state here; by default it is thrown away.")
    ] = None,
    foundation: Annotated[bool, typer.Option("--foundation", help="Deploy the foundation first.")] = False,
    speed: Speed = 1,
) -> None:
    """Run one command inside a fresh local cloud: windlass local run -- python train.py."""
    with (
        tempfile.TemporaryDirectory(prefix="windlass-") as scratch,
        _server().up(state or Path(scratch) / "state", lifeline=True, speed=speed) as cloud,
    ):
        environment = {**os.environ, **cloud.env}
        code = 0
        if foundation:
            deploy = [sys.executable, "-m", "windlass.cli", "infra", "deploy"]
            code = subprocess.run(deploy, env=environment, stdout=subprocess.DEVNULL, check=False).returncode
        code = code or _run(command, environment)
    raise typer.Exit(code)


def _run(command: list[str], environment: dict[str, str]) -> int:
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise InvalidInput(f"{command[0]} cannot be run: {error.strerror}", where="windlass local run") from error
    # Ctrl-C reaches the command too (it is in our process group); it ends in its own way, and then the cloud ends.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminated = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, previous)
        signal.signal(signal.SIGTERM, terminated)
    return code if code >= 0 else 128 - code


def _server() -> type[LocalCloud]:
    # Looked for, not imported: the server process is what uses it, and its import takes a second.
    missing = [name for name in ("moto", "flask", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(missing[0], "local", "The local cloud")
    from windlass.local import LocalCloud

    return LocalCloud
