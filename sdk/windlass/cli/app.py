"""The command tree. One module each for verbs, infra and the local cloud; what they call is imported when they run."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from windlass import __version__
from windlass.cli import infra, local, models, show, verbs


class _Commands(TyperGroup):
    """Says what Ctrl-C did not stop."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            show.say("Interrupted. What was started on AWS goes on: windlass runs list, windlass status.")
            raise typer.Exit(130) from error
        except typer.Abort as error:
            show.say("Aborted.")
            raise typer.Exit(130) from error


app = typer.Typer(
    name="windlass",
    cls=_Commands,
    help="From a training script to a watched SageMaker endpoint, and back when it goes bad.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"windlass {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


verbs.add_to(app)
app.command()(models.openapi)
app.add_typer(
    models.app,
    name="model",
    help="Model versions and bundles: show, compare, promote...",
)
app.add_typer(infra.app, name="infra", help="The AWS foundation: bucket, key, role, topic and their contract.")
app.add_typer(local.app, name="local", help="A cloud on this machine: real jobs, no AWS account.")
