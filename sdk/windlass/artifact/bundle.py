"""Bundles: build, open, verify, compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from windlass.artifact import archive, loaders, whole
from windlass.artifact.archive import BUILDING, WORKERS
from windlass.artifact.content import Content, DigestCache, matches, scan
from windlass.artifact.manifest import MANIFEST, Manifest, Signature
from windlass.errors import CorruptArtifact, InvalidInput

CODE = "code"
_PICKLES = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin"}
_WEIGHTS = _PICKLES | {".safetensors", ".onnx", ".pt2", ".skops", ".gguf", ".npz", ".npy"}
_BESIDE_CODE = ("requirements.txt", "requirements.lock", "signature.json")
_CARDS = ("MODEL_CARD.md", "README.md")


@dataclass(frozen=True)
class Bundle:
    """A bundle on this disk.

    Attributes:
        path: the archive, or the folder it was unpacked to.
        manifest: what is in it; ``digest`` (hex) names its content.
        parts: of a bundle that is not in one place yet: name in the bundle -> file.
    """

    path: Path
    manifest: Manifest
    parts: Mapping[str, Path]

    @property
    def digest(self) -> str:
        return self.manifest.digest


# ------------------------------------------------------------------------------------------------------------- building


def build(
    model: str | Path,
    dest: str | Path | None = None,
    *,
    code: str | Path | None = None,
    signature: Signature | None = None,
    framework: Mapping[str, str] | None = None,
    source: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    optimization: Sequence[Mapping[str, Any]] = (),
    license: str = "",  # noqa: A002 - the field's name in the manifest
    loader: str = "",
    cache: DigestCache | None = None,
) -> Bundle:
    """Describe a model folder and the code that serves it, and write both as one ``model.tar.gz``.

        bundle = artifact.build("out/model", "model.tar.gz", code="src/")

    Args:
        model: folder with the weights; its files come to the root of the bundle.
        dest: the archive to write. It appears whole or not at all. Without it nothing is written: the bundle is the manifest
            and where each file lies, ready to be published as an S3 prefix.
        code: folder with ``inference.py`` and ``requirements.txt``; its files come under ``code/``.
        signature: inputs and outputs; by default read from ``signature.json`` in ``code`` or ``model``.
        framework: versions the weights were made with, ``{"torch": "2.13.0"}``.
        source: lineage: run ARN, git commit, data digest.
        evaluation: metrics on held-out data.
        optimization: what was done to the weights after training, in order.
        license: SPDX expression; by default from ``license:`` in the model card's front matter.
        loader: how to load it without an ``inference.py``: one of ``loaders.LOADERS``; by default found by its files. The
            code for it goes into the bundle.
        cache: where digests of unchanged files are remembered; used without ``dest`` only, where nothing else is read.

    Raises:
        InvalidInput: the model folder is missing or empty, a name collides, a link is inside, a file changed meanwhile.
        DiskFull: no room for ``dest``.
    """
    parts = _parts(Path(model), Path(code) if code is not None else None)
    written = loaders.INFERENCE not in parts
    loader = loader or (loaders.find(parts) if written else "")
    if loader and written:
        parts = dict(sorted({**parts, **loaders.code(loader)}.items()))
    if signature is None:
        signature = _signature_beside(parts)
    card = next((name for name in (*_CARDS, *(f"{CODE}/{card}" for card in _CARDS)) if name in parts), "")

    def describe(files: Mapping[str, Content]) -> Manifest:
        return Manifest(
            files=files,
            signature=signature,
            framework=dict(framework or {}),
            requirements=_requirements(parts),
            source=dict(source or {}),
            evaluation=dict(evaluation or {}),
            optimization=tuple(optimization),
            license=license or (_license_of(parts[card]) if card else ""),
            model_card=card,
            loader=loader,
            pickles=tuple(sorted(n for n in files if PurePosixPath(n).suffix.lower() in _PICKLES)),
        )

    if dest is None:
        with ThreadPoolExecutor(WORKERS) as pool, ThreadPoolExecutor(WORKERS) as files:
            # Whole files on one pool, their chunks on the other: neither waits for its own.
            found = {name: files.submit(scan, path, pool, cache) for name, path in parts.items()}
            manifest = describe({name: future.result() for name, future in found.items()})
        return Bundle(Path(model), manifest, parts)
    with whole.file(Path(dest)) as out, archive.Writer(out) as writer:
        for name in archive.order({name: path.stat().st_size for name, path in parts.items()}):
            writer.add(name, parts[name])
        manifest = describe(dict(sorted(writer.flush().items())))
        writer.add_bytes(MANIFEST, manifest.to_json())
    return Bundle(Path(dest), manifest, parts)


def repack(bundle: Bundle, dest: str | Path) -> Bundle:
    """Write an opened bundle as one ``model.tar.gz``, its manifest as it is, so with the same digest.

    Raises:
        CorruptArtifact: a file is no longer what the manifest says.
    """
    with whole.file(Path(dest)) as out:
        write(bundle, out)
    return Bundle(Path(dest), bundle.manifest, bundle.parts)


def write(bundle: Bundle, out: archive.Sink) -> None:
    """Write a bundle's ``model.tar.gz`` as a stream, in the bytes that :func:`build` gives.

    Raises:
        CorruptArtifact: a file is no longer what the manifest says; ``out`` then lacks the end of the archive.
    """
    files = bundle.manifest.files
    with archive.Writer(out, with_chunks=False) as writer:
        for name in archive.order({name: content.size for name, content in files.items()}):
            if not bundle.parts[name].is_file():
                raise CorruptArtifact(f"{name} is gone", where=f"Packing {bundle.path}")
            writer.add(name, bundle.parts[name])
        written = writer.flush()
        faults = [f"{name} has changed" for name, content in files.items() if written[name].sha256 != content.sha256]
        if faults:
            raise CorruptArtifact(_listed(faults), where=f"Packing {bundle.path}")
        writer.add_bytes(MANIFEST, bundle.manifest.to_json())


def _parts(model: Path, code: Path | None) -> dict[str, Path]:
    """Name in the bundle -> file, sorted by name."""
    parts = dict(archive.members(model))
    if not parts:
        raise InvalidInput(f"no model files in {model}", where=BUILDING, hint="Save weights to SM_MODEL_DIR.")
    if code is not None:
        # The code given by name wins over what training left behind.
        parts = {name: path for name, path in parts.items() if name.split("/")[0] != CODE}
        parts.update(archive.members(code, CODE))
    parts.pop(MANIFEST, None)
    empty = [n for n, path in parts.items() if PurePosixPath(n).suffix.lower() in _WEIGHTS and not path.stat().st_size]
    if empty:
        hint = "Was the disk full when it was saved?"
        raise InvalidInput(f"{', '.join(empty)}: weights of 0 bytes", where=BUILDING, hint=hint)
    if "inference.py" in parts and not any(name.startswith(f"{CODE}/") for name in parts):
        # A plain folder: SageMaker looks for its code one level down.
        own = [name for name in parts if "/" not in name and (name.endswith(".py") or name in _BESIDE_CODE)]
        parts |= {f"{CODE}/{name}": parts.pop(name) for name in own}
    archive.refuse_collisions({**parts, MANIFEST: None})
    return dict(sorted(parts.items()))


def servable(model: str | Path, code: str | Path | None = None) -> bool:
    """Whether a bundle of these could be served: it has an ``inference.py``, or a file that says how to compute."""
    parts = _parts(Path(model), Path(code) if code is not None else None)
    return loaders.INFERENCE in parts or bool(loaders.find(parts))


def _requirements(parts: Mapping[str, Path]) -> tuple[str, ...]:
    path = parts.get(f"{CODE}/requirements.lock") or parts.get(f"{CODE}/requirements.txt")
    if path is None:
        return ()
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line)


def _signature_beside(parts: Mapping[str, Path]) -> Signature | None:
    for name in (f"{CODE}/signature.json", "signature.json"):
        if name in parts:
            try:
                data = json.loads(parts[name].read_bytes())
            except ValueError as error:
                raise InvalidInput(f"not JSON: {error}", where=str(parts[name])) from error
            return Signature.parse(data, where=str(parts[name]))
    return None


def _license_of(card: Path) -> str:
    """``license:`` of a model card's YAML front matter, as model hubs have it."""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return ""
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, _, value = line.partition(":")
        if key == "license":
            return value.strip().strip("\"'")
    return ""


