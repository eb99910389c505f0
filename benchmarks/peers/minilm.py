"""Write the MiniLM classifier in both forms, for OpenVINO, as it is the fastest on this machine.

    python benchmarks/peers/minilm.py WEIGHTS FOLDER < texts.json

| below FOLDER | what |
|---|---|
| packed/model | the bundle that Windlass makes of a transformers folder: no padding, and hooks that come with it |
| padded/alone | what OpenVINO's converter and NNCF make of that folder: each text as long as the longest; for text by text |
| padded/together | the same for batches |

Each of the three is the fastest of its kind here: int8, calibrated with the same texts, or the plain graph; and for the rest
the engine's own precision (bfloat16 where the processor has matrix units for it) or float32. All figures are printed.

The weights are those of a sentence encoder, with a linear layer of seeded random ones for the classes. That makes the classes
meaningless and the cost right, which is all that a benchmark of servers asks; how near int8 comes to float32 is printed.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
import transformers
from classifier import Classifier

from windlass import artifact
from windlass.optimize.packed import pack_encoder

MOST_TOKENS, CLASSES, ALONG = 128, 4, 4
SECONDS = 2.0
PRECISIONS = {"its own precision": {}, "float32": {"INFERENCE_PRECISION_HINT": "f32"}}


def classifier(weights, folder):
    """A transformers folder."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights, model_max_length=MOST_TOKENS)
    model = transformers.BertForSequenceClassification.from_pretrained(weights, num_labels=CLASSES)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer, model.eval()


def padded(tokenizer, model, texts):
    """The plain graph and the quantised one, and how near the second comes to the first."""
    batches = [
        {
            name: array.numpy()
            for name, array in tokenizer(
                texts[at : at + ALONG], padding=True, truncation=True, return_tensors="pt"
            ).items()
        }
        for at in range(0, len(texts), ALONG)
    ]
    example = {name: torch.from_numpy(array) for name, array in batches[0].items()}
    plain = openvino.convert_model(model, example_input=example)
    plain.reshape({port: [-1, -1] for port in plain.inputs})
    small = nncf.quantize(
        plain,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(batches),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )
    outputs = [
        np.concatenate([compiled(batch)[0].ravel() for batch in batches])
        for compiled in (openvino.compile_model(each, "CPU") for each in (plain, small))
    ]
    return plain, small, np.corrcoef(outputs)[0, 1]


def rate(folder, texts, batch):
    """Texts a second, on one core."""
    model, done, start = Classifier(folder), 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS:
        at = done % len(texts)
        done += len(model.predict(texts[at : at + batch]))
    return done / spent


def keep_fastest(forms, texts, batch, dest):
    rates = {name: rate(folder, texts, batch) for name, folder in forms.items()}
    print(f"{dest}: {', '.join(f'{name} {found:.0f}/s' for name, found in rates.items())} in batches of {batch}")
    shutil.copytree(forms[max(rates, key=rates.get)], dest)


def main(weights, folder):
    texts = json.load(sys.stdin)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        made, source = Path(scratch), Path(scratch) / "source"
        tokenizer, model = classifier(weights, source)
        *graphs, near = padded(tokenizer, model, texts)
        forms = {}
        for graph, kind in zip(graphs, ("plain", "int8"), strict=True):
            for precision, settings in PRECISIONS.items():
                form = forms[f"{kind} in {precision}"] = made / f"{kind}-{precision}"
                openvino.save_model(graph, form / "model.xml", compress_to_fp16=False)
                (form / "settings.json").write_text(json.dumps(settings))
                shutil.copyfile(source / "tokenizer.json", form / "tokenizer.json")
        keep_fastest(forms, texts, 1, folder / "padded" / "alone")
        keep_fastest(forms, texts, 16, folder / "padded" / "together")

        pack_encoder(made / "plain", source, engine="openvino")
        packed = pack_encoder(made / "int8", source, calibration=texts)
        bundles = {}
        for kind in ("plain", "int8"):
            bundles[kind] = made / f"{kind}-bundle"
            artifact.open(artifact.build(made / kind, made / f"{kind}.tar.gz").path, bundles[kind])
        keep_fastest(bundles, texts, 8, folder / "packed" / "model")
    print(f"int8 against float32: correlation {packed:.4f} packed, {near:.4f} padded")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
