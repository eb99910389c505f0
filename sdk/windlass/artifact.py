"""A model bundle: weights, code and a manifest, content-addressed. Files only; knows no AWS.

    bundle = artifact.build("out/model", "model.tar.gz", code="src/")     # -> Bundle(path, digest, manifest)
    artifact.extract("model.tar.gz", "unpacked/")
    manifest = artifact.verify("unpacked/")                               # -> Manifest, or CorruptArtifact

The archive is a plain ``tar`` in a ``gzip`` stream that holds one gzip member for each file: weights do not compress, so
they are stored; text is compressed. ``windlass.json`` comes last, because it holds the digests of what was written before
it. The bundle's digest is that of its manifest, so the same files give the same digest whatever zlib compressed them.

This module stays light (no pydantic): the model server reads manifests while an endpoint waits for its first ping.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from windlass.errors import CorruptArtifact, InvalidInput

FORMAT = 1
MANIFEST = "windlass.json"
CODE = "code"

# SageMaker lets no archive unpack to more than the volume it is given; 64 GiB holds any model this format is used for
# today, and a bomb is found by its ratio long before that.
MAX_BYTES = 64 << 30
MAX_FILES = 100_000
MAX_RATIO = 1_000  # deflate's own limit is 1032:1, and only for constant input
_RATIO_FREE = 64 << 20  # small archives of zeros are harmless

_CHUNK = 1 << 20
_STORED = {".safetensors", ".bin", ".pt", ".pth", ".onnx", ".npz", ".gz", ".zip", ".png", ".jpg", ".jpeg", ".parquet"}
_PICKLES = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin"}
_BUILDING = "Building an artifact"
_LEFT_OUT = {"__pycache__", ".git", ".venv", ".DS_Store", ".ipynb_checkpoints"}


@dataclass(frozen=True)
class Tensor:
    """One input or output. ``dtype`` is numpy's name for it; a string in ``shape`` names a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    """What the model takes and gives, as ``signature.json`` writes it."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    content_type: str = "application/json"

    @classmethod
    def parse(cls, data: object, *, where: str = "signature") -> Signature:
        """Read the JSON form ``{"inputs": [{"name", "dtype", "shape"}], "outputs": [...]}``.

        Raises:
            InvalidInput: names the field that is wrong.
        """
        if not isinstance(data, Mapping):
            raise InvalidInput(f"expected an object with inputs and outputs, got {data!r}", where=where)
        return cls(
            inputs=_tensors(data.get("inputs"), f"{where}.inputs"),
            outputs=_tensors(data.get("outputs"), f"{where}.outputs"),
            content_type=str(data.get("content_type", "application/json")),
        )


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
        good = isinstance(shape, list) and all(isinstance(n, str) or (type(n) is int and n >= 0) for n in shape)
        if not good:
            raise InvalidInput(f"shape must be a list of sizes and dimension names, got {shape!r}", where=here)
        assert isinstance(shape, list)
        tensors.append(Tensor(item["name"], item["dtype"], tuple(shape)))
    return tuple(tensors)


@dataclass(frozen=True)
class Manifest:
    """``windlass.json``: what is in the bundle and where it came from.

    Attributes:
        files: path in the bundle -> ``{"sha256": hex, "size": bytes}``.
        pickles: files that execute code when loaded; policies may refuse them.
        source: run, git commit and data digest that the weights came from.
        evaluation: metrics on held-out data, as the evaluation job reported them.
    """

    files: Mapping[str, Mapping[str, Any]]
    signature: Signature | None = None
    framework: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    optimization: tuple[Mapping[str, Any], ...] = ()
    pickles: tuple[str, ...] = ()
    format: int = FORMAT

    def to_json(self) -> bytes:
        """Canonical bytes: sorted keys, so that equal manifests have equal digests."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, body: bytes, *, where: str = MANIFEST) -> Manifest:
        try:
            data = json.loads(body)
        except ValueError as error:
            raise CorruptArtifact(f"not JSON: {error}", where=where) from error
        if not isinstance(data, dict) or not isinstance(data.get("files"), dict):
            raise CorruptArtifact("not a Windlass manifest: it lists no files", where=where)
        if data.get("format") != FORMAT:
            raise CorruptArtifact(
                f"manifest format {data.get('format')!r} is not {FORMAT}",
                where=where,
                hint="Upgrade windlass to read it.",
            )
        known = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known}
        if values.get("signature") is not None:
            values["signature"] = Signature.parse(values["signature"], where=f"{where}: signature")
        return cls(**values)

    @property
    def digest(self) -> str:
        """sha256 of the canonical manifest, hex: the bundle's address."""
        return hashlib.sha256(self.to_json()).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A built archive. ``digest`` (hex) names its content; ``path`` is where the bytes lie."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest


