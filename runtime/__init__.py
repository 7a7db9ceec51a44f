"""deeprank without PyTorch: embed pictures, keep an index, answer top-k queries.

>>> from deeprank.runtime import Embedder, Index
>>> vectors = Embedder("model.onnx").embed(["a.jpg", "b.png"])
>>> with Index.open("my.index") as index:
...     hits = index.search("query.jpg", k=10)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedder import Embedder
    from .errors import DeepRankError
    from .index import Hit, Index, open_index
    from .model.pretrained import pretrained_model

__all__ = ["DeepRankError", "Embedder", "Hit", "Index", "__version__", "open_index", "pretrained_model"]

# Some builds of ONNX Runtime send telemetry, and keep a file for it in the temporary folder, unless
# this is set before the import. We send nothing anywhere.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Imported on first use, so that a query loads only the modules it uses.
_HOMES = {
    "Embedder": ".embedder",
    "DeepRankError": ".errors",
    "Hit": ".index",
    "Index": ".index",
    "open_index": ".index",
    "pretrained_model": ".model.pretrained",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("deep-ranking")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
