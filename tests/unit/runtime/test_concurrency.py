"""Models that take several requests at once, and the template that generates text with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.runtime.serving import DEADLINE_SECONDS, Server, Start

ROOT = Path(__file__).parents[3]
# All four must be there at once, or none goes on.
TOGETHER = """
    import os, threading
    max_concurrency = 4
    barrier = threading.Barrier(4)
    def model_fn(model_dir): return os.getpid()
    def transform_fn(model, body, content_type, accept):
        if body == "die": os._exit(9)
        if body == "raise": raise ValueError("alone")
        if body == "wait":
            barrier.wait(20)
            return str(model)
        def parts():
            yield body
            barrier.wait(20)
            yield body + "!"
        return parts()
"""


@pytest.fixture
def together(start: Start) -> Server:
    return start(TOGETHER).ready()


def test_requests_run_at_once_in_one_process_and_each_gets_its_own_answer(together: Server) -> None:
    with ThreadPoolExecutor(4) as threads:
        plain = [threads.submit(together.invoke, b"wait") for _ in range(2)]
        streamed = [threads.submit(together.invoke, body) for body in (b"a", b"b")]
        assert [reply.result(DEADLINE_SECONDS).text for reply in streamed] == ["aa!", "bb!"]
        assert len({reply.result().text for reply in plain}) == 1
    failed = together.invoke(b"raise")
    assert (failed.status_code, "ValueError: alone" in failed.text) == (500, True)
    assert together.event("request", status=500)["batch"] == 1


def test_a_crash_fails_what_ran_and_the_process_is_replaced(together: Server) -> None:
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(together.invoke, b"wait")
        while "windlass_queue_length 0" not in together.client.get("/metrics").text:
            pass
        died = threads.submit(together.invoke, b"die")
        assert {died.result(DEADLINE_SECONDS).status_code, waiting.result(DEADLINE_SECONDS).status_code} == {500}
    together.event("worker ready")
    with ThreadPoolExecutor(4) as threads:
        assert [reply.status_code for reply in threads.map(together.invoke, [b"wait"] * 4)] == [200] * 4


@pytest.mark.parametrize("value", ["0", "True", "'4'", "5000"])
def test_a_bad_concurrency_is_named(start: Start, value: str) -> None:
    code, stderr = start(f"max_concurrency = {value}\ndef model_fn(model_dir): return None").exit()
    assert code == 1
    assert "max_concurrency in inference.py is" in stderr


# --- the template


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with random weights."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llm") / "model"
    words = {word: index for index, word in enumerate(["<pad>", "<unk>", *(f"w{n}" for n in range(30))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=None,
        bos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    (folder / "code").mkdir()
    shutil.copy(ROOT / "templates" / "text-generation" / "inference.py", folder / "code")
    return folder


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[Server]:
    server = Server(folder.parent, {"WINDLASS_QUEUE_SIZE": "50"})
    yield server.ready()
    server.close()


def asked(prompt: str, count: int, **more: Any) -> bytes:
    return json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": count, **more}}).encode()


def test_the_text_is_what_the_model_alone_generates(generator: Server, folder: Path) -> None:
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = [f"w{n} w{n + 1}" for n in range(8)]

    def alone(prompt: str) -> str:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        return str(tokenizer.decode(made[0][ids.shape[1] :], skip_special_tokens=True))

    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda prompt: generator.invoke(asked(prompt, 12)), prompts))
    assert [reply.json() for reply in replies] == [[{"generated_text": alone(prompt)}] for prompt in prompts]


def test_tokens_come_as_they_are_made_and_a_short_answer_overtakes_a_long_one(generator: Server) -> None:
    parts = []
    headers = {"content-type": "application/json", "x-amzn-sagemaker-inference-id": "long"}
    with generator.client.stream(
        "POST", "/invocations", content=asked("w1 w2", 900, stream=True), headers=headers
    ) as reply:
        assert reply.headers["content-type"] == "application/jsonlines"
        lines = reply.iter_lines()
        parts.append(json.loads(next(lines)))
        assert (
            generator.invoke(asked("w5", 3), x_amzn_sagemaker_inference_id="short").status_code == 200
        )  # while the long one goes on
        parts += map(json.loads, lines)
    texts = [part["token"]["text"] for part in parts[:-1]]
    assert parts[-1] == {"generated_text": "".join(texts)}
    assert len(texts) > 800
    # Lines of the log come in the order in which answers end.
    generator.event("request", inference_id="short")
    generator.event("request", inference_id="long")


def test_a_caller_that_hangs_up_ends_its_generation(generator: Server) -> None:
    with generator.client.stream(
        "POST", "/invocations", content=asked("w1", 1000, stream=True), headers={"content-type": "application/json"}
    ) as reply:
        next(reply.iter_lines())
    assert generator.invoke(asked("w5", 3)).status_code == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "the body is no"),
        (b"[]", "the body is no"),
        (asked("", 3), "inputs is empty"),
        (asked("w1", 0), "max_new_tokens is 0"),
        (asked("w1", 1024), "more than the model's 1024"),
        (asked("w1", 3, temperature=1), "unknown parameters: temperature"),
        (b'{"inputs": ["w1"]}', "inputs is text"),
    ],
)
def test_requests_that_make_no_sense_are_a_400(generator: Server, body: bytes, says: str) -> None:
    reply = generator.invoke(body)
    assert reply.status_code == 400
    assert says in reply.text
