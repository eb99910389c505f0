"""Hooks: user modules as the official toolkits read them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from windlass.runtime.hooks import Context, Handler, HookError, Invocation, Reply, user_traceback

Load = Callable[..., Handler]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Writes an inference.py (and a manifest with a signature) and loads it."""
    path, modules = list(sys.path), set(sys.modules)

    def write(source: str, signature: dict[str, Any] | None = None, **kwargs: Any) -> Handler:
        code = tmp_path / "code"
        code.mkdir(exist_ok=True)
        (code / "inference.py").write_text(dedent(source))
        if signature:
            manifest = {"format": 1, "files": {}, "signature": signature}
            (tmp_path / "windlass.json").write_text(json.dumps(manifest))
        return Handler.load(tmp_path, code, "inference.py", **kwargs)

    yield write
    sys.path[:] = path
    for name in ("inference", "helper"):
        if name not in modules:
            sys.modules.pop(name, None)


def ask(handler: Handler, body: bytes, content_type: str = "application/json", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return handler(Invocation(body, {"content-type": content_type, **named}))


def signature(dtype: str, *shape: int | str) -> dict[str, Any]:
    tensor = {"name": "image", "dtype": dtype, "shape": list(shape)}
    return {"inputs": [tensor], "outputs": [{"name": "scores", "dtype": "float32", "shape": ["batch"]}]}


# --- the contract


def test_the_four_hooks_are_called_in_order(load: Load) -> None:
    handler = load("""
        def model_fn(model_dir): return 10
        def input_fn(body, content_type): return [body, content_type]
        def predict_fn(data, model): return [*data, model]
        def output_fn(prediction, accept): return "|".join(map(str, [*prediction, accept]))
    """)
    reply = ask(handler, b"[1]", accept="text/plain")
    assert (reply.status, reply.body, reply.content_type) == (200, b"[1]|application/json|10|text/plain", "text/plain")


def test_json_and_csv_reach_input_fn_as_str_and_the_rest_as_bytes(load: Load) -> None:
    handler = load("""
        def model_fn(model_dir): return None
        def transform_fn(model, body, content_type, accept): return type(body).__name__
    """)
    assert ask(handler, b"1", "application/json").body == b"str"
    assert ask(handler, b"1", "text/csv; charset=utf-8").body == b"str"
    assert ask(handler, b"1", "application/x-npy").body == b"bytes"
    assert handler(Invocation(b"1")).body == b"bytes"


def test_each_hook_may_take_the_context(load: Load) -> None:
    handler = load("""
        def model_fn(model_dir, context): return context.system_properties["model_dir"]
        def input_fn(body, content_type, context): return context.inference_id
        def predict_fn(data, model, context): return [data, context.custom_attributes, context.get_request_header(0, "X-More")]
        def output_fn(prediction, accept, context):
            context.set_response_header(0, "X-Model", "v2")
            context.set_response_status(202)
            return ",".join(prediction), "text/x-mine"
    """)
    reply = ask(
        handler,
        b"1",
        x_amzn_sagemaker_inference_id="id-1",
        x_amzn_sagemaker_custom_attributes="tenant=7",
        x_more="more",
    )
    assert (reply.status, reply.body, reply.content_type) == (202, b"id-1,tenant=7,more", "text/x-mine")
    assert reply.headers == [("x-model", "v2")]


def test_the_context_is_also_that_of_the_official_toolkits(load: Load) -> None:
    context = Context({}, {"x-amzn-requestid": "r-1", "content-type": "text/csv"})
    assert context.get_request_id() == "r-1"
    assert context.request_processor[0].get_request_properties()["content-type"] == "text/csv"
    context.set_response_content_type(0, "text/csv")
    assert context.get_response_content_type(0) == "text/csv"
    for key, value in [("x y", "1"), ("x", "a\r\nb: c")]:
        with pytest.raises(ValueError, match="header"):
            context.set_response_header(0, key, value)


def test_warm_up_runs_when_loading(load: Load, tmp_path: Path) -> None:
    load("""
        import pathlib
        def model_fn(model_dir): return "m"
        def model_warmup_fn(model_dir, model): pathlib.Path(model_dir, "warm").write_text(model)
        def predict_fn(data, model): return data
    """)
    assert (tmp_path / "warm").read_text() == "m"


def test_the_module_finds_its_neighbours(load: Load, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "helper.py").write_text("ANSWER = 42")
    handler = load("""
        from helper import ANSWER
        def model_fn(model_dir): return ANSWER
        def transform_fn(model, body, content_type, accept): return str(model)
    """)
    assert ask(handler, b"").body == b"42"


@pytest.mark.parametrize("accept", ["", "*/*"])
def test_any_accept_means_the_default_one(load: Load, accept: str) -> None:
    handler = load(
        """
        def model_fn(model_dir): return None
        def predict_fn(data, model): return data
        """,
        default_accept="text/csv",
    )
    reply = ask(handler, b"[1.5, 2]", accept=accept)
    assert (reply.body, reply.content_type) == (b"1.5\n2.0\n", "text/csv")


# --- broken contracts


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "inference.py defines no model_fn"),
        (
            "def model_fn(d): ...\ndef transform_fn(m, b, c, a): ...\ndef predict_fn(d, m): ...",
            "transform_fn together with predict_fn",
        ),
        ("def model_fn(): ...", r"model_fn \(line 1\) takes 0 parameters. Define it as model_fn\(model_dir\)"),
        ("def model_fn(d): ...\ndef predict_fn(d, m, c, x): ...", r"predict_fn \(line 2\) takes 4"),
        ("model_fn = 3", "model_fn is not a function but 3"),
        ("async def model_fn(d): ...", "model_fn is async"),
        ("def model_fn(d): return 7", "model_fn returned int, which is no torch module"),
    ],
)
def test_a_broken_contract_is_one_message(load: Load, source: str, says: str) -> None:
    with pytest.raises(HookError, match=says):
        load(source)


