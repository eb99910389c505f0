"""What every server of the benchmark runs: texts to class scores, in ONNX Runtime.

model = Classifier(folder, threads=1)
model.predict(["a text", "another"])        # -> [[...], [...]]

python benchmarks/peers/classifier.py FOLDER BATCH SECONDS THREADS < bodies.json    # offline: prints texts a second
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers


class Classifier:
    def __init__(self, folder, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(Path(folder) / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.enable_padding()  # to the longest of the batch
        self.tokenizer.enable_truncation(128)

    def predict(self, texts):
        encoded = self.tokenizer.encode_batch(texts)
        feeds = {
            "input_ids": np.array([each.ids for each in encoded], np.int32),
            "attention_mask": np.array([each.attention_mask for each in encoded], np.int32),
        }
        return self.session.run(None, feeds)[0].tolist()


def offline(folder, batch, seconds, threads):
    model = Classifier(folder, threads)
    texts = [json.loads(body)["text"] for body in json.load(sys.stdin)["bodies"]]
    model.predict(texts[:batch])
    print("ready", flush=True)
    done, at, start = 0, 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        model.predict([texts[(at + index) % len(texts)] for index in range(batch)])
        at, done = at + batch, done + batch
    print(done / spent)


if __name__ == "__main__":
    offline(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
