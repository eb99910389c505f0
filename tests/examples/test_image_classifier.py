"""The image classifier template, run as a user runs it: scripts in a shell, with neither SDK nor cloud nor network."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

TEMPLATE = Path(__file__).parents[2] / "templates" / "image-classifier"

# One worker trains once for all of these.
pytestmark = pytest.mark.xdist_group("image-classifier")


class Shell:
    """Runs the template's scripts in a folder, where neither windlass nor boto3 can be imported and no socket connects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        fence = folder / "fence"
        fence.mkdir()
        for name in ("windlass", "boto3"):
            (fence / f"{name}.py").write_text("raise ImportError('the template must not need it')\n")
        (fence / "sitecustomize.py").write_text(
            "import socket\n"
            "def refuse(*_):\n"
            "    raise OSError('the template must not need a network')\n"
            "socket.socket.connect = socket.getaddrinfo = refuse\n"
        )
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        # No bytecode: the template's folder is what users copy, and it stays as it is.
        self.environment = {**kept, "PYTHONPATH": str(fence), "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(TEMPLATE / command[0]), *command[1:]],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def fail(self, *command: str, **variables: str) -> str:
        process = self.start(*command, **variables)
        _, errors = process.communicate(timeout=120)
        assert process.returncode not in (0, None)
        return errors

    def run(self, *command: str, **variables: str) -> str:
        process = self.start(*command, **variables)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return output


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with the data prepared."""
    shell = Shell(tmp_path_factory.mktemp("classifier"))
    shell.run("prepare.py", "--out", "data")
    return shell


@pytest.fixture(scope="module")
def trained(shell: Shell) -> str:
    """What five epochs print. The model is in `out`."""
    return shell.run(
        "train.py", "--train", "data/train", "--validation", "data/validation", "--model-dir", "out", "--epochs", "5"
    )


@pytest.fixture
def inference(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(TEMPLATE))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield importlib.import_module("inference")
    for name in ("inference", "model"):
        sys.modules.pop(name, None)


def test_the_fence_holds(shell: Shell, tmp_path: Path) -> None:
    for reach_out in ("import windlass", "import boto3", "import urllib.request as u; u.urlopen('http://127.0.0.1:9')"):
        done = subprocess.run([sys.executable, "-c", reach_out], env=shell.environment, capture_output=True, text=True)
        assert "the template must not need" in done.stderr


def scores(line: str) -> dict[str, float]:
    return {name: float(value) for name, value in (word.split("=") for word in line.split())}


def test_prepare_splits_every_digit_evenly_and_the_same_way_each_time(shell: Shell) -> None:
    shell.run("prepare.py", "--out", "again")

    sizes = {}
    for split in ("train", "validation", "test"):
        images = np.load(shell.folder / "data" / split / "images.npy")
        labels = np.load(shell.folder / "data" / split / "labels.npy")
        assert (images.dtype, images.shape[1:], int(images.min()), int(images.max())) == (np.uint8, (8, 8), 0, 16)
        assert labels.dtype == np.int64
        share = np.bincount(labels, minlength=10) / len(labels)
        assert np.all(np.abs(share - 0.1) < 0.01)
        for name in ("images.npy", "labels.npy"):
            first, second = (shell.folder / out / split / name for out in ("data", "again"))
            assert first.read_bytes() == second.read_bytes()
        sizes[split] = len(images)
    assert sizes == {"train": 1077, "validation": 360, "test": 360}


def test_training_prints_a_metric_line_for_each_epoch(trained: str) -> None:
    epochs = [scores(line) for line in trained.splitlines()]

    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4, 5]
    assert all(set(epoch) == {"epoch", "train:loss", "validation:loss", "validation:accuracy"} for epoch in epochs)
    assert epochs[-1]["train:loss"] < epochs[0]["train:loss"]
    assert epochs[-1]["validation:accuracy"] >= 0.97


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "model.tar.gz"])
def test_evaluation_of_held_out_images(shell: Shell, trained: str, packed: bool, tmp_path: Path) -> None:
    # Given the model as files, or as the archive that a training job leaves
    channel = shell.folder / "out"
    if packed:
        channel = tmp_path
        with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
            tar.add(shell.folder / "out" / "model.safetensors", "model.safetensors")

    # When it is evaluated under the container's variables
    output = tmp_path / "output"
    variables = {"SM_CHANNEL_MODEL": str(channel), "SM_CHANNEL_TEST": "data/test", "SM_OUTPUT_DATA_DIR": str(output)}
    line = scores(shell.run("evaluate.py", **variables))

    # Then the printed numbers, the file and the confusion matrix agree
    evaluation = json.loads((output / "evaluation.json").read_text())
    metrics = evaluation["multiclass_classification_metrics"]
    counts = metrics["confusion_matrix"]
    right = sum(counts[digit][digit] for digit in counts)
    assert evaluation["samples"] == sum(sum(row.values()) for row in counts.values()) == 360
    assert line["test:accuracy"] >= 0.97
    assert metrics["accuracy"]["value"] == pytest.approx(right / 360)
    assert 0 < metrics["accuracy"]["standard_deviation"] < 0.02
    for printed, stored in {"accuracy": "accuracy", "precision": "precision_macro", "recall": "recall_macro"}.items():
        assert line[f"test:{printed}"] == pytest.approx(metrics[stored]["value"], abs=5e-5)
    recalls = [counts[digit][digit] / sum(counts[digit].values()) for digit in counts]
    assert metrics["recall_macro"]["value"] == pytest.approx(sum(recalls) / 10)
    assert {"weighted_precision", "weighted_recall", "weighted_f1", "f1_macro"} <= set(metrics)


def test_evaluation_refuses_an_archive_that_climbs_out(shell: Shell, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../escaped"), io.BytesIO())

    errors = shell.fail("evaluate.py", "--model", str(tmp_path), "--test", "data/test")

    assert "OutsideDestinationError" in errors


def test_shuffled_labels_give_a_bad_model(shell: Shell) -> None:
    shell.run("prepare.py", "--out", "bad", "--shuffle-labels")
    shell.run("train.py", "--train", "bad/train", "--validation", "bad/validation", "--model-dir", "bad-out")
    line = shell.run("evaluate.py", "--model", "bad-out", "--test", "bad/test", "--output-dir", "bad-evaluation")

    # Only the training labels are wrong, so the harm is seen.
    assert (shell.folder / "bad/test/labels.npy").read_bytes() == (shell.folder / "data/test/labels.npy").read_bytes()
    assert scores(line)["test:accuracy"] <= 0.3


def test_sigterm_saves_and_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(shell: Shell) -> None:
    # Given a run under the container's variables, stopped in the middle
    def train(name: str) -> dict[str, str]:
        return {
            "SM_CHANNEL_TRAIN": "data/train",
            "SM_CHANNEL_VALIDATION": "data/validation",
            "SM_MODEL_DIR": name,
            "SM_CHECKPOINT_DIR": f"{name}-checkpoints",
        }

    options = ("train.py", "--epochs", "8", "--batch_size", "64")
    process = shell.start(*options, **train("broken"))
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch=1 ")
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Stopped by SIGTERM after step" in output
    assert (shell.folder / "broken" / "model.safetensors").exists()

    # When it is started again with its checkpoints
    resumed = shell.run(*options, **train("broken"))

    # Then it goes on where it was, to the same end
    assert resumed.startswith("Resumed from step ")
    assert "epoch=1 " not in resumed
    assert "epoch=8 " in resumed
    shell.run(*options, **train("unbroken"))
    broken, unbroken = (load_file(shell.folder / name / "model.safetensors") for name in ("broken", "unbroken"))
    assert set(broken) == set(unbroken)
    for name, weights in unbroken.items():
        np.testing.assert_array_equal(broken[name], weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "three"], "argument --epochs: 'three' is not a whole number of at least 1"),
        (["--epochs", "0"], "argument --epochs: '0' is not a whole number of at least 1"),
        (["--batch-size", "1.5"], "argument --batch-size/--batch_size: '1.5' is not a whole number of at least 1"),
        (["--learning-rate", "-1"], "argument --learning-rate/--learning_rate: '-1' is not a number above 0"),
        (["--train", "nowhere"], "argument --train: there is no folder 'nowhere'. prepare.py writes the data"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
        (["--train", "data"], "data/images.npy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_training_names_a_bad_argument(shell: Shell, options: list[str], message: str) -> None:
    assert message in shell.fail("train.py", *options)


def test_inference_hooks_round_trip(shell: Shell, trained: str, inference: ModuleType) -> None:
    # Given held-out images and the trained model
    images = np.load(shell.folder / "data/test/images.npy")
    labels = np.load(shell.folder / "data/test/labels.npy")
    model = inference.model_fn(str(shell.folder / "out"))

    def predict(body: bytes | str, content_type: str) -> dict[str, list[Any]]:
        answer = inference.output_fn(
            inference.predict_fn(inference.input_fn(body, content_type), model), "application/json"
        )
        return dict(json.loads(answer))

    # When they are sent in every form that is read
    as_npy = io.BytesIO()
    np.save(as_npy, images)
    batch = predict(json.dumps({"image": images.tolist()}), "application/json; charset=utf-8")
    single = predict(json.dumps({"image": images[0].tolist()}).encode(), "application/json")

    # Then the answers are the same, one entry for each image
    assert np.mean(np.array(batch["label"]) == labels) >= 0.97
    assert all(0.1 <= probability <= 1.0 for probability in batch["probability"])
    assert predict(as_npy.getvalue(), "application/x-npy") == batch
    assert single["label"] == batch["label"][:1]
    assert single["probability"] == pytest.approx(batch["probability"][:1], abs=1e-5)


def test_the_signature_names_what_the_hooks_take_and_give(shell: Shell, trained: str, inference: ModuleType) -> None:
    signature = json.loads((TEMPLATE / "signature.json").read_text())
    model = inference.model_fn(str(shell.folder / "out"))

    (image,) = signature["inputs"]
    prediction = inference.predict_fn(np.zeros([3, *image["shape"][1:]], dtype=image["dtype"]), model)

    assert image["name"] == "image"
    for output in signature["outputs"]:
        values = prediction.pop(output["name"])
        assert (str(values.dtype), ["batch", *values.shape[1:]]) == (output["dtype"], output["shape"])
    assert not prediction
    assert signature["content_type"] == "application/json"


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"{", "application/json", "not JSON"),
        (b"\xff", "application/json", "not JSON"),
        (b"[1]", "application/json", 'one key "image" is expected, found list'),
        (b'{"picture": [[1]]}', "application/json", "found \\['picture'\\]"),
        (b'{"image": [[1, 2], [3]]}', "application/json", "rows of one length"),
        (b'{"image": [[1, 2], [3, 4]]}', "application/json", "is expected, found \\[2, 2\\]"),
        (b'{"image": []}', "application/json", "is expected, found \\[0\\]"),
        (b'{"image": "seven"}', "application/json", "is expected, found \\[\\]"),
        (npy(np.zeros((0, 8, 8), np.uint8)), "application/x-npy", "is expected, found \\[0, 8, 8\\]"),
        (npy(np.full((8, 8), 17)), "application/x-npy", "values of 0 to 16 are expected, found 17 to 17"),
        (npy(np.full((8, 8), -1)), "application/x-npy", "found -1 to -1"),
        (npy(np.full((8, 8), np.nan)), "application/x-npy", "found nan to nan"),
        (npy(np.full((8, 8), 0.5)), "application/x-npy", "whole numbers are expected"),
        (npy(np.full((8, 8), "a")), "application/x-npy", "numbers are expected"),
        (b"not an array", "application/x-npy", "not an array of numbers"),
        (b"", "application/x-npy", "not an array of numbers"),
        (b"1,2,3", "text/csv", "Valid: application/json, application/x-npy"),
    ],
)
def test_a_bad_body_is_a_value_error(inference: ModuleType, body: bytes, content_type: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inference.input_fn(body, content_type)


def test_only_json_is_written(inference: ModuleType) -> None:
    prediction = {"label": np.array([7]), "probability": np.array([0.5], dtype=np.float32)}

    assert inference.output_fn(prediction, "text/html, */*;q=0.8") == '{"label": [7], "probability": [0.5]}'
    with pytest.raises(ValueError, match="Accept 'text/csv'"):
        inference.output_fn(prediction, "text/csv")
