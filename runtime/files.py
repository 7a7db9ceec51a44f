"""Files that are put in place whole, and the hashes they are known by."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

__all__ = ["file_sha256", "replace_durably", "sync_folder"]


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_durably(prepared: Path, target: Path) -> None:
    """Rename ``prepared`` to ``target``; when this returns, both content and name survive a power cut."""
    descriptor = os.open(prepared, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    prepared.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where the system can (Windows cannot open a folder)."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
