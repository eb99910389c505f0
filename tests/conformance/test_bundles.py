"""Bundles in other hands: the official SDK, in its own environment ``.venv/foreign/sagemaker``, opens and repacks one."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from windlass import artifact
from windlass.optimize.export import export

FOREIGN = Path(sys.prefix) / "foreign"
REPACK = """
import sys
from types import SimpleNamespace
from sagemaker.core.common_utils import repack_model
settings = SimpleNamespace(local_download_dir=None, encrypt_repacked_artifacts=False)
source, model, dest = sys.argv[1:]
repack_model("other.py", source, None, "file://" + model, "file://" + dest, SimpleNamespace(settings=settings))
"""


@pytest.fixture
def bundle(tmp_path: Path) -> artifact.Bundle:
    network = torch.nn.Linear(2, 1)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.zeros_(network.bias)
    export(tmp_path / "model", network, {"x": torch.zeros(2, 2)}, outputs=("y",))
    (tmp_path / "model" / "large.safetensors").write_bytes(random.Random(0).randbytes(3 << 20))
    return artifact.build(tmp_path / "model", tmp_path / "model.tar.gz")


@pytest.mark.skipif(not (FOREIGN / "sagemaker").exists(), reason="the official SDK is not installed: make foreign")
def test_the_official_sdk_opens_and_repacks_a_bundle(bundle: artifact.Bundle, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "other.py").write_text("other = True\n")
    dest = tmp_path / "repacked.tar.gz"

    python = FOREIGN / "sagemaker" / "bin" / "python"
    subprocess.run([python, "-c", REPACK, tmp_path / "source", bundle.path, dest], check=True, capture_output=True)

    with tarfile.open(dest) as tar:
        found = {m.name.lstrip("./"): tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    assert "code/other.py" in found
    for name in ("large.safetensors", "model.pt2"):
        assert hashlib.sha256(found[name]).hexdigest() == bundle.manifest.files[name].sha256
