"""The paths of an index's items, read once and checked, and their selection by patterns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ...errors import QueryError
from ...text import printable
from ..database.store import Ids, Store
from ..patterns import Globs

__all__ = ["Paths", "from_current_folder", "no_such_path"]


Mask = npt.NDArray[np.bool_]


class Paths:
    """The path of every item, from a store in a snapshot.

    Attributes:
        ids: ids of the items, int64 ``[n]``, ascending.
        places: the root's number and the path under the root, for each item.

    """

    def __init__(self, store: Store) -> None:
        self._roots = store.roots()
        items = list(store.all_items())
        self.ids = np.array([item.id for item in items], dtype=np.int64)
        self.places = [(item.root, item.path) for item in items]

    def ids_matching(self, path: str | Sequence[str]) -> Ids:
        """Return the ids of the items whose path matches one of these patterns: int64, ascending.

        A pattern that begins with ``/`` matches the absolute path, any other the path under the
        synced folder. If that matches nothing, it is read from the current folder, as in a shell.
        :mod:`..patterns` describes the syntax.

        Raises:
            QueryError: no item matches a pattern.

        """
        chosen = np.zeros(len(self.ids), dtype=np.bool_)
        for pattern in [path] if isinstance(path, str) else path:
            matching = self.matching(pattern)[0]
            if not matching.any():
                raise no_such_path(pattern, os.fsdecode(self.places[0][1]) if self.places else None)
            chosen |= matching
        return self.ids[chosen]

    def matching(self, pattern: str) -> tuple[Mask, str | None]:
        """Return which items match, bool ``[n]``, and the pattern of absolute paths, if used.

        Raises:
            QueryError: the pattern cannot match any path.

        """
        if not os.path.isabs(pattern):  # noqa: PTH117 - a pattern
            upwards = ".." in pattern.split("/")
            below = self._match(pattern, dict.fromkeys(self._roots, b"")) if not upwards else None
            if below is not None and (below.any() or "/" not in pattern.rstrip("/")):
                return below, None
            pattern = from_current_folder(pattern)
        # The paths of the synced folders go before the items' paths, without the leading slash.
        whole = {root: path.strip(b"/") + b"/" for root, path in self._roots.items()}
        return self._match(pattern, whole), pattern

    def _match(self, pattern: str, before: Mapping[int, bytes]) -> Mask:
        globs = Globs([pattern])
        matches = (globs.matches(before[root].lstrip(b"/") + path) for root, path in self.places)
        return np.fromiter(matches, dtype=np.bool_, count=len(self.places))


def no_such_path(pattern: str, example: str | None, *, absolute: bool = True) -> QueryError:
    """Return the error that no picture matches a pattern.

    Args:
        pattern: as typed.
        example: the path of a picture, if there is any.
        absolute: whether patterns of absolute paths are possible.

    """
    expected = "this index is empty"
    if example is not None:
        whole = ", or for whole paths, beginning with /" if absolute else ""
        expected = f"expected a pattern for paths such as {printable(example)!r}{whole}"
    return QueryError(f"No picture has a path that matches {printable(pattern)!r}; {expected}.")


def from_current_folder(pattern: str) -> str:
    """Return the pattern of absolute paths for a pattern relative to the current folder."""
    from glob import escape

    absolute = os.path.normpath(os.path.join(escape(os.getcwd()), pattern))  # noqa: PTH109, PTH118 - a pattern
    return f"{absolute}/" if pattern.endswith("/") else absolute
