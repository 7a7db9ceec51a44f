"""Export a training run, or any PyTorch module, to one model file, proven to rank the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import export_onnx
    from .package import Checks, Package

__all__ = ["Checks", "Package", "export_onnx"]


def __getattr__(name: str) -> Any:
    """Import PyTorch on demand, so that the command can report it missing."""
    if name == "export_onnx":
        from .api import export_onnx

        return export_onnx
    if name in ("Checks", "Package"):
        from . import package

        return getattr(package, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
