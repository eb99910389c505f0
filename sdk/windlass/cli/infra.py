"""Commands for the foundation: deploy, diff, status, destroy."""

from __future__ import annotations

from typing import Annotated

import typer

from windlass.cli import show
from windlass.cli.verbs import Json, Project, _pairs

app = typer.Typer(no_args_is_help=True)
Parameters = Annotated[
    list[str] | None, typer.Option("--parameter", metavar="NAME=VALUE", help="Template parameter, as often as needed.")
]


@app.command()
def deploy(project: Project = "windlass", parameter: Parameters = None, as_json: Json = False) -> None:
    """Create or update the foundation; print its contract."""
    from windlass import foundation

    contract = foundation.deploy(project, _pairs(parameter, "--parameter"), on_event=lambda event: show.say(str(event)))
    show.noun(contract, as_json=as_json)
    show.hint("windlass train train.py --data train=PATH")


@app.command()
def diff(project: Project = "windlass", parameter: Parameters = None) -> None:
    """What deploy would change."""
    from windlass import foundation

    changes = foundation.diff(project, _pairs(parameter, "--parameter"))
    for change in changes:
        typer.echo(str(change))
    if not changes:
        show.say("No changes.")
    show.hint("windlass infra deploy" if changes else "windlass infra status")


@app.command()
def status(project: Project = "windlass", as_json: Json = False) -> None:
    """How the stack stands, and what is in it."""
    from windlass import foundation

    found = foundation.status(project)
    if as_json:
        return show.data(
            {"stack": found.stack, "state": found.state, "resources": [r.__dict__ for r in found.resources]}
        )
    show.say(f"{found.stack}: {found.state}" + (f" ({found.reason})" if found.reason else ""))
    rows = [(r.logical_id, r.type, r.status, r.physical_id) for r in found.resources]
    show.table(("resource", "type", "status", "id"), rows)
    return show.hint("windlass train train.py" if found.deployed else "windlass infra deploy")


@app.command()
def destroy(
    project: Project = "windlass", yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Delete the stack; says what it leaves behind."""
    from windlass import foundation

    if not yes:
        typer.confirm(f"Delete the foundation of project {project}?", abort=True)
    for kept in foundation.destroy(project, on_event=lambda event: show.say(str(event))):
        typer.echo(f"kept: {kept}")
    show.hint("windlass infra deploy")
