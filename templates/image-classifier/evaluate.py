"""Measure a trained classifier on images that it never saw.

    python evaluate.py --model out --test data/test --output-dir evaluation

Reads model.tar.gz, or a folder that holds its files, and writes evaluation.json in SageMaker's Model Quality format,
which the Model Registry shows beside the version. As a SageMaker job it takes the channels `model` and `test`. It prints:

    test:accuracy=0.9889 test:precision=0.9891 test:recall=0.9888 test:f1=0.9888
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from inference import NPY, input_fn, model_fn, predict_fn
from model import CLASSES
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

RESAMPLES = 100  # bootstrap rounds behind each standard deviation

env = os.environ
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", type=Path, default=env.get("SM_CHANNEL_MODEL", "out"), help="model.tar.gz, or its files")
parser.add_argument("--test", type=Path, default=env.get("SM_CHANNEL_TEST", "data/test"))
parser.add_argument("--output-dir", type=Path, default=env.get("SM_OUTPUT_DATA_DIR", "evaluation"))
parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
args = parser.parse_args()
torch.set_num_threads(1)  # as in train.py

# --- Predict, through the hooks that serve ----------------------------------------------------------------------------

with tempfile.TemporaryDirectory() as unpacked:
    folder, archive = args.model, args.model / "model.tar.gz"
    if archive.is_file():
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")  # refuses paths and links that climb out, and devices
        folder = Path(unpacked)
    if not (folder / "model.safetensors").is_file():
        sys.exit(f"{args.model}: neither model.safetensors nor a model.tar.gz that holds it")
    model = model_fn(str(folder))

images = input_fn((args.test / "images.npy").read_bytes(), NPY)
labels = np.load(args.test / "labels.npy")
predictions = predict_fn(images, model)["label"]

# --- Measure ----------------------------------------------------------------------------------------------------------


def measure(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    values = {"accuracy": float(accuracy_score(labels, predictions))}
    for suffix, average in {"weighted_{}": "weighted", "{}_macro": "macro"}.items():
        scores = precision_recall_fscore_support(labels, predictions, average=average, zero_division=0.0)[:3]
        for name, score in zip(("precision", "recall", "f1"), scores, strict=True):
            values[suffix.format(name)] = float(score)
    return values


scores = measure(labels, predictions)
random = np.random.default_rng(args.seed)
draws = random.integers(len(labels), size=(RESAMPLES, len(labels)))
resamples = [measure(labels[rows], predictions[rows]) for rows in draws]
counts = confusion_matrix(labels, predictions, labels=range(CLASSES))

# --- Write ------------------------------------------------------------------------------------------------------------

evaluation = {
    "multiclass_classification_metrics": {
        **{
            name: {"value": value, "standard_deviation": float(np.std([resample[name] for resample in resamples]))}
            for name, value in scores.items()
        },
        # Row: the true class. Column: what the model said.
        "confusion_matrix": {
            str(true): {str(said): int(count) for said, count in enumerate(row)} for true, row in enumerate(counts)
        },
    },
    "samples": len(labels),
    # What a paired test of two versions needs: which samples these were, and which of them were right.
    "evaluation_set": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
    "correct": "".join("01"[right] for right in (predictions == labels).astype(int)),
}
args.output_dir.mkdir(parents=True, exist_ok=True)
(args.output_dir / "evaluation.json").write_text(json.dumps(evaluation, indent=2) + "\n")
print(
    f"test:accuracy={scores['accuracy']:.4f} test:precision={scores['precision_macro']:.4f} "
    f"test:recall={scores['recall_macro']:.4f} test:f1={scores['f1_macro']:.4f}",
    flush=True,
)
