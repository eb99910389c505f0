"""Commands for the registry (show, check, alias, compare, move, delete) and for bundles on this disk (verify, diff)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from windlass.cli import show
from windlass.cli.verbs import DryRun, Json, PolicyFile, Project, Why, read_policy

app = typer.Typer(no_args_is_help=True)
Version = Annotated[str, typer.Argument(help="As in digits/3, or digits@champion; digits alone: the newest approved.")]
Folder = Annotated[Path, typer.Argument(help="A bundle, unpacked: a folder with windlass.json.")]


@app.command()
def compare(
    first: Version,
    second: Version,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page, too.")] = None,
    project: Project = "windlass",
    as_json: Json = False,
) -> None:
    """Whether one version is better than another.

    A paired test, on the evaluation set that both were registered with.
    """
    from windlass.registry import ModelVersion

    versions = [ModelVersion.from_name(name, project=project) for name in (first, second)]
    answer = versions[0].compare(versions[1])
    if html:
        html.write_text(answer.to_html(), encoding="utf-8")
    if as_json:
        show.data({**answer.__dict__, "better": answer.better})
    else:
        rows = [(name, before, after, after - before) for name, (before, after) in sorted(answer.metrics.items())]
        show.table(("metric", answer.first, answer.second, "difference"), rows)
        typer.echo(str(answer))
    show.hint(f"windlass model alias {answer.better or answer.first} champion")


@app.command()
def alias(
    version: Version,
    name: Annotated[str, typer.Argument(help="As in champion or shadow.")],
    expected: Annotated[
        int | None, typer.Option("--expected", help="Only if it names this version number now.")
    ] = None,
    project: Project = "windlass",
    as_json: Json = False,
) -> None:
    """Let MODEL@NAME be a version."""
    from windlass.aliases import ANYTHING
    from windlass.registry import ModelVersion

    found = ModelVersion.from_name(version, project=project)
    found.alias(name, expected=ANYTHING if expected is None else expected, project=project)
    show.noun(found, as_json=as_json)
    show.hint(f"windlass deploy {found.model}@{name}")


@app.command()
def unalias(
    name: Annotated[str, typer.Argument(metavar="MODEL@NAME", help="As in digits@champion.")],
    project: Project = "windlass",
) -> None:
    """Take an alias away; the version that it names stays."""
    from windlass.errors import InvalidInput
    from windlass.registry import ModelVersion

    model, _, alias = name.partition("@")
    if not alias:
        raise InvalidInput(f"{name!r} is not an alias", where="Taking an alias away", hint="As in digits@champion.")
    ModelVersion.from_name(name, project=project).unalias(alias, project=project)
    show.hint(f"windlass versions {model}")


@app.command(name="show")
def show_(version: Version, project: Project = "windlass", as_json: Json = False) -> None:
    """Print a version: artifact, lineage, approval. MODEL alone is the newest approved one."""
    from windlass.registry import ModelVersion

    found = ModelVersion.from_name(version, project=project)
    show.noun(found, as_json=as_json)
    show.hint(f"windlass model check {found.name}")


@app.command()
def check(version: Version, policy: PolicyFile = None, project: Project = "windlass") -> None:
    """Make sure of a version: manifest, signature, policy.

    The manifest is compared with the registry's digest, the signature with KMS, and all of it with the policy.
    """
    from windlass.registry import ModelVersion

    found = ModelVersion.from_name(version, project=project)
    found.verify(read_policy(policy))
    typer.echo(f"{found.name} is what was registered, signed by {found.metadata.get('signed-by', 'nobody')}")
    show.hint(f"windlass deploy {found.name}")


@app.command()
def fetch(
    version: Version,
    dest: Annotated[Path, typer.Argument(help="The folder to fill; absent or empty.")],
    project: Project = "windlass",
) -> None:
    """Download a version's bundle, and verify it."""
    from windlass.registry import ModelVersion

    typer.echo(ModelVersion.from_name(version, project=project).fetch(dest).digest)
    show.hint(f"windlass model verify {dest}")


@app.command()
def stage(
    version: Version,
    name: Annotated[str, typer.Argument(metavar="STAGE", help="As in Staging or Production.")],
    why: Why = "",
    project: Project = "windlass",
    as_json: Json = False,
) -> None:
    """Say where a version is in its life. An approval is a thing of its own."""
    from windlass.registry import ModelVersion

    found = ModelVersion.from_name(version, project=project).move_to(name, why)
    show.noun(found, as_json=as_json)
    show.hint(f"windlass versions {found.model}")