def test_a_missing_module_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(HookError, match="That folder does not exist"):
        Handler.load(tmp_path, tmp_path / "code", "inference.py")
    (tmp_path / "serve.py").touch()
    with pytest.raises(HookError, match=r"It holds serve\.py: set SAGEMAKER_PROGRAM"):
        Handler.load(tmp_path, tmp_path, "inference.py")


def test_a_corrupt_manifest_or_an_unknown_dtype_is_one_message(load: Load, tmp_path: Path) -> None:
    source = "def model_fn(model_dir): return str"
    with pytest.raises(HookError, match="'image' has dtype 'uint9'"):
        load(source, signature("uint9", 1))
    (tmp_path / "windlass.json").write_text("{")
    with pytest.raises(HookError, match=r"windlass\.json: not JSON"):
        load(source)


# --- defaults


def test_the_default_input_is_held_to_the_signature(load: Load) -> None:
    handler = load(
        """
        def model_fn(model_dir): return None
        def predict_fn(data, model): return [str(data.dtype), list(data.shape)]
        """,
        signature("uint8", "batch", 2, 2),
    )
    # numpy or torch, by what this process has imported already: both spell uint8 alike at the end
    kind, shape = json.loads(ask(handler, b'{"image": [[[1, 2], [3, 4]]]}').body)
    assert (kind.rpartition(".")[2], shape) == ("uint8", [1, 2, 2])
    refused = ask(handler, b"[[1, 2], [3, 4]]")
    assert refused.status == 400
    assert refused.body.startswith(b"input 'image': shape (2, 2) came, (batch, 2, 2) is expected.")


def test_torch_modules_need_no_predict_fn(load: Load) -> None:
    handler = load("""
        import torch
        class Double(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.tensor(2.0))
            def forward(self, x):
                assert not self.training and not torch.is_grad_enabled() and x.dtype == torch.float32
                return x * self.weight
        def model_fn(model_dir): return Double()
    """)
    assert json.loads(ask(handler, b"[[1, 2]]").body) == [[2.0, 4.0]]
    reply = ask(handler, b"[[1, 2]]", accept="application/x-npy")
    assert np.load(io.BytesIO(reply.body)).tolist() == [[2.0, 4.0]]


