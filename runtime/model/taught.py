"""What a taught model says of the models before it, in its metadata under ``training``."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelFileError
from ..files import open_regular
from .metadata import ModelInfo
from .records import read_metadata

__all__ = ["PREVIOUS", "TAUGHT", "previous_sha256"]

TAUGHT = "taught"
# Hex sha256 of the model that the index had before.
PREVIOUS = "previous"


def previous_sha256(model: Path) -> str | None:
    """Return the hex sha256 of the model before a taught one; None: it was not taught, or its metadata are damaged.

    Args:
        model: an untrusted model file, of which the metadata alone are read.

    Raises:
        OSError: it cannot be read.

    """
    try:
        with open_regular(model, follow_links=True) as file:
            text = read_metadata(file)
        taught = None if text is None else ModelInfo.from_json(text).training.get(TAUGHT)
    except ModelFileError:
        return None
    previous = taught.get(PREVIOUS) if isinstance(taught, dict) else None
    return previous if isinstance(previous, str) else None
