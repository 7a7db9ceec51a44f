"""What a sync takes of a folder: the patterns that were given with it, remembered with the folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import QueryError
from ...text import printable
from ..database.records import filters_checksum
from .globs import Globs

__all__ = ["RootFilters", "filters_row", "read_filters"]


@dataclass(frozen=True)
class RootFilters:
    """Which pictures of a folder belong into the index; false where all do.

    Attributes:
        include: patterns (see :class:`~.globs.Globs`) of which one must match; none: every picture will do.
        exclude: patterns of which none may match; a folder that one of them matches is not entered.

    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def __str__(self) -> str:
        """Return the options that ask for these filters, as they are typed."""
        import shlex

        words = [("--include", pattern) for pattern in self.include]
        words += [("--exclude", pattern) for pattern in self.exclude]
        return " ".join(f"{option} {shlex.quote(printable(pattern))}" for option, pattern in words)

    def check(self) -> None:
        """Make sure that the patterns can be used.

        Raises:
            QueryError: one is empty, or can match no path.

        """
        assert self._globs

    def takes(self, path: bytes) -> bool:
        """Tell whether the file with this path, relative to the folder, is taken."""
        include, exclude = self._globs
        return not (exclude and exclude.matches(path)) and (not include or include.matches(path))

    def enters(self, path: bytes) -> bool:
        """Tell whether the folder with this path, relative to the synced one, is looked into."""
        return not self._globs[1].matches_folder(path)

    @functools.cached_property
    def _globs(self) -> tuple[Globs, Globs]:
        return Globs(self.include), Globs(self.exclude)


def filters_row(root: int, filters: RootFilters) -> tuple[int, str, str, int]:
    """Return the row of ``filters`` that stands for these: root, include, exclude, checksum."""
    # ASCII: patterns for names that are not UTF-8 hold characters that no encoding takes.
    include, exclude = json.dumps(filters.include), json.dumps(filters.exclude)
    return root, include, exclude, filters_checksum(root, include, exclude)


def read_filters(row: Sequence[Any]) -> RootFilters | None:
    """Return the filters of a row; None: it is damaged."""
    root, include, exclude, check = row
    if not (type(root) is int and isinstance(include, str) and isinstance(exclude, str)):
        return None
    try:
        if filters_checksum(root, include, exclude) != check:
            return None
        filters = RootFilters(_patterns(include), _patterns(exclude))
        filters.check()
    except (ValueError, RecursionError, QueryError):
        return None
    return filters


def _patterns(text: str) -> tuple[str, ...]:
    patterns = json.loads(text)
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(text)
    return tuple(patterns)