def test_models_with_predict_and_pipelines_need_no_predict_fn(load: Load) -> None:
    handler = load("""
        class Model:
            def predict(self, data): return [len(data)]
        def model_fn(model_dir): return Model()
    """)
    assert ask(handler, b"[[1, 2]]").body == b"[1]"
    handler = load("""
        def model_fn(model_dir): return lambda inputs, times=1: inputs * times
    """)
    assert ask(handler, b'{"inputs": "ab", "parameters": {"times": 2}}').body == b'"abab"'


@pytest.mark.parametrize(
    ("content_type", "accept", "status", "says"),
    [
        ("audio/ogg", "*/*", 415, b"'audio/ogg' is not supported"),
        ("application/json", "audio/ogg", 406, b"cannot answer as 'audio/ogg'"),
        ("application/json", "image/png", 406, b"the prediction is no picture, which image/png needs"),
    ],
)
def test_formats_that_are_not_offered(load: Load, content_type: str, accept: str, status: int, says: bytes) -> None:
    handler = load("def model_fn(d): return None\ndef predict_fn(data, model): return [1]")
    reply = ask(handler, b"[1]", content_type, accept=accept)
    assert reply.status == status
    assert says in reply.body


def test_nan_is_refused_as_the_models_fault(load: Load) -> None:
    handler = load("def model_fn(d): return None\ndef predict_fn(data, model): return {'p': [float('nan')]}")
    reply = ask(handler, b"[1]")
    assert reply.status == 500
    assert b"output 'p' is nan at [0]" in reply.body


# --- errors


def test_an_exception_is_a_500_with_the_users_frames_alone(load: Load) -> None:
    handler = load("""
        def model_fn(model_dir): return {}
        def predict_fn(data, model):
            try:
                return model["weights"]
            except KeyError as error:
                raise ValueError("no weights") from error
    """)
    reply = ask(handler, b"[1]")
    trace = reply.body.decode()
    assert reply.status == 500
    assert trace.startswith("ValueError: no weights\nTraceback")
    assert trace.count('inference.py", line') == 2
    assert "KeyError" in trace
    assert "windlass" not in trace
    assert reply.error
    assert reply.error in trace


@pytest.mark.parametrize(
    ("raises", "status"), [("SystemExit(3)", 500), ("KeyboardInterrupt()", 500), ("StopIteration()", 500)]
)
def test_no_exception_escapes(load: Load, raises: str, status: int) -> None:
    handler = load(f"def model_fn(d): return 1\ndef predict_fn(data, model): raise {raises}")
    assert ask(handler, b"[1]").status == status


def test_an_exception_may_carry_its_status(load: Load) -> None:
    handler = load("""
        class Unsupported(Exception):
            status_code = 415
        def model_fn(model_dir): return None
        def transform_fn(model, body, content_type, accept): raise Unsupported("only PNG")
    """)
    reply = ask(handler, b"")
    assert reply.status == 415
    assert b"only PNG" in reply.body


def test_a_module_that_does_not_import_shows_the_users_line(load: Load) -> None:
    with pytest.raises(SyntaxError) as caught:
        load("def model_fn(d)\n")
    trace = user_traceback(caught.value)
    assert "inference.py" in trace
    assert "windlass" not in trace
    assert "importlib" not in trace


# --- batches


def ask_all(handler: Handler, *bodies: bytes) -> list[Reply]:
    return handler.answer([Invocation(body, {"content-type": "application/json"}) for body in bodies])


BATCHING = """
    calls = []
    def model_fn(model_dir): return 10
    def input_fn(body, content_type):
        import json
        return json.loads(body)
    def predict_batch_fn(datas, model):
        calls.append(len(datas))
        return [model / data for data in datas]
    def output_fn(prediction, accept): return f"{prediction} of {calls}"
"""


def test_predict_batch_fn_gets_all_at_once(load: Load) -> None:
    handler = load(BATCHING)
    assert handler.batches
    replies = ask_all(handler, b"2", b"5")
    assert [reply.body for reply in replies] == [b"5.0 of [2]", b"2.0 of [2]"]
    assert ask(handler, b"1").body == b"10.0 of [2, 1]"


def test_a_poisoned_request_fails_alone(load: Load) -> None:
    handler = load(BATCHING)
    replies = ask_all(handler, b"1", b"2", b"0", b"{", b"5")
    assert [reply.status for reply in replies] == [200, 200, 500, 500, 200]
    assert replies[2].error
    assert "ZeroDivisionError" in replies[2].error
    assert "JSONDecodeError" in str(replies[3].error)
    assert [reply.body.split()[0] for reply in replies if reply.status == 200] == [b"10.0", b"5.0", b"2.0"]


