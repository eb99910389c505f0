"""Encoders without padding: equal to transformers' own, whatever lies beside a text; served by what comes into the bundle."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.unit.runtime.serving import Server
from windlass import artifact
from windlass.artifact.serving import windlass_packing
from windlass.artifact.serving.windlass_packing import MOST_TEXTS, MOST_TOKENS, Encoder, pack, together
from windlass.errors import InvalidInput, MissingExtra
from windlass.optimize.packed import pack_encoder
from windlass.runtime.hooks import Handler, Invocation

LONGEST = 48
ODD = ["", "a", "word " * 100, "Füße in 日本 \u200b🙂", *(f"{'cab ' * (n % 9)}fade {n}" for n in range(29))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with random weights, whose tokens are letters."""
    folder = tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyzü日0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, numbers[name]) for name in ("[CLS]", "[SEP]")]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=LONGEST
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, num_labels=3, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    padded = tokenizer(ODD, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    with torch.inference_mode():
        return model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits.numpy()


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("packed") / "model"
    assert pack_encoder(dest, folder) == 1.0
    return dest


@pytest.fixture(scope="module")
def quantized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("int8") / "model"
    assert pack_encoder(dest, folder, calibration=ODD) > 0.95
    return dest


# ------------------------------------------------------------------------------------------------------------- the answers


def test_logits_are_those_of_transformers(packed: Path, expected: Any) -> None:
    encoder = Encoder(packed)
    assert np.ptp(expected, axis=0).min() > 0.1  # else equal answers would say little
    assert np.allclose(encoder(ODD), expected, atol=1e-4)
    for size in (1, 2, 3, 5, 31):
        assert np.allclose(encoder(ODD[:size]), expected[:size], atol=1e-4)


def test_a_text_s_answer_does_not_depend_on_its_neighbours(packed: Path, expected: Any) -> None:
    encoder = Encoder(packed)
    alone = np.concatenate([encoder([text]) for text in ODD])
    backwards = encoder(ODD[::-1])[::-1]
    assert np.allclose(alone, expected, atol=1e-4)
    assert np.allclose(backwards, expected, atol=1e-4)


def test_first_tokens_without_a_head_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    source = copy(folder, tmp_path / "source", architectures=["BertModel"])
    (source / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]')
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval().bert
    padded = tokenizer(ODD, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).last_hidden_state

    pack_encoder(tmp_path / "model", source)

    assert np.allclose(Encoder(tmp_path / "model")(ODD), hidden[:, 0].numpy(), atol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_one_layer_is_first_and_last(folder: Path, tmp_path: Path, engine: Any) -> None:
    model = transformers.BertForSequenceClassification.from_pretrained(folder, num_hidden_layers=1).eval()
    model.save_pretrained(tmp_path / "source")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "source")
    pack_encoder(tmp_path / "model", tmp_path / "source", engine=engine)
    padded = transformers.AutoTokenizer.from_pretrained(folder)(
        ODD, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
    )
    with torch.inference_mode():
        assert (
            np.corrcoef(Encoder(tmp_path / "model")(ODD).ravel(), model(**padded).logits.numpy().ravel())[0, 1] > 0.999
        )


def test_more_texts_than_run_together(packed: Path, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windlass_packing, "MOST_TOKENS", 60)
    assert np.allclose(Encoder(packed)(ODD * 2), np.concatenate([expected, expected]), atol=1e-4)


def test_int8_is_near_float32_and_runs_in_openvino(quantized: Path, expected: Any) -> None:
    found = Encoder(quantized)(ODD)
    assert not (quantized / "model.onnx").exists()
    assert (quantized / "code" / "requirements.txt").read_text().startswith("openvino==")
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    assert not np.allclose(found, expected, atol=1e-4)  # it is int8


def test_floats_run_in_openvino_too(folder: Path, tmp_path: Path, expected: Any) -> None:
    assert pack_encoder(tmp_path / "model", folder, engine="openvino") == 1.0

    found = Encoder(tmp_path / "model")(ODD)
    assert (tmp_path / "model" / "code" / "requirements.txt").read_text().startswith("openvino==")
    # Weights in 16 bits; on a processor with matrix units for bfloat16 the sums have 8 bits, too.
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
    assert np.allclose(found, expected, atol=0.06 * np.ptp(expected))


@pytest.mark.parametrize("options", [{"engine": "tensorrt"}, {"engine": "onnxruntime", "calibration": ODD}], ids=str)
def test_engines_are_named_and_int8_is_for_one_of_them(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="Engines: onnxruntime; openvino, which int8 is for"):
        pack_encoder(tmp_path / "model", folder, **options)
    assert list(tmp_path.iterdir()) == []


def test_int8_that_is_too_far_from_float32_is_not_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"correlate by [01]\.\d+ with float32, less than 1\. Give more texts"):
        pack_encoder(tmp_path / "model", folder, calibration=ODD[:4], min_correlation=1)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- the layout


