"""Groups of near-duplicates in an index, and which of their files could be removed; nothing is deleted."""

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
    """A picture to keep, and its near-duplicates, nearest first; their distances are those to the one to keep."""

    kept: Hit
    others: tuple[Hit, ...]


@dataclass(frozen=True)
class DedupeReport:
    """The near-duplicates among ``pictures`` pictures, in groups ordered by the path of what is kept.

    ``uploads`` is the root of the uploads, if there are any.
    """

    pictures: int
    max_distance: float
    keep: Keep
    groups: tuple[DuplicateGroup, ...]
    uploads: str | None = None

    @property
    def near_duplicates(self) -> int:
        """The number of pictures that have a better one."""
        return sum(len(group.others) for group in self.groups)


@dataclass(frozen=True)
class Removable:
    """Files that can be done without, and how many were left out because that is not certain."""

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

    The pictures are gone through from the best one on, in the sense of ``keep``. Each that is in no group yet takes
    all others that are in none and at most ``max_distance`` from it, and all files of its own content. So every picture
    is that near to the one that is kept of its group; two that are only near to a third need not be in one group.
    Uploads come after the pictures of folders, whose files are not to be spared for one that lies in an index.

    Args:
        index: the index folder.
        max_distance: squared Euclidean, 0 to 4.
        keep: the ``largest`` file, then the oldest, then the lowest id; the ``oldest`` file, then the largest; or the
            ``first``, which is the one with the lowest id.
        label: only pictures with this label, or with one of these.
        path: only pictures whose path matches this pattern, or one of these; see :meth:`~.index.Index.search`.
        progress: told how it goes on.

    Raises:
        QueryError: ``max_distance``, ``keep``, the label or the path makes no sense.
        IndexStateError, IndexDamagedError: as for opening an index.

    """
    _check_options(max_distance, keep)
    with Store.open(Path(index)) as store, store.snapshot():
        roots, uploads = store.roots(), store.uploads_root()
        items = _selected(store, label, path)
        ids, vectors = store.vectors()
    items.sort(key=lambda item: (item.root == uploads, _ORDERS[keep](item)))
    # Of each content the best one is compared, which comes first.
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
            f"Near-duplicates are to be at most {max_distance} apart; expected 0 to 4, as {NEAR_DUPLICATE}."
        )
    if keep not in _ORDERS:
        raise QueryError(f"Which picture is to be kept is {keep!r}; expected {', '.join(_ORDERS)}.")


def removable(report: DedupeReport) -> Removable:
    """Return the files of a report that can be done without, as long as the one to keep is there.

    A file is left out where that is not certain: it, or the one to keep, is gone or has changed since it was synced
    (``changed``), or it is another name of the one to keep: a link (``links``). Uploads are left out, too: they are not
    taken out of an index by deleting their files.
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
    """Return the groups of more than one picture; ``chosen`` says which head stands for each head."""
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
    """Return the status of a file that is as it was when it was synced, else None."""
    try:
        status = regular_status(file.path, follow_links=True)
    except OSError:
        return None
    return status if (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns) else None
