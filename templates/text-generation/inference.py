"""Serves a causal language model of the transformers format, with continuous batching.

    {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 64, "temperature": 0.7, "stop": ["\\n"]}, "stream": true}

Requests and answers are those of Hugging Face's Text Generation Inference. Requests join and leave the batch at every step, so
a long answer holds up no short one. Without ``stream`` the answer is [{"generated_text": "..."}]. With it the text comes as
it is made, as events: data:{"token": {"id": 7, "text": "..."}, "generated_text": null}, of which the last has the whole text
and "details"; with ``Accept: application/jsonlines`` as lines of JSON.

| parameter | default | |
|---|---|---|
| max_new_tokens | 64 | tokens at most |
| do_sample | false | draw tokens; true where temperature, top_k or top_p is given |
| temperature | 1.0 | above 0; lower is more certain |
| top_k | all | draw from so many of the likeliest tokens |
| top_p | 1.0 | draw from the likeliest tokens that have this probability together |
| seed | a new one | the same seed draws the same text, whatever else is in the batch |
| stop | none | texts after which it ends; the one that came is part of the answer |
| truncate | all | only so many of the last tokens of the inputs |
| return_full_text | false | the inputs before the answer |
| details | false | finish_reason, generated_tokens and seed in the answer |

MAX_CONCURRENCY, MAX_NEW_TOKENS (the most that a request may ask for) and PAGES (of the cache, 256 tokens each; chosen from the
GPU's memory where there is one) come from the environment.
"""

import hashlib
import json
import os
import queue
import random
import threading
import uuid
from contextlib import closing
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

max_concurrency = int(os.environ.get("MAX_CONCURRENCY", "32"))
MAX_NEW_TOKENS = int(os.environ.get("MAX_NEW_TOKENS", "1024"))
PAGES = int(os.environ.get("PAGES", "0"))
GREEDY = -1
EVENTS, LINES = "text/event-stream", "application/jsonlines"


class BadRequest(ValueError):
    """The caller's fault: the model server answers with this status."""

    status_code = 400


# --- the request


@dataclass(frozen=True)
class Request:
    """What is asked for, checked."""

    inputs: str
    stream: bool = False
    max_new_tokens: int = 64
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    truncate: int | None = None
    return_full_text: bool = False
    details: bool = False

    @property
    def sampled(self):
        if self.do_sample is None:
            return any(value is not None for value in (self.temperature, self.top_k, self.top_p))
        return self.do_sample


def whole(least, most):
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def between(above, most):
    said = f"a number above {above}" + (f" and at most {most}" if most < float("inf") else "")
    return lambda value: type(value) in (int, float) and above < value <= most, said


FLAG = (lambda value: type(value) is bool), "true or false"
TEXTS = (
    (
        lambda value: (
            isinstance(value, list) and len(value) <= 16 and all(isinstance(text, str) and text for text in value)
        )
    ),
    "a list of at most 16 texts",
)
PARAMETERS = {
    "max_new_tokens": whole(1, MAX_NEW_TOKENS),
    "do_sample": FLAG,
    "temperature": between(0, float("inf")),
    "top_k": whole(1, 2**31 - 1),
    "top_p": between(0, 1),
    "seed": whole(0, 2**64 - 1),
    "stop": TEXTS,
    "truncate": whole(1, 2**31 - 1),
    "return_full_text": FLAG,
    "details": FLAG,
}


def parse(body):
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is no JSON") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("inputs"), str):
        raise BadRequest('the body is no {"inputs": "...", "parameters": {...}}: inputs is text')
    if unknown := set(asked) - {"inputs", "parameters", "stream"}:
        raise BadRequest(f"unknown: {', '.join(sorted(unknown))}. Known: inputs, parameters, stream")
    parameters, stream = asked.get("parameters") or {}, asked.get("stream", False)
    if not isinstance(parameters, dict) or type(stream) is not bool:
        raise BadRequest("parameters is an object, and stream true or false")
    if unknown := set(parameters) - set(PARAMETERS):
        raise BadRequest(f"unknown parameters: {', '.join(sorted(unknown))}. Known: {', '.join(PARAMETERS)}")
    given = {name: value for name, value in parameters.items() if value is not None}  # null is not given, as in TGI
    for name, value in given.items():
        fits, said = PARAMETERS[name]
        if not fits(value):
            raise BadRequest(f"{name} is {value!r}, and not {said}")
    return Request(asked["inputs"], stream, **{**given, "stop": tuple(given.get("stop", ()))})


# --- the model


