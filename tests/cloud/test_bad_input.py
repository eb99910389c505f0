"""What goes wrong says where, what and what to do, through the SDK and through the CLI, and leaves nothing unmentioned."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import boto3
import pytest

import windlass as wl
from tests.cloud.conftest import Rig
from tests.cloud.shop import GOOD_SCRIPT, INFERENCE, Shop
from windlass import cli
from windlass import foundation as foundations
from windlass.errors import (
    AccessDenied,
    Conflict,
    CorruptArtifact,
    DeploymentFailed,
    InvalidInput,
    JobFailed,
    MissingExtra,
    ModelFailed,
    NotFound,
    Refused,
    RolledBack,
    Unreachable,
    WindlassError,
)
from windlass.foundation import CONTRACT_VERSION, Contract

NOBODY = "arn:aws:iam::123456789012:role/nobody"


@pytest.fixture(scope="module", autouse=True)
def projects_that_lack_something(rig: Rig, foundation: Contract) -> None:
    whole = {**dataclasses.asdict(foundation), "version": CONTRACT_VERSION}
    for project, lacks in (("gone", {"bucket": "a-bucket-that-is-gone"}), ("roleless", {"role_arn": NOBODY})):
        value = json.dumps({**whole, **lacks})
        rig.client("ssm").put_parameter(Name=f"/windlass/{project}/contract", Value=value, Type="String")


@dataclass(frozen=True)
class Row:
    """One bad input.

    Attributes:
        sdk: what a program calls. It gets the shop and what ``given`` made.
        argv: the same through the CLI; None where the CLI cannot be asked for it.
        kind: of the error.
        says: what the message holds.
        unsaid: what it must not hold.
        given: what has to be there before.
    """

    sdk: Callable[[Shop, Any], object] | None
    argv: Callable[[Shop, Any], Sequence[object]] | None
    kind: type[WindlassError]
    says: tuple[str, ...]
    unsaid: tuple[str, ...] = ()
    given: Callable[[Shop], Any] = lambda shop: None


OURS = ("CalledProcessError", "runpy", "windlass/runtime", "<frozen")


def training(script: str, *says: str, **hyperparameters: Any) -> Row:
    """A script that fails. What is ours never shows in its traceback."""
    pairs = [word for name, value in hyperparameters.items() for word in ("-p", f"{name}={value}")]
    return Row(
        lambda shop, path: wl.train(path, hyperparameters=hyperparameters),
        lambda shop, path: ["train", path, *pairs],
        JobFailed,
        ("Train 'train-", "windlass runs log train-", *says),
        OURS,
        lambda shop: shop.script(script),
    )


def refused(kind: type[WindlassError], *says: str, cli: Sequence[object] = (), data: Any = None, **options: Any) -> Row:
    """A training job that does not start."""
    return Row(
        lambda shop, path: wl.train(path, data, **options),
        lambda shop, path: ["train", path, *cli],
        kind,
        says,
        given=lambda shop: shop.script(GOOD_SCRIPT),
    )


GONE_BUCKET = "s3://no-such-bucket-here/data"
RAISES = """
def step(batch):
    return 1 / batch
def main():
    step(0)
main()
"""
ARGPARSE = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.parse_args()
"""

