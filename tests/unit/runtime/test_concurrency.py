"""Models that take several requests at once, and the template that generates text with one."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.runtime.serving import DEADLINE_SECONDS, Server, Start
from tests.unit.runtime.word_tokenizer import save_tokenizer

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


# Says when a generator has been closed; the second part never comes by itself.
CLOSING = """
    import logging
    max_concurrency = {concurrency}
    def model_fn(model_dir): return model_dir + "/gate"
    def transform_fn(model, body, content_type, accept):
        if body == "[1]": return body
        def parts():
            try:
                while True:
                    yield body
            finally:
                logging.warning("closed")
                if body == "bad": raise ConnectionResetError("on the way out")
        return parts()
"""


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("body", ["good", "bad"])
def test_a_caller_that_leaves_closes_its_generator_and_the_worker_goes_on(
    start: Start, concurrency: int, body: str
) -> None:
    running = start(CLOSING.format(concurrency=concurrency)).ready()
    headers = {"content-type": "application/json", "x-amzn-requestid": "leaver"}
    with running.client.stream("POST", "/invocations", content=body, headers=headers) as reply:
        assert next(reply.iter_text())
    running.event("request", request_id="leaver")
    assert [running.invoke().status_code for _ in range(5)] == [200] * 5
    running.process.terminate()
    code, stderr = running.exit()
    closed = [line for line in map(json.loads, stderr.splitlines()) if line.get("message") == "closed"]
    assert code == 0
    assert [line["request_ids"] for line in closed] == [["leaver"]]
    assert not [line for line in running.lines() if line.get("event") == "worker died"]


# As much as it is let; says how much that was.
FLOOD = """
    max_concurrency = {concurrency}
    import os
    MADE = [0]
    def model_fn(model_dir): return None
    def transform_fn(model, body, content_type, accept):
        if body == "[1]": return body
        if body == "made": return str(MADE[0])
        def parts():
            while True:
                MADE[0] += 1
                yield bytes(1 << 20)
        return parts()
"""


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_reader_that_does_not_read_holds_its_generator_back_and_nobody_else(start: Start, concurrency: int) -> None:
    running = start(FLOOD.format(concurrency=concurrency), WINDLASS_STALLED_SECONDS="2").ready()
    head = b"POST /invocations HTTP/1.1\r\nhost: a\r\nx-amzn-requestid: flood\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", running.port), DEADLINE_SECONDS) as raw:
        raw.sendall(head + b"content-length: 5\r\n\r\nflood")
        assert raw.recv(12) == b"HTTP/1.1 200"
        if concurrency > 1:
            assert running.invoke().text == "[1]"
        running.event("request", request_id="flood")
        # Cut off after two seconds, in which an unhindered generator makes thousands.
        peak = resident(running.process.pid, "VmHWM")
    if concurrency > 1:
        assert int(running.invoke(b"made").text) < 100
    assert peak < 150_000


def resident(pid: int, field: str) -> int:
    """KiB of memory of a process (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


# Works in steps until somebody says that nobody waits.
STEPS = """
    import logging, time
    max_concurrency = {concurrency}
    def model_fn(model_dir): return model_dir
    def transform_fn(model, body, content_type, accept, context):
        if body == "[1]": return body
        if body == "gate": open(model + "/gate").close()
        logging.warning("begun")
        for step in range(1_000_000):
            time.sleep(0.001)  # a step of the model
            if context.cancelled:
                logging.warning("cancelled")
                break
        return body
"""


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("reason", ["leaves", "deadline"])
def test_work_that_nobody_waits_for_any_more_can_end(start: Start, concurrency: int, reason: str) -> None:
    running = start(STEPS.format(concurrency=concurrency)).ready()
    if reason == "leaves":
        with socket.create_connection(("127.0.0.1", running.port)) as leaver:
            leaver.sendall(
                b"POST /invocations HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\ngate"
            )
            running.open_gate().close()
        running.event("request", status=499)
    else:
        assert running.invoke(b"x", x_windlass_timeout_ms="1000").status_code == 504
    assert [running.invoke().status_code for _ in range(3)] == [200] * 3
    running.process.terminate()
    code, stderr = running.exit()
    said = [line["message"] for line in map(json.loads, stderr.splitlines()) if line["event"] == "log"]
    assert (code, said) == (0, ["begun", "cancelled"])
    assert not [line for line in running.lines() if line.get("event") in ("worker died", "worker hung")]


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

    folder = tmp_path_factory.mktemp("llm") / "model"
    words = ["<pad>", "<unk>", *(f"w{n}" for n in range(30))]
    save_tokenizer(folder, words)
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


def asked(prompt: str, count: int, *, stream: bool = False, **more: Any) -> bytes:
    parameters = {"max_new_tokens": count, **more}
    return json.dumps({"inputs": prompt, "parameters": parameters, **({"stream": True} if stream else {})}).encode()


def text_of(reply: Any) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()[0]["generated_text"])


