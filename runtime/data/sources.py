"""Labelled pictures, and their source: a folder or a zip, listed once and read in place."""

from __future__ import annotations

import contextlib
import functools
import io
import operator
import os
import struct
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from ..devices import ByteBudget
from ..errors import DataError, PictureError
from ..files import FileId, file_id, open_regular, regular_status
from ..formats import EXTENSIONS, HEAD_BYTES, format_of
from ..text import display_path, first_line, printable
from .tool_folders import is_in_tool_folder

__all__ = ["FolderSource", "Layout", "Reading", "Sample", "Source", "ZipSource", "folders_below", "pictures_of"]

_MIB = 1024 * 1024
# Limits for pictures from zips, held in memory while decoded: one, and all threads' together.
_MAX_MEMBER_BYTES = 512 * _MIB
_HELD = ByteBudget(_MAX_MEMBER_BYTES)
_MAX_TEXT_BYTES = 64 * _MIB
# Limit for a zip's directory; Python keeps several copies. A million members take about 100 MB.
_MAX_DIRECTORY_BYTES = 256 * _MIB
_LOCAL_HEADER_BYTES = 30
# The directory's end record, before a comment; a full field refers to a 64-bit record before it.
_END = struct.Struct("<4s4H2LH")
_MAX_COMMENT_BYTES = 65535
# The largest ratio that deflate allows. Other methods have no such bound.
_MAX_DEFLATE_RATIO = 1032
# Methods that inflate only the requested bytes. Others inflate up to a block for a small read.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SMALL_READ, _BLOCK_BYTES = 4096, 128 * _MIB


@dataclass(frozen=True)
class Sample:
    """One labelled picture; ``path`` (posix, relative to the data set) is its identity.

    ``size`` in bytes; ``crc``: the crc32 of its bytes, if known without reading them; ``streamer``:
    opens the file for one sequential read, where ``opener`` would hold it in memory.
    """

    path: str
    label: str
    size: int = field(compare=False)
    opener: Callable[[], IO[bytes]] = field(repr=False, compare=False)
    crc: int | None = field(default=None, repr=False, compare=False)
    streamer: Callable[[], IO[bytes]] | None = field(default=None, repr=False, compare=False)

    def open(self) -> IO[bytes]:
        """Return the file, at its start, for :func:`~..images.load_picture`; the caller closes it.

        Raises:
            PictureError: the file is missing or unreadable.

        """
        try:
            return self.opener()
        except OSError as error:
            raise PictureError(
                f"{display_path(self.path)} cannot be read ({error.strerror or error}).", kind="unreadable"
            ) from None

    def stream(self) -> IO[bytes]:
        """Return the file for one sequential read in blocks; the caller closes it.

        A damaged zip may raise any exception here or during reading: the decompressors' errors have
        no common base.
        """
        return self.opener() if self.streamer is None else self.streamer()

    def read(self) -> bytes:
        """Return the bytes of the file."""
        with self.open() as file:
            return file.read()


class Source(Protocol):
    """A tree of files, by posix paths relative to its top; ``path`` is the folder or the zip."""

    path: Path
    files: tuple[str, ...]

    def sample(self, path: str, label: str) -> Sample:
        """Return the picture at ``path`` under ``label``; OSError if it is missing."""

    def text(self, path: str) -> bytes:
        """Return the bytes of a small text file."""

    def head(self, path: str, count: int) -> bytes:
        """Return the first bytes of a file; empty if it is unreadable."""


def _bounded(data: bytes, path: str) -> bytes:
    if len(data) > _MAX_TEXT_BYTES:
        raise DataError(f"{printable(path)} has more than {_MAX_TEXT_BYTES:,} bytes; expected a short text file.")
    return data


class FolderSource:
    """The files below a folder, without hidden files and tool folders (``@eaDir``), as in a sync.

    Links to folders are not followed twice.
    """

    def __init__(self, root: Path, listed: tuple[str, ...] | None = None) -> None:
        self.path = root
        self.files = tuple(sorted(_walk(root))) if listed is None else listed

    def sample(self, path: str, label: str) -> Sample:
        """Return the picture; OSError if it is missing."""
        full = self.path / path
        status = regular_status(full, follow_links=True)
        return Sample(path, label, status.st_size, functools.partial(open_regular, full, follow_links=True))

    def text(self, path: str) -> bytes:
        """Return the bytes of a small text file."""
        with open_regular(self.path / path, follow_links=True) as file:
            return _bounded(file.read(_MAX_TEXT_BYTES + 1), path)

    def head(self, path: str, count: int) -> bytes:
        """Return the first bytes of a file; empty if it is unreadable."""
        try:
            with open_regular(self.path / path, follow_links=True) as file:
                return file.read(count)
        except OSError:
            return b""