TRAIN: dict[str, Row] = {
    "an option that is not there": Row(
        lambda shop, path: wl.train(path, instance_typ="ml.m5.large"),
        None,
        InvalidInput,
        ("Training: unknown argument 'instance_typ'", "Did you mean 'instance_type'? Valid: script, instance_type,"),
        given=lambda shop: shop.script(GOOD_SCRIPT),
    ),
    "data in a bucket that is not there": refused(
        Refused,
        GONE_BUCKET,
        "ensure that the bucket exists",
        data=GONE_BUCKET,
        cli=["--data", f"training={GONE_BUCKET}"],
    ),
    "data that is not there": refused(
        InvalidInput,
        "Training: data of channel 'train', nowhere/data, does not exist",
        "Give a local path or an s3:// URI",
        data={"train": "nowhere/data"},
        cli=["--data", "train=nowhere/data"],
    ),
    "data at no URI": refused(
        InvalidInput,
        "'s3:///x' is not an S3 URI",
        "It looks like s3://",
        data="s3:///x",
        cli=["-d", "training=s3:///x"],
    ),
    "a channel of a wrong name": refused(
        InvalidInput,
        "Training: channel name 'my data' may hold letters",
        data={"my data": "."},
        cli=["--data", "my data=."],
    ),
    "a role that is no ARN": refused(
        InvalidInput,
        "Training: role_arn='admin'",
        "it looks like arn:aws:iam",
        role_arn="admin",
        cli=["--role", "admin"],
    ),
    "a role that is not there": refused(
        Refused,
        f"Could not assume role {NOBODY}",
        "ensure that the role exists",
        role_arn=NOBODY,
        cli=["--role", NOBODY],
    ),
    "no instance type": refused(
        InvalidInput,
        "Training: instance_type='m5.xlarge'",
        "it looks like ml.m5.xlarge",
        instance_type="m5.xlarge",
        cli=["--instance-type", "m5.xlarge"],
    ),
    "an instance type that is not there": refused(
        Refused, "'ml.q7.xlarge'", " more", instance_type="ml.q7.xlarge", cli=["--instance-type", "ml.q7.xlarge"]
    ),
    "no image": refused(
        InvalidInput, "Training: image='my image'", "no spaces", image="my image", cli=["--image", "my image"]
    ),
    "a script that is not there": Row(
        lambda shop, path: wl.train(path),
        lambda shop, path: ["train", path],
        InvalidInput,
        ("Training: script", "trian.py does not exist", "there is: evaluate.py, inference.py, train.py"),
        given=lambda shop: shop.script(GOOD_SCRIPT).with_name("trian.py"),
    ),
    "a source folder that is not there": Row(
        lambda shop, _: wl.train("train.py", source=shop.folder / "nowhere"),
        lambda shop, _: ["train", "train.py", "--source", shop.folder / "nowhere"],
        InvalidInput,
        ("Training: source folder", "nowhere does not exist", "source="),
    ),
    "a hyperparameter of a wrong type": refused(
        InvalidInput,
        "Training: hyperparameters=",
        "'layers' is a list",
        "pass a str, int, float or bool",
        hyperparameters={"layers": [64, 10]},
        cli=["-p", "layers=[64, 10]"],
    ),
    "a project without a foundation": refused(
        NotFound,
        "/windlass/nowhere/contract",
        "windlass infra deploy --project nowhere",
        project="nowhere",
        cli=["--project", "nowhere"],
    ),
    "a foundation whose bucket is gone": refused(
        NotFound,
        "bucket 'a-bucket-that-is-gone': it does not exist",
        "windlass infra status",
        project="gone",
        cli=["--project", "gone"],
    ),
    "a script that raises": training(
        RAISES,
        "AlgorithmError: ZeroDivisionError: division by zero",
        "Traceback (most recent call last)",
        "in main",
        "in step",
        "return 1 / batch",
    ),
    "a script with a syntax error": training("def broken(:\n", "SyntaxError", "train.py"),
    "a script that misses a module": training("import no_such_module\n", "ModuleNotFoundError", "no_such_module"),
    "a script that exits with 3": training("print('gave up')\nimport sys; sys.exit(3)\n", "gave up", "exit code: 3"),
    "a script that does not know its arguments": training(
        ARGPARSE, "usage: train.py", "unrecognized arguments: --width 8", "exit code: 2", width=8
    ),
    "a script that gets a wrong argument": training(
        ARGPARSE, "usage: train.py", "argument --epochs: invalid int value: 'many'", epochs="many"
    ),
    "a script that a signal ends": training(
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "exit code: 137", "memory", "instance_type="
    ),
}


def telling(kind: type[WindlassError], *says: str, argv: Sequence[object]) -> Row:
    """What only the CLI can be asked for."""
    return Row(None, lambda shop, _: argv, kind, says)


def no_run(verb: str) -> Row:
    argv = {"evaluate": ["evaluate"], "register": ["register"], "show": ["runs", "show"]}[verb]
    return Row(
        lambda shop, _: wl.Run.from_name("nobody"),
        lambda shop, _: [*argv, "nobody"],
        NotFound,
        ("Looking up run 'nobody'", "windlass runs list"),
    )


def failed_run(shop: Shop) -> wl.Run:
    with pytest.raises(JobFailed):
        shop.trained(script="raise SystemExit(1)")
    return wl.Run.from_name(wl.Run.list(limit=1)[0])


def spoilt_run(shop: Shop) -> wl.Run:
    run = shop.trained()
    shop.spoil(run.model_uri)
    return run


