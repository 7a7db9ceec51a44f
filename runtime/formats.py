"""Picture files by their names and first bytes, and the version of the rules by which they are decoded."""

from __future__ import annotations

import os

__all__ = ["DECODING_VERSION", "EXTENSIONS", "HEAD_BYTES", "decoders", "decoding_changed", "format_of"]

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"}
    | {".heic", ".heif"}
)

# Raised when a correction changes the pixels of files that could be read before. Version 1: until indexes of schema 2.
DECODING_VERSION = 2

# What format_of() needs of a file.
HEAD_BYTES = 32


def format_of(head: bytes) -> str | None:
    """Return the format that a file's first :data:`HEAD_BYTES` bytes begin, by Pillow's name; None: no picture's."""
    raise NotImplementedError


def decoding_changed(path: str | bytes | os.PathLike[str], since: int) -> bool:
    """Tell whether the file at ``path`` gives other pixels now than by version ``since`` of the decoding rules.

    Judged by the first bytes, and where that is cheap by the header; in doubt True.

    Raises:
        OSError: the file cannot be read.

    """
    raise NotImplementedError


def decoders() -> str:
    """Return a text that changes when a file that could not be read may be readable: versions of rules and decoders."""
    raise NotImplementedError
