"""Groups of near-duplicates in an index, and their removable files; nothing is deleted."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...errors import QueryError
from ...files import regular_status
from ...progress import StartProgress, start_nothing
from ...scan import squared_distances
from ..database.records import Item
from ..database.store import Ids, Store, Vectors
from .filters import allowed_ids
from .items import Hit
from .near_duplicates import representatives
from .request import MAX_DISTANCE, NEAR_DUPLICATE

__all__ = ["DedupeReport", "DuplicateGroup", "Keep", "Removable", "find_near_duplicates", "removable"]

Keep = Literal["largest", "oldest", "first"]

# The best comes first.
_ORDERS: Mapping[str, Callable[[Item], tuple[int, ...]]] = {
    "largest": lambda item: (-item.size, item.mtime_ns, item.id),
    "oldest": lambda item: (item.mtime_ns, -item.size, item.id),
    "first": lambda item: (item.id,),
}


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """A picture to keep and its near-duplicates, nearest first, with their distances to it."""

    kept: Hit
    others: tuple[Hit, ...]

    @property
    def bytes(self) -> int:
        """The size of the near-duplicates, without the picture to keep."""
        return sum(file.size for file in self.others)


@dataclass(frozen=True)
class DedupeReport:
    """The near-duplicates among ``pictures`` pictures, in groups ordered by the kept one's path.

    ``uploads`` is the root of the uploads, or None without uploads.
    """

    pictures: int
    max_distance: float
    keep: Keep
    groups: tuple[DuplicateGroup, ...]
    uploads: str | None = None

    @property
    def near_duplicates(self) -> int:
        """The number of pictures beside the kept ones."""
        return sum(len(group.others) for group in self.groups)

    @property
    def bytes(self) -> int:
        """The size of the near-duplicates in all."""
        return sum(group.bytes for group in self.groups)


@dataclass(frozen=True)
class Removable:
    """Files that can be removed, and the numbers of those left out because that is uncertain."""

    paths: tuple[str, ...]
    changed: int
    links: int
    uploads: int = 0


def find_near_duplicates(
    index: str | Path,
    *,
    max_distance: float = NEAR_DUPLICATE,
    keep: Keep = "largest",
    label: str | Sequence[str] | None = None,
    path: str | Sequence[str] | None = None,
    progress: StartProgress = start_nothing,
) -> DedupeReport:
    """Find the near-duplicates in one state of an index.

    The pictures are visited from the best one on, in the order of ``keep``. Each ungrouped picture
    starts a group. The group takes all ungrouped pictures at most ``max_distance`` from it, and all
    files with the same content. So each picture in a group is within that distance of the one kept.
    Two pictures that are near only to a third one may be in different groups. Uploads come last:
    a file of the user is never reported as removable for the sake of an upload.

    Args:
        index: the index folder.
        max_distance: squared Euclidean, 0 to 4.
        keep: ``largest`` keeps the largest file, then the oldest, then the lowest id; ``oldest``
            the oldest file, then the largest; ``first`` the lowest id.
        label: only pictures with one of these labels.
        path: only pictures whose path matches one of these patterns, see
            :meth:`~.index.Index.search`.
        progress: receives the progress.

    Raises:
        QueryError: ``max_distance``, ``keep``, the label or the path is invalid.
        IndexStateError, IndexDamagedError: as for opening an index.

    """
    _check_options(max_distance, keep)
    with Store.open(Path(index)) as store, store.snapshot():
        roots, uploads = store.roots(), store.uploads_root()
        items = _selected(store, label, path)
        ids, vectors = store.vectors()
    items.sort(key=lambda item: (item.root == uploads, _ORDERS[keep](item)))
    # Of files with the same content only the best, which comes first, is compared.
    contents: dict[bytes, Item] = {}
    for item in items:
        contents.setdefault(item.sha256, item)
    heads = list(contents.values())
    vectors = vectors[np.searchsorted(ids, [item.id for item in heads])]
    chosen = representatives(vectors, max_distance, progress("comparing", len(heads)))
    groups = _groups(items, heads, vectors, chosen, roots)
    place = None if uploads is None else os.fsdecode(roots[uploads])
    return DedupeReport(len(items), max_distance, keep, tuple(groups), place)


def _check_options(max_distance: float, keep: str) -> None:
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise QueryError(
            f"The largest distance of near-duplicates is {max_distance}; expected 0 to 4, such as {NEAR_DUPLICATE}."
        )
    if keep not in _ORDERS:
        raise QueryError(f"The picture to keep is {keep!r}; expected {', '.join(_ORDERS)}.")


def removable(report: DedupeReport) -> Removable:
    """Return the files of a report that can be removed while the picture to keep exists.

    A file is left out if it or the kept one is missing or has changed since its sync (``changed``),
    or if it is a link to the kept one (``links``). Uploads are left out too: deleting their files
    does not remove them from an index.
    """
    paths: list[str] = []
    changed = links = uploads = 0
    for group in report.groups:
        kept = _as_synced(group.kept)
        for other in group.others:
            status = _as_synced(other)
            if other.root == report.uploads:
                uploads += 1
            elif kept is None or status is None:
                changed += 1
            elif os.path.samestat(kept, status):
                links += 1
            else:
                paths.append(other.path)
    return Removable(tuple(paths), changed, links, uploads)


def _selected(store: Store, label: str | Sequence[str] | None, path: str | Sequence[str] | None) -> list[Item]:
    """Return the items that pass the filters."""
    allowed = allowed_ids(store, label, path)
    if allowed is None:
        return list(store.all_items())
    selected = set(allowed.tolist())
    return [item for item in store.all_items() if item.id in selected]


def _groups(
    items: Sequence[Item], heads: Sequence[Item], vectors: Vectors, chosen: Ids, roots: Mapping[int, bytes]
) -> list[DuplicateGroup]:
    """Return the groups of two or more; ``chosen`` maps each head to its representative."""
    head_of = {item.sha256: place for place, item in enumerate(heads)}
    members: dict[int, list[tuple[Item, int]]] = defaultdict(list)
    for item in items:
        head = head_of[item.sha256]
        members[int(chosen[head])].append((item, head))
    groups = []
    for kept, group in members.items():
        if len(group) > 1:
            distances = squared_distances(vectors[kept], vectors[[head for _, head in group]])
            files = [
                Hit.of(item, roots[item.root], distance=distance)
                for (item, _), distance in zip(group, distances.tolist(), strict=True)
            ]
            others = sorted(files[1:], key=lambda file: (file.distance, os.fsencode(file.path)))
            groups.append(DuplicateGroup(files[0], tuple(others)))
    return sorted(groups, key=lambda group: os.fsencode(group.kept.path))


def _as_synced(file: Hit) -> os.stat_result | None:
    """Return the status of a file that is unchanged since its sync, else None."""
    try:
        status = regular_status(file.path, follow_links=True)
    except OSError:
        return None
    return status if (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns) else None
