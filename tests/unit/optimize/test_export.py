"""Any framework's model becomes a folder, and the bundle of it serves itself: asked over HTTP, by the real model server."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sklearn.ensemble
import sklearn.linear_model
import sklearn.pipeline
import sklearn.preprocessing
import torch
import transformers

from tests.unit.runtime.serving import Server
from windlass import artifact
from windlass.errors import InvalidInput
from windlass.optimize.export import export

Serve = Callable[[Path], Server]


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.dropout(self.layer(x)) * scale
        return y, y.argmax(1)


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Build a bundle of a folder, unpack it as an endpoint does, and start the model server on it."""
    servers: list[Server] = []

    def start(folder: Path) -> Server:
        base = tmp_path_factory.mktemp("ml")
        artifact.open(artifact.build(folder, base / "model.tar.gz").path, base / "model")
        servers.append(Server(base, {"HF_HUB_OFFLINE": "1"}))
        return servers[-1].ready()

    yield start
    for server in servers:
        server.close()


def ask(server: Server, request: Any) -> Any:
    reply = server.invoke(json.dumps(request).encode())
    assert reply.status_code == 200, reply.text
    return reply.json()


# ------------------------------------------------------------------------------------------------------------------ torch


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Path:
    example = {"x": torch.randn(2, 4), "scale": torch.ones(2, 1)}
    return export(tmp_path_factory.mktemp("export") / "model", network, example, outputs=("scores", "label"))


def test_a_module_is_served_in_any_batch_without_its_class(program: Path, network: Network, serve: Serve) -> None:
    server = serve(program)
    for batch in (1, 2, 5):
        answer = ask(server, {"x": [[1, 2, 3, 4]] * batch, "scale": [[2.0]] * batch})
        expected = network.eval()(torch.tensor([[1.0, 2, 3, 4]] * batch), torch.full((batch, 1), 2.0))
        assert np.allclose(answer["scores"], expected[0].detach(), atol=1e-5)  # and no dropout
        assert answer["label"] == expected[1].tolist()
    for wrong, says in [
        (b'{"x": [[1]]}', "expected an object with x, scale"),
        (b"{", "is not application/json"),
        (b'{"x": [[1]], "scale": [[1]]}', r"shape (1, 1) came, (batch, 4) is expected"),
        (b'{"x": [["a", 1, 2, 3]], "scale": [[1]]}', "input 'x' is no float32 array"),
    ]:
        reply = server.invoke(wrong)
        assert (reply.status_code, says in reply.text) == (400, True), reply.text
    assert server.invoke(b"x", content_type="image/png").status_code == 415


def test_its_signature_and_example_are_the_model_s(program: Path) -> None:
    manifest = artifact.build(program).manifest
    assert manifest.signature is not None
    assert [(t.name, t.dtype, t.shape) for t in manifest.signature.inputs] == [
        ("x", "float32", ("batch", 4)),
        ("scale", "float32", ("batch", 1)),
    ]
    assert manifest.signature.outputs[1].dtype == "int64"
    assert (manifest.loader, manifest.pickles) == ("torch-export", ())
    assert f"torch=={torch.__version__.partition('+')[0]}" in manifest.requirements


def test_it_holds_no_pickle_of_a_class(program: Path) -> None:
    with zipfile.ZipFile(program / "model.pt2") as archive:
        assert not [name for name in archive.namelist() if name.endswith((".pkl", ".pickle"))]


def test_exporting_leaves_the_module_in_the_mode_it_was_in(tmp_path: Path, network: Network) -> None:
    network.train()
    export(tmp_path / "model", network, {"x": torch.randn(2, 4), "scale": torch.ones(2, 1)}, outputs=("a", "b"))
    assert network.training


