"""Rows of a collection, which a server returned: checked, and as pictures of the index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...errors import IndexDamagedError
from ...scan import are_unit
from ...text import printable
from ..database.records import Item, strays
from ..database.store import Vectors
from .collection import FIELDS, VECTOR

__all__ = ["COLUMNS", "Row", "read_rows"]

COLUMNS = [*FIELDS, VECTOR]

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NUMBERS = ("id", "root", "size", "mtime_ns")
_MAX_SHOWN = 100


class Row(NamedTuple):
    """A picture and its vector, float32 ``[d]``."""

    item: Item
    vector: Vectors

    @property
    def id(self) -> int:
        """Its number in the collection."""
        return self.item.id


def read_rows(found: Iterable[Mapping[str, Any]], *, collection: str, dim: int, roots: Mapping[int, str]) -> list[Row]:
    """Return rows with all :data:`COLUMNS`.

    Args:
        found: as pymilvus returns them.
        collection: its name, for the error.
        dim: length of a vector.
        roots: the collection's folders, by number.

    Raises:
        IndexDamagedError: a row is not one that deeprank writes.

    """
    rows = [_row(each, dim, roots) for each in found]
    sound = [row for row in rows if row is not None]
    if len(sound) < len(rows) or (sound and not are_unit(np.stack([row.vector for row in sound])).all()):
        raise IndexDamagedError(
            f"The store returned a damaged row of the collection {printable(collection[:_MAX_SHOWN])}; load it again "
            "with deeprank-index load."
        )
    return sound


def _row(found: Mapping[str, Any], dim: int, roots: Mapping[int, str]) -> Row | None:
    """Return a row; None if it is damaged."""
    try:
        number, root, size, mtime_ns = (found[name] for name in _NUMBERS)
        path, label, sha256 = found["path"], found["label"], found["sha256"]
        vector = np.asarray(found[VECTOR], dtype=np.float32)
        sound = (
            all(type(value) is int for value in (number, root, size, mtime_ns))
            and number > 0
            and size >= 0
            and root in roots
            and isinstance(label, str)
            and _SHA256.fullmatch(sha256) is not None
            and not strays([path.encode()])
            and vector.shape == (dim,)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if not sound:
        return None
    return Row(Item(number, root, path.encode(), label or None, size, mtime_ns, bytes.fromhex(sha256)), vector)
