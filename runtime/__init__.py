"""deeprank on a deployment box: embed pictures, keep an index, answer top-k queries; without PyTorch.

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
    from .index import Hit, Index
    from .pretrained import pretrained_model

__all__ = ["DeepRankError", "Embedder", "Hit", "Index", "__version__", "pretrained_model"]

# Builds of ONNX Runtime tell their maker that they are used, and leave a file in the temporary folder for that, unless
# this is set before they are imported. What somebody does with their pictures is nobody else's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Imported at first use: a query should not wait for what it does not need.
_HOMES = {
    "Embedder": ".embedder",
    "DeepRankError": ".errors",
    "Hit": ".index",
    "Index": ".index",
    "pretrained_model": ".pretrained",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("deep-ranking")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
