"""Commands for the verbs: train, evaluate, register, deploy, predict, label, roll back, and looking at what there is."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from windlass.cli import show
from windlass.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from windlass.gates import Policy
    from windlass.specs import Slo

Project = Annotated[str, typer.Option("--project", envvar="WINDLASS_PROJECT", help="Whose foundation to use.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and send nothing.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the name alone, for scripts.")]
DataOption = Annotated[
    list[str] | None, typer.Option("--data", "-d", help="CHANNEL=PATH or CHANNEL=s3://..., as often as needed.")
]
Hyper = Annotated[
    list[str] | None, typer.Option("--hyperparameter", "-p", metavar="NAME=VALUE", help="Reaches the script.")
]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="YAML with the fields of windlass.Policy.")]
InstanceType = Annotated[str | None, typer.Option("--instance-type", help="As in ml.m5.xlarge.")]
InstanceCount = Annotated[int | None, typer.Option("--instance-count", help="How many of them; by default 1.")]
EndpointName = Annotated[str, typer.Argument(help="As windlass status lists it.")]
RunName = Annotated[str, typer.Argument(help="As windlass runs list has it.")]
Why = Annotated[str, typer.Option("--why", help="Kept with the decision.")]


def add_to(app: typer.Typer) -> None:
    for command in (
        train,
        evaluate,
        register,
        approve,
        reject,
        deploy,
        predict,
        label,
        quality,
        rollback,
        delete,
        status,
    ):
        app.command()(command)
    app.command("versions")(versions)
    app.command("plan", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(plan)
    runs = typer.Typer(help="Runs: training and evaluation jobs.", no_args_is_help=True)
    runs.command("list")(runs_list)
    runs.command("show")(runs_show)
    runs.command("log")(runs_log)
    runs.command("stop")(runs_stop)
    app.add_typer(runs, name="runs")


def train(
    script: Annotated[Path, typer.Argument(help="The training script; its folder goes along.")],
    data: DataOption = None,
    hyperparameter: Hyper = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", help="Printed as NAME=NUMBER by the script.")
    ] = None,
    source: Annotated[Path | None, typer.Option("--source", help="Folder of the code, if not the script's.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Base of the job's name.")] = None,
    instance_type: InstanceType = None,
    instance_count: InstanceCount = None,
    image: Annotated[str | None, typer.Option("--image", help="Training image URI.")] = None,
    role: Annotated[str | None, typer.Option("--role", help="Execution role ARN.")] = None,
    max_runtime: Annotated[int | None, typer.Option("--max-runtime", help="Seconds after which it is stopped.")] = None,
    project: Project = "windlass",
    wait: Wait = True,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a training script as a SageMaker job."""
    import windlass as wl

    parameters = _pairs(hyperparameter, "--hyperparameter", literal=True)
    options = _given(
        instance_type=instance_type,
        instance_count=instance_count,
        image=image,
        role_arn=role,
        max_runtime_seconds=max_runtime,
        metrics=tuple(metric) if metric else None,
        hyperparameters=parameters,
    )
    common: dict[str, Any] = {"source": source, "name": name, "project": project, **options}
    channels = _pairs(data, "--data")
    if dry_run:
        return _print_plan(wl.train(script, channels or None, dry_run=True, **common))
    with _progress("Training", parameters.get("epochs")) as progress:
        run = wl.train(script, channels or None, wait=wait, on_log=progress.line, **common)
    show.noun(run, as_json=as_json, quiet=quiet)
    return show.hint(
        f"windlass evaluate {run.name} --data test=PATH" if wait else f"windlass runs log {run.name} --follow"
    )


