"""One file that a sync reads, or looks at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ... import formats
from ..database.records import Item
from ..uploads.files import uploads_of
from .plan import RootPlan
from .walk import Found

__all__ = ["Task", "is_decoded_otherwise", "is_here", "is_whole"]


@dataclass
class Task:
    """One file to be read; the reading thread fills in what it found."""

    plan: RootPlan
    found: Found
    old: Item | None
    sha256: bytes = b""
    redecode: bool = False

    @property
    def uploaded(self) -> Item | None:
        """What it is to be in the index, where it was uploaded to one; None: it lies in a folder that is synced."""
        return None if self.plan.uploads is None else self.plan.uploads[self.found.path]

    @property
    def path(self) -> str:
        """Where it lies."""
        return self.plan.full_path(self.found.path)


def is_decoded_otherwise(task: Task) -> bool | None:
    """Tell whether a file gives other pixels than when it was embedded; None: it cannot be read."""
    assert task.old is not None
    try:
        return formats.decoding_changed(task.path, task.old.decoding)
    except OSError:
        return None


def is_here(task: Task, folder: Path) -> bool:
    """Tell whether the file of an upload lies in this index, not in one that takes its place."""
    return task.plan.path == os.fsencode(os.path.realpath(uploads_of(folder)))


def is_whole(task: Task) -> bool:
    """Tell whether the file of an upload has the content that was uploaded."""
    return task.uploaded is not None and task.sha256 == task.uploaded.sha256
