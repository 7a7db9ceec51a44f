"""Uploaded pictures: files in the index by content hash, under a root that sync ignores."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adding import Added, Upload, add_uploads
    from .removing import Removed, remove_items

__all__ = ["Added", "Removed", "Upload", "add_uploads", "remove_items"]

_MODULES = {"Added": "adding", "Upload": "adding", "add_uploads": "adding"}
_MODULES |= {"Removed": "removing", "remove_items": "removing"}


def __getattr__(name: str) -> Any:
    # On first use: maintaining upload files needs no decoding.
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
