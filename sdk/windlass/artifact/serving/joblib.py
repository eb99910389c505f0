"""Serves the joblib file of this bundle. It runs code as it loads: the bundle's author asked for it by name.

Written by Windlass; change it as you like.
"""

from __future__ import annotations

from typing import Any

import joblib
import numpy as np
from windlass_tensors import input_fn, only, output_fn

__all__ = ["input_fn", "model_fn", "output_fn", "predict_fn"]


def model_fn(model_dir: str) -> Any:
    return joblib.load(only(model_dir, "*.joblib"))


def predict_fn(data: Any, model: Any) -> dict[str, Any]:
    rows = np.asarray(next(iter(data.values())) if isinstance(data, dict) else data)
    return {"prediction": model.predict(rows)}
