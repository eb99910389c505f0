"""``windlass.json``: what is in a bundle, what it takes and gives, and where it came from.

    manifest = Manifest.from_json(Path("model/windlass.json").read_bytes())
    manifest.signature.inputs[0].dtype, manifest.files["model.safetensors"].sha256

Its JSON Schema is ``schema.json`` beside this file (:func:`schema`). Readers ignore fields that they do not know, so a field
may be added within a format; a change of meaning is a new format, which old readers refuse by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from windlass.artifact.content import Content
from windlass.errors import CorruptArtifact, InvalidInput

FORMAT = 1
MANIFEST = "windlass.json"


@dataclass(frozen=True)
class Tensor:
    """One input or output. ``dtype`` is numpy's name for it; a string in ``shape`` names a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    """What the model takes and gives, as ``signature.json`` writes it.

    Attributes:
        content_types: of requests, the usual one first.
        accept_types: of answers, the usual one first.
        example: a request's body as JSON that the model answers; ``None`` when there is none.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    content_types: tuple[str, ...] = ("application/json",)
    accept_types: tuple[str, ...] = ("application/json",)
    example: Any = None

    @property
    def content_type(self) -> str:
        return self.content_types[0]

    @classmethod
    def parse(cls, data: object, *, where: str = "signature") -> Signature:
        """Read the JSON form ``{"inputs": [{"name", "dtype", "shape"}], "outputs": [...], "content_types": [...]}``.

        Raises:
            InvalidInput: names the field that is wrong.
        """
        if not isinstance(data, Mapping):
            raise InvalidInput(f"expected an object with inputs and outputs, got {data!r}", where=where)
        one = data.get("content_type", "application/json")  # singular: what the first templates wrote
        return cls(
            inputs=_tensors(data.get("inputs"), f"{where}.inputs"),
            outputs=_tensors(data.get("outputs"), f"{where}.outputs"),
            content_types=_types(data.get("content_types", [one]), f"{where}.content_types"),
            accept_types=_types(data.get("accept_types", ["application/json"]), f"{where}.accept_types"),
            example=data.get("example"),
        )

    def to_json(self) -> dict[str, Any]:
        def tensor(item: Tensor) -> dict[str, Any]:
            return {"name": item.name, "dtype": item.dtype, "shape": list(item.shape)}

        return {
            "inputs": [tensor(item) for item in self.inputs],
            "outputs": [tensor(item) for item in self.outputs],
            "content_types": list(self.content_types),
            "accept_types": list(self.accept_types),
            **({} if self.example is None else {"example": self.example}),
        }


def _types(data: object, where: str) -> tuple[str, ...]:
    if not isinstance(data, list) or not data or not all(isinstance(item, str) and "/" in item for item in data):
        raise InvalidInput(f"expected a list of content types, as in ['application/json'], got {data!r}", where=where)
    return tuple(data)