def _walk(root: Path) -> Iterable[str]:
    seen: set[FileId] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        identity = file_id(folder)
        if identity in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        if is_in_tool_folder(f"{relative}/"):
            subfolders.clear()
            continue
        for name in names:
            if not name.startswith(".") and (Path(folder) / name).is_file():
                yield str(relative / name)


class ZipSource:
    """The files of a zip, read in place; no name from the zip is ever written to."""

    def __init__(self, path: Path) -> None:
        try:
            _check_directory_size(path)
            self._zip = zipfile.ZipFile(path)
            _check_overlaps(self._zip.infolist())
        except Exception as error:  # zipfile raises nearly anything on damaged files: struct.error, ValueError, ...
            raise DataError(
                f"{display_path(path)} is not a zip that can be read ({error}); download or pack it again."
            ) from None
        self.path = path
        members = [info for info in self._zip.infolist() if _is_file(info.filename)]
        self.top = _common_top([info.filename for info in members])
        self._members: Mapping[str, zipfile.ZipInfo] = {info.filename.removeprefix(self.top): info for info in members}
        self.files = tuple(sorted(self._members))

    def sample(self, path: str, label: str) -> Sample:
        """Return the picture; OSError if it is missing."""
        if path not in self._members:
            raise FileNotFoundError(path)
        info = self._members[path]
        opener, streamer = functools.partial(self._open, path), functools.partial(self._zip.open, info)
        return Sample(path, label, info.file_size, opener, info.CRC, streamer)

    def text(self, path: str) -> bytes:
        """Return the bytes of a small text file."""
        try:
            with self._open(path) as file:
                return _bounded(file.read(_MAX_TEXT_BYTES + 1), path)
        except OSError as error:
            raise DataError(f"{display_path(self.path)}: {error}; download or pack it again.") from None

    def head(self, path: str, count: int) -> bytes:
        """Return the first bytes of a file; empty if it is unreadable."""
        try:
            with self._zip.open(self._members[path]) as file:
                return file.read(count)
        except Exception:  # the decompressors' errors have no common base
            return b""

    def _open(self, path: str) -> IO[bytes]:
        """Return a member, held in memory until closed; waits while others fill the budget."""
        info = self._members[path]
        if info.file_size > _MAX_MEMBER_BYTES:
            raise OSError(f"{printable(path)} unpacks to {info.file_size:,} bytes, more than {_MAX_MEMBER_BYTES:,}")
        if info.compress_type == zipfile.ZIP_DEFLATED and info.file_size > _MAX_DEFLATE_RATIO * (
            info.compress_size + 1
        ):
            raise OSError(f"damaged zip member ({info.compress_size:,} bytes cannot unpack to {info.file_size:,})")
        with contextlib.ExitStack() as stack:
            deflated = info.compress_type in _BOUNDED
            stack.enter_context(_HELD.reserve(info.file_size if deflated else info.file_size + _BLOCK_BYTES))
            content, fault = b"", ""
            try:
                with self._zip.open(info) as member:
                    content = _announced(member, info)
            except Exception as error:  # the decompressors' errors have no common base
                fault = first_line(error)
            if not fault and len(content) < info.file_size:
                fault = f"it has {len(content):,} bytes, not {info.file_size:,}"
            if not fault:
                return _Member(content, path, stack.pop_all())
        # Kept errors keep their frames alive; these must not hold the member.
        del content
        raise OSError(f"damaged zip member ({fault})")


def _announced(member: IO[bytes], info: zipfile.ZipInfo) -> bytes:
    """Read a member up to its size in the directory, and check its checksum.

    Without a size, zipfile inflates everything; for bzip2 and LZMA, the entire input read so far.
    """
    if info.compress_type in _BOUNDED:
        content = member.read(info.file_size)
    else:
        content = b"".join(iter(lambda: member.read(_SMALL_READ), b""))
    member.read(1)  # the checksum is compared at the end
    return content


