"""A model bundle: weights, code and a manifest, content-addressed. Files only; knows no AWS.

    bundle = artifact.build("out/model", "model.tar.gz", code="src/")     # -> Bundle(path, manifest), bundle.digest
    bundle = artifact.open("model.tar.gz", "unpacked/")                   # unpacked and verified in one pass
    manifest = artifact.verify("unpacked/")                               # -> Manifest, or CorruptArtifact
    print(artifact.diff(old.manifest, bundle.manifest))

``windlass.json`` holds the digests of all other files, and the bundle's digest is that of ``windlass.json``: the same files
have the same digest whatever zlib compressed them, and whether they lie in an archive or below an S3 prefix.

This package stays light (no pydantic): the model server reads manifests while an endpoint waits for its first ping.
"""

from windlass.artifact.archive import MAX_BYTES, MAX_FILES, MAX_RATIO
from windlass.artifact.bundle import (
    CODE,
    Bundle,
    Diff,
    build,
    diff,
    digest_folder,
    extract,
    pack,
    read_manifest,
    repack,
    servable,
    verify,
    write,
)
from windlass.artifact.bundle import open_bundle as open  # noqa: A004 - reads as artifact.open
from windlass.artifact.content import Chunk, Content, DigestCache
from windlass.artifact.manifest import FORMAT, MANIFEST, Manifest, Signature, Tensor, schema
from windlass.artifact.whole import folder as appears
from windlass.artifact.whole import room

__all__ = [
    "CODE",
    "FORMAT",
    "MANIFEST",
    "MAX_BYTES",
    "MAX_FILES",
    "MAX_RATIO",
    "Bundle",
    "Chunk",
    "Content",
    "Diff",
    "DigestCache",
    "Manifest",
    "Signature",
    "Tensor",
    "appears",
    "build",
    "diff",
    "digest_folder",
    "extract",
    "open",
    "pack",
    "read_manifest",
    "repack",
    "room",
    "schema",
    "servable",
    "verify",
    "write",
]