def emptied_run(shop: Shop) -> wl.Run:
    run = shop.trained()
    shop.remove(run.model_uri)
    return run


def run_without_inference(shop: Shop) -> wl.Run:
    script = shop.script(GOOD_SCRIPT)
    (script.parent / "inference.py").unlink()
    return wl.train(script)


def registering(given: Callable[[Shop], wl.Run], kind: type[WindlassError], *says: str, model: str = "good") -> Row:
    return Row(
        lambda shop, run: wl.register(run, model),
        lambda shop, run: ["register", run.name, "--model", model],
        kind,
        says,
        given=given,
    )


REGISTER: dict[str, Row] = {
    "evaluating a run that is not there": no_run("evaluate"),
    "evaluating a run that failed": Row(
        lambda shop, run: wl.evaluate(run),
        lambda shop, run: ["evaluate", run.name],
        InvalidInput,
        ("Evaluating 'train-", "the run is Failed and has no model"),
        given=failed_run,
    ),
    "evaluating with a script that is not there": Row(
        lambda shop, _: wl.evaluate(shop.run, script="score.py"),
        lambda shop, _: ["evaluate", shop.run.name, "--script", "score.py"],
        JobFailed,
        ("Evaluate 'evaluate-", "no file 'score.py'", "It holds: evaluate.py, inference.py, train.py"),
    ),
    "registering a run that is not there": no_run("register"),
    "showing a run that is not there": no_run("show"),
    "stopping a run that has ended": Row(
        lambda shop, _: shop.run.stop(),
        lambda shop, _: ["runs", "stop", shop.run.name],
        Refused,
        ("Stopping 'train-", "is in status Completed"),
    ),
    "registering a run that failed": registering(
        failed_run, InvalidInput, "Registering run 'train-", "the run is Failed"
    ),
    "registering a corrupt archive": registering(
        spoilt_run, CorruptArtifact, "Registering run 'train-", "/output/model.tar.gz", "not a tar.gz"
    ),
    "registering an archive that is gone": registering(
        emptied_run, NotFound, "Downloading s3://", "/output/model.tar.gz", "does not exist"
    ),
    "registering what nothing can serve": registering(
        run_without_inference, InvalidInput, "Registering run 'train-", "no inference.py", "beside the training script"
    ),
    "registering under a wrong name": registering(
        lambda shop: shop.run,
        InvalidInput,
        "'my model' is not a SageMaker name",
        "Use up to 63 letters",
        model="my model",
    ),
    "registering with an evaluation that is none": Row(
        lambda shop, _: wl.register(shop.run, "good", evaluation=shop.run),
        lambda shop, _: ["register", shop.run.name, "--model", "good", "--evaluation", shop.run.name],
        NotFound,
        ("Reading the evaluation of 'train-", "evaluate.py writes evaluation.json"),
    ),
    "registering into a project without a foundation": Row(
        lambda shop, _: wl.register(shop.run, project="nowhere"),
        lambda shop, _: ["register", shop.run.name, "--project", "nowhere"],
        NotFound,
        ("/windlass/nowhere/contract", "windlass infra deploy --project nowhere"),
    ),
    "a version that is not there": Row(
        lambda shop, _: wl.ModelVersion.from_name("good/9"),
        lambda shop, _: ["approve", "good/9"],
        NotFound,
        ("Looking up model version 'good/9'", "There are: good/2 (PendingManualApproval), good/1 (Approved)."),
    ),
    "a version that is no number": Row(
        lambda shop, _: wl.ModelVersion.from_name("good/best"),
        lambda shop, _: ["reject", "good/best"],
        InvalidInput,
        ("Looking up model version 'good/best'", "'good/best' is not a model version", "It looks like digits/3"),
    ),
    "a model that is not there": Row(
        lambda shop, _: wl.ModelVersion.from_name("nobody"),
        lambda shop, _: ["versions", "nobody"],
        NotFound,
        ("nobody", "does not exist", "windlass register"),
    ),
}

CANNOT_LOAD = """
def load(path):
    raise RuntimeError(f"{path} holds no weights")
def model_fn(model_dir):
    return load("weights.safetensors")
"""


def spoilt_version(shop: Shop) -> wl.ModelVersion:
    version = shop.approved(archive=True)
    shop.spoil(version.model_uri)
    return version


