"""Pages of the pictures of an index folder, from its database and its catalogue."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ...errors import QueryError
from ..database.records import Item
from ..database.store import Ids, PathRange, Store
from .catalogue import Catalogue
from .filters import none_of_both
from .items import IndexedImage
from .listing import ItemPage, ListRequest, Place, no_such_folder, write_cursor

__all__ = ["needs_catalogue", "read_page"]


def needs_catalogue(request: ListRequest) -> bool:
    """Tell whether a list needs more than the database's own order of the paths."""
    return request.order != "folder" or request.label is not None


def read_page(
    store: Store, catalogue: Catalogue | None, request: ListRequest, after: Place | None, index: str
) -> ItemPage:
    """Return a page.

    Args:
        store: in a snapshot; of the catalogue's state, or of a later one.
        catalogue: None if the request does not need it.
        request: what is listed.
        after: the last picture of the page before; None: the first page.
        index: for the cursor, see :func:`~.listing.write_cursor`.

    Raises:
        QueryError: it is the first page, and no picture passes the filters.
        IndexDamagedError: a row is damaged.

    """
    if catalogue is None:
        total, following = _by_path(store, request, after)
    else:
        total, following = _by_catalogue(store, catalogue, request, after)
    if not total and after is None and request.filtered:
        raise _nothing(store, request)
    found = list(itertools.islice(following, request.limit + 1))
    shown, roots = found[: request.limit], store.roots()
    cursor = write_cursor(shown[-1][1], request, index) if len(found) > request.limit else None
    return ItemPage([IndexedImage.of(item, roots[item.root]) for item, _ in shown], total, cursor)


def _by_path(store: Store, request: ListRequest, after: Place | None) -> tuple[int, Iterator[tuple[Item, Place]]]:
    """Return the number of pictures of a list in the order of paths, and those behind a place."""
    ranges = _ranges(store, request.folder)
    total = store.meta().items if request.folder is None else sum(map(store.count_in, ranges))

    def following() -> Iterator[tuple[Item, Place]]:
        for paths in ranges:
            if after is not None and paths.root == after.root:
                paths = paths._replace(after=max(paths.after, after.path))
            if after is None or paths.root >= after.root:
                for item in store.items_in(paths, request.limit + 1):
                    yield item, Place(item.id, item.root, item.path)

    return total, following()


def _by_catalogue(
    store: Store, catalogue: Catalogue, request: ListRequest, after: Place | None
) -> tuple[int, Iterator[tuple[Item, Place]]]:
    """Return the number of pictures of a list, and those behind a place."""
    mask = catalogue.mask(request, lambda: _ids_below(store, request.folder), lenient=after is not None)
    rest = catalogue.rest(request, after, lambda place: store.ids_behind(place.root, place.path))
    number = catalogue.number if after is None else after.number
    if mask is not None:
        rest = rest[mask[rest]]

    def following() -> Iterator[tuple[Item, Place]]:
        # In pieces: a picture may have been removed since the catalogue was made.
        for start in range(0, len(rest), request.limit + 1):
            places = rest[start : start + request.limit + 1]
            ids = catalogue.ids[places].tolist()
            items = store.known_items(ids)
            for item, place in zip(map(items.get, ids), catalogue.places_of(places, number), strict=True):
                if item is not None:
                    yield item, replace(place, root=item.root, path=item.path if request.order == "folder" else b"")

    return len(catalogue) if mask is None else int(np.count_nonzero(mask)), following()


def _ranges(store: Store, folders: tuple[str, ...] | None) -> list[PathRange]:
    """Return the ranges of paths of a list, in order."""
    roots = sorted(store.roots())
    if folders is None:
        return [PathRange(root) for root in roots]
    below = sorted({os.fsencode(folder) for folder in folders})
    return [PathRange.below(root, folder) for root in roots for folder in below]


def _ids_below(store: Store, folders: tuple[str, ...] | None) -> Ids:
    return np.unique(np.concatenate([store.ids_in(paths) for paths in _ranges(store, folders)] or [np.empty(0, int)]))


def _nothing(store: Store, request: ListRequest) -> QueryError:
    if request.folder is not None and not any(map(store.count_in, _ranges(store, request.folder))):
        return no_such_folder(request.folder)
    return none_of_both()
