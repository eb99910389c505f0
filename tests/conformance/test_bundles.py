"""Bundles in other hands: the official SDK repacks one, AWS's PyTorch inference toolkit serves one.

They live in environments of their own: the official SDK in ``.venv/foreign/sagemaker``, and the toolkit, whose versions of
anything else nobody needs, in a folder:

    pip install --no-deps --target .venv/foreign/toolkit sagemaker-inference==1.10.1 sagemaker-pytorch-inference==2.0.25 \
        retrying psutil
"""

from __future__ import annotations

import hashlib
import json
import os
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
SERVE = """
import json, sys
from types import SimpleNamespace
folder, body = sys.argv[1:]
from sagemaker_inference.transformer import Transformer
from sagemaker_pytorch_serving_container.default_pytorch_inference_handler import DefaultPytorchInferenceHandler
request = SimpleNamespace(get_request_properties=lambda: {"Content-Type": "application/json"})
context = SimpleNamespace(
    system_properties={"gpu_id": None, "model_dir": folder},
    request_processor=[request],
    get_request_header=lambda index, key: "application/json",
    set_response_content_type=lambda index, value: None,
)
transformer = Transformer(DefaultPytorchInferenceHandler())
transformer.validate_and_initialize(folder)
print(transformer.transform([{"body": body.encode()}], context)[0])
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


@pytest.mark.skipif(not (FOREIGN / "toolkit").exists(), reason="AWS's inference toolkit is not installed")
def test_aws_s_pytorch_toolkit_serves_a_bundle(bundle: artifact.Bundle, tmp_path: Path) -> None:
    opened = artifact.open(bundle.path, tmp_path / "opened").path
    code = opened / "code"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{FOREIGN / 'toolkit'}{os.pathsep}{code}",
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": str(code),
        "SAGEMAKER_BASE_DIR": str(tmp_path),
    }

    said = subprocess.run(
        [sys.executable, "-c", SERVE, opened, '{"x": [[1, 2], [3, 4]]}'],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )

    assert json.loads(said.stdout.splitlines()[-1]) == {"y": [[3.0], [7.0]]}