def alone(folder: Path, prompt: str, count: int) -> str:
    """What the model by itself generates, choosing the likeliest token."""
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return str(tokenizer.decode(made[0][ids.shape[1] :], skip_special_tokens=True))


def test_the_text_is_what_the_model_alone_generates(generator: Server, folder: Path) -> None:
    prompts = [f"w{n} w{n + 1}" for n in range(8)]

    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda prompt: generator.invoke(asked(prompt, 12)), prompts))

    assert [reply.json() for reply in replies] == [
        [{"generated_text": alone(folder, prompt, 12)}] for prompt in prompts
    ]


def test_tokens_come_as_they_are_made_and_a_short_answer_overtakes_a_long_one(generator: Server) -> None:
    parts = []
    headers = {
        "content-type": "application/json",
        "accept": "application/jsonlines",
        "x-amzn-sagemaker-inference-id": "long",
    }
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
    texts = [part["token"]["text"] for part in parts]
    assert parts[-1]["generated_text"] == "".join(texts)
    assert parts[-1]["details"] == {"finish_reason": "length", "generated_tokens": 900, "seed": None}
    assert {part["generated_text"] for part in parts[:-1]} == {None}
    assert len(texts) > 800
    # Lines of the log come in the order in which answers end.
    generator.event("request", inference_id="short")
    generator.event("request", inference_id="long")


def test_a_stream_is_of_events_as_text_generation_inference_sends_them(generator: Server) -> None:
    reply = generator.invoke(asked("w1", 5, stream=True))

    assert reply.headers["content-type"] == "text/event-stream"
    events = [json.loads(event.removeprefix("data:")) for event in reply.text.strip().split("\n\n")]
    assert {tuple(event) for event in events} == {("token", "generated_text", "details")}
    assert events[-1]["generated_text"] == text_of(generator.invoke(asked("w1", 5)))


def test_a_caller_that_hangs_up_frees_its_place(folder: Path) -> None:
    # One place, so that the next request can only run when the first has left it.
    server = Server(folder.parent, {"MAX_CONCURRENCY": "1"}).ready()
    try:
        with server.client.stream(
            "POST", "/invocations", content=asked("w1", 1000, stream=True), headers={"content-type": "application/json"}
        ) as reply:
            next(reply.iter_lines())
        assert server.invoke(asked("w5", 3), x_windlass_timeout_ms="20000").status_code == 200
    finally:
        server.close()


def test_a_caller_of_the_whole_text_that_hangs_up_frees_its_place(folder: Path) -> None:
    server = Server(folder.parent, {"MAX_CONCURRENCY": "1"}).ready()
    try:
        begin = time.monotonic()
        assert server.invoke(asked("w1", 300)).status_code == 200
        part = time.monotonic() - begin
        headers = {"content-type": "application/json"}
        with pytest.raises(httpx.ReadTimeout):
            server.client.post("/invocations", content=asked("w1", 1000), headers=headers, timeout=0.1)
        begin = time.monotonic()
        assert server.invoke(asked("w5", 3)).status_code == 200
        assert time.monotonic() - begin < part  # the abandoned one would have taken more than three times that
    finally:
        server.close()


def test_a_seed_draws_the_same_text_whatever_else_is_in_the_batch(generator: Server) -> None:
    drawn = asked("w1 w2", 30, do_sample=True, temperature=1.5, seed=7)
    first = text_of(generator.invoke(drawn))

    with ThreadPoolExecutor(12) as threads:
        others = [threads.submit(generator.invoke, asked(f"w{n}", 60, do_sample=True, seed=n)) for n in range(10)]
        again = [threads.submit(generator.invoke, drawn) for _ in range(2)]
        texts = {text_of(other.result(DEADLINE_SECONDS)) for other in others}
        assert {text_of(reply.result(DEADLINE_SECONDS)) for reply in again} == {first}

    assert len(texts) == 10
    assert text_of(generator.invoke(asked("w1 w2", 30, do_sample=True, temperature=1.5, seed=8))) != first
    unseeded = generator.invoke(asked("w1 w2", 30, do_sample=True, details=True)).json()[0]
    seed = unseeded["details"]["seed"]
    assert text_of(generator.invoke(asked("w1 w2", 30, do_sample=True, seed=seed))) == unseeded["generated_text"]


