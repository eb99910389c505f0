"""What every server of the benchmark runs: texts to class scores, in OpenVINO.

model = Classifier(folder)                  # one inference at a time, on one core
model = Classifier(folder, streams=2)       # as many at once, called from as many threads as you like
model.predict(["a text", "another"])        # -> [[...], [...]]

python benchmarks/peers/classifier.py FOLDER BATCH SECONDS < bodies.json    # offline: prints texts a second, see offline()
"""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

MOST_TOKENS = 128
# The engine makes its kernels for each shape that it meets, so sizes are rounded up to a few hundred of them.
FINE, COARSE = 4, 32


class Classifier:
    def __init__(self, folder, streams=1):
        import openvino
        import tokenizers

        settings = {"INFERENCE_NUM_THREADS": streams, "NUM_STREAMS": streams, "INFERENCE_PRECISION_HINT": "f32"}
        # Else every process of one stream pins it to the same core.
        settings["ENABLE_CPU_PINNING"] = False
        self.model = openvino.Core().compile_model(Path(folder) / "model.xml", "CPU", settings)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MOST_TOKENS)
        self.own = threading.local()  # a request holds one inference's tensors
        self.warm_up()

    def predict(self, texts):
        return self.run([each.ids for each in self.tokenizer.encode_batch_fast(texts)])

    def run(self, ids):
        if not hasattr(self.own, "request"):
            self.own.request = self.model.create_infer_request()
        return self.own.request.infer(pack(ids), share_inputs=True)[0][: len(ids)].tolist()

    def warm_up(self):
        for length in range(FINE, MOST_TOKENS + 1, FINE):
            self.run([[0] * length])
        for total in range(COARSE, 8 * MOST_TOKENS + 1, COARSE):
            self.run([[0] * (COARSE // 2)] * (total // (COARSE // 2)))


def pack(ids):
    """Tokens of several texts in one row without padding, and the rows in which attention sees them; see `minilm`."""
    lengths = np.array([len(each) for each in ids])
    count = int(lengths.sum())
    step = FINE if len(ids) == 1 else COARSE
    width = -(-count // step) * step
    # Attention is a small part of the work, so that rows for several texts may all be as wide as the longest text can be.
    wide = width if len(ids) == 1 else MOST_TOKENS
    rows, columns, room = [0] * len(ids), [0] * len(ids), []
    for index in np.argsort(-lengths, kind="stable").tolist():  # the longest first, into the first row with room
        need = int(lengths[index])
        row = next((row for row, free in enumerate(room) if free >= need), len(room))
        if row == len(room):
            room.append(wide)
        rows[index], columns[index] = row, wide - room[row]
        room[row] -= need
    text = np.repeat(np.arange(len(ids)), lengths)
    tokens, positions, places = (np.zeros(width, np.int32) for _ in range(3))
    tokens[:count] = np.concatenate(ids)
    positions[:count] = np.arange(count) - (np.cumsum(lengths) - lengths)[text]
    places[:count] = (np.array(rows) * wide + np.array(columns))[text] + positions[:count]
    # A row that nobody needs costs less than kernels for one more shape.
    height = 1 if len(ids) == 1 else max(len(room), -(-(width + wide // 2) // wide))
    cells, texts = (np.zeros(height * wide, np.int32) for _ in range(2))
    cells[places[:count]], texts[places[:count]] = np.arange(count), text + 1
    # Rows of zeros for texts that are not there: their logits are nobody's.
    shares = np.zeros((1 if len(ids) == 1 else -(-len(ids) // 32) * 32, width), np.float32)
    shares[text, np.arange(count)] = (1 / lengths)[text]
    return {
        "tokens": tokens,
        "positions": positions,
        "places": places,
        "cells": cells.reshape(-1, wide),
        "texts": texts.reshape(-1, wide),
        "shares": shares,
    }


def offline(folder, batch, seconds):
    model = Classifier(folder)
    texts = [json.loads(body)["text"] for body in json.loads(sys.stdin.readline())["bodies"]]
    model.predict(texts[:batch])
    print("ready", flush=True)
    sys.stdin.readline()  # until the others are, too
    done, at, start = 0, 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        model.predict([texts[(at + index) % len(texts)] for index in range(batch)])
        at, done = at + batch, done + batch
    print(done / spent)


if __name__ == "__main__":
    offline(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