def emptied_version(shop: Shop) -> wl.ModelVersion:
    version = shop.approved(INFERENCE + "# a bundle of its own\n", archive=True)
    shop.remove(version.model_uri)
    return version


def version_without_manifest(shop: Shop) -> wl.ModelVersion:
    version = shop.approved(INFERENCE + "# a prefix of its own\n")
    shop.remove(f"{version.model_uri}windlass.json")
    return version


def deploying(
    given: Callable[[Shop], wl.ModelVersion],
    kind: type[WindlassError],
    *says: str,
    cli: Sequence[object] | None = (),
    endpoint: str | None = None,
    **options: Any,
) -> Row:
    where = ["--endpoint", endpoint] if endpoint else []
    return Row(
        lambda shop, version: wl.deploy(version, endpoint, **options),
        None if cli is None else lambda shop, version: ["deploy", version.name, *where, *cli],
        kind,
        says,
        OURS,
        given,
    )


def good(shop: Shop) -> wl.ModelVersion:
    return shop.version


DEPLOY: dict[str, Row] = {
    "a version that is not approved": deploying(
        lambda shop: shop.pending,
        InvalidInput,
        "Deploying good/2: it is PendingManualApproval",
        "windlass approve good/2",
    ),
    "a model that does not load": deploying(
        lambda shop: shop.approved(CANNOT_LOAD),
        DeploymentFailed,
        "Deploying endpoint 'model-",
        "RuntimeError: weights.safetensors holds no weights",
        "in model_fn",
        "in load",
        "windlass delete model-",
    ),
    "an update to a model that does not load": deploying(
        lambda shop: shop.approved(CANNOT_LOAD),
        RolledBack,
        "Deploying endpoint 'live'",
        "rolled back to live-v1-",
        "RuntimeError: weights.safetensors holds no weights",
        endpoint="live",
    ),
    "a corrupt archive": deploying(
        spoilt_version, DeploymentFailed, "Deploying endpoint 'model-", "model.tar.gz", "windlass delete model-"
    ),
    "an archive that is gone": deploying(
        emptied_version, NotFound, "Deploying model-", "model.tar.gz is gone", "Register the run again."
    ),
    "a prefix without its manifest": deploying(
        version_without_manifest, NotFound, "Deploying model-", "/ is gone", "Register the run again."
    ),
    "no instance type for it": deploying(
        good, InvalidInput, "instance_type='m5'", "it looks like", instance_type="m5", cli=["--instance-type", "m5"]
    ),
    "memory for it that no serverless endpoint has": deploying(
        good,
        InvalidInput,
        "serverless_memory_mb=1500",
        "multiple of 1024",
        serverless_memory_mb=1500,
        cli=["--serverless", "1500"],
    ),
    "a prefix for it without servers": deploying(
        good,
        InvalidInput,
        "which serverless endpoints cannot read",
        "archive=True",
        serverless_memory_mb=1024,
        cli=["--serverless", "1024"],
    ),
    "a folder for its answers that is not on S3": deploying(
        good,
        InvalidInput,
        "async_output='/tmp/answers'",
        "it looks like s3://bucket/answers",
        async_output="/tmp/answers",
        cli=["--async-output", "/tmp/answers"],
    ),
    "a topic for it and no queue": deploying(
        good,
        InvalidInput,
        "error_topic needs async_output",
        error_topic="arn:aws:sns:us-east-1:123456789012:t",
        cli=["--error-topic", "arn:aws:sns:us-east-1:123456789012:t"],
    ),
    "an instance type for it that is not there": deploying(
        good,
        Refused,
        "'ml.q7.xlarge'",
        "Already made: model half-v1-",
        endpoint="half",
        instance_type="ml.q7.xlarge",
        cli=["--instance-type", "ml.q7.xlarge"],
    ),
    "a foundation whose role is gone": deploying(
        good,
        Refused,
        "Deploy roleless: ",
        NOBODY,
        endpoint="roleless",
        project="roleless",
        cli=["--project", "roleless"],
    ),
    "a wrong name for it": deploying(
        good, InvalidInput, "'my endpoint' is not a SageMaker name", "Use up to 63 letters", endpoint="my endpoint"
    ),
    "a promise that nothing measures": telling(
        InvalidInput,
        "Reading --slo: metric='p98_latency'",
        "'accuracy', 'p99_latency' or 'error_rate'",
        argv=["deploy", "good/1", "--slo", "p98_latency=1"],
    ),
    "a promise that cannot be": Row(
        lambda shop, _: wl.Slo.accuracy(95),
        lambda shop, _: ["deploy", "good/1", "--slo", "accuracy=95"],
        InvalidInput,
        ("accuracy is a share between 0 and 1, got 95",),
    ),
    "a promise about what is not captured": deploying(
        good,
        InvalidInput,
        "an accuracy SLO needs captured predictions",
        slos=[wl.Slo.accuracy(0.9)],
        capture_percent=0,
        cli=None,
    ),
    "a project without a foundation for it": deploying(
        good, NotFound, "windlass infra deploy --project nowhere", project="nowhere", cli=["--project", "nowhere"]
    ),
}


