"""Pictures that were uploaded to an index: kept in it by the hash of their content, under a root that sync ignores."""

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
    # At first use: what only looks after the files of uploads decodes no picture.
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
