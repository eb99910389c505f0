"""The same folder under AWS's own inference toolkits and under our model server: the same bytes, types and statuses."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.runtime.serving import Server
from tests.unit.runtime.word_tokenizer import save_tokenizer
from windlass import artifact
from windlass.optimize.export import export
from windlass.runtime.hooks import Handler, Invocation

TOOLKITS = Path(sys.prefix) / "foreign" / "toolkits"
JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"

pytestmark = pytest.mark.skipif(
    not TOOLKITS.exists(), reason="AWS's inference toolkits are not installed: make foreign"
)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@dataclass(frozen=True)
class Request:
    body: bytes
    content_type: str = JSON
    accept: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


Answer = tuple[int, str, bytes]
Serve = Callable[[Path, Sequence[Request]], list[Answer]]


def under_the_toolkit(toolkit: str, folder: Path, requests: Sequence[Request], **env: str) -> list[Answer]:
    code = folder / "code"
    driver = Path(__file__).with_name("toolkit.py")
    lines = [
        json.dumps(
            {
                "headers": {"Content-Type": each.content_type, "Accept": each.accept, **each.headers},
                "body": base64.b64encode(each.body).decode(),
            }
        )
        for each in requests
    ]
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        "PYTHONPATH": str(code),
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": str(code),
        "SAGEMAKER_BASE_DIR": str(folder.parent),
        "OMP_NUM_THREADS": "1",
        **env,
    }
    command = [TOOLKITS / "bin" / "python", driver, toolkit, folder]
    said = subprocess.run(
        command, input="\n".join(lines), env=environment, capture_output=True, text=True, check=False, cwd=folder
    )
    assert said.returncode == 0, said.stderr
    answers = [json.loads(line) for line in said.stdout.splitlines()]
    return [(each["status"], each["content_type"], base64.b64decode(each["body"])) for each in answers]


def over_http(folder: Path, requests: Sequence[Request]) -> list[Answer]:
    server = Server(folder.parent, {"OMP_NUM_THREADS": "1"})
    try:
        server.ready()
        replies = [
            server.client.post(
                "/invocations",
                content=each.body,
                headers={"content-type": each.content_type, "accept": each.accept, **each.headers},
            )
            for each in requests
        ]
        return [(reply.status_code, reply.headers["content-type"], reply.content) for reply in replies]
    finally:
        server.close()


@pytest.fixture
def ours() -> Iterator[Callable[[Path, Sequence[Request]], list[Answer]]]:
    """The same without HTTP, which takes seconds to start for each folder."""
    path = list(sys.path)

    def serve(folder: Path, requests: Sequence[Request]) -> list[Answer]:
        handler = Handler.load(folder, folder / "code", "inference.py")
        invocations = [
            Invocation(each.body, {"content-type": each.content_type, "accept": each.accept, **each.headers})
            for each in requests
        ]
        return [(reply.status, reply.content_type, reply.body) for reply in map(handler, invocations)]

    yield serve
    sys.path[:] = path
    sys.modules.pop("inference", None)


def written(base: Path, source: str | None) -> Path:
    folder = base / "ml" / "model"
    (folder / "code").mkdir(parents=True)
    if source is not None:
        (folder / "code" / "inference.py").write_text(dedent(source))
    return folder


EVERY_TYPE = [
    Request(body, content_type, accept)
    for accept in (JSON, CSV, NPY)
    for content_type, body in (
        (JSON, b"[[0.1, 2, 3], [4, 5, 6e-7]]"),
        (CSV, b"0.1,2.0,3.0\n4.0,5.0,6e-7\n"),
        (NPY, npy(np.array([[0.1, 2, 3], [4, 5, 6e-7]], np.float32))),
    )
]

DEFAULTS = """
    import torch
    def model_fn(model_dir):
        torch.manual_seed(0)
        return torch.nn.Linear(3, 2)
"""
ALL_HOOKS = """
    import io, json
    import numpy as np, torch
    def model_fn(model_dir, context):
        torch.manual_seed(0)
        return torch.nn.Linear(3, 2), context.model_name
    def input_fn(body, content_type):
        if content_type == "application/json": return torch.tensor(json.loads(body))
        if content_type == "text/csv": return torch.from_numpy(np.genfromtxt(io.StringIO(body), np.float32, delimiter=","))
        return torch.from_numpy(np.load(io.BytesIO(body)))
    def predict_fn(data, model, context):
        with torch.inference_mode(): return model[0](data), model[1]
    def output_fn(prediction, accept, context):
        tensor, name = prediction
        context.set_response_header(0, "x-model", name)
        if accept == "text/csv": return "\\n".join(",".join(map(str, row)) for row in tensor.tolist()), accept
        if accept == "application/x-npy":
            stream = io.BytesIO()
            np.save(stream, tensor.numpy())
            return stream.getvalue()
        return json.dumps({"y": tensor.tolist()})
"""
TRANSFORM = """
    def model_fn(model_dir): return "é"
    def transform_fn(model, body, content_type, accept):
        return repr((model, body, content_type, accept)), "text/plain"
"""
WARMED = """
    steps = []
    def pre_model_fn(model_dir): steps.append("pre")
    def model_fn(model_dir): steps.append("model"); return steps
    def model_warmup_fn(model_dir, model): model.append("warm")
    def input_fn(body, content_type): return body
    def predict_fn(data, model): return model
