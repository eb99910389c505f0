"""Encoders of texts without padding: a batch of texts of any lengths costs what its tokens cost.

    pack_encoder("out/model", "my-minilm/")                              # ONNX Runtime, float32
    pack_encoder("out/model", "my-minilm/", engine="openvino")           # float32; bfloat16 where the processor is for it
    pack_encoder("out/model", "my-minilm/", calibration=texts)           # OpenVINO, int8
    wl.register("out/model", model="reviews")

Exporters write the padded graph: each text of a batch is as long as the longest. Here the graph is written node by node for the
layout of ``artifact/serving/windlass_packing.py``, which comes into the bundle with the hooks that serve it.

| architecture | the answer of a text |
|---|---|
| BertForSequenceClassification | ``logits`` |
| BertModel of the sentence-transformers library, pooled by mean or first token | ``embedding``, of length 1 if it says so |
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from windlass import artifact
from windlass.artifact import loaders
from windlass.errors import InvalidInput
from windlass.optimize.export import describe, require
from windlass.optimize.weights import Weights

SUPPORTED = (
    "model_type bert: BertForSequenceClassification, or a sentence-transformers folder pooled by mean or first token"
)
_FAR = -1e4  # what attention adds to another text's tokens
_ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}
_ALONG = 4  # texts of a batch of calibration


def pack_encoder(
    dest: str | Path,
    source: str | Path,
    *,
    engine: Literal["onnxruntime", "openvino"] | None = None,
    calibration: Sequence[str] = (),
    min_correlation: float = 0.95,
) -> float:
    """Write a transformers folder as one that serves itself without padding.

    Args:
        dest: absent or empty; it appears whole or not at all.
        source: ``config.json``, ``model.safetensors`` (or its shards) and ``tokenizer.json``; see the table above.
        engine: what will run it; by default OpenVINO for int8, else ONNX Runtime. OpenVINO computes in bfloat16 what is not
            int8 where the processor has matrix units for that (AMX). Int8 is the faster one where a processor has VNNI and
            no such units; floats are elsewhere.
        calibration: some hundred texts like those that will come; with them all but attention is quantised to int8 (weights
            by channel, activations by what these texts show), which is for OpenVINO.
        min_correlation: of int8's outputs with float32's over these texts; below it nothing is written.

    Returns:
        That correlation; 1.0 where nothing is quantised.

    Raises:
        InvalidInput: no such model or engine; the message names what there is.
        MissingExtra: `onnx` or `tokenizers` (extra ``optimize``), `openvino` or for int8 `nncf` (``openvino``).
    """
    source, where = Path(source), f"Packing {source}"
    engine = engine or ("openvino" if calibration else "onnxruntime")
    if engine not in ("onnxruntime", "openvino") or (calibration and engine != "openvino"):
        what = f"engine {engine!r}" + ", which does not run int8 here" * bool(calibration)
        raise InvalidInput(what, where=where, hint="Engines: onnxruntime; openvino, which int8 is for.")
    onnx = require("onnx", "optimize", "Packing an encoder")
    tokenizers = require("tokenizers", "optimize", "Packing an encoder")
    encoder = _Encoder.read(source, where)
    with artifact.appears(Path(dest), where) as folder:
        shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
        if (source / "README.md").is_file():
            shutil.copyfile(source / "README.md", folder / "README.md")
        onnx.save_model(_graph(onnx, encoder, engine, source, where), folder / "model.onnx")
        packed = {
            "tokens": encoder.tokens,
            "pooling": encoder.pooling,
            "output": encoder.output,
            "labels": encoder.labels,
        }
        (folder / loaders.PACKING).write_text(json.dumps(packed, indent=1), encoding="utf-8")
        correlation = 1.0
        if engine == "openvino":
            openvino = require("openvino", "openvino", "Packing an encoder for OpenVINO")
            model = openvino.Core().read_model(folder / "model.onnx")
            if calibration:
                tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
                model, correlation = _int8(openvino, model, encoder, tokenizer, calibration)
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=not calibration)
            (folder / "model.onnx").unlink()
            if not correlation >= min_correlation:
                hint = "Give more texts, and such as will come; or leave calibration out, for float32."
                what = f"int8 answers correlate by {correlation:.3f} with float32, less than {min_correlation}"
                raise InvalidInput(what, where=where, hint=hint)
        signature = {
            "inputs": [{"name": "inputs", "dtype": "str", "shape": ["batch"]}],
            "outputs": [{"name": encoder.output, "dtype": "float32", "shape": ["batch", encoder.size]}],
            "content_types": ["application/json", "text/plain"],
            "accept_types": ["application/json", "text/csv", "application/x-npy"],
            "example": {"inputs": ["a text"]},
        }
        describe(folder, signature, (engine, "tokenizers", "numpy"))
    return correlation


# ------------------------------------------------------------------------------------------------------- what is in a folder


@dataclass(frozen=True)
class _Encoder:
    """What the folder says of the model.

    Attributes:
        tokens: the most of a text; the rest of it is cut off.
        pooling: ``first`` or ``mean``, as in ``windlass_packing.pack``.
        normal: its vectors have the length 1.
        labels: of a classifier; an encoder of sentences has none.
    """

    layers: int
    heads: int
    hidden: int
    epsilon: float
    activation: str
    tokens: int
    pooling: str
    normal: bool
    labels: Sequence[str]

    @property
    def output(self) -> str:
        return "logits" if self.labels else "embedding"

    @property
    def size(self) -> int:
        return len(self.labels) or self.hidden

    @classmethod
    def read(cls, folder: Path, where: str) -> _Encoder:
        for name in ("config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                hint = "Save it there: AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
                raise InvalidInput(f"no {name} in {folder}", where=where, hint=hint if name == "tokenizer.json" else "")
        config = _json(folder / "config.json", where)
        kind, architecture = config.get("model_type"), (config.get("architectures") or ["none"])[0]
        classifier = architecture == "BertForSequenceClassification"
        if kind != "bert" or not (classifier or (folder / "modules.json").is_file()):
            what = f"model_type {kind!r} with architecture {architecture!r} is not packed"
            raise InvalidInput(what, where=where, hint=f"Supported: {SUPPORTED}.")
        activation, places = config.get("hidden_act", "gelu"), config.get("position_embedding_type", "absolute")
        decoder = config.get("is_decoder")
        if activation not in _ACTIVATIONS or places != "absolute" or decoder:
            what = f"hidden_act {activation!r}, position_embedding_type {places!r}" + ", a decoder" * bool(decoder)
            hint = f"Supported: hidden_act {', '.join(_ACTIVATIONS)}; absolute positions; encoders."
            raise InvalidInput(what, where=where, hint=hint)
        pooling, normal = ("first", False) if classifier else _pooling(folder, where)
        labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # the library leaves its default out
        return cls(
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            hidden=config["hidden_size"],
            epsilon=config.get("layer_norm_eps", 1e-12),
            activation=activation,
            tokens=_tokens(folder, config["max_position_embeddings"], where),
            pooling=pooling,
            normal=normal,
            labels=[labels[key] for key in sorted(labels, key=int)] if classifier else [],
        )


def _json(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidInput(f"{path.name} is not JSON: {error}", where=where) from error


def _pooling(folder: Path, where: str) -> tuple[str, bool]:
    """How the sentence-transformers library makes one vector of a text, and whether it is of length 1."""
    modules = {module["type"].rpartition(".")[2]: module["path"] for module in _json(folder / "modules.json", where)}
    how = _json(folder / modules.get("Pooling", "1_Pooling") / "config.json", where)
    modes = [name for name, value in how.items() if name.startswith("pooling_mode_") and value is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
    if set(modules) - {"Transformer", "Pooling", "Normalize"} or len(modes) != 1 or modes[0] not in known:
        what = f"modules {', '.join(modules)} with {', '.join(modes) or 'no pooling mode'} are not packed"
        raise InvalidInput(what, where=where, hint=f"Supported: {SUPPORTED}.")
    return known[modes[0]], "Normalize" in modules


def _tokens(folder: Path, most: int, where: str) -> int:
    """The most tokens of a text, as the model's own libraries cut it."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).is_file() and (said := _json(folder / name, where).get(key)):
            return int(min(said, most))
    return most


