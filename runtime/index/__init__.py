"""The index folder (Contract 3): storage, graph, search, and the sync that makes it follow folders of pictures.

:class:`Index` searches. What writes or looks after an index lies in the folder of what it is about, in the module of
its name: ``folders.sync.sync``, ``care.verify.verify``, ``transfer.copying.copy`` and so on; ``info.index_info``
describes. Nothing outside this package knows SQLite or hnswlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .search.index import Hit, Index, Method, SearchRequest

__all__ = ["Hit", "Index", "Method", "SearchRequest"]


def __getattr__(name: str) -> Any:
    # At first use: what only writes or describes needs no search.
    if name in __all__:
        return getattr(importlib.import_module(".search.index", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
