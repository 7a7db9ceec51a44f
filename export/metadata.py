"""Metadata of an exported file: checked before it is written, and files that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..runtime.errors import ExportError, ModelFileError
from ..runtime.modelfile import ModelInfo

__all__ = ["checked_info", "refused_as_export"]


def checked_info(info: ModelInfo) -> ModelInfo:
    """Check that a reader of the file will accept its metadata, and return it.

    Raises:
        ExportError: it would not.

    """
    try:
        ModelInfo.from_json(info.to_json())
    except ModelFileError as error:
        raise ExportError(f"A file with this info could not be opened: {error}.") from None
    except (TypeError, ValueError) as error:
        raise ExportError(f"This info cannot be written into a file ({error}); expected plain values.") from None
    return info


@contextmanager
def refused_as_export() -> Iterator[None]:
    """Convert the error of an unusable new file into an ExportError that blames the module."""
    try:
        yield
    except ModelFileError as error:
        raise ExportError(f"The exported file cannot be used and was not kept: {error}") from error
