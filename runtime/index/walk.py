"""Finding the pictures under a folder: names as bytes, hidden ones skipped, each folder visited once."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ..images import EXTENSIONS

__all__ = ["Found", "Walk", "folder_identity", "walk"]

_EXTENSIONS = frozenset(extension.encode("ascii") for extension in EXTENSIONS)

Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Found:
    """A picture file: path relative to the root, size in bytes, time of change."""

    path: bytes
    size: int
    mtime_ns: int


@dataclass
class Walk:
    """What lies under a root.

    Attributes:
        files: those whose extension is a picture's, in no particular order.
        unknown: number of the other files, by extension.
        problems: (path relative to the root, reason) of what could not be looked at.
        unread: folders (relative) whose content is not known for that reason.

    """

    files: list[Found] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[bytes, str]] = field(default_factory=list)
    unread: list[bytes] = field(default_factory=list)


def folder_identity(folder: Path) -> Identity:
    """Return what tells a folder from every other one, whatever the path that leads there."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def walk(root: bytes, skip: Collection[Identity] = ()) -> Walk:
    """List the pictures under ``root``.

    Hidden files and folders are skipped, links to folders followed. A folder is visited once, however many links lead
    there: so a loop of links ends. Real folders come before links, so that a picture has its real path.

    Args:
        root: an existing folder.
        skip: folders not to enter (the index itself may lie among the pictures).

    """
    result = Walk()
    seen: set[Identity] = set(skip)
    folders: list[bytes] = [b""]
    links: list[bytes] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            status = os.stat(os.path.join(root, folder))  # noqa: PTH116, PTH118 - bytes, which pathlib does not take
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118
                visible = [entry for entry in entries if not entry.name.startswith(b".")]
        except OSError as error:
            result.problems.append((folder, f"the folder cannot be read ({error.strerror})"))
            result.unread.append(folder)
            continue
        for entry in visible:
            path = folder + b"/" + entry.name if folder else entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_symlink() and entry.is_dir():
                    links.append(path)
                else:
                    _look_at(entry, path, result)
            except OSError as error:
                result.problems.append((path, f"it cannot be looked at ({error.strerror})"))
        links.sort(reverse=True)
    return result


def _look_at(entry: os.DirEntry[bytes], path: bytes, result: Walk) -> None:
    extension = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    if extension not in _EXTENSIONS:
        result.unknown[os.fsdecode(extension)] += 1
        return
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode):
        result.problems.append((path, "it is not a regular file"))
        return
    result.files.append(Found(path, status.st_size, status.st_mtime_ns))