def pack(folder: str | Path, dest: str | Path, *, without: Iterable[Path] = ()) -> str:
    """Write a source folder as a deterministic ``tar.gz`` and return its sha256 (hex). Used for training code.

    Args:
        without: folders below it that are left out.
    """
    root = Path(folder).resolve()
    below = [path.resolve() for path in without]
    skipped = tuple(f"{path.relative_to(root).as_posix()}/" for path in below if root in path.parents)
    members = {name: path for name, path in archive.members(Path(folder)) if not name.startswith(skipped)}
    archive.refuse_collisions(members)
    digest = hashlib.sha256()
    with whole.file(Path(dest)) as out, archive.Writer(out, with_chunks=False) as writer:
        for name in sorted(members):
            writer.add(name, members[name])
        for name, content in sorted(writer.flush().items()):
            digest.update(f"{name}\0{content.sha256}\0".encode())
    return digest.hexdigest()


def digest_folder(folder: str | Path) -> str:
    """sha256 (hex) over the names and contents of a data folder or of one file, whatever their dates and modes."""
    folder, digest = Path(folder), hashlib.sha256()
    if not folder.exists():
        raise InvalidInput(f"{folder} is not there", where="Digesting data")
    members = dict(archive.members(folder)) if folder.is_dir() else {folder.name: folder}
    for name in sorted(members):
        with members[name].open("rb") as body:
            digest.update(f"{name}\0{hashlib.file_digest(body, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------------------- reading


def extract(packed: str | Path, dest: str | Path) -> list[Path]:
    """Unpack a ``tar`` or ``tar.gz`` from anywhere into ``dest`` (absent or empty), whole or not at all.

    Returns:
        The files written, as paths below ``dest``.

    Raises:
        CorruptArtifact: truncated or damaged; a path that climbs out or is absolute; a link or a device; names that
            collide; or a bomb. ``dest`` is then as it was.
        DiskFull: no room for it; ``dest`` is then as it was.
    """
    dest = Path(dest)
    with whole.folder(dest, f"Unpacking {Path(packed).name}") as scratch:
        names = archive.unpack(Path(packed), scratch)
    return [dest / name for name in names]


def open_bundle(path: str | Path, dest: str | Path | None = None) -> Bundle:
    """Open a bundle, and make sure that it is what its manifest says before anything of it is loaded.

        bundle = artifact.open("model.tar.gz", "unpacked/")     # unpacked and verified in one pass
        bundle = artifact.open("/opt/ml/model")                 # verified where it lies

    Raises:
        CorruptArtifact: anything is damaged, missing or too much; ``dest`` is then as it was.
        DiskFull: no room for it; ``dest`` is then as it was.
    """
    path = Path(path)
    if path.is_dir():
        return Bundle(path, manifest := verify(path), {name: path / name for name in manifest.files})
    if dest is None:
        hint = "As in artifact.open('model.tar.gz', 'unpacked/')."
        raise InvalidInput("an archive needs a folder to be unpacked to", where=f"Opening {path}", hint=hint)
    dest = Path(dest)
    with whole.folder(dest, f"Unpacking {path.name}") as scratch:
        digests = archive.unpack(path, scratch)
        manifest = _require_manifest(scratch, f"Opening {path}")
        digests.pop(MANIFEST)
        faults = []
        for name, expected in manifest.files.items():
            found = digests.pop(name, None)
            if found != expected.sha256:
                faults.append(f"{name} is missing" if found is None else f"{name} has changed")
        faults += [f"{name} is not in the manifest" for name in digests]
        if faults:
            raise CorruptArtifact(_listed(faults), where=f"Opening {path}")
    return Bundle(dest, manifest, {name: dest / name for name in manifest.files})


def read_manifest(folder: str | Path) -> Manifest | None:
    """The manifest of an unpacked bundle, or ``None`` where there is none (a model from elsewhere)."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    return Manifest.from_json(path.read_bytes(), where=str(path))


def _require_manifest(folder: Path, where: str) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise CorruptArtifact(f"no {MANIFEST} in {folder}", where=where, hint="Only Windlass's own bundles have one.")
    return Manifest.intact(path.read_bytes(), where=str(path))


def verify(folder: str | Path) -> Manifest:
    """Compare every file of an unpacked bundle with its digest, large files chunk by chunk on all cores.

    Raises:
        CorruptArtifact: lists each file that is missing, changed or not in the manifest.
    """
    folder = Path(folder)
    manifest = _require_manifest(folder, "Verifying an artifact")
    present = {name: path for name, path in archive.members(folder, all_files=True) if name != MANIFEST}
    faults = [f"{name} is missing" for name in manifest.files if name not in present]
    with ThreadPoolExecutor(WORKERS) as pool, ThreadPoolExecutor(WORKERS) as files:
        # As in `build`: whole files on one pool, their chunks on the other.
        held = {n: content for n, content in manifest.files.items() if n in present}
        same = {name: files.submit(matches, present[name], content, pool) for name, content in held.items()}
        faults += [f"{name} has changed" for name, answer in same.items() if not answer.result()]
    faults += [f"{name} is not in the manifest" for name in present if name not in manifest.files]
    if faults:
        raise CorruptArtifact(_listed(faults), where=f"Verifying {folder}")
    return manifest


def _listed(faults: Sequence[str], most: int = 20) -> str:
    more = f"; and {len(faults) - most} more" if len(faults) > most else ""
    return "; ".join(faults[:most]) + more


# ------------------------------------------------------------------------------------------------------------ comparing


@dataclass(frozen=True)
class Diff:
    """How one bundle differs from another.

    Attributes:
        added, removed, changed: names of files.
        fields: fields of the manifest that differ -> (before, after).
        new_bytes: of chunks and files that the bundle before does not hold: what a publish would send.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    fields: Mapping[str, tuple[Any, Any]]
    new_bytes: int

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.fields)

    def __str__(self) -> str:
        lines = [
            f"{sign} {n}"
            for sign, names in zip("+-~", (self.added, self.removed, self.changed), strict=True)
            for n in names
        ]
        lines += [f"{name}: {before!r} -> {after!r}" for name, (before, after) in self.fields.items()]
        return "\n".join([*lines, f"{self.new_bytes} new bytes"])


def diff(before: Manifest, after: Manifest) -> Diff:
    """What changed from one bundle to another. Empty (false) when their digests are equal."""
    old, new = before.files, after.files
    held = {digest for content in old.values() for digest in (content.sha256, *(c.sha256 for c in content.chunks))}
    fresh = {
        chunk: size
        for content in new.values()
        if content.sha256 not in held
        for chunk, size in [(c.sha256, c.size) for c in content.chunks] or [(content.sha256, content.size)]
        if chunk not in held
    }
    names = [name for name in Manifest.__dataclass_fields__ if name not in ("files", "format")]
    return Diff(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(n for n in old.keys() & new.keys() if old[n].sha256 != new[n].sha256)),
        fields={n: (getattr(before, n), getattr(after, n)) for n in names if getattr(before, n) != getattr(after, n)},
        new_bytes=sum(fresh.values()),
    )
