"""The labels of an index's items, read once and checked, to search among some of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import QueryError
from ..text import printable
from .store import Ids, Store

__all__ = ["Labels"]

# Labels named in a message.
_SHOWN = 10


class Labels:
    """The label of every item, from a store in a snapshot."""

    def __init__(self, store: Store) -> None:
        labelled = [(item.id, item.label) for item in store.all_items()]
        self._ids = np.array([item for item, _ in labelled], dtype=np.int64)
        self._labels = [label for _, label in labelled]
        self.names = sorted({label for label in self._labels if label is not None})

    def ids_with(self, wanted: str | Sequence[str]) -> Ids:
        """Return the ids of the items with this label, or with one of these: int64, ascending.

        Raises:
            QueryError: no item has the label.

        """
        labels = {wanted} if isinstance(wanted, str) else set(wanted)
        unknown = labels.difference(self.names)
        if unknown:
            raise QueryError(f"No picture has the label {printable(min(unknown))!r}; expected {self._some_names()}.")
        chosen = np.fromiter((label in labels for label in self._labels), dtype=np.bool_, count=len(self._labels))
        return self._ids[chosen]

    def _some_names(self) -> str:
        if not self.names:
            return "none: no picture of this index lies in a folder under the synced one"
        shown = ", ".join(repr(printable(name)) for name in self.names[:_SHOWN])
        others = len(self.names) - _SHOWN
        return f"{shown} or one of {others} others" if others > 0 else f"one of {shown}"
