"""A typed client that a generator made of our OpenAPI page, against our server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.unit.runtime.serving import Server
from windlass import cli

GENERATORS = Path(sys.prefix) / "foreign" / "generators"
SIGNATURE = {
    "inputs": [
        {"name": "image", "dtype": "uint8", "shape": ["batch", 2, 2]},
        {"name": "weight", "dtype": "float32", "shape": ["batch"]},
    ],
    "outputs": [
        {"name": "total", "dtype": "int64", "shape": ["batch"]},
        {"name": "scaled", "dtype": "float64", "shape": ["batch"]},
    ],
}
CALL = """
    import sys
    from digits_client import Client
    from digits_client.api.default import predict
    from digits_client.models import Inputs, Outputs
    client = Client(base_url=sys.argv[1])
    answer = predict.sync(client=client, body=Inputs(image=[[[1, 2], [3, 4]]], weight=[0.5]))
    assert isinstance(answer, Outputs), answer
    print(answer.total, answer.scaled)
"""


@pytest.mark.skipif(not GENERATORS.exists(), reason="the generators are not installed: make foreign")
def test_a_generated_client_predicts(tmp_path: Path) -> None:
    model = tmp_path / "ml" / "model"
    (model / "code").mkdir(parents=True)
    (model / "windlass.json").write_text(json.dumps({"format": 1, "files": {}, "signature": SIGNATURE}))
    (model / "code" / "inference.py").write_text(
        dedent("""
        def model_fn(model_dir): return None
        def predict_fn(data, model):
            total = data["image"].sum(axis=(1, 2))
            return {"total": total, "scaled": total * data["weight"]}
        """)
    )
    page = tmp_path / "digits.json"
    assert cli.main(["openapi", str(model), "--out", str(page)]) == 0
    named = json.loads(page.read_text())
    named["info"]["title"] = "digits"
    page.write_text(json.dumps(named))

    python = GENERATORS / "bin" / "python"
    made = subprocess.run(
        [
            python,
            "-m",
            "openapi_python_client",
            "generate",
            "--path",
            page,
            "--meta",
            "none",
            "--output-path",
            "digits_client",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    server = Server(tmp_path / "ml", {}).ready()
    try:
        called = subprocess.run(
            [python, "-c", dedent(CALL), str(server.client.base_url)], cwd=tmp_path, capture_output=True, text=True
        )
    finally:
        server.close()
    assert (called.returncode, called.stdout) == (0, "[10] [5.0]\n"), called.stderr
