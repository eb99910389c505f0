"""A PyTorch model as a folder that serves itself: program, signature, and an ``inference.py`` written for it.

    export("out/model", network, {"image": torch.zeros(2, 1, 28, 28)}, outputs=("logits",))
    wl.register("out/model", model="digits")

The program is what ``torch.export`` captures, so the folder needs no class of the user's, and no pickle of it: loading runs no
code that came with the weights. The first dimension of every input and output is the batch, of any size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windlass.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    import torch

PROGRAM = "model.pt2"

# Plain PyTorch and the hooks of the official toolkits, so that it serves in any of their containers.
INFERENCE = '''"""Serves model.pt2 with the inputs and outputs of signature.json. Written by Windlass; change it as you like."""

import json
from pathlib import Path

import torch

SIGNATURE = json.loads((Path(__file__).parent / "signature.json").read_text())


def model_fn(model_dir):
    return torch.export.load(Path(model_dir) / "model.pt2").module()


def input_fn(body, content_type):
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ValueError(f"Content type {content_type!r} is not read here. Valid: application/json")
    request = json.loads(body)
    names = [tensor["name"] for tensor in SIGNATURE["inputs"]]
    if not isinstance(request, dict) or sorted(request) != sorted(names):
        raise ValueError(f"Expected an object with {', '.join(names)}")
    return [torch.tensor(request[t["name"]], dtype=getattr(torch, t["dtype"])) for t in SIGNATURE["inputs"]]


def predict_fn(tensors, model):
    with torch.inference_mode():
        answer = model(*tensors)
    answers = answer if isinstance(answer, (tuple, list)) else [answer]
    return {t["name"]: value for t, value in zip(SIGNATURE["outputs"], answers)}


def output_fn(prediction, accept):
    return json.dumps({name: value.tolist() for name, value in prediction.items()}), "application/json"
'''


def export(
    dest: str | Path,
    model: torch.nn.Module | torch.export.ExportedProgram,
    example: Mapping[str, torch.Tensor],
    *,
    outputs: Sequence[str] = ("output",),
) -> Path:
    """Write a model, with what serves it, into a folder.

    Args:
        dest: absent or empty.
        model: a module, which is exported in evaluation mode; or a program that was exported already.
        example: a batch of at least two for each input, in the order in which the model takes them.
        outputs: a name for each output.

    Raises:
        InvalidInput: the program does not answer as the module does, or has another number of outputs.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "train", "Exporting a PyTorch model") from error
    dest, where = Path(dest), "Exporting a PyTorch model"
    if dest.exists() and any(dest.iterdir()):
        raise InvalidInput(f"{dest} is not empty", where=where)
    batches = {tensor.shape[0] if tensor.ndim else 0 for tensor in example.values()}
    if len(batches) != 1 or min(batches) < 2:
        raise InvalidInput("give each input as a batch, of one size of at least 2", where=where)
    inputs = tuple(example.values())
    with torch.no_grad():
        if isinstance(model, torch.export.ExportedProgram):
            program, expected = model, None
        else:
            model.eval()
            batch = torch.export.Dim("batch", min=1)
            program = torch.export.export(model, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
            expected = _listed(model(*(tensor[:1] for tensor in inputs)))
        answers = _listed(program.module()(*inputs))
        single = _listed(program.module()(*(tensor[:1] for tensor in inputs)))
    if len(answers) != len(outputs):
        raise InvalidInput(f"{len(answers)} outputs, and {len(outputs)} names for them", where=where)
    for name, before, after in zip(outputs, expected or single, single, strict=True):
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise InvalidInput(f"output {name!r} of the exported program differs from the module's", where=where)
    signature = {
        "inputs": [_described(name, tensor) for name, tensor in example.items()],
        "outputs": [_described(name, tensor) for name, tensor in zip(outputs, answers, strict=True)],
        "example": {name: tensor[:1].tolist() for name, tensor in example.items()},
    }
    (dest / "code").mkdir(parents=True)
    (dest / "code" / "inference.py").write_text(INFERENCE, encoding="utf-8")
    (dest / "code" / "signature.json").write_text(json.dumps(signature, indent=1), encoding="utf-8")
    (dest / "code" / "requirements.txt").write_text(f"torch=={torch.__version__.partition('+')[0]}\n", encoding="utf-8")
    torch.export.save(program, dest / PROGRAM)
    return dest


def _listed(answer: Any) -> list[Any]:
    return list(answer) if isinstance(answer, tuple | list) else [answer]


def _described(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    return {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": ["batch", *tensor.shape[1:]]}