class _Member(io.BytesIO):
    """A member of a zip in memory; closing it frees its share of the budget."""

    def __init__(self, content: bytes, name: str, place: contextlib.ExitStack) -> None:
        super().__init__(content)
        self.name = name
        self._place = place

    def close(self) -> None:
        super().close()
        self._place.close()


def _is_file(name: str) -> bool:
    """Tell whether a member is a visible file; some have no name."""
    return bool(name) and not name.endswith("/") and not _is_hidden(name)


def _check_directory_size(path: Path) -> None:
    """Refuse a directory of members that would take too much memory; zipfile checks its validity.

    Raises:
        ValueError: too large.

    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END.size - _MAX_COMMENT_BYTES))
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) < at + _END.size:
            return
        length = _END.unpack_from(tail, at)[5]
        if length == 0xFFFFFFFF and tail[at - 20 : at - 16] == b"PK\6\7":
            file.seek(max(0, size - len(tail) + at - 20 - 56))
            length = struct.unpack("<Q", file.read(48)[40:])[0]
    if min(length, size) > _MAX_DIRECTORY_BYTES:
        raise ValueError(f"its directory has {length:,} bytes, more than {_MAX_DIRECTORY_BYTES:,}")


def _check_overlaps(members: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse overlapping members, which unpack the same few bytes again and again.

    Raises:
        ValueError: they overlap.

    """
    end, last = 0, ""
    for info in sorted(members, key=operator.attrgetter("header_offset")):
        if info.header_offset < end:
            raise ValueError(f"its members {printable(last)} and {printable(info.filename)} overlap")
        end, last = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size, info.filename


def _common_top(names: list[str]) -> str:
    """Return the folder that wraps everything: paths match those of the unpacked folder."""
    tops = {name.split("/", 1)[0] for name in names}
    if len(tops) != 1 or not any(name.count("/") > 1 for name in names):
        return ""
    return tops.pop() + "/"


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") for part in parts) or is_in_tool_folder(name)


@dataclass(frozen=True)
class Reading:
    """How DATA was read.

    ``labels``: ``top``, ``leaf`` or ``path`` (folders), or the name of the label table; ``root``:
    the data set's folder in DATA, ending in ``/``, empty for DATA itself; ``val_held_out``: val is
    part of train, because DATA has none; ``unlabelled``: number of pictures without a label by
    split, ``""`` if unknown; ``merged``: labels shared by folders with different parents
    (``leaf``); ``other_readings``: number of classes by other rules; ``warnings``: sentences.
    """

    labels: str = "top"
    root: str = ""
    val_held_out: bool = False
    unlabelled: Mapping[str, int] = field(default_factory=dict)
    merged: tuple[str, ...] = ()
    other_readings: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The labelled pictures of DATA by split, and how they were read.

    ``queries``, ``gallery``: paths marked so in a label table; ``packed_in``: the folder that wraps
    all of a zip, ending in ``/``; paths leave it out.
    """

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    reading: Reading
    names: Mapping[str, str] = field(default_factory=dict)
    skipped: int = 0
    queries: frozenset[str] = frozenset()
    gallery: frozenset[str] = frozenset()
    packed_in: str = ""


def pictures_of(source: Source) -> list[str]:
    """Return the picture paths of a tree: by extension, or by first bytes if there is none."""
    return [path for path in source.files if _is_picture(source, path, PurePosixPath(path).suffix.lower())]


def _is_picture(source: Source, path: str, extension: str) -> bool:
    return extension in EXTENSIONS or (not extension and format_of(source.head(path, HEAD_BYTES)) is not None)


def folders_below(pictures: Iterable[str], prefix: str) -> dict[str, set[str]]:
    """Return the folders below ``prefix`` that contain pictures, each with its own such folders."""
    folders: dict[str, set[str]] = defaultdict(set)
    for path in pictures:
        parts = path[len(prefix) :].split("/", 2) if path.startswith(prefix) else []
        if len(parts) > 1:
            folders[parts[0]].update(parts[1:-1])
    return dict(sorted(folders.items()))