def asking(data: Any, kind: type[WindlassError], *says: str, **options: Any) -> Row:
    return Row(
        lambda shop, _: shop.endpoint.predict(data, **options),
        None,
        kind,
        ("Predicting with 'live'", *says),
    )


def no_endpoint(*argv: object) -> Row:
    return Row(
        lambda shop, _: wl.Endpoint.from_name("nobody"),
        lambda shop, _: argv,
        NotFound,
        ("Looking up endpoint 'nobody'", "Could not find endpoint", "windlass status"),
    )


def labelled(shop: Shop) -> str:
    """An endpoint with a prediction whose label came in, captured."""
    said = shop.endpoint.predict([1])
    shop.endpoint.label(said.inference_id, 7)
    return said.inference_id


SERVE: dict[str, Row] = {
    "an object": asking(object(), InvalidInput, "object cannot be sent", "Give JSON values"),
    "a set inside": asking({"ids": {1, 2}}, InvalidInput, "dict cannot be sent", "set is not JSON serializable"),
    "not a number": asking([float("nan")], InvalidInput, "list cannot be sent", "not JSON compliant"),
    "bytes of no type": asking(b"1,2", InvalidInput, "without content_type=", "As in 'application/x-npy'."),
    "data that the model cannot take": Row(
        lambda shop, _: shop.endpoint.predict("raise"),
        lambda shop, _: ["predict", "live", "--json-body", '"raise"'],
        ModelFailed,
        ("Predicting with 'live'", "Traceback", "in predict_fn", "ValueError: three channels expected"),
        OURS,
    ),
    "text that is no JSON": Row(
        lambda shop, _: shop.endpoint.predict(b"[1,", content_type="application/json"),
        lambda shop, _: ["predict", "live", "--json-body", "[1,"],
        ModelFailed,
        ("Predicting with 'live'", "in input_fn", "JSONDecodeError"),
        OURS,
    ),
    "no request": telling(InvalidInput, "windlass predict", "--json-body or --file", argv=["predict", "live"]),
    "a request that is not there": telling(
        InvalidInput, "nowhere.json is not a file", argv=["predict", "live", "--file", "nowhere.json"]
    ),
    "an endpoint that is not there": no_endpoint("predict", "nobody", "--json-body", "1"),
    "labelling at an endpoint that is not there": no_endpoint("label", "nobody", "some-id", "7"),
    "judging an endpoint that is not there": no_endpoint("quality", "nobody"),
    "rolling back an endpoint that is not there": no_endpoint("rollback", "nobody"),
    "deleting an endpoint that is not there": no_endpoint("delete", "nobody", "--yes"),
    "looking at an endpoint that is not there": no_endpoint("status", "nobody"),
    "no labels": Row(
        lambda shop, _: shop.endpoint.label_many([]),
        None,
        InvalidInput,
        ("Labelling predictions of 'live': no labels were given",),
    ),
    "going back to nothing": Row(
        lambda shop, _: shop.endpoint.rollback(),
        lambda shop, _: ["rollback", "live"],
        NotFound,
        ("Rolling back endpoint 'live'", "no config before live-v1-", "windlass deploy"),
    ),
    "answers without the key": Row(
        lambda shop, _: shop.judged(prediction="class"),
        lambda shop, _: ["quality", "live", "--prediction", "class"],
        InvalidInput,
        ("Judging endpoint 'live'", "the model's answer has no 'class'; it has label", "prediction="),
        given=labelled,
    ),
    "a local cloud that does not run": telling(
        NotFound, "none runs on the state folder", "windlass local up", argv=["local", "down", "--state", "/nowhere"]
    ),
    "a stack that is not there": Row(
        lambda shop, _: foundations.destroy("nowhere"),
        lambda shop, _: ["infra", "destroy", "--yes", "--project", "nowhere"],
        NotFound,
        ("Destroying foundation 'nowhere'", "there is no stack nowhere-foundation", "--project NAME"),
    ),
    "a parameter that the template lacks": Row(
        lambda shop, _: foundations.deploy(parameters={"Bucket": "x"}),
        lambda shop, _: ["infra", "deploy", "--parameter", "Bucket=x"],
        InvalidInput,
        ("Deploying foundation 'windlass'", "parameter 'Bucket' is unknown", "Valid:"),
    ),
    "an option that is no pair": telling(
        InvalidInput, "Reading --data", "'train' is not NAME=VALUE", argv=["train", "train.py", "--data", "train"]
    ),
    "a bound that is no number": telling(
        InvalidInput, "Reading --slo", "'fast' is not a number", argv=["deploy", "good/1", "--slo", "p99_latency=fast"]
    ),
}

