"""Serves the ONNX graph of this bundle. Written by Windlass; change it as you like."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from windlass_tensors import BadRequest, input_fn, only, output_fn

__all__ = ["input_fn", "model_fn", "output_fn", "predict_fn", "thread_safe"]

thread_safe = (
    True  # the session computes without Python's lock, so that Windlass's server may call it from several threads
)


def model_fn(model_dir: str) -> Any:
    options = onnxruntime.SessionOptions()
    # It counts the machine's cores, not the workers' share of them; and it has one set of threads for all workers that call it.
    threads = int(os.environ.get("WINDLASS_THREADS") or os.environ.get("OMP_NUM_THREADS") or 0)
    workers = int(os.environ.get("SAGEMAKER_MODEL_SERVER_WORKERS") or 1)
    options.intra_op_num_threads = workers * (threads - 1) + 1 if "WINDLASS_THREADS" in os.environ else threads
    path = str(only(model_dir, "*.onnx"))
    return onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())


def predict_fn(data: Any, model: Any) -> dict[str, Any]:
    nodes = {node.name: node for node in model.get_inputs()}
    feeds = data if isinstance(data, dict) else {next(iter(nodes)): data}
    if feeds.keys() != nodes.keys():
        raise BadRequest(f"expected an object with {', '.join(nodes)}")
    arrays = {name: np.asarray(value, dtype=TYPES.get(nodes[name].type)) for name, value in feeds.items()}
    names = [node.name for node in model.get_outputs()]
    return dict(zip(names, model.run(names, arrays), strict=True))


TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8",
    "tensor(uint64)": "uint64", "tensor(uint32)": "uint32", "tensor(uint16)": "uint16", "tensor(uint8)": "uint8",
    "tensor(string)": "object",
}  # fmt: skip
