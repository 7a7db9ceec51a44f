"""Rows of a collection, which a server returned: checked, and as pictures of the index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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

_TYPES = (int, int, str, str, str, int, int)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_SHOWN = 100


class Row(NamedTuple):
    """A picture and its vector, float32 ``[d]``."""

    item: Item
    vector: Vectors

    @property
    def id(self) -> int:
        """Its number in the collection."""
        return self.item.id


def read_rows(
    entities: Sequence[Mapping[str, Any]], *, collection: str, dim: int, roots: Mapping[int, str]
) -> list[Row]:
    """Return rows with all :data:`COLUMNS`.

    Args:
        entities: as pymilvus returns them.
        collection: its name, for the error.
        dim: length of a vector.
        roots: the collection's folders, by number.

    Raises:
        IndexDamagedError: a row is not one that deeprank writes.

    """
    try:
        rows = [tuple(each[name] for name in FIELDS) for each in entities]
        vectors = np.array([each[VECTOR] for each in entities], dtype=np.float32).reshape(len(rows), dim)
        paths = [path.encode() for _, _, path, *_ in rows]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _damage(collection) from None
    if strays(paths) or not all(_is_sound(row, roots) for row in rows) or not are_unit(vectors).all():
        raise _damage(collection)
    return [
        Row(Item(number, root, path, label or None, size, mtime_ns, bytes.fromhex(sha256)), vector)
        for (number, root, _, label, sha256, size, mtime_ns), path, vector in zip(rows, paths, vectors, strict=True)
    ]


def _is_sound(row: tuple[Any, ...], roots: Mapping[int, str]) -> bool:
    if tuple(map(type, row)) != _TYPES:
        return False
    number, root, _, _, sha256, size, _ = row
    return number >= 0 and size >= 0 and root in roots and _SHA256.fullmatch(sha256) is not None


def _damage(collection: str) -> IndexDamagedError:
    return IndexDamagedError(
        f"The store returned a damaged row of the collection {printable(collection[:_MAX_SHOWN])}; load it again with "
        "deeprank-index load."
    )