def _tensors(data: object, where: str) -> tuple[Tensor, ...]:
    if not isinstance(data, list) or not data:
        raise InvalidInput(f"expected a list of tensors, got {data!r}", where=where)
    tensors = []
    for index, item in enumerate(data):
        here = f"{where}[{index}]"
        if (
            not isinstance(item, Mapping)
            or not isinstance(item.get("name"), str)
            or not isinstance(item.get("dtype"), str)
        ):
            raise InvalidInput(f"expected {{name, dtype, shape}}, got {item!r}", where=here)
        shape = item.get("shape")
        if not isinstance(shape, list) or not all(isinstance(n, str) or (type(n) is int and n >= 0) for n in shape):
            raise InvalidInput(f"shape must be a list of sizes and dimension names, got {shape!r}", where=here)
        tensors.append(Tensor(item["name"], item["dtype"], tuple(shape)))
    return tuple(tensors)


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        files: path in the bundle -> size and digests.
        signature: inputs and outputs.
        framework: versions the weights were made with, ``{"torch": "2.13.0"}``.
        requirements: exact versions that the code needs, as ``requirements.txt`` has them.
        source: run, git commit, data digest and parent version that the weights came from.
        evaluation: metrics on held-out data, as the evaluation job reported them.
        optimization: what was done to the weights after training, in order.
        license: SPDX expression of the weights' licence, ``Apache-2.0``; empty when nobody said.
        model_card: path in the bundle of the text that describes the model to people; empty when there is none.
        loader: how to load it where no ``inference.py`` was written: ``torch-export``, ``transformers``, ``onnx``, ``skops``.
        pickles: files that execute code when loaded; policies may refuse them.
    """

    files: Mapping[str, Content]
    signature: Signature | None = None
    framework: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    optimization: tuple[Mapping[str, Any], ...] = ()
    license: str = ""
    model_card: str = ""
    loader: str = ""
    pickles: tuple[str, ...] = ()
    format: int = FORMAT

    def to_json(self) -> bytes:
        """Canonical bytes: sorted keys, so that equal manifests have equal digests; with a checksum of all the rest."""
        data: dict[str, Any] = {
            **self.__dict__,
            "files": {name: content.to_json() for name, content in self.files.items()},
            "signature": self.signature.to_json() if self.signature else None,
        }
        return _canonical({**data, "checksum": hashlib.sha256(_canonical(data)).hexdigest()})

    @classmethod
    def from_json(cls, body: bytes, *, where: str = MANIFEST) -> Manifest:
        """Read it, checking the type of all that is read.

        Raises:
            CorruptArtifact: not JSON, of another format, or a field is not what it should be.
        """
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise CorruptArtifact(f"not JSON: {error}", where=where) from error
        if not isinstance(data, dict) or not isinstance(data.get("files"), dict):
            raise CorruptArtifact("not a Windlass manifest: it lists no files", where=where)
        if data.get("format") != FORMAT:
            raise CorruptArtifact(
                f"manifest format {data.get('format')!r:.40} is not {FORMAT}",
                where=where,
                hint="Upgrade windlass to read it.",
            )
        values: dict[str, Any] = {"files": {}}
        try:
            for name, item in data["files"].items():
                values["files"][name] = Content.from_json(item)
        except ValueError as error:
            raise CorruptArtifact(f"files: {name}: {error}", where=where) from error
        for name, kind, of in _FIELDS:
            values[name] = _checked(data.get(name, kind()), kind, of, f"{where}: {name}")
        if data.get("signature") is not None:
            values["signature"] = _checked_signature(data["signature"], where)
        return cls(**values)

    @classmethod
    def intact(cls, body: bytes, *, where: str = MANIFEST) -> Manifest:
        """Read what :meth:`to_json` wrote, and nothing that was changed since: one bit is enough to be refused.

        Raises:
            CorruptArtifact: also when its checksum is missing or is not that of the rest.
        """
        manifest = cls.from_json(body, where=where)
        data = json.loads(body)
        if data.pop("checksum", None) != hashlib.sha256(_canonical(data)).hexdigest():
            hint = "Somebody edited it, or it was damaged: fetch the bundle again."
            raise CorruptArtifact("its checksum is not that of what it says", where=where, hint=hint)
        return manifest

    @property
    def digest(self) -> str:
        """sha256 of the canonical manifest, hex: the bundle's address."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(content.size for content in self.files.values())


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False).encode()


_FIELDS: tuple[tuple[str, type, type | None], ...] = (
    ("framework", dict, str),
    ("requirements", list, str),
    ("source", dict, None),
    ("evaluation", dict, None),
    ("optimization", list, dict),
    ("license", str, None),
    ("model_card", str, None),
    ("loader", str, None),
    ("pickles", list, str),
)
_KINDS: Mapping[type, str] = {dict: "an object", list: "a list", str: "text"}


def _checked(value: Any, kind: type, of: type | None, where: str) -> Any:
    if not isinstance(value, kind) or (of and not all(isinstance(item, of) for item in _items(value))):
        raise CorruptArtifact(f"{value!r:.100} is not {_KINDS[kind]}", where=where)
    return tuple(_items(value)) if kind is list else value


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def _checked_signature(data: object, where: str) -> Signature:
    try:
        return Signature.parse(data, where="signature")
    except InvalidInput as error:
        raise CorruptArtifact(str(error), where=where) from error


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``windlass.json``."""
    body: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_bytes())
    return body
