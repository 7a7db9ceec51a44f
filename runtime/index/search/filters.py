"""Which items of an index pass the filters of a search: by label and by path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import QueryError
from ..database.store import Ids, Store
from .labels import Labels

if TYPE_CHECKING:
    from .paths import Paths

__all__ = ["Filters", "allowed_ids"]

Names = str | Sequence[str] | None


class Filters:
    """The filters over one state of an index; what they need is read at first use."""

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
        """Return the ids of the items that have one of the labels and one of the paths, int64, ascending.

        Args:
            label: one or several; None: any.
            path: patterns, as for :class:`~.paths.Paths`; None: any.

        Returns:
            None where nothing is filtered.

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
            raise QueryError("No picture has both such a label and such a path; expected two that go together.")
        return both


def allowed_ids(store: Store, label: Names, path: Names) -> Ids | None:
    """Return what :meth:`Filters.allowed` does, for a store in a snapshot that is asked once."""
    return Filters(store).allowed(label, path)
