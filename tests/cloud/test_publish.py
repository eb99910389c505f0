"""Bundles to S3 and back: what travels, what does not, and what happens when the line breaks."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.wire import Wire
from tests.cloud.conftest import Rig
from windlass import artifact, aws, publish
from windlass.errors import CorruptArtifact, DiskFull, InvalidInput, NotFound, ServiceError

MIB = 1 << 20


@pytest.fixture
def model(rig: Rig, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "code").mkdir(parents=True)
    (folder / "w.safetensors").write_bytes(random.Random(0).randbytes(26 * MIB))
    (folder / "code" / "inference.py").write_text("def model_fn(folder): ...\n")
    (folder / "naïve ☃.txt").write_text("any name")
    (folder / "empty").write_bytes(b"")
    (folder / "unique.txt").write_text(rig.unique("bundle"))  # so that no other test has published it
    return folder


def put(rig: Rig, bundle: artifact.Bundle, base: str = "") -> publish.Sent:
    return publish.publish(bundle, f"s3://{rig.bucket}/artifacts/{bundle.digest}/", base=base)


def test_a_bundle_goes_up_whole_and_comes_back_the_same(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    bundle = artifact.build(model)

    sent = put(rig, bundle)
    back = publish.fetch(sent.uri, tmp_path / "back")

    assert sent.bytes == bundle.manifest.size + len(bundle.manifest.to_json())
    assert artifact.verify(tmp_path / "back") == back.manifest == bundle.manifest
    assert (tmp_path / "back" / "w.safetensors").read_bytes() == (model / "w.safetensors").read_bytes()


def test_s3_itself_has_the_checksums_of_the_manifest(rig: Rig, wire: Wire, model: Path) -> None:
    bundle = artifact.build(model)
    uri = put(rig, bundle).uri

    content = bundle.manifest.files["w.safetensors"]
    of_parts = hashlib.sha256(b"".join(bytes.fromhex(c.sha256) for c in content.chunks)).digest()
    head = rig.client("s3").head_object(
        Bucket=rig.bucket, Key=aws.split(uri)[1] + "w.safetensors", ChecksumMode="ENABLED"
    )
    assert len(content.chunks) > 1
    assert head["ChecksumSHA256"].partition("-")[0] == base64.b64encode(of_parts).decode()


def test_what_is_there_is_not_sent_again(rig: Rig, wire: Wire, model: Path) -> None:
    bundle = artifact.build(model)
    put(rig, bundle)
    before = wire.sent

    assert put(rig, bundle).bytes == 0
    assert wire.sent - before < 4096  # one question


def test_changed_code_sends_the_code_alone(rig: Rig, wire: Wire, model: Path) -> None:
    old = put(rig, artifact.build(model))
    (model / "code" / "inference.py").write_text("def model_fn(folder): return 1\n")
    before = wire.sent

    sent = put(rig, artifact.build(model), base=old.uri)

    assert sent.bytes < 10_000
    assert sent.copied_bytes > 26 * MIB
    assert wire.sent - before < MIB


def test_one_changed_layer_sends_the_chunks_around_it_also_when_all_moved(
    rig: Rig, wire: Wire, model: Path, tmp_path: Path
) -> None:
    old = artifact.build(model)
    uri = put(rig, old).uri
    body = (model / "w.safetensors").read_bytes()
    (model / "w.safetensors").write_bytes(body[:1000] + b"a longer header" * 9 + body[1000:])

    bundle = artifact.build(model)
    sent = put(rig, bundle, base=uri)

    assert artifact.diff(old.manifest, bundle.manifest).new_bytes + 4096 > sent.bytes
    assert sent.bytes < 11 * MIB
    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest


def test_a_bundle_of_before_blake3_was_kept_is_fetched_and_built_on(
    rig: Rig, wire: Wire, model: Path, tmp_path: Path
) -> None:
    now = artifact.build(model)
    content = now.manifest.files["w.safetensors"]
    chunks = tuple(replace(chunk, blake3="") for chunk in content.chunks)
    files = {**now.manifest.files, "w.safetensors": replace(content, chunks=chunks)}
    earlier = replace(now, manifest=replace(now.manifest, files=files))
    old = put(rig, earlier)

    sent = put(rig, now, base=old.uri)

    assert sent.copied_bytes >= 26 * MIB
    assert sent.bytes == len(now.manifest.to_json())
    assert publish.fetch(old.uri, tmp_path / "old").digest == earlier.digest
    assert publish.fetch(sent.uri, tmp_path / "new").digest == now.digest


def test_a_broken_upload_goes_on_where_it_was(
    rig: Rig, wire: Wire, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = artifact.build(model)
    # One part after the other: the first has arrived when the second breaks.
    monkeypatch.setattr(publish, "_WORKERS", 1)
    wire.cut_after(15 * MIB)
    with pytest.raises(ServiceError, match="Publishing to"):
        put(rig, bundle)
    wire.mend()
    before = wire.sent

    sent = put(rig, bundle)

    assert sent.copied_bytes >= 8 * MIB  # at least one part had arrived
    assert wire.sent - before < 20 * MIB
    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest
    assert "Uploads" not in rig.client("s3").list_multipart_uploads(
        Bucket=rig.bucket, Prefix=f"artifacts/{bundle.digest}"
    )


def test_a_part_left_by_something_else_is_replaced(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    bundle = artifact.build(model)
    key = f"artifacts/{bundle.digest}/w.safetensors"
    s3 = rig.client("s3")
    upload = s3.create_multipart_upload(Bucket=rig.bucket, Key=key)["UploadId"]
    chunk = bundle.manifest.files["w.safetensors"].chunks[0]
    s3.upload_part(Bucket=rig.bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(chunk.size))

    sent = put(rig, bundle)

    assert sent.copied_bytes == 0
    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest


def test_a_base_that_is_gone_or_damaged_costs_an_upload_and_no_more(
    rig: Rig, wire: Wire, model: Path, tmp_path: Path
) -> None:
    old = put(rig, artifact.build(model))
    key = aws.split(old.uri)[1]
    rig.client("s3").put_object(Bucket=rig.bucket, Key=f"{key}w.safetensors", Body=b"damaged")
    rig.client("s3").delete_object(Bucket=rig.bucket, Key=f"{key}empty")
    (model / "code" / "inference.py").write_text("changed")
    bundle = artifact.build(model)

    sent = put(rig, bundle, base=old.uri)

    assert sent.bytes > 26 * MIB
    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest


def test_a_download_that_differs_is_not_kept(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    uri = put(rig, artifact.build(model)).uri
    key = aws.split(uri)[1] + "w.safetensors"
    body = bytearray((model / "w.safetensors").read_bytes())
    body[20 * MIB] ^= 1
    rig.client("s3").put_object(Bucket=rig.bucket, Key=key, Body=bytes(body))

    with pytest.raises(CorruptArtifact, match=r"w\.safetensors is not what its manifest says"):
        publish.fetch(uri, tmp_path / "back")

    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_file_that_changes_after_it_was_built_is_not_published(rig: Rig, wire: Wire, model: Path) -> None:
    bundle = artifact.build(model)
    os.truncate(model / "w.safetensors", 10)

    with pytest.raises(InvalidInput, match="changed after"):
        put(rig, bundle)

    with pytest.raises(NotFound):
        publish.fetch(f"s3://{rig.bucket}/artifacts/{bundle.digest}/", model.parent / "back")


def test_a_disk_that_fills_keeps_nothing_of_a_download(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    uri = put(rig, artifact.build(model)).uri
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(DiskFull, match="no room"):
            publish.fetch(uri, disk / "back")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_archive_is_fetched_and_verified_too(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    bundle = artifact.build(model, tmp_path / "model.tar.gz")
    uri = f"s3://{rig.bucket}/{bundle.digest}/model.tar.gz"
    with bundle.path.open("rb") as body:
        rig.client("s3").upload_fileobj(body, rig.bucket, f"{bundle.digest}/model.tar.gz")

    assert publish.fetch(uri, tmp_path / "back").manifest == bundle.manifest


@pytest.mark.parametrize("uri", ["s3://bucket/artifacts/x", "s3://no-such-bucket/artifacts/x/"])
def test_a_wrong_address_is_said_before_anything_is_sent(rig: Rig, wire: Wire, model: Path, uri: str) -> None:
    with pytest.raises((InvalidInput, NotFound)):
        publish.publish(artifact.build(model), uri)
