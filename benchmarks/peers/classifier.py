"""What the peers run: texts to class scores, in OpenVINO. The folder says in which form, see `minilm`.

model = Classifier(folder)                  # one inference at a time, on one core
model = Classifier(folder, streams=2)       # as many at once, called from as many threads as you like
model.predict(["a text", "another"])        # -> [[...], [...]]

python benchmarks/peers/classifier.py FOLDER BATCH SECONDS < texts.json    # offline: texts/s, and ms for the usual call
"""

import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np

MOST_TOKENS = 128


def Classifier(folder, streams=1):  # noqa: N802 - two classes of one kind
    return (Packed if (Path(folder) / "packed.json").exists() else Padded)(Path(folder), streams)


class Packed:
    """Windlass's own graph and engine, as they lie in its bundle."""

    def __init__(self, folder, streams):
        sys.path.insert(0, str(folder / "code"))
        from windlass_packing import Encoder

        os.environ["WINDLASS_PIN_THREADS"] = str(int(streams > 1))  # as our server does, see the other one
        self.encoder = Encoder(folder, streams, threads=1)
        self.encoder.warm_up()

    def predict(self, texts):
        return self.encoder(texts).tolist()


class Padded:
    """An exporter's graph, with what is usually written around it."""

    def __init__(self, folder, streams):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else the tokenizer takes all cores, whatever the engine may
        import openvino
        import tokenizers

        settings = {"INFERENCE_NUM_THREADS": streams, "NUM_STREAMS": streams}
        settings |= json.loads((folder / "settings.json").read_text())
        # Every process of one stream would pin it to the same core.
        settings["ENABLE_CPU_PINNING"] = streams > 1
        self.model = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(MOST_TOKENS)
        self.own = threading.local()  # a request holds one inference's tensors
        for count in (1, 2, 4, 8, 16):
            for length in range(8, MOST_TOKENS + 1, 8):
                self.predict(["word " * (length - 2)] * count)

    def predict(self, texts):
        if not hasattr(self.own, "request"):
            self.own.request = self.model.create_infer_request()
        found = self.tokenizer.encode_batch_fast(texts)
        arrays = {
            "input_ids": np.array([each.ids for each in found]),
            "attention_mask": np.array([each.attention_mask for each in found]),
            "token_type_ids": np.array([each.type_ids for each in found]),
        }
        return self.own.request.infer(arrays, share_inputs=True)[0].tolist()


def offline(folder, batch, seconds):
    model = Classifier(folder)
    texts = json.loads(sys.stdin.readline())
    model.predict(texts[:batch])
    print("ready", flush=True)
    sys.stdin.readline()  # until the others are, too
    at, times, start = 0, [], time.perf_counter()
    while (begin := time.perf_counter()) - start < seconds:
        model.predict([texts[(at + index) % len(texts)] for index in range(batch)])
        at += batch
        times.append(time.perf_counter() - begin)
    print(at / sum(times), statistics.median(times) * 1e3)


if __name__ == "__main__":
    offline(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
