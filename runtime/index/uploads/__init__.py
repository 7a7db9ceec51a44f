"""Uploaded pictures: files in the index by content hash, under a root that sync ignores."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .items import Added, Removed, Upload, add_uploads, remove_items

__all__ = ["Added", "Removed", "Upload", "add_uploads", "remove_items"]


def __getattr__(name: str) -> Any:
    # On first use: maintaining upload files needs no decoding.
    if name in __all__:
        return getattr(importlib.import_module(".items", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
