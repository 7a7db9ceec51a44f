"""The index folder (Contract 3): storage, graph, search, and sync with folders of pictures.

:class:`Index` searches a folder, :func:`open_index` opens that or a collection of a Milvus server.
Functions that write or maintain an index are in the module of the same
name in the folder of their subject: ``sync.sync.sync``, ``maintenance.verify.verify``,
``maintenance.copy.copy`` and so on; ``info.index_info`` describes an index. Only this package knows
SQLite and hnswlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .location import StoreOptions, open_index
    from .search.index import Hit, Index, Method, SearchRequest
    from .search.searchable import Searchable

__all__ = ["Hit", "Index", "Method", "SearchRequest", "Searchable", "StoreOptions", "open_index"]

_HOMES = {"Searchable": ".search.searchable", "StoreOptions": ".location", "open_index": ".location"}


def __getattr__(name: str) -> Any:
    # On first use: writing or describing an index needs no search.
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, ".search.index"), __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
