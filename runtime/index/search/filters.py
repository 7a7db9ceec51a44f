"""Filters of a search: labels and paths to item ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import QueryError
from ...text import printable
from ..database.store import Ids, Store

if TYPE_CHECKING:
    from .paths import Paths

__all__ = ["Filters", "Labels", "allowed_ids", "no_such_label", "none_of_both"]


# Labels that an error message names.
_SHOWN = 10

Names = str | Sequence[str] | None


class Labels:
    """The label of every item, from a store in a snapshot."""

    def __init__(self, store: Store) -> None:
        ids, labels = store.labels()
        self.names = sorted({label for label in labels if label is not None})
        numbers: dict[str | None, int] = {name: number for number, name in enumerate(self.names)}
        self._ids = np.array(ids, dtype=np.int64)
        self._numbers = np.fromiter((numbers.get(label, -1) for label in labels), dtype=np.int32, count=len(labels))

    def ids_with(self, label: str | Sequence[str]) -> Ids:
        """Return the ids of the items with one of these labels: int64, ascending.

        Raises:
            QueryError: no item has the label.

        """
        labels = {label} if isinstance(label, str) else set(label)
        unknown = labels.difference(self.names)
        if unknown:
            raise no_such_label(min(unknown), self.names)
        return self._ids[np.isin(self._numbers, [self.names.index(name) for name in labels])]


def no_such_label(label: str, names: Sequence[str]) -> QueryError:
    """Return the error that no picture has a label; ``names``: the labels that some have, sorted."""
    if not names:
        expected = "none: no picture of this index has a label"
    else:
        shown = ", ".join(repr(printable(name)) for name in names[:_SHOWN])
        others = len(names) - _SHOWN
        expected = f"{shown} or one of {others} others" if others > 0 else f"one of {shown}"
    return QueryError(f"No picture has the label {printable(label)!r}; expected {expected}.")


def none_of_both() -> QueryError:
    """Return the error that no picture passes the filters of labels and of paths together."""
    return QueryError("No picture has both this label and this path; expected a label and a path of the same picture.")


class Filters:
    """The filters of one state of an index; labels and paths are read at first use."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._labels: Labels | None = None
        self._paths: Paths | None = None

    @property
    def labels(self) -> Labels:
        """The labels of the items."""
        if self._labels is None:
            self._labels = Labels(self._store)
        return self._labels

    @property
    def paths(self) -> Paths:
        """The paths of the items."""
        if self._paths is None:
            from .paths import Paths

            self._paths = Paths(self._store)
        return self._paths

    def allowed(self, label: Names, path: Names) -> Ids | None:
        """Return the ids of the items with one of the labels and one of the paths, int64, ascending.

        Args:
            label: labels; None: any.
            path: patterns, as for :class:`~.paths.Paths`; None: any.

        Returns:
            None if both are None.

        Raises:
            QueryError: no item has a label, a pattern matches no path, or no item passes both.

        """
        labelled = None if label is None else self.labels.ids_with(label)
        if path is None:
            return labelled
        matching = self.paths.ids_matching(path)
        if labelled is None:
            return matching
        both: Ids = np.intersect1d(labelled, matching, assume_unique=True)
        if len(both) == 0:
            raise none_of_both()
        return both


def allowed_ids(store: Store, label: Names, path: Names) -> Ids | None:
    """Call :meth:`Filters.allowed` once on a store in a snapshot."""
    return Filters(store).allowed(label, path)
