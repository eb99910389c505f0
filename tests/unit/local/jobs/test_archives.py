"""What archives of others may hold, and where it may lead."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass.errors import CorruptArtifact
from windlass.local.jobs import archives

Member = tuple[str, str, str]
"""Type ("file", "folder", "link", "hard", ...), name, and its content or where it leads."""

KINDS = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "hard": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}


def packed(path: Path, members: Sequence[Member]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for kind, name, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = KINDS[kind], 0o755 if kind == "folder" else 0o644
            if kind == "file":
                member.size = len(content.encode())
            else:
                member.linkname = content
            tar.addfile(member, io.BytesIO(content.encode()) if kind == "file" else None)
    return path


def tree(folder: Path) -> dict[str, str]:
    """Each path below a folder, and what it is."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        # what pip, npm and shared libraries are full of
        (
            [("file", "lib/lib.so.1", "so"), ("link", "lib/lib.so", "lib.so.1")],
            {"lib": "/", "lib/lib.so.1": "so", "lib/lib.so": "-> lib.so.1"},
        ),
        ([("link", "early", "late"), ("file", "late", "x")], {"early": "-> late", "late": "x"}),
        ([("file", "a", "x"), ("hard", "b/c", "a")], {"a": "x", "b": "/", "b/c": "x"}),
        ([("link", "a/up", "../b"), ("file", "b/c", "x")], {"a": "/", "a/up": "-> ../b", "b": "/", "b/c": "x"}),
        # through a link to a folder
        (
            [("folder", "lib64", ""), ("link", "lib", "lib64"), ("file", "lib/x", "x")],
            {"lib64": "/", "lib64/x": "x", "lib": "-> lib64"},
        ),
        # the same name again: the later one counts
        ([("file", "a", "1"), ("file", "a", "2")], {"a": "2"}),
        ([("file", "b", "1"), ("link", "a", "b"), ("file", "a", "2")], {"a": "2", "b": "1"}),
        ([("file", "b", "1"), ("file", "a", "2"), ("link", "a", "b")], {"a": "-> b", "b": "1"}),
        ([("file", "a", "1"), ("hard", "b", "a"), ("file", "b", "2")], {"a": "1", "b": "2"}),
        ([("link", "a", "b"), ("folder", "a", "")], {"a": "/"}),
        # links that lead nowhere harm nobody
        ([("link", "a", "nowhere")], {"a": "-> nowhere"}),
        ([("link", "a", "b"), ("link", "b", "a")], {"a": "-> b", "b": "-> a"}),
        ([("folder", ".", ""), ("file", "./a", "x"), ("file", "A", "y")], {"A": "y", "a": "x"}),
    ],
)
def test_links_that_stay_inside_are_made(tmp_path: Path, members: list[Member], expected: dict[str, str]) -> None:
    archives.extract(packed(tmp_path / "a.tar.gz", members), tmp_path / "out")
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("file", "../evil", "x")], "outside its folder"),
        ([("file", "a/../../evil", "x")], "outside its folder"),
        ([("file", "/evil", "x")], "outside its folder"),
        ([("link", "a", "/etc/passwd")], "absolute"),
        ([("link", "a", "../evil")], "leads outside"),
        ([("link", "a/b/c", "../../../evil")], "leads outside"),
        ([("hard", "a", "../evil")], "outside its folder"),
        ([("hard", "a", "/etc/passwd")], "outside its folder"),
        ([("hard", "a", "missing")], "no file before it"),
        # through another link, one that stays inside
        ([("folder", "d/e", ""), ("link", "in", "d/e"), ("link", "a", "in/../../../evil")], "leads outside"),
        ([("link", "up", ".."), ("file", "up/evil", "x")], "leads outside"),
        ([("link", "x/up", ".."), ("link", "a", "x/up/../evil")], "leads outside"),
        # a chain, whose last link leaves
        ([("link", "a", "b"), ("link", "b", "c"), ("link", "c", "../evil")], "leads outside"),
        # looked harmless, until what it leads through was replaced
        (
            [("folder", "d/e", ""), ("link", "x", "d/e"), ("link", "a", "x/../../f"), ("link", "x", "d")],
            "leads outside",
        ),
        # moved up, where it leads elsewhere
        ([("folder", "d", ""), ("link", "d/a", "../b"), ("hard", "a", "d/a")], "leads outside"),
        ([("link", "a", "b"), ("link", "b", "a"), ("file", "a/x", "x")], "links that lead to each other"),
        ([("file", "a", "x"), ("file", "a/b", "x")], "no folder"),
        ([("file", "a/b", "x"), ("link", "a", "c")], "twice, once as a folder"),
        ([("file", "a/b", "x"), ("file", "a", "x")], "twice, once as a folder"),
        ([("fifo", "a", "")], "device"),
        ([("device", "a", "")], "device"),
        ([("file", "n" * 300, "x")], "too long"),
        ([("link", "a", "n/" * 3000)], "too long"),
        ([("file", "n" * (9 << 20), "x")], "header of"),
    ],
)
def test_what_leads_outside_is_refused(tmp_path: Path, members: list[Member], said: str) -> None:
    inside = tmp_path / "inside"
    archive = packed(tmp_path / "a.tar.gz", [("file", "before", "x"), *members])
    with pytest.raises(CorruptArtifact, match=said):
        archives.extract(archive, inside / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name != "inside"] == ["a.tar.gz"]
    assert not inside.exists() or tree(inside) == {}