"""


@pytest.mark.parametrize("source", [DEFAULTS, TRANSFORM, WARMED], ids=["defaults", "transform", "warm"])
def test_user_code_answers_the_same_bytes(source: str, tmp_path: Path, ours: Serve) -> None:
    folder = written(tmp_path, source)
    requests = EVERY_TYPE[:3] if source is WARMED else EVERY_TYPE
    theirs = under_the_toolkit("pytorch", folder, requests)
    assert {status for status, _, _ in theirs} == {200}
    assert ours(folder, requests) == theirs


def test_numbers_of_every_kind_answer_the_same_bytes(tmp_path: Path, ours: Serve) -> None:
    folder = written(
        tmp_path,
        """
        import numpy as np, torch
        VALUES = [
            torch.tensor([1, 2**40]), torch.tensor([0.1, 1e-30]), torch.tensor([True, False]), torch.tensor([[[1.5]]]),
            np.array([0.1], np.float32), np.array([[1, 2]], np.int16), [0.1, 2], {"a": np.float64(0.5), "b": [1, "é"]},
            np.arange(3)[1:], torch.ones(2, dtype=torch.float64) / 3, "text", 7, None, True,
        ]
        def model_fn(model_dir): return VALUES
        def input_fn(body, content_type): return body
        def predict_fn(data, model): return model[int(data)]
        """,
    )
    requests = [Request(str(number).encode()) for number in range(14)]
    requests += [Request(str(number).encode(), accept=CSV) for number in (0, 1, 2, 4, 5, 6, 8, 9)]
    requests += [Request(str(number).encode(), accept=NPY) for number in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
    assert ours(folder, requests) == under_the_toolkit("pytorch", folder, requests)


def test_what_hooks_may_return_answers_the_same_bytes(tmp_path: Path, ours: Serve) -> None:
    folder = written(
        tmp_path,
        """
        ANSWERS = [
            "é", b"\\x00", bytearray(b"raw"), {"a": [1, "é"]}, [1, 2], 3.5, None,
            ("text", "text/plain"), (b"x", "image/png"), ({"a": 1}, "application/json"), ("a", "text/csv", "more"),
        ]
        def model_fn(model_dir): return ANSWERS
        def transform_fn(model, body, content_type, accept): return model[int(body)]
        """,
    )
    requests = [Request(str(number).encode()) for number in range(11)]
    assert ours(folder, requests) == under_the_toolkit("pytorch", folder, requests)


def test_a_torchscript_model_needs_no_code(tmp_path: Path, ours: Serve) -> None:
    folder = written(tmp_path, None)
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, and still what the toolkit loads
        torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)).save(folder / "model.pth")
    assert ours(folder, EVERY_TYPE) == under_the_toolkit("pytorch", folder, EVERY_TYPE)


def test_a_bundle_of_ours_answers_the_same_bytes(tmp_path: Path, ours: Serve) -> None:
    torch.manual_seed(0)
    export(tmp_path / "exported", torch.nn.Linear(3, 2), {"x": torch.zeros(2, 3)}, outputs=("y",))
    built = artifact.build(tmp_path / "exported", tmp_path / "model.tar.gz")
    folder = artifact.open(built.path, tmp_path / "ml" / "model").path
    requests = [Request(b'{"x": [[0.1, 2, 3]]}'), Request(b'{"x": [[1, 2, 3], [4, 5, 6]]}')]
    assert ours(folder, requests) == under_the_toolkit("pytorch", folder, requests)


def test_errors_have_the_same_status(tmp_path: Path, ours: Serve) -> None:
    folder = written(
        tmp_path,
        """
        import sys
        from sagemaker_inference.errors import BaseInferenceToolkitError
        def model_fn(model_dir): return None
        def input_fn(body, content_type): return int(body)
        def predict_fn(data, model):
            if data == 1: raise ValueError("one")
            if data == 2: raise BaseInferenceToolkitError(422, "two", "phrase")
            if data == 3: return object()
            if data == 4: return data.nothing
            return {"a": data}
        """,
    )
    requests = [Request(str(number).encode()) for number in range(5)]
    requests += [Request(b"0", accept=CSV), Request(b"0", accept=NPY)]
    theirs = under_the_toolkit("pytorch", folder, requests)
    mine = ours(folder, requests)
    assert [status for status, _, _ in mine][:5] == [status for status, _, _ in theirs][:5] == [200, 500, 422, 500, 500]
    # Of the two answers that no format holds, the toolkit says 500 and an array of objects, pickled. Ours is a clear 406.
    assert [status for status, _, _ in mine][5:] == [406, 406]


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text classifier with random weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("classifier") / "model"
    words = ["[PAD]", "[UNK]", "good", "bad", "film"]
    save_tokenizer(folder, words)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        id2label={0: "schön", 1: "schlecht"},
        label2id={"schön": 0, "schlecht": 1},
    )
    transformers.BertForSequenceClassification(config).eval().save_pretrained(folder)
    # transformers 5 writes a name of its own for the class, which version 4 does not know.
    settings = folder / "tokenizer_config.json"
    named = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(named))
    return folder


def test_a_pipeline_answers_as_under_the_hugging_face_toolkit(classifier: Path, ours: Serve) -> None:
    requests = [
        Request(b'{"inputs": "good film"}'),
        Request(b'{"inputs": ["good film", "bad"], "parameters": {"top_k": 2}}'),
        Request(b"inputs\ngood film\nbad\n", CSV),
        Request(b"inputs\ngood film\nbad\n", CSV, CSV),
    ]
    theirs = under_the_toolkit("huggingface", classifier, requests)
    mine = ours(classifier, requests)
    assert [(status, kind) for status, kind, _ in mine] == [(status, kind) for status, kind, _ in theirs]
    # Two versions of transformers computed them: the last digits of the scores may differ, the writing of them not.
    for (_, kind, own), (_, _, other) in zip(mine, theirs, strict=True):
        assert shape(own, kind) == shape(other, kind)


def shape(body: bytes, kind: str) -> str:
    """The body with its numbers rounded."""
    import re

    return re.sub(r"0\.\d+", lambda found: f"{float(found[0]):.5f}", body.decode())
