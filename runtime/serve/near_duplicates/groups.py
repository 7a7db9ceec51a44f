"""The groups of a finished search in little memory: numbers alone, whose rows are read for a page of them."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...files import FileId
from ...index.database.store import Ids, Store
from ...index.layout import database_id
from ...index.search.duplicate_groups import DedupeReport, DuplicateGroup
from ...index.search.items import Hit
from ..errors import RefusedError

__all__ = ["GroupPage", "GroupTable"]

# Pictures of a page; a single larger group is still whole.
_PICTURES = 1000


@dataclass(frozen=True)
class GroupPage:
    """Some groups, and the place of the next ones; ``next`` is None after the last."""

    groups: list[DuplicateGroup]
    next: str | None


@dataclass(frozen=True)
class GroupTable:
    """All groups, those that save most bytes first.

    Attributes:
        tag: the name of this table in cursors.
        pictures: the number of pictures beside the kept ones.
        bytes: the size of their files together.
        database: the database that the numbers belong to.
        ids: int64 ``[m]``, group after group, the kept picture first.
        distances: float64 ``[m]``, to the kept picture of the group.
        starts: int64 ``[g + 1]``: where each group begins, and the end.

    """

    tag: str
    pictures: int
    bytes: int
    database: FileId | None
    ids: Ids
    distances: npt.NDArray[np.float64]
    starts: Ids

    @classmethod
    def of(cls, report: DedupeReport, database: FileId | None) -> GroupTable:
        """Return the table of a report."""
        saved = [sum(file.size for file in group.others) for group in report.groups]
        order = sorted(range(len(saved)), key=lambda place: -saved[place])  # otherwise by path, as they come
        groups = [report.groups[place] for place in order]
        files = [file for group in groups for file in (group.kept, *group.others)]
        return cls(
            tag=secrets.token_hex(4),
            pictures=report.near_duplicates,
            bytes=sum(saved),
            database=database,
            ids=np.array([file.id for file in files], dtype=np.int64),
            distances=np.array([file.distance for file in files], dtype=np.float64),
            starts=np.array([0, *itertools.accumulate(1 + len(group.others) for group in groups)], dtype=np.int64),
        )

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.starts) - 1

    def page(self, index: Path, cursor: str | None, limit: int) -> GroupPage | None:
        """Read some groups; pictures that the index has lost since are left out.

        Args:
            index: the index folder.
            cursor: the place of the first; None: the beginning.
            limit: the most groups.

        Returns:
            None if the index was replaced, so that its numbers mean other pictures.

        Raises:
            RefusedError: the cursor belongs to another table.

        """
        first = self._place(cursor)
        last = self._end(first, limit)
        with Store.open(index) as store, store.snapshot():
            if database_id(index) != self.database:
                return None
            groups = list(self._read(store, first, last))
        return GroupPage(groups, f"{self.tag}.{last}" if last < len(self) else None)

    def _place(self, cursor: str | None) -> int:
        if cursor is None:
            return 0
        tag, _, place = cursor.partition(".")
        if tag != self.tag or not (place.isascii() and place.isdecimal() and int(place) < len(self)):
            raise RefusedError(
                409, "The cursor belongs to another search for near-duplicates; expected none, or one of this search."
            )
        return int(place)

    def _end(self, first: int, limit: int) -> int:
        """Return the end of a page: at most ``limit`` groups, and about so many pictures as are allowed."""
        full = int(np.searchsorted(self.starts, self.starts[first] + _PICTURES, side="right")) - 1
        return min(max(full, first + 1), first + limit, len(self))

    def _read(self, store: Store, first: int, last: int) -> Iterator[DuplicateGroup]:
        begin, end = int(self.starts[first]), int(self.starts[last])
        items, roots = store.known_items(self.ids[begin:end].tolist()), store.roots()
        for start, stop in itertools.pairwise(self.starts[first : last + 1].tolist()):
            numbers, distances = self.ids[start:stop].tolist(), self.distances[start:stop].tolist()
            files = [
                Hit.of(items[number], roots[items[number].root], distance=distance)
                for number, distance in zip(numbers, distances, strict=True)
                if number in items and items[number].root in roots
            ]
            if len(files) > 1:
                yield DuplicateGroup(files[0], tuple(files[1:]))