def test_sampling_draws_from_the_models_own_distribution(generator: Server, folder: Path) -> None:
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits = model(torch.tensor([tokenizer("w3 w4")["input_ids"]])).logits[0, -1].double() / 0.5
    kept = logits.topk(4)
    wanted = dict(zip(tokenizer.convert_ids_to_tokens(kept.indices), kept.values.softmax(-1).tolist(), strict=True))
    count = 400

    def draw(seed: int) -> str:
        return text_of(generator.invoke(asked("w3 w4", 1, temperature=0.5, top_k=4, seed=seed)))

    with ThreadPoolExecutor(16) as threads:
        drawn = list(threads.map(draw, range(count)))

    assert set(drawn) <= set(wanted)
    for token, share in wanted.items():  # within four standard deviations
        assert abs(drawn.count(token) / count - share) < 4 * (share * (1 - share) / count) ** 0.5


def test_little_to_choose_from_is_the_likeliest_token(generator: Server, folder: Path) -> None:
    likeliest = alone(folder, "w3 w4", 8)

    for more in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}, {"do_sample": False, "temperature": 2.0}):
        assert text_of(generator.invoke(asked("w3 w4", 8, **more))) == likeliest


def test_a_stop_ends_the_text_and_is_part_of_it(generator: Server) -> None:
    text = text_of(generator.invoke(asked("w3 w4", 20)))
    stop = text.split()[3]
    end = text.index(stop) + len(stop)

    plain = generator.invoke(asked("w3 w4", 20, stop=["nowhere", stop], details=True)).json()[0]
    streamed = generator.invoke(asked("w3 w4", 20, stop=[stop], stream=True), accept="application/jsonlines")

    assert plain["generated_text"] == text[:end]
    assert plain["details"]["finish_reason"] == "stop_sequence"
    assert plain["details"]["generated_tokens"] < 20
    assert json.loads(streamed.text.splitlines()[-1])["generated_text"] == text[:end]


def test_inputs_may_be_cut_and_may_come_before_the_answer(generator: Server) -> None:
    cut = text_of(generator.invoke(asked("w1 w2 w3 w4", 4, truncate=2)))

    assert cut == text_of(generator.invoke(asked("w3 w4", 4)))
    assert text_of(generator.invoke(asked("w3 w4", 4, return_full_text=True))) == "w3 w4" + cut


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "the body is no JSON"),
        (b"[" * 100_000, "the body is no JSON"),
        (b"[]", "the body is no"),
        (asked("", 3), "inputs is empty"),
        (asked("w1", 0), "max_new_tokens is 0"),
        (asked("w1", 1024), "more than the model's 1024"),
        (asked("w1", 3, watermark=True), "unknown parameters: watermark"),
        (asked("w1", 3, temperature=0), "temperature is 0, and not a number above 0"),
        (asked("w1", 3, temperature=float("nan")), "temperature is nan"),
        (asked("w1", 3, temperature=True), "temperature is True"),
        (asked("w1", 3, top_p=1.5), "top_p is 1.5, and not a number above 0 and at most 1"),
        (asked("w1", 3, top_k=-1), "top_k is -1"),
        (asked("w1", 3, seed=-1), "seed is -1"),
        (asked("w1", 3, stop="w2"), "stop is 'w2', and not a list of at most 16 texts"),
        (asked("w1", 3, stop=[""]), "a list of at most 16 texts"),
        (b'{"inputs": ["w1"]}', "inputs is text"),
        (b'{"inputs": "w1", "steam": true}', "unknown: steam"),
        (b'{"inputs": "w1", "stream": 1}', "stream true or false"),
    ],
)
def test_requests_that_make_no_sense_are_a_400(generator: Server, body: bytes, says: str) -> None:
    reply = generator.invoke(body)
    assert reply.status_code == 400
    assert says in reply.text