class Draw(ContinuousBatchingLogitsProcessor):
    """The end of sampling: the one token of each row that its request draws, by random numbers of that request alone.

    They are Gumbel noise, whose largest sum with the logits is a draw from their softmax; and made of the seed, the place in
    the text and the token by a hash, so that what shares the batch changes nothing.
    """

    supported_kwargs = {"seed": int}  # noqa: RUF012 - as the base class has it
    ignored_kwargs = ()

    def fill_defaults(self, int32_tensor):
        int32_tensor.fill_(GREEDY)

    def prepare_tensor_args(self, requests_with_new_token):
        states = [request.state for request in requests_with_new_token]
        keys = [self.key(state.logit_processor_kwargs.get("seed", GREEDY), state.position_offset) for state in states]
        return torch.tensor(keys, dtype=torch.int32)

    @staticmethod
    def key(seed, place):
        if seed == GREEDY:
            return GREEDY
        return int.from_bytes(hashlib.blake2b(f"{seed} {place}".encode(), digest_size=4).digest()) >> 1

    def __call__(self, scores, tensor_arg):
        keys = tensor_arg[: scores.size(0)].to(torch.int64).unsqueeze(-1)
        bits = (keys * 0x9E3779B1 + torch.arange(scores.size(-1), device=scores.device)) & 0xFFFFFFFF
        for shift, factor in (
            (16, 0x7FEB352D),
            (15, 0x846CA68B),
            (16, 1),
        ):  # "lowbias32" of Chris Wellons' hash prospector
            bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
        noise = -torch.log(-torch.log((bits.double() + 0.5) / 2**32))
        drawn = torch.where(keys == GREEDY, scores.double(), scores.double() + noise).argmax(-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter_(-1, drawn, 0.0)


class Generator:
    """A model whose steps many requests share."""

    def __init__(self, model_dir):
        gpu = torch.cuda.is_available()
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto").to("cuda" if gpu else "cpu").eval()
        self.longest = getattr(model.config, "max_position_embeddings", 1 << 30)
        self.ends = model.generation_config.eos_token_id
        if self.ends is None:
            self.ends = self.tokenizer.eos_token_id
        # Without a GPU there is no memory of its to size the cache by, and no graphs to capture.
        cache = {"num_blocks": PAGES or None} if gpu else {"num_blocks": PAGES or 64, "max_batch_tokens": 512}
        plain = {} if gpu else {"use_cuda_graph": False, "use_async_batching": False}
        self.manager = model.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=True,
                # Each request brings its own; that there is one here makes transformers look for them.
                temperature=0.5,
                top_k=50,
                top_p=0.5,
                eos_token_id=self.ends,
                pad_token_id=self.tokenizer.pad_token_id or 0,
            ),
            continuous_batching_config=ContinuousBatchingConfig(per_request_processors=True, **cache, **plain),
        )
        processors = self.manager.logit_processor
        processors.logits_processor.append(Draw())
        processors.tensors_required += 1
        processors.supported_keys |= Draw.supported_kwargs
        self.manager.start()
        self.waiting = {}
        threading.Thread(target=self.deliver, daemon=True).start()

    def deliver(self):
        """Hand each step's output to the request that waits for it."""
        for output in self.manager:
            if (outputs := self.waiting.get(output.request_id)) is not None:
                outputs.put(output)
        os._exit(1)  # the generation loop has ended, and said why: the model server replaces a process that does

    def answer(self, request):
        """What a request gets: (text so far, last token, details of the end or None), whenever there is more of it."""
        ids = self.tokenizer(request.inputs)["input_ids"][-(request.truncate or 0) :]
        if not ids:
            raise BadRequest("inputs is empty")
        count = request.max_new_tokens
        if len(ids) + count > self.longest:
            raise BadRequest(f"{len(ids)} tokens and {count} new ones are more than the model's {self.longest}")
        return self.follow(request, ids)

    def follow(self, request, ids):
        """Closing this cancels what is left."""
        name, finished = uuid.uuid4().hex, False
        seed = (random.getrandbits(64) if request.seed is None else request.seed) if request.sampled else GREEDY
        outputs = self.waiting[name] = queue.Queue()
        try:
            self.manager.add_request(
                ids,
                request_id=name,
                max_new_tokens=request.max_new_tokens,
                streaming=True,
                eos_token_id=self.ends,
                temperature=float(request.temperature or 1),
                top_k=request.top_k or 2**31 - 1,
                top_p=float(request.top_p or 1),
                seed=seed,
            )
            while not finished:
                output = outputs.get()
                if output.error:
                    raise RuntimeError(output.error)
                finished = output.is_finished()
                tokens = output.generated_tokens
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                ends = [at + len(stop) for stop in request.stop if (at := text.find(stop)) >= 0]
                if not (finished or ends) and text.endswith("\ufffd"):
                    continue  # the first bytes of a character: its others come next
                details = None
                if finished or ends:
                    ended = self.ends if isinstance(self.ends, list) else [self.ends]
                    reason = "stop_sequence" if ends else "eos_token" if tokens[-1] in ended else "length"
                    details = {"finish_reason": reason, "generated_tokens": len(tokens)}
                    details["seed"] = seed if seed != GREEDY else None
                yield text[: min(ends, default=len(text))], tokens[-1], details
                if ends:
                    return
        finally:
            if not finished:
                self.manager.cancel_request(name)
            del self.waiting[name]


# --- the hooks


def model_fn(model_dir):
    return Generator(model_dir)


def input_fn(body, content_type):
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise BadRequest(f"content type {content_type!r} is not read here; send application/json")
    return parse(body)


def predict_fn(request, model, context):
    parts = model.answer(request)
    before = request.inputs if request.return_full_text else ""
    if request.stream:
        return events(parts, before)
    with closing(parts):
        for part in parts:
            text, _, details = part
            if context.cancelled:
                break  # nobody waits for the rest
    return [{"generated_text": before + text, **({"details": details} if request.details else {})}]


def events(parts, before):
    said = ""
    try:
        for text, token, details in parts:
            yield {
                "token": {"id": token, "text": text[len(said) :], "logprob": None, "special": False},
                "generated_text": None if details is None else before + text,
                "details": details,
            }
            said = text
    finally:
        parts.close()


def output_fn(prediction, accept):
    if isinstance(prediction, list):
        return json.dumps(prediction), "application/json"
    if LINES in accept or "ndjson" in accept:
        return prediction, LINES
    return server_sent(prediction), EVENTS


def server_sent(events):
    try:
        for event in events:
            yield f"data:{json.dumps(event)}\n\n"
    finally:
        events.close()
