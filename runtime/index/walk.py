"""The walk over a synced folder: names as bytes, hidden files skipped, each folder visited once."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..data.tool_folders import is_hidden_tool_folder
from ..files import FileId, file_id
from ..formats import EXTENSIONS
from .layout import UPLOADS, is_index
from .patterns import RootFilters

__all__ = ["FileEntry", "Walk", "stable_mtime", "walk"]

_EVERYTHING = RootFilters()

_UPLOADS = os.fsencode(UPLOADS)
_EXTENSIONS = frozenset(extension.encode("ascii") for extension in EXTENSIONS)

# FAT has a resolution of two seconds, some network and older file systems of one. Elsewhere the
# kernel's clock ticks at least a hundred times a second.
_COARSE_TICK_NS = 2_000_000_000
_FINE_TICK_NS = 10_000_000
_SECOND_NS = 1_000_000_000


class FileEntry(NamedTuple):
    """A picture file: relative path, size in bytes, mtime; a tuple for speed."""

    path: bytes
    size: int
    mtime_ns: int


@dataclass
class Walk:
    """The content of a root.

    Attributes:
        files: those with a picture's extension, in no particular order.
        doubtful: those without an extension, or with one that only the filters name: their first
            bytes decide.
        unknown: number of the other files, by extension.
        left_out: number of pictures left out by filters, in folders that are not left out.
        left_out_folders: number of folders left out by filters.
        of_tools: number of tool folders among these, by name, that needed no filter.
        problems: (path relative to the root, reason) of entries that could not be inspected.
        unread: folders (relative) whose content is unknown for that reason.

    """

    files: list[FileEntry] = field(default_factory=list)
    doubtful: list[FileEntry] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    left_out_folders: int = 0
    of_tools: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[bytes, str]] = field(default_factory=list)
    unread: list[bytes] = field(default_factory=list)


def walk(root: bytes, skip: Collection[FileId] = (), filters: RootFilters = _EVERYTHING) -> Walk:
    """List the pictures under ``root``.

    Hidden files and folders are skipped. So are tool folders beside pictures, hidden or not, unless
    a filter names them (:mod:`..data.tool_folders`). Links to folders are followed. Each folder is
    visited once, however many links lead to it, so loops of links end. Real folders come before
    links, so that a picture has its real path. Uploads of an index inside the folder are skipped.

    Args:
        root: an existing folder.
        skip: folders not to enter (the index may lie among the pictures).
        filters: of the root.

    """
    result = Walk()
    seen: set[FileId] = set(skip)
    folders: list[bytes] = [b""]
    links: list[bytes] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            path = os.path.join(root, folder)  # noqa: PTH118 - bytes, which pathlib does not take
            identity = file_id(path)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(path) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(b".") or _is_of_a_tool(entry)]
        except OSError as error:
            result.problems.append((folder, f"the folder cannot be read ({error.strerror})"))
            result.unread.append(folder)
            continue
        for entry in visible:
            path = folder + b"/" + entry.name if folder else entry.name
            try:
                is_link = entry.is_symlink()
                if not entry.is_dir():
                    _look_at(entry, path, filters, result)
                elif not filters.enters(path):
                    result.left_out_folders += 1
                    if filters.is_of_a_tool(path):
                        result.of_tools[os.fsdecode(entry.name)] += 1
                elif not _is_of_an_index(root, folder, entry.name):
                    (links if is_link else folders).append(path)
            except OSError as error:
                result.problems.append((path, f"its size and mtime cannot be read ({error.strerror})"))
        links.sort(reverse=True)
    return result


def _is_of_a_tool(hidden: os.DirEntry[bytes]) -> bool:
    return is_hidden_tool_folder(os.fsdecode(hidden.name)) and hidden.is_dir()


def _is_of_an_index(root: bytes, folder: bytes, name: bytes) -> bool:
    """Tell whether a folder is the uploads folder of an index."""
    return name == _UPLOADS and is_index(Path(os.fsdecode(os.path.join(root, folder))))  # noqa: PTH118


def _look_at(entry: os.DirEntry[bytes], path: bytes, filters: RootFilters, result: Walk) -> None:
    extension = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    is_known = extension in _EXTENSIONS
    if not is_known and extension and not filters.names(extension):
        result.unknown[os.fsdecode(extension)] += 1
        return
    if filters and not filters.takes(path):
        if is_known:
            result.left_out += 1
        else:
            result.unknown[os.fsdecode(extension)] += 1
        return
    if not is_known:
        _look_at_doubtful(entry, path, extension, result)
        return
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode):
        result.problems.append((path, "it is not a regular file"))
        return
    result.files.append(FileEntry(path, status.st_size, status.st_mtime_ns))


def _look_at_doubtful(entry: os.DirEntry[bytes], path: bytes, extension: bytes, result: Walk) -> None:
    """Record a possible picture; an unreadable file counts as no picture."""
    with contextlib.suppress(OSError):
        status = entry.stat()
        if stat.S_ISREG(status.st_mode):
            result.doubtful.append(FileEntry(path, status.st_size, status.st_mtime_ns))
            return
    result.unknown[os.fsdecode(extension)] += 1


def stable_mtime(mtime_ns: int, now_ns: int) -> int:
    """Return the mtime to record for a file that is read now.

    It differs from the file's if the file could change again without a new mtime: the next sync
    then reads the file once more, and embeds it only if its content has changed. An mtime in full
    seconds may come from a coarse clock; any other comes from a fine one.

    Args:
        mtime_ns: of the file, before it is read.
        now_ns: taken before ``mtime_ns``.

    Returns:
        ``mtime_ns``, or a nanosecond less, which no such coarse clock gives.

    """
    tick = _FINE_TICK_NS if mtime_ns % _SECOND_NS else _COARSE_TICK_NS
    # An mtime far ahead is a wrong clock, not a recent change.
    return mtime_ns - 1 if abs(now_ns - mtime_ns) < tick else mtime_ns
