"""Look up a picture of an index by its id or path: a query that needs neither file nor model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import QueryError
from ...text import display_path, printable
from ..database.records import Item
from ..database.store import Store
from .hit import EmbeddedImage

__all__ = ["find_picture"]

# Pictures named in a message.
_SHOWN = 3
# Numbers of more digits are beyond what SQLite counts to.
_DIGITS = 19


def find_picture(store: Store, which: int | str | Path) -> EmbeddedImage:
    """Return a picture of the index.

    Args:
        store: in a snapshot.
        which: its id (a number, or text of digits alone), or its path: absolute, from the current folder, or from a
            synced one.

    Raises:
        QueryError: there is none, or the path leads to several.
        IndexDamagedError: what would be returned is damaged.

    """
    roots = store.roots()
    item = _by_id(store, int(str(which))) if _is_number(which) else _by_path(store, roots, which)
    return EmbeddedImage.of(item, roots[item.root], vector=store.vectors_of([item.id])[0])


def _is_number(which: int | str | Path) -> bool:
    return isinstance(which, int) or (
        isinstance(which, str) and which.isascii() and which.isdecimal() and len(which) < _DIGITS
    )


def _by_id(store: Store, number: int) -> Item:
    meta = store.meta()
    # Larger numbers are no ids, and SQLite does not take them.
    item = store.item_with(number) if 0 < number <= meta.last_id else None
    if item is None:
        raise QueryError(
            f"The index has no picture with the id {number}; expected one that deeprank-query --json shows, or a path "
            "(a file whose name is a number: ./NAME)."
        )
    return item


def _by_path(store: Store, roots: dict[int, bytes], which: int | str | Path) -> Item:
    name = os.fsencode(str(which))
    matches: dict[bytes, Item] = {}
    if b"\0" not in name:  # which the system takes for no path
        # A link is a picture of its own; only where it is none, what it leads to is meant.
        matches = _at(store, roots, _places(roots, name)) or _at(store, roots, _places(roots, os.path.realpath(name)))
    if not matches:
        raise QueryError(
            f"The index has no picture {printable(os.fsdecode(name))}; expected its id, or its path: absolute, from "
            "the current folder, or from a synced one."
        )
    if len(matches) > 1:
        shown = [f"{display_path(path)} (id {item.id})" for path, item in list(matches.items())[:_SHOWN]]
        more = f" and {len(matches) - _SHOWN} others" if len(matches) > _SHOWN else ""
        raise QueryError(
            f"{printable(os.fsdecode(name))} is {' and '.join(shown)}{more}; expected one of them: name it by its id "
            "or its absolute path."
        )
    return next(iter(matches.values()))


def _at(store: Store, roots: dict[int, bytes], places: Iterable[tuple[int, bytes]]) -> dict[bytes, Item]:
    """Return what is at these places, by absolute path."""
    matches: dict[bytes, Item] = {}
    for root, path in places:
        item = store.item_at(root, path)
        if item is not None:
            full = os.path.join(roots[root], path)  # noqa: PTH118 - bytes, which pathlib does not take
            matches[full] = item
    return matches


def _places(roots: dict[int, bytes], name: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield where a picture of this name may be: (root, path under it)."""
    absolute = os.path.abspath(name)  # noqa: PTH100 - bytes, as below
    # Roots have no links in their paths, but the folder of what is named may be reached through some.
    folder, last = os.path.split(absolute)
    ways = {absolute, os.path.join(os.path.realpath(folder), last)}  # noqa: PTH118
    for root, path in roots.items():
        below = path.rstrip(b"/") + b"/"
        yield from ((root, way.removeprefix(below)) for way in ways if way.startswith(below))
        if not os.path.isabs(name):  # noqa: PTH117
            yield root, os.path.normpath(name)
