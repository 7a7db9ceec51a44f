"""Path patterns: one language for sync filters, search and removal."""

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

from ..data.tool_folders import tool_folders
from ..errors import QueryError
from ..shell import shell_word
from ..text import printable
from .database.records import checksum

__all__ = ["Globs", "RootFilters", "filters_row", "read_filters"]

_END = r"(?=/|\Z)"
_FOLDERS = r"(?:[^/]++/)*?"
_NOTHING = r"(?!)"

# Compiling a pattern takes up to 25 microseconds a character: 3 seconds at most, 6 for all of an
# index. Folders with equal patterns count once.
_MAX_CHARACTERS = 1 << 17
_MAX_OF_INDEX = 1 << 18


class Globs:
    """Shell patterns for paths under a synced folder; matching a folder includes its contents.

    ``*`` matches any characters of a name, ``?`` one of them, ``[abc]`` one of these, ``[!abc]``
    any other; ``**`` in place of a name matches any number of folders, also none. A pattern without
    ``/`` matches names at any depth; with ``/`` (except at its end) it starts at the synced folder.
    A pattern that ends in ``/`` matches only folders. Case matters; names need not be UTF-8; a
    literal ``*`` is written ``[*]``.

    Each part of a pattern takes the first place where it fits and never another one. This is
    correct, because an earlier place never rules out a later match. Matching takes at most the
    product of the lengths.

    Args:
        patterns: as typed.

    Raises:
        QueryError: a pattern is empty, or can match no path.

    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = tuple(patterns)
        self._match = re.compile("|".join(map(_translated, self.patterns)) or _NOTHING).match

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def matches(self, path: bytes) -> bool:
        """Tell whether a file's path, relative to the synced folder, matches."""
        return self._match(os.fsdecode(path)) is not None

    def matches_folder(self, path: bytes) -> bool:
        """Tell whether a folder's path, relative to the synced folder, matches with all inside."""
        return self._match(os.fsdecode(path) + "/") is not None


def _translated(pattern: str) -> str:
    """Return a pattern's regular expression, anchored at the start of a path."""
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    if not names or ".." in names or "\0" in pattern:
        raise QueryError(
            f"The pattern {printable(pattern)!r} matches no path; expected one for paths below the synced folder, such "
            "as '*.png', 'holidays/*' or 'raw'."
        )
    if "/" not in pattern.rstrip("/"):
        names.insert(0, "**")
    *leading, last = _runs(names)
    end = "/" if pattern.endswith("/") else _END
    parts = [_run(run, "/", place > 0) for place, run in enumerate(leading) if run]
    parts.append(_run(last, end, bool(leading)) if last else "[^/]" if end == _END else "[^/]++/")
    return "".join(parts)


def _runs(names: Sequence[str]) -> list[list[str]]:
    """Split names at each ``**``."""
    runs: list[list[str]] = [[]]
    for name in names:
        if name == "**":
            runs.append([])
        else:
            runs[-1].append(name)
    return runs


def _run(names: Sequence[str], end: str, below: bool) -> str:
    """Return the expression of adjacent names: here, or in any folder below."""
    pattern = "/".join(map(_name, names)) + end
    return f"(?>{_FOLDERS}{pattern})" if below else pattern


def _name(name: str) -> str:
    """Return the expression of one name."""
    first, *others = _pieces(name)
    if not others:
        return first
    *middle, last = others
    if not (first or last or middle):
        return "[^/]++"
    tail = f"(?>[^/]*{last}{_END})" if last else "[^/]*+"
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle) + tail


def _pieces(name: str) -> list[str]:
    """Return the expressions before, between and after the stars, each of a fixed length."""
    pieces = [""]
    for character in _characters(name):
        if character != "*":
            pieces[-1] += character
        elif pieces[-1] or len(pieces) == 1:
            pieces.append("")
    return pieces


def _characters(name: str) -> Iterator[str]:
    """Yield an expression for each character, and ``*`` for each star."""
    place = 0
    while place < len(name):
        character = name[place]
        end = _class_end(name, place)
        if end > 0:
            yield _class(name[place + 1 : end])
            place = end
        else:
            yield {"*": "*", "?": "[^/]"}.get(character) or re.escape(character)
        place += 1


def _class_end(name: str, place: int) -> int:
    """Return the place of the closing bracket, or -1; the first character may be a bracket, too."""
    if name[place] != "[":
        return -1
    return name.find("]", place + (3 if name[place + 1 : place + 2] in ("!", "^") else 2))


def _class(content: str) -> str:
    """Return the expression for the content of brackets."""
    negated = content[0] in "!^"
    members, place = "", int(negated)
    while place < len(content):
        first, last = content[place], content[place]
        if content[place + 1 : place + 2] == "-" and place + 2 < len(content):
            last = content[place + 2]
            place += 2
        if first <= last:
            members += f"{re.escape(first)}-{re.escape(last)}"
        place += 1
    if negated:
        return f"[^/{members}]"
    return f"(?!/)[{members}]" if members else _NOTHING


@dataclass(frozen=True)
class RootFilters:
    """The filters of a folder; false without any.

    Folders of file servers and photo programs (such as ``@eaDir``) are left out unless a pattern of
    ``include`` names them.

    Attributes:
        include: patterns (see :class:`Globs`) of which one must match; empty: all pictures.
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
        if self.length > _MAX_CHARACTERS:
            raise QueryError(
                f"The patterns have {self.length:,} characters; expected at most {_MAX_CHARACTERS:,} for a folder."
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
    left = _MAX_OF_INDEX
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