def build(
    model: str | Path,
    dest: str | Path,
    *,
    code: str | Path | None = None,
    signature: Signature | None = None,
    framework: Mapping[str, str] | None = None,
    source: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a model folder, and the code that serves it, as one ``model.tar.gz``.

    Args:
        model: folder with the weights; its files come to the root of the bundle.
        dest: the archive to write. It appears whole or not at all.
        code: folder with ``inference.py`` and ``requirements.txt``; its files come under ``code/``.
        signature: inputs and outputs; by default read from ``signature.json`` in ``code`` or ``model``.
        framework: versions the weights were made with, ``{"torch": "2.13.0"}``.
        source: lineage: run ARN, git commit, data digest.
        evaluation: metrics on held-out data.

    Raises:
        InvalidInput: the model folder is missing or empty, a name collides, a link is inside.
    """
    model, dest = Path(model), Path(dest)
    members = dict(_members(model, PurePosixPath()))
    if not members:
        raise InvalidInput(f"no model files in {model}", where=_BUILDING, hint="Save weights to SM_MODEL_DIR.")
    if code is not None:
        for name in [name for name in members if name.split("/")[0] == CODE]:
            del members[name]  # the code given by name wins over what training left behind
        members.update(_members(Path(code), PurePosixPath(CODE)))
    members.pop(MANIFEST, None)
    if signature is None:
        signature = _signature_beside(members)
    _refuse_collisions(members)

    files: dict[str, dict[str, Any]] = {}
    dest.parent.mkdir(parents=True, exist_ok=True)
    with _appears_whole(dest) as out:
        for name in sorted(members):
            path = members[name]
            with path.open("rb") as body:
                size = os.fstat(body.fileno()).st_size
                sha256 = _write_member(out, name, body, size, executable=os.access(path, os.X_OK))
            files[name] = {"sha256": sha256, "size": size}
        manifest = Manifest(
            files=files,
            signature=signature,
            framework=dict(framework or {}),
            requirements=_requirements(members),
            source=dict(source or {}),
            evaluation=dict(evaluation or {}),
            pickles=tuple(sorted(n for n in files if PurePosixPath(n).suffix in _PICKLES)),
        )
        text = manifest.to_json()
        _write_member(out, MANIFEST, io.BytesIO(text), len(text))
        out.write(_gzip(b"\0" * 1024, level=6))
    return Bundle(dest, manifest)


def pack(folder: str | Path, dest: str | Path) -> str:
    """Write a source folder as a deterministic ``tar.gz`` and return its sha256 (hex). Used for training code."""
    folder, dest = Path(folder), Path(dest)
    members = dict(_members(folder, PurePosixPath()))
    _refuse_collisions(members)
    digest = hashlib.sha256()
    with _appears_whole(dest) as out:
        for name in sorted(members):
            with members[name].open("rb") as body:
                size = os.fstat(body.fileno()).st_size
                sha256 = _write_member(out, name, body, size, executable=os.access(members[name], os.X_OK))
            digest.update(f"{name}\0{sha256}\0".encode())
        out.write(_gzip(b"\0" * 1024, level=6))
    return digest.hexdigest()


def digest_folder(folder: str | Path) -> str:
    """sha256 (hex) over the names and contents of a data folder or of one file, whatever their dates and modes."""
    folder, digest = Path(folder), hashlib.sha256()
    members = dict(_members(folder, PurePosixPath())) if folder.is_dir() else {folder.name: folder}
    for name in sorted(members):
        with members[name].open("rb") as body:
            digest.update(f"{name}\0{hashlib.file_digest(body, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def extract(archive: str | Path, dest: str | Path) -> list[Path]:
    """Unpack a ``tar`` or ``tar.gz`` from anywhere into ``dest`` (absent or empty), whole or not at all.

    Returns:
        The files written, as paths below ``dest``.

    Raises:
        CorruptArtifact: truncated or damaged; a path that climbs out or is absolute; a link or a device; names that
            collide; or a bomb. ``dest`` is then as it was.
    """
    archive, dest = Path(archive), Path(dest)
    if dest.exists() and any(dest.iterdir()):
        raise InvalidInput(f"{dest} is not empty", where=f"Unpacking {archive.name}")
    dest.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        names = _unpack(archive, scratch)
        scratch.chmod(0o755)
        if dest.exists():
            dest.rmdir()
        scratch.rename(dest)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return [dest / name for name in names]


def read_manifest(folder: str | Path) -> Manifest | None:
    """The manifest of an unpacked bundle, or ``None`` where there is none (a model from elsewhere)."""
    path = Path(folder) / MANIFEST
    return Manifest.from_json(path.read_bytes(), where=str(path)) if path.exists() else None


def verify(folder: str | Path) -> Manifest:
    """Check every file of an unpacked bundle against its manifest.

    Raises:
        CorruptArtifact: names each file that is missing, changed, or not in the manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise CorruptArtifact(f"no {MANIFEST} in {folder}", where="Verifying an artifact")
    faults = []
    present = {name: path for name, path in _members(folder, PurePosixPath()) if name != MANIFEST}
    for name, expected in manifest.files.items():
        path = present.pop(name, None)
        if path is None:
            faults.append(f"{name} is missing")
            continue
        with path.open("rb") as body:
            if hashlib.file_digest(body, "sha256").hexdigest() != expected["sha256"]:
                faults.append(f"{name} has changed")
    faults += [f"{name} is not in the manifest" for name in present]
    if faults:
        raise CorruptArtifact("; ".join(faults), where=f"Verifying {folder}")
    return manifest


# ---------------------------------------------------------------------------------------------------- writing


def _members(folder: Path, prefix: PurePosixPath) -> Iterator[tuple[str, Path]]:
    """Name in the archive and path of every regular file below ``folder``."""
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder", where=_BUILDING)
    for path in sorted(folder.iterdir()):
        if path.name in _LEFT_OUT or path.suffix == ".pyc":
            continue
        name = prefix / path.name
        if path.is_symlink() and not path.exists():
            raise InvalidInput(f"{path} is a broken link", where=_BUILDING)
        if path.is_dir():
            if path.is_symlink():
                raise InvalidInput(
                    f"{path} links to a folder",
                    where=_BUILDING,
                    hint="Copy it, so that the bundle is whole.",
                )
            yield from _members(path, name)
        elif path.is_file():
            yield str(name), path
        else:
            raise InvalidInput(f"{path} is neither a file nor a folder", where=_BUILDING)


def _write_member(out: BinaryIO, name: str, body: BinaryIO, size: int, *, executable: bool = False) -> str:
    """One tar member as one gzip member. Returns the sha256 of its content."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o755 if executable else 0o644
    level = 0 if PurePosixPath(name).suffix in _STORED else 6
    packer = zlib.compressobj(level, zlib.DEFLATED, 31)
    digest = hashlib.sha256()
    out.write(packer.compress(header.tobuf(tarfile.PAX_FORMAT)))
    left = size
    while left:
        chunk = body.read(min(_CHUNK, left))
        if not chunk:
            raise InvalidInput(f"{name} shrank while it was read", where=_BUILDING)
        left -= len(chunk)
        digest.update(chunk)
        out.write(packer.compress(chunk))
    out.write(packer.compress(b"\0" * (-size % tarfile.BLOCKSIZE)))
    out.write(packer.flush())
    return digest.hexdigest()


def _gzip(data: bytes, level: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


class _appears_whole:  # noqa: N801 - a context manager, used as a verb
    """A file that is at its place only once it is complete and on disk; until then a sibling that a failure removes."""

    def __init__(self, dest: Path) -> None:
        self.dest = dest

    def __enter__(self) -> BinaryIO:
        self.dest.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{self.dest.name}-", dir=self.dest.parent)
        self.scratch, self.file = Path(name), os.fdopen(descriptor, "wb")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.file.close()
            if kind is None:
                self.scratch.chmod(0o644)
                self.scratch.replace(self.dest)
        finally:
            self.scratch.unlink(missing_ok=True)


def _requirements(members: Mapping[str, Path]) -> tuple[str, ...]:
    path = members.get(f"{CODE}/requirements.txt")
    if path is None:
        return ()
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line)


def _signature_beside(members: Mapping[str, Path]) -> Signature | None:
    for name in (f"{CODE}/signature.json", "signature.json"):
        if name in members:
            try:
                data = json.loads(members[name].read_bytes())
            except ValueError as error:
                raise InvalidInput(f"not JSON: {error}", where=str(members[name])) from error
            return Signature.parse(data, where=str(members[name]))
    return None


def _refuse_collisions(names: Mapping[str, Any]) -> None:
    """Names that are one file on a case-folding or Unicode-folding disk (macOS, Windows) are refused on every disk."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_folded(name), name)
        if other != name:
            raise InvalidInput(f"{name!r} and {other!r} are one file on some disks", where=_BUILDING)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


# ---------------------------------------------------------------------------------------------------- reading


def _unpack(archive: Path, dest: Path) -> list[str]:
    where = f"Unpacking {archive.name}"
    try:
        packed = archive.stat().st_size
    except OSError as error:
        raise InvalidInput(f"{archive} cannot be read: {error.strerror}", where=where) from error
    names: dict[str, str] = {}
    total = 0
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = _safe_name(member, where)
                if name is None:
                    continue
                if member.isdir():
                    (dest / name).mkdir(parents=True, exist_ok=True)
                    continue
                if names.setdefault(_folded(name), name) != name or (dest / name).exists():
                    raise CorruptArtifact(f"{name!r} is in it twice", where=where)
                total += member.size
                _refuse_bomb(total, packed, len(names), where)
                _write_file(tar, member, dest / name, where)
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OSError) as error:
        if isinstance(error, CorruptArtifact) or (isinstance(error, OSError) and error.errno is not None):
            raise  # ours already, or the disk's own complaint (full, read-only)
        # tarfile says of what is no archive at all, on four lines, which compressions it tried.
        what = (
            "not a tar.gz" if isinstance(error, tarfile.ReadError) and not names else f"truncated or damaged ({error})"
        )
        raise CorruptArtifact(what, where=where, hint="Upload it again; a bundle is never half-loaded.") from error
    return list(names.values())


def _safe_name(member: tarfile.TarInfo, where: str) -> str | None:
    """The member's path below the destination, or ``None`` for the root itself."""
    path = PurePosixPath(member.name)
    climbs = path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name
    if climbs:
        raise CorruptArtifact(f"{member.name!r} would be written outside its folder", where=where)
    if not (member.isreg() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a device"
        raise CorruptArtifact(f"{member.name!r} is {kind}", where=where, hint="Bundles hold plain files only.")
    return None if str(path) == "." else str(path)


def _refuse_bomb(total: int, packed: int, count: int, where: str) -> None:
    if total > MAX_BYTES or count > MAX_FILES or (total > _RATIO_FREE and total > packed * MAX_RATIO):
        raise CorruptArtifact(f"{packed} bytes unpack to more than {total} bytes in {count} files", where=where)


def _write_file(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, where: str) -> None:
    body = tar.extractfile(member)
    assert body is not None  # a regular file always has one
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        shutil.copyfileobj(body, out, _CHUNK)
        if out.tell() != member.size:
            raise CorruptArtifact(f"{member.name!r} ends after {out.tell()} of {member.size} bytes", where=where)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)