@app.command()
def export(
    version: Version,
    dest: Annotated[Path, typer.Argument(help="The file to write, as in digits-3.tar.gz.")],
    project: Project = "windlass",
) -> None:
    """Write a version as one file.

    It holds the bundle, evaluation, lineage and signature.
    """
    from windlass.registry import ModelVersion

    typer.echo(str(ModelVersion.from_name(version, project=project).export(dest)))
    show.hint(f"windlass model import {dest}")


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="What export wrote.")],
    model: Annotated[str | None, typer.Option("--model", help="Model package group; by default as it was.")] = None,
    project: Project = "windlass",
    as_json: Json = False,
) -> None:
    """Enter an exported version as a new one, which waits for approval."""
    from windlass.registry import import_version

    version = import_version(path, model, project=project)
    show.noun(version, as_json=as_json)
    show.hint(f"windlass approve {version.name}")


@app.command()
def promote(
    version: Version,
    role: Annotated[str, typer.Option("--role", help="ARN of a role of the other account, to be assumed.")] = "",
    to_project: Annotated[
        str, typer.Option("--to-project", help="Whose foundation there takes it; by default as here.")
    ] = "",
    model: Annotated[str | None, typer.Option("--model", help="Model package group there; by default as here.")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Approve it there at once.")] = False,
    policy: PolicyFile = None,
    project: Project = "windlass",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Enter a version in the registry of another account or project."""
    from windlass.plans import Plan
    from windlass.registry import ModelVersion

    found = ModelVersion.from_name(version, project=project)
    made = found.promote(
        role_arn=role,
        project=to_project or project,
        model=model,
        approve=approve,
        policy=read_policy(policy),
        dry_run=dry_run,
    )
    if isinstance(made, Plan):
        typer.echo(str(made))
        return show.hint("the same command without --dry-run")
    show.noun(made, as_json=as_json)
    return show.hint(f"windlass {'deploy' if approve else 'approve'} {made.name}, over there")


@app.command()
def delete(
    version: Version,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    project: Project = "windlass",
) -> None:
    """Take a version out of the registry, unless it is needed.

    An endpoint that serves it or would roll back to it needs it, and so does an alias.
    """
    from windlass.registry import ModelVersion

    found = ModelVersion.from_name(version, project=project)
    if not yes:
        typer.confirm(f"Delete {found.name} from the registry?", abort=True)
    found.delete(project=project)
    show.hint(f"windlass versions {found.model}")


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A bundle: an unpacked folder, or a model.tar.gz.")],
) -> None:
    """Compare every file of a bundle with its manifest."""
    import tempfile

    from windlass import artifact

    with tempfile.TemporaryDirectory() as scratch:
        bundle = artifact.open(path, None if path.is_dir() else Path(scratch) / "model")
    typer.echo(bundle.digest)
    show.hint(f"windlass model diff {path} OTHER")


@app.command()
def diff(before: Folder, after: Folder) -> None:
    """What changed from one unpacked bundle to another."""
    from windlass import artifact
    from windlass.errors import NotFound

    manifests = []
    for folder in (before, after):
        manifest = artifact.read_manifest(folder)
        if manifest is None:
            raise NotFound(f"there is no {artifact.MANIFEST} in {folder}", where="Comparing bundles")
        manifests.append(manifest)
    changed = artifact.diff(*manifests)
    typer.echo(str(changed) if changed else "no difference")
    show.hint(f"windlass model verify {after}")


def openapi(
    what: Annotated[str, typer.Argument(help="A version, as in digits/3; or a folder with a bundle.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; by default it is printed.")
    ] = None,
    endpoint: Annotated[str, typer.Option("--endpoint", help="Describe this endpoint of the SageMaker runtime.")] = "",
    region: Annotated[str, typer.Option("--region", help="Of the endpoint.")] = "",
    project: Project = "windlass",
) -> None:
    """Write a model's API as OpenAPI 3.1, for typed clients.

    Other languages' generators make a client of it.
    """
    import json

    from windlass import artifact
    from windlass.errors import NotFound
    from windlass.registry import ModelVersion
    from windlass.runtime.openapi import document

    if (folder := Path(what)).is_dir():
        manifest, title = artifact.read_manifest(folder), folder.resolve().name
        if manifest is None:
            raise NotFound(f"there is no {artifact.MANIFEST} in {folder}", where="Writing an OpenAPI page")
        version = manifest.digest.removeprefix("sha256:")[:12]
    else:
        found = ModelVersion.from_name(what, project=project)
        manifest, title, version = found.manifest, found.model, str(found.version)
    text = json.dumps(
        document(manifest.signature, title=title, version=version, endpoint=endpoint, region=region), indent=1
    )
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
    show.hint(f"npx openapi-typescript {out or 'openapi.json'} -o {title}.ts")
