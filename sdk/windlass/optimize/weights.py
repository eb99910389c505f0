"""Safetensors of any size: read lazily, cut into shards, joined, cast and renamed, one tensor in memory at a time.

    with Weights("model/") as weights:                          # one file, or shards with their index
        layer = weights.tensor("layer.0.weight", device="cuda", dtype=torch.bfloat16)
    shard("model/", "sharded/", max_size=2 << 30)               # model-00001-of-00004.safetensors ... and an index
    merge("sharded/", "model.safetensors")
    convert("model/", "bf16/", dtype="bfloat16", rename={"encoder.": "bert."}, check=Check(run, tolerance=0.01))

Shards and their ``model.safetensors.index.json`` are laid out as the transformers library has them. Sharding and merging copy
bytes and need no torch; what is written appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from windlass import artifact
from windlass.errors import CorruptArtifact, InvalidInput, MissingExtra

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_HEADER_MOST = 100 << 20  # safetensors' own limit
_STEP = 4 << 20
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Stored:
    """A tensor where it lies: ``size`` bytes at ``offset`` of a file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one file, none of them loaded.

    Raises:
        CorruptArtifact: truncated, or offsets that overlap, leave gaps or do not fit the shapes.
    """
    where = f"Reading {path}"
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size + 1
        if length > min(size - 8, _HEADER_MOST):
            raise CorruptArtifact("truncated, or no safetensors", where=where)
        body = file.read(length)
    try:
        header = json.loads(body)
        header.pop("__metadata__", None)
        tensors = {
            name: Stored(path, item["dtype"], tuple(item["shape"]), 8 + length + start, end - start)
            for name, item in header.items()
            for start, end in [item["data_offsets"]]
        }
        at = 8 + length
        for name, tensor in sorted(tensors.items(), key=lambda pair: (pair[1].offset, pair[1].size)):
            if tensor.offset != at or tensor.size * 8 != math.prod(tensor.shape) * _BITS[tensor.dtype]:
                raise ValueError(f"tensor {name!r} does not lie where it should")
            at += tensor.size
        if at != size:
            raise ValueError(f"{size - at} bytes belong to no tensor")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"no safetensors header ({error})", where=where) from error
    return tensors


def find(path: str | Path) -> dict[str, Stored]:
    """The tensors of a file, of a folder with ``model.safetensors``, or of a folder with shards and an index.

    Raises:
        InvalidInput: none of these.
        CorruptArtifact: the index and the shards do not agree.
    """
    path = Path(path)
    where = f"Reading the weights in {path}"
    if path.is_file():
        return read_header(path)
    if (path / SINGLE).is_file():
        return read_header(path / SINGLE)
    if not (path / INDEX).is_file():
        raise InvalidInput(f"neither {SINGLE} nor {INDEX} is there", where=where)
    try:
        places = json.loads((path / INDEX).read_bytes())["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"{INDEX} has no weight_map ({error})", where=where) from error
    found: dict[str, Stored] = {}
    for name in names:
        if Path(name).name != name or not (path / name).is_file():
            raise CorruptArtifact(f"shard {name!r} of the index is missing", where=where)
        for tensor, stored in read_header(path / name).items():
            if places.get(tensor) != name:
                raise CorruptArtifact(f"{tensor!r} is in {name}, where the index does not have it", where=where)
            found[tensor] = stored
    missing = sorted(places.keys() - found.keys())
    if missing:
        raise CorruptArtifact(f"no shard holds {', '.join(missing[:5])}", where=where)
    return found


class Weights(Mapping[str, "torch.Tensor"]):
    """Tensors by name, memory-mapped: what is not asked for is not read."""

    def __init__(self, path: str | Path) -> None:
        self._stored = find(path)
        self._open: dict[tuple[Path, str], Any] = {}

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()  # which unmaps the files

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.size for stored in self._stored.values())

    def tensor(self, name: str, *, device: str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor on the device and in the dtype asked for. Raises KeyError when there is none of this name."""
        _require()
        from safetensors import safe_open

        key = (self._stored[name].path, device)
        if key not in self._open:
            self._open[key] = safe_open(key[0], framework="pt", device=device)
        found: torch.Tensor = self._open[key].get_tensor(name)
        return found if dtype is None else found.to(dtype)


