"""The paths of an index's items, read once and checked, to search among some of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ...errors import QueryError
from ...text import printable
from ..database.store import Ids, Store
from ..folders.globs import Globs

__all__ = ["Paths"]


class Paths:
    """The path of every item, from a store in a snapshot."""

    def __init__(self, store: Store) -> None:
        self._roots = store.roots()
        items = list(store.all_items())
        self._ids = np.array([item.id for item in items], dtype=np.int64)
        self._places = [(item.root, item.path) for item in items]

    def ids_matching(self, wanted: str | Sequence[str]) -> Ids:
        """Return the ids of the items whose path matches this pattern, or one of these: int64, ascending.

        A pattern that begins with ``/`` is one of the whole path, any other one of the path under the synced folder.
        See :mod:`..folders.globs` for what it may hold.

        Raises:
            QueryError: no item matches a pattern.

        """
        chosen = np.zeros(len(self._ids), dtype=np.bool_)
        for pattern in [wanted] if isinstance(wanted, str) else wanted:
            matching = self._matching(pattern)
            if not matching.any():
                raise QueryError(f"No picture has a path that matches {printable(pattern)!r}; {self._an_example()}.")
            chosen |= matching
        return self._ids[chosen]

    def _matching(self, pattern: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        if os.path.isabs(pattern):  # noqa: PTH117 - a pattern
            # The synced folders stand before the paths as if they lay under the root of the file system.
            globs = Globs([pattern])
            before = {root: path.strip(b"/") + b"/" for root, path in self._roots.items()}
        else:
            globs = Globs([pattern])
            before = dict.fromkeys(self._roots, b"")
        found = (globs.matches(before[root].lstrip(b"/") + path) for root, path in self._places)
        return np.fromiter(found, dtype=np.bool_, count=len(self._places))

    def _an_example(self) -> str:
        if not self._places:
            return "this index is empty"
        example = printable(os.fsdecode(self._places[0][1]))
        return f"expected a pattern for paths such as {example!r}, or for whole paths, beginning with /"
