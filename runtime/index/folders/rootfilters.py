"""The filters of a synced folder: patterns given with a sync and remembered."""

from __future__ import annotations

import fnmatch
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ...data.tool_folders import tool_folders
from ...errors import QueryError
from ...shell import shell_word
from ..database.records import checksum
from .globs import Globs

__all__ = ["RootFilters", "filters_row", "read_filters"]

# Compiling a pattern takes up to 25 microseconds a character: 3 seconds at most, 6 for all of an
# index. Folders with equal patterns count once.
_MOST_CHARACTERS = 1 << 17
_MOST_OF_INDEX = 1 << 18


@dataclass(frozen=True)
class RootFilters:
    """The filters of a folder; false without any.

    Folders of file servers and photo programs (such as ``@eaDir``) are left out unless a pattern of
    ``include`` names them.

    Attributes:
        include: patterns (see :class:`~.globs.Globs`) of which one must match; empty: all pictures.
        exclude: patterns of which none may match; matching folders are not entered.

    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def __str__(self) -> str:
        """Return the command-line options for these filters."""
        words = [("--include", pattern) for pattern in self.include]
        words += [("--exclude", pattern) for pattern in self.exclude]
        return " ".join(f"{option} {shell_word(pattern)}" for option, pattern in words)

    def check(self) -> None:
        """Make sure that the patterns can be used.

        Raises:
            QueryError: one is empty or can match no path, or they are too long.

        """
        if self.length > _MOST_CHARACTERS:
            raise QueryError(
                f"The patterns have {self.length:,} characters; expected at most {_MOST_CHARACTERS:,} for a folder."
            )
        assert self._globs

    @property
    def length(self) -> int:
        """Number of characters of all patterns."""
        return sum(map(len, self.include + self.exclude))

    def takes(self, path: bytes) -> bool:
        """Tell whether the file with this path, relative to the folder, is selected."""
        include, exclude = self._globs
        if exclude and exclude.matches(path):
            return False
        return (not include or include.matches(path)) and not self.is_of_a_tool(os.path.dirname(path))  # noqa: PTH120

    def enters(self, path: bytes) -> bool:
        """Tell whether the folder with this path, relative to the synced one, is entered."""
        return not self._globs[1].matches_folder(path) and not self.is_of_a_tool(path)

    def is_of_a_tool(self, path: bytes) -> bool:
        """Tell whether this folder, or a parent of it, is left out as a tool folder."""
        return self._of_tools.search(os.fsdecode(path) + "/") is not None

    def names(self, extension: bytes) -> bool:
        """Tell whether a pattern of ``include`` selects this extension (in lower case)."""
        if extension not in self._extensions:
            name = os.fsdecode(extension)
            self._extensions[extension] = any(fnmatch.fnmatchcase(name, named) for named in self._named_extensions)
        return self._extensions[extension]

    @functools.cached_property
    def _globs(self) -> tuple[Globs, Globs]:
        return Globs(self.include), Globs(self.exclude)

    @functools.cached_property
    def _of_tools(self) -> re.Pattern[str]:
        return tool_folders(name for pattern in self.include for name in pattern.split("/"))

    @functools.cached_property
    def _extensions(self) -> dict[bytes, bool]:
        return {}

    @functools.cached_property
    def _named_extensions(self) -> frozenset[str]:
        named = {PurePosixPath(pattern).suffix.lower() for pattern in self.include}
        # ``.*`` names no extension
        return frozenset(extension for extension in named if any(map(str.isalnum, extension)))


def filters_row(root: int, filters: RootFilters) -> tuple[int, str, str, int]:
    """Return the row of ``filters``: root, include, exclude, checksum."""
    # ASCII: patterns for names that are not UTF-8 contain characters that no encoding accepts.
    include, exclude = json.dumps(filters.include), json.dumps(filters.exclude)
    return root, include, exclude, checksum(root, include, exclude)


def read_filters(rows: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, RootFilters | None]]:
    """Yield each row's root and filters; None if damaged, or if all together are too long."""
    known: set[RootFilters] = set()
    left = _MOST_OF_INDEX
    for row in rows:
        filters = _filters_of(row)
        if filters is not None and filters not in known:
            known.add(filters)
            left -= filters.length
        try:
            if filters is not None and left >= 0:
                filters.check()
                yield row[0], filters
                continue
        except QueryError:
            pass
        yield row[0], None


def _filters_of(row: Sequence[Any]) -> RootFilters | None:
    root, include, exclude, check = row
    if not (type(root) is int and isinstance(include, str) and isinstance(exclude, str)):
        return None
    try:
        if checksum(root, include, exclude) != check:
            return None
        return RootFilters(_patterns(include), _patterns(exclude))
    except (ValueError, RecursionError):
        return None


def _patterns(text: str) -> tuple[str, ...]:
    patterns = json.loads(text)
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(text)
    return tuple(patterns)
