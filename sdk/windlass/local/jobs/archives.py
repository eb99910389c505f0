"""Archives that jobs and models bring along, unpacked as `tar` in a container does, and never outside of their folder.

    archives.extract(Path("source.tar.gz"), folder)

A bundle of ours (`windlass.artifact`) holds plain files only. What others pack may hold links, and those that stay inside
are welcome here. None of them is made before everything else is written, so nothing is ever written through one: where a
member lies behind a link, it is looked up where that leads.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from windlass.artifact import whole
from windlass.artifact.archive import MAX_BYTES, MAX_FILES, MAX_RATIO
from windlass.errors import CorruptArtifact

_RATIO_FREE = 64 << 20  # small archives of zeros are harmless
_BUFFER = 1 << 20
_LARGEST_READ = 8 << 20
_MOST_LINKS = 40  # that Linux follows on one path (path_resolution(7))

Place = tuple[str, ...]
"""Where something lies below the folder, behind no link."""


def extract(packed: Path, dest: Path) -> None:
    """Unpack a ``tar.gz`` or ``tar`` into ``dest`` (absent or empty), whole or not at all.

    Raises:
        CorruptArtifact: truncated or damaged; a path or a link that leads out of the folder or is absolute; a device; or a
            bomb. ``dest`` is then as it was.
        DiskFull: no room for it; ``dest`` is then as it was.
    """
    with whole.folder(dest, f"Unpacking {packed.name}") as scratch:
        _Unpacking(packed, scratch).run()


class _Loop(Exception):
    """Links that lead to each other."""


class _Bounded(io.RawIOBase):
    """A stream that is read in small portions only: tarfile takes a header of any size, of a long name, into memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)


