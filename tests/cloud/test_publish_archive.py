"""Archives to S3 while they are written: what travels, what does not, and what happens when the line or the program breaks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from benchmarks.wire import Wire
from tests.cloud.conftest import Rig
from windlass import artifact, aws, multipart, publish, publish_archive
from windlass.errors import CorruptArtifact, InvalidInput, ServiceError

MIB = 1 << 20


@pytest.fixture
def model(rig: Rig, tmp_path: Path) -> Path:
    """40 MiB in two shards, so that parts end in the middle of files and between them; and code."""
    folder = tmp_path / "model"
    (folder / "code").mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(random.Random(0).randbytes(27 * MIB))
    (folder / "b.safetensors").write_bytes(random.Random(1).randbytes(13 * MIB))
    (folder / "code" / "inference.py").write_text("def model_fn(folder): ...\n" * 1000)
    (folder / "unique.txt").write_text(rig.unique("bundle"))  # so that no other test has published it
    return folder


@pytest.fixture
def hook(rig: Rig, wire: Wire) -> Iterator[Callable[[str, Callable[..., Any]], None]]:
    """Registers what happens before a request of the SDK leaves; is taken away at the end."""
    events, registered = aws.client("s3").meta.events, []

    def register(event: str, handler: Callable[..., Any]) -> None:
        events.register(event, handler)
        registered.append((event, handler))

    yield register
    for event, handler in registered:
        events.unregister(event, handler)


def address(rig: Rig, bundle: artifact.Bundle) -> str:
    return f"s3://{rig.bucket}/artifacts/{bundle.digest}-archive/model.tar.gz"


def put(rig: Rig, bundle: artifact.Bundle, base: str = "") -> publish.Sent:
    return publish.publish(bundle, address(rig, bundle), base=base)


def stored(rig: Rig, uri: str) -> bytes:
    bucket, key = aws.split(uri)
    body: bytes = rig.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


def unfinished(rig: Rig, bundle: artifact.Bundle) -> list[Any]:
    prefix = aws.split(address(rig, bundle))[1]
    found: list[Any] = rig.client("s3").list_multipart_uploads(Bucket=rig.bucket, Prefix=prefix).get("Uploads", [])
    return found


def test_what_arrives_is_what_build_writes(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    bundle = artifact.build(model)

    sent = put(rig, bundle)

    body = stored(rig, sent.uri)
    assert body == artifact.build(model, tmp_path / "model.tar.gz").path.read_bytes()
    assert sent.bytes >= len(body)
    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest
    assert unfinished(rig, bundle) == []


def test_a_small_archive_is_one_request(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        os.truncate(model / name, 1000)
    bundle = artifact.build(model)

    sent = put(rig, bundle)

    assert sent.bytes < MIB
    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest


def test_what_is_there_is_not_sent_again(rig: Rig, wire: Wire, model: Path) -> None:
    bundle = artifact.build(model)
    put(rig, bundle)
    before = wire.sent

    assert put(rig, bundle).bytes == 0
    assert wire.sent - before < 4096  # two questions


def test_changed_code_sends_the_small_files_alone(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    old = put(rig, artifact.build(model))
    (model / "code" / "inference.py").write_text("def model_fn(folder): return 1\n")
    bundle, before = artifact.build(model), wire.sent

    sent = put(rig, bundle, base=old.uri)

    assert wire.sent - before < MIB
    assert sent.copied_bytes > 40 * MIB
    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest


def test_one_changed_layer_sends_the_parts_around_it(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    old = put(rig, artifact.build(model))
    with (model / "a.safetensors").open("r+b") as file:
        file.seek(12 * MIB)
        file.write(b"retrained" * 100)
    (model / "b.safetensors").write_bytes(b"a longer header" + (model / "b.safetensors").read_bytes())
    bundle = artifact.build(model)

    sent = put(rig, bundle, base=old.uri)

    assert sent.bytes < (8 + 14) * MIB  # a part of the first shard, and the second
    assert sent.copied_bytes >= 19 * MIB
    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest


def test_a_list_of_parts_that_is_not_the_archive_s_is_not_believed(
    rig: Rig, wire: Wire, model: Path, tmp_path: Path
) -> None:
    old = put(rig, artifact.build(model))
    bucket, key = aws.split(old.uri)
    lie = b'[[8388608, "' + b"0" * 64 + b'"]]'
    rig.client("s3").put_object(Bucket=bucket, Key=f"{key.rpartition('/')[0]}/parts.json", Body=lie)
    (model / "code" / "inference.py").write_text("changed")
    bundle = artifact.build(model)

    sent = put(rig, bundle, base=old.uri)

    assert sent.copied_bytes == 0
    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest


# ---------------------------------------------------------------------------------------------------------------- bad lines


@pytest.mark.parametrize("cut", [1 * MIB, 14 * MIB, 33 * MIB])
def test_a_broken_line_costs_what_was_under_way(
    rig: Rig, wire: Wire, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    bundle = artifact.build(model)
    monkeypatch.setattr(publish_archive, "_IN_FLIGHT", 1)  # one part after the other
    wire.cut_after(cut)
    with pytest.raises(ServiceError, match="Publishing to"):
        put(rig, bundle)
    wire.mend()
    before = wire.sent

    sent = put(rig, bundle)

    assert wire.sent - before < 40 * MIB - cut + 16 * MIB
    assert (sent.copied_bytes > 0) == (cut > 10 * MIB)
    assert stored(rig, sent.uri) == artifact.build(model, tmp_path / "model.tar.gz").path.read_bytes()
    assert unfinished(rig, bundle) == []


def test_a_killed_program_is_gone_on_with(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    bundle = artifact.build(model)
    code = (
        "import sys\nfrom windlass import artifact, publish\n"
        "publish.publish(artifact.build(sys.argv[1]), sys.argv[2])\nprint('done')"
    )
    late = wire.passed(25 * MIB)
    command = [sys.executable, "-c", code, str(model), address(rig, bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert late.wait(60)
        child.send_signal(signal.SIGKILL)
        assert child.communicate()[0] == b""

    sent = put(rig, bundle)

    assert sent.copied_bytes >= 5 * MIB
    assert stored(rig, sent.uri) == artifact.build(model, tmp_path / "model.tar.gz").path.read_bytes()


def refusal(request: Any, status: int, code: str) -> AWSResponse:
    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
    return AWSResponse(request.url, status, {}, SimpleNamespace(stream=lambda **_: iter([body])))


def test_who_may_not_list_uploads_begins_anew(
    rig: Rig, wire: Wire, model: Path, tmp_path: Path, hook: Callable[[str, Callable[..., Any]], None]
) -> None:
    hook("before-send.s3.ListMultipartUploads", lambda request, **_: refusal(request, 403, "AccessDenied"))
    bundle = artifact.build(model)

    sent = put(rig, bundle)

    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest


def test_an_overloaded_s3_is_asked_again(
    rig: Rig, wire: Wire, model: Path, tmp_path: Path, hook: Callable[[str, Callable[..., Any]], None]
) -> None:
    refused: list[str] = []

    def slow_down(request: Any, **_: Any) -> AWSResponse | None:
        if len(refused) >= 2:
            return None
        refused.append(request.url)
        return refusal(request, 503, "SlowDown")

    hook("before-send.s3.UploadPart", slow_down)
    bundle = artifact.build(model)

    sent = put(rig, bundle)

    assert len(refused) == 2
    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest


def test_what_the_line_damages_is_refused_and_given_up(
    rig: Rig, wire: Wire, model: Path, hook: Callable[[str, Callable[..., Any]], None]
) -> None:
    def damage(request: Any, **_: Any) -> None:
        if "partNumber=2" in request.url:
            body = request.body.read()
            request.body = bytes([body[0] ^ 1]) + body[1:]

    hook("before-send.s3.UploadPart", damage)
    bundle = artifact.build(model)

    with pytest.raises(InvalidInput, match="not what it was"):
        put(rig, bundle)

    assert unfinished(rig, bundle) == []
    assert not aws.exists(address(rig, bundle))


@pytest.mark.parametrize("spoil", ["same size", "shorter", "gone"])
def test_a_file_that_changes_meanwhile_is_not_published(rig: Rig, wire: Wire, model: Path, spoil: str) -> None:
    bundle = artifact.build(model)
    if spoil == "same size":
        (model / "b.safetensors").write_bytes(bytes(13 * MIB))
    elif spoil == "shorter":
        os.truncate(model / "b.safetensors", 10 * MIB)
    else:
        (model / "b.safetensors").unlink()

    with pytest.raises(CorruptArtifact, match=r"b\.safetensors (has changed|is gone)"):
        put(rig, bundle)

    assert unfinished(rig, bundle) == []
    assert not aws.exists(address(rig, bundle))


def test_two_who_publish_the_same_at_once_both_succeed(rig: Rig, wire: Wire, model: Path, tmp_path: Path) -> None:
    bundle = artifact.build(model)

    with ThreadPoolExecutor(3) as pool:
        sent = [future.result() for future in [pool.submit(put, rig, bundle) for _ in range(3)]]

    assert publish.fetch(sent[0].uri, tmp_path / "back").manifest == bundle.manifest
    assert publish.fetch(sent[0].uri, tmp_path / "again").manifest == bundle.manifest


def test_an_upload_that_somebody_else_ends_is_begun_anew(
    rig: Rig, wire: Wire, model: Path, tmp_path: Path, hook: Callable[[str, Callable[..., Any]], None]
) -> None:
    bundle = artifact.build(model)
    bucket, key = aws.split(address(rig, bundle))
    s3 = rig.client("s3")
    theirs = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]

    s3.upload_part(Bucket=bucket, Key=key, UploadId=theirs, PartNumber=1, Body=bytes(8 * MIB))

    def end_theirs(**_: Any) -> None:
        if [upload["UploadId"] for upload in unfinished(rig, bundle)] == [theirs]:
            s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=theirs)

    hook("before-send.s3.UploadPart", end_theirs)

    sent = put(rig, bundle)

    assert publish.fetch(sent.uri, tmp_path / "back").manifest == bundle.manifest


# ---------------------------------------------------------------------------------------------------------------- S3's limits


@pytest.mark.parametrize("size", [1, 8 * MIB, 64 << 30, 1 << 40, 10 << 40])
def test_parts_are_as_many_and_as_large_as_s3_takes(size: int) -> None:
    content = artifact.Content(size, "0" * 64)
    bundle = artifact.Bundle(Path(), artifact.Manifest({"w.safetensors": content}), {})

    part = publish_archive._part_size(bundle)
    least = part * multipart.PART_LEAST // publish_archive._PART

    assert least >= multipart.PART_LEAST
    assert part + least <= 5 << 30
    assert size * 1.01 / least <= 10_000