ROWS = {
    f"{name}: {case}": row
    for name, table in (("train", TRAIN), ("register", REGISTER), ("deploy", DEPLOY), ("serve", SERVE))
    for case, row in table.items()
}


def through_the_sdk(row: Row, shop: Shop, given: Any) -> str:
    assert row.sdk
    with pytest.raises(row.kind) as caught:
        row.sdk(shop, given)
    return str(caught.value)


def through_the_cli(row: Row, shop: Shop, given: Any, capsys: pytest.CaptureFixture[str]) -> str:
    assert row.argv
    capsys.readouterr()
    status = cli.main([str(word) for word in row.argv(shop, given)])
    out, err = capsys.readouterr()
    assert (status, out) == (1, ""), err
    [message] = re.findall(r"^error: (.*)\n\Z", err, re.MULTILINE | re.DOTALL)
    assert "\nerror: " not in message
    return str(message)


WAYS = [
    (case, way)
    for case, row in ROWS.items()
    for way in ("sdk", "cli")
    if getattr(row, {"sdk": "sdk", "cli": "argv"}[way])
]


@pytest.mark.parametrize(("case", "way"), WAYS)
def test_bad_input(case: str, way: str, shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    row = ROWS[case]
    given = row.given(shop)
    before = shop.inventory()

    message = through_the_sdk(row, shop, given) if way == "sdk" else through_the_cli(row, shop, given, capsys)

    assert [part for part in row.says if part not in message] == [], message
    assert [part for part in row.unsaid if part in message] == [], message
    # An alarm's name ends with its config's, under which the message speaks of it.
    assert [new for new in shop.inventory() - before if new.rsplit("/", 1)[-1] not in message] == [], message


def test_an_endpoint_that_failed_goes_as_its_error_says(shop: Shop) -> None:
    version = shop.approved(CANNOT_LOAD)
    before = shop.inventory()
    with pytest.raises(DeploymentFailed, match=f"windlass delete {version.model} "):
        wl.deploy(version, slos=[wl.Slo.error_rate(0.01)])
    with pytest.raises(Conflict, match=f"windlass delete {version.model}, then deploy again"):
        wl.deploy(version)

    assert cli.main(["delete", version.model, "--yes"]) == 0

    assert shop.inventory() == before


def test_a_service_that_does_not_answer_is_named(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)

    with pytest.raises(Unreachable, match=f"Looking up run 'x': .*{url}.*Check the network and the endpoint URL"):
        wl.Run.from_name("x")


@pytest.mark.parametrize(
    ("missing", "kind", "says"),
    [
        (["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], AccessDenied, "no AWS credentials .*aws configure"),
        (["AWS_REGION", "AWS_DEFAULT_REGION"], InvalidInput, "no AWS region. Set AWS_DEFAULT_REGION"),
    ],
)
def test_what_boto3_has_not_been_told_is_named(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, missing: list[str], kind: type[WindlassError], says: str
) -> None:
    for name in missing:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)

    with pytest.raises(kind, match=says):
        wl.Run.from_name("x")


def test_an_array_names_the_extra_that_is_missing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)

    with pytest.raises(MissingExtra, match=r"needs the package 'numpy'. Install it: pip install 'windlass\[serve\]'"):
        shop.endpoint.predict([1], accept="application/x-npy")
