"""Copies of the files of hits in a folder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import QueryError
from ..files import SourceError, open_indexed, placed
from ..text import display_path
from .run import QueryResult

if TYPE_CHECKING:
    from ..index.search.items import Hit

__all__ = ["CopyReport", "check_folder", "copy_hits"]

# What a name may have on the file systems that people use.
_MAX_NAME_BYTES = 255
# An extension of more bytes is none.
_MAX_EXTENSION_BYTES = 16
_AT_A_TIME = 1 << 20
# Categories that a shell or a terminal may stumble over; names that are not UTF-8 (Cs) keep their bytes.
_REPLACED = frozenset({"Cc", "Cf", "Zl", "Zp"})


@dataclass(frozen=True)
class CopyReport:
    """What was copied, a sentence for each hit that was not, and the synced folder that the copies lie in, if any."""

    copied: int
    problems: tuple[str, ...]
    inside: str | None


def check_folder(folder: Path) -> None:
    """Make sure that hits can be collected in ``folder``: nothing is there yet.

    Raises:
        QueryError: it is a file, holds something, or cannot be looked at.

    """
    try:
        entry = next(iter(sorted(os.listdir(folder))), None)  # noqa: PTH208 - names alone
    except FileNotFoundError:
        if folder.is_symlink():
            raise QueryError(
                f"{display_path(folder)} is a link that leads nowhere; expected a new or empty folder."
            ) from None
        return
    except NotADirectoryError:
        raise QueryError(f"{display_path(folder)} is a file; expected a new or empty folder to copy to.") from None
    except OSError as error:
        raise QueryError(f"{display_path(folder)} cannot be looked at ({error.strerror}).") from None
    if entry is not None:
        raise QueryError(
            f"{display_path(folder)} holds {display_path(entry)} already; expected a new or empty folder to copy to, "
            "so that nothing is overwritten."
        )


def copy_hits(results: Sequence[QueryResult], folder: Path, roots: Sequence[str] = ()) -> CopyReport:
    """Copy the files of all hits to ``folder``, named by rank, distance and their own name.

    Of several results, each has a folder of its own. Links are followed, as a sync does: what is copied is the content,
    if it still is what was indexed. Hits whose file is gone, may not be read, is no regular file or holds something
    else are reported.

    Args:
        results: those with an error are passed over.
        folder: new or empty; it is made where it is missing.
        roots: the synced folders of the index.

    Raises:
        QueryError: the folder is in use, or cannot be written to; the copies that were finished stay.

    """
    check_folder(folder)
    copied, problems = 0, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, hit in _planned(results, folder):
            target.parent.mkdir(exist_ok=True)
            try:
                _copy(hit, target)
            except SourceError as error:
                problems.append(f"{display_path(hit.path)} was not copied: {error}")
            else:
                copied += 1
    except OSError as error:
        raise QueryError(
            f"{display_path(folder)} cannot be written to ({error.strerror}); {copied:,} were copied, and none is half "
            "copied."
        ) from None
    return CopyReport(copied, tuple(problems), _synced_folder(folder, roots))


def _planned(results: Sequence[QueryResult], folder: Path) -> Iterator[tuple[Path, Hit]]:
    """Yield (the copy to be made, the hit)."""
    digits = max(2, len(str(len(results))))
    for number, result in enumerate(results, 1):
        subfolder = folder
        if len(results) > 1:
            name = f"mean-of-{len(result.queries)}" if result.mean else Path(result.queries[0].name).stem
            subfolder = folder / file_name(f"{number:0{digits}}_", name)
        rank_digits = max(2, len(str(len(result.hits))))
        for rank, hit in enumerate(result.hits, 1):
            own = os.path.basename(hit.relative)  # noqa: PTH119 - text
            yield subfolder / file_name(f"{rank:0{rank_digits}}_{hit.distance:.4f}_", own), hit


def file_name(prefix: str, name: str) -> str:
    """Return a name of at most 255 bytes: the prefix and what can be kept of an untrusted name, the extension first.

    Separators and characters that control a terminal become ``_``; bytes that are not UTF-8 stay.
    """
    safe = "".join("_" if c in "/\\" or unicodedata.category(c) in _REPLACED else c for c in name)
    stem, extension = os.path.splitext(safe)  # noqa: PTH122 - text
    if len(os.fsencode(extension)) > _MAX_EXTENSION_BYTES:
        stem, extension = safe, ""
    room = _MAX_NAME_BYTES - len(os.fsencode(prefix + extension))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return prefix + stem + extension


def _copy(hit: Hit, target: Path) -> None:
    with open_indexed(hit.path, hit.content) as file, placed(target) as copy:
        for block in _blocks(file):
            copy.write(block)
        copy.flush()
        status = os.fstat(file.fileno())
        os.utime(copy.name, ns=(status.st_atime_ns, status.st_mtime_ns))
        if os.path.lexists(target):
            raise FileExistsError(0, f"{display_path(target.name)} has appeared there meanwhile")


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            block = file.read(_AT_A_TIME)
        except OSError as error:
            raise SourceError(error.strerror or str(error)) from None
        if not block:
            return
        yield block


def _synced_folder(folder: Path, roots: Sequence[str]) -> str | None:
    """Return the synced folder that the copies lie in: its next sync would take them for new pictures."""
    copies = os.path.realpath(folder)
    return next((root for root in roots if copies == root or copies.startswith(root.rstrip("/") + "/")), None)
