"""The report of a sync."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..unreadable import SkippedFile

__all__ = ["SyncReport"]


@dataclass(frozen=True)
class SyncReport:
    """The changes by a sync, in pictures.

    Attributes:
        added: new files.
        updated: files with changed content.
        moved: moved or renamed files, matched by content.
        redecoded: unchanged files embedded again, because decoding rules for their format were
            corrected.
        relabelled: unchanged files with a new label.
        removed: files that are gone from the folders, unreadable, or now left out.
        kept: files that are gone from the folders, but stay in the index.
        unchanged: the others.
        left_out: number of pictures left out by filters, in folders that are not left out.
        left_out_folders: number of folders left out by filters.
        skipped_files: files that could not be indexed.
        unknown_extensions: number of files that are no pictures, by extension.
        items: pictures in the index now.
        seconds: duration.
        embedded: pictures that went through the network in that time.
        example: path of an indexed picture of a synced folder, or None.
        remarks: other messages for the user.

    """

    added: int = 0
    updated: int = 0
    moved: int = 0
    redecoded: int = 0
    relabelled: int = 0
    removed: int = 0
    kept: int = 0
    unchanged: int = 0
    left_out: int = 0
    left_out_folders: int = 0
    skipped_files: tuple[SkippedFile, ...] = ()
    unknown_extensions: Mapping[str, int] = field(default_factory=dict)
    items: int = 0
    seconds: float = 0.0
    embedded: int = 0
    example: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(path, reason) of the files that could not be indexed."""
        return tuple((file.path, file.reason) for file in self.skipped_files)
