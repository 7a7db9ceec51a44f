"""What a process needs to embed parts: the folder's own model, checked."""

from __future__ import annotations

from pathlib import Path

from ..embedder import Embedder
from ..errors import EmbeddedFolderError
from ..formats import DECODING_VERSION
from ..parts.embedded_folder import MODEL, EmbeddedFolder
from .options import EmbedOptions

__all__ = ["open_embedder"]


def open_embedder(folder: EmbeddedFolder, place: Path, options: EmbedOptions) -> Embedder:
    """Open the model of a folder.

    Args:
        folder: the embedded folder.
        place: an existing folder on a disk, which must stay as long as the embedder is used.
        options: device, threads and limit of pixels.

    Raises:
        EmbeddedFolderError: it is another model than the vectors were made with.
        ModelFileError, DeviceError: see :class:`~..embedder.Embedder`.
        StorageError: it cannot be read.

    """
    path = folder.model(place)
    embedder = Embedder(path, device=options.device, threads=options.threads, max_pixels=options.max_pixels)
    settings = folder.settings
    if settings.decoding != DECODING_VERSION:
        raise EmbeddedFolderError(
            f"The pictures of {folder.storage.shown()} were decoded by the rules {settings.decoding}; this version of "
            f"deeprank has the rules {DECODING_VERSION}, which give other vectors: embed into another folder."
        )
    opened = (embedder.sha256, embedder.dim, embedder.rule.values())
    if opened != (settings.model_sha256, settings.dim, dict(settings.rule)):
        raise EmbeddedFolderError(
            f"{folder.storage.shown(MODEL)} is not the model that embedded.json describes; put that one back, or embed "
            "into another folder."
        )
    return embedder
