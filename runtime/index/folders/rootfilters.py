"""What a sync takes of a folder: the patterns that were given with it, remembered with the folder."""

from __future__ import annotations

import fnmatch
import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ...errors import QueryError
from ...shell import shell_word
from ...tool_folders import tool_folders
from ..database.records import checksum
from .globs import Globs

__all__ = ["RootFilters", "filters_row", "read_filters"]


@dataclass(frozen=True)
class RootFilters:
    """Which pictures of a folder belong into the index; false where nothing was asked for.

    Folders of file servers and photo programs (``@eaDir``, say) are left out unless a pattern of ``include`` names
    them.

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
        words = [("--include", pattern) for pattern in self.include]
        words += [("--exclude", pattern) for pattern in self.exclude]
        return " ".join(f"{option} {shell_word(pattern)}" for option, pattern in words)

    def check(self) -> None:
        """Make sure that the patterns can be used.

        Raises:
            QueryError: one is empty, or can match no path.

        """
        assert self._globs

    def takes(self, path: bytes) -> bool:
        """Tell whether the file with this path, relative to the folder, is taken."""
        include, exclude = self._globs
        if exclude and exclude.matches(path):
            return False
        return (not include or include.matches(path)) and not self.is_of_a_tool(os.path.dirname(path))  # noqa: PTH120

    def enters(self, path: bytes) -> bool:
        """Tell whether the folder with this path, relative to the synced one, is looked into."""
        return not self._globs[1].matches_folder(path) and not self.is_of_a_tool(path)

    def is_of_a_tool(self, path: bytes) -> bool:
        """Tell whether the folder with this path, or one that it lies in, is left out for what it is."""
        return self._of_tools.search(os.fsdecode(path) + "/") is not None

    def names(self, extension: bytes) -> bool:
        """Tell whether a pattern of ``include`` is meant for files with this extension (in small letters)."""
        return any(fnmatch.fnmatchcase(os.fsdecode(extension), named) for named in self._named_extensions)

    @functools.cached_property
    def _globs(self) -> tuple[Globs, Globs]:
        return Globs(self.include), Globs(self.exclude)

    @functools.cached_property
    def _of_tools(self) -> re.Pattern[str]:
        return tool_folders(name for pattern in self.include for name in pattern.split("/"))

    @functools.cached_property
    def _named_extensions(self) -> frozenset[str]:
        named = {PurePosixPath(pattern).suffix.lower() for pattern in self.include}
        return frozenset(extension for extension in named if any(map(str.isalnum, extension)))  # not .*


def filters_row(root: int, filters: RootFilters) -> tuple[int, str, str, int]:
    """Return the row of ``filters`` that stands for these: root, include, exclude, checksum."""
    # ASCII: patterns for names that are not UTF-8 hold characters that no encoding takes.
    include, exclude = json.dumps(filters.include), json.dumps(filters.exclude)
    return root, include, exclude, checksum(root, include, exclude)


def read_filters(row: Sequence[Any]) -> RootFilters | None:
    """Return the filters of a row; None: it is damaged."""
    root, include, exclude, check = row
    if not (type(root) is int and isinstance(include, str) and isinstance(exclude, str)):
        return None
    try:
        if checksum(root, include, exclude) != check:
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