class _Unpacking:
    """One archive on its way into an empty folder."""

    def __init__(self, packed: Path, root: Path) -> None:
        self._packed, self._size, self._root = packed, packed.stat().st_size, root
        self._links: dict[Place, str] = {}
        self._written = self._members = 0

    def run(self) -> None:
        with self._opened() as stream:
            try:
                with tarfile.open(fileobj=_Bounded(stream), mode="r:") as tar:
                    for member in tar:
                        self._count(member.size if member.isreg() else 0, members=1)
                        self._add(tar, member)
                # What follows the end of the archive is checksummed like the rest of it, and must not be a bomb.
                for count in iter(lambda: len(stream.read(_BUFFER)), 0):
                    self._count(count)
                self._make_links()
            except (tarfile.TarError, EOFError, zlib.error, ValueError, gzip.BadGzipFile) as error:
                none = isinstance(error, tarfile.ReadError | gzip.BadGzipFile) and not self._members
                raise self._refusal("not a tar.gz" if none else f"truncated or damaged ({error})") from error
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise  # the disk's own complaint
                raise self._refusal(f"a name is too long: {str(error.filename)[-80:]!r}") from error

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with self._packed.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                yield file
                return
            with gzip.open(file) as stream:
                yield stream  # type: ignore[misc]

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise self._refusal(f"{member.name!r} would be written outside its folder")
        if not path.parts:
            return  # the folder itself
        try:
            place = (*self._follow((), path.parent), path.name)
            if member.isdir():
                self._make_room(place, folder=True)
                self._path(place).mkdir(parents=True, exist_ok=True)
            elif member.issym():
                self._add_link(place, member)
            elif member.islnk():
                self._add_second_name(place, member)
            elif member.isreg():
                self._make_room(place)
                self._write(tar, member, self._path(place))
            else:
                raise self._refusal(f"{member.name!r} is a device", hint="Pack files, folders and links only.")
        except _Loop:
            raise self._refusal(f"{member.name!r} lies behind links that lead to each other") from None
        except (FileExistsError, NotADirectoryError) as error:
            raise self._refusal(f"{member.name!r} lies below something that is no folder") from error

    def _add_link(self, place: Place, member: tarfile.TarInfo) -> None:
        if PurePosixPath(member.linkname).is_absolute():
            raise self._refusal(f"{member.name!r} is a link to the absolute path {member.linkname!r}")
        self._make_room(place)
        self._path(place[:-1]).mkdir(parents=True, exist_ok=True)
        self._links[place] = member.linkname

    def _add_second_name(self, place: Place, member: tarfile.TarInfo) -> None:
        """A hard link: of a file, or of a link."""
        of = PurePosixPath(member.linkname)
        if of.is_absolute() or ".." in of.parts:
            raise self._refusal(f"{member.name!r} is a link to {member.linkname!r}, outside its folder")
        source = (*self._follow((), of.parent), of.name)
        if source == place:
            return
        if source in self._links:
            self._make_room(place)
            self._path(place[:-1]).mkdir(parents=True, exist_ok=True)
            self._links[place] = self._links[source]
            return
        if not self._path(source).is_file():
            raise self._refusal(f"{member.name!r} is a link to {member.linkname!r}, which is no file before it")
        self._make_room(place)
        self._path(place).parent.mkdir(parents=True, exist_ok=True)
        self._path(place).hardlink_to(self._path(source))

    def _make_room(self, place: Place, *, folder: bool = False) -> None:
        """What is in the place of a member goes, as `tar` does it; but no folder with what is in it."""
        path = self._path(place)
        if self._links.pop(place, None) is not None:
            return
        if path.is_dir():
            if not folder:
                raise self._refusal(f"{'/'.join(place)!r} is in it twice, once as a folder")
        else:
            path.unlink(missing_ok=True)

    def _follow(self, start: Place, path: PurePosixPath) -> Place:
        """Where a path leads. Raises _Loop, and CorruptArtifact if that is outside."""
        at, todo, followed = list(start), list(reversed(path.parts)), 0
        while todo:
            part = todo.pop()
            if part == "..":
                if not at:
                    raise self._refusal(f"{'/'.join((*start, str(path)))!r} leads outside its folder")
                at.pop()
                continue
            at.append(part)
            if (target := self._links.get(tuple(at))) is not None:
                followed += 1
                if followed > _MOST_LINKS:
                    raise _Loop
                at.pop()
                todo += reversed(PurePosixPath(target).parts)
        return tuple(at)

    def _write(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = tar.extractfile(member)
        assert content is not None  # it is None of other members than files
        with content, path.open("xb") as out:
            shutil.copyfileobj(content, out, _BUFFER)
            if out.tell() < member.size:
                raise self._refusal(f"{member.name!r} ends after {out.tell()} of {member.size} bytes")
        path.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)

    def _make_links(self) -> None:
        """Those that are left, each of which must stay inside; once as the archive has it, once as the system sees it."""
        for place, target in self._links.items():
            try:
                self._follow(place[:-1], PurePosixPath(target))
            except _Loop:
                continue  # it leads nowhere, in a container neither
        for place, target in self._links.items():
            self._path(place).symlink_to(target)
        root = os.path.realpath(self._root)
        for place in self._links:
            # Where names are not what they seem: on a disk that takes A for a.
            if os.path.commonpath((root, os.path.realpath(self._path(place)))) != root:
                raise self._refusal(f"{'/'.join(place)!r} leads outside its folder")

    def _path(self, place: Place) -> Path:
        return self._root.joinpath(*place)

    def _count(self, size: int, members: int = 0) -> None:
        self._written, self._members = self._written + size, self._members + members
        bomb = self._written > _RATIO_FREE and self._written > self._size * MAX_RATIO
        if self._written > MAX_BYTES or self._members > MAX_FILES or bomb:
            raise self._refusal(
                f"{self._size} bytes unpack to more than {self._written} bytes in {self._members} files"
            )

    def _refusal(
        self, why: str, hint: str = "Pack it again, with what lies inside of the folder only."
    ) -> CorruptArtifact:
        return CorruptArtifact(why, where=f"Unpacking {self._packed.name}", hint=hint)
