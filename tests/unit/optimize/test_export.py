"""A module becomes a folder that serves itself."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

from windlass import artifact
from windlass.errors import InvalidInput
from windlass.optimize.export import export


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.dropout(self.layer(x)) * scale
        return y, y.argmax(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    example = {"x": torch.randn(2, 4), "scale": torch.ones(2, 1)}
    return export(tmp_path_factory.mktemp("export") / "model", Network(), example, outputs=("scores", "label"))


def serving(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_inference", folder / "code" / "inference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_serves_any_batch_without_the_class(folder: Path, batch: int) -> None:
    hooks = serving(folder)
    body = json.dumps({"x": [[1, 2, 3, 4]] * batch, "scale": [[2.0]] * batch})

    model = hooks.model_fn(str(folder))
    answer, kind = hooks.output_fn(hooks.predict_fn(hooks.input_fn(body, "application/json"), model), "*/*")

    assert kind == "application/json"
    torch.manual_seed(0)
    torch.randn(2, 4)
    assert [len(item) for item in json.loads(answer).values()] == [batch, batch]
    assert len({json.dumps(row) for row in json.loads(answer)["scores"]}) == 1  # no dropout


def test_its_signature_and_example_are_the_model_s(folder: Path) -> None:
    manifest = artifact.build(folder).manifest
    assert manifest.signature is not None
    assert [(t.name, t.dtype, t.shape) for t in manifest.signature.inputs] == [
        ("x", "float32", ("batch", 4)),
        ("scale", "float32", ("batch", 1)),
    ]
    assert manifest.signature.outputs[1].dtype == "int64"
    assert manifest.pickles == ()
    hooks = serving(folder)
    assert hooks.input_fn(json.dumps(manifest.signature.example), "application/json")[0].shape == (1, 4)


def test_it_holds_no_pickle_of_a_class(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.pt2") as program:
        assert not [name for name in program.namelist() if name.endswith((".pkl", ".pickle"))]


@pytest.mark.parametrize("body", ['{"x": [[1]]}', "[]", "{", '{"x": 1, "scale": 2, "more": 3}'])
def test_a_request_that_does_not_fit_is_said(folder: Path, body: str) -> None:
    with pytest.raises(ValueError, match=r"Expected|Expecting"):
        serving(folder).input_fn(body, "application/json")


def test_a_program_that_was_exported_already(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(torch.nn.Linear(4, 3), (x,), dynamic_shapes=shapes)
    export(tmp_path / "model", program, {"x": x})
    assert (tmp_path / "model" / "model.pt2").is_file()


@pytest.mark.parametrize(
    ("example", "outputs", "says"),
    [
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
    assert not (tmp_path / "model").exists()
