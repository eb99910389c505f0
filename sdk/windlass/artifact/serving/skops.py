"""Serves the scikit-learn estimator of this bundle (*.skops, no pickle). Written by Windlass; change it as you like."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import skops.io
from windlass_tensors import input_fn, only, output_fn

__all__ = ["input_fn", "model_fn", "output_fn", "predict_fn"]


def model_fn(model_dir: str) -> Any:
    path = only(model_dir, "*.skops")
    vouched = path.with_name("trusted_types.json")
    trusted = set(json.loads(vouched.read_text(encoding="utf-8"))) if vouched.is_file() else set()
    strange = [name for name in skops.io.get_untrusted_types(file=path) if name not in trusted]
    if strange:
        raise ValueError(
            f"{path.name} holds {', '.join(strange)}, which nobody vouched for: export it with trusted_types="
        )
    return skops.io.load(path, trusted=sorted(trusted))


def predict_fn(data: Any, model: Any) -> dict[str, Any]:
    rows = np.asarray(next(iter(data.values())) if isinstance(data, dict) else data)
    if not hasattr(model, "predict"):
        return {"output": model.transform(rows)}
    answers = {"prediction": model.predict(rows)}
    if hasattr(model, "predict_proba"):
        answers["probabilities"] = model.predict_proba(rows)
    return answers
