"""Find the model that made the vectors, among those at hand."""

from __future__ import annotations

from pathlib import Path

from ...errors import ModelFileError
from ...files import file_sha256
from ...pretrained import LOCAL_MODEL, pretrained_model

__all__ = ["find_matching_model"]


def find_matching_model(sha256: str) -> Path | None:
    """Return ``./model.onnx`` or the shipped model with this hex sha256; None without a match."""
    for path in (LOCAL_MODEL, *_shipped()):
        try:
            if path.is_file() and file_sha256(path) == sha256:
                return path
        except OSError:
            continue
    return None


def _shipped() -> list[Path]:
    try:
        found = [pretrained_model("fp32"), pretrained_model("int8")]
    except ModelFileError:  # no space to unpack them from a zip
        return []
    return [path for path in found if path is not None]
