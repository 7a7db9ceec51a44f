"""Copy upload files to another folder with the same rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ...progress import Advance, no_progress
from ...text import display_path
from ..database.records import Item
from ..database.writer import open_writer
from ..layout import UPLOADS, permissions_of
from .files import carry, is_upload, make_uploads, upload_items, uploads_of

__all__ = ["carry_uploads"]


def carry_uploads(
    source: Path, making: Path, advance: Advance = no_progress, is_gone: Callable[[int], bool] = lambda _: False
) -> list[str]:
    """Copy the files of an index's upload rows into it, each compared with the hash in its row.

    Args:
        source: the folder that contains them.
        making: the new index, not yet in use, and without upload files.
        advance: called with the number of bytes copied.
        is_gone: tells whether an item was removed from the original index; then its row is removed,
            too.

    Returns:
        Messages for the user about files that were not copied; their rows stay.

    """
    with open_writer(making) as writer:
        items = upload_items(writer)
        missing = _carry_all(items, source, making, advance) if items else {}
        gone = [items[path].id for path in missing if is_gone(items[path].id)]
        writer.remove(gone)
        writer.commit()
    return _remarks([what for path, what in missing.items() if items[path].id not in gone])


def _carry_all(items: Mapping[bytes, Item], source: Path, making: Path, advance: Advance) -> dict[bytes, str]:
    """Copy the files, and return the fault of each that was not copied."""
    make_uploads(making)
    permissions = permissions_of(making)
    problems = {}
    for path, item in items.items():
        # Another name than ours could lead out of the folder.
        name = os.fsdecode(path)
        problem: str | None = "has a name that no upload has"
        if is_upload(path, item.sha256):
            problem = carry(source / name, uploads_of(making) / name, item.sha256, permissions, advance)
        if problem is not None:
            problems[path] = f"{display_path(source / name)} {problem}"
    return problems


def _remarks(problems: list[str]) -> list[str]:
    if not problems:
        return []
    count = "1 upload has" if len(problems) == 1 else f"{len(problems):,} uploads have"
    return [
        f"{count} no picture there, only a row: {problems[0]}. What turns up belongs into the folder {UPLOADS} of the "
        "new index."
    ]