ids = st.lists(st.lists(st.integers(1, 9), max_size=200), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(ids, st.sampled_from(["mean", "first"]))
def test_every_token_lies_once_and_no_two_texts_share_a_cell(texts: list[list[int]], pooling: str) -> None:
    found = pack(texts, pooling)
    if pooling == "first":
        texts = [text or [0] for text in texts]  # what has no tokens is one of padding
    total = sum(map(len, texts))
    rows, wide = found["cells"].shape
    places, whose = found["places"][:total], found["texts"].ravel()

    assert found["tokens"][:total].tolist() == [token for text in texts for token in text]
    assert found["positions"][:total].tolist() == [at for text in texts for at in range(len(text))]
    assert len(set(places.tolist())) == total
    assert whose[places].tolist() == [number for number, text in enumerate(texts, 1) for _ in text]
    assert found["cells"].ravel()[places].tolist() == list(range(total))
    assert np.count_nonzero(whose) == total  # the other cells are nobody's
    at = 0
    for text in texts:  # attention sees a text in one row, in its order
        mine = places[at : at + len(text)]
        assert len(set((mine // wide).tolist())) <= 1
        assert (np.diff(mine) == 1).all()
        at += len(text)
    assert 0 <= found["places"].min() <= found["places"].max() < rows * wide
    assert found["cells"].max() < len(found["tokens"])


@settings(max_examples=100, deadline=None)
@given(ids)
def test_shares_pool_each_text_alone(texts: list[list[int]]) -> None:
    found = pack(texts, "mean")
    vectors = found["shares"] @ found["tokens"].astype(float)
    for text, vector in zip(texts, vectors, strict=False):
        assert vector == pytest.approx(np.mean(text) if text else 0, abs=1e-5)
    assert not found["shares"][len(texts) :].any()


@settings(max_examples=100, deadline=None)
@given(ids)
def test_each_text_has_its_first_token_and_owns_its_own(texts: list[list[int]]) -> None:
    found = pack(texts, "first")
    for number, (text, first) in enumerate(zip(texts, found["firsts"], strict=False), 1):
        own = found["tokens"][found["owners"] == number].tolist()
        assert own == (text or [0])  # and not its neighbour's
        assert (found["tokens"][first], found["owners"][first]) == (own[0], number)
    assert set(found["owners"]) <= {*range(len(texts) + 1)}


@given(
    st.lists(st.integers(0, 5000).map(range), min_size=1, max_size=20)
    | st.integers(1, 1000).map(lambda many: [range(2)] * many)
)
def test_what_runs_together_is_all_of_it_in_order_and_not_too_much(texts: Sequence[Sequence[int]]) -> None:
    parts = list(together(texts))
    assert [text for part in parts for text in part] == texts
    assert all(len(part) == 1 or sum(map(len, part)) <= MOST_TOKENS for part in parts)
    assert all(len(part) <= MOST_TEXTS for part in parts)
    assert all(parts)


# ------------------------------------------------------------------------------------------------------------------ served


@pytest.fixture(scope="module")
def base(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("ml")
    artifact.open(artifact.build(packed, base / "model.tar.gz").path, base / "model")
    return base


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    running = Server(base, {"SAGEMAKER_MODEL_SERVER_WORKERS": "2"})
    yield running.ready()
    running.close()


def test_texts_in_and_rows_out(server: Server, expected: Any) -> None:
    for body, rows in [
        (json.dumps(ODD[3]), [3]),
        (json.dumps(ODD), range(33)),
        (json.dumps({"inputs": ODD[1]}), [1]),
        (json.dumps({"inputs": ODD[:4]}), range(4)),
    ]:
        reply = server.invoke(body.encode())
        assert reply.status_code == 200, reply.text
        assert np.allclose(reply.json()["logits"], expected[list(rows)], atol=1e-4)
    reply = server.invoke(ODD[3].encode(), content_type="text/plain", accept="application/x-npy")
    array = np.load(io.BytesIO(reply.content))
    assert array.dtype == np.float32
    assert np.allclose(array, expected[3:4], atol=1e-4)


@pytest.mark.parametrize(
    ("body", "kind", "status", "says"),
    [
        (b"{", "application/json", 400, "is not application/json"),
        (b"3", "application/json", 400, "inputs is neither a text nor a list of texts"),
        (b"[]", "application/json", 400, "inputs is neither a text nor a list of texts"),
        (b'["a", 1]', "application/json", 400, "inputs is neither a text nor a list of texts"),
        (b'{"text": "a"}', "application/json", 400, "an object with inputs alone"),
        (b'"\\ud800"', "application/json", 400, "half of a surrogate pair"),
        (b"\xff", "text/plain", 400, "utf-8"),
        (b"x", "image/png", 415, "Valid: application/json, text/plain"),
    ],
)
def test_bad_requests(server: Server, body: bytes, kind: str, status: int, says: str) -> None:
    reply = server.invoke(body, content_type=kind)
    assert (reply.status_code, says in reply.text) == (status, True), reply.text


def test_requests_are_answered_together_as_each_alone(
    base: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    handler = Handler.load(base / "model", base / "model" / "code", "inference.py")
    for name in ("inference", "windlass_packing", "windlass_tensors"):
        del sys.modules[name]  # the next bundle that a test loads brings its own
    headers = {"content-type": "application/json"}
    bodies = [ODD[0], ODD[1:5], 7, ODD[2], ODD]
    replies = handler.answer([Invocation(json.dumps(body).encode(), headers) for body in bodies])

    assert handler.batches
    assert [reply.status for reply in replies] == [200, 200, 400, 200, 200]
    for reply, rows in zip(replies, ([0], range(1, 5), None, [2], range(33)), strict=True):
        if rows is not None:
            assert np.allclose(json.loads(reply.body)["logits"], expected[list(rows)], atol=1e-4)


def test_its_bundle_says_what_it_is(packed: Path) -> None:
    manifest = artifact.build(packed).manifest
    assert (manifest.loader, manifest.pickles) == ("packed", ())
    assert manifest.signature is not None
    assert [(t.name, t.dtype, t.shape) for t in manifest.signature.outputs] == [("logits", "float32", ("batch", 3))]


# ----------------------------------------------------------------------------------------------------------------- refused


def copy(folder: Path, dest: Path, without: str = "", **config: Any) -> Path:
    dest.mkdir()
    for path in folder.iterdir():
        if path.name != without:
            (dest / path.name).write_bytes(path.read_bytes())
    told = {**json.loads((folder / "config.json").read_bytes()), **config}
    (dest / "config.json").write_text(json.dumps(told))
    return dest


@pytest.mark.parametrize(
    ("without", "config", "says"),
    [
        (
            "",
            {"model_type": "distilbert"},
            "model_type 'distilbert' with architecture 'BertForSequenceClassification' is not",
        ),
        ("", {"architectures": ["BertForMaskedLM"]}, "Supported: model_type bert: BertForSequenceClassification, or"),
        ("", {"hidden_act": "silu"}, "hidden_act 'silu'"),
        ("", {"position_embedding_type": "relative_key"}, "Supported: hidden_act gelu.*; absolute positions"),
        ("", {"num_hidden_layers": 3}, r"its weights lack 'bert\.encoder\.layer\.2"),
        ("tokenizer.json", {}, r"no tokenizer\.json in .* Save it there"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    folder: Path, tmp_path: Path, without: str, config: dict[str, Any], says: str
) -> None:
    source = copy(folder, tmp_path / "source", without, **config)
    with pytest.raises(InvalidInput, match=says):
        pack_encoder(tmp_path / "dest", source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_pooling_that_is_not_supported(folder: Path, tmp_path: Path) -> None:
    source = copy(folder, tmp_path / "source", architectures=["BertModel"])
    (source / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]')
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(InvalidInput, match="modules Pooling with pooling_mode_max_tokens are not packed"):
        pack_encoder(tmp_path / "dest", source)


def test_int8_says_which_extra_it_needs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingExtra, match=r"needs the package 'nncf'. Install it: pip install 'windlass\[openvino\]'"):
        pack_encoder(tmp_path / "model", folder, calibration=ODD)
    assert list(tmp_path.iterdir()) == []
