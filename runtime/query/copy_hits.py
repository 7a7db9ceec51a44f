"""Copy the files of hits to a folder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import QueryError
from ..files import SourceError, placed
from ..index.search.pictures import Pictures, open_picture
from ..text import display_path
from .run import QueryResult

if TYPE_CHECKING:
    from ..index.search.items import Hit

__all__ = ["CopyReport", "check_folder", "copy_hits"]

# The longest file name of common file systems.
_MAX_NAME_BYTES = 255
# A longer suffix is treated as part of the name.
_MAX_EXTENSION_BYTES = 16
_AT_A_TIME = 1 << 20
# Unicode categories that a shell or terminal may misread; bytes that are not UTF-8 (Cs) stay.
_REPLACED = frozenset({"Cc", "Cf", "Zl", "Zp"})


@dataclass(frozen=True)
class CopyReport:
    """The copies, a sentence for each failed hit, and the synced folder around the copies, if any."""

    copied: int
    problems: tuple[str, ...]
    inside: str | None


def check_folder(folder: Path) -> None:
    """Check that ``folder`` is missing or empty, so that hits can be copied to it.

    Raises:
        QueryError: it is a file, is not empty, or cannot be read.

    """
    try:
        entry = next(iter(sorted(os.listdir(folder))), None)  # noqa: PTH208 - names alone
    except FileNotFoundError:
        if folder.is_symlink():
            raise QueryError(f"{display_path(folder)} is a broken link; expected a new or empty folder.") from None
        return
    except NotADirectoryError:
        raise QueryError(f"{display_path(folder)} is a file; expected a new or empty folder to copy to.") from None
    except OSError as error:
        raise QueryError(f"{display_path(folder)} cannot be read ({error.strerror}).") from None
    if entry is not None:
        raise QueryError(
            f"{display_path(folder)} holds {display_path(entry)} already; expected a new or empty folder to copy to, "
            "so that nothing is overwritten."
        )


def copy_hits(
    results: Sequence[QueryResult], folder: Path, pictures: Pictures, roots: Sequence[str] = ()
) -> CopyReport:
    """Copy the files of all hits to ``folder``, named by rank, distance and their own name.

    Several results have one subfolder each. Links are followed, as in a sync. A file is copied only
    if it still has the indexed content. Hits are reported if their file is missing, unreadable, not
    regular, or changed.

    Args:
        results: those with an error are skipped.
        folder: missing or empty; it is created if missing.
        pictures: the files of the index's pictures.
        roots: the synced folders of the index.

    Raises:
        QueryError: the folder is not empty or not writable; finished copies stay.

    """
    check_folder(folder)
    copied, problems = 0, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, hit in _planned(results, folder):
            target.parent.mkdir(exist_ok=True)
            try:
                _copy(hit, target, pictures)
            except SourceError as error:
                problems.append(f"{display_path(hit.path)} was not copied: {error}")
            else:
                copied += 1
    except OSError as error:
        raise QueryError(
            f"{display_path(folder)} cannot be written to ({error.strerror}); {copied:,} hits were copied, none of "
            "them in part."
        ) from None
    return CopyReport(copied, tuple(problems), _synced_folder(folder, roots))


def _planned(results: Sequence[QueryResult], folder: Path) -> Iterator[tuple[Path, Hit]]:
    """Yield (path of the copy, hit)."""
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
    """Return the prefix and an untrusted name, cut to 255 bytes in all; its extension is kept.

    Separators and control characters become ``_``; bytes that are not UTF-8 stay.
    """
    safe = "".join("_" if c in "/\\" or unicodedata.category(c) in _REPLACED else c for c in name)
    stem, extension = os.path.splitext(safe)  # noqa: PTH122 - text
    if len(os.fsencode(extension)) > _MAX_EXTENSION_BYTES:
        stem, extension = safe, ""
    room = _MAX_NAME_BYTES - len(os.fsencode(prefix + extension))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return prefix + stem + extension


def _copy(hit: Hit, target: Path, pictures: Pictures) -> None:
    with open_picture(pictures, hit) as file, placed(target) as copy:
        for block in _blocks(file):
            copy.write(block)
        copy.flush()
        os.utime(copy.name, ns=(hit.mtime_ns, hit.mtime_ns))
        if os.path.lexists(target):
            raise FileExistsError(0, f"{display_path(target.name)} was created there by another process")


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
    """Return the synced folder around the copies: its next sync would index the copies."""
    copies = os.path.realpath(folder)
    return next((root for root in roots if copies == root or copies.startswith(root.rstrip("/") + "/")), None)
