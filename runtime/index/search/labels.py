"""The labels of an index's items, read once and checked, to search among some of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import QueryError
from ...text import printable
from ..database.store import Ids, Store

__all__ = ["Labels"]

# Labels named in a message.
_SHOWN = 10


class Labels:
    """The label of every item, from a store in a snapshot."""

    def __init__(self, store: Store) -> None:
        ids, labels = store.labels()
        self.names = sorted({label for label in labels if label is not None})
        numbers: dict[str | None, int] = {name: number for number, name in enumerate(self.names)}
        self._ids = np.array(ids, dtype=np.int64)
        self._numbers = np.fromiter((numbers.get(label, -1) for label in labels), dtype=np.int32, count=len(labels))

    def ids_with(self, label: str | Sequence[str]) -> Ids:
        """Return the ids of the items with this label, or with one of these: int64, ascending.

        Raises:
            QueryError: no item has the label.

        """
        labels = {label} if isinstance(label, str) else set(label)
        unknown = labels.difference(self.names)
        if unknown:
            raise QueryError(f"No picture has the label {printable(min(unknown))!r}; expected {self._some_names()}.")
        return self._ids[np.isin(self._numbers, [self.names.index(name) for name in labels])]

    def counts(self) -> dict[str, int]:
        """Return the number of items with each label."""
        counts = np.bincount(self._numbers[self._numbers >= 0], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def _some_names(self) -> str:
        if not self.names:
            return "none: no picture of this index lies in a folder under the synced one"
        shown = ", ".join(repr(printable(name)) for name in self.names[:_SHOWN])
        others = len(self.names) - _SHOWN
        return f"{shown} or one of {others} others" if others > 0 else f"one of {shown}"
