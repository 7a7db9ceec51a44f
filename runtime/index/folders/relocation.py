"""Moved roots: the index folder and the new place that ``OLD=NEW`` names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from ...errors import IndexStateError
from ...text import display_path, printable

__all__ = ["find_moved_roots"]


def find_moved_roots(known: Mapping[int, bytes], moved: Sequence[str]) -> dict[int, bytes]:
    """Return the new path of each moved root, without links in it, by the root's number.

    Names may contain ``=``: every possible split is tried.

    Args:
        known: the roots of the index.
        moved: ``OLD=NEW`` each; OLD need not exist.

    Raises:
        IndexStateError: OLD is no root, NEW is no folder, either is ambiguous, or either is named
            twice.

    """
    found: dict[int, bytes] = {}
    for text in moved:
        root, path = _parted(known, text)
        if root in found or path in found.values():
            raise IndexStateError(f"--root {printable(text)!r} names a folder that another --root names, too.")
        found[root] = path
    return found


def _parted(known: Mapping[int, bytes], text: str) -> tuple[int, bytes]:
    ways = list(_ways(known, text))
    if not ways:
        listed = " or ".join(display_path(path) for path in known.values()) or "one, but the index has none"
        raise IndexStateError(
            f"--root {printable(text)!r} begins with no folder of the index; expected OLD=NEW, where OLD is {listed}."
        )
    folders = [(root, new) for root, new in ways if os.path.isdir(new)]  # noqa: PTH112 - bytes
    if not folders:
        raise IndexStateError(
            f"{display_path(ways[0][1] or b'(no name)')} is not a folder; expected the new place of "
            f"{display_path(known[ways[0][0]])}."
        )
    if len(folders) > 1:
        raise IndexStateError(
            f"--root {printable(text)!r} can be read in {len(folders)} ways, for there are folders with '=' in their "
            "names; name the new place by a link without one."
        )
    root, new = folders[0]
    return root, os.path.realpath(new)


def _ways(known: Mapping[int, bytes], text: str) -> Iterator[tuple[int, bytes]]:
    numbers = {path: root for root, path in known.items()}
    for place, character in enumerate(text):
        if character == "=":
            old, new = text[:place], os.fsencode(text[place + 1 :])
            for spelling in dict.fromkeys((os.path.realpath(old), os.path.abspath(old))) if old else ():  # noqa: PTH100
                root = numbers.get(os.fsencode(spelling))
                if root is not None:
                    yield root, new
                    break
