"""One file that a sync reads or inspects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ...devices import usable_cores
from ...pictures import changes
from ...progress import StartProgress
from ..database.records import Item
from ..uploads.store import uploads_of
from ..walk import FileEntry
from .root_plan import RootPlan

__all__ = ["Task", "check_decoding", "is_here", "is_whole"]

_CHECKED_AT_A_TIME = 256


@dataclass
class Task:
    """One file to read; the reading thread fills in the results."""

    plan: RootPlan
    file: FileEntry
    old: Item | None
    sha256: bytes = b""
    redecode: bool = False

    @property
    def uploaded(self) -> Item | None:
        """The new item of an upload; None for a file of a synced folder."""
        return None if self.plan.uploads is None else self.plan.uploads[self.file.path]

    @property
    def path(self) -> str:
        """The path of the file."""
        return self.plan.full_path(self.file.path)


def check_decoding(plans: Iterable[RootPlan], progress: StartProgress) -> Iterator[tuple[Task, bool | None]]:
    """Inspect the files whose vectors are from older decoding rules.

    Yields:
        each, and whether its pixels differ from those embedded; None: it cannot be read.

    """
    tasks = [Task(plan, file, old, old.sha256, redecode=True) for plan in plans for file, old in plan.outdated]
    if not tasks:
        return
    advance = progress("checking formats", len(tasks))
    # In threads: some formats are read to their end, and a remote disk serves reads in parallel.
    with ThreadPoolExecutor(2 * usable_cores(), thread_name_prefix="check") as pool:
        for start in range(0, len(tasks), _CHECKED_AT_A_TIME):
            some = tasks[start : start + _CHECKED_AT_A_TIME]
            for task, is_other in zip(some, pool.map(_is_decoded_otherwise, some), strict=True):
                yield task, is_other
                advance(1)


def _is_decoded_otherwise(task: Task) -> bool | None:
    assert task.old is not None
    try:
        return changes.decoding_changed(task.path, task.old.decoding)
    except OSError:
        return None


def is_here(task: Task, folder: Path) -> bool:
    """Tell whether an upload's file lies in this index, not in a replaced one."""
    return task.plan.path == os.fsencode(os.path.realpath(uploads_of(folder)))


def is_whole(task: Task) -> bool:
    """Tell whether an upload's file has its original content."""
    return task.uploaded is not None and task.sha256 == task.uploaded.sha256
