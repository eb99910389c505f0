"""TorchServe: batches of 16 within 2 ms as in its documents, or none; the classifier in two workers of one thread, as ours.

python benchmarks/peers/torchserve_server.py echo|minilm FOLDER PORT BATCH
"""

import json
import os
import shutil
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

HANDLER = {
    "echo": """
def handle(data, context):
    return None if data is None else [row["body"] for row in data]
""",
    "minilm": """
import os
from classifier import Classifier

model = None


def handle(data, context):
    global model
    if data is None:  # TorchServe's call at the start
        model = Classifier(os.environ["FOLDER"])
        return None
    return model.predict([row["body"]["text"] for row in data])
""",
}


def main():
    kind, folder, port, batch = sys.argv[1:]
    work = Path(tempfile.mkdtemp(prefix="torchserve-"))
    store, temp = work / "store", work / "temp"  # apart: it links its models into the latter
    temp.mkdir()
    model = store / "model"
    (model / "MAR-INF").mkdir(parents=True)
    (model / "handler.py").write_text(HANDLER[kind])
    named = {"modelName": "model", "handler": "handler.py:handle", "modelVersion": "1.0"}
    (model / "MAR-INF" / "MANIFEST.json").write_text(
        json.dumps({"runtime": "python", "model": named, "archiverVersion": "0.12.0"})
    )
    workers = 1 if kind == "echo" else 2
    sizes = {"minWorkers": workers, "maxWorkers": workers, "batchSize": int(batch), "maxBatchDelay": 2}
    models = {"model": {"1.0": {"defaultVersion": True, "marName": "model", "responseTimeout": 60, **sizes}}}
    with ExitStack() as held:  # all at once, so that no two are the same
        free = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(4)]
    ports = [f"{name}_address=http://127.0.0.1:{at}" for name, at in zip(ADDRESSES, [port, *free], strict=False)]
    other = [f"grpc_{name}_port={at}" for name, at in zip(ADDRESSES, free[2:], strict=False)]
    lines = [*ports, *other, f"model_store={store}", "load_models=model", "job_queue_size=1000", "vmargs=-Xmx1g"]
    config = work / "config.properties"
    config.write_text("\n".join([*lines, f"models={json.dumps(models)}"]) + "\n")
    here = Path(__file__).parent
    os.chdir(work)  # it writes its logs where it starts
    os.environ |= {"FOLDER": folder, "PYTHONPATH": str(here), "TEMP": str(temp), "LOG_LOCATION": str(work)}
    os.environ |= {"METRICS_LOCATION": str(work), "OMP_NUM_THREADS": "1"}
    frontend = next(Path(sys.prefix).glob("lib/python*/site-packages/ts/frontend"))
    java = [shutil.which("java"), f"-Dmodel_server_home={frontend.parents[1]}", f"-Djava.io.tmpdir={temp}", "-Xmx1g"]
    start = ["-cp", f"{frontend}/*", "org.pytorch.serve.ModelServer", "--python", sys.executable]
    os.execv(java[0], [*java, *start, "-f", str(config), "-s", str(store), "-ncs", "--disable-token-auth"])


ADDRESSES = ("inference", "management", "metrics")

if __name__ == "__main__":
    main()
