"""A former name, for programs that import it.

``deeprank.runtime.index.folders.sync`` is ``deeprank.runtime.index.sync.sync``.
"""

from __future__ import annotations

import sys

from .sync import sync

__all__ = ["sync"]

__path__: list[str] = []  # a package, so that "import deeprank.runtime.index.folders.sync" finds the entry below
sys.modules[f"{__name__}.sync"] = sync
