"""Serves a causal language model of the transformers format, with continuous batching.

    {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 64, "stream": true}}

Requests join and leave the batch at every step of the generation, so a long answer holds up no short one. With ``stream`` the
text comes as it is made, as lines of JSON: {"token": {"text": "..."}}, and the last with "generated_text". Without it the
answer is [{"generated_text": "..."}], as of the Hugging Face inference containers.

MAX_CONCURRENCY, MAX_NEW_TOKENS (the most that a request may ask for) and PAGES (of the cache, 256 tokens each; chosen from the
GPU's memory where there is one) come from the environment.
"""

import json
import os
import queue
import threading
import uuid

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

max_concurrency = int(os.environ.get("MAX_CONCURRENCY", "32"))
MAX_NEW_TOKENS = int(os.environ.get("MAX_NEW_TOKENS", "1024"))
PAGES = int(os.environ.get("PAGES", "0"))


class BadRequest(ValueError):
    """The caller's fault: the model server answers with this status."""

    status_code = 400


class Generator:
    """A model whose steps many requests share."""

    def __init__(self, model_dir):
        gpu = torch.cuda.is_available()
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto").to("cuda" if gpu else "cpu").eval()
        self.longest = getattr(model.config, "max_position_embeddings", 1 << 30)
        # Without a GPU there is no memory of its to size the cache by, and no graphs to capture.
        cache = {"num_blocks": PAGES or None} if gpu else {"num_blocks": PAGES or 64, "max_batch_tokens": 512}
        plain = {} if gpu else {"use_cuda_graph": False, "use_async_batching": False}
        self.manager = model.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=False,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id or 0,
            ),
            continuous_batching_config=ContinuousBatchingConfig(**cache, **plain),
        )
        self.manager.start()
        self.waiting = {}
        threading.Thread(target=self.deliver, daemon=True).start()

    def deliver(self):
        """Hand each step's output to the request that waits for it."""
        for output in self.manager:
            if (outputs := self.waiting.get(output.request_id)) is not None:
                outputs.put(output)
        os._exit(1)  # the generation loop has ended, and said why: the model server replaces a process that does

    def texts(self, prompt, max_new_tokens):
        """The text so far, whenever there is more of it. Closing this cancels what is left."""
        ids = self.tokenizer(prompt)["input_ids"]
        if not ids:
            raise BadRequest("inputs is empty")
        if len(ids) + max_new_tokens > self.longest:
            raise BadRequest(
                f"{len(ids)} tokens and {max_new_tokens} new ones are more than the model's {self.longest}"
            )
        return self.follow(ids, max_new_tokens)

    def follow(self, ids, max_new_tokens):
        name, finished = uuid.uuid4().hex, False
        outputs = self.waiting[name] = queue.Queue()
        try:
            self.manager.add_request(ids, request_id=name, max_new_tokens=max_new_tokens, streaming=True)
            while not finished:
                output = outputs.get()
                if output.error:
                    raise RuntimeError(output.error)
                finished = output.is_finished()
                text = self.tokenizer.decode(output.generated_tokens, skip_special_tokens=True)
                if finished or not text.endswith("\ufffd"):  # the first bytes of a character: its others come next
                    yield text
        finally:
            if not finished:
                self.manager.cancel_request(name)
            del self.waiting[name]


def model_fn(model_dir):
    return Generator(model_dir)


def input_fn(body, content_type):
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise BadRequest(f"content type {content_type!r} is not read here; send application/json")
    try:
        request = json.loads(body)
        prompt, parameters = request["inputs"], request.get("parameters") or {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRequest('the body is no {"inputs": "...", "parameters": {...}}') from error
    if not isinstance(prompt, str) or not isinstance(parameters, dict):
        raise BadRequest("inputs is text, and parameters an object")
    count = parameters.get("max_new_tokens", 64)
    if type(count) is not int or not 1 <= count <= MAX_NEW_TOKENS:
        raise BadRequest(f"max_new_tokens is {count!r}, and not a whole number from 1 to {MAX_NEW_TOKENS}")
    if unknown := set(parameters) - {"max_new_tokens", "stream"}:
        raise BadRequest(f"unknown parameters: {', '.join(sorted(unknown))}. Known: max_new_tokens, stream")
    return prompt, count, bool(parameters.get("stream"))


def predict_fn(data, model):
    prompt, count, stream = data
    texts = model.texts(prompt, count)
    return lines(texts) if stream else [{"generated_text": list(texts)[-1]}]


def lines(texts):
    before = ""
    try:
        for text in texts:
            yield {"token": {"text": text[len(before) :]}}
            before = text
    finally:
        texts.close()
    yield {"generated_text": before}


def output_fn(prediction, accept):
    if isinstance(prediction, list):
        return json.dumps(prediction), "application/json"
    return prediction, "application/jsonlines"