def test_bombs_and_ruins_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.tar.gz"
    with tarfile.open(bomb, "w:gz") as tar:
        member = tarfile.TarInfo("zeros")
        member.size = 200 << 20
        with Path("/dev/zero").open("rb") as zeros:
            tar.addfile(member, zeros)
    with pytest.raises(CorruptArtifact, match="unpack to more than"):
        archives.extract(bomb, tmp_path / "out")
    whole = packed(tmp_path / "a.tar.gz", [("file", "a", os.urandom(1000).hex())]).read_bytes()
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the checksum of gzip
    for ruin in (whole[:-20], whole[: len(whole) // 2], bytes(flipped), b"", b"no archive"):
        (tmp_path / "ruin.tar.gz").write_bytes(ruin)
        with pytest.raises(CorruptArtifact, match=r"not a tar\.gz|damaged"):
            archives.extract(tmp_path / "ruin.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
TARGETS = st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=4).map("/".join)
MEMBERS = st.one_of(
    st.tuples(st.just("file"), NAMES, st.sampled_from("xyz")),
    st.tuples(st.just("folder"), NAMES, st.just("")),
    st.tuples(st.just("link"), NAMES, TARGETS),
    st.tuples(st.just("hard"), NAMES, NAMES),
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(MEMBERS, min_size=1, max_size=7))
def test_it_is_as_tar_does_it_or_refused_and_nothing_outside_is_touched(members: list[Member]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive, ours, theirs = packed(folder / "a.tar.gz", members), folder / "ours/1/2/3", folder / "theirs/1/2/3"
        theirs.mkdir(parents=True)
        refused: Any = None
        try:
            archives.extract(archive, ours)
        except CorruptArtifact as error:
            refused = error
        assert {path.name for path in folder.iterdir()} <= {"a.tar.gz", "ours", "theirs"}
        assert {path for path in tree(folder / "ours") if not path.startswith("1/2/3")} <= {"1", "1/2"}
        if refused:
            assert not ours.exists()
            return
        root = os.path.realpath(ours)
        for path in ours.rglob("*"):
            assert os.path.commonpath((root, os.path.realpath(path))) == root
        tar = shutil.which("tar")
        # GNU tar makes links that go up last, and in the place of what has come meanwhile: the table above has those.
        if tar is None or any("." in content for _, _, content in members):
            return
        done = subprocess.run([tar, "-xzf", archive, "-C", theirs], capture_output=True, check=False)
        if done.returncode == 0:
            assert tree(ours) == tree(theirs)
