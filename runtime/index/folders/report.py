"""What a sync did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .unread import SkippedFile

__all__ = ["SyncReport"]


@dataclass(frozen=True)
class SyncReport:
    """What a sync did, in pictures.

    Attributes:
        added: new ones.
        updated: those whose content had changed.
        moved: moved or renamed ones, recognised by their content.
        redecoded: unchanged ones, embedded again because decoding rules were corrected that their format is read by.
        relabelled: unchanged ones that got another label.
        removed: those that are gone from the folders, cannot be read any more, or are left out from now on.
        kept: those that are gone from the folders, and were to stay.
        unchanged: the others.
        left_out: number of pictures that filters leave out, in folders that they do not.
        left_out_folders: number of folders that they leave out.
        skipped_files: those that could not be indexed.
        unknown_extensions: number of files that are no pictures, by extension.
        items: pictures in the index now.
        seconds: that it took.
        embedded: pictures that went through the network in that time.
        example: path of a picture of a synced folder that is in the index; None: there is none.
        remarks: what else a user should know.

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
