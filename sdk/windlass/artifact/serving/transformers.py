"""Serves a transformers folder, weights from safetensors alone. Written by Windlass; change it as you like.

Takes ``{"inputs": "a text" or ["several", "texts"], "parameters": {...}}``, as the Hugging Face inference toolkit does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# By the end of the architecture's name, the more particular first.
TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "Model": "feature-extraction",
}


class BadRequest(ValueError):
    """What came cannot be read."""

    def __init__(self, message: str, status_code: int = 400) -> None:
        self.status_code = status_code
        super().__init__(message)


def model_fn(model_dir: str) -> Callable[..., Any]:
    if (Path(model_dir) / "modules.json").is_file():
        return sentences(model_dir)
    architecture = (json.loads((Path(model_dir) / "config.json").read_text()).get("architectures") or ["Model"])[0]
    task = next((task for end, task in TASKS.items() if architecture.endswith(end)), None)
    if task is None:
        raise ValueError(f"{architecture} has no pipeline here. Write code/inference.py with model_fn(model_dir).")
    pipeline: Callable[..., Any] = transformers.pipeline(
        task, model=model_dir, device=DEVICE, trust_remote_code=False, model_kwargs={"use_safetensors": True}
    )
    return pipeline


def sentences(model_dir: str) -> Callable[..., Any]:
    """An embedding for each text, by the pooling that the sentence-transformers library left beside the model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    model = (
        transformers.AutoModel.from_pretrained(model_dir, use_safetensors=True, local_files_only=True).to(DEVICE).eval()
    )
    modules = json.loads((Path(model_dir) / "modules.json").read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    pooling = next((m["path"] for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), "1_Pooling")
    how = json.loads((Path(model_dir) / pooling / "config.json").read_text())
    if not how.get("pooling_mode_mean_tokens") or set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ValueError(f"modules {', '.join(kinds)} with {how} are not served here. Write code/inference.py.")
    longest = model_length(model_dir)

    def embed(texts: str | list[str], **_: Any) -> list[list[float]]:
        several = [texts] if isinstance(texts, str) else texts
        tokens = tokenizer(several, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(DEVICE)
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1)
        vectors = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        if "Normalize" in kinds:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        rows: list[list[float]] = vectors.tolist()
        return rows

    return embed


def model_length(model_dir: str) -> int | None:
    path = Path(model_dir) / "sentence_bert_config.json"
    length: int | None = json.loads(path.read_text()).get("max_seq_length") if path.is_file() else None
    return length


def input_fn(body: str | bytes, content_type: str | None) -> dict[str, Any]:
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind == "text/plain":
        return {"inputs": body if isinstance(body, str) else body.decode()}
    if kind != "application/json":
        raise BadRequest(f"content type {content_type!r} is not read here. Valid: application/json, text/plain", 415)
    try:
        data = json.loads(body)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(data, dict) or "inputs" not in data or data.keys() - {"inputs", "parameters"}:
        raise BadRequest('expected an object with inputs and, if need be, parameters: {"inputs": "a text"}')
    texts = data["inputs"] if isinstance(data["inputs"], list) else [data["inputs"]]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest("inputs is neither a text nor a list of texts")
    return data


def predict_fn(data: Mapping[str, Any], model: Callable[..., Any]) -> Any:
    return model(data["inputs"], **(data.get("parameters") or {}))


def output_fn(prediction: Any, accept: str | None) -> tuple[str, str]:
    return json.dumps(prediction), "application/json"