def shard(source: str | Path, dest: str | Path, *, max_size: int) -> Sequence[Path]:
    """Cut weights into files of at most ``max_size`` bytes of tensors, with an index. A larger tensor gets a file of its own.

    Returns:
        The shards.
    """
    if max_size < 1:
        raise InvalidInput(f"max_size={max_size} holds no tensor", where="Sharding weights")
    groups: list[dict[str, Stored]] = [{}]
    filled = 0
    for name, stored in find(source).items():
        if groups[-1] and filled + stored.size > max_size:
            groups.append({})
            filled = 0
        groups[-1][name] = stored
        filled += stored.size
    count, places = len(groups), {}
    with artifact.appears(Path(dest), f"Writing {dest}") as folder:
        names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        for name, group in zip(names, groups, strict=True):
            with (folder / name).open("xb") as out:
                _write(out, {tensor: (s.dtype, s.shape, s.size, _bytes(s)) for tensor, s in group.items()})
            places.update(dict.fromkeys(group, name))
        total = sum(stored.size for group in groups for stored in group.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")
    return [Path(dest) / name for name in names]


def merge(source: str | Path, dest: str | Path) -> Path:
    """Join shards into one file."""
    dest, tensors = Path(dest), find(source)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with artifact.room(dest.parent), tempfile.TemporaryDirectory(prefix=f".{dest.name}-", dir=dest.parent) as scratch:
        with (Path(scratch) / dest.name).open("xb") as out:
            _write(out, {name: (s.dtype, s.shape, s.size, _bytes(s)) for name, s in tensors.items()})
        (Path(scratch) / dest.name).replace(dest)
    return dest


@dataclass(frozen=True)
class Check:
    """That a conversion keeps what the model says.

    Attributes:
        run: the model's outputs for inputs that the caller chose, given the weights under their new names. It runs twice: with
            the values from before, and with those that were written.
        tolerance: the most that any output may differ, relative to the largest output.
    """

    run: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
    tolerance: float


def convert(
    source: str | Path,
    dest: str | Path,
    *,
    dtype: str | None = None,
    rename: Mapping[str, str] | None = None,
    check: Check | None = None,
) -> float | None:
    """Cast floating-point weights and rename tensors by their prefixes, into ``dest/model.safetensors``.

    Args:
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``; integers stay as they are.
        rename: prefix -> prefix; the longest that fits is taken.
        check: what must stay the same.

    Returns:
        The largest relative difference of outputs; ``None`` without a check.

    Raises:
        InvalidInput: two tensors get one name, a value does not fit the dtype, or outputs differ too much. Nothing is written.
    """
    where = f"Converting {source}"
    code = next((code for code, name in _FLOATS.items() if name == dtype), None)
    if dtype is not None and code is None:
        raise InvalidInput(f"dtype={dtype!r}", where=where, hint=f"Valid: {', '.join(sorted(_FLOATS.values()))}.")
    torch = _require()
    with Weights(source) as weights, artifact.appears(Path(dest), where) as folder:
        names = {name: _renamed(name, rename or {}) for name in weights}
        if len(set(names.values())) != len(names):
            twice = sorted({new for new in names.values() if list(names.values()).count(new) > 1})
            raise InvalidInput(f"several tensors would be called {twice[0]!r}", where=where)

        def cast(name: str) -> Iterator[bytes]:
            before = weights[name]
            after = before.to(getattr(torch, dtype)) if dtype and before.is_floating_point() else before
            if after.is_floating_point() and bool((after.isfinite() != before.isfinite()).any()):
                raise InvalidInput(f"values of {name!r} do not fit {dtype}", where=where, hint="Take bfloat16.")
            yield after.contiguous().flatten().view(torch.uint8).numpy().tobytes()

        members = {}
        for name, stored in weights._stored.items():
            kind = code if code and stored.dtype in _FLOATS else stored.dtype
            size = stored.size * _BITS[kind] // _BITS[stored.dtype]
            members[names[name]] = (kind, stored.shape, size, cast(name))
        with (folder / SINGLE).open("xb") as out:
            _write(out, members)
        if check is None:
            return None
        before = check.run({new: weights[old] for old, new in names.items()}).double()
        with Weights(folder) as written:
            after = check.run({name: written.tensor(name) for name in written}).double()
        worst = float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))
        if not worst <= check.tolerance:
            hint = "Nothing was written. Allow more, or keep the dtype."
            raise InvalidInput(f"outputs differ by {worst:.3g}, above {check.tolerance:g}", where=where, hint=hint)
        return worst


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    fitting = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
    return name if fitting is None else prefixes[fitting] + name.removeprefix(fitting)


def _require() -> Any:
    try:
        import safetensors  # noqa: F401
        import torch
    except ImportError as error:
        raise MissingExtra(error.name or "torch", "train", "Loading weights") from error
    return torch


def _bytes(stored: Stored) -> Iterator[bytes]:
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        left = stored.size
        while left:
            body = file.read(min(_STEP, left))
            if not body:
                raise CorruptArtifact("it became shorter while it was read", where=f"Reading {stored.path}")
            left -= len(body)
            yield body


def _write(out: IO[bytes], members: Mapping[str, tuple[str, tuple[int, ...], int, Iterable[bytes]]]) -> None:
    """A safetensors file: dtype, shape, size and bytes of each tensor. The data begins at a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, size, _) in members.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
    for _, _, _, body in members.values():
        for piece in body:
            out.write(piece)