def test_a_program_that_was_exported_already(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(torch.nn.Linear(4, 3), (x,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "program.pt2")
    for source in (program, tmp_path / "program.pt2"):
        export(tmp_path / "model", source, {"x": x})
        back = torch.export.load(tmp_path / "model" / "model.pt2").module()
        assert torch.equal(back(x), program.module()(x))
        (tmp_path / "model").rename(tmp_path / f"model-{id(source)}")


@pytest.mark.parametrize(
    ("example", "outputs", "says"),
    [
        (None, ("y",), "no example"),
        ({"x": torch.zeros(1, 4)}, ("y",), "at least 2"),
        ({"x": torch.tensor(1.0)}, ("y",), "at least 2"),
        ({"x": torch.zeros(2, 4)}, ("y", "z"), "1 outputs, and 2 names"),
    ],
)
def test_what_cannot_be_exported_is_said(
    tmp_path: Path, example: dict[str, torch.Tensor], outputs: tuple[str, ...], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        export(tmp_path / "model", torch.nn.Linear(4, 3), example, outputs=outputs)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- scikit-learn


def test_an_estimator_is_served_by_skops(tmp_path: Path, serve: Serve) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3))
    model = sklearn.pipeline.make_pipeline(
        sklearn.preprocessing.StandardScaler(), sklearn.linear_model.LogisticRegression()
    ).fit(rows, np.where(rows[:, 0] > 0, "up", "down"))
    export(tmp_path / "model", model, rows[:4])

    server = serve(tmp_path / "model")
    answer = ask(server, {"features": rows[:7].tolist()})

    assert answer["prediction"] == model.predict(rows[:7]).tolist()
    assert answer["probabilities"] == model.predict_proba(rows[:7]).tolist()
    csv = server.invoke(
        "\n".join(",".join(map(str, row)) for row in rows[:7].tolist()).encode(), content_type="text/csv"
    )
    npy = io.BytesIO()
    np.save(npy, rows[:7])
    for reply in (csv, server.invoke(npy.getvalue(), content_type="application/x-npy")):
        assert reply.json() == answer
    manifest = artifact.build(tmp_path / "model").manifest
    assert (manifest.loader, manifest.pickles) == ("skops", ())
    assert manifest.signature is not None
    assert [(t.name, t.dtype, t.shape) for t in manifest.signature.outputs] == [
        ("prediction", "str", ("batch",)),
        ("probabilities", "float64", ("batch", 2)),
    ]


def test_a_transformer_of_rows_has_one_output(tmp_path: Path) -> None:
    rows = np.arange(12.0).reshape(4, 3)
    export(tmp_path / "model", sklearn.preprocessing.StandardScaler().fit(rows), rows)
    signature = json.loads((tmp_path / "model" / "code" / "signature.json").read_text())
    assert [tensor["name"] for tensor in signature["outputs"]] == ["output"]


class Doubling(sklearn.base.BaseEstimator):
    """A type that skops cannot know."""

    def predict(self, rows: Any) -> Any:
        return rows[:, 0] * 2


def test_types_that_nobody_vouched_for_are_not_written(tmp_path: Path) -> None:
    rows = np.ones((2, 2))
    with pytest.raises(InvalidInput, match=r"skops does not know .*Doubling.*trusted_types="):
        export(tmp_path / "model", Doubling(), rows)
    assert list(tmp_path.iterdir()) == []
    export(tmp_path / "model", Doubling(), rows, trusted_types=[f"{__name__}.Doubling"])
    assert "Doubling" in (tmp_path / "model" / "trusted_types.json").read_text()


@pytest.mark.parametrize("example", [None, [1.0], np.array([["a", 1]], dtype=object), np.zeros((0, 2))])
def test_rows_that_are_none_are_said(tmp_path: Path, example: Any) -> None:
    model = sklearn.preprocessing.StandardScaler().fit(np.ones((2, 2)))
    with pytest.raises(InvalidInput, match=r"example|rows"):
        export(tmp_path / "model", model, example)


# ------------------------------------------------------------------------------------------------------------------- ONNX


def graph() -> onnx.ModelProto:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Add", ["x", "x"], ["twice"]), helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0)]
    made = helper.make_graph(
        nodes,
        "double",
        [helper.make_tensor_value_info("x", kind, ["batch", 2])],
        [helper.make_tensor_value_info("twice", kind, [None, 2]), helper.make_tensor_value_info("sum", kind, [])],
    )
    model: onnx.ModelProto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model


def test_an_onnx_graph_is_served_from_an_object_and_from_a_file(tmp_path: Path, serve: Serve) -> None:
    onnx.save(graph(), tmp_path / "other-name.onnx")
    export(tmp_path / "object", graph(), {"x": np.ones((3, 2), np.float32)})
    export(tmp_path / "file", tmp_path / "other-name.onnx")

    assert ask(serve(tmp_path / "object"), {"x": [[1, 2]]}) == {"twice": [[2.0, 4.0]], "sum": 3.0}
    first, second = (artifact.build(tmp_path / name).manifest for name in ("object", "file"))
    assert first.files["model.onnx"] == second.files["model.onnx"]
    assert first.signature is not None
    assert (first.loader, first.signature.example) == ("onnx", {"x": [[1.0, 1.0]]})
    assert first.signature.outputs[0].shape == ("batch", 2)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's exporter, of torch's own
def test_a_graph_of_torch_s_own_exporter(tmp_path: Path, network: Network, serve: Serve) -> None:
    x, scale = torch.randn(2, 4), torch.ones(2, 1)
    program = torch.onnx.export(
        network.eval(),
        (x, scale),
        input_names=["x", "scale"],
        output_names=["scores", "label"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    export(tmp_path / "model", program.model_proto)
    answer = ask(serve(tmp_path / "model"), {"x": x.tolist(), "scale": scale.tolist()})
    assert np.allclose(answer["scores"], network(x, scale)[0].detach(), atol=1e-5)


def test_what_is_no_graph_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(InvalidInput, match="no ONNX graph"):
        export(tmp_path / "model", tmp_path / "bad.onnx")
    assert not (tmp_path / "model").exists()


# ----------------------------------------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]))
    return transformers.BertTokenizer(str(folder / "vocab.txt"))


def bert(kind: Any) -> Any:
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return kind(transformers.BertConfig(vocab_size=8, **small)).eval()


def test_a_classifier_of_texts_is_served(tmp_path: Path, words: Any, serve: Serve) -> None:
    model = bert(transformers.BertForSequenceClassification)
    export(tmp_path / "model", model, tokenizer=words)

    server = serve(tmp_path / "model")
    answer = ask(server, {"inputs": ["good film", "bad"], "parameters": {"top_k": None}})

    logits = model(**words(["good film", "bad"], padding=True, return_tensors="pt")).logits.softmax(1)
    for row, said in zip(logits.tolist(), answer, strict=True):
        assert {item["label"]: pytest.approx(item["score"], abs=1e-5) for item in said} == {
            f"LABEL_{index}": value for index, value in enumerate(row)
        }
    for body, status in [(b'{"text": 1}', 400), (b'{"inputs": 3}', 400), (b"{", 400)]:
        assert server.invoke(body).status_code == status
    assert artifact.build(tmp_path / "model").manifest.pickles == ()


def test_sentence_embeddings_are_pooled_as_their_folder_says(tmp_path: Path, words: Any, serve: Serve) -> None:
    folder, model = tmp_path / "plain", bert(transformers.BertModel)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    export(tmp_path / "model", folder)

    answer = ask(serve(tmp_path / "model"), {"inputs": ["good film", "bad"]})

    alone = model(**words("bad", return_tensors="pt")).last_hidden_state.mean(1)[0]
    assert np.allclose(answer[1], (alone / alone.norm()).detach(), atol=1e-5)  # padding counts for nothing


def test_a_folder_of_pickled_weights_becomes_safetensors(tmp_path: Path, words: Any) -> None:
    model = bert(transformers.BertForMaskedLM)
    model.config.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text(
        json.dumps({**json.loads((tmp_path / "old" / "config.json").read_text()), "architectures": ["BertForMaskedLM"]})
    )
    words.save_pretrained(tmp_path / "old")
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")

    export(tmp_path / "model", tmp_path / "old")

    manifest = artifact.build(tmp_path / "model").manifest
    assert (manifest.loader, manifest.pickles) == ("transformers", ())
    back = transformers.BertForMaskedLM.from_pretrained(tmp_path / "model")
    assert all(torch.equal(back.state_dict()[name], value) for name, value in model.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------- folders


def test_a_plain_folder_with_inference_py(tmp_path: Path, serve: Serve) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "words.txt").write_text("hello")
    (folder / "helper.py").write_text("def shout(text): return text.upper()\n")
    (folder / "inference.py").write_text(
        "from helper import shout\n"
        "def model_fn(model_dir): return open(model_dir + '/words.txt').read()\n"
        "def predict_fn(data, model): return [shout(model)] * len(data)\n"
    )
    export(tmp_path / "model", folder)

    assert ask(serve(tmp_path / "model"), [1, 2]) == ["HELLO", "HELLO"]
    assert set(artifact.build(tmp_path / "model").manifest.files) == {
        "words.txt",
        "code/helper.py",
        "code/inference.py",
    }


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f: f / "absent", "does not exist"),
        (lambda f: f, "no file in it says how to compute"),
        (lambda f: object(), "a object: no loader serves it"),
    ],
)
def test_what_no_loader_serves_is_said(tmp_path: Path, make: Callable[[Path], Any], says: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights.bin").write_bytes(b"x")
    with pytest.raises(InvalidInput, match=says):
        export(tmp_path / "model", make(tmp_path / "source"))
    assert not (tmp_path / "model").exists()


def test_the_user_s_own_inference_py_is_left_alone(program: Path, tmp_path: Path) -> None:
    (tmp_path / "inference.py").write_text("mine = True\n")
    bundle = artifact.build(program, code=tmp_path)
    assert bundle.parts["code/inference.py"] == tmp_path / "inference.py"
    assert (bundle.manifest.loader, "code/windlass_tensors.py" in bundle.manifest.files) == ("", False)


def test_a_pickle_is_loaded_only_where_it_was_asked_for_by_name(tmp_path: Path, serve: Serve) -> None:
    import joblib

    rows = np.arange(12.0).reshape(4, 3)
    (tmp_path / "model").mkdir()
    joblib.dump(sklearn.linear_model.LinearRegression().fit(rows, rows[:, 0]), tmp_path / "model" / "model.joblib")
    assert "code/inference.py" not in artifact.build(tmp_path / "model").manifest.files

    bundle = artifact.build(tmp_path / "model", loader="joblib")

    assert (bundle.manifest.loader, bundle.manifest.pickles) == ("joblib", ("model.joblib",))
    for name in ("inference.py", "windlass_tensors.py"):
        (tmp_path / "model" / "code").mkdir(exist_ok=True)
        (tmp_path / "model" / "code" / name).write_bytes(bundle.parts[f"code/{name}"].read_bytes())
    answer = ask(serve(tmp_path / "model"), rows.tolist())
    assert np.allclose(answer["prediction"], rows[:, 0])
    with pytest.raises(InvalidInput, match="Valid: torch-export, onnx, skops, transformers, packed, joblib"):
        artifact.build(tmp_path / "model", loader="pickle", code=tmp_path)