@pytest.mark.parametrize(
    ("returns", "says"),
    [("datas[1:]", "returned 1 predictions for 2 requests"), ("7", "returned int, which has no length")],
)
def test_a_batch_of_the_wrong_count_is_named(load: Load, returns: str, says: str) -> None:
    handler = load(f"""
        def model_fn(model_dir): return None
        def predict_batch_fn(datas, model): return {returns}
    """)
    for reply in ask_all(handler, b"1", b"2"):
        assert (reply.status, says in reply.body.decode()) == (500, True)


BY_SIGNATURE = """
    import numpy as np
    calls = []
    def model_fn(model_dir): return None
    def predict_fn(data, model):
        data = np.asarray(data)  # a tensor, where torch is imported
        calls.append(data.shape)
        if (data > 200).any():
            raise ValueError("too bright")
        return data.sum(axis=1).astype("float32")
    def output_fn(prediction, accept):
        return f"{prediction.tolist()} {calls}"
"""


def test_a_signature_with_a_batch_dimension_joins_requests(load: Load) -> None:
    handler = load(BY_SIGNATURE, signature("uint8", "batch", 2))
    first, second = ask_all(handler, b"[[1, 2]]", b"[[3, 4], [5, 6]]")
    assert first.body == b"[3.0] [(3, 2)]"
    assert second.body == b"[7.0, 11.0] [(3, 2)]"


def test_a_row_that_fails_takes_no_other_request_with_it(load: Load) -> None:
    handler = load(BY_SIGNATURE, signature("uint8", "batch", 2))
    replies = ask_all(handler, b"[[1, 2]]", b"[[250, 4]]", b"[[1, 1, 1]]", b"[[5, 6]]")
    assert [reply.status for reply in replies] == [200, 500, 400, 200]


def test_a_predict_fn_with_a_context_is_asked_one_by_one(load: Load) -> None:
    handler = load(
        """
        def model_fn(model_dir): return None
        def predict_fn(data, model, context): return data
        """,
        signature("uint8", "batch", 2),
    )
    assert not handler.batches


def test_a_prediction_that_cannot_be_cut_ends_the_joining(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    handler = load(
        """
        def model_fn(model_dir): return None
        def predict_fn(data, model): return {"mean": float(sum(map(sum, data.tolist())) / 2)}
        """,
        signature("uint8", "batch", 2),
    )
    replies = ask_all(handler, b"[[1, 3]]", b"[[5, 5]]")
    assert [json.loads(reply.body) for reply in replies] == [{"mean": 2.0}, {"mean": 5.0}]
    assert not handler.batches
    assert "predicted one by one" in capsys.readouterr().err


def test_the_template_is_batched_by_its_signature(tmp_path: Path) -> None:
    """The digit classifier's hooks, unchanged: JSON of one image and of several in one batch."""
    pytest.importorskip("torch")
    template = Path(__file__).parents[3] / "templates" / "image-classifier"
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(template))
    try:
        from model import DigitClassifier
        from safetensors.torch import save_file

        save_file(DigitClassifier().state_dict(), tmp_path / "model.safetensors")
        manifest = {"format": 1, "files": {}, "signature": json.loads((template / "signature.json").read_text())}
        (tmp_path / "windlass.json").write_text(json.dumps(manifest))
        handler = Handler.load(tmp_path, template, "inference.py")
        image = [[row * column % 17 for column in range(8)] for row in range(8)]
        bodies = [json.dumps({"image": images}).encode() for images in (image, [image, image])]
        alone = [handler(Invocation(body, {"content-type": "application/json"})) for body in bodies]
        together = ask_all(handler, *bodies)
        assert handler.batches
        for apart, joined in zip(alone, together, strict=True):
            assert json.loads(apart.body)["label"] == json.loads(joined.body)["label"]
            assert json.loads(apart.body)["probability"] == pytest.approx(json.loads(joined.body)["probability"])
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name in ("model", "inference"):
                sys.modules.pop(name)