def evaluate(
    run: Annotated[str, typer.Argument(help="Name of a training run.")],
    data: DataOption = None,
    script: Annotated[
        str, typer.Option("--script", help="The one that scores, beside the training script.")
    ] = "evaluate.py",
    instance_type: InstanceType = None,
    project: Project = "windlass",
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a trained model on data it has not seen."""
    import windlass as wl

    trained, channels = wl.Run.from_name(run), _pairs(data, "--data")
    options: dict[str, Any] = {"script": script, "project": project, **_given(instance_type=instance_type)}
    if dry_run:
        return _print_plan(wl.evaluate(trained, channels or None, dry_run=True, **options))
    with _progress("Evaluating") as progress:
        scores = wl.evaluate(trained, channels or None, on_log=progress.line, **options)
    show.noun(scores, as_json=as_json, quiet=quiet)
    return show.hint(f"windlass register {run} --evaluation {scores.name}")


def register(
    run: Annotated[str, typer.Argument(help="Name of a training run, or a folder with a model.")],
    model: Annotated[str | None, typer.Option("--model", help="Model package group; by default the project's.")] = None,
    code: Annotated[Path | None, typer.Option("--code", help="Folder of the serving code, if not the run's.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="What a folder's model was made from; its digest is recorded.")
    ] = None,
    evaluation: Annotated[str | None, typer.Option("--evaluation", help="Name of an evaluation run.")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Approve it at once.")] = False,
    description: Annotated[str, typer.Option("--description", help="For people; by default where it came from.")] = "",
    image: Annotated[str | None, typer.Option("--image", help="Inference image URI.")] = None,
    license: Annotated[str, typer.Option("--license", help="SPDX expression.")] = "",  # noqa: A002
    policy: PolicyFile = None,
    sign_with: Annotated[str | None, typer.Option("--sign-with", help="Asymmetric KMS key: id, ARN or alias.")] = None,
    archive: Annotated[bool, typer.Option("--archive", help="Upload one model.tar.gz, not a prefix.")] = False,
    project: Project = "windlass",
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Package a model and enter it in the registry."""
    import windlass as wl

    trained = Path(run) if Path(run).is_dir() else wl.Run.from_name(run)
    options: dict[str, Any] = {
        "evaluation": wl.Run.from_name(evaluation) if evaluation else None,
        "approve": approve,
        "description": description,
        "image": image,
        "code": code,
        "data": data,
        "license": license,
        "policy": read_policy(policy),
        "sign_with": sign_with,
        "archive": archive,
        "project": project,
    }
    if dry_run:
        return _print_plan(wl.register(trained, model, dry_run=True, **options))
    version = wl.register(trained, model, **options)
    show.noun(version, as_json=as_json, quiet=quiet)
    return show.hint(f"windlass {'deploy' if approve else 'approve'} {version.name}")


VersionName = Annotated[
    str, typer.Argument(help="As in digits/1 or digits@champion; digits alone is the newest approved one.")
]


def approve(
    version: VersionName,
    why: Why = "",
    project: Project = "windlass",
    as_json: Json = False,
) -> None:
    """Allow a model version to be deployed."""
    import windlass as wl

    decided = wl.ModelVersion.from_name(version, project=project).approve(why)
    show.noun(decided, as_json=as_json)
    show.hint(f"windlass deploy {decided.name}")


def reject(
    version: VersionName,
    why: Why = "",
    project: Project = "windlass",
    as_json: Json = False,
) -> None:
    """Never let a model version be deployed."""
    import windlass as wl

    decided = wl.ModelVersion.from_name(version, project=project).reject(why)
    show.noun(decided, as_json=as_json)
    show.hint(f"windlass versions {decided.model}")


def versions(
    model: Annotated[str, typer.Argument(help="Model package group.")],
    project: Project = "windlass",
    as_json: Json = False,
) -> None:
    """List a model's versions."""
    import windlass as wl
    from windlass import aliases

    found = [wl.ModelVersion.from_name(name) for name in wl.ModelVersion.list(model)]
    if as_json:
        return show.data([version.__dict__ for version in found])
    named = aliases.read(model, bucket=wl.Contract.load(project).bucket)
    rows = [
        (
            v.name,
            ", ".join(sorted(alias for alias, number in named.items() if number == v.version)),
            v.approval,
            v.stage,
            v.metadata.get("test:accuracy", ""),
            v.metadata.get("run", ""),
        )
        for v in found
    ]
    show.table(("version", "aliases", "approval", "stage", "accuracy", "run"), rows)
    return show.hint(f"windlass deploy {found[0].name}" if found else "windlass register RUN")


def deploy(
    version: VersionName,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="By default named as the model.")] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option("--slo", help="accuracy=0.95, p99_latency=200 (ms) or error_rate=0.01; as often as needed."),
    ] = None,
    period: Annotated[int | None, typer.Option("--slo-period", help="Seconds of one alarm datapoint.")] = None,
    instance_type: InstanceType = None,
    instance_count: InstanceCount = None,
    bake: Annotated[
        int | None, typer.Option("--bake", help="Seconds the old fleet stays ready after the shift.")
    ] = None,
    canary: Annotated[int | None, typer.Option("--canary", help="Percent of traffic that goes first.")] = None,
    linear: Annotated[int | None, typer.Option("--linear", help="Percent of traffic that each step moves.")] = None,
    rolling: Annotated[int | None, typer.Option("--rolling", help="Percent of instances replaced at a time.")] = None,
    step: Annotated[int | None, typer.Option("--step", help="Seconds each linear or rolling step bakes.")] = None,
    shadow: Annotated[
        int | None, typer.Option("--shadow", help="Percent of requests copied to it; the live version answers on.")
    ] = None,
    serverless: Annotated[
        int | None, typer.Option("--serverless", metavar="MB", help="No instances: servers of that memory, on demand.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", help="Requests at once: serverless, or of an instance of a queue."),
    ] = None,
    provisioned: Annotated[int | None, typer.Option("--provisioned", help="Serverless servers that are kept.")] = None,
    async_output: Annotated[
        str | None, typer.Option("--async-output", metavar="S3_URI", help="Requests wait in a queue; answers go there.")
    ] = None,
    success_topic: Annotated[str | None, typer.Option("--success-topic", help="ARN; hears of answers.")] = None,
    error_topic: Annotated[str | None, typer.Option("--error-topic", help="ARN; hears of failures.")] = None,
    policy: PolicyFile = None,
    project: Project = "windlass",
    wait: Wait = True,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve a model version; update a live endpoint under guard."""
    import windlass as wl

    options = _given(
        instance_type=instance_type,
        instance_count=instance_count,
        bake_seconds=bake,
        canary_percent=canary,
        linear_percent=linear,
        rolling_percent=rolling,
        step_seconds=step,
        shadow_percent=shadow,
        serverless_memory_mb=serverless,
        provisioned_concurrency=provisioned,
        async_output=async_output,
        success_topic=success_topic,
        error_topic=error_topic,
        **{"async_concurrency" if async_output else "serverless_concurrency": concurrency},
    )
    common: dict[str, Any] = {"slos": _slos(slo, period), "policy": read_policy(policy), "project": project, **options}
    if dry_run:
        return _print_plan(wl.deploy(version, endpoint, dry_run=True, **common))
    started = wl.deploy(version, endpoint, wait=False, **common)
    show.say(f"{started.name} is {started.status}: {started.wanted_config}")
    live = started.wait() if wait else started
    show.noun(live, as_json=as_json, quiet=quiet)
    return show.hint(f"windlass predict {live.name} --json-body '{{...}}'" if wait else f"windlass status {live.name}")


def predict(
    endpoint: EndpointName,
    body: Annotated[str | None, typer.Option("--json-body", help="The request as JSON.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="The request from a file; - is stdin.")] = None,
    content_type: Annotated[str, typer.Option("--content-type", help="Of the request.")] = "application/json",
    inference_id: Annotated[
        str | None, typer.Option("--inference-id", help="What a label will name it by; by default a fresh one.")
    ] = None,
) -> None:
    """Ask the model, and print its answer as JSON."""
    import windlass as wl

    if (body is None) == (file is None):
        raise InvalidInput("give either --json-body or --file", where="windlass predict")
    if body is not None:
        raw = body.encode()
    else:
        assert file is not None
        if str(file) != "-" and not file.is_file():
            raise InvalidInput(f"{file} is not a file", where="windlass predict")
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    result = wl.Endpoint.from_name(endpoint).predict(raw, content_type=content_type, inference_id=inference_id)
    output = result.output.tolist() if hasattr(result.output, "tolist") else result.output
    show.data({"inference_id": result.inference_id, "latency_ms": round(result.latency_ms, 2), "output": output})
    show.hint(f"windlass label {endpoint} {result.inference_id} TRUTH")


def label(
    endpoint: EndpointName,
    inference_id: Annotated[str, typer.Argument(help="As predict printed it.")],
    truth: Annotated[str, typer.Argument(help="JSON, or else text.")],
) -> None:
    """Say what a prediction should have been."""
    import windlass as wl

    wl.Endpoint.from_name(endpoint).label(inference_id, _literal(truth))
    show.hint(f"windlass quality {endpoint}")


def quality(
    endpoint: EndpointName,
    prediction: Annotated[str, typer.Option("--prediction", help="Key of the answer that holds the class.")] = "label",
    as_json: Json = False,
) -> None:
    """Join new labels to predictions; publish the accuracy."""
    import windlass as wl

    results = wl.monitor.quality(wl.Endpoint.from_name(endpoint), prediction=prediction)
    if as_json:
        return show.data([result.__dict__ for result in results])
    rows = [(q.model_version, q.accuracy, q.lower_bound, q.samples, q.coverage_percent, q.lag_seconds) for q in results]
    show.table(("version", "accuracy", "lower bound", "samples", "coverage %", "lag s"), rows)
    return show.hint(f"windlass status {endpoint}")


def rollback(endpoint: EndpointName, wait: Wait = True, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Serve the version from before again, at once."""
    import windlass as wl

    back = wl.Endpoint.from_name(endpoint).rollback(wait=wait, dry_run=dry_run)
    if isinstance(back, wl.Plan):
        return _print_plan(back)
    show.noun(back, as_json=as_json)
    return show.hint(f"windlass status {endpoint}")


