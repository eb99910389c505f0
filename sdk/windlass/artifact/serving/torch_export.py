"""Serves the ExportedProgram of this bundle (*.pt2). Written by Windlass; change it as you like."""

from __future__ import annotations

from typing import Any

import torch
from windlass_tensors import described, input_fn, named, only, output_fn

__all__ = ["input_fn", "model_fn", "output_fn", "predict_fn"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def model_fn(model_dir: str) -> Any:
    return torch.export.load(only(model_dir, "*.pt2")).module().to(DEVICE)


def predict_fn(data: Any, model: Any) -> dict[str, Any]:
    if isinstance(data, dict):
        dtypes = {tensor["name"]: getattr(torch, tensor["dtype"]) for tensor in described("inputs")}
        tensors = [torch.as_tensor(data[name], dtype=dtype, device=DEVICE) for name, dtype in dtypes.items()]
    else:
        tensors = [torch.as_tensor(data, dtype=torch.float32, device=DEVICE)]
    with torch.inference_mode():
        answers = named(model(*tensors))
    return {name: (v.float() if v.dtype == torch.bfloat16 else v).cpu().numpy() for name, v in answers.items()}
