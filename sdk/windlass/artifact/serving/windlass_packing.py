"""Texts through an encoder without padding: their layout, and the engine that runs it.

    encoder = Encoder("/opt/ml/model")           # packed.json, tokenizer.json, and model.onnx or model.xml
    encoder(["a text", "another one"])           # -> float32 [text, output], whatever lies beside a text

Tokens of all texts lie in one row, so that no matrix product sees padding. Only attention needs them by text: for it they are
gathered into rows of equal length, several short texts to a row, each blind to its neighbours.

Written by Windlass; change it as you like.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

# Engines make kernels and buffers for each shape that they meet, so sizes are rounded up to a few hundred of them: tokens of
# one text, tokens and number of several, and the width of attention's rows, which costs attention its square.
FINE, COARSE, TEXTS, WIDE = 4, 32, 32, 32
MOST_TOKENS, MOST_TEXTS = 4096, 256  # that run together; what is more runs after them
WARM_SECONDS, WARM_TOKENS = 10.0, 1024

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


class Encoder:
    """Calls may come from several threads at once.

    Args:
        folder: as `windlass.optimize.packed` writes it.
        callers: how many threads will call.
        threads: cores for each of them; 0: the engine's own choice.
    """

    def __init__(self, folder: str | Path, callers: int = 1, threads: int = 0) -> None:
        os.environ.setdefault(
            "TOKENIZERS_PARALLELISM", "false"
        )  # else the tokenizer takes all cores, whatever the engine may
        from tokenizers import Tokenizer

        folder = Path(folder)
        described = json.loads((folder / "packed.json").read_text(encoding="utf-8"))
        self.output: str = described["output"]
        self._longest, self._pooling = int(described["tokens"]), str(described["pooling"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._longest)
        graph = folder / "model.xml"
        self._kernels = graph.is_file()
        run = (
            openvino(graph, callers, threads) if self._kernels else onnxruntime(folder / "model.onnx", callers, threads)
        )
        self._run: Callable[[Arrays], Any] = run

    def __call__(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """One row for each text; long ones are cut off at the model's length."""
        parts = [self.run(part) for part in together(self.tokens(texts))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return [each.ids for each in self._tokenizer.encode_batch_fast(list(texts))]

    def run(self, ids: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._run(pack(ids, self._pooling))[: len(ids)]
        return found.copy()  # the rest of it is the engine's, and nobody's

    def warm_up(self) -> None:
        """Run the usual shapes once, one text and several by turns, for some seconds at most."""
        end, most = time.monotonic() + WARM_SECONDS, self._longest
        for step in count(1):
            single, several = step * FINE, step * COARSE
            if single <= most:
                self.run([[0] * single])
            if several <= WARM_TOKENS:
                self.run([[0] * (COARSE // 2)] * (2 * step))
            if not self._kernels or time.monotonic() > end or (single > most and several > WARM_TOKENS):
                return


def openvino(graph: Path, callers: int, threads: int) -> Callable[[Arrays], Any]:
    import openvino

    core = openvino.Core()
    # INFERENCE_PRECISION_HINT is left to the engine: bfloat16 where the processor has matrix units for it. "f32" is exact.
    settings: dict[str, Any] = {"NUM_STREAMS": callers}
    if threads:
        # Pinned where the server says so: OpenVINO counts from the first core, as if the process were alone.
        pinned = os.environ.get("WINDLASS_PIN_THREADS") == "1"
        settings |= {"INFERENCE_NUM_THREADS": callers * threads, "ENABLE_CPU_PINNING": pinned}
    apart = {}
    if core.get_property("CPU", "INFERENCE_PRECISION_HINT") == openvino.Type.bf16:
        # In bfloat16 attention as one kernel takes longer than its parts do: a twentieth of the whole, OpenVINO 2026.4.
        apart = {"SNIPPETS_MODE": "DISABLE"}
    try:
        model = core.compile_model(str(graph), "CPU", settings | apart)
    except RuntimeError:  # OpenVINO documents no such property, so that another version may not have it
        model = core.compile_model(str(graph), "CPU", settings)
    own = threading.local()  # a request holds the tensors of one inference

    def run(arrays: Arrays) -> Any:
        if not hasattr(own, "request"):
            own.request = model.create_infer_request()
        return own.request.infer(arrays, share_inputs=True, share_outputs=True)[0]

    return run


def onnxruntime(graph: Path, callers: int, threads: int) -> Callable[[Arrays], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The session has one set of threads for all callers, each of which computes, too.
    options.intra_op_num_threads = callers * (threads - 1) + 1 if threads else 0
    session = onnxruntime.InferenceSession(str(graph), options, providers=onnxruntime.get_available_providers())

    def run(arrays: Arrays) -> Any:
        return session.run(None, arrays)[0]

    return run


def together(ids: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """Neighbours, as many as one run takes."""
    start = tokens = 0
    for index, each in enumerate(ids):
        if index > start and (tokens + len(each) > MOST_TOKENS or index - start == MOST_TEXTS):
            yield ids[start:index]
            start, tokens = index, 0
        tokens += len(each)
    yield ids[start:]


def pack(ids: Sequence[Sequence[int]], pooling: str) -> dict[str, np.ndarray[Any, Any]]:
    """What the graph takes for the tokens of several texts.

    Args:
        pooling: ``mean``: a text's vector is the mean of its tokens'; ``first``: its first token's.

    Returns:
        tokens, positions: int32 [token]: of all texts, one after another, and where in its text each stands.
        cells: int32 [row, place]: which token attention sees there.
        texts: int32 [row, place]: whose it is, from 1; 0 is nobody's.
        places: int32 [token]: in which cell each lies, rows counted through.
        shares, for ``mean``: float32 [text, token]: how much of each token is in a text's vector.
        firsts, for ``first``: int32 [text]: where its first token is.
        owners, for ``first``: int32 [token]: whose each is, as in ``texts``.

        There may be more rows than texts in what is by text; those beyond are nobody's.
    """
    if pooling == "first":
        ids = [each if len(each) else [0] for each in ids]  # what has no tokens has no first one either
    lengths = np.array([len(each) for each in ids], np.int64)
    total = int(lengths.sum())
    alone = len(ids) == 1
    width = _up(total, FINE if alone else COARSE)
    wide = width if alone else _up(int(lengths.max(initial=0)), WIDE)
    rows, columns = [0] * len(ids), [0] * len(ids)
    room: list[int] = []
    for index in np.argsort(-lengths, kind="stable").tolist():  # the longest first, into the first row with room
        need = int(lengths[index])
        row = next((row for row, free in enumerate(room) if free >= need), len(room))
        if row == len(room):
            room.append(wide)
        rows[index], columns[index] = row, wide - room[row]
        room[row] -= need
    text = np.repeat(np.arange(len(ids)), lengths)
    tokens, positions, places = (np.zeros(width, np.int32) for _ in range(3))
    starts = np.cumsum(lengths) - lengths
    tokens[:total] = np.concatenate([np.asarray(each, np.int32) for each in ids]) if len(ids) else ()
    positions[:total] = np.arange(total) - starts[text]
    places[:total] = (np.array(rows, np.int64) * wide + np.array(columns, np.int64))[text] + positions[:total]
    # A row that nobody needs costs less than kernels for one more shape.
    height = 1 if alone else max(len(room), -(-(width + wide // 2) // wide))
    cells, texts = (np.zeros(height * wide, np.int32) for _ in range(2))
    cells[places[:total]], texts[places[:total]] = np.arange(total), text + 1
    slots = 1 if alone else _up(len(ids), TEXTS)
    pooled: dict[str, np.ndarray[Any, Any]]
    if pooling == "mean":
        shares = np.zeros((slots, width), np.float32)
        shares[text, np.arange(total)] = (1 / np.maximum(lengths, 1))[text]
        pooled = {"shares": shares}
    else:
        firsts, owners = np.zeros(slots, np.int32), np.zeros(width, np.int32)
        firsts[: len(ids)], owners[:total] = starts, text + 1
        pooled = {"firsts": firsts, "owners": owners}
    return {
        "tokens": tokens,
        "positions": positions,
        "places": places,
        "cells": cells.reshape(-1, wide),
        "texts": texts.reshape(-1, wide),
        **pooled,
    }


def _up(size: int, step: int) -> int:
    """A multiple of the step, and at least one."""
    return max(1, -(-size // step)) * step