def delete(
    endpoint: EndpointName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete an endpoint with its configs, models and alarms."""
    import windlass as wl

    found = wl.Endpoint.from_name(endpoint)
    if not yes:
        typer.confirm(f"Delete endpoint {endpoint}, which serves {found.model_version}?", abort=True)
    found.delete()
    show.hint("windlass status")


def status(
    endpoint: Annotated[str | None, typer.Argument(help="One endpoint; without it, all of them.")] = None,
    as_json: Json = False,
) -> None:
    """What is in service, and how its alarms stand."""
    import windlass as wl

    names = [endpoint] if endpoint else wl.Endpoint.list()
    rows = []
    for name in names:
        try:
            found = wl.Endpoint.from_name(name)
            alarms = wl.monitor.alarms(found, found.config)
        except NotFound:
            if endpoint:
                raise
            continue  # deleted since it was listed
        states = {alarm.split("/")[1]: state for alarm, state in alarms.items()}
        rows.append({"endpoint": name, "status": found.status, "version": found.model_version, "alarms": states})
        rows[-1] |= {"config": found.config, "reason": found.reason}
    if as_json:
        return show.data(rows)
    show.table(("endpoint", "status", "version", "alarms", "config"), [list(row.values())[:5] for row in rows])
    for row in rows:
        if row["reason"]:
            show.say(f"{row['endpoint']}: {row['reason']}")
    return show.hint(f"windlass rollback {names[0]}" if names else "windlass deploy VERSION")


def plan(context: typer.Context) -> None:
    """Print what a verb would do, its cost and IAM actions.

    As in windlass plan train train.py: any verb that takes --dry-run.
    """
    # `windlass plan VERB ...` is `windlass VERB ... --dry-run`; main() turns one into the other. Here no verb was given.
    raise typer.BadParameter(
        "name a verb: windlass plan train|evaluate|register|deploy|rollback|model promote ...", ctx=context
    )


def runs_list(limit: Annotated[int, typer.Option("--limit", help="How many.")] = 20, as_json: Json = False) -> None:
    """The newest runs."""
    import windlass as wl

    found = [wl.Run.from_name(name) for name in wl.Run.list(limit=limit)]
    if as_json:
        return show.data([run.__dict__ for run in found])
    show.table(("run", "kind", "status", "metrics"), [(r.name, r.kind, r.status, r.metrics) for r in found])
    return show.hint(f"windlass runs show {found[0].name}" if found else "windlass train train.py")


def runs_show(name: RunName, as_json: Json = False) -> None:
    """One run, with its metrics."""
    import windlass as wl

    run = wl.Run.from_name(name)
    show.noun(run, as_json=as_json)
    show.hint(f"windlass runs log {name}")


def runs_log(
    name: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
) -> None:
    """A run's log."""
    import windlass as wl

    run = wl.Run.from_name(name)
    if follow:
        run.wait(on_log=typer.echo)
    else:
        for line, _ in run.log_lines():
            typer.echo(line)
    show.hint(f"windlass runs show {name}")


def runs_stop(name: RunName, as_json: Json = False) -> None:
    """Ask a run to save and stop."""
    import windlass as wl

    show.noun(wl.Run.from_name(name).stop(), as_json=as_json)
    show.hint(f"windlass runs log {name} --follow")


# ------------------------------------------------------------------------------------------------------------------ parsing


def _given(**options: Any) -> dict[str, Any]:
    """Options that were given; the spec knows the defaults of the others."""
    return {name: value for name, value in options.items() if value is not None}


def _pairs(items: Sequence[str] | None, option: str, *, literal: bool = False) -> dict[str, Any]:
    pairs = {}
    for item in items or ():
        name, sign, value = item.partition("=")
        if not sign or not name:
            raise InvalidInput(f"{item!r} is not NAME=VALUE", where=f"Reading {option}")
        pairs[name] = _literal(value) if literal else value
    return pairs


def _literal(text: str) -> Any:
    """Numbers and booleans as such; everything else is text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float | bool | list) else text


def _slos(items: Sequence[str] | None, period: int | None) -> list[Slo]:
    from windlass.specs import Slo

    slos = []
    for name, value in _pairs(items, "--slo").items():
        try:
            bound = float(value)
        except ValueError as error:
            raise InvalidInput(f"{name}={value}: {value!r} is not a number", where="Reading --slo") from error
        slos.append(Slo.check("Reading --slo", metric=name, bound=bound, **_given(period_seconds=period)))
    return slos


def read_policy(path: Path | None) -> Policy | None:
    if path is None:
        return None
    import yaml

    from windlass.gates import Policy

    where = f"Reading {path}"
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InvalidInput(str(error), where=where) from error
    if not isinstance(fields, dict):
        raise InvalidInput("it holds no fields", where=where, hint="As in: licenses: [Apache-2.0]")
    return Policy.check(where, **fields)


def _progress(title: str, epochs: Any = None) -> Any:
    from windlass.progress import JobProgress

    return JobProgress(title, epochs if isinstance(epochs, int) else None)


def _print_plan(plan: object) -> None:
    typer.echo(str(plan))
    show.hint("the same command without --dry-run (or without 'plan')")