# ---------------------------------------------------------------------------------------------------------------- the graph


def _graph(onnx: Any, encoder: _Encoder, engine: str, source: Path, where: str) -> Any:
    """The encoder for packed texts. `x` below is [token, hidden] throughout, but for attention's rows."""
    import numpy as np

    helper, hidden, heads = onnx.helper, encoder.hidden, encoder.heads
    # For OpenVINO query, key and value are one product: with heads first, to take them apart moves nothing, and each node costs
    # some of every run with other shapes than the one before. To ONNX Runtime the wider rows cost more than that saves.
    heads_first = engine == "openvino"
    nodes: list[Any] = []
    constants: list[Any] = []
    found = Weights(source)
    prefix = "bert." if any(name.startswith("bert.") for name in found) else ""

    def weight(name: str) -> Any:
        full = name if name.startswith("classifier.") else prefix + name
        if full not in found:
            raise InvalidInput(f"its weights lack {full!r}", where=where)
        return found[full].float().numpy()

    def constant(name: str, value: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, inputs: Sequence[str], output: str, others: Sequence[str] = (), **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output, *others], name=output, **attributes))
        return output

    def linear(x: str, matrix: Any, bias: Any, output: str) -> str:
        product = node("MatMul", [x, constant(f"{output}.w", matrix.T.astype(np.float32))], f"{output}.product")
        return node("Add", [product, constant(f"{output}.b", bias.astype(np.float32))], output)

    def dense(x: str, name: str, output: str) -> str:
        return linear(x, weight(f"{name}.weight"), weight(f"{name}.bias"), output)

    def norm(x: str, name: str, output: str) -> str:
        parts = [constant(f"{name}.{part}", weight(f"{name}.{part}")) for part in ("weight", "bias")]
        return node("LayerNormalization", [x, *parts], output, axis=-1, epsilon=encoder.epsilon)

    def projected(x: str, layer: str, parts: Sequence[str], output: str) -> str:
        """Products with the matrices of some of attention's parts, side by side."""
        names = {part: f"{layer}.attention.self.{part}" for part in parts}
        matrix, bias = (
            np.concatenate([weight(f"{names[part]}.{what}") * scales[part] for part in parts])
            for what in ("weight", "bias")
        )
        return linear(x, matrix, bias, output)

    def by_head(x: str, output: str, order: Sequence[int]) -> str:
        """In attention's rows: [row, place, head, size], transposed."""
        cells = node("Gather", [x, "cells"], f"{output}.rows")
        return node("Transpose", [node("Reshape", [cells, split], f"{output}.heads")], output, perm=order)

    def by_token(x: str, output: str, order: Sequence[int]) -> str:
        rows = node("Reshape", [node("Transpose", [x], f"{output}.rows", perm=order), flat], f"{output}.cells")
        return node("Gather", [rows, "places"], output)

    def attended(x: str, layer: str) -> str:
        query, key, value = (f"{layer}.{part}" for part in scales)
        if heads_first:
            rows = by_head(projected(x, layer, list(scales), f"{layer}.flat"), f"{layer}.by_head", [2, 0, 1, 3])
            node("Split", [rows], query, [key, value], axis=0, num_outputs=3)
            key = node("Transpose", [key], f"{key}.across", perm=[0, 1, 3, 2])
        else:
            for part, order in ("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]):
                by_head(projected(x, layer, [part], f"{layer}.{part}.flat"), f"{layer}.{part}", order)
        seen = weighted(query, key, value, mask, layer)
        return by_token(seen, f"{layer}.attended", [1, 2, 0, 3] if heads_first else [0, 2, 1, 3])

    def attended_by_first(first: str, x: str, layer: str) -> str:
        """What the first token of each text sees in it, [text, hidden]: all others' shares, and all rows, are saved."""
        one = constant("head", np.array([0, -1, hidden // heads]))

        def tokens_by_head(x: str, output: str) -> str:
            return node("Transpose", [node("Reshape", [x, one], f"{output}.heads")], output, perm=[1, 0, 2])

        query, key, value = (f"{layer}.{part}" for part in scales)
        tokens_by_head(projected(first, layer, ["query"], f"{query}.flat"), query)
        pair = tokens_by_head(projected(x, layer, ["key", "value"], f"{layer}.flat"), f"{layer}.by_head")
        node("Split", [pair], key, [value], axis=0, num_outputs=2)
        across = node("Transpose", [key], f"{key}.across", perm=[0, 2, 1])
        numbers = node("Gather", ["owners", "firsts"], "numbers")
        sides = [
            node("Unsqueeze", [of, constant(f"{of}.axis", np.array([axis]))], f"{of}.side")
            for of, axis in ((numbers, 1), ("owners", 0))
        ]
        own = node("Where", [node("Equal", sides, "own"), *limits], "own.mask")  # [text, token]
        seen = weighted(query, across, value, own, layer)
        return node("Reshape", [node("Transpose", [seen], f"{layer}.t", perm=[1, 0, 2]), flat], f"{layer}.attended")

    def weighted(query: str, key: str, value: str, mask: str, layer: str) -> str:
        masked = node("Add", [node("MatMul", [query, key], f"{layer}.scores"), mask], f"{layer}.masked")
        return node("MatMul", [node("Softmax", [masked], f"{layer}.share", axis=-1), value], f"{layer}.seen")

    split = constant("heads", np.array([0, 0, -1, hidden // heads]))
    flat = constant("flat", np.array([-1, hidden]))
    words = constant("words", weight("embeddings.word_embeddings.weight"))
    # There is one kind of token, so its embedding is part of the position's.
    kind = weight("embeddings.token_type_embeddings.weight")[0]
    table = constant("table", weight("embeddings.position_embeddings.weight")[: encoder.tokens] + kind)
    embedded = [node("Gather", [words, "tokens"], "word"), node("Gather", [table, "positions"], "place")]
    x = norm(node("Add", embedded, "embedded"), "embeddings.LayerNorm", "embedded.normed")
    axis = 0 if heads_first else 1
    sides = [node("Unsqueeze", ["texts", constant(f"axes{at}", np.array([axis, at]))], f"texts{at}") for at in (2, 3)]
    limits = [constant("near", np.float32(0)), constant("far", np.float32(_FAR))]
    mask = node("Where", [node("Equal", sides, "same"), *limits], "mask")  # [row, place, place], and 1 for the heads
    scales = {"query": (hidden // heads) ** -0.5, "key": 1.0, "value": 1.0}
    activate, how = _ACTIVATIONS[encoder.activation]
    for index in range(encoder.layers):
        layer = f"encoder.layer.{index}"
        if encoder.pooling == "first" and index == encoder.layers - 1:
            # Nobody asks for the other tokens from here on: most of the last layer is saved.
            first = node("Gather", [x, "firsts"], "first")
            seen, x = attended_by_first(first, x, layer), first
        else:
            seen = attended(x, layer)
        name = f"{layer}.attention.output"
        x = norm(
            node("Add", [dense(seen, f"{name}.dense", f"{name}.projected"), x], f"{name}.sum"),
            f"{name}.LayerNorm",
            f"{name}.normed",
        )
        wide = dense(x, f"{layer}.intermediate.dense", f"{layer}.wide")
        narrow = dense(node(activate, [wide], f"{layer}.active", **how), f"{layer}.output.dense", f"{layer}.narrow")
        x = norm(node("Add", [narrow, x], f"{layer}.sum"), f"{layer}.output.LayerNorm", f"{layer}.normed")
    if encoder.pooling == "mean":
        x = node("MatMul", ["shares", x], f"{x}.pooled")
    if encoder.labels:
        x = node("Tanh", [dense(x, "pooler.dense", "pooler")], "pooler.active")
        dense(x, "classifier", encoder.output)
    elif encoder.normal:
        # As torch.nn.functional.normalize: a vector of zeros stays one.
        size = node("ReduceL2", [x, constant("last", np.array([-1]))], "size", keepdims=1)
        node("Div", [x, node("Max", [size, constant("least", np.float32(1e-12))], "size.least")], encoder.output)
    else:
        node("Identity", [x], encoder.output)

    def tensor(name: str, kind: int, shape: Sequence[str | int]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    whole, fraction = onnx.TensorProto.INT32, onnx.TensorProto.FLOAT
    inputs = [
        *(tensor(name, whole, ["token"]) for name in ("tokens", "positions", "places")),
        *(tensor(name, whole, ["row", "place"]) for name in ("cells", "texts")),
    ]
    if encoder.pooling == "mean":
        inputs += [tensor("shares", fraction, ["text", "token"])]
    else:
        inputs += [tensor("firsts", whole, ["text"]), tensor("owners", whole, ["token"])]
    outputs = [tensor(encoder.output, fraction, ["text", encoder.size])]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


# --------------------------------------------------------------------------------------------------------------------- int8


def _int8(openvino: Any, plain: Any, encoder: _Encoder, tokenizer: Any, texts: Sequence[str]) -> tuple[Any, float]:
    """The quantised graph, and how near its answers come."""
    nncf = require("nncf", "openvino", "Packing an encoder in int8")
    import numpy as np

    from windlass.artifact.serving.windlass_packing import pack

    tokenizer.no_padding()
    tokenizer.enable_truncation(encoder.tokens)
    ids = [each.ids for each in tokenizer.encode_batch(list(texts))]
    batches = [pack(ids[at : at + _ALONG], encoder.pooling) for at in range(0, len(ids), _ALONG)]
    heads = ["pooler.product", "logits.product"] if encoder.labels else []
    pooled = [r".*\.pooled"] if encoder.pooling == "mean" else []
    small = nncf.quantize(
        plain,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(batches),
        # Weights in half of their range: without VNNI, processors add products two by two in 16 bits, which saturate.
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        # A token's share has no room in int8; the head is nothing to gain by, and attention little: it is softmax, mostly.
        ignored_scope=nncf.IgnoredScope(names=heads, patterns=[r".*\.scores", r".*\.seen", *pooled]),
    )
    exact = openvino.compile_model(plain, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    near = openvino.compile_model(small, "CPU")
    counts = [len(ids[at : at + _ALONG]) for at in range(0, len(ids), _ALONG)]
    outputs = [
        np.concatenate([model(batch)[0][:count].ravel() for batch, count in zip(batches, counts, strict=True)])
        for model in (exact, near)
    ]
    return small, float(np.corrcoef(outputs)[0, 1])
